"""The connections of the service: how many, how long a client may take, what is logged of them, and how they end.

uvicorn speaks HTTP, and closes connections on which no request comes. This bounds the rest. A connection on which the
service waits for its client (to send a request, or to read an answer) has a limit of time, and where there are too many
connections, the one that has waited longest gives way to a new one: clients that send halves of requests can't keep
others out. One whose answer is being computed gives way to nobody.
"""

import asyncio
import json
import logging
import resource
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from finetune.errors import FinetuneError
from finetune.serve.metrics import Metrics
from finetune.serve.signals import on_stop

__all__ = ["Connection", "Connections", "OnceAMinute", "Server", "Stoppable", "encode_refusal", "most_connections"]

BACKLOG = 2_048  # connections that wait to be taken
TAKEN_AT_ONCE = 8  # of them, so that those that give way have been closed before more are taken
RESERVED_FILES = 48  # for what is not a connection, or one that is being closed
FEWEST_CONNECTIONS = 8
READING_SECONDS = 30  # an answer
IDLE_SECONDS = 5  # between two requests
GRACE_SECONDS = 2  # in which what is in flight when the service is told to stop is still computed
END_SECONDS = 4  # after which the process ends, whatever is in flight
SWEEP_TICKS = 5  # uvicorn's tick is a tenth of a second
REFUSED_BODY = 16  # times the largest body: so much is read of one that was refused, for its sender to see the answer
BUSY = "Too many connections are open. Try again."
ENDING = "The service is ending."


def encode_refusal(message: str) -> bytes:
    """Return the body of a refusal: JSON with one line."""
    line = " ".join(message.split()).encode("utf-8", "replace").decode()
    return json.dumps({"error": line}, ensure_ascii=False, separators=(",", ":")).encode()


