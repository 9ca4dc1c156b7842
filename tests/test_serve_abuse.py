"""The service among clients that mean no good, and its signals: real processes, real sockets, a TF-IDF model.

`benchmarks/serve_abuse.py` is the long run, with honest clients beside.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import make_frame
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import finetune
from finetune.errors import FinetuneError
from finetune.serve.connections import most_connections
from finetune.serve.gate import Limits, find_allowed_hosts, read_api_key
from finetune.serve.metrics import Histogram, Metrics
from finetune.serve.service import serve

FILES = 256
KEY = "correct-horse"
JSON = {"Content-Type": "application/json"}
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose model is loaded within a second."""
    folder = tmp_path_factory.mktemp("serve") / "tfidf"
    finetune.train(make_frame(), method="tfidf", output_dir=folder, num_threads=1)
    return folder


def launch(run, *flags, files=None, **environment):
    command = [sys.executable, "-m", "finetune.cli", "serve", str(run), "--port", "0", "--num_threads", "1", *flags]
    limit = None if files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit,
        env={**os.environ, **environment},
    )  # fmt: skip


def start(run, *flags, **options):
    """Start a service on a free port; gives the process and the port."""
    process = launch(run, *flags, **options)
    line = process.stdout.readline()
    assert "serving" in line, process.stderr.read()
    return process, int(re.search(r":(\d+) ", line)[1])


def ask(port, body=None, method="POST", path="/predict", headers=JSON):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body).encode(), headers)
    response = connection.getresponse()
    found = response.read()
    connection.close()
    return response.status, json.loads(found) if response.getheader("Content-Type") == "application/json" else found


def get(port, path, headers=()):
    return ask(port, None, "GET", path, dict(headers))


def connect(port, first=b""):
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(first)
    return connection


