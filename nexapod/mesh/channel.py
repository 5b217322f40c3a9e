"""The encrypted connection under the multiplexer, with few system calls and little waiting: for speed alone.

As released the library reads a Noise message with two reads of the socket or more, each through five layers, and writes
each by itself. Here the socket is read in large pieces, of which the messages are cut, and several messages are written
at once. The bytes on the wire are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from nexapod.mesh.library import IncompleteReadError, NoiseTransportReadWriter, SecureSession

RECEIVE_BYTES: Final = 256 << 10
PLAIN_MAX: Final = 65519
"""What fits one Noise message."""
_LENGTH_BYTES: Final = 2


class Channel:
    """Stands in for a SecureSession: whatever it does not do itself is left to that."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._noise = session.conn
        self._raw = session.conn.read_writer.read_write_closer
        self._sealed = bytearray()
        self._sealed_at = 0
        # What the negotiation before us has read too much.
        self.plain = bytes(session._drain(None))
        """Decrypted bytes, of which those before `at` have been taken."""
        self.at = 0

    @staticmethod
    def fits(session: Any) -> bool:
        """Whether it is Noise over a raw connection, as our hosts have it."""
        return isinstance(session, SecureSession) and isinstance(session.conn, NoiseTransportReadWriter)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    @property
    def ready(self) -> int:
        """Bytes that can be taken without waiting."""
        return len(self.plain) - self.at

    async def fill(self, count: int) -> None:
        """Wait until so many bytes are ready. Raises IncompleteReadError when the connection ends before, and what the
        raw connection raises.
        """
        while self.ready < count:
            message = self._open_next()
            if message is None:
                await self._receive(count)
            elif self.ready:
                self.plain, self.at = self.plain[self.at :] + message, 0
            else:
                self.plain, self.at = message, 0

    def take(self, count: int) -> bytes:
        """Bytes that are ready."""
        begin, self.at = self.at, self.at + count
        return self.plain[begin : self.at]

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes. Raises as fill."""
        await self.fill(count)
        return self.take(count)

    async def write(self, data: bytes) -> None:
        """Write one frame; it may be longer than a Noise message."""
        await self.write_all(data[at : at + PLAIN_MAX] for at in range(0, len(data), PLAIN_MAX))

    async def write_all(self, messages: Iterable[bytes]) -> None:
        """Write several messages of at most PLAIN_MAX bytes at once."""
        parts: list[bytes] = []
        for message in messages:
            sealed = self._noise.encrypt(message)
            parts += (len(sealed).to_bytes(_LENGTH_BYTES, "big"), sealed)
        await self._raw.write(b"".join(parts))

    def _open_next(self) -> bytes | None:
        """The next message, None when it has not arrived as a whole."""
        sealed, at = self._sealed, self._sealed_at
        begin = at + _LENGTH_BYTES
        if len(sealed) < begin:
            return None
        end = begin + int.from_bytes(sealed[at:begin], "big")
        if len(sealed) < end:
            return None
        self._sealed_at = end
        with memoryview(sealed) as view:
            message: bytes = self._noise.decrypt(bytes(view[begin:end]))
        return message

    async def _receive(self, wanted: int) -> None:
        data = await self._raw.read(RECEIVE_BYTES)
        if not data:
            raise IncompleteReadError("the connection has ended", wanted, self.ready)
        del self._sealed[: self._sealed_at]
        self._sealed_at = 0
        self._sealed += data
