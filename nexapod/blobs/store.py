"""The blobs of this machine: put, read, export, pin, check, evict. The async face of the blocking modules beside it.

Every disk access runs in a worker thread, of which blobs have a few of their own: other users of threads
never wait for a large copy. Keeps within its quota by deleting what was used least recently; what must not go
is told to it (`held`) or pinned. Does not know who wants which blob and why.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import structlog
import trio

from nexapod.blobs import evicting, files, mending, reading
from nexapod.blobs.errors import BlobCorrupt, BlobError, BlobMissing, BlobTooLarge
from nexapod.blobs.files import Layout, Writer
from nexapod.blobs.partial import Partial, load_partials
from nexapod.blobs.pins import Pins
from nexapod.blobs.reading import Range, ReadChunk
from nexapod.blobs.room import Quota, Reservation, Room
from nexapod.protocol.limits import BLOB_BYTES_MAX, CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, Part

log = structlog.get_logger()

T = TypeVar("T")
THREADS: Final = 4
FRESH_S: Final = 60.0
"""What was used so recently is not evicted: who is about to use it may not have said so yet."""
TOUCH_S: Final = 30.0
"""Reading a blob is written down as its use at most so often."""
REMEMBERED_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class StoreStat:
    """What the store holds: whole blobs, their bytes and those of parts, and the free bytes of its disk."""

    blobs: int
    bytes: int
    disk_free: int
    partial: int = 0
    """Blobs of which only some chunks are here."""
    pinned: int = 0
    bytes_max: int | None = None


@dataclass(frozen=True, slots=True)
class BlobStat:
    """One blob, as far as it is here."""

    ref: BlobRef
    chunks_here: int
    """Of a partial blob as its marks say: they are checked before use."""
    pinned: bool
    held: bool
    """Needed by a job that this daemon has a part in."""
    used_at: float
    """Wall-clock seconds."""

    @property
    def is_whole(self) -> bool:
        return self.chunks_here == self.ref.chunks


class BlobStore:
    """Immutable bytes named by their hash, in a folder of its own."""

    def __init__(self, root: Path, quota: Quota | None = None) -> None:
        """Open or create; clears what a crash left. Blocks for a folder scan: call it in a thread, or at
        start.

        Raises BlobError.
        """
        self.held: Callable[[], frozenset[BlobRef]] = frozenset
        """What must not be evicted; the daemon sets it."""
        self._layout = Layout(root)
        self._threads = trio.CapacityLimiter(THREADS)
        sizes = [ref.size for ref in self._layout.refs()]
        self._count = len(sizes)
        self._bytes = sum(sizes)
        self._partials = {found.ref: found for found in load_partials(self._layout)}
        self._pins = Pins(self._layout)
        self._reading: Counter[BlobRef] = Counter()
        self._mending: WeakValueDictionary[BlobRef, trio.Lock] = WeakValueDictionary()
        self._touched: OrderedDict[BlobRef, float] = OrderedDict()
        self._spared: OrderedDict[BlobRef, float] = OrderedDict()
        self.room = Room(root, quota or Quota(), lambda: self.bytes_here, self._evict)

    @property
    def bytes_here(self) -> int:
        """Bytes of all that is here, whole or in part."""
        return self._bytes + sum(found.bytes_here for found in self._partials.values())

    # --- putting ---------------------------------------------------------------------------------------------------
    async def put_bytes(self, data: bytes) -> BlobRef:
        """Store bytes held in memory; on disk when this returns. Raises QuotaExceeded, DiskFull, BlobError."""
        with self._reserve() as reserved:
            await reserved.grow(len(data))
            return await self._put(lambda: files.write_blob(self._layout, iter((data,)), BLOB_BYTES_MAX))

    async def put_file(self, path: Path, *, bytes_max: int = BLOB_BYTES_MAX) -> BlobRef:
        """Store a copy of a regular file, in constant memory.

        The last component of `path` is not followed if it is a symbolic link. Raises BlobTooLarge, QuotaExceeded,
        DiskFull, BlobError.
        """
        return await self.put_opened(lambda: files.open_plain(path), path, bytes_max=bytes_max)

    async def put_opened(self, open_file: Callable[[], int], path: Path, *, bytes_max: int = BLOB_BYTES_MAX) -> BlobRef:
        """The same, for whoever opens the file himself: `open_file` returns a descriptor, or raises OSError. `path` is
        what the user should look at."""
        size = await self._in_thread(lambda: files.size_of(open_file, path))
        pieces = files.pieces_of(open_file, path, trio.from_thread.check_cancelled)
        with self._reserve() as reserved:
            await reserved.grow(min(size, bytes_max))
            return await self._put(lambda: files.write_blob(self._layout, pieces, bytes_max))

    async def put_stream(self, stream: AsyncIterator[bytes], bytes_max: int) -> BlobRef:
        """Store what `stream` yields, in constant memory. Raises BlobTooLarge, QuotaExceeded, DiskFull, BlobError."""
        writer = await self._in_thread(lambda: Writer(self._layout, bytes_max))
        finished = False
        try:
            with self._reserve() as reserved:
                async with aclosing(_blocks(stream, bytes_max)) as blocks:
                    async for block in blocks:
                        await reserved.grow(len(block))
                        await self._in_thread(partial(writer.add, block))
                ref = await self._put(writer.finish)
            finished = True
        finally:
            if not finished:
                # Two system calls: not worth a thread, and so nothing can cancel it.
                writer.abort()
        return ref

    # --- what is here ----------------------------------------------------------------------------------------------
    def has(self, wanted: BlobRef | Part) -> bool:
        """Whether it is here: a whole blob, or all chunks of a part. One system call: needs no thread.

        Of a blob that is not whole, chunks that this process has not yet checked do not count: a fetch checks them.
        Nor do all its chunks together, when a fetch was cut off before it made one of them: the next fetch does.
        Raises BlobError.
        """
        ref = wanted.blob if isinstance(wanted, Part) else wanted
        if self._layout.holds(ref):
            return True
        if isinstance(wanted, BlobRef) or wanted.is_whole:
            return False
        found = self._partials.get(ref)
        return found is not None and found.has(wanted.chunks)

    def path(self, ref: BlobRef) -> Path:
        """Where the blob lies, if it is here whole. For reading only: a task must get a copy (export)."""
        return self._layout.object(ref)

    async def refs(self) -> list[BlobRef]:
        """Every whole blob, in no particular order. Raises BlobError."""
        return list(await self._in_thread(self._layout.refs))

    async def stat(self) -> StoreStat:
        """How much is here, and how much room is left. Raises BlobError."""
        free = await self._in_thread(self._layout.disk_free)
        pinned = len(self._pins.refs)
        return StoreStat(self._count, self.bytes_here, free, len(self._partials), pinned, self.room.quota.blobs_max)

    async def stat_of(self, ref: BlobRef) -> BlobStat:
        """One blob, whole or in part. Raises BlobMissing, BlobError."""
        when = await self._in_thread(lambda: evicting.used_at(self._layout, ref))
        return self._stat(ref, when, self.held())

    async def stats(self) -> list[BlobStat]:
        """All of them, the last used first. Raises BlobError."""
        uses = await self._in_thread(lambda: evicting.uses(self._layout))
        held = self.held()
        return [self._stat(ref, when, held) for when, ref in sorted(uses, reverse=True)]

    # --- reading ---------------------------------------------------------------------------------------------------
    async def read(self, ref: BlobRef, offset: int = 0, length: int = CHUNK_BYTES) -> bytes:
        """Up to `length` bytes from `offset`, fewer at the end; of a partial blob too when they are all here.

        Raises BlobMissing, BlobError.
        """
        note = self._note_use(ref)
        return await self._in_thread(lambda: self._read(ref, offset, length, note))

    async def chunk_list(self, ref: BlobRef) -> list[bytes]:
        """The sha2-256 of each chunk. Raises BlobMissing, BlobError."""
        return await self._in_thread(lambda: self._list(ref))

    async def export(self, ref: BlobRef, dest: Path, *, mode: int = 0o444) -> None:
        """Copy the blob to `dest`, which must not exist, and check every byte of it on the way.

        A copy, never a hard link: a link shares the file with the store, where a task that runs as our
        user, or as root in a container, could change what every later task gets under the same name. Raises
        BlobMissing, BlobCorrupt, DiskFull, BlobError, and leaves no `dest` behind.
        """
        await self.export_ranges(ref, [(0, ref.size)], dest, mode=mode)

    async def export_range(self, ref: BlobRef, offset: int, length: int, dest: Path, *, mode: int = 0o444) -> None:
        """As export, some bytes of it: they must be here, the rest of the blob need not. `length` may not reach beyond
        its end.
        """
        await self.export_ranges(ref, [(offset, length)], dest, mode=mode)

    async def export_ranges(self, ref: BlobRef, ranges: Sequence[Range], dest: Path, *, mode: int = 0o444) -> None:
        """As export, several ranges one after the other: the header of a split file, and a task's piece of it."""
        if any(offset < 0 or length < 0 or offset + length > ref.size for offset, length in ranges):
            raise BlobError(f"blob {ref}: has no such bytes")
        check = trio.from_thread.check_cancelled
        self._note_use(ref)
        with self._in_use(ref):
            try:
                await self._in_thread(lambda: self._export(ref, ranges, dest, mode, check))
            except BlobCorrupt:
                with suppress(BlobMissing):  # somebody else has set it aside
                    await self.mend(ref)
                raise

    # --- keeping ---------------------------------------------------------------------------------------------------
    async def touch(self, wanted: BlobRef | Part) -> bool:
        """Note that it is wanted now (see delete); False when it is not here. Raises BlobError."""
        ref = wanted.blob if isinstance(wanted, Part) else wanted
        if await self._in_thread(lambda: files.touch_object(self._layout, ref)):
            return True
        found = self._partials.get(ref)
        if found is None or not self.has(wanted):
            return False
        await self._in_thread(found.touch)
        return True

    def spare(self, ref: BlobRef, seconds: float) -> None:
        """Do not evict it for so long: what names it comes later. Forgotten with the process."""
        self._spared[ref] = time.time() + seconds
        self._spared.move_to_end(ref)
        while len(self._spared) > REMEMBERED_MAX:
            self._spared.popitem(last=False)

    async def pin(self, ref: BlobRef) -> None:
        """Never evict it, until it is unpinned. Raises BlobMissing, BlobError."""
        if not await self.touch(ref):
            raise BlobMissing(f"blob {ref}: not on this machine as a whole; fetch it first")
        await self._in_thread(lambda: self._pins.add(ref))

    async def unpin(self, ref: BlobRef) -> bool:
        """Whether it was pinned. Raises BlobError."""
        return await self._in_thread(lambda: self._pins.remove(ref))

    def pinned(self) -> frozenset[BlobRef]:
        """What is pinned. It may have been damaged or deleted by hand since."""
        return self._pins.refs

    async def delete(self, ref: BlobRef, *, unused_s: float = 0.0) -> None:
        """Forget a blob and what was fetched of it, if there is any; but not if it was put or touched within the last
        `unused_s` seconds, nor chunks of it that are being fetched. Raises BlobError.
        """
        if await self._in_thread(lambda: files.remove_object(self._layout, ref, unused_s)):
            self._count -= 1
            self._bytes -= ref.size
        found = self._partials.get(ref)
        if found is not None and not found.users:
            removed = await self._in_thread(lambda: _removed(found, unused_s))
            if removed and not found.users:  # nobody has begun anew with it meanwhile
                self._forget(found)

    # --- checking --------------------------------------------------------------------------------------------------
    async def verify(self, ref: BlobRef) -> bool:
        """Read the whole blob again; False when it is damaged. Raises BlobMissing, BlobError."""
        check = trio.from_thread.check_cancelled
        with self._in_use(ref):
            return await self._in_thread(lambda: mending.examine(self._layout, ref, check).is_sound)

    async def mend(self, ref: BlobRef) -> int:
        """Verify, and set a damaged blob aside: its good chunks stay, and the next fetch brings the others.

        How many chunks were damaged. Raises BlobMissing, BlobError.
        """
        check = trio.from_thread.check_cancelled
        # One after the other: what a second one found before the first set the blob aside is true no more.
        turn = self._mending.setdefault(ref, trio.Lock())
        with self._in_use(ref):
            async with turn:
                found = await self._in_thread(lambda: mending.examine(self._layout, ref, check))
                if found.is_sound:
                    return 0
                rest = await self._in_thread(lambda: mending.set_aside(self._layout, ref, found))
        if rest.gone:
            self._count -= 1
            self._bytes -= ref.size
            log.warning("blob_damaged", blob=str(ref), chunks=rest.damaged, remedy="check the disk")
        if rest.partial is not None:
            self._partials[ref] = rest.partial
        return rest.damaged

    # --- fetching --------------------------------------------------------------------------------------------------
    async def saved_list(self, ref: BlobRef) -> list[bytes] | None:
        """The chunk list of a blob that is here in part. Raises BlobError."""
        found = self._partials.get(ref)
        try:
            return None if found is None else await self._in_thread(found.digests)
        except BlobMissing:
            return None

    async def open_partial(self, ref: BlobRef, digests: list[bytes]) -> PartialBlob:
        """Begin or resume a fetch. `digests` has been checked against the name. Raises DiskFull, BlobError."""
        while True:
            found = self._partials.setdefault(ref, Partial(self._layout, ref))
            try:
                await self._in_thread(partial(found.begin, digests))
            except BaseException:
                if not found.users and not found.bytes_here:
                    self._forget(found)
                raise
            # A fetch that ended meanwhile, without having brought anything, may have removed it; and one that began
            # after that has another, of the very same files.
            if found.is_published or self._partials.setdefault(ref, found) is found:
                return PartialBlob(self, found, self._reserve())
            found.end()

    # --- inside ----------------------------------------------------------------------------------------------------
    def _reserve(self) -> Reservation:
        return Reservation(self.room)

    async def _put(self, write: Callable[[], tuple[BlobRef, bool]]) -> BlobRef:
        ref, new = await self._in_thread(write)
        if new:
            self._count += 1
            self._bytes += ref.size
            found = self._partials.get(ref)
            if found is not None and not found.users:
                del self._partials[ref]
                # Three system calls; cut off here, its files would lie there unknown and uncounted.
                with trio.CancelScope(shield=True):
                    await self._in_thread(found.remove)
        return ref

    def _forget(self, found: Partial) -> None:
        if self._partials.get(found.ref) is found:
            del self._partials[found.ref]

    def _now_whole(self, found: Partial, new: bool) -> None:
        self._forget(found)
        if new:
            self._count += 1
            self._bytes += found.ref.size

    def _stat(self, ref: BlobRef, used_at: float, held: frozenset[BlobRef]) -> BlobStat:
        found = self._partials.get(ref)
        here = found.ref.chunks - found.marks.count(0) if found else ref.chunks
        return BlobStat(ref, here, ref in self._pins, ref in held, used_at)

    def _read(self, ref: BlobRef, offset: int, length: int, note: bool) -> bytes:
        if note:
            files.touch_object(self._layout, ref)
        try:
            return reading.read_object(self._layout, ref, offset, length)
        except BlobMissing:
            found = self._partials.get(ref)
            if found is None:
                raise
        try:
            return found.read(offset, length)
        except BlobMissing:
            # It may have become whole between the two looks.
            return reading.read_object(self._layout, ref, offset, length)

    def _list(self, ref: BlobRef) -> list[bytes]:
        try:
            return reading.read_list(self._layout, ref)
        except BlobMissing:
            found = self._partials.get(ref)
            if found is None:
                raise
            return found.digests()

    def _export(
        self, ref: BlobRef, ranges: Sequence[Range], dest: Path, mode: int, check: files.CheckCancelled
    ) -> None:
        try:
            with self._chunks(ref) as read:
                reading.copy_ranges(read, ranges, dest, mode, check)
        except BlobMissing:
            if not self._layout.holds(ref):
                raise
            # It became whole in the middle of that.
            with reading.object_chunks(self._layout, ref) as read:
                reading.copy_ranges(read, ranges, dest, mode, check)

    @contextmanager
    def _chunks(self, ref: BlobRef) -> Iterator[ReadChunk]:
        found = self._partials.get(ref)
        if found is not None and not self._layout.holds(ref):
            yield found.chunk
        else:
            with reading.object_chunks(self._layout, ref) as read:
                yield read

    @contextmanager
    def _in_use(self, ref: BlobRef) -> Iterator[None]:
        self._reading[ref] += 1
        try:
            yield
        finally:
            self._reading[ref] -= 1
            if not self._reading[ref]:
                del self._reading[ref]

    def _note_use(self, ref: BlobRef) -> bool:
        """Whether this use is to be written down."""
        now = time.monotonic()
        if now - self._touched.get(ref, -TOUCH_S) < TOUCH_S:
            return False
        self._touched[ref] = now
        self._touched.move_to_end(ref)
        if len(self._touched) > REMEMBERED_MAX:
            self._touched.popitem(last=False)
        return True

    async def _evict(self, wanted: int) -> None:
        """Delete what was used least recently and nobody needs, until `wanted` bytes are free or nothing is left."""
        uses = await self._in_thread(lambda: evicting.uses(self._layout))
        before = self.bytes_here
        # What comes to be needed meanwhile has been touched, and is not deleted.
        needed = self.held() | self._pins.refs
        for when, ref in sorted(uses):
            if before - self.bytes_here >= wanted or when > time.time() - FRESH_S:
                break
            if not (ref in needed or ref in self._reading or self._spared.get(ref, 0.0) > time.time()):
                await self.delete(ref, unused_s=FRESH_S)
        log.info("blobs_evicted", bytes=before - self.bytes_here, wanted=wanted)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)


