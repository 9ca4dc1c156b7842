"""The service as a process of its own on loopback: answers, refusals, many clients at once, SIGTERM, and the page."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import CAN_EXPORT, make_reviews, open_page, read_requests
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from finetune.cli import main as finetune_command
from finetune.inference.exported import load_exported
from finetune.inference.predict import load_predictor
from finetune.models.answers import TextClassifier
from finetune.serve.batching import BatchingQueue, QueueClosedError, QueueFullError
from finetune.tasks import SINGLE_LABEL, Task

LIMITS = ["--max_texts", "50", "--max_characters", "2000", "--max_body_bytes", "100000"]


def start(path, *flags):
    """Start a service on a free port; gives the process and the port."""
    command = [sys.executable, "-m", "finetune.cli", "serve", str(path), "--port", "0", "--num_threads", "1", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert "serving" in line, process.stderr.read()
    return process, int(line.split("http://127.0.0.1:")[1].split()[0])


@pytest.fixture(scope="module")
def folder(request):
    """An export, or the run itself where transformers is too old for one."""
    return request.getfixturevalue("exports" if CAN_EXPORT else "runs") / "full"


def load(folder):
    return load_exported(folder, 1) if CAN_EXPORT else load_predictor(folder)


@pytest.fixture(scope="module")
def service(folder):
    process, port = start(folder, *LIMITS)
    yield port
    process.terminate()
    assert process.wait(20) == 0
    assert process.stderr.read() == ""  # no warning, no traceback


def ask(port, body, method="POST", path="/predict", kind="application/json"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, content, {"Content-Type": kind})
    response = connection.getresponse()
    found = response.read()
    connection.close()
    return response.status, json.loads(found) if response.getheader("Content-Type") == "application/json" else found


def test_answers_are_those_of_predict(service, folder):
    texts = [text for text, _ in make_reviews(30, offset=900)] + ["", "\u4f60\u597d \U0001f600"]
    predictor = load(folder)
    expected = predictor.compute_probabilities(texts)
    status, found = ask(service, {"texts": texts})
    assert status == 200
    names = predictor.task.label_names
    for one, row, prediction in zip(found["predictions"], expected, predictor.predict(texts), strict=True):
        assert list(one["probabilities"]) == names
        np.testing.assert_allclose(list(one["probabilities"].values()), row, atol=1e-5)
        assert one["labels"] == list(prediction.labels)
        assert one["value"] is None
    status, single = ask(service, {"text": texts[0]})
    assert (status, len(single["predictions"])) == (200, 1)
    assert single["predictions"][0]["labels"] == found["predictions"][0]["labels"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{not json", 400, "Expected JSON"),
        (b"\xff\xfe{}", 400, ""),
        (b"", 422, ""),
        (b"[" * 50_000, 400, ""),
        ({}, 422, "either text or texts"),
        ({"text": "a", "texts": ["b"]}, 422, "either text or texts"),
        ({"text": 3}, 422, "text: Input should be a valid string"),
        ({"texts": []}, 422, "texts"),
        ({"texts": ["a", None]}, 422, "texts.1"),
        ({"texts": "a"}, 422, "texts"),
        ({"text": "a", "label": "b"}, 422, "label"),
        ({"texts": ["a"], "pairs": ["b", "c"]}, 422, "second text for each of 1"),
        ({"texts": ["a"], "pair": "b"}, 422, "pair beside text"),
        ({"text": "a", "pair": "b"}, 422, "Expected single texts"),
        (["a"], 422, "body"),
        (b'{"text": "\\ud800"}', 422, "half of a character"),
        (b'{"\\ud800": "a"}', 422, ""),
        ({"text": "a" * 2001}, 413, "at most 2,000 characters"),
        ({"texts": ["a"] * 51}, 413, "at most 50 texts"),
        ({"text": "a" * 1_500_000}, 413, "at most 100,000 bytes"),
    ],
)  # fmt: skip
def test_what_can_t_be_answered_is_refused_in_one_line(service, body, status, message):
    found, refusal = ask(service, body)
    assert found == status, refusal
    assert set(refusal) == {"error"}
    assert message in refusal["error"]
    assert "\n" not in refusal["error"]


def test_a_body_without_a_length_is_bounded_too(service):
    connection = http.client.HTTPConnection("127.0.0.1", service, timeout=60)
    chunks = (b"x" * 10_000 for _ in range(30))
    connection.request("POST", "/predict", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_health_documentation_and_what_is_not_there(service):
    status, health = ask(service, None, "GET", "/health")
    assert (status, health["status"], health["model"], health["labels"]) == (200, "ok", "full", ["neg", "pos"])
    status, document = ask(service, None, "GET", "/openapi.json")
    assert status == 200
    assert set(document["paths"]) == {"/predict", "/explain", "/health", "/health/live", "/health/ready", "/metrics"}
    assert {"200", "400", "413", "422", "429"} <= set(document["paths"]["/predict"]["post"]["responses"])
    assert ask(service, None, "GET", "/docs")[0] == 200
    assert ask(service, None, "GET", "/nothing")[0] == 404
    assert ask(service, None, "GET", "/predict")[0] == 405


def test_many_clients_at_once_get_their_own_answers(service, folder):
    texts = [text for text, _ in make_reviews(200, offset=1200)]
    expected = load(folder).compute_probabilities(texts)[:, 0]
    bodies = [{"texts": texts[number : number + 1 + number % 4]} for number in range(196)]
    bodies[::7] = [{"texts": [3]}] * len(bodies[::7])
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda body: ask(service, body), bodies))
    for number, (status, found) in enumerate(answers):
        assert status == (422 if number % 7 == 0 else 200)
        if status == 200:
            rows = [one["probabilities"]["neg"] for one in found["predictions"]]
            np.testing.assert_allclose(rows, expected[number : number + len(rows)], atol=1e-5)


def test_sigterm_ends_it_when_what_is_in_flight_is_answered(runs):
    process, port = start(runs / "tfidf")
    texts = [text for text, _ in make_reviews(100)]
    body = json.dumps({"texts": texts}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:1000])
    while ask(port, None, "GET", "/health")[0] != 200:  # what came before has been read
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    until = time.monotonic() + 20
    while _is_open(port):  # until it takes nothing new
        assert time.monotonic() < until
        time.sleep(0.02)
    assert process.poll() is None
    connection.send(body[1000:])
    response = connection.getresponse()
    assert response.status == 200
    expected = load_predictor(runs / "tfidf").predict(texts)
    assert [one["labels"] for one in json.load(response)["predictions"]] == [list(one.labels) for one in expected]
    connection.close()
    assert process.wait(20) == 0
    assert process.stdout.read() == "stopped\n"
    assert process.stderr.read() == ""


def _is_open(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_an_address_that_is_taken_is_said_in_one_line(service, folder, capsys):
    for flags in (["--port", str(service)], ["--port", "0", "--host", "999.1.1.1"], ["--max_texts", "0"]):
        with pytest.raises(SystemExit) as caught:
            finetune_command(["serve", str(folder), *flags])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert re.match(r"error: (argument --max_texts: )?Expected ", error)
        assert error.count("\n") == 1


class Slow(TextClassifier):
    """Answers with the length of the text, and notes its batches."""

    def __init__(self):
        self.task = Task(SINGLE_LABEL, ["a", "b"])
        self.batches = []
        self.may_go = threading.Event()

    def compute_logits(self, texts, pairs=None, on_batch=lambda count: None):
        self.may_go.wait(10)
        self.batches.append((list(texts), pairs and list(pairs)))
        if "fail" in texts:
            raise RuntimeError("as asked")
        rows = [[len(text), len(pair)] for text, pair in zip(texts, pairs or [""] * len(texts), strict=True)]
        return np.array(rows), np.array([len(text) for text in texts])


def test_the_queue_is_fair_and_batches_what_waits():
    model = Slow()
    queue = BatchingQueue(model, max_wait_seconds=0, max_waiting_texts=400)
    first = queue.submit(["first"])
    while queue._waiting_texts:  # the model is at it
        time.sleep(0.001)
    long = queue.submit([str(number) * 3 for number in range(300)])
    short = queue.submit(["one", "three"])
    paired = queue.submit(["a"], ["bb"])
    with pytest.raises(QueueFullError):
        queue.submit(["x"] * 200)
    model.may_go.set()
    assert short.result(10).tolist() == [[3, 0], [5, 0]]
    assert long.result(10)[:, 0].tolist() == [3 * len(str(number)) for number in range(300)]
    assert paired.result(10).tolist() == [[1, 2]]
    assert first.result(10).tolist() == [[5, 0]]
    assert "three" in model.batches[1][0]  # a long list does not hold it up
    assert all(len(texts) <= 64 for texts, _ in model.batches)
    with pytest.raises(RuntimeError, match="as asked"):
        queue.submit(["fail"]).result(10)
    assert queue.submit(["on"]).result(10).tolist() == [[2, 0]]
    last = queue.submit(["last"])
    queue.close()
    assert last.result(0).tolist() == [[4, 0]]
    with pytest.raises(QueueClosedError):
        queue.submit(["late"])


def test_what_is_cancelled_leaves_its_place_and_is_not_computed():
    model = Slow()
    queue = BatchingQueue(model, max_wait_seconds=0, max_waiting_texts=100)
    first = queue.submit(["first"])
    while queue.num_waiting_texts:
        time.sleep(0.001)
    gone = [queue.submit(["gone"] * 50), queue.submit(["gone"] * 50)]
    with pytest.raises(QueueFullError):
        queue.submit(["x"])
    assert all(future.cancel() for future in gone)
    assert queue.num_waiting_texts == 0
    stays = queue.submit(["stays"])
    model.may_go.set()
    assert stays.result(10).tolist() == [[5, 0]]
    assert first.result(10).tolist() == [[5, 0]]
    assert model.batches == [(["first"], None), (["stays"], None)]
    queue.close()

    queue = BatchingQueue(model, max_wait_seconds=0.1)
    assert queue.submit(["gone"]).cancel()  # while it waits for others
    time.sleep(0.2)
    assert queue.is_alive
    assert queue.submit(["stays"]).result(10).tolist() == [[5, 0]]
    queue.submit(["gone"])
    queue.abandon()
    queue.close()


def test_a_text_that_the_model_fails_on_fails_its_own_request_alone():
    model = Slow()
    queue = BatchingQueue(model, max_wait_seconds=0)
    first = queue.submit(["first"])
    while queue.num_waiting_texts:
        time.sleep(0.001)
    good, bad, other = queue.submit(["a", "bb"]), queue.submit(["fail"]), queue.submit(["ccc"] * 20)
    model.may_go.set()
    assert first.result(10).tolist() == [[5, 0]]
    assert good.result(10).tolist() == [[1, 0], [2, 0]]
    assert other.result(10).tolist() == [[3, 0]] * 20
    with pytest.raises(RuntimeError, match="as asked"):
        bad.result(10)
    queue.close()


def test_what_is_abandoned_fails_and_what_is_being_computed_is_answered():
    model = Slow()
    queue = BatchingQueue(model, max_wait_seconds=0)
    first = queue.submit(["first"])
    while queue.num_waiting_texts:
        time.sleep(0.001)
    waiting = queue.submit(["waits"])
    queue.abandon()
    with pytest.raises(QueueClosedError):
        waiting.result(0)
    with pytest.raises(QueueClosedError):
        queue.submit(["late"])
    model.may_go.set()
    assert first.result(10).tolist() == [[5, 0]]
    queue.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_a_person_types_a_text_and_sees_labels(browser, service, folder, width, scheme):
    open_page(browser, f"http://127.0.0.1:{service}/", width, scheme)
    text = "a good film <img src=x onerror=\"document.title='broken'\">"
    browser.find_element(By.ID, "text").send_keys(text)
    browser.find_element(By.ID, "send").click()
    heading = WebDriverWait(browser, 20).until(lambda page: page.find_element(By.CSS_SELECTOR, "#answer h2"))
    (expected,) = load(folder).predict([text])
    assert heading.text == expected.labels[0]
    lines = [one.text.split("\n") for one in browser.find_elements(By.CSS_SELECTOR, "#answer li div")]
    assert lines[0] == [expected.labels[0], f"{100 * expected.probabilities[0]:.1f} %"]
    assert len(lines) == 2
    assert browser.get_log("browser") == []
    assert browser.title == "full"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(22, 22, 21)") == (scheme == "dark")
    assert {url for url in read_requests(browser) if url.startswith("http")} == {
        f"http://127.0.0.1:{service}/", f"http://127.0.0.1:{service}/predict", f"http://127.0.0.1:{service}/health"
    }  # fmt: skip

    browser.execute_script("document.getElementById('text').value = 'a'.repeat(3000)")
    browser.find_element(By.ID, "send").click()
    refusal = WebDriverWait(browser, 20).until(lambda page: page.find_element(By.CSS_SELECTOR, "#answer .error"))
    assert "at most 2,000 characters" in refusal.text
    browser.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">');"
        "const one = document.createElement('script'); one.text = \"document.title = 'broken'\";"
        "document.body.append(one)"
    )
    assert browser.title == "full"  # the page's policy, if an escape were ever forgotten
