"""One queue in front of a model: requests that come at the same time are answered by one pass over it.

The model runs on a thread of its own, one batch at a time. Requests share it fairly: each batch takes texts from all
that wait, in turns, so that a long list does not hold up a single text. Within a batch the predictor sorts by length
and bounds the tokens that it computes at once. A batch that fails is computed again request by request, so that only
the one that the model can't take fails. What is cancelled is not computed.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from finetune.errors import failures_explained
from finetune.models.answers import TextClassifier

__all__ = ["BatchingQueue", "QueueClosedError", "QueueFullError"]

MAX_BATCH_TEXTS = 64
SHARE = 8  # texts that a request may put into a batch before the next one's turn


class QueueFullError(Exception):
    """More texts wait than the queue holds."""


class QueueClosedError(Exception):
    """Nothing is computed any more."""


@dataclass(eq=False)
class _Request:
    texts: Sequence[str]
    pairs: Sequence[str] | None
    future: Future = field(default_factory=Future)
    taken: int = 0
    rows: list[np.ndarray] = field(default_factory=list)


class BatchingQueue:
    """Collects requests into batches for a predictor.

    Args:
        predictor: Is called by one thread only.
        max_wait_seconds: How long a request waits for others to come.
        max_waiting_texts: Texts that may wait; more are refused.
        on_batch: Called on the model's thread with a batch's number of texts and its seconds.
    """

    def __init__(
        self,
        predictor: TextClassifier,
        max_wait_seconds: float = 0.004,
        max_waiting_texts: int = 8_192,
        on_batch: Callable[[int, float], None] = lambda num_texts, seconds: None,
    ):
        self.predictor = predictor
        self.max_wait_seconds = max_wait_seconds
        self.max_waiting_texts = max_waiting_texts
        self.on_batch = on_batch
        self._requests: deque[_Request] = deque()
        self._waiting_texts = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="predictor", daemon=True)
        self._thread.start()

    @property
    def num_waiting_texts(self) -> int:
        """Texts that no batch has taken yet."""
        return self._waiting_texts

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs that computes."""
        return self._thread.is_alive()

    def submit(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> "Future[np.ndarray]":
        """Queue texts; the future gives their logits, `(len(texts), num_labels)`, and may be cancelled.

        Args:
            texts: At least one.
            pairs: A second text for each, for models of pairs.

        Raises:
            QueueFullError: If too many texts wait already.
            QueueClosedError: After `close`.
        """
        request = _Request(texts, pairs)
        request.future.add_done_callback(lambda future: self._forget(request) if future.cancelled() else None)
        with self._changed:
            if self._closed:
                raise QueueClosedError
            if self._waiting_texts + len(texts) > self.max_waiting_texts:
                raise QueueFullError
            self._waiting_texts += len(texts)
            self._requests.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Take nothing new, answer what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def abandon(self) -> None:
        """Take nothing new, and fail what waits with `QueueClosedError`; the batch being computed is still answered."""
        with self._changed:
            self._closed = True
            abandoned = list(self._requests)
            self._requests.clear()
            self._waiting_texts = 0
            self._changed.notify()
        for request in abandoned:
            self._settle(request, QueueClosedError())

    def _forget(self, request: _Request) -> None:
        """Give up the place of a request that was cancelled."""
        with self._changed:
            if request in self._requests:
                self._requests.remove(request)
                self._waiting_texts -= len(request.texts) - request.taken

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._requests:
                    if self._closed:
                        return
                    self._changed.wait()
                until = time.monotonic() + self.max_wait_seconds
                while not self._closed and self._waiting_texts < MAX_BATCH_TEXTS:
                    if not self._changed.wait(until - time.monotonic()):
                        break
                batch = self._take() if self._requests else []  # all may have been cancelled meanwhile
            self._answer(batch)

    def _take(self) -> list[tuple[_Request, slice]]:
        """Take texts from the requests in turns, all with a second text or all without; what is left stays queued."""
        batch: list[tuple[_Request, slice]] = []
        in_pairs = self._requests[0].pairs is not None
        others: list[_Request] = []
        room = MAX_BATCH_TEXTS
        while room > 0 and self._requests:
            request = self._requests.popleft()
            if (request.pairs is not None) != in_pairs:
                others.append(request)
                continue
            part = slice(request.taken, min(len(request.texts), request.taken + min(room, SHARE)))
            batch.append((request, part))
            room -= part.stop - part.start
            request.taken = part.stop
            if request.taken < len(request.texts):
                self._requests.append(request)
        self._requests.extendleft(reversed(others))
        self._waiting_texts -= MAX_BATCH_TEXTS - room
        return batch

    def _answer(self, batch: list[tuple[_Request, slice]]) -> None:
        batch = [(request, part) for request, part in batch if not request.future.done()]
        if not batch:
            return
        texts = [text for request, part in batch for text in request.texts[part]]
        pairs = [pair for request, part in batch for pair in (request.pairs or ())[part]] or None
        requests = list({id(request): request for request, _ in batch}.values())
        start = time.perf_counter()
        try:
            with failures_explained():
                rows, _ = self.predictor.compute_logits(texts, pairs)
        except BaseException as error:  # whatever it is, this thread has to go on
            if len(requests) > 1:
                for request in requests:
                    self._answer([taken for taken in batch if taken[0] is request])
            else:  # SystemExit would end the service where it is raised again
                self._settle(requests[0], error if isinstance(error, Exception) else RuntimeError(repr(error)))
            return
        self.on_batch(len(texts), time.perf_counter() - start)
        end = 0
        for request, part in batch:
            begin, end = end, end + part.stop - part.start
            request.rows.append(rows[begin:end])
        for request in requests:
            if sum(map(len, request.rows)) == len(request.texts):
                self._settle(request, np.concatenate(request.rows))

    def _settle(self, request: _Request, found: np.ndarray | BaseException) -> None:
        """Answer a request, unless it was cancelled or abandoned."""
        with self._changed:
            if request.future.done() or not request.future.set_running_or_notify_cancel():
                return
        if isinstance(found, BaseException):
            request.future.set_exception(found)
        else:
            request.future.set_result(found)
