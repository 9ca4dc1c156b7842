"""The model behind the service, from its loading on a thread of its own to its end."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fastapi import Request
from starlette.exceptions import HTTPException

from finetune.models.answers import TextClassifier
from finetune.models.explanation import Explanation
from finetune.serve.batching import BatchingQueue, QueueClosedError, QueueFullError
from finetune.serve.connections import ENDING
from finetune.serve.metrics import Metrics

__all__ = ["ClientLeftError", "ServedModel"]

LOADING = "The model is being loaded. Try again."


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class ServedModel:
    """A model from its loading to its end.

    Args:
        load: Gives the model.
        metrics: Counts.

    Attributes:
        predictor: None until it is loaded.
        queue: In front of it; None until it has answered once.
        failure: Why it could not be loaded.
    """

    def __init__(self, load: Callable[[], TextClassifier], metrics: Metrics):
        self.load = load
        self.metrics = metrics
        self.predictor: TextClassifier | None = None
        self.queue: BatchingQueue | None = None
        self.failure: BaseException | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""
        return self.queue is not None and self.queue.is_alive

    def require(self) -> TextClassifier:
        """Return the model; refuse the request where it does not answer yet."""
        if not self.is_ready or self.predictor is None:
            raise HTTPException(503, LOADING, headers={"Retry-After": "1"})
        return self.predictor

    def start(self, on_ready: Callable[[], object], on_failure: Callable[[], object]) -> None:
        """Load it on a thread of its own, so that health is told and signals are heard meanwhile."""
        threading.Thread(target=self._load, args=(on_ready, on_failure), name="loader", daemon=True).start()

    def _load(self, on_ready: Callable[[], object], on_failure: Callable[[], object]) -> None:
        try:
            self.predictor = self.load()
            task = self.predictor.task
            self.metrics.info = {"problem_type": task.problem_type, "num_labels": len(task.label_names)}
            queue = BatchingQueue(self.predictor, on_batch=self.metrics.add_batch)
            # what is done once, is done before the first request
            found = queue.submit(["A text."], ["Another."] if self.predictor.is_paired else None).result()
            self.predictor.answer(self.predictor.rules.to_probabilities(found))
            self.queue = queue
            on_ready()
        except BaseException as error:  # it is raised again where the process ends
            self.failure = error
            on_failure()

    async def compute_logits(self, texts: Sequence[str], pairs: Sequence[str] | None, request: Request) -> np.ndarray:
        """Return logits, `(len(texts), num_labels)`.

        Raises:
            ClientLeftError: If the client leaves before; what is not begun by then is not computed.
            HTTPException: If too many texts wait, or the service ends.
        """
        assert self.queue is not None
        try:
            found = asyncio.wrap_future(self.queue.submit(texts, pairs))
            left = asyncio.ensure_future(_wait_until_left(request))
            either: list[asyncio.Future[Any]] = [found, left]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not found.done():
                    raise ClientLeftError
                return await found
            finally:
                found.cancel()
                left.cancel()
        except QueueFullError:
            raise HTTPException(429, "Too many texts wait already. Try again.", headers={"Retry-After": "1"}) from None
        except QueueClosedError:
            raise HTTPException(503, ENDING) from None

    async def explain(self, text: str, pair: str | None, label: str | None, request: Request) -> Explanation:
        """Explain a label of a text; the variants of the text take their turns in the queue, as all texts do.

        Raises:
            FinetuneError: If there is no such label.
            ClientLeftError: If the client leaves before.
            HTTPException: If too many texts wait, or the service ends.
        """
        predictor, loop = self.require(), asyncio.get_running_loop()
        found = await self.compute_logits([text], None if pair is None else [pair], request)
        (number,) = predictor.labels_to_explain(predictor.rules.to_probabilities(found), label)

        def compute(texts: Sequence[str], pairs: Sequence[str] | None) -> np.ndarray:
            return asyncio.run_coroutine_threadsafe(self.compute_logits(texts, pairs, request), loop).result()

        return await asyncio.to_thread(predictor.explain_text, text, pair, number, compute)

    def abandon(self) -> None:
        """Compute nothing more than what is being computed."""
        if self.queue is not None:
            self.queue.abandon()

    def close(self) -> None:
        """Answer what waits, and end."""
        if self.queue is not None:
            self.queue.close()


async def _wait_until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
