"""The report's page in a real browser: nothing fetched, no error, readable on a phone and in the dark."""

import itertools
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import open_page, read_requests
from selenium.webdriver.common.by import By
from synthetic_runs import write_run

from finetune.comparison.command import report_runs

SCRIPT = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of four methods on three classes, with texts and a label that would do harm as markup."""
    folder = tmp_path_factory.mktemp("page")
    names = [
        "a rather long name of a class without any sense",
        f"sport {SCRIPT}",
        "\u202eספורט ترفيه",
    ]  # which turns what follows
    for method, skill in (("tfidf", 2.0), ("textcnn", 2.4), ("lora", 3.3), ("full", 3.4)):
        for seed in (0,) if method == "tfidf" else (0, 1):
            run = write_run(folder / f"runs/{method}-{seed}", method, seed, skill, label_names=names, long_texts=True)
            path = run / "predictions/test.parquet"
            columns = pq.read_table(path).to_pydict()
            columns["text"] = [f"{SCRIPT} {text} {'unbroken' * 40}" for text in columns["text"]]
            pq.write_table(pa.table(columns), path)
    (folder / "runs/broken").mkdir()
    (folder / "runs/broken/run.json").write_text("{")
    rate = {"training": {"learning_rate": 0.001}}
    write_run(folder / "runs/lora-high", "lora", 0, 3.1, label_names=names, long_texts=True, arguments=rate)
    report_runs([str(folder / "runs")], str(folder / "out"))
    return folder / "out"


@pytest.fixture(
    params=[
        pytest.param((width, scheme), id=f"{width}-{scheme}", marks=marks)
        for width, scheme, marks in (
            (1280, "light", []),
            (360, "dark", []),
            (360, "light", pytest.mark.slow),
            (1280, "dark", pytest.mark.slow),
        )
    ]
)
def page(browser, folder, request):
    """The page at a width of pixels and in a colour scheme."""
    open_page(browser, f"file://{folder}/report.html", *request.param)
    return browser


def luminance(colour):
    """Relative luminance of a computed colour, WCAG 2.2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_nothing_is_fetched_and_nothing_goes_wrong(page, folder):
    page.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.get_log("browser") == []
    assert page.title == "Comparison of 5 variants"  # no text ran as a script
    sent = read_requests(page)
    assert {url.partition(":")[0] for url in sent} <= {"file", "data"}
    assert [url for url in sent if url.startswith("file:")] == [f"file://{folder}/report.html"]


def test_a_script_of_someone_else_would_not_run(page):
    """The policy of the page, if an escape were ever forgotten."""
    page.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", SCRIPT)
    page.execute_script("""
        const one = document.createElement('script');
        one.text = "document.title = 'broken'";
        document.body.append(one);""")
    assert page.title == "Comparison of 5 variants"
    assert page.execute_script("return fetch('report.json').then(() => 'fetched', () => 'refused')") == "refused"
    assert "Content Security Policy" in " ".join(entry["message"] for entry in page.get_log("browser"))


def test_nothing_is_wider_than_the_screen(page):
    page.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    width = page.execute_script("return window.innerWidth")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    wider = page.execute_script("""
        return [...document.querySelectorAll('main *')]
            .filter(one => !one.closest('.scroll, svg') && one.getBoundingClientRect().right > window.innerWidth + 0.5)
            .map(one => one.outerHTML.slice(0, 100))""")
    assert wider == []


def test_every_figure_is_seen_and_told(page):
    figures = page.find_elements(By.CSS_SELECTOR, "figure svg")
    names = {one.get_attribute("id") for one in page.find_elements(By.CSS_SELECTOR, "figure")}
    expected = {"difference-to-best", "quality", "by-length", "per-class", "validation-curve", "loss-curve"}
    expected |= {f"cost-{name}" for name in ("train-seconds", "peak-memory-bytes", "bytes", "latency-seconds")}
    expected |= {f"{kind}-{position}" for kind in ("confusion", "reliability") for position in range(5)}
    assert expected <= names
    assert len(figures) == len(names)
    for figure in figures:
        assert figure.rect["width"] > 200
        assert figure.rect["height"] > 100
        assert figure.get_attribute("role") == "img"
        assert len(figure.get_attribute("aria-label")) > 20
    # The smallest text of any figure, in pixels of the screen.
    smallest = page.execute_script("""
        return Math.min(...[...document.querySelectorAll('figure svg text')].map(text => {
            const svg = text.ownerSVGElement;
            const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
            return parseFloat(getComputedStyle(text).fontSize) * scale;
        }))""")
    assert smallest > 8.5
    ids = [one.get_attribute("id") for one in page.find_elements(By.CSS_SELECTOR, "[id]")]
    assert len(ids) == len(set(ids))


