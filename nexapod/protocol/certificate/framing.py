"""The file of a certificate: envelopes one after another, between a first line and a checksum (docs/protocol.md, 8).

    "NEXAPOD-CERTIFICATE-3\\n", then u32(length) and an envelope each, u32(0), and H of all that precedes

Both directions handle one envelope at a time, so that a certificate of any length takes the memory of one envelope.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

from nexapod.protocol import limits

MAGIC: Final = b"NEXAPOD-CERTIFICATE-3\n"
Read: TypeAlias = Callable[[int], bytes]
"""As a file's `read`: at most so many bytes; none at the end."""


class Damaged(Exception):
    """A certificate's file cannot be read on: says why, for people."""


def framed(envelopes: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a file with these envelopes, in pieces."""
    hashed = hashlib.sha256()
    for piece in _content(envelopes):
        hashed.update(piece)
        yield piece
    yield hashed.digest()


def _content(envelopes: Iterable[bytes]) -> Iterator[bytes]:
    yield MAGIC
    for envelope in envelopes:
        yield len(envelope).to_bytes(4, "big") + envelope
    yield bytes(4)


class FileReader:
    """Reads a certificate's file once. `size`: bytes read so far."""

    def __init__(self, read: Read) -> None:
        self.size = 0
        self._read = read
        self._hashed = hashlib.sha256()

    def envelopes(self) -> Iterator[bytes]:
        """Each envelope in turn; after the last one the checksum is compared. Raises Damaged."""
        if self._some(len(MAGIC)) != MAGIC:
            raise Damaged("this is not a NEXAPod certificate of version 3 (its first line is not that of one)")
        while length := int.from_bytes(self._exactly(4), "big"):
            if length > limits.ENVELOPE_BYTES_MAX:
                raise Damaged(
                    f"the file is damaged: a statement of {length} bytes, where none has more than "
                    f"{limits.ENVELOPE_BYTES_MAX}"
                )
            yield self._exactly(length)
        expected = self._hashed.digest()
        if self._exactly(32) != expected:
            raise Damaged("the file is damaged: its checksum differs")
        if self._some(1):
            raise Damaged("the file goes on after its checksum")

    def _exactly(self, size: int) -> bytes:
        data = self._some(size)
        if len(data) < size:
            raise Damaged(f"the file is cut short after {self.size} bytes")
        return data

    def _some(self, size: int) -> bytes:
        """So many bytes; fewer at the end of the file only."""
        pieces = []
        missing = size
        while missing and (piece := self._read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        data = b"".join(pieces)
        self.size += len(data)
        self._hashed.update(data)
        return data
