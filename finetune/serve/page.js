"use strict";
const [form, key, text, pair, send, answer, why, label, words] =
  ["form", "key", "text", "pair", "send", "answer", "why", "label", "words"].map(id => document.getElementById(id));
const MOST_LABELS = 20; // whose bars are drawn
const MOST_WORDS = 8; // that are listed with their numbers
let asked = null; // what the answer on the page is to

function element(tag, content, name) {
  const made = document.createElement(tag);
  if (content !== undefined) made.textContent = content;
  if (name) made.className = name;
  return made;
}

const percent = probability => (100 * probability).toFixed(1) + " %";
const signed = value => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

/** Ask the service; the answer, or an error with one line to show. */
async function ask(path, body) {
  const headers = {};
  if (key) headers.Authorization = "Bearer " + key.value;
  if (body) headers["Content-Type"] = "application/json";
  const how = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  let response, found;
  try {
    response = await fetch(path, how);
    found = await response.json();
  } catch {
    throw new Error("The service does not answer.");
  }
  if (!response.ok) throw Object.assign(new Error(found.error), { status: response.status });
  return found;
}

/** Show what the model is as soon as it is loaded, or with a key as soon as that is typed. */
async function introduce() {
  const task = document.getElementById("task");
  try {
    const health = await ask("health");
    task.textContent = Object.entries(health.facts).slice(0, 2).map(([name, fact]) => `${name} ${fact}`).join("; ").replace(/; \w/, sign => sign.toLowerCase()) + ".";
    document.getElementById("second").hidden = health.is_paired === false;
    pair.required = health.is_paired === true;
    const facts = { ...health.facts, Labels: health.labels.slice(0, MOST_LABELS).join(", ") + (health.labels.length > MOST_LABELS ? ", …" : "") };
    document.getElementById("facts").replaceChildren(
      ...Object.entries(facts).flatMap(([name, fact]) => [element("dt", name), element("dd", fact)]));
    document.getElementById("about").hidden = false;
    offer(health.examples);
  } catch (error) {
    task.textContent = error.status === 401 ? "" : error.message;
    if (error.status === 503) setTimeout(introduce, 1000);
  }
}

function offer(examples) {
  const group = document.getElementById("examples");
  group.hidden = examples.length === 0;
  group.replaceChildren(...examples.map(([first, second]) => {
    const button = element("button", first, "plain");
    button.type = "button";
    button.addEventListener("click", () => {
      text.value = first;
      pair.value = second || "";
      form.requestSubmit();
    });
    return button;
  }));
}

function show(prediction) {
  why.hidden = false;
  label.parentElement.querySelector("label").hidden = label.hidden = prediction.value !== null;
  if (prediction.value !== null) {
    label.replaceChildren();
    answer.replaceChildren(element("h2", prediction.value.toFixed(4), "answer"));
    if (prediction.interval) answer.append(element("p", "between " + prediction.interval.map(end => end.toFixed(4)).join(" and ")));
    return;
  }
  const sorted = Object.entries(prediction.probabilities).sort((one, other) => other[1] - one[1]);
  const found = prediction.is_given ? prediction.labels.join(", ") || "no label" : "Not sure";
  answer.replaceChildren(element("h2", found, prediction.is_given ? "answer" : "answer unsure"));
  if (!prediction.is_given) answer.append(element("p", "The model is less sure than it was asked to be before it answers.", "note"));
  if (prediction.label_set) answer.append(element("p", "It may be: " + (prediction.label_set.join(", ") || "none of the labels")));
  const list = element("ul", undefined, "bars");
  for (const [name, probability] of sorted.slice(0, MOST_LABELS)) {
    const item = element("li"), line = element("div"), track = element("span", undefined, "track"), bar = element("span", undefined, "bar");
    line.append(element("span", name, prediction.labels.includes(name) ? "chosen" : ""), element("span", percent(probability)));
    bar.style.width = 100 * probability + "%";
    track.append(bar);
    item.append(line, track);
    list.append(item);
  }
  answer.append(list);
  if (sorted.length > MOST_LABELS) answer.append(element("p", `and ${sorted.length - MOST_LABELS} less probable labels`, "note"));
  const first = prediction.labels.length === 1 ? prediction.labels[0] : sorted[0][0];
  label.replaceChildren(...sorted.map(([name]) => element("option", name)));
  label.value = first;
}

function showWords(found) {
  const known = found.pieces.filter(piece => piece.contribution !== null);
  const most = Math.max(...known.map(piece => Math.abs(piece.contribution)), 0) || 1;
  const paragraph = element("p", undefined, "words");
  paragraph.dir = "auto";
  for (const piece of found.pieces) {
    if (piece.contribution === null) {
      paragraph.append(piece.text);
      continue;
    }
    const word = element("span", piece.text, piece.contribution > 0 ? "for" : "against");
    word.style.setProperty("--share", Math.abs(piece.contribution) / most);
    word.title = signed(piece.contribution);
    paragraph.append(word);
  }
  const list = (sign, name) => {
    const chosen = known.filter(piece => sign * piece.contribution > 0)
      .sort((one, other) => sign * (other.contribution - one.contribution)).slice(0, MOST_WORDS);
    const line = element("p"), mark = element("span", name, sign > 0 ? "for" : "against");
    mark.style.setProperty("--share", 1);
    line.append(mark, ": " + (chosen.map(piece => `${piece.text} ${signed(piece.contribution)}`).join(", ") || "no word"));
    return line;
  };
  const what = found.is_exact
    ? `The words' contributions add up to the score of “${found.label}”, ${signed(found.score)}, less that of an empty text, ${signed(found.base)}.`
    : `A word's contribution is what the score of “${found.label}”, ${signed(found.score)}, loses when that word is left out.`;
  words.replaceChildren(
    element("h2", `Why ${found.label}?`), paragraph, list(1, "For it"), list(-1, "Against it"), element("p", what, "note"));
}

/** Send what a form asks, with its button held; what goes wrong is one line in `place`. */
async function run(button, place, work) {
  button.disabled = true;
  place.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    place.replaceChildren(element("p", error.message, "error"));
  } finally {
    button.disabled = false;
    place.removeAttribute("aria-busy");
  }
}

form.addEventListener("submit", event => {
  event.preventDefault();
  words.replaceChildren();
  why.hidden = true;
  run(send, answer, async () => {
    const body = { text: text.value };
    if (pair.value) body.pair = pair.value;
    const found = await ask("predict", body);
    asked = body;
    show(found.predictions[0]);
  });
});

why.addEventListener("submit", event => {
  event.preventDefault();
  run(document.getElementById("explain"), words, async () => {
    words.replaceChildren(element("p", "Leaving out one word after the other …", "note"));
    showWords(await ask("explain", label.value ? { ...asked, label: label.value } : asked));
  });
});

for (const field of [text, pair]) {
  field.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}
if (key) key.addEventListener("change", introduce);
else introduce();
