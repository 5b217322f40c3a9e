"""One blob's way here: which chunk is asked of whom, until all are in or every source has failed.

Each source gets a few lanes that take the next missing chunk, so the faster a source is the more it
delivers. A lane with nothing left to take asks again, elsewhere, for a chunk that has been out for long:
the slowest source does not decide when a fetch ends. Every chunk is checked when it arrives; a source that
sends a wrong one is reported and left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias

import structlog
import trio

from nexapod.blobs import files
from nexapod.blobs.asking import Asker, Failure
from nexapod.blobs.errors import BlobError, BlobUnavailable
from nexapod.blobs.frames import LIST_PIECE_DIGESTS, AskChunk, AskList
from nexapod.blobs.store import BlobStore
from nexapod.protocol.errors import PeerError
from nexapod.protocol.types import BlobRef, PeerId, blob_root

log = structlog.get_logger()

SOURCES_MAX = 16
"""Sources of one fetch; further ones are not considered."""
SOURCES_ACTIVE_MAX = 4
LANES = 4
"""Chunks open at one source for one fetch."""
WRONG_BYTES_PENALTY = 34
"""Three wrong chunks end a connection: one may be a failing disk."""

OnBad: TypeAlias = Callable[[PeerId, PeerError], None]


class _Sink(Protocol):
    """Where checked chunks go."""

    async def write(self, index: int, data: bytearray) -> bool: ...
    async def finish(self) -> None: ...
    def close(self) -> None: ...


class _Small:
    """A blob of one chunk: never on disk before it is whole."""

    def __init__(self, store: BlobStore, ref: BlobRef) -> None:
        self._store = store
        self._ref = ref
        self._data = b""

    async def write(self, index: int, data: bytearray) -> bool:
        if hashlib.sha256(data).digest() != self._ref.digest:
            return False
        self._data = bytes(data)
        return True

    async def finish(self) -> None:
        await self._store.put_bytes(self._data)

    def close(self) -> None:
        pass


@dataclass(eq=False, slots=True)
class _Out:
    """A chunk that is being asked for."""

    since: float
    sources: set[PeerId] = field(default_factory=set)


class Fetch:
    """The fetch of one blob, shared by all who want it. `done` is set once, with `error` or the blob in the
    store.
    """

    def __init__(self, store: BlobStore, asker: Asker, on_bad: OnBad, ref: BlobRef, *, hedge_s: float) -> None:
        self.ref = ref
        self.done = trio.Event()
        self.error: BlobError | None = BlobUnavailable(f"blob {ref}: the fetch was ended")
        self.waiters = 0
        self._store = store
        self._asker = asker
        self._on_bad = on_bad
        self._hedge_s = hedge_s
        self._scope = trio.CancelScope()
        self._sources: dict[PeerId, Failure | None] = {}
        self._used: set[PeerId] = set()
        self._nursery: trio.Nursery | None = None
        self._active = trio.Semaphore(SOURCES_ACTIVE_MAX)
        self._sink: _Sink | None = None
        self._missing: list[int] = []
        self._out: dict[int, _Out] = {}
        self._left = 0
        self._working = 0
        self._changed = trio.Event()

    def add_sources(self, sources: Sequence[PeerId]) -> None:
        """Consider these too, also when the fetch is under way."""
        for source in sources:
            if source in self._sources or len(self._sources) >= SOURCES_MAX:
                continue
            self._sources[source] = None
            if self._nursery is not None:
                self._start(self._nursery, source)

    def cancel(self) -> None:
        """Nobody waits for it any more. What has arrived stays for the next time."""
        self._scope.cancel()

    async def run(self, slots: trio.Semaphore) -> None:
        """Fetch, once there is a free slot. Raises nothing but cancellation from outside."""
        try:
            with self._scope:
                async with slots:
                    await self._fetch()
                self.error = None
        except* BlobError as group:
            # From a lane it comes wrapped, once for each nursery around it.
            self.error = _first(group)
        finally:
            self.done.set()

    async def _fetch(self) -> None:
        if self.ref.size == 0:
            await self._make_empty()
            return
        sink = await self._open()
        try:
            if self._left:
                await self._fetch_chunks()
            await sink.finish()
        finally:
            sink.close()

    async def _make_empty(self) -> None:
        if hashlib.sha256().digest() != self.ref.digest:
            raise BlobUnavailable(f"blob {self.ref}: no bytes have this name")
        await self._store.put_bytes(b"")

    async def _open(self) -> _Sink:
        if self.ref.chunks == 1:
            self._sink = _Small(self._store, self.ref)
            self._missing = [0]
        else:
            digests = await self._store.saved_list(self.ref) or await self._fetch_list()
            partial_blob = await self._store.open_partial(self.ref, digests)
            self._sink = partial_blob
            # Last first: taken from the end.
            self._missing = [i for i in reversed(range(self.ref.chunks)) if i not in partial_blob.present]
        self._left = len(self._missing)
        return self._sink

    async def _fetch_list(self) -> list[bytes]:
        """The chunk list from the first source that has it. Only the whole of it can be checked."""
        tried: set[PeerId] = set()
        while source := next((s for s, lost in self._sources.items() if not lost and s not in tried), None):
            tried.add(source)
            digests = await self._list_from(source)
            if digests is None:
                continue
            if blob_root(digests) == self.ref.digest:
                return digests
            self._blame(source, "blob-list")
        raise self._unavailable()

    async def _list_from(self, source: PeerId) -> list[bytes] | None:
        digests: list[bytes] = []
        while len(digests) < self.ref.chunks:
            count = min(LIST_PIECE_DIGESTS, self.ref.chunks - len(digests))
            ask = partial(AskList, ref=self.ref, first=len(digests))
            outcome = await self._asker.ask(source, ask, count * files.DIGEST_BYTES)
            if isinstance(outcome, Failure):
                self._sources[source] = outcome
                return None
            digests += files.split_digests(bytes(outcome))
        return digests

    async def _fetch_chunks(self) -> None:
        # Again, for sources that joined in the moment when the last one before them had given up.
        while self._left and (fresh := self._fresh()):
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for source in fresh:
                    self._start(nursery, source)
        if self._left:
            raise self._unavailable()

    def _fresh(self) -> list[PeerId]:
        return [source for source, lost in self._sources.items() if not lost and source not in self._used]

    def _start(self, nursery: trio.Nursery, source: PeerId) -> None:
        nursery.start_soon(self._use_source, source, len(self._used))
        self._used.add(source)
        self._working += 1

    async def _use_source(self, source: PeerId, rank: int) -> None:
        try:
            await self._wait_turn(rank)
            async with self._active, trio.open_nursery() as lanes:
                for _ in range(min(LANES, self._left)):
                    lanes.start_soon(self._lane, source)
        finally:
            self._working -= 1
            if not self._working:
                # The nursery ends with its last task, and takes no more.
                self._nursery = None

    async def _wait_turn(self, rank: int) -> None:
        """What one source can deliver at once is asked of the sources in their order, not shared out.

        The next one's turn comes when one before it is lost, or has taken long.
        """
        started = trio.current_time()
        while self.ref.chunks <= LANES and self._left:
            lost = sum(1 for failure in self._sources.values() if failure)
            if rank <= lost + (trio.current_time() - started) / self._hedge_s:
                return
            with trio.move_on_after(self._hedge_s):
                await self._changed.wait()

    async def _lane(self, source: PeerId) -> None:
        while (index := await self._take(source)) is not None:
            try:
                await self._bring(source, index)
            finally:
                self._put_back(source, index)

    async def _bring(self, source: PeerId, index: int) -> None:
        ask = partial(AskChunk, ref=self.ref, chunk=index)
        outcome = await self._asker.ask(source, ask, files.chunk_length(self.ref, index))
        if isinstance(outcome, Failure):
            self._sources[source] = outcome
            return
        assert self._sink is not None
        if not await self._sink.write(index, outcome):
            self._blame(source, "blob-bytes")
        elif self._out.pop(index, None) is not None:
            self._left -= 1
            if not self._left and self._nursery is not None:
                self._nursery.cancel_scope.cancel()

    async def _take(self, source: PeerId) -> int | None:
        """The next chunk to ask `source` for; None when there is nothing more for it to do."""
        while self._left and not self._sources[source]:
            if self._missing:
                index = self._missing.pop()
                self._out[index] = _Out(trio.current_time(), {source})
                return index
            late = self._late(source)
            if late is not None:
                self._out[late].sources.add(source)
                return late
            with trio.move_on_after(self._hedge_s):
                await self._changed.wait()
        return None

    def _late(self, source: PeerId) -> int | None:
        """A chunk that one other source has been asked for long ago."""
        now = trio.current_time()
        for index, out in self._out.items():
            if len(out.sources) == 1 and source not in out.sources and now - out.since >= self._hedge_s:
                return index
        return None

    def _put_back(self, source: PeerId, index: int) -> None:
        """The question is over. If that did not bring the chunk, it is free for others."""
        out = self._out.get(index)
        if out is not None:
            out.sources.discard(source)
            if not out.sources:
                del self._out[index]
                self._missing.append(index)
        self._changed.set()
        self._changed = trio.Event()

    def _blame(self, source: PeerId, rule: str) -> None:
        self._sources[source] = Failure.BROKE_RULES
        log.warning("blob_source_wrong", peer=source, blob=str(self.ref), rule=rule)
        self._on_bad(source, PeerError(rule, "not what its name says", penalty=WRONG_BYTES_PENALTY))

    def _unavailable(self) -> BlobUnavailable:
        reasons = [f"{source} {lost.value}" for source, lost in self._sources.items() if lost]
        return BlobUnavailable(f"blob {self.ref}: {'; '.join(reasons) or 'no peer to ask'}")


def _first(group: BaseExceptionGroup[BlobError]) -> BlobError:
    """One of the errors inside."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BlobError)
    return error
