"""The names that the whole mesh speaks of: peers, digests, jobs, tasks, blobs and their parts. Frozen, no more.

What other peers send is checked in wire/, before it becomes one of these.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NewType, TypeAlias

import base58

from nexapod.protocol import limits
from nexapod.protocol.limits import CHUNK_BYTES

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58 (`12D3KooW...`): the Ed25519 public key is inside it."""
Digest = NewType("Digest", bytes)
"""A sha2-256: 32 bytes."""
JobId = NewType("JobId", bytes)
"""The statement id of the signed job: 32 bytes, shown as hex."""
StatementId = NewType("StatementId", bytes)
Millis: TypeAlias = int
"""Monotonic milliseconds."""

ExecutorName: TypeAlias = Literal["wasm", "docker"]

_PEER_ID_PREFIX = bytes.fromhex("002408011220")
"""identity multihash of a libp2p Ed25519 public key protobuf: what precedes the 32 bytes of the key."""


@lru_cache(maxsize=65_536)
def peer_id_of_key(public_key: bytes) -> PeerId:
    """The libp2p peer id of a 32-byte Ed25519 public key."""
    assert len(public_key) == 32
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key).decode("ascii"))


@lru_cache(maxsize=65_536)
def key_of_peer_id(peer: PeerId) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id. Raises ValueError when it holds none."""
    raw = base58.b58decode(peer)
    if len(raw) != 38 or not raw.startswith(_PEER_ID_PREFIX):
        raise ValueError("not the peer id of an Ed25519 key")
    return raw[6:]


@lru_cache(maxsize=65_536)
def kad_key(peer: PeerId) -> int:
    """Where a peer stands in the XOR key space: sha2-256 of its id's bytes, as libp2p's Kademlia has it."""
    return int.from_bytes(hashlib.sha256(_PEER_ID_PREFIX + key_of_peer_id(peer)).digest(), "big")


@dataclass(frozen=True, slots=True, order=True)
class TaskId:
    """One unit of a job."""

    job: JobId
    index: int

    @property
    def shard(self) -> int:
        return self.index // limits.SHARD_TASKS

    def __str__(self) -> str:
        return f"{self.job.hex()[:12]}/{self.index}"


@dataclass(frozen=True, slots=True, order=True)
class BlobRef:
    """The name of immutable bytes.

    Up to one chunk (1 MiB) `digest` is sha2-256 of the bytes, as `sha256sum` prints it. Beyond, it is sha2-256 of
    b"nexapod/blob\\0" followed by the sha2-256 of each chunk: so every chunk can be checked as it arrives. `size`
    tells which of the two, which is why it is part of the name.
    """

    digest: Digest
    size: int

    @property
    def chunks(self) -> int:
        return max(1, -(-self.size // CHUNK_BYTES))

    def __str__(self) -> str:
        return f"{self.digest.hex()}:{self.size}"

    @classmethod
    def parse(cls, text: str) -> BlobRef:
        """The inverse of str(). Raises ValueError."""
        digest, _, size = text.partition(":")
        raw = bytes.fromhex(digest)
        if len(raw) != 32 or not size.isascii() or not size.isdigit() or len(size) > 15:
            raise ValueError("a blob is named <64 hex digits>:<size>")
        return cls(Digest(raw), int(size))


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Consecutive chunks of a blob: what is fetched and held of one that is too large to be held whole by everybody."""

    blob: BlobRef
    first: int
    count: int

    @classmethod
    def whole(cls, blob: BlobRef) -> Part:
        return cls(blob, 0, blob.chunks)

    @classmethod
    def covering(cls, blob: BlobRef, offset: int, length: int) -> Part:
        """The chunks that hold these bytes: at least one."""
        first = min(offset // CHUNK_BYTES, blob.chunks - 1)
        last = min(max(offset, offset + length - 1) // CHUNK_BYTES, blob.chunks - 1)
        return cls(blob, first, last - first + 1)

    @property
    def is_whole(self) -> bool:
        return self.count == self.blob.chunks

    @property
    def chunks(self) -> range:
        return range(self.first, self.first + self.count)

    @property
    def size(self) -> int:
        """Bytes."""
        return min(self.blob.size, (self.first + self.count) * CHUNK_BYTES) - self.first * CHUNK_BYTES


def blob_root(chunk_digests: list[bytes]) -> Digest:
    """The digest that names a blob of these chunks (see BlobRef)."""
    if len(chunk_digests) == 1:
        return Digest(chunk_digests[0])
    return Digest(hashlib.sha256(b"nexapod/blob\0" + b"".join(chunk_digests)).digest())


def blob_of(data: bytes) -> BlobRef:
    """Name bytes held in memory."""
    size = CHUNK_BYTES
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    return BlobRef(blob_root([hashlib.sha256(piece).digest() for piece in pieces]), len(data))


@dataclass(frozen=True, slots=True)
class File:
    """A blob at a relative POSIX path: an input, an output."""

    path: str
    blob: BlobRef
