"""The service under abuse: honest clients beside hostile ones, and what that costs the honest.

    python benchmarks/serve_abuse.py runs/imdb/tfidf-seed42 --seconds 600

`finetune serve` runs as a process of its own that may open 256 files. Honest clients send a text every 50
milliseconds, half of them on a connection of its own each time, half on one that is kept and opened again when the
service has closed it, as libraries do. Their answers are compared with those of the model loaded here. First they are
alone, then another process abuses the service in all ways of `ABUSE` at once; then SIGTERM comes, under load.
"""

import asyncio
import itertools
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from turns import build_parser, write_results

from finetune.hardware import use_processor
from finetune.inference.predict import load_predictor
from finetune.quiet import quiet_program

FILES = 256
HALVES = 300  # half-sent requests at once
PACE = 0.05  # seconds between an honest client's requests
JSON = b"Content-Type: application/json\r\n"
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


def build_request(body: bytes, head: bytes = JSON) -> bytes:
    """Return a request for labels."""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + head + length + b"\r\n" + body


async def half_headers(reader: Reader, writer: Writer) -> None:
    """Send a header every now and then, never the last."""
    writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n")
    for number in itertools.count():
        writer.write(b"X-%d: a\r\n" % number)
        await writer.drain()
        with suppress(TimeoutError):
            if await asyncio.wait_for(reader.read(1), random.uniform(1, 4)) == b"":
                return


async def slow_body(reader: Reader, writer: Writer) -> None:
    """Announce a megabyte, and send a byte now and then."""
    writer.write(build_request(b"x" * 1_000_000)[:200])
    while True:
        writer.write(b"x")
        await writer.drain()
        with suppress(TimeoutError):
            if await asyncio.wait_for(reader.read(1), 1) == b"":
                return


async def large_half_body(reader: Reader, writer: Writer) -> None:
    """Send nearly all of a body that is just allowed, and wait."""
    writer.write(build_request(b"x" * 1_990_000)[:1_900_000])
    await writer.drain()
    await reader.read()


async def huge_body(reader: Reader, writer: Writer) -> None:
    """Send fifty megabytes, with their length or in chunks."""
    if random.random() < 0.5:
        writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Content-Length: 50000000\r\n\r\n")
        piece = b"x" * 100_000
    else:
        writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
    for _ in range(500):
        writer.write(piece)
        await writer.drain()


BODIES = [
    b"{not json",
    b"[" * 50_000,
    b'{"texts": [' + b"1," * 400_000 + b"1]}",
    b"{" + b",".join(b'"%d": 1' % number for number in range(50_000)) + b"}",
    b'{"text": ' + b"9" * 10_000 + b"}",
    b'{"text": "\\ud800"}',
    b"\xff\xfe\x00",
    b"",
]


async def wrong_json(reader: Reader, writer: Writer) -> None:
    """Send what is no request."""
    writer.write(build_request(random.choice(BODIES)))
    await reader.read(100)


async def wrong_http(reader: Reader, writer: Writer) -> None:
    """Send what is no HTTP, an upgrade, another host, or a chunk that is none."""
    chunk = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    upgrade = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    other = b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    writer.write(random.choice([random.randbytes(500), b"\x16\x03\x01\x02", upgrade, other, chunk]))
    await writer.drain()
    with suppress(TimeoutError):
        await asyncio.wait_for(reader.read(100), 1)


