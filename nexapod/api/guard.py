"""Who may speak to the API, and how much: the ASGI layers around the application.

The unix socket needs no token: its file belongs to the owner alone. On loopback TCP any process and any web page of
this machine could try, so each request carries the token, and must have been meant for this address (DNS rebinding).
"""

from __future__ import annotations

import hmac
import re
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nexapod.api.answers import problem, problem_of
from nexapod.api.backend import TooLarge

JSON_BODY_MAX: Final = 1 << 20
_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?\Z")


class BodyLimit:
    """Refuses request bodies over JSON_BODY_MAX, whether announced or not; uploads bound themselves."""

    def __init__(self, app: ASGIApp, upload_paths: frozenset[str]) -> None:
        self._app = app
        self._upload_paths = upload_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._upload_paths:
            await self._app(scope, receive, send)
            return
        error = TooLarge(f"a request body of more than {JSON_BODY_MAX} bytes", "upload data as blobs")
        announced = _header(scope, b"content-length")
        if announced.isdigit() and int(announced[:16]) > JSON_BODY_MAX:
            await problem_of(error)(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            await problem_of(error)(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None when it is too long. One cut off by the client is what it is: its JSON will not parse."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > JSON_BODY_MAX:
            return None
    return bytes(body)


class LoopbackGuard:
    """Lets through what carries the token and names this machine as host; no web page's request does both."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        assert len(token) >= 32
        self._app = app
        self._expected = f"Bearer {token}".encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if not _HOST.match(_header(scope, b"host")):
            refusal = problem(
                421, "wrong-host", "Not this host's name", "the Host header names another host", "ask 127.0.0.1"
            )
        elif _header(scope, b"origin"):
            refusal = problem(
                403, "cross-origin", "Not allowed", "web pages may not use this API", "use the CLI, or a program"
            )
        elif not hmac.compare_digest(_header(scope, b"authorization").encode("latin-1"), self._expected):
            remedy = "send 'Authorization: Bearer ' and what the file `token` in the home folder holds"
            refusal = problem(401, "no-token", "Not allowed", "the token is missing or wrong", remedy)
        else:
            await self._app(scope, receive, send)
            return
        await refusal(scope, receive, send)


def _header(scope: Scope, name: bytes) -> str:
    values = [value for key, value in scope["headers"] if key.lower() == name]
    return values[0].decode("latin-1") if len(values) == 1 else ("" if not values else "\0several")