def most_connections(asked: int) -> int:
    """Return how many connections there may be, by what is asked for and how many files the process may open.

    Raises:
        FinetuneError: If it may open too few.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return asked
    found = files - len(list(Path("/dev/fd").iterdir())) - RESERVED_FILES
    if found < FEWEST_CONNECTIONS:
        needed = files - found + FEWEST_CONNECTIONS
        raise FinetuneError(
            f"Expected to open at least {needed} files at once, but may open {files}. Raise the limit: ulimit -n 1024"
        )
    return min(asked, found)


class Connections:
    """All open connections.

    Args:
        most: How many there may be.
        header_seconds: What a request's headers may take, from the connection or the last answer on.
        body_seconds: What its body may take.
        max_refused_bytes: Of bodies that are refused, read on a connection to their end.
        metrics: Counts those that are closed.
    """

    def __init__(self, most: int, header_seconds: float, body_seconds: float, max_refused_bytes: int, metrics: Metrics):
        self.most = most
        self.seconds = {"headers": header_seconds, "body": body_seconds, "reading": READING_SECONDS}
        self.max_refused_bytes = max_refused_bytes
        self.metrics = metrics
        self.open: set[Connection] = set()

    def admit(self, new: "Connection") -> None:
        """Take a new connection; where there are too many, another gives way, or it is refused."""
        if len(self.open) >= self.most:
            waiting = [connection for connection in self.open if connection.awaits() is not None]
            if waiting:
                self._close(min(waiting, key=lambda connection: connection.since), "gave_way", 503, BUSY)
            else:
                self.metrics.closed["full"] += 1
                new.refuse(503, BUSY, unasked=True)
                return
        self.open.add(new)

    def close_late(self) -> None:
        """Close those whose client takes too long."""
        now = time.monotonic()
        for connection in list(self.open):
            state = connection.awaits(), connection.cycle
            if state != connection.state:
                connection.state, connection.since = state, now
            elif state[0] is not None and now - connection.since > self.seconds[state[0]]:
                what = f"Expected the {state[0]} of a request within {self.seconds[state[0]]:g} seconds."
                self._close(connection, f"late_{state[0]}", 408, what)

    def close_waiting(self) -> None:
        """Close all that wait for their client."""
        for connection in list(self.open):
            if connection.awaits() is not None:
                self._close(connection, "ended", 503, ENDING)

    def _close(self, connection: "Connection", reason: str, status: int, message: str) -> None:
        self.open.discard(connection)
        self.metrics.closed[reason] += 1
        connection.refuse(status, message)


class Connection(H11Protocol):
    """A connection of uvicorn's that knows what it waits for.

    Attributes:
        state: What its client has to do next, and in which request, when it was last looked at.
        since: When it came to that, on the monotonic clock.
    """

    def __init__(self, connections: Connections, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.registry = connections
        self.state: tuple[str | None, object] = ("headers", None)
        self.since = time.monotonic()
        self.refused_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.registry.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.registry.open.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused():
            self.refused_bytes += len(data)
            if self.refused_bytes > self.registry.max_refused_bytes:
                self.registry.metrics.closed["too_large"] += 1
                self.transport.abort()
                return
        super().data_received(data)

    def awaits(self) -> str | None:
        """Return what its client has to do next: send "headers" or a "body", or be "reading"; None if it's our turn."""
        if self.transport.get_write_buffer_size():
            return "reading"
        if self._is_refused():
            return "body"
        if self._is_between_requests():
            return "headers"
        return "body" if self.cycle.more_body else None

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _is_refused(self) -> bool:
        """Whether a request has its answer, though its body isn't here yet."""
        return self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY

    def refuse(self, status: int, message: str, unasked: bool = False) -> None:
        """Answer the request that has begun to come, if it has no answer yet, and close the connection.

        Args:
            status: Of the answer.
            message: What it says.
            unasked: Whether to answer even if nothing has come.
        """
        has_begun = bool(self.conn.trailing_data[0]) if self._is_between_requests() else True
        if (has_begun or unasked) and not self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self._answer(status, message)
        if self.transport.get_write_buffer_size():  # its client doesn't read
            self.transport.abort()
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self.registry.metrics.closed["not_http"] += 1
        self._answer(400, msg)
        self.transport.close()

    def _answer(self, status: int, message: str) -> None:
        """Write an answer in place of the application's; none where that has begun one, or has given it."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = encode_refusal(message)
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        events: list[h11.Event] = [
            h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        if not self._is_between_requests():
            if self.cycle.scope["method"] == "HEAD":
                del events[1]
            self.cycle.disconnected = True  # nobody hears what the application says now
            self.cycle.message_event.set()
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))


class Stoppable(Protocol):
    """What a server stops."""

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""

    def abandon(self) -> None:
        """Compute nothing more than what is being computed."""


class Server(uvicorn.Server):
    """A server of uvicorn's that bounds its connections, and ends soon after a signal.

    Args:
        config: Of uvicorn.
        connections: Its connections.
        model: What answers.
        end: Ends the process.
    """

    def __init__(self, config: uvicorn.Config, connections: Connections, model: Stoppable, end: Callable[[], object]):
        super().__init__(config)
        self.connections = connections
        self.model = model
        self.end = end

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Handle signals; unlike uvicorn's own, don't raise them again in the end."""
        return on_stop(self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True  # uvicorn drops everything at the second Ctrl-C; here the end is near anyway

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # uvicorn's backlog is also how many are taken at once

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            self.connections.close_late()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no connection, answer what is in flight, and end in time."""
        loop = asyncio.get_running_loop()
        loop.call_later(GRACE_SECONDS if self.model.is_ready else 0, self._give_up)
        loop.call_later(END_SECONDS if self.model.is_ready else 0, self.end)
        await super().shutdown(sockets)

    def _give_up(self) -> None:
        self.model.abandon()
        self.connections.close_waiting()


class OnceAMinute(logging.Filter):
    """Lets a line of the log through once a minute, with the number of those of its kind that were held back.

    A kind is where in the code it is logged, so that there are few, whatever clients send.
    """

    def __init__(self, metrics: Metrics):
        super().__init__()
        self.metrics = metrics
        self.last_told: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.pathname, record.lineno), time.monotonic()
        last, held_back = self.last_told.get(kind, (-60.0, 0))
        if now - last < 60:
            self.last_told[kind] = last, held_back + 1
            self.metrics.held_back += 1
            return False
        self.last_told[kind] = now, 0
        if record.exc_info and isinstance(record.exc_info[1], OSError):  # the system's, such as too many open files
            record.msg, record.args = f"{record.getMessage().splitlines()[0]}: {record.exc_info[1]}", ()
            record.exc_info = None
        if held_back:
            record.msg, record.args = f"{record.getMessage().rstrip()} ({held_back:,} more since the last)", ()
        return True
