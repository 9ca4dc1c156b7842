"""A small HTTP service over one model: `/predict`, `/explain`, `/health`, `/metrics`, and pages at `/` and `/docs`.

FastAPI checks what comes in, `BatchingQueue` runs the model. Every refusal is a 4xx or 503 with `{"error": one line}`.
`messages.py` has what comes in and goes out, `gate.py` what is checked before, `connections.py` what is below HTTP.
"""

import asyncio
import contextlib
import functools
import ipaddress
import logging
import os
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import Response

from finetune import __version__
from finetune.errors import FinetuneError
from finetune.escape import say, show_hidden
from finetune.models.answers import TextClassifier
from finetune.serve.about import describe_predictor
from finetune.serve.connections import (
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
from finetune.serve.messages import (
    Answer,
    ExplainRequest,
    ExplainResponse,
    Health,
    PredictRequest,
    PredictResponse,
    Refusal,
    State,
)
from finetune.serve.metrics import CONTENT_TYPE, Metrics
from finetune.serve.model import ClientLeftError, ServedModel
from finetune.serve.pages import Page, build_description_page, build_trial_page

__all__ = ["Limits", "build_app", "serve"]


def build_app(
    model: ServedModel,
    name: str,
    limits: Limits | None = None,
    allowed_hosts: Sequence[str] | None = None,
    api_key: str | None = None,
    gauges: Callable[[], dict[str, tuple[str, float]]] = dict,
    facts: Mapping[str, str] | None = None,
    examples: Sequence[Sequence[str]] = (),
) -> FastAPI:
    """Build the service.

    Args:
        model: What answers.
        name: What the page and `/health` call it.
        limits: What clients may do.
        allowed_hosts: Names that a request may ask for; None for any.
        api_key: What a request has to know; None for nothing.
        gauges: Gives what `/metrics` says beside the counts: help and value by name.
        facts: What is known of the model beside what it says itself, in words, by name.
        examples: Texts to try, each with its second one if the model is of pairs.
    """
    limits = limits or Limits()

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
    app = FastAPI(
        title=f"finetune: {name}", version=__version__, lifespan=end_model, docs_url=None, redoc_url=None
    )  # fmt: skip

    def check_lengths(texts: Sequence[str]) -> None:
        longest = max(map(len, texts))
        if longest > limits.max_characters:
            raise HTTPException(
                413, f"Expected texts of at most {limits.max_characters:,} characters, but got one of {longest:,}."
            )

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
        check_lengths([*texts, *(pairs or [])])
        predictor = model.require()
        try:
            predictor.check_pairs(pairs)
        except FinetuneError as error:
            raise HTTPException(422, str(error)) from None
        found = predictor.rules.to_probabilities(await model.compute_logits(texts, pairs, request))
        return PredictResponse(predictions=[Answer.of(one) for one in predictor.answer(found)])

    @app.post(
        "/explain", responses=describe(413, 415, 422, 429, 500, 503), dependencies=locked, summary="Explain a label",
        response_model=ExplainResponse,
    )  # fmt: skip
    async def explain(asked: ExplainRequest, request: Request) -> ExplainResponse | Response:
        """Say what each word of a text contributed to a label.

        Of models other than TF-IDF this takes a prediction for each word, of long texts about a hundred.
        """
        check_lengths([asked.text, asked.pair or ""])
        predictor = model.require()
        try:
            predictor.check_pairs(None if asked.pair is None else [asked.pair])
            if asked.label is not None:
                predictor.check_label(asked.label)
        except FinetuneError as error:
            raise HTTPException(422, str(error)) from None
        return ExplainResponse.of(await model.explain(asked.text, asked.pair, asked.label, request))

    @app.get("/health", responses=describe(503), dependencies=locked, summary="Say what is served")
    async def health() -> Health:
        """Answer as soon as the model can."""
        predictor = model.require()
        return Health(
            status="ok",
            model=name,
            problem_type=predictor.task.problem_type,
            labels=predictor.label_names,
            version=__version__,
            is_paired=predictor.is_paired,
            facts={**describe_predictor(predictor), **(facts or {})},
            examples=[list(one) for one in examples],
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

    def show(page: Page) -> HTMLResponse:
        return HTMLResponse(
            page.content, headers={"Content-Security-Policy": page.policy, "X-Content-Type-Options": "nosniff"}
        )

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return show(trial_page)

    @app.get("/docs", include_in_schema=False)
    async def show_description() -> HTMLResponse:
        return show(description_page)

    @app.exception_handler(RequestValidationError)
    async def explain_invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return refuse(400, f"Expected JSON, but got an error: {first['ctx']['error']}.")
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = first["msg"].removeprefix("Value error, ")
        shape = "{'text': ...}" if request.url.path == "/explain" else "{'text': ...} or {'texts': [...]}"
        return refuse(422, f"Expected {shape}, but {where or 'the body'}: {message}.")

    @app.exception_handler(HTTPException)
    async def explain_refusal(request: Request, error: HTTPException) -> Response:
        return refuse(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(ClientLeftError)
    async def drop(request: Request, error: ClientLeftError) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        message = str(error) if isinstance(error, FinetuneError) else "The model failed on this request; see the log."
        return refuse(500, message)

    trial_page = build_trial_page(name, api_key is not None)
    description_page = build_description_page(name, app.openapi())
    paths = {route.path for route in app.routes if hasattr(route, "path")}
    app.add_middleware(
        Gate, limits=limits, allowed_hosts=allowed_hosts, api_key=api_key, paths=paths, metrics=model.metrics
    )
    return app


def serve(
    load: Callable[[], TextClassifier],
    name: str,
    host: str,
    port: int,
    limits: Limits,
    allowed_hosts: str | None = None,
    facts: Mapping[str, str] | None = None,
    examples: Sequence[Sequence[str]] = (),
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
        facts: See `build_app`.
        examples: See `build_app`.

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
            lambda: {"finetune_connections": ("Open connections.", float(len(connections.open)))}, facts, examples,
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