async def leave(reader: Reader, writer: Writer) -> None:
    """Ask for many texts, or send half of a request, and go."""
    request = build_request(json.dumps({"texts": ["a film " * 50] * 64}).encode())
    writer.write(request[: random.choice([len(request), len(request) // 2, 20])])
    await writer.drain()
    writer.transport.abort()


async def never_read(reader: Reader, writer: Writer) -> None:
    """Ask for much, and read nothing."""
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(500):
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(60)


async def connect_only(reader: Reader, writer: Writer) -> None:
    """Connect."""
    await asyncio.sleep(random.choice([0, 0, 5]))


# How many of each at once, and seconds between two of one.
ABUSE: dict[Callable[[Reader, Writer], Awaitable[None]], tuple[int, float]] = {
    half_headers: (HALVES, 0.5),
    slow_body: (40, 0.5),
    large_half_body: (10, 1),
    huge_body: (1, 2),
    wrong_json: (2, 0.2),
    wrong_http: (2, 0.1),
    leave: (2, 0.2),
    never_read: (4, 2),
    connect_only: (10, 0.2),
}


async def _abuse_once(port: int, kind: Callable[[Reader, Writer], Awaitable[None]]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.wait_for(kind(reader, writer), 90)
    finally:
        writer.transport.abort()


async def _abuse(port: int, counts: Any) -> None:
    async def repeat(kind: Callable[[Reader, Writer], Awaitable[None]], pause: float, at: int) -> None:
        await asyncio.sleep(pause * random.random())
        while True:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                counts[at] += 1
                await _abuse_once(port, kind)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))

    await asyncio.gather(
        *(repeat(kind, pause, at) for at, (kind, (count, pause)) in enumerate(ABUSE.items()) for _ in range(count))
    )


def abuse(port: int, counts: Any) -> None:
    """Abuse the service until killed; a process of its own, which takes the processor when nobody else wants it."""
    os.nice(10)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of connections that the service has closed
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    asyncio.run(_abuse(port, counts))


class Honest:
    """Honest clients and what they saw.

    Args:
        port: Of the service.
        texts: What is sent.
        expected: Their labels.
    """

    def __init__(self, port: int, texts: list[str], expected: list[str]):
        self.port = port
        self.texts = texts
        self.expected = expected
        self.seconds: list[float] = []
        self.found: Counter[str] = Counter()
        self.by_phase: dict[str, tuple[list[float], Counter[str]]] = {}

    def begin(self, phase: str) -> None:
        """Count apart from now on."""
        self.seconds, self.found = self.by_phase.setdefault(phase, ([], Counter()))

    async def connect(self) -> tuple[Reader, Writer]:
        """Open a connection."""
        return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self.port), 60)

    async def send(self, number: int, stop: asyncio.Event) -> None:
        """Send requests, each in its turn."""
        keeps, kept = number % 2 == 0, None
        order = random.Random(number)
        while not stop.is_set():
            row = order.randrange(len(self.texts))
            request = build_request(json.dumps({"text": self.texts[row]}).encode())
            start, outcome = time.perf_counter(), "closed"
            for connection in [kept, None] if kept else [None]:  # what was kept may have been closed meanwhile
                writer = None
                try:
                    reader, writer = connection or await self.connect()
                    writer.write(request)
                    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                    body = json.loads(await asyncio.wait_for(reader.readexactly(length), 60))
                    outcome = head.split()[1].decode()
                    if outcome == "200" and body["predictions"][0]["labels"] != [self.expected[row]]:
                        outcome = "wrong answer"
                except TimeoutError:
                    outcome = "no answer in 60 seconds"
                except (OSError, asyncio.IncompleteReadError) as error:
                    outcome = "refused" if isinstance(error, ConnectionRefusedError) else "closed"
                    kept = None
                    if writer is not None:
                        writer.transport.abort()
                    continue
                kept = (reader, writer) if keeps else None
                if not keeps:
                    writer.close()
                break
            if outcome == "200":
                self.seconds.append(time.perf_counter() - start)
            self.found[outcome] += 1
            await asyncio.sleep(PACE)


def limit_files() -> None:
    """Let the process open few files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


async def measure(options: Any, texts: list[str], expected: list[str]) -> dict[str, Any]:
    """Start the service, let all clients at it, and end it."""
    command = [sys.executable, "-m", "finetune.cli", "serve", options.run, "--port", "0", "--num_threads", "1"]
    errors = Path(options.stderr).open("w+b")  # noqa: SIM115
    service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=limit_files)
    assert service.stdout is not None
    port = int(service.stdout.readline().split("http://127.0.0.1:")[1].split()[0])
    process = psutil.Process(service.pid)
    honest, stop = Honest(port, texts, expected), asyncio.Event()
    honest.begin("alone")
    clients = [asyncio.create_task(honest.send(number, stop)) for number in range(options.clients)]
    await asyncio.sleep(options.alone)

    counts = multiprocessing.get_context("fork").Array("q", len(ABUSE))
    hostile = multiprocessing.get_context("fork").Process(target=abuse, args=(port, counts), daemon=True)
    memory = {"alone": process.memory_info().rss}
    hostile.start()
    honest.begin("abused")
    start, most_files = time.monotonic(), 0
    marks = [second for second in (10, 30, 60, 300, 600) if second <= options.seconds]
    while (passed := time.monotonic() - start) < options.seconds or marks:
        await asyncio.sleep(0.5)
        most_files = max(most_files, process.num_fds())
        while marks and passed >= marks[0]:
            memory[f"{marks.pop(0)} s"] = process.memory_info().rss
            print(f"{passed:.0f} s: {process.memory_info().rss / 1e6:.1f} MB, {dict(honest.found)}", flush=True)
    cpu = sum(process.cpu_times()[:2])
    honest.begin("ending")
    ended = time.monotonic()
    service.send_signal(signal.SIGTERM)
    status = await asyncio.to_thread(service.wait, 60)
    seconds_to_end = time.monotonic() - ended
    stop.set()
    await asyncio.gather(*clients)
    hostile.kill()
    hostile.join()
    errors.seek(0)
    lines = errors.read().decode().splitlines()

    def describe(phase: str) -> dict[str, Any]:
        seconds, found = honest.by_phase[phase]
        times = {f"p{at}_seconds": float(np.quantile(seconds, at / 100)) if seconds else None for at in (50, 95, 99)}
        return {"outcomes": dict(found), **times}

    return {
        "honest": {phase: describe(phase) for phase in honest.by_phase},
        "hostile": {kind.__name__: count for kind, count in zip(ABUSE, counts, strict=True)},
        "resident_bytes": memory,
        "most_open_files": most_files,
        "cpu_seconds": cpu,
        "lines_of_stderr": len(lines),
        "seconds_to_end": seconds_to_end,
        "exit_status": status,
    }


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("run", help="a run directory, whose validation texts are sent")
    parser.add_argument("--seconds", type=float, default=60, help="of abuse")
    parser.add_argument("--alone", type=float, default=20, help="seconds before it")
    parser.add_argument("--clients", type=int, default=6, help="honest ones")
    parser.add_argument("--stderr", default="/dev/null", help="a file for what the service says")
    options = parser.parse_args()
    quiet_program()
    use_processor(options.num_threads)
    table = pq.read_table(Path(options.run) / "predictions/validation.parquet", columns=["text"])
    texts = table.column("text").to_pylist()[:500]
    expected = [prediction.labels[0] for prediction in load_predictor(options.run).predict(texts)]
    results = asyncio.run(measure(options, texts, expected))
    print(json.dumps(results, indent=2))
    write_results(options.output_json, options, results)
    outcomes = results["honest"]["abused"]["outcomes"]
    sys.exit(0 if set(outcomes) == {"200"} and results["exit_status"] == 0 and results["seconds_to_end"] < 5 else 1)


if __name__ == "__main__":
    main()
