"""What a task printed, bounded and harmless: the head and the tail of a stream, the progress in it, and its escaping.

A task tells its progress by a whole line `NEXAPOD_PROGRESS=0.42` on its standard output, or by the file that watch.py
reads. Imported by the wasm runner too, so it needs nothing but builtins. Does not know where the bytes come from.
"""

from __future__ import annotations

import math

from nexapod.protocol.limits import LOG_TAIL_MAX, TEXT_MAX

_GAP = "\n[... {} bytes left out ...]\n"
HEAD_BYTES = LOG_TAIL_MAX // 4
TAIL_BYTES = LOG_TAIL_MAX
PROGRESS_PREFIX = b"NEXAPOD_PROGRESS="
PROGRESS_BYTES_MAX = 64
"""Of a number, in a line or in the file."""
TAIL_SHOWN_BYTES = LOG_TAIL_MAX - HEAD_BYTES - len(_GAP.format(1 << 64))


class Capture:
    """Keeps the first HEAD_BYTES and the last TAIL_BYTES of what is written, in constant memory."""

    __slots__ = ("_tail", "head", "total")

    def __init__(self) -> None:
        self.head = b""
        self.total = 0
        self._tail = bytearray()

    @classmethod
    def restored(cls, head: bytes, tail: bytes, total: int) -> Capture:
        """As one that kept these: for a stream that an earlier process began to read."""
        capture = cls()
        capture.head, capture._tail, capture.total = head[:HEAD_BYTES], bytearray(tail[-TAIL_BYTES:]), total
        return capture

    def write(self, data: bytes) -> None:
        room = HEAD_BYTES - len(self.head)
        self.total += len(data)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        if data:
            self._tail += data[-TAIL_BYTES:]
            if len(self._tail) > 4 * TAIL_BYTES:
                del self._tail[:-TAIL_BYTES]

    @property
    def tail(self) -> bytes:
        return bytes(self._tail[-TAIL_BYTES:])


class ProgressLines:
    """Finds the progress in a stream of output, in constant memory: the number in the last line that tells one."""

    __slots__ = ("_open", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self._open = b""
        """The beginning of a line whose end has not come yet: enough of it to see whether it is too long."""

    def write(self, data: bytes) -> None:
        whole, newline, rest = (self._open + data).rpartition(b"\n")
        self._open = rest[: len(PROGRESS_PREFIX) + PROGRESS_BYTES_MAX + 1]
        if newline and PROGRESS_PREFIX in whole:
            told = [_progress_of_line(line) for line in whole.split(b"\n")]
            self.value = next((number for number in reversed(told) if number is not None), self.value)


def progress_of(raw: bytes) -> float | None:
    """The number from 0 to 1 that a task wrote, clamped; None when it is no number."""
    if len(raw) > PROGRESS_BYTES_MAX:
        return None
    try:
        value = float(raw)
    except ValueError:
        return None
    return min(1.0, max(0.0, value)) if math.isfinite(value) else None


def _progress_of_line(line: bytes) -> float | None:
    return progress_of(line[len(PROGRESS_PREFIX) :]) if line.startswith(PROGRESS_PREFIX) else None


def render(head: bytes, tail: bytes, total: int) -> str:
    """At most LOG_TAIL_MAX bytes of text: all of it when it fits, else its head, a gap mark and its tail.

    `total` is how many bytes were printed; what is in neither `head` nor `tail` counts as left out.
    """
    complete = total <= len(head) + len(tail)
    first, last = (escape(head + tail),) * 2 if complete else (escape(head), escape(tail))
    if complete and len(first.encode()) <= LOG_TAIL_MAX:
        return first
    first = _clip_end(first, HEAD_BYTES)
    lost = len(last.encode()) - TAIL_SHOWN_BYTES if complete else total - len(head) - len(tail)
    return first + _GAP.format(max(1, lost)) + _clip_start(last, TAIL_SHOWN_BYTES)


def escape(data: bytes) -> str:
    """Text that is safe in a terminal, a log and JSON: whatever is not printable, newline or tab as \\xNN."""
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def reason_text(text: str) -> str:
    """One line of at most TEXT_MAX bytes, escaped."""
    line = escape(" ".join(text.split()).encode("utf-8", "surrogatepass"))
    return _clip_end(line, TEXT_MAX)


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _clip_end(text: str, bytes_max: int) -> str:
    return text.encode()[: max(0, bytes_max)].decode("utf-8", "ignore")


def _clip_start(text: str, bytes_max: int) -> str:
    raw = text.encode()
    return raw[max(0, len(raw) - bytes_max) :].decode("utf-8", "ignore")
