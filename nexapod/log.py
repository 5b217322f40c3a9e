"""Structured logs to stderr: a console for people, JSON lines for machines; and the word to systemd.

Responsible for that no string from another peer can forge a line, drive a terminal or carry a secret into a log. Does
not know what is logged.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import MutableMapping
from typing import IO, Any, Final, Literal, TypeAlias

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat: TypeAlias = Literal["auto", "console", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

VALUE_MAX: Final = 2_000
"""Characters of one value: what is longer is cut, and says so."""
DEPTH_MAX: Final = 4
ITEMS_MAX: Final = 64
_SECRET_KEYS: Final = frozenset({"token", "authorization", "seed", "secret", "private_key", "password", "salt"})
_NOTIFY_TIMEOUT_S: Final = 1.0


def escape(text: str) -> str:
    """The text on one line, with everything that a terminal could obey written out as \\x1b, \\n, \\u202e..."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def make_safe(logger: WrappedLogger, name: str, event_dict: EventDict) -> EventDict:
    """structlog processor: escapes and bounds every value, and leaves out secrets."""
    return {
        escape(str(key)): _indented(value) if key == "exception" else _safe(key, value)
        for key, value in event_dict.items()
    }


def _safe(key: object, value: object, depth: int = 0) -> Any:
    if isinstance(key, str) and key.lower() in _SECRET_KEYS:
        return "[redacted]"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _cut(bytes(value[: VALUE_MAX // 2 + 1]).hex())
    if depth < DEPTH_MAX and isinstance(value, MutableMapping):
        pairs = list(value.items())[:ITEMS_MAX]
        return {escape(str(k)): _safe(k, v, depth + 1) for k, v in pairs}
    if depth < DEPTH_MAX and isinstance(value, (list, tuple, set, frozenset)):
        return [_safe("", item, depth + 1) for item in list(value)[:ITEMS_MAX]]
    return _cut(escape(str(value)))


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_MAX else f"{text[:VALUE_MAX]}... ({len(text)} characters)"


def _indented(trace: object) -> str:
    """A traceback stays on many lines, but each is marked as its part: a message inside it forges nothing."""
    return "\n".join(f"  | {escape(line)}" for line in str(trace).split("\n"))


class _Sink:
    """What structlog writes to. A reader of stderr that went away must not end the daemon: lines are counted."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.lost = 0

    def msg(self, message: str) -> None:
        try:
            self._stream.write(message + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a broken pipe, a full disk, a closed file: nowhere is left to say so
            self.lost += 1

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


class _FromStdlib(logging.Handler):
    """Brings the log records of libraries into the same stream, as the event `library_log`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a library's format string that does not fit its arguments
            message = str(record.msg)
        structlog.get_logger().log(
            record.levelno, "library_log", library=record.name, message=message, exc_info=record.exc_info
        )


def setup_logging(level: LogLevel = "info", format: LogFormat = "auto", *, stream: IO[str] | None = None) -> None:
    """Send this process's logs to `stream` (stderr): for a console when it is a terminal, else as JSON lines.

    Records of libraries appear from `warning` on, and all of them at level `debug`.
    """
    target = sys.stderr if stream is None else stream
    console = format == "console" or (format == "auto" and target.isatty())
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=_processors(console, colours=target.isatty()),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Sink(target),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_FromStdlib()]
    root.setLevel(number if level == "debug" else max(number, logging.WARNING))


def _processors(console: bool, *, colours: bool) -> list[Processor]:
    last: Processor = (
        structlog.dev.ConsoleRenderer(colors=colours)
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=True)
    )
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        make_safe,
        last,
    ]


def sd_notify(message: str) -> bool:
    """Tell systemd, when it started us, e.g. "READY=1". False when there is nobody to tell, or it did not hear."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(_NOTIFY_TIMEOUT_S)
            channel.sendto(message.encode("utf-8"), name)
    except OSError as error:
        structlog.get_logger().warning("sd_notify_failed", error=str(error))
        return False
    return True
