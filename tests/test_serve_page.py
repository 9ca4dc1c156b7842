"""The service's pages in a browser: an answer or "Not sure", why, pairs, the keyboard, the API without a network."""

import asyncio
import json
import os
import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from urllib.request import Request, urlopen

import pytest
import uvicorn
from conftest import OTHER, make_frame, make_reviews, open_page, read_requests
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_page import contrast, find_faults

import finetune
from finetune.decisions.abstention import Abstention
from finetune.errors import FinetuneError
from finetune.inference.predict import load_predictor
from finetune.serve.about import describe_predictor, read_examples, read_facts
from finetune.serve.metrics import Metrics
from finetune.serve.model import ServedModel
from finetune.serve.service import build_app

HOSTILE = "<img src=x onerror=\"document.title='broken'\"> a good film, not bad at all"
EXAMPLES = [["a good film"], ["a dull plot"]]


@contextmanager
def served(predictor, **how):
    """Serve a model from a thread of this process; gives the page's address."""
    model = ServedModel(lambda: predictor, Metrics())
    ready = threading.Event()
    model.start(ready.set, ready.set)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = build_app(model, "reviews", allowed_hosts=["127.0.0.1"], **how)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        assert ready.wait(60)
        assert model.is_ready, model.failure
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    return finetune.train(make_frame(200), method="tfidf", output_dir=folder, coverage=0.9)


