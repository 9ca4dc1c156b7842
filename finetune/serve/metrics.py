"""What the service counts, in Prometheus' text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats).

Labels have few values: paths and methods that the service doesn't know are "other".
"""

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import psutil

__all__ = ["CONTENT_TYPE", "Histogram", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64)

Sample = tuple[Mapping[str, object], float]


class Histogram:
    """Counts values by upper bounds.

    Args:
        bounds: Upper bounds, inclusive, in ascending order; a last one of infinity is added.
    """

    def __init__(self, bounds: Iterable[float]):
        self.bounds = (*bounds, float("inf"))
        self.counts = [0] * len(self.bounds)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics:
    """The counts of one service.

    Attributes:
        info: What `finetune_model_info` says of the model.
        requests: By method, path and status; 499 where the client left before its answer.
        request_seconds: By path, from the headers to the answer's end.
        batch_texts: Texts of each batch.
        batch_seconds: What the model took for each.
        closed: Connections that the service closed, by reason.
        held_back: Lines of the log that were held back.
    """

    def __init__(self) -> None:
        self.info: dict[str, object] = {}
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.request_seconds: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self.batch_texts = Histogram(TEXTS)
        self.batch_seconds = Histogram(SECONDS)
        self.closed: Counter[str] = Counter()
        self.held_back = 0

    def add_batch(self, num_texts: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_texts.add(num_texts)
        self.batch_seconds.add(seconds)

    def render(self, version: str, name: str, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Return the text.

        Args:
            version: Of finetune.
            name: Of the model.
            gauges: Help and present value of what only others know, by name.
        """
        process = psutil.Process()
        with process.oneshot():
            cpu = process.cpu_times()
            memory, started = process.memory_info().rss, process.create_time()
        requests = [
            ({"method": method, "path": path, "status": status}, count)
            for (method, path, status), count in sorted(self.requests.items())
        ]
        seconds = [({"path": path}, histogram) for path, histogram in sorted(self.request_seconds.items())]
        lines = [
            _write("finetune_build_info", "gauge", "The version.", [({"version": version}, 1)]),
            _write("finetune_model_info", "gauge", "The model.", [({"model": name, **self.info}, 1)]),
            *(_write(name, "gauge", text, [({}, value)]) for name, (text, value) in gauges.items()),
            _write("finetune_requests_total", "counter", "Requests by path and status.", requests),
            _write_histogram("finetune_request_seconds", "From the headers to the end of the answer.", seconds),
            _write_histogram("finetune_batch_texts", "Texts computed at once.", [({}, self.batch_texts)]),
            _write_histogram("finetune_batch_seconds", "What the model took for a batch.", [({}, self.batch_seconds)]),
            _write(
                "finetune_connections_closed_total",
                "counter",
                "Connections that the service closed, by reason.",
                [({"reason": reason}, count) for reason, count in sorted(self.closed.items())],
            ),
            _write("finetune_log_lines_held_back_total", "counter", "More of a kind.", [({}, self.held_back)]),
            _write("process_cpu_seconds_total", "counter", "Processor time.", [({}, cpu.user + cpu.system)]),
            _write("process_resident_memory_bytes", "gauge", "Resident memory.", [({}, memory)]),
            _write("process_start_time_seconds", "gauge", "Start, since 1970.", [({}, started)]),
            _write("process_open_fds", "gauge", "Open file descriptors.", [({}, process.num_fds())]),
        ]
        return "".join(itertools.chain.from_iterable(lines))


def _write(name: str, kind: str, text: str, samples: Iterable[Sample]) -> list[str]:
    return [f"# HELP {name} {text}\n# TYPE {name} {kind}\n", *(_sample(name, *sample) for sample in samples)]


def _write_histogram(name: str, text: str, samples: Iterable[tuple[Mapping[str, object], Histogram]]) -> list[str]:
    lines = _write(name, "histogram", text, [])
    for labels, histogram in samples:
        counts = list(itertools.accumulate(histogram.counts))  # of one moment: another thread may be adding
        for bound, count in zip(histogram.bounds, counts, strict=True):
            shown = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(_sample(f"{name}_bucket", {**labels, "le": shown}, count))
        lines += [_sample(f"{name}_sum", labels, histogram.sum), _sample(f"{name}_count", labels, counts[-1])]
    return lines


def _sample(name: str, labels: Mapping[str, object], value: float) -> str:
    pairs = ",".join(f'{label}="{_escape(str(word))}"' for label, word in labels.items())
    return f"{name}{{{pairs}}} {value!r}\n" if pairs else f"{name} {value!r}\n"


def _escape(word: str) -> str:
    """Escape what the format gives a meaning to, and control characters, which some readers take for line ends."""
    shown = "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in word
    )
    return shown.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
