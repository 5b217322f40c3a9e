"""The page that a wasm runner and its daemon share: what was printed and told so far, and for how long the run stood
still.

The runner writes what the module prints, the daemon reads it whenever it likes; neither waits for the other, so a text
that is read in the middle of a write may be torn, which a log can bear. The daemon believes nothing of it: sizes are
fixed by the kernel (the page cannot shrink below a reader), and any bytes are a valid page. Imported by the runner:
it needs nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import Final

from nexapod.executor.capture import HEAD_BYTES, TAIL_BYTES, ProgressLines

_COUNT: Final = struct.Struct("<Q")
_NUMBER: Final = struct.Struct("<d")
_TOTAL_AT: Final = 0
_PAUSED_AT: Final = 8
_PROGRESS_AT: Final = 16
_HEAD_AT: Final = 24
_TAIL_AT: Final = _HEAD_AT + HEAD_BYTES
SIZE: Final = _TAIL_AT + TAIL_BYTES
_PRINTED_MAX: Final = 1 << 62
_UNTOLD: Final = -1.0


class Board:
    """The daemon's end. Reads with pread and not through a mapping: nothing that a runner does can fault here."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("nexapod-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, SIZE)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)

    def clear(self) -> None:
        """Before a run: nothing printed, no pause."""
        os.pwrite(self.fd, bytes(SIZE), 0)
        os.pwrite(self.fd, _NUMBER.pack(_UNTOLD), _PROGRESS_AT)

    def progress(self) -> float | None:
        """The progress in the last line that told one; None when there was none."""
        (value,) = _NUMBER.unpack(os.pread(self.fd, _NUMBER.size, _PROGRESS_AT))
        return value if 0.0 <= value <= 1.0 else None

    def printed(self) -> tuple[bytes, bytes, int]:
        """The head and the tail of what was printed, and how many bytes that was in all."""
        page = os.pread(self.fd, SIZE, 0)
        total = min(_COUNT.unpack_from(page, _TOTAL_AT)[0], _PRINTED_MAX)
        head, ring, behind = page[_HEAD_AT:_TAIL_AT], page[_TAIL_AT:], total - HEAD_BYTES
        if behind <= 0:
            return head[:total], b"", total
        if behind <= TAIL_BYTES:
            return head, ring[:behind], total
        cut = behind % TAIL_BYTES
        return head, ring[cut:] + ring[:cut], total

    def set_paused_ns(self, paused_ns: int) -> None:
        """Tell the runner's watchdog how long the run has stood still in all, before it goes on."""
        os.pwrite(self.fd, _COUNT.pack(paused_ns), _PAUSED_AT)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Pen:
    """The runner's end: written without a system call, since modules print in small pieces."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, SIZE)
        self._total = 0
        self._lines = ProgressLines()

    def clear(self) -> None:
        """Before a run. The pause is the daemon's to clear: it may have begun already."""
        self._total = 0
        self._lines = ProgressLines()
        _COUNT.pack_into(self._page, _TOTAL_AT, 0)

    def write_stdout(self, data: bytes) -> None:
        """Progress is told on standard output."""
        told = self._lines.value
        self._lines.write(data)
        if self._lines.value is not None and self._lines.value != told:
            _NUMBER.pack_into(self._page, _PROGRESS_AT, self._lines.value)
        self.write(data)

    def write(self, data: bytes) -> None:
        total, size, page = self._total, len(data), self._page
        self._total = min(total + size, _PRINTED_MAX)
        if total < HEAD_BYTES:
            first = data[: HEAD_BYTES - total]
            page[_HEAD_AT + total : _HEAD_AT + total + len(first)] = first
            data = data[len(first) :]
            total = HEAD_BYTES
        if data:
            behind = total - HEAD_BYTES + max(0, len(data) - TAIL_BYTES)
            self._write_ring(behind % TAIL_BYTES, data[-TAIL_BYTES:])
        _COUNT.pack_into(page, _TOTAL_AT, self._total)

    def paused_ns(self) -> int:
        return int(_COUNT.unpack_from(self._page, _PAUSED_AT)[0])

    def _write_ring(self, at: int, data: bytes) -> None:
        first = data[: TAIL_BYTES - at]
        self._page[_TAIL_AT + at : _TAIL_AT + at + len(first)] = first
        rest = data[len(first) :]
        if rest:
            self._page[_TAIL_AT : _TAIL_AT + len(rest)] = rest