def read_all(connection):
    """Read until the end; empty if it was reset."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def count(port, name):
    text = get(port, "/metrics")[1].decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


@pytest.fixture(scope="module")
def service(run):
    """A service that may open 256 files, and waits two seconds for headers and for bodies."""
    flags = ["--header_seconds", "2", "--body_seconds", "2", "--max_body_bytes", "300000"]
    process, port = start(run, *flags, files=FILES)
    process.port = port
    yield process
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert len(errors.splitlines()) < 12, errors  # after all of the tests below


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_from_its_first_line_on(run, number):
    process = launch(run)
    caught = 0
    while not caught >> (number - 1) & 1:  # as soon as there is a handler, before anything slow is imported
        caught = int(re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())[1], 16)
        if number == signal.SIGINT:  # Python has one of its own
            caught &= caught >> (signal.SIGTERM - number)
        assert process.poll() is None
    process.send_signal(number)
    out, errors = process.communicate(timeout=5)
    assert (process.returncode, out, errors) == (0, "", "")

    process, _ = start(run)
    process.send_signal(number)
    out, errors = process.communicate(timeout=5)
    assert (process.returncode, out, errors) == (0, "stopped\n", "")


def find_port(process):
    while True:
        assert process.poll() is None
        for found in psutil.Process(process.pid).net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN:
                return found.laddr.port
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_lives_before_it_is_ready_and_a_signal_ends_it_then(runs, number):
    process = launch(runs / "full")  # which first imports torch for seconds
    port = find_port(process)
    assert get(port, "/health/live")[0] == 200
    for path in ("/health/ready", "/health"):
        assert get(port, path) == (503, {"error": "The model is being loaded. Try again."})
    assert ask(port, {"text": "a"})[0] == 503
    assert b"finetune_ready 0.0" in get(port, "/metrics")[1]
    if number == signal.SIGTERM:
        process.send_signal(number)
        out, errors = process.communicate(timeout=5)
        assert (process.returncode, out, errors) == (0, "stopped\n", "")
    else:
        assert "serving" in process.stdout.readline()
        assert get(port, "/health/ready") == (200, {"status": "ready"})
        process.send_signal(number)
        assert process.wait(5) == 0


def test_a_model_that_can_t_be_loaded_ends_it_with_one_line(tmp_path):
    process = launch(tmp_path)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert errors.startswith("error: Expected ")
    assert errors.count("\n") == 1


def test_half_sent_requests_keep_nobody_out(service):
    halves = [connect(service.port, b"POST /predict HTTP/1.1\r\nHost: localhost\r\n") for _ in range(300)]
    begin = time.monotonic()
    for _ in range(5):
        assert ask(service.port, {"text": "a good film"})[0] == 200
    assert time.monotonic() - begin < 5
    assert psutil.Process(service.pid).num_fds() < FILES
    assert count(service.port, 'finetune_connections_closed_total{reason="gave_way"}') >= 300 - FILES
    answers = [read_all(connection) for connection in halves]  # all of them end
    assert sum(b"408 Request Timeout" in answer for answer in answers) > 100
    assert sum(b"503" in answer or b"408" in answer or not answer for answer in answers) == 300
    assert count(service.port, "finetune_connections ") < 10


@pytest.mark.parametrize("pieces", [
    [POST + b"Content-Length: 900\r\n\r\n{", *[b" "] * 50],
    [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET", *[b"x"] * 50],
    [b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n", *[b"x"] * 50],
], ids=["body", "second request", "body of a refused request"])  # fmt: skip
def test_what_comes_in_drops_is_not_waited_for(service, pieces):
    begin = time.monotonic()
    connection = connect(service.port)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.1)
            assert time.monotonic() - begin < 4.5
    read_all(connection)
    assert 1.5 < time.monotonic() - begin < 5


def test_nothing_is_read_without_end(service):
    connection = connect(service.port, POST + b"Content-Length: 99999999\r\n\r\n")
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(999):
            connection.sendall(b"x" * 100_000)
            sent += 100_000
    assert sent < 40_000_000  # sixteen times 300,000, and what lies in buffers


def test_what_is_no_http_is_refused_as_json(service):
    for garbage in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"A" * 100_000, b"GET / HTTP/9\r\n\r\n"):
        head, _, body = read_all(connect(service.port, garbage)).partition(b"\r\n\r\n")
        assert b" 400 " in head
        assert set(json.loads(body)) == {"error"}
    head = b"HEAD /predict HTTP/1.1\r\nHost: localhost\r\n"
    answer = read_all(connect(service.port, head + b"\r\n" + head))  # 405, and 408 for the half of another
    assert re.fullmatch(rb"HTTP/1.1 405 .*\r\n\r\nHTTP/1.1 408 .*\r\n\r\n\{.*\}", answer, re.DOTALL)
    answer = read_all(connect(service.port, head + b"Content-Length: 9\r\n\r\n{"))
    assert re.fullmatch(rb"HTTP/1.1 408 [^{]*\r\n\r\n", answer)
    chunk = b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    for head in [POST, b"POST / HTTP/1.1\r\nHost: localhost\r\n"] * 50:
        assert b"HTTP/1.1 4" in read_all(connect(service.port, head + chunk))
        read_all(connect(service.port, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"))
    assert count(service.port, "finetune_log_lines_held_back_total") >= 100
    assert count(service.port, 'finetune_connections_closed_total{reason="not_http"}') >= 200


def test_wrong_bodies_cost_no_memory(service):
    memory = psutil.Process(service.pid).memory_info().rss
    for body in (
        b'{"texts": [' + b"1," * 140_000 + b"1]}",
        b"{" + b",".join(b'"%d": 1' % number for number in range(20_000)) + b"}",
        b'{"' + b"a" * 250_000 + b'": 1}',
        b'{"texts": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}",
        b'{"text": ' + b"9" * 100_000 + b"}",
        b'{"text": 1e999}',
    ):
        status, refusal = ask(service.port, body)
        assert status in (400, 422)
        assert len(refusal["error"]) < 1000
    assert psutil.Process(service.pid).memory_info().rss - memory < 60_000_000


@pytest.mark.parametrize(("kind", "status"), [
    ("application/json", 200), ("Application/JSON; charset=utf-8", 200), ("application/vnd.a+json", 200),
    ("text/plain", 415), ("application/x-www-form-urlencoded", 415), ("", 415), ("application/jsonx", 415),
])  # fmt: skip
def test_only_json_is_taken(service, kind, status):
    assert ask(service.port, {"text": "a"}, headers={"Content-Type": kind})[0] == status


@pytest.mark.parametrize(("host", "status"), [
    ("localhost", 200), ("LOCALHOST:9", 200), ("127.0.0.1:1", 200), ("[::1]", 200), ("localhost.", 200),
    ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost@evil.example", 421), ("", 421),
    ("[::2]", 421), ("127.0.0.2", 421),
])  # fmt: skip
def test_other_names_than_those_of_loopback_are_refused(service, host, status):
    assert get(service.port, "/health", {"Host": host})[0] == status


def test_a_shortage_of_files_is_one_line(service):
    process = psutil.Process(service.pid)
    halves = [connect(service.port, b"GET") for _ in range(20)]
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), FILES))
    halves += [connect(service.port, b"GET") for _ in range(200)]
    time.sleep(2.5)
    process.rlimit(psutil.RLIMIT_NOFILE, (FILES, FILES))
    assert ask(service.port, {"text": "a good film"})[0] == 200  # stderr is examined in the end
    for half in halves:
        half.close()


def test_counts_are_what_prometheus_reads(service):
    before = count(service.port, 'finetune_requests_total{method="POST",path="/predict",status="200"}')
    assert ask(service.port, {"texts": ["a"] * 5})[0] == 200
    get(service.port, "/no/such/path")
    ask(service.port, None, "BREW", "/predict")
    assert count(service.port, 'finetune_requests_total{method="POST",path="/predict",status="200"}') == before + 1
    assert count(service.port, 'finetune_requests_total{method="GET",path="other",status="404"}') >= 1
    assert count(service.port, 'finetune_requests_total{method="other",path="/predict",status="405"}') >= 1
    assert count(service.port, "finetune_ready") == 1
    assert count(service.port, "process_resident_memory_bytes") > 1e7
    text = get(service.port, "/metrics")[1].decode()
    sample = re.compile(r'(# (HELP|TYPE) \w+ .+|[a-z_]+(\{(\w+="([^"\\]|\\[n"\\])*",?)+\})? [\d.e+-]+|)')
    assert all(sample.fullmatch(line) for line in text.splitlines())
    if importlib.util.find_spec("prometheus_client"):
        from prometheus_client.parser import text_string_to_metric_families

        assert {family.type for family in text_string_to_metric_families(text)} == {"counter", "gauge", "histogram"}


def test_names_in_the_counts_are_escaped():
    text = Metrics().render("1", 'a"b\\c\nd\x1b[2J\re', {})
    assert '{model="a\\"b\\\\c\\\\nd\\\\x1b[2J\\\\re"}' in text
    histogram = Histogram((1, 2))
    for value in (0, 1, 1.5, 2, 3):
        histogram.add(value)
    assert (histogram.counts, histogram.sum) == ([2, 2, 1], 7.5)


@pytest.fixture(scope="module")
def locked(run):
    """The port of a service that wants a key, and is not only for this machine."""
    hosts = ["--host", "0.0.0.0", "--allowed_hosts", "127.0.0.1,*.example.org"]
    process, port = start(run, *hosts, FINETUNE_API_KEY=KEY)
    yield port
    process.terminate()
    assert process.communicate(timeout=20) == ("stopped\n", "")
    assert process.returncode == 0


def test_a_key_is_asked_for(locked):
    for headers, status in (
        ({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": KEY}, 401), ({"Authorization": "Bearer \xe9"}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200), ({"Authorization": f"bearer {KEY}"}, 200),
    ):  # fmt: skip
        found, answer = ask(locked, {"text": "a good film"}, headers={**JSON, **headers})
        assert found == status
        assert KEY not in str(answer)
        for path in ("/health", "/metrics"):
            assert get(locked, path, headers)[0] == status
    for path in ("/", "/docs", "/openapi.json", "/health/live", "/health/ready"):
        assert get(locked, path)[0] == 200
    document = get(locked, "/openapi.json")[1]
    assert document["paths"]["/predict"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "401" in document["paths"]["/metrics"]["get"]["responses"]
    assert get(locked, "/health/live", {"Host": "a.example.org:80"})[0] == 200
    assert get(locked, "/health/live", {"Host": "localhost"})[0] == 421


def test_the_page_takes_the_key(browser, locked):
    browser.get(f"http://127.0.0.1:{locked}/")
    browser.find_element(By.ID, "text").send_keys("a good film")
    for key, css, expected in (("no", "#answer .error", "Expected the service's key"), (KEY, "#answer h2", "pos")):
        browser.find_element(By.ID, "key").clear()
        browser.find_element(By.ID, "key").send_keys(key)
        browser.find_element(By.ID, "send").click()
        found = WebDriverWait(browser, 20).until(lambda page, css=css: page.find_element(By.CSS_SELECTOR, css))
        assert expected in found.text


def fail_to_load():
    raise FinetuneError("Expected a model.")


def test_beyond_this_machine_without_a_key_it_warns():
    with (
        pytest.warns(UserWarning, match="whoever reaches 0.0.0.0 can use"),
        pytest.raises(FinetuneError, match="a model"),
    ):
        serve(fail_to_load, "name", "0.0.0.0", 0, Limits())


def test_connections_are_bounded_by_the_files_that_may_be_open():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(list(Path("/dev/fd").iterdir()))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 68, limits[1]))
        assert most_connections(10) == 10
        assert most_connections(100) == 20
        with pytest.warns(UserWarning, match="at most 1. connections"), pytest.raises(FinetuneError, match="a model"):
            serve(fail_to_load, "name", "127.0.0.1", 0, Limits())
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 50, limits[1]))
        with pytest.raises(FinetuneError, match="files at once, but may open"):
            most_connections(100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_key_that_no_header_carries_is_refused(monkeypatch):
    for key in ("", " ", "a b", "\xe9", "a\n"):
        monkeypatch.setenv("FINETUNE_API_KEY", key)
        with pytest.raises(FinetuneError, match="Expected FINETUNE_API_KEY") as caught:
            read_api_key()
        assert "a b" not in str(caught.value)


def test_allowed_hosts_are_names():
    assert find_allowed_hosts(None, "127.0.0.1", "127.0.0.1")[:3] == ["localhost", "127.0.0.1", "[::1]"]
    assert find_allowed_hosts(None, "0.0.0.0", "0.0.0.0") is None
    assert find_allowed_hosts("*", "127.0.0.1", "127.0.0.1") is None
    assert find_allowed_hosts("A.org., ::1", "0.0.0.0", "0.0.0.0") == ["a.org", "[::1]"]
    for wrong in ("", "a,,b", "http://a", "a:80", "a b", "*.*", "a*"):
        with pytest.raises(FinetuneError, match="Expected --allowed_hosts"):
            find_allowed_hosts(wrong, "127.0.0.1", "127.0.0.1")


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, KEY])
def test_it_does_as_its_description_says(run, tmp_path, key):
    pytest.importorskip("schemathesis")
    process, port = start(run, **({"FINETUNE_API_KEY": key} if key else {}))
    # 422 is also for what no schema can say: as many pairs as texts, and whether the model takes pairs.
    settings = tmp_path / "schemathesis.toml"
    settings.write_text("[checks]\npositive_data_acceptance.expected-statuses = ['2xx', '422']\n")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run",
               f"http://127.0.0.1:{port}/openapi.json", "--checks", "all", "--max-examples", "50", "--max-time", "120",
               "--seed", "0", *(["--header", f"Authorization: Bearer {key}"] if key else [])]  # fmt: skip
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in errors


def test_it_ends_in_five_seconds_under_load(run):
    process, port = start(run)
    outcomes = []

    body = json.dumps({"texts": [" ".join(map(str, range(12_000)))] * 20}).encode()

    def send():
        try:
            outcomes.append(ask(port, body)[0])
        except OSError:
            outcomes.append("closed")

    halves = [connect(port, POST + b"Content-Length: 9\r\n\r\n{") for _ in range(9)]
    clients = [threading.Thread(target=send) for _ in range(50)]
    for client in clients:
        client.start()
    while count(port, "finetune_batch_texts_count") < 3:
        time.sleep(0.05)
    begin = time.monotonic()
    process.terminate()
    out, errors = process.communicate(timeout=20)
    seconds = time.monotonic() - begin
    for client in clients:
        client.join(20)
    assert seconds < 5
    assert (process.returncode, out, errors) == (0, "stopped\n", "")
    assert set(outcomes) <= {200, 503, "closed"}
    assert 200 in outcomes
    assert 503 in outcomes
    assert all(not answer or b"503" in answer for answer in map(read_all, halves))
