"""What a request passes before FastAPI sees it: the name that it asks for, the key, the size of its body, a count.

A request is refused by its headers where they suffice, so that no body is held, or parsed, of who may not send one.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.errors import FinetuneError
from finetune.serve.connections import encode_refusal
from finetune.serve.metrics import Metrics

__all__ = ["API_KEY", "Gate", "Limits", "find_allowed_hosts", "read_api_key", "refuse"]

API_KEY = "FINETUNE_API_KEY"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::\d+)?", re.IGNORECASE)
NAME = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
# What a browser or a probe asks for without a key; it says no more of the model than its name.
OPEN_PATHS = {"/", "/docs", "/openapi.json", "/health/live", "/health/ready"}
TAKES_JSON = {"/predict", "/explain"}
HELD = 32  # largest bodies that are held at once, from their first byte to their answer
SMALL = 65_536  # bytes of a body that is taken all the same
CLIENT_LEFT = 499


@dataclass(frozen=True)
class Limits:
    """What clients may do.

    Attributes:
        max_body_bytes: Of the JSON.
        max_texts: Texts in a request.
        max_characters: Of a text; the model cuts it further, to its own number of tokens.
        max_connections: That are open at once.
        header_seconds: What a request's headers may take to arrive.
        body_seconds: What its body may take to arrive.
    """

    max_body_bytes: int = 2_000_000
    max_texts: int = 256
    max_characters: int = 100_000
    max_connections: int = 512
    header_seconds: float = 10
    body_seconds: float = 30


def read_api_key() -> str | None:
    """Return the key that the environment names; None if none.

    Raises:
        FinetuneError: If it can't stand in a header.
    """
    key = os.environ.get(API_KEY)
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise FinetuneError(
            f"Expected {API_KEY} to be ASCII letters, digits and signs without spaces, but it is empty or has others. "
            "Set another key, or unset it."
        )
    return key


def find_allowed_hosts(given: str | None, host: str, address: str) -> list[str] | None:
    """Return the names under which the service answers; None for any.

    A page in a browser can be made to send to a loopback address by a name of its author's (DNS rebinding), and the
    browser then takes the answer for the page's own; the name stands in the header `Host`.

    Args:
        given: Names with commas between them; `*` for any, `*.name` for all below a name. By default those of loopback
            if it listens there, else any.
        host: What was asked to listen on.
        address: What that is.

    Raises:
        FinetuneError: If one can't be a name.
    """
    if given is None:
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            return None
        return [*LOOPBACK_NAMES, f"[{host}]".lower() if ":" in host else host.lower()]
    names = [name.strip().lower().rstrip(".") for name in given.split(",")]
    names = [f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name for name in names]
    for name in names:
        if not NAME.fullmatch(name):
            raise FinetuneError(
                f"Expected --allowed_hosts to be names such as example.org,*.example.org,127.0.0.1 without a port, but "
                f"got {name!r}."
            )
    return None if "*" in names else names


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return a refusal."""
    return Response(encode_refusal(message), status, headers, "application/json")


class Gate:
    """Checks requests, reads their bodies within limits, and counts them.

    Args:
        app: What answers.
        limits: What clients may do.
        allowed_hosts: Names that a request may ask for; None for any.
        api_key: What a request has to know; None for nothing.
        paths: That exist.
        metrics: Counts.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        allowed_hosts: Collection[str] | None,
        api_key: str | None,
        paths: Collection[str],
        metrics: Metrics,
    ):
        self.app = app
        self.max_bytes = limits.max_body_bytes
        self.allowed_hosts = allowed_hosts
        self.key = None if api_key is None else _digest(api_key)
        self.paths = paths
        self.metrics = metrics
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), CLIENT_LEFT

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._check(scope)
            if refusal is None:
                await self._pass(scope, receive, note)
            else:
                if b"expect" in dict(scope["headers"]):  # its client waits for leave to send the body, and won't now
                    refusal.headers["Connection"] = "close"
                await refusal(scope, receive, note)
        except Exception:
            status = 500
            raise
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests[method, path, status] += 1
            self.metrics.request_seconds[path].add(time.perf_counter() - start)

    def _check(self, scope: Scope) -> Response | None:
        """Refuse a request by its headers."""
        headers = Headers(scope=scope)
        if not self._is_allowed(headers.get("host", "")):
            return refuse(421, f"Expected a host of --allowed_hosts, but got {headers.get('host', '')[:100]!r}.")
        if self.key is not None and scope["path"] not in OPEN_PATHS:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            # of one length, so that the time that the comparison takes says nothing of the key, nor of its length
            if not hmac.compare_digest(_digest(key.strip()), self.key) or scheme.lower() != "bearer":
                message = f"Expected the service's key ({API_KEY}) in the header Authorization: Bearer KEY."
                return refuse(401, message, {"WWW-Authenticate": "Bearer"})
        if scope["path"] in TAKES_JSON and scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if not re.fullmatch(r"application/([^/\s]+\+)?json", kind):
                return refuse(415, f"Expected Content-Type: application/json, but got {kind[:100] or 'none'!r}.")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.max_bytes:
            return self._too_large()
        return None

    def _is_allowed(self, host: str) -> bool:
        if self.allowed_hosts is None:
            return True
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().rstrip(".")
        return any(
            name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:]))
            for allowed in self.allowed_hosts
        )

    def _too_large(self) -> Response:
        return refuse(413, f"Expected a body of at most {self.max_bytes:,} bytes, but got more. Send less.")

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, and hand the request on."""
        body, more = bytearray(), True
        try:
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    return  # the client has gone
                part, more = message.get("body", b""), message.get("more_body", False)
                body += part
                self._held += len(part)
                if len(body) > self.max_bytes:
                    await self._too_large()(scope, receive, send)
                    return
                if len(body) > SMALL and self._held > HELD * self.max_bytes:
                    busy = refuse(503, "Too much waits already. Try again, or send less.", {"Retry-After": "1"})
                    await busy(scope, receive, send)
                    return
            messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

            async def replay() -> Message:
                return messages.pop() if messages else await receive()

            await self.app(scope, replay, send)
        finally:
            self._held -= len(body)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
