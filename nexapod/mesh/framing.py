"""Frames on a byte stream: four bytes of length, big-endian, then that many bytes. Pure."""

from __future__ import annotations

from nexapod.protocol.errors import LocalError, PeerError
from nexapod.protocol.limits import FRAME_BYTES_MAX

_LENGTH_BYTES = 4


def encode_frame(frame: bytes) -> bytes:
    """Raises LocalError for a frame that no peer would take."""
    if not 0 < len(frame) <= FRAME_BYTES_MAX:
        raise LocalError(f"a frame holds 1 to {FRAME_BYTES_MAX} bytes, not {len(frame)}")
    return len(frame).to_bytes(_LENGTH_BYTES, "big") + frame


class FrameBuffer:
    """Bytes as they arrive, frames as they are whole. Holds less than one frame between calls to `feed`."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._wanted = _LENGTH_BYTES
        """Bytes from the beginning of what is held that complete the next step: a length, or a frame."""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes. Raises PeerError as soon as a length is out of bounds."""
        self._parts.append(data)
        self._size += len(data)
        frames: list[bytes] = []
        if self._size < self._wanted:
            return frames
        held = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        at = 0
        while len(held) - at >= _LENGTH_BYTES:
            length = int.from_bytes(held[at : at + _LENGTH_BYTES], "big")
            if not 0 < length <= FRAME_BYTES_MAX:
                raise PeerError("frame-length", str(length), penalty=50)
            self._wanted = _LENGTH_BYTES + length
            if at + self._wanted > len(held):
                break
            frames.append(held[at + _LENGTH_BYTES : at + self._wanted])
            at += self._wanted
            self._wanted = _LENGTH_BYTES
        rest = held[at:]
        self._parts = [rest] if rest else []
        self._size = len(rest)
        return frames
