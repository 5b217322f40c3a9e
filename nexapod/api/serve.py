"""The API's sockets: a unix socket for the owner, and loopback TCP for holders of the token, served by hypercorn.

Hypercorn's `serve` shields every write, so one client that stops reading would hold up the daemon's end for ever.
This assembles the same parts (its TCPServer per connection) with bounded writes, a bound on connections, and an end.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import structlog
import trio
from h11 import RemoteProtocolError
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from nexapod.api.guard import LoopbackGuard
from nexapod.protocol.errors import LocalError
from nexapod.store.home import short_socket_path

log = structlog.get_logger()

CONNECTIONS_MAX: Final = 128
WRITE_STALLED_S: Final = 30.0
"""A client that takes none of an answer for so long is cut off."""
GRACE_S: Final = 2.0
"""How long answers may go on when the daemon stops."""
BACKLOG: Final = 64
KEEP_ALIVE_S: Final = 30
PROBE_S: Final = 1.0
TOKEN_BYTES: Final = 32
"""The kernel takes 107 bytes; longer paths go by way of a descriptor of their folder."""


# py-libp2p brings outdated stubs of trio along, which lack this name.
Started: TypeAlias = "trio.TaskStatus[list[str]]"  # type: ignore[name-defined, unused-ignore]


class ApiSocketError(LocalError):
    """The API cannot listen. The message says where and why."""


_GONE: Final = (RemoteProtocolError, trio.BrokenResourceError, trio.BusyResourceError)
"""What hypercorn makes of a client that hangs up in the middle of its request: it answers while it closes."""


def _is_gone(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_gone(each) for each in error.exceptions)
    return isinstance(error, _GONE)


def _log_failure(event: str, error: BaseException | None, **facts: str) -> None:
    """A client that hung up is news, anything else a fault of ours."""
    if _is_gone(error):
        log.info("client_gone", error=repr(error), **facts)
    else:
        log.error(event, exc_info=error, **facts)


class _Log:
    """Hypercorn's log calls as events. It logs its own start and each failing request."""

    def __init__(self, config: HypercornConfig) -> None:
        pass

    async def access(self, request: Any, response: Any, request_time: float) -> None:
        log.debug("api_request", method=request.get("method", ""), path=request["path"], ms=int(request_time * 1000))

    async def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        _log_failure("api_request_failed", sys.exception(), reason=message)

    async def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
        log.warning("api_server", reason=message)

    critical = error = warning

    async def debug(self, message: str, *args: Any, **kwargs: Any) -> None:
        log.debug("api_server", reason=message)

    info = debug


class _Stream:
    """A connection whose writes end: the part of trio.SocketStream that hypercorn uses."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket

    async def send_all(self, data: bytes) -> None:
        try:
            with trio.fail_after(WRITE_STALLED_S):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            self.abort()
            raise trio.BrokenResourceError("the client does not read") from None

    async def receive_some(self, size: int) -> bytes:
        return bytes(await self._stream.receive_some(size))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def abort(self) -> None:
        """Close now: whoever reads or writes gets ClosedResourceError."""
        self._stream.socket.close()


class _Connection(TCPServer):  # type: ignore[misc, unused-ignore]
    """Ends with its client: hypercorn alone would keep it, and its place among ours, until its idle time is over."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


class _Server:
    """The connections of all listeners, and how they end."""

    def __init__(self) -> None:
        self._context = WorkerContext(None)
        self._config = HypercornConfig()
        self._config.logger_class = _Log
        self._config.include_server_header = False
        self._config.keep_alive_timeout = KEEP_ALIVE_S
        self._open: set[_Stream] = set()
        self._empty = trio.Event()

    async def accept(self, app: Any, stream: trio.SocketStream) -> None:
        """Serve one connection to its end."""
        if len(self._open) >= CONNECTIONS_MAX:
            log.warning("api_connections_full", limit=CONNECTIONS_MAX)
            await stream.aclose()
            return
        bounded = _Stream(stream)
        self._open.add(bounded)
        try:
            await _Connection(app, self._config, self._context, ConnectionState({}), bounded)
        except Exception as error:
            # A client must not be able to end the daemon, whatever it makes hypercorn raise.
            _log_failure("api_connection_failed", error)
        finally:
            bounded.abort()
            self._open.discard(bounded)
            if not self._open:
                self._empty.set()

    async def finish(self) -> None:
        """Idle connections close now, the others within GRACE_S."""
        await self._context.terminated.set()
        self._empty = trio.Event()
        with trio.move_on_after(GRACE_S):
            if self._open:
                await self._empty.wait()

    async def abort_when_cancelled(self) -> None:
        """Close every connection at the end: a write that hypercorn shields from cancellation ends too."""
        try:
            await trio.sleep_forever()
        finally:
            for stream in list(self._open):
                stream.abort()


