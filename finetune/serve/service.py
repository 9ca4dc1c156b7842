"""A small HTTP service over one model: `/predict`, `/health`, OpenAPI at `/docs`, and a page for people at `/`.

FastAPI checks what comes in, `BatchingQueue` runs the model. Every refusal is a 4xx with `{"error": one line}`.
"""

import asyncio
import base64
import contextlib
import hashlib
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune import __version__
from finetune.errors import FinetuneError
from finetune.models.answers import Prediction, TextClassifier
from finetune.serve.batching import BatchingQueue, QueueFullError

__all__ = ["Answer", "Health", "Limits", "PredictRequest", "PredictResponse", "Refusal", "build_app", "serve"]

BACKLOG = 2_048  # connections that wait to be taken
GRACE_SECONDS = 30  # for what is in flight when the service is told to stop
DRAINED = 16  # a body this many times too large is still read to its end, so that its sender sees the answer


@dataclass(frozen=True)
class Limits:
    """What a request may hold.

    Attributes:
        max_body_bytes: Of the JSON.
        max_texts: Texts in a request.
        max_characters: Of a text; the model cuts it further, to its own number of tokens.
    """

    max_body_bytes: int = 2_000_000
    max_texts: int = 256
    max_characters: int = 100_000


class PredictRequest(BaseModel):
    """One text, or many; a second one for each if the model is of pairs."""

    model_config = ConfigDict(extra="forbid")

    text: StrictStr | None = Field(None, description="a text", examples=["A wonderful film."])
    pair: StrictStr | None = Field(None, description="its second text, for models of pairs")
    texts: list[StrictStr] | None = Field(None, min_length=1, description="many texts instead")
    pairs: list[StrictStr] | None = Field(None, description="a second text for each of them")

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


class Refusal(BaseModel):
    """Why a request was refused, in one line."""

    error: str


def build_app(predictor: TextClassifier, name: str, limits: Limits | None = None) -> FastAPI:
    """Build the service.

    Args:
        predictor: The model.
        name: What the page and `/health` call it.
        limits: What a request may hold.
    """
    limits = limits or Limits()
    task = predictor.task
    page, policy = _build_page(name)

    @contextlib.asynccontextmanager
    async def run_queue(app: FastAPI) -> AsyncIterator[None]:
        app.state.queue = BatchingQueue(predictor)
        yield
        await asyncio.to_thread(app.state.queue.close)

    refusals: dict[int | str, dict[str, Any]] = {code: {"model": Refusal} for code in (400, 413, 422, 429)}
    app = FastAPI(title=f"finetune: {name}", version=__version__, lifespan=run_queue)
    app.add_middleware(_BodyLimit, max_bytes=limits.max_body_bytes)

    @app.post("/predict", responses=refusals, summary="Label texts")
    async def predict(request: PredictRequest) -> PredictResponse:
        """Label one text or many."""
        texts, pairs = request.texts, request.pairs
        if texts is None:
            texts, pairs = [request.text or ""], None if request.pair is None else [request.pair]
        if len(texts) > limits.max_texts:
            raise HTTPException(413, f"Expected at most {limits.max_texts} texts, but got {len(texts)}. Send fewer.")
        longest = max(map(len, [*texts, *(pairs or [])]))
        if longest > limits.max_characters:
            raise HTTPException(
                413, f"Expected texts of at most {limits.max_characters:,} characters, but got one of {longest:,}."
            )
        try:
            predictor.check_pairs(pairs)
        except FinetuneError as error:
            raise HTTPException(422, str(error)) from None
        try:
            future = app.state.queue.submit(texts, pairs)
        except QueueFullError:
            raise HTTPException(429, "Too many texts wait already. Try again.", headers={"Retry-After": "1"}) from None
        found = await asyncio.wrap_future(future)
        return PredictResponse(predictions=[Answer.of(one) for one in predictor.answer(found)])

    @app.get("/health", summary="Tell what is served")
    async def health() -> Health:
        """Answer as soon as the model can."""
        return Health(
            status="ok", model=name, problem_type=task.problem_type, labels=task.label_names, version=__version__
        )

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _refuse(400, f"Expected JSON, but got an error: {first['ctx']['error']}.")
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = first["msg"].removeprefix("Value error, ")
        return _refuse(422, f"Expected {{'text': ...}} or {{'texts': [...]}}, but {where or 'the body'}: {message}.")

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        return _refuse(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        message = str(error) if isinstance(error, FinetuneError) else "The model failed on this request; see the log."
        return _refuse(500, message)

    return app


def _refuse(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    line = " ".join(message.split()).encode("utf-8", "replace").decode()
    return JSONResponse({"error": line}, status, headers)


class _BodyLimit:
    """Reads a request's body, and refuses it when it is too large, whatever its header says."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, size, more = b"", 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            part = message.get("body", b"")
            size += len(part)
            body = body + part if size <= self.max_bytes else b""
            more = message.get("more_body", False) and size <= DRAINED * self.max_bytes
        if size > self.max_bytes:
            refusal = _refuse(413, f"Expected a body of at most {self.max_bytes:,} bytes, but got more. Send less.")
            await refusal(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)


def _build_page(name: str) -> tuple[str, str]:
    """Return the page for people, and the policy that lets nothing run on it but its own script."""
    import jinja2

    source = files("finetune.serve").joinpath("page.html").read_text("utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source).render(name=name)
    hashes = []
    for tag in ("style", "script"):
        content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        hashes.append(base64.b64encode(hashlib.sha256(content.encode()).digest()).decode())
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def serve(load: Callable[[], TextClassifier], name: str, host: str, port: int, limits: Limits) -> None:
    """Serve a model until SIGTERM or SIGINT; then finish what is in flight, and return.

    Args:
        load: Gives the model; called when the port is ours.
        name: What the page calls it.
        host: Address to listen on.
        port: Port, or 0 for any that is free.
        limits: What a request may hold.

    Raises:
        FinetuneError: If the address can't be had, or the model not be loaded.
    """
    with _bind(host, port) as listener:
        predictor = load()
        predictor.predict(
            ["A text."], ["Another."] if predictor.is_paired else None
        )  # what is done once, is done before the first request
        listener.listen(BACKLOG)
        app = build_app(predictor, name, limits)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=GRACE_SECONDS
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn raises them again when all is done
        address = f"[{host}]" if ":" in host else host
        print(f"serving {name} on http://{address}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
    print("stopped", flush=True)


def _bind(host: str, port: int) -> socket.socket:
    if not host:  # which the system takes for all addresses
        raise FinetuneError("Expected an address as --host, but got an empty word. Pass 0.0.0.0 for all addresses.")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise FinetuneError(
            f"Expected a free address, but {host}:{port} can't be had: {getattr(error, 'strerror', None) or error}. "
            "Pass another --host or --port."
        ) from error
    return listener
