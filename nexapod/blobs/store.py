"""The blobs of this machine: put, read, export, delete. The async face of files.py and partial.py.

Every disk access runs in a worker thread, of which blobs have a few of their own: other users of threads
never wait for a large copy. Knows neither quotas nor who wants which blob: what to keep is decided by the
core and the daemon.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from nexapod.blobs import files
from nexapod.blobs.errors import BlobTooLarge
from nexapod.blobs.files import Layout, Writer
from nexapod.blobs.partial import Partial, saved_list
from nexapod.protocol.limits import BLOB_BYTES_MAX, CHUNK_BYTES
from nexapod.protocol.types import BlobRef

T = TypeVar("T")
THREADS = 4


@dataclass(frozen=True, slots=True)
class BlobStat:
    """What the store holds: whole blobs and their bytes, and the free bytes of its disk."""

    blobs: int
    bytes: int
    disk_free: int


class BlobStore:
    """Immutable bytes named by their hash, in a folder of its own."""

    def __init__(self, root: Path) -> None:
        """Open or create; clears what a crash left. Blocks for a folder scan: call it in a thread, or at
        start.

        Raises BlobError.
        """
        self._layout = Layout(root)
        self._threads = trio.CapacityLimiter(THREADS)
        sizes = [ref.size for ref in self._layout.refs()]
        self._count = len(sizes)
        self._bytes = sum(sizes)

    async def put_bytes(self, data: bytes) -> BlobRef:
        """Store bytes held in memory; on disk when this returns. Raises DiskFull, BlobError."""
        return await self._put(lambda: files.write_blob(self._layout, iter((data,)), BLOB_BYTES_MAX))

    async def put_file(self, path: Path, *, bytes_max: int = BLOB_BYTES_MAX) -> BlobRef:
        """Store a copy of a regular file, in constant memory.

        The last component of `path` is not followed if it is a symbolic link. Raises BlobTooLarge, DiskFull,
        BlobError.
        """
        pieces = files.pieces_of(path, trio.from_thread.check_cancelled)
        return await self._put(lambda: files.write_blob(self._layout, pieces, bytes_max))

    async def put_stream(self, stream: AsyncIterator[bytes], bytes_max: int) -> BlobRef:
        """Store what `stream` yields, in constant memory. Raises BlobTooLarge, DiskFull, BlobError."""
        writer = await self._in_thread(lambda: Writer(self._layout, bytes_max))
        finished = False
        try:
            async with aclosing(_blocks(stream, bytes_max)) as blocks:
                async for block in blocks:
                    await self._in_thread(partial(writer.add, block))
            ref = await self._put(writer.finish)
            finished = True
        finally:
            if not finished:
                # Two system calls: not worth a thread, and so nothing can cancel it.
                writer.abort()
        return ref

    def has(self, ref: BlobRef) -> bool:
        """Whether the whole blob is here. One system call: needs no thread."""
        return self._layout.object(ref).exists()

    def path(self, ref: BlobRef) -> Path:
        """Where the blob lies, if it is here. For reading only: a task must get a copy (export)."""
        return self._layout.object(ref)

    async def read(self, ref: BlobRef, offset: int = 0, length: int = CHUNK_BYTES) -> bytes:
        """Up to `length` bytes from `offset`, fewer at the end. Raises BlobMissing, BlobError."""
        return await self._in_thread(lambda: files.read_object(self._layout, ref, offset, length))

    async def chunk_list(self, ref: BlobRef) -> list[bytes]:
        """The sha2-256 of each chunk. Raises BlobMissing, BlobError."""
        return await self._in_thread(lambda: files.read_list(self._layout, ref))

    async def export(self, ref: BlobRef, dest: Path, *, mode: int = 0o444) -> None:
        """Copy the blob to `dest`, which must not exist, and check every byte of it on the way.

        A copy, never a hard link: a link shares the file with the store, where a task that runs as our
        user, or as root in a container, could change what every later task gets under the same name. Raises
        BlobMissing, BlobCorrupt, DiskFull, BlobError, and leaves no `dest` behind.
        """
        check = trio.from_thread.check_cancelled
        await self._in_thread(lambda: files.export_object(self._layout, ref, dest, mode, check))

    async def verify(self, ref: BlobRef) -> bool:
        """Read the whole blob again; False when it is damaged. Raises BlobMissing, BlobError."""
        check = trio.from_thread.check_cancelled
        return await self._in_thread(lambda: files.check_object(self._layout, ref, check))

    async def touch(self, ref: BlobRef) -> bool:
        """Note that a blob is wanted now (see delete); False when it is not here. Raises BlobError."""
        return await self._in_thread(lambda: files.touch_object(self._layout, ref))

    async def delete(self, ref: BlobRef, *, unused_s: float = 0.0) -> None:
        """Forget a blob and what was fetched of it, if there is any; but not if it was put or touched within the last
        `unused_s` seconds. Raises BlobError.
        """
        if await self._in_thread(lambda: files.delete_object(self._layout, ref, unused_s)):
            self._count -= 1
            self._bytes -= ref.size

    async def unused(self, unused_s: float) -> list[BlobRef]:
        """Whole blobs that nobody has put or touched for so long."""
        return await self._in_thread(lambda: files.unused_objects(self._layout, unused_s))

    async def refs(self) -> list[BlobRef]:
        """Every whole blob, in no particular order."""
        return await self._in_thread(lambda: list(self._layout.refs()))

    async def stat(self) -> BlobStat:
        """How much is here, and how much room is left."""
        disk = await self._in_thread(lambda: os.statvfs(self._layout.root))
        return BlobStat(self._count, self._bytes, disk.f_bavail * disk.f_frsize)

    async def saved_list(self, ref: BlobRef) -> list[bytes] | None:
        """The chunk list left by an interrupted fetch, if there is one. Raises BlobError."""
        return await self._in_thread(lambda: saved_list(self._layout, ref))

    async def open_partial(self, ref: BlobRef, digests: list[bytes]) -> PartialBlob:
        """Begin or resume a fetch. `digests` has been checked against the name. Raises DiskFull, BlobError."""
        check = trio.from_thread.check_cancelled
        return PartialBlob(self, await self._in_thread(lambda: Partial(self._layout, ref, digests, check)))

    async def _put(self, write: Callable[[], tuple[BlobRef, bool]]) -> BlobRef:
        ref, new = await self._in_thread(write)
        if new:
            self._count += 1
            self._bytes += ref.size
        return ref

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


class PartialBlob:
    """A blob being fetched. The caller closes it, whatever happens; what is in it stays for the next time."""

    def __init__(self, store: BlobStore, partial: Partial) -> None:
        self._store = store
        self._partial = partial
        self.present = partial.present
        """The chunks that were here when it was opened."""

    async def write(self, index: int, data: bytes | bytearray) -> bool:
        """Put a chunk in place; False when it is not the one that the list names. Raises DiskFull,
        BlobError.
        """
        return await self._store._in_thread(lambda: self._partial.write(index, data))

    async def finish(self) -> None:
        """Make it a whole blob. Raises DiskFull, BlobError."""
        await self._store._put(self._partial.finish)

    def close(self) -> None:
        """Let go of its files. Needs no thread."""
        self._partial.close()


async def _blocks(stream: AsyncIterator[bytes], bytes_max: int) -> AsyncGenerator[bytes, None]:
    """The stream in blocks of about a chunk: one trip to a thread each, however small its pieces."""
    block = bytearray()
    size = 0
    async for piece in stream:
        size += len(piece)
        if size > bytes_max:
            raise BlobTooLarge(f"more than the {bytes_max} bytes allowed")
        block += piece
        if len(block) >= CHUNK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)
