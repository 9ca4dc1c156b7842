"""One queue in front of a model: requests that come at the same time are answered by one pass over it.

The model runs on a thread of its own, one batch at a time. Requests share it fairly: each batch takes texts from all
that wait, in turns, so that a long list does not hold up a single text. Within a batch the predictor sorts by length
and bounds the tokens that it computes at once.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from finetune.models.answers import TextClassifier

__all__ = ["BatchingQueue", "QueueFullError"]

MAX_BATCH_TEXTS = 64
SHARE = 8  # texts that a request may put into a batch before the next one's turn


class QueueFullError(Exception):
    """More texts wait than the queue holds."""


@dataclass
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
    """

    def __init__(self, predictor: TextClassifier, max_wait_seconds: float = 0.004, max_waiting_texts: int = 8_192):
        self.predictor = predictor
        self.max_wait_seconds = max_wait_seconds
        self.max_waiting_texts = max_waiting_texts
        self._requests: deque[_Request] = deque()
        self._waiting_texts = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="predictor", daemon=True)
        self._thread.start()

    def submit(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> "Future[np.ndarray]":
        """Queue texts; the future gives their probabilities, `(len(texts), num_labels)`.

        Args:
            texts: At least one.
            pairs: A second text for each, for models of pairs.

        Raises:
            QueueFullError: If too many texts wait already.
        """
        request = _Request(texts, pairs)
        request.future.set_running_or_notify_cancel()  # a client that goes away does not cancel it
        with self._changed:
            if self._closed or self._waiting_texts + len(texts) > self.max_waiting_texts:
                raise QueueFullError
            self._waiting_texts += len(texts)
            self._requests.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Answer what waits, take nothing new, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

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
                batch = self._take()
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
        try:
            rows = self.predictor.compute_probabilities(texts, pairs)
        except Exception as error:
            for request in {id(request): request for request, _ in batch}.values():
                request.future.set_exception(error)
            return
        start = 0
        for request, part in batch:
            count = part.stop - part.start
            request.rows.append(rows[start : start + count])
            start += count
        for request in {id(request): request for request, _ in batch}.values():
            if sum(map(len, request.rows)) == len(request.texts):
                request.future.set_result(np.concatenate(request.rows))
