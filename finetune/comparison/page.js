// Sorts a table by the column whose heading is pressed: first the order that a reader would want, then the other one.
// Says where a table is wider than the screen, and prints what is folded away.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const body = table.tBodies[0];
      const key = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows];
      const known = rows.filter((row) => key(row) !== "");
      const numeric = known.every((row) => Number.isFinite(Number(key(row))));
      const now = heading.getAttribute("aria-sort");
      const first = heading.classList.contains("more") ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = now === first ? second : first;
      const sign = order === "ascending" ? 1 : -1;
      known.sort((a, b) => sign * (numeric ? key(a) - key(b) : key(a).localeCompare(key(b), "en", { numeric: true })));
      body.append(...known, ...rows.filter((row) => key(row) === ""));
      headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? order : "none"));
    });
  });
}

function showHints() {
  for (const hint of document.querySelectorAll(".hint")) {
    const scroll = hint.nextElementSibling;
    hint.hidden = scroll.scrollWidth <= scroll.clientWidth + 1;
  }
}
showHints();
addEventListener("resize", showHints);
document.addEventListener("toggle", showHints, true);

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const one of folded) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of folded) one.open = false;
});
