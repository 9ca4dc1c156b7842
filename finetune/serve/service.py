"""A small HTTP service over one model: `/predict`, `/health`, `/metrics`, OpenAPI at `/docs`, and a page at `/`.

FastAPI checks what comes in, `BatchingQueue` runs the model. Every refusal is a 4xx or 503 with `{"error": one line}`.
`gate.py` has what is checked before, `connections.py` what is below HTTP.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import ipaddress
import logging
import os
import socket
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.resources import files
from typing import Any, cast

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import Response

from finetune import __version__
from finetune.errors import FinetuneError
from finetune.escape import say, show_hidden
from finetune.models.answers import Prediction, TextClassifier
from finetune.serve.batching import BatchingQueue, QueueClosedError, QueueFullError
from finetune.serve.connections import (
    ENDING,
    IDLE_SECONDS,
    REFUSED_BODY,
    TAKEN_AT_ONCE,
    Connection,
    Connections,
    OnceAMinute,
    Server,
    most_connections,
)
from finetune.serve.gate import API_KEY, CLIENT_LEFT, Gate, Limits, find_allowed_hosts, read_api_key, refuse
from finetune.serve.metrics import CONTENT_TYPE, Metrics

__all__ = [
    "Answer",
    "Health",
    "Limits",
    "PredictRequest",
    "PredictResponse",
    "Refusal",
    "ServedModel",
    "State",
    "build_app",
    "serve",
]

LOADING = "The model is being loaded. Try again."
SHOWN = 200  # characters of what came in, in a message
ABSENT = {"type": "null"}
SHAPES: list[Any] = [  # of a request, which the types of its fields alone don't tell
    {"required": ["text"], "properties": {"text": {"type": "string"}, "texts": ABSENT, "pairs": ABSENT}},
    {"required": ["texts"], "properties": {"texts": {"type": "array"}, "text": ABSENT, "pair": ABSENT}},
]


class PredictRequest(BaseModel):
    """One text, or many; a second one for each if the model is of pairs."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"oneOf": SHAPES})

    text: StrictStr | None = Field(None, description="a text", examples=["A wonderful film."])
    pair: StrictStr | None = Field(None, description="its second text, for models of pairs")
    # Without fail_fast the errors of a list with a million numbers, which fits into a body, take a gigabyte.
    texts: list[StrictStr] | None = Field(None, min_length=1, fail_fast=True, description="many texts instead")
    pairs: list[StrictStr] | None = Field(None, fail_fast=True, description="a second text for each of them")

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, given: Any) -> Any:
        """Refuse the first key that is not known; pydantic alone would list them all."""
        for key in given if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(f"expected text, pair, texts and pairs, but got {key[:SHOWN]!r}")
        return given

    @model_validator(mode="after")
    def _check(self) -> "PredictRequest":
        if (self.text is None) == (self.texts is None):
            raise ValueError("expected either text or texts")
        if self.texts is None and self.pairs is not None:
            raise ValueError("expected pairs beside texts, and pair beside text")
        if self.text is None and self.pair is not None:
            raise ValueError("expected pair beside text, and pairs beside texts")
        if self.texts is not None and self.pairs is not None and len(self.pairs) != len(self.texts):
            raise ValueError(f"expected a second text for each of {len(self.texts)}, but got {len(self.pairs)}")
        for text in (self.text, self.pair, *(self.texts or ()), *(self.pairs or ())):
            try:
                (text or "").encode()
            except UnicodeEncodeError:
                raise ValueError("expected whole characters, but got half of a character (a lone surrogate)") from None
        return self


class Answer(BaseModel):
    """What the model says of a text."""

    labels: list[str] = Field(description="the most probable label; all that reach their threshold if several may hold")
    probabilities: dict[str, float] = Field(description="of every label")
    value: float | None = Field(None, description="the predicted number, of a regression")
    is_given: bool = Field(True, description="false where the model is not sure enough to answer; then no label is")
    label_set: list[str] | None = Field(
        None, description="labels that hold the right one as often as was asked for; null if it was not"
    )
    interval: tuple[float, float] | None = Field(None, description="likewise the ends of an interval around the number")

    @classmethod
    def of(cls, prediction: Prediction) -> "Answer":
        """Answer with a prediction."""
        return cls(
            labels=list(prediction.labels),
            probabilities=dict(prediction.all_probabilities),
            value=prediction.value,
            is_given=prediction.is_given,
            label_set=None if prediction.label_set is None else list(prediction.label_set),
            interval=prediction.interval,
        )


class PredictResponse(BaseModel):
    """The answers, in the order of the texts."""

    predictions: list[Answer]


class Health(BaseModel):
    """What is served."""

    status: str
    model: str
    problem_type: str
    labels: list[str]
    version: str


class State(BaseModel):
    """Whether the process is alive, or the model ready."""

    status: str