class PartialBlob:
    """A blob being fetched. The caller closes it, whatever happens; what is in it stays for the next time."""

    def __init__(self, store: BlobStore, found: Partial, reserved: Reservation) -> None:
        self._store = store
        self._partial = found
        self._reserved = reserved
        self._room_for: set[int] = set()
        """Chunks not here for which room has been made, however many want them."""

    async def missing(self, chunks: range) -> list[int]:
        """Those of the chunks that are not here, in order, with room made for them; those that are have been checked.

        Asked for one part after the other: who does not get room may try with another part. Raises QuotaExceeded,
        BlobError.
        """
        check = trio.from_thread.check_cancelled
        await self._store._in_thread(lambda: self._partial.check(chunks, check))
        new = set(self._absent(chunks)) - self._room_for
        if new:
            await self._reserved.grow(sum(files.chunk_length(self._partial.ref, index) for index in new))
        # Looked at again: some may have arrived meanwhile.
        absent = self._absent(chunks)
        self._room_for.update(absent)
        return absent

    def _absent(self, chunks: range) -> list[int]:
        return [index for index in chunks if not self._partial.marks[index]]

    async def write(self, index: int, parts: Sequence[bytes | memoryview]) -> bool:
        """Put a chunk in place, which came in these parts; False when it is not the one that the list names.

        Raises DiskFull, BlobError.
        """
        written = await self._store._in_thread(lambda: self._partial.write(index, parts))
        if written and index in self._room_for:
            self._room_for.remove(index)
            self._reserved.take(files.chunk_length(self._partial.ref, index))
        return written

    async def settle(self) -> None:
        """What was written is on disk; a blob that is complete is a whole one. Raises DiskFull, BlobError."""
        if self._partial.is_published:
            return
        if self._partial.bytes_here < self._partial.ref.size:
            await self._store._in_thread(self._partial.sync)
            return
        check = trio.from_thread.check_cancelled
        await self._store._in_thread(lambda: self._partial.check(range(self._partial.ref.chunks), check))
        if self._partial.is_whole:
            new = await self._store._in_thread(self._partial.publish)
            self._store._now_whole(self._partial, new)

    def close(self) -> None:
        """Let go of its files; of a blob of which nothing came, nothing stays. Needs no thread."""
        self._reserved.give_back()
        self._partial.end()
        if not self._partial.bytes_here and self._partial.remove():
            self._store._forget(self._partial)


def _removed(found: Partial, unused_s: float) -> bool:
    used_at = found.used_at()
    recent = used_at is not None and unused_s and time.time() - used_at < unused_s
    return not recent and found.remove()


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
