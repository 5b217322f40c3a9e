"""The names of files' bytes (see types.BlobRef), in constant memory, hashed beside whatever else is done with them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, blob_root

AHEAD_MAX: Final = 4
"""Chunks that wait to be hashed: more would only take memory."""


class ChunkHash:
    """Names a blob whose chunks are added in order. Hashing leaves the interpreter free for who adds them."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._ahead: deque[Future[bytes]] = deque()
        self._digests: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> None:
        """CHUNK_BYTES each, but for the last."""
        assert self._size % CHUNK_BYTES == 0
        self._size += len(chunk)
        self._ahead.append(self._pool.submit(_sha256, chunk))
        if len(self._ahead) > AHEAD_MAX:
            self._digests.append(self._ahead.popleft().result())

    @property
    def ref(self) -> BlobRef:
        digests = [*self._digests, *(future.result() for future in self._ahead)]
        return BlobRef(blob_root(digests or [_sha256(b"")]), self._size)


@contextmanager
def chunk_hash() -> Iterator[ChunkHash]:
    with ThreadPoolExecutor(1) as pool:
        yield ChunkHash(pool)


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """A file in pieces of CHUNK_BYTES, the last with what is left. Raises OSError."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def hash_file(path: Path, told: Callable[[int], None] = lambda count: None) -> BlobRef:
    """The name of a file's bytes; `told` hears of each chunk read. Raises OSError."""
    with chunk_hash() as found, path.open("rb") as file:
        for chunk in chunks(file):
            found.add(chunk)
            told(len(chunk))
        return found.ref


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