class Refusal(BaseModel):
    """Why a request was refused, in one line."""

    error: str


class ServedModel:
    """A model from its loading to its end.

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
            self.predictor.answer(found)
            self.queue = queue
            on_ready()
        except BaseException as error:  # it is raised again where the process ends
            self.failure = error
            on_failure()

    async def compute(self, texts: Sequence[str], pairs: Sequence[str] | None, request: Request) -> np.ndarray | None:
        """Return probabilities, `(len(texts), num_labels)`; None if the client left before."""
        assert self.queue is not None
        try:
            found = asyncio.wrap_future(self.queue.submit(texts, pairs))
            left = asyncio.ensure_future(_wait_until_left(request))
            either: list[asyncio.Future[Any]] = [found, left]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                return await found if found.done() else None
            finally:
                found.cancel()
                left.cancel()
        except QueueFullError:
            raise HTTPException(429, "Too many texts wait already. Try again.", headers={"Retry-After": "1"}) from None
        except QueueClosedError:
            raise HTTPException(503, ENDING) from None

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


def build_app(
    model: ServedModel,
    name: str,
    limits: Limits | None = None,
    allowed_hosts: Sequence[str] | None = None,
    api_key: str | None = None,
    gauges: Callable[[], dict[str, tuple[str, float]]] = dict,
) -> FastAPI:
    """Build the service.

    Args:
        model: What answers.
        name: What the page and `/health` call it.
        limits: What clients may do.
        allowed_hosts: Names that a request may ask for; None for any.
        api_key: What a request has to know; None for nothing.
        gauges: Gives what `/metrics` says beside the counts: help and value by name.
    """
    limits = limits or Limits()
    page, policy = _build_page(name, api_key is not None)

    @contextlib.asynccontextmanager
    async def end_model(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(model.close)

    def describe(*codes: int, key: bool = True) -> dict[int | str, dict[str, Any]]:
        """Describe refusals: those of one path, and of all."""
        return {
            code: {"model": Refusal}
            for code in sorted({*codes, 400, 408, 421, *([401] if key and api_key is not None else [])})
        }

    bearer = HTTPBearer(auto_error=False, description=f"the service's {API_KEY}")
    locked = [] if api_key is None else [Depends(bearer)]
    app = FastAPI(title=f"finetune: {name}", version=__version__, lifespan=end_model)

    @app.post(
        "/predict", responses=describe(413, 415, 422, 429, 500, 503), dependencies=locked, summary="Label texts",
        response_model=PredictResponse,
    )  # fmt: skip
    async def predict(asked: PredictRequest, request: Request) -> PredictResponse | Response:
        """Label one text or many."""
        texts, pairs = asked.texts, asked.pairs
        if texts is None:
            texts, pairs = [asked.text or ""], None if asked.pair is None else [asked.pair]
        if len(texts) > limits.max_texts:
            raise HTTPException(413, f"Expected at most {limits.max_texts} texts, but got {len(texts)}. Send fewer.")
        longest = max(map(len, [*texts, *(pairs or [])]))
        if longest > limits.max_characters:
            raise HTTPException(
                413, f"Expected texts of at most {limits.max_characters:,} characters, but got one of {longest:,}."
            )
        predictor = model.require()
        try:
            predictor.check_pairs(pairs)
        except FinetuneError as error:
            raise HTTPException(422, str(error)) from None
        found = await model.compute(texts, pairs, request)
        if found is None:
            return Response(status_code=CLIENT_LEFT)
        return PredictResponse(predictions=[Answer.of(one) for one in predictor.answer(found)])

    @app.get("/health", responses=describe(503), dependencies=locked, summary="Say what is served")
    async def health() -> Health:
        """Answer as soon as the model can."""
        task = model.require().task
        return Health(
            status="ok", model=name, problem_type=task.problem_type, labels=task.label_names, version=__version__
        )

    @app.get("/health/live", responses=describe(key=False), summary="Say that the process is alive")
    async def live() -> State:
        """Answer while the process does, also while the model is being loaded."""
        return State(status="alive")

    @app.get("/health/ready", responses=describe(503, key=False), summary="Say whether the model answers")
    async def ready() -> State:
        """Answer 200 as soon as the model can."""
        model.require()
        return State(status="ready")

    @app.get(
        "/metrics", responses={200: {"content": {"text/plain": {}}}, **describe()}, dependencies=locked,
        response_class=Response, summary="Count, for Prometheus",
    )  # fmt: skip
    async def metrics() -> Response:
        """Return counts in Prometheus' text format."""
        queue = model.queue
        waiting = 0 if queue is None else queue.num_waiting_texts
        present = {
            "finetune_ready": ("1 if the model answers.", float(model.is_ready)),
            "finetune_queue_texts": ("Texts that wait for the model.", float(waiting)),
            **gauges(),
        }
        return Response(model.metrics.render(__version__, name, present), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return refuse(400, f"Expected JSON, but got an error: {first['ctx']['error']}.")
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = first["msg"].removeprefix("Value error, ")
        return refuse(422, f"Expected {{'text': ...}} or {{'texts': [...]}}, but {where or 'the body'}: {message}.")

    @app.exception_handler(HTTPException)
    async def explain_refusal(request: Request, error: HTTPException) -> Response:
        return refuse(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        message = str(error) if isinstance(error, FinetuneError) else "The model failed on this request; see the log."
        return refuse(500, message)

    paths = {route.path for route in app.routes if hasattr(route, "path")}
    app.add_middleware(
        Gate, limits=limits, allowed_hosts=allowed_hosts, api_key=api_key, paths=paths, metrics=model.metrics
    )
    return app


def _build_page(name: str, wants_key: bool) -> tuple[str, str]:
    """Return the page for people, and the policy that lets nothing run on it but its own script."""
    import jinja2

    source = files("finetune.serve").joinpath("page.html").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    page = template.render(name=name, wants_key=wants_key)
    hashes = []
    for tag in ("style", "script"):
        content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        hashes.append(base64.b64encode(hashlib.sha256(content.encode()).digest()).decode())
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def serve(
    load: Callable[[], TextClassifier],
    name: str,
    host: str,
    port: int,
    limits: Limits,
    allowed_hosts: str | None = None,
) -> None:
    """Serve a model until SIGTERM or SIGINT; then finish what is in flight, and end the process with status 0.

    Args:
        load: Gives the model; called when the port is ours.
        name: What the page calls it.
        host: Address to listen on.
        port: Port, or 0 for any that is free.
        limits: What clients may do.
        allowed_hosts: Names that a request may ask for, with commas between them, or `*`; by default those of loopback
            if it listens there, else any.

    Raises:
        FinetuneError: If the address can't be had, or the model not be loaded.
    """
    api_key = read_api_key()
    name = show_hidden(name)
    metrics = Metrics()
    model = ServedModel(load, metrics)

    def end() -> None:
        if model.failure is None:
            with contextlib.suppress(OSError):  # who read it may have gone
                print("stopped", flush=True)
            os._exit(0)  # a model at work can't be ended, and taking the libraries apart takes half a second

    with _bind(host, port) as listener:
        address, port = listener.getsockname()[:2]
        names = find_allowed_hosts(allowed_hosts, host, address)
        if api_key is None and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            warnings.warn(
                f"whoever reaches {host} can use the service. Set {API_KEY} in its environment, or listen on 127.0.0.1",
                stacklevel=2,
            )
        most = most_connections(limits.max_connections)
        if most < limits.max_connections:
            warnings.warn(
                f"at most {most} connections, since the process may open no more files. Raise the limit (ulimit -n), "
                f"or pass --max_connections {most}",
                stacklevel=2,
            )
        connections = Connections(
            most, limits.header_seconds, limits.body_seconds, REFUSED_BODY * limits.max_body_bytes, metrics
        )
        app = build_app(
            model, name, limits, names, api_key,
            lambda: {"finetune_connections": ("Open connections.", float(len(connections.open)))},
        )  # fmt: skip
        config = uvicorn.Config(
            app, http=cast(Any, functools.partial(Connection, connections)), ws="none", loop="asyncio",
            log_level="warning",
            access_log=False, server_header=False, proxy_headers=False, backlog=TAKEN_AT_ONCE,
            timeout_keep_alive=IDLE_SECONDS,
        )  # fmt: skip
        for logger in ("uvicorn.error", "asyncio"):
            logging.getLogger(logger).addFilter(OnceAMinute(metrics))
        server = Server(config, connections, model, end)
        shown = f"[{host}]" if ":" in host else host

        def say_ready() -> None:
            say(f"serving {name} on http://{shown}:{port} (Ctrl-C ends it)", file=sys.stdout)

        def give_up() -> None:
            server.should_exit = True

        model.start(say_ready, give_up)
        server.run(sockets=[listener])
    end()
    assert model.failure is not None
    raise model.failure


def _bind(host: str, port: int) -> socket.socket:
    if not host:  # which the system takes for all addresses
        raise FinetuneError("Expected an address as --host, but got an empty word. Pass 0.0.0.0 for all addresses.")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(TAKEN_AT_ONCE)  # which fails where another process listens, as binding alone may not
    except (OSError, OverflowError, TypeError) as error:  # TypeError of a name that has no encoding
        listener.close()
        raise FinetuneError(
            f"Expected a free address, but {host}:{port} can't be had: {getattr(error, 'strerror', None) or error}. "
            "Pass another --host or --port."
        ) from error
    return listener
