"""How an answer is written: JSON, problems (RFC 9457), blobs in pieces, events (SSE)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final, cast

import structlog
import trio
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from nexapod.api.backend import ApiError, Backend, JobEvent, Json
from nexapod.api.event_buffer import EventBuffer
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, JobId

log = structlog.get_logger()

PING_S: Final = 15.0
"""A comment goes over a silent event stream so often: both sides learn that the other is gone."""
WRITE_S: Final = 0.1
"""Between two writes of an event stream: what happens meanwhile goes together, and what is overtaken not at all."""
FINAL_STATES: Final = frozenset({"settled", "cancelled"})


class Reply(JSONResponse):
    """JSON in ASCII: what other peers wrote reaches a terminal as \\u escapes, whatever shows it."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def problem(status: int, name: str, title: str, detail: str, remedy: str = "") -> Reply:
    """An error as RFC 9457 has it, with what to do next in `remedy`."""
    body = {
        "type": f"urn:nexapod:problem:{name}",
        "title": title,
        "status": status,
        "detail": detail,
        "remedy": remedy,
    }
    return Reply(body, status, media_type="application/problem+json")


def problem_of(error: ApiError) -> Reply:
    """The answer to a request that a backend could not fulfil."""
    return problem(error.status, error.name, error.title, error.detail, error.remedy)


class BlobAnswer(Response):
    """The bytes of a blob, read piece by piece as the client takes them."""

    def __init__(self, backend: Backend, ref: BlobRef, offset: int, length: int) -> None:
        # Not Response.__init__: it would render a body, and announce its length. This is what starlette reads.
        self.status_code = 200
        self.background = None
        self.init_headers(
            {
                "content-length": str(length),
                "content-type": "application/octet-stream",
                "x-content-type-options": "nosniff",
                "etag": f'"{ref}"',
            }
        )
        self._backend = backend
        self._ref = ref
        self._at = offset
        self._end = offset + length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
            while self._at < self._end:
                piece = await self._backend.read_blob(self._ref, self._at, min(CHUNK_BYTES, self._end - self._at))
                if not piece:  # the blob vanished under us: a short body is what tells the client
                    log.warning("blob_cut_short", ref=str(self._ref), at=self._at)
                    break
                self._at += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})


class PiecesAnswer(Response):
    """Bytes whose number nobody knows yet, as they are made. What goes wrong in between cuts the connection."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        # As above: no content-length. The transport marks the end, or shows that it is missing.
        self.status_code = 200
        self.background = None
        self.init_headers({"content-type": "application/octet-stream", "x-content-type-options": "nosniff"})
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
            async with aclosing(cast(Any, self._pieces)):
                async for piece in self._pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})


class EventAnswer(Response):
    """A job's events: first `snapshot`, where it stands; then each change; `closed` ends the stream.

    Subscribed before the snapshot is taken, so nothing falls between the two.
    """

    def __init__(self, backend: Backend, job: JobId) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(
            {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}
        )
        self._backend = backend
        self._job = job
        self._speaking = trio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            try:
                events = await stack.enter_async_context(self._backend.events(self._job))
                view = await self._backend.job(self._job, range(0))
            except ApiError as error:
                await problem_of(error)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
                nursery.start_soon(self._ping, send)
                await self._tell(send, view, events)
                nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _tell(self, send: Send, view: Json, events: AsyncIterator[JobEvent]) -> None:
        await self._say(send, event_text("snapshot", view))
        if view["state"] in FINAL_STATES:
            await self._say(send, event_text("closed", {"state": view["state"]}))
            return
        buffer, news = EventBuffer(), _News()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_gather, events, buffer, news)
            while not buffer.closed or len(buffer):
                await news.wait()
                if taken := buffer.take():
                    await self._say(send, "".join(event_text(name, facts) for name, facts in taken))
                if not buffer.closed:
                    await trio.sleep(WRITE_S)
            nursery.cancel_scope.cancel()

    async def _ping(self, send: Send) -> None:
        while True:
            await trio.sleep(PING_S)
            await self._say(send, ": still here\n\n")

    async def _say(self, send: Send, text: str) -> None:
        async with self._speaking:
            await send({"type": "http.response.body", "body": text.encode("ascii"), "more_body": True})


def event_text(name: str, facts: Json) -> str:
    """One server-sent event. Asserts a name that cannot break the framing; the data is ASCII JSON on one line."""
    assert name.replace("_", "").isalnum(), name
    return f"event: {name}\ndata: {json.dumps(facts, ensure_ascii=True, separators=(',', ':'))}\n\n"


class _News:
    """Whether there is something new since it was last waited for."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def tell(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


async def _gather(events: AsyncIterator[JobEvent], buffer: EventBuffer, news: _News) -> None:
    # A generator is closed here, not when it is collected as garbage.
    async with aclosing(cast(Any, events)):
        async for event in events:
            buffer.add(event)
            news.tell()
            if buffer.closed:
                return
    buffer.closed = True
    news.tell()


async def _cancel_when_gone(receive: Callable[[], Awaitable[Message]], scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
