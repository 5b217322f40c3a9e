"""The CLI's side of the HTTP API: the standard library's client over the daemon's unix socket.

Turns every failure into a CliError. Loads no framework, so that a command answers at once.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any, Final

from nexapod.cli.errors import CliError, ConnectionLost, DaemonFailed, NothingThere, Refused, Unreachable
from nexapod.cli.safe import safe
from nexapod.protocol.primitives import BlobRef
from nexapod.store.home import short_socket_path

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 60.0
EVENT_TIMEOUT_S: Final = 45.0
"""Three times as long as a silent stream's pings are apart."""
ANSWER_BYTES_MAX: Final = 512 << 20
EVENT_BYTES_MAX: Final = 4 << 20
PIECE_BYTES: Final = 256 << 10
TASKS_PER_PAGE: Final = 1_000


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("nexapod", timeout=ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(CONNECT_TIMEOUT_S)
        with short_socket_path(self._path) as short:
            self.sock.connect(short)
        self.sock.settimeout(self.timeout)


class Client:
    """The daemon behind a socket."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    # --- one question, one answer --------------------------------------------------------------------------------
    def get(self, path: str) -> Any:
        """The JSON at a path. Raises CliError."""
        return self._json("GET", path, None)

    def post(self, path: str, body: object = None, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """Raises CliError."""
        data = b"" if body is None else json.dumps(body).encode("ascii")
        return self._json("POST", path, data, {"content-type": "application/json"}, timeout_s)

    def get_bytes(self, path: str) -> bytes:
        """The bytes at a path. Raises CliError."""
        with self._answer("GET", path, None) as answer:
            return _read_all(answer)

    def has_blob(self, ref: BlobRef) -> bool:
        """Whether the daemon holds the blob. Raises CliError."""
        try:
            with self._answer("HEAD", f"/v1/blobs/{ref}", None):
                return True
        except NothingThere:
            return False

    def pages(self, path: str, of: Callable[[Any], list[Any]], tasks: int) -> Iterator[Any]:
        """What `of` takes from each page of an answer about the tasks of a job."""
        for first in range(0, tasks, TASKS_PER_PAGE):
            yield from of(self.get(f"{path}?first={first}&count={TASKS_PER_PAGE}"))

    # --- streams -------------------------------------------------------------------------------------------------
    def upload(self, source: IO[bytes], size: int, told: Callable[[int], None]) -> BlobRef:
        """Send `size` bytes; `told` hears of each piece. Raises CliError."""
        return BlobRef.parse(self.send("/v1/blobs", source, size, told)["ref"])

    def send(
        self, path: str, source: IO[bytes], size: int, told: Callable[[int], None], timeout_s: float = ANSWER_TIMEOUT_S
    ) -> Any:
        """Send `size` bytes to a path; what is answered. Raises CliError."""
        headers = {"content-length": str(size), "content-type": "application/octet-stream"}
        return self._json("POST", path, _pieces(source, size, told), headers, timeout_s)

    def download(self, ref: BlobRef, offset: int) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on. Raises CliError; a short stream is for the caller to notice."""
        return self.stream(f"/v1/blobs/{ref}?offset={offset}")

    def stream(self, path: str) -> Iterator[bytes]:
        """The bytes at a path, in pieces. Raises CliError, also when they end too early and their number is unknown."""
        with self._answer("GET", path, None) as answer, _translated(self.socket_path):
            while piece := answer.read(PIECE_BYTES):
                yield piece

    def events(self, job: str, timeout_s: float = EVENT_TIMEOUT_S) -> Generator[tuple[str, Any], None, None]:
        """A job's events as they come. Ends with the stream. Raises CliError; ConnectionLost after a silence."""
        path = f"/v1/jobs/{job}/events"
        with self._answer("GET", path, None, timeout_s=timeout_s) as answer, _translated(self.socket_path):
            yield from _parsed(answer)

    # --- how it is done ------------------------------------------------------------------------------------------
    def _json(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None,
        headers: dict[str, str] | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        with self._answer(method, path, body, headers, timeout_s) as answer:
            data = _read_all(answer)
        try:
            return json.loads(data)
        except ValueError:
            raise DaemonFailed("the daemon's answer is not JSON") from None

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None,
        headers: dict[str, str] | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Iterator[HTTPResponse]:
        connection = _UnixConnection(self.socket_path)
        connection.timeout = timeout_s
        try:
            with _translated(self.socket_path):
                try:
                    connection.request(method, path, body=body, headers=headers or {})
                except BrokenPipeError:
                    if connection.sock is None:
                        raise
                    # The daemon refused before it had read all; its answer, if it gave one, says why.
                answer = connection.getresponse()
            if answer.status >= 400:
                raise _error_of(answer)
            yield answer
        finally:
            connection.close()


def _pieces(source: IO[bytes], size: int, told: Callable[[int], None]) -> Iterator[bytes]:
    left = size
    while left and (piece := source.read(min(PIECE_BYTES, left))):
        yield piece
        left -= len(piece)
        told(len(piece))


def _read_all(answer: HTTPResponse) -> bytes:
    with _translated(None):
        data = answer.read(ANSWER_BYTES_MAX + 1)
    if len(data) > ANSWER_BYTES_MAX:
        raise DaemonFailed(f"the daemon's answer is longer than {ANSWER_BYTES_MAX} bytes")
    return data


@contextmanager
def _translated(path: Path | None) -> Iterator[None]:
    """Failures of the connection, in a person's words."""
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
        raise Unreachable(f"no daemon answers at {path}: {error.strerror}") from None
    except PermissionError as error:
        raise Unreachable(f"the daemon's socket {path} cannot be opened: {error.strerror}") from None
    except TimeoutError:
        raise ConnectionLost("the daemon does not answer in time") from None
    except (OSError, HTTPException) as error:
        raise ConnectionLost(f"the connection to the daemon broke: {safe(error) or type(error).__name__}") from None


def _error_of(answer: HTTPResponse) -> CliError:
    """The problem (RFC 9457) in an answer, as the CliError of its kind."""
    try:
        body = json.loads(_read_all(answer) or b"{}")
        detail, remedy = str(body.get("detail", "")), str(body.get("remedy", ""))
    except (ValueError, AttributeError):
        detail, remedy = "", ""
    facts = detail or f"the daemon answered {answer.status} {safe(answer.reason)}"
    if answer.status == 404:
        return NothingThere(facts, remedy)
    if answer.status < 500:
        return Refused(facts, remedy)
    return DaemonFailed(facts, remedy)


def _parsed(answer: HTTPResponse) -> Iterator[tuple[str, Any]]:
    """Server-sent events: `event:` and one line of `data:`, ended by an empty line; comments are pings."""
    name = data = ""
    while line := answer.readline(EVENT_BYTES_MAX):
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        key, _, value = text.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            data = value
        elif not text and name:
            try:
                facts = json.loads(data)
            except ValueError:
                raise DaemonFailed("the daemon sent an event that is not JSON") from None
            yield name, facts
            name = data = ""