@pytest.fixture(scope="module")
def page(run):
    """The address of a service whose model answers some texts and not others."""
    predictor = load_predictor(run.directory)
    predictor.rules = replace(predictor.rules, abstention=Abstention(0.9, confidence=0.9, answered=0.5))
    with served(predictor, facts=read_facts(run.directory), examples=EXAMPLES) as address:
        yield address


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The address of a service of pairs of texts."""
    frame = make_frame(80).assign(text_pair=[f"{text} too" for text, _ in make_reviews(80, offset=7)])
    folder = tmp_path_factory.mktemp("pairs") / "run"
    run = finetune.train(frame, method="tfidf", output_dir=folder, text_pair_column="text_pair")
    with served(run.classifier) as address:
        yield address


def wait_for(browser, css):
    return WebDriverWait(browser, 20).until(lambda page: page.find_element(By.CSS_SELECTOR, css))


def post(address, path, body):
    request = Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        return json.load(response)


def test_explanations_over_http_are_those_of_python(page, run):
    for body in ({"text": HOSTILE}, {"text": "a dull film", "label": "pos"}, {"text": ""}):
        found = post(page, "explain", body)
        (expected,) = run.explain(body["text"], label=body.get("label"))
        assert (found["label"], found["is_exact"]) == (expected.label, True)
        assert (found["score"], found["base"]) == (pytest.approx(expected.score), pytest.approx(expected.base))
        assert "".join(piece["text"] for piece in found["pieces"]) == body["text"]
        values = [piece["contribution"] for piece in found["pieces"] if piece["contribution"] is not None]
        assert values == pytest.approx([part.contribution for part in expected.parts])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_person_sees_an_answer_and_the_words_that_decided(browser, page, run, width, scheme):
    open_page(browser, page, width, scheme)
    (sure,) = run.predict(HOSTILE)
    browser.find_element(By.ID, "text").send_keys(HOSTILE)
    browser.find_element(By.ID, "send").click()
    assert wait_for(browser, "#answer h2").text in (sure.labels[0], "Not sure")
    browser.find_element(By.ID, "explain").click()
    assert wait_for(browser, "#words h2").text == f"Why {sure.labels[0]}?"
    (expected,) = run.explain(HOSTILE)
    words = browser.find_elements(By.CSS_SELECTOR, "#words .words span")
    assert [word.text for word in words] == [HOSTILE[part.start : part.end] for part in expected.parts]
    assert [word.get_attribute("class") for word in words] == [
        "for" if part.contribution > 0 else "against" for part in expected.parts
    ]
    assert browser.find_element(By.CSS_SELECTOR, "#words .words").text == HOSTILE
    assert expected.top(1)[0][0] in browser.find_element(By.ID, "words").text.partition("For it")[2]
    ink = browser.execute_script("return getComputedStyle(document.body).color")
    for word in words:  # as if they stood on the darkest and the lightest ground there is
        red, green, blue, *alpha = map(float, re.findall(r"[\d.]+", word.value_of_css_property("background-color")))
        ground = 31 if scheme == "dark" else 255
        mixed = [round(ground + (part - ground) * (alpha[0] if alpha else 1)) for part in (red, green, blue)]
        assert contrast(ink, f"rgb{tuple(mixed)}") >= 4.5
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.title == "reviews"
    assert browser.get_log("browser") == []


@pytest.mark.skipif("AXE" not in os.environ, reason="AXE does not name axe-core's axe.min.js")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_keeps_people_out(browser, page, width, scheme):
    open_page(browser, page, width, scheme)
    browser.find_element(By.ID, "text").send_keys(HOSTILE)
    browser.find_element(By.ID, "send").click()
    wait_for(browser, "#answer h2")
    browser.find_element(By.ID, "explain").click()
    wait_for(browser, "#words h2")
    assert find_faults(browser) == []
    open_page(browser, f"{page}docs", width, scheme)
    assert find_faults(browser) == []


def test_what_the_model_is_not_sure_of_is_said_so(browser, page):
    answers = post(page, "predict", {"texts": OTHER})["predictions"]
    text = next(text for text, one in zip(OTHER, answers, strict=True) if not one["is_given"])
    open_page(browser, page)
    browser.find_element(By.ID, "text").send_keys(text)
    browser.find_element(By.ID, "text").send_keys(Keys.CONTROL, Keys.ENTER)  # the keyboard suffices
    assert wait_for(browser, "#answer h2").text == "Not sure"
    assert "It may be: " in browser.find_element(By.ID, "answer").text
    bars = browser.find_elements(By.CSS_SELECTOR, "#answer .bar")
    shares = [bar.size["width"] / bar.find_element(By.XPATH, "..").size["width"] for bar in bars]
    shown = [
        float(one.text.split()[0]) / 100 for one in browser.find_elements(By.CSS_SELECTOR, ".bars div span:last-child")
    ]
    assert shares == pytest.approx(shown, abs=0.01)
    assert sum(shares) == pytest.approx(1, abs=0.02)


def test_the_page_says_what_it_serves_and_offers_examples(browser, page, run):
    open_page(browser, page)
    about = wait_for(browser, "#about:not([hidden])").text
    assert "one of 2 labels" in about
    assert f"{run.record.metrics.test.accuracy:.1%}" in about
    assert str(run.directory) not in browser.page_source
    assert not browser.find_element(By.ID, "pair").is_displayed()
    buttons = browser.find_elements(By.CSS_SELECTOR, "#examples button")
    assert [button.text for button in buttons] == ["a good film", "a dull plot"]
    buttons[1].click()
    wait_for(browser, "#answer h2")
    assert browser.find_element(By.ID, "text").get_attribute("value") == "a dull plot"


def test_pairs_have_a_field_for_the_second_text(browser, pairs):
    open_page(browser, pairs)
    second = WebDriverWait(browser, 20).until(
        lambda page: page.find_element(By.CSS_SELECTOR, "#second:not([hidden]) #pair")
    )
    browser.find_element(By.ID, "text").send_keys("a good film")
    browser.find_element(By.ID, "send").click()
    assert browser.find_elements(By.CSS_SELECTOR, "#answer h2") == []  # it is required
    second.send_keys("a good plot too")
    browser.find_element(By.ID, "send").click()
    wait_for(browser, "#answer h2")
    browser.find_element(By.ID, "explain").click()
    wait_for(browser, "#words h2")


def test_the_description_of_the_api_fetches_nothing(browser, page):
    open_page(browser, f"{page}docs", 390)
    text = browser.find_element(By.TAG_NAME, "main").text
    for word in ("POST /predict", "POST /explain", "predictions[].label_set", "pieces[].contribution", "GET /metrics"):
        assert word in text
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert {url for url in read_requests(browser) if url.startswith("http")} == {f"{page}docs"}
    assert browser.get_log("browser") == []


def test_examples_are_lines_of_a_file(tmp_path):
    path = tmp_path / "examples.txt"
    path.write_text("a good film\n\na dull plot\twith a second text\n", encoding="utf-8")
    assert read_examples(str(path)) == [["a good film"], ["a dull plot", "with a second text"]]
    path.write_text("\n" * 3, encoding="utf-8")
    with pytest.raises(FinetuneError, match="1 to 20 lines"):
        read_examples(str(path))
    with pytest.raises(FinetuneError, match="can't be read"):
        read_examples(str(tmp_path / "none.txt"))


def test_facts_of_a_model_without_a_record_are_its_own(run):
    assert read_facts(run.directory / "model") == {}
    facts = describe_predictor(load_predictor(run.directory / "model"))
    assert facts == {
        "Predicts": "one of 2 labels", "Reads": "whole texts", "Sets of labels": "hold what is right for 90.0% of texts"
    }  # fmt: skip
