"""The frames of the bulk channel, on which blobs travel. Decoding is total: any bytes give a frame or
PeerError.

A frame is a msgpack array that begins with its one-letter kind and the asker's number of the question:

    l id digest size first      send the chunk list from chunk `first` on, as much as fits a frame
    L id data                   digests, 32 bytes each
    c id digest size chunk      send one chunk
    C id offset data            a piece of it, in order
    n id                        not here
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from nexapod.protocol.errors import PeerError
from nexapod.protocol.limits import BLOB_BYTES_MAX, CHUNK_BYTES, FRAME_BYTES_MAX
from nexapod.protocol.primitives import BlobRef, Digest
from nexapod.protocol.wire import fields

FRAMING_BYTES = 64
PIECE_BYTES = 240 * 1024
"""Data in one frame."""
LIST_PIECE_DIGESTS = PIECE_BYTES // 32
ID_MAX = (1 << 63) - 1
assert PIECE_BYTES + FRAMING_BYTES <= FRAME_BYTES_MAX


@dataclass(frozen=True, slots=True)
class AskList:
    id: int
    ref: BlobRef
    first: int


@dataclass(frozen=True, slots=True)
class AskChunk:
    id: int
    ref: BlobRef
    chunk: int


@dataclass(frozen=True, slots=True)
class ListPart:
    id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ChunkPart:
    id: int
    offset: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class NotHere:
    id: int


Question: TypeAlias = AskList | AskChunk
Answer: TypeAlias = ListPart | ChunkPart | NotHere
Frame: TypeAlias = Question | Answer

_ID = fields.integer(0, ID_MAX)
_DIGEST = fields.binary(32)
_SIZE = fields.integer(0, BLOB_BYTES_MAX)
_CHUNK = fields.integer(0, BLOB_BYTES_MAX // CHUNK_BYTES)
_OFFSET = fields.integer(0, CHUNK_BYTES)
_DATA = fields.binary(1, PIECE_BYTES)


def encode(frame: Frame) -> bytes:
    """The bytes of a frame, at most FRAME_BYTES_MAX."""
    match frame:
        case AskList(id, ref, first):
            return fields.pack(["l", id, ref.digest, ref.size, first])
        case AskChunk(id, ref, chunk):
            return fields.pack(["c", id, ref.digest, ref.size, chunk])
        case ListPart(id, data):
            return fields.pack(["L", id, data])
        case ChunkPart(id, offset, data):
            return fields.pack(["C", id, offset, data])
        case NotHere(id):
            return fields.pack(["n", id])


def decode(data: bytes) -> Frame:
    """Raises PeerError on anything that is not a frame, never another error."""
    raw = fields.unpack(data, FRAME_BYTES_MAX)
    if type(raw) is not list or len(raw) < 2 or type(raw[0]) is not str:
        raise PeerError("bulk-frame", "not an array that begins with a kind")
    form = _FIELDS.get(raw[0])
    if form is None or len(raw) != form[0]:
        raise PeerError("bulk-frame", "unknown kind or wrong number of fields")
    return form[1](raw)


def _ref(raw: list[Any]) -> BlobRef:
    return BlobRef(Digest(_DIGEST.decode(raw[2])), _SIZE.decode(raw[3]))


def _place(raw: list[Any], ref: BlobRef) -> int:
    index = _CHUNK.decode(raw[4])
    if index >= ref.chunks:
        raise PeerError("bulk-frame", "no such chunk")
    return index


def _ask_list(raw: list[Any]) -> Frame:
    ref = _ref(raw)
    return AskList(_ID.decode(raw[1]), ref, _place(raw, ref))


def _ask_chunk(raw: list[Any]) -> Frame:
    ref = _ref(raw)
    return AskChunk(_ID.decode(raw[1]), ref, _place(raw, ref))


def _list_part(raw: list[Any]) -> Frame:
    return ListPart(_ID.decode(raw[1]), _DATA.decode(raw[2]))


def _chunk_part(raw: list[Any]) -> Frame:
    return ChunkPart(_ID.decode(raw[1]), _OFFSET.decode(raw[2]), _DATA.decode(raw[3]))


def _not_here(raw: list[Any]) -> Frame:
    return NotHere(_ID.decode(raw[1]))


_FIELDS: dict[str, tuple[int, Callable[[list[Any]], Frame]]] = {
    "l": (5, _ask_list),
    "c": (5, _ask_chunk),
    "L": (3, _list_part),
    "C": (4, _chunk_part),
    "n": (2, _not_here),
}