def test_words_and_figures_stand_out_from_the_ground(page):
    ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    dark = page.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert luminance(ground) < 0.05 if dark else luminance(ground) > 0.9
    pairs = page.execute_script("""
        const ground = one => {
            for (; one; one = one.parentElement) {
                const colour = getComputedStyle(one).backgroundColor;
                if (!colour.startsWith('rgba(0, 0, 0, 0')) return colour;
            }
        };
        const colours = new Map();
        for (const one of document.querySelectorAll('main *, header *, footer')) {
            if (one.closest('svg') && one.tagName !== 'text') continue;
            if (![...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
            const style = getComputedStyle(one);
            const colour = one.tagName === 'text' ? style.fill : style.color;
            colours.set(colour + ground(one), [colour, ground(one), one.outerHTML.slice(0, 80)]);
        }
        return [...colours.values()];""")
    assert len(pairs) > 5
    for colour, behind, where in pairs:
        assert contrast(colour, behind) >= 4.5, (colour, behind, where)  # WCAG 2.2, AA
    lines = page.execute_script("""
        return [...new Set([...document.querySelectorAll('figure svg path')]
            .map(one => getComputedStyle(one).stroke).filter(one => one.startsWith('rgb(')))]""")
    marks = [line for line in lines if contrast(line, ground) >= 3]
    assert len(marks) >= 6  # five methods and the ink; the rest are grid lines, which may be faint


def test_tables_sort_by_every_column_and_back(page):
    table = page.find_element(By.CSS_SELECTOR, "#table table")
    headings = table.find_elements(By.CSS_SELECTOR, "thead th")
    assert headings[1].get_attribute("aria-sort") == "descending"  # accuracy, the best first
    for column in range(len(headings)):
        button = headings[column].find_element(By.TAG_NAME, "button")
        orders = []
        for _ in range(2):
            page.execute_script("arguments[0].click()", button)
            orders.append(headings[column].get_attribute("aria-sort"))
            cells = table.find_elements(By.CSS_SELECTOR, f"tbody tr > :nth-child({column + 1})")
            values = [cell.get_attribute("data-value") for cell in cells]
            known = [value for value in values if value != ""]
            assert values == known + [""] * (len(values) - len(known))  # what is not known comes last
            numbers = [float(value) for value in known] if column else known
            assert numbers == sorted(numbers, reverse=orders[-1] == "descending")
        assert set(orders) == {"ascending", "descending"}
        sorted_by = [heading.get_attribute("aria-sort") for heading in headings]
        assert sorted_by.count("none") == len(headings) - 1
    button.send_keys(" ")  # the keyboard does it too
    assert headings[-1].get_attribute("aria-sort") == orders[0]


def test_a_label_does_not_turn_the_figures_beside_it(page):
    """Numbers stand to the right of the arrow, whichever way the label runs."""
    beside = page.execute_script("""
        return [...document.querySelectorAll('.confusion')].map(one => {
            const [label, prediction] = one.querySelectorAll('bdi');
            return [label.textContent, one.lastChild.textContent];
        })""")
    assert any("ספורט" in label for label, _ in beside)
    assert all(re.fullmatch(r": [\d.]+ \(\d+%\)", figures) for _, figures in beside)
    assert page.execute_script("""
        return [...document.querySelectorAll('.answer bdi')].every(one => !/[\u202a-\u202e]/.test(one.textContent))""")


def test_the_rest_of_a_long_text_is_on_demand(page):
    text = page.find_element(By.CSS_SELECTOR, "details[open] details.text")
    rest = text.find_element(By.TAG_NAME, "p")
    assert not rest.is_displayed()
    assert SCRIPT[:20] in text.text
    page.execute_script("arguments[0].click()", text.find_element(By.TAG_NAME, "summary"))
    assert rest.is_displayed()
    assert rest.text.endswith("unbroken" * 10)


def find_faults(browser):
    """Name what axe-core finds that keeps people out, each with the first element that has it."""
    browser.set_script_timeout(300)
    browser.execute_script(Path(os.environ["AXE"]).read_text(encoding="utf-8"))
    return browser.execute_async_script("""
        const done = arguments[0];
        axe.run().then(found => done(found.violations.filter(one => ["serious", "critical"].includes(one.impact))
            .map(one => one.id + ": " + one.nodes[0].html)));""")


@pytest.mark.skipif("AXE" not in os.environ, reason="AXE does not name axe-core's axe.min.js")
def test_nothing_keeps_people_out(page):
    page.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert find_faults(page) == []


def test_a_wide_table_says_so(page):
    """The table of quality and cost is wider than a phone, and not than a screen."""
    scroll = page.find_element(By.CSS_SELECTOR, "#table .scroll")
    is_wide = page.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth + 1", scroll)
    assert is_wide or page.execute_script("return window.innerWidth") > 500
    assert page.find_element(By.CSS_SELECTOR, "#table .hint").is_displayed() == is_wide


def test_what_is_folded_is_printed(page):
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert page.find_elements(By.CSS_SELECTOR, "details:not([open])") == []
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    assert page.find_elements(By.CSS_SELECTOR, "details:not([open])") != []


def test_parts_are_in_order_and_linked(page):
    levels = [int(one.tag_name[1]) for one in page.find_elements(By.CSS_SELECTOR, "h1, h2, h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    links = page.find_elements(By.CSS_SELECTOR, "nav a")
    assert [link.text for link in links] == [one.text for one in page.find_elements(By.TAG_NAME, "h2")]
    for link in links:
        assert page.find_elements(By.CSS_SELECTOR, f"section{link.get_attribute('hash') or ''}")
    assert "broken: its run.json can't be read" in page.find_element(By.CSS_SELECTOR, ".notices").text