async def serve(
    app: ASGIApp,
    socket_path: Path,
    *,
    tcp: tuple[str, int] | None = None,
    token: str = "",
    shutdown: trio.Event | None = None,
    task_status: Started = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set (answers may end within GRACE_S) or until cancelled (everything ends at once).

    Starts with the list of places where it listens, e.g. ["/home/me/api.sock", "127.0.0.1:8747"]. The socket's file
    is made for its owner only and removed at the end. Raises ApiSocketError.
    """
    shutdown = trio.Event() if shutdown is None else shutdown
    listeners: list[tuple[trio.SocketListener, Any]] = []
    places = [str(socket_path)]
    unix = bind_unix(socket_path)
    identity = _identity(socket_path)
    try:
        listeners.append((_listener(unix), _wrapped(app)))
        if tcp is not None:
            bound = _bind_tcp(*tcp)
            places.append("{}:{}".format(*bound.getsockname()[:2]))
            listeners.append((_listener(bound), _wrapped(LoopbackGuard(app, token))))
        await _serve(listeners, places, shutdown, task_status)
    finally:
        for listener, _ in listeners:
            listener.socket.close()
        unix.close()
        # Another daemon may have put its own there since; that one stays.
        if _identity(socket_path) == identity:
            os.unlink(socket_path)


async def _serve(
    listeners: list[tuple[trio.SocketListener, Any]],
    places: list[str],
    shutdown: trio.Event,
    task_status: Started,
) -> None:
    server = _Server()
    async with trio.open_nursery() as connections:
        connections.start_soon(server.abort_when_cancelled)
        async with trio.open_nursery() as accepting:
            for listener, app in listeners:
                handler = partial(server.accept, app)
                accepting.start_soon(partial(trio.serve_listeners, handler, [listener], handler_nursery=connections))
            task_status.started(places)
            await shutdown.wait()
            accepting.cancel_scope.cancel()
        await server.finish()
        connections.cancel_scope.cancel()


def _wrapped(app: ASGIApp) -> Any:
    return wrap_app(app, 0, "asgi")


def _listener(bound: socket.socket) -> trio.SocketListener:
    bound.listen(BACKLOG)
    return trio.SocketListener(trio.socket.from_stdlib_socket(bound))


# --- sockets and the token -----------------------------------------------------------------------------------------
def bind_unix(path: Path) -> socket.socket:
    """A unix socket at `path` that only its owner may open; a stale one is replaced. Raises ApiSocketError.

    The caller holds the lock of the home folder, so a socket that nobody answers is left from a daemon that died.
    """
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # The mask is the process's, but nothing else runs between these two lines: this is one synchronous step.
    old = os.umask(0o177)
    try:
        with short_socket_path(path) as short:
            bound.bind(short)
    except OSError as error:
        bound.close()
        raise ApiSocketError(f"{path}: the API cannot listen there ({error.strerror or error})") from error
    finally:
        os.umask(old)
    bound.setblocking(False)
    return bound


def _remove_stale(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ApiSocketError(f"{path}: something that is not a socket lies there; move it away")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe,
        short_socket_path(path) as short,
    ):
        probe.settimeout(PROBE_S)
        try:
            probe.connect(short)
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ApiSocketError(f"{path}: it cannot be tried ({error.strerror or error})") from error
    raise ApiSocketError(f"{path}: another daemon answers there; stop it, or choose another home folder")


def _bind_tcp(host: str, port: int) -> socket.socket:
    assert host in ("127.0.0.1", "::1"), host
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ApiSocketError(f"{host}:{port}: the API cannot listen there ({error.strerror})") from error
    bound.setblocking(False)
    return bound


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def load_or_create_token(path: Path) -> str:
    """The token of the TCP listener, in a file for its owner only. Raises ApiSocketError."""
    try:
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ApiSocketError(f"{path}: others may read the token; delete the file, a new one is made")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ApiSocketError(f"{path}: the token cannot be read or made ({error})") from error
    if len(token) < TOKEN_BYTES:
        raise ApiSocketError(f"{path}: the token is too short; delete the file, a new one is made")
    return token
