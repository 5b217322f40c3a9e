"""One blob's way here: which chunk is asked of whom, until all that is wanted of it is in or every source has failed.

Several may want different parts of it at once: each chunk is fetched once. Each source gets a few lanes that take
the next missing chunk, so the faster a source is the more it delivers. A lane with nothing left to take asks again,
elsewhere, for a chunk that has been out for long: the slowest source does not decide when a fetch ends. Every chunk is
checked when it arrives; a source that sends a wrong one is reported and left. A source may have some chunks and not
others.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias

import structlog
import trio

from nexapod.blobs import files
from nexapod.blobs.asking import Asker, Failure, Parts
from nexapod.blobs.errors import BlobError, BlobUnavailable, QuotaExceeded
from nexapod.blobs.frames import LIST_PIECE_DIGESTS, AskChunk, AskList
from nexapod.blobs.store import BlobStore
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import BlobRef, Part, PeerId, blob_root

log = structlog.get_logger()

SOURCES_MAX = 16
"""Sources of one fetch; further ones are not considered."""
SOURCES_ACTIVE_MAX = 8
LANES = 4
"""Chunks open at one source for one fetch."""
AT_WORK_HEDGES = 5
"""A source that brought a chunk within so many times the hedge is at work on the next."""
IN_FLOW_S = 0.1
"""While some source brought a chunk within so long, chunks flow: more than a line of 80 Mbit/s carries."""
REFUSALS_MAX = 16
"""A source that does not have so many chunks, one after the other, has none for us."""
WRONG_BYTES_PENALTY = 34
"""Three wrong chunks end a connection: one may be a failing disk."""

OnBad: TypeAlias = Callable[[PeerId, PeerError], None]
HasRoom: TypeAlias = Callable[[], bool]


class _Sink(Protocol):
    """Where checked chunks go."""

    async def missing(self, chunks: range) -> list[int]: ...
    async def write(self, index: int, parts: Parts) -> bool: ...
    async def settle(self) -> None: ...
    def close(self) -> None: ...


class _Small:
    """A blob of one chunk: never on disk before it is whole."""

    def __init__(self, store: BlobStore, ref: BlobRef) -> None:
        self._store = store
        self._ref = ref
        self._data: bytes | None = None

    async def missing(self, chunks: range) -> list[int]:
        return [0] if self._data is None else []

    async def write(self, index: int, parts: Parts) -> bool:
        data = b"".join(parts)
        if hashlib.sha256(data).digest() != self._ref.digest:
            return False
        self._data = data
        return True

    async def settle(self) -> None:
        assert self._data is not None
        await self._store.put_bytes(self._data)

    def close(self) -> None:
        pass


@dataclass(eq=False, slots=True)
class _Out:
    """A chunk that is being asked for. `sources`: since when each of them is waited for."""

    sources: dict[PeerId, float]

    def wait(self, source: PeerId, since: float) -> None:
        self.sources[source] = since


@dataclass(eq=False, slots=True)
class _Source:
    """A peer that may have it."""

    lost: Failure | None = None
    used: bool = False
    active: bool = False
    """Used, and no longer waiting for its turn."""
    delivered: float = -math.inf
    """When its last chunk came."""
    refusals: int = 0
    """Chunks that it did not have, since the last one that it had."""


@dataclass(eq=False, slots=True)
class Waiter:
    """Somebody who wants a part. `done` is set once, with `error` or the part in the store."""

    part: Part
    left: set[int] | None = None
    """Chunks still to come; None until it is known."""
    done: trio.Event = field(default_factory=trio.Event)
    error: BlobError | None = None

    def end(self, error: BlobError | None = None) -> None:
        self.error = error
        self.done.set()


class Fetch:
    """The fetch of one blob, shared by all who want parts of it. It ends when nobody waits any more."""

    def __init__(
        self, store: BlobStore, asker: Asker, on_bad: OnBad, has_room: HasRoom, ref: BlobRef, *, hedge_s: float
    ) -> None:
        self.ref = ref
        self.closed = False
        """It takes no more waiters."""
        self._store = store
        self._asker = asker
        self._on_bad = on_bad
        self._has_room = has_room
        self._hedge_s = hedge_s
        self._scope = trio.CancelScope()
        self._waiters: list[Waiter] = []
        self._sources: dict[PeerId, _Source] = {}
        self._missing: OrderedDict[int, None] = OrderedDict()
        self._out: dict[int, _Out] = {}
        self._refused: dict[int, set[PeerId]] = {}
        self._working = 0
        self._changed = trio.Event()
        self._turned = trio.Event()
        """Changed in more than that a chunk came: it may be a waiting source's turn."""

    # --- who wants it ----------------------------------------------------------------------------------------------
    def want(self, part: Part) -> Waiter:
        """Bring this part too."""
        assert not self.closed
        waiter = Waiter(part)
        self._waiters.append(waiter)
        self._news()
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """This one waits no more. What has arrived stays for the next time."""
        if waiter not in self._waiters:
            return
        self._waiters.remove(waiter)
        if not self._waiters:
            # At once, so that whoever asks next does not join a fetch that is ending.
            self.closed = True
            self._scope.cancel()
        elif waiter.left:
            self._forget_unwanted(waiter.left)

    def add_sources(self, sources: Sequence[PeerId]) -> None:
        """Consider these too, also when the fetch is under way."""
        for source in sources:
            if source not in self._sources and len(self._sources) < SOURCES_MAX:
                self._sources[source] = _Source()
        self._news()

    async def run(self, slots: trio.Semaphore) -> None:
        """Fetch, once there is a free slot. Raises nothing but cancellation from outside."""
        error: BlobError = BlobUnavailable(f"blob {self.ref}: the fetch was ended")
        try:
            with self._scope:
                async with slots:
                    await self._fetch()
        except* BlobError as group:
            # From a lane it comes wrapped, once for each nursery around it.
            error = _first(group)
        finally:
            self._end_all(error)

    async def _fetch(self) -> None:
        if self.ref.size == 0:
            await self._make_empty()
        if self._store.has(self.ref):
            # Put, or made whole by a fetch that was ending, while this one waited for its slot.
            self._end_all(None)
            return
        sink = await self._open()
        try:
            async with trio.open_nursery() as nursery:
                await self._oversee(sink, nursery)
                nursery.cancel_scope.cancel()
        finally:
            sink.close()

    async def _make_empty(self) -> None:
        if hashlib.sha256().digest() != self.ref.digest:
            raise BlobUnavailable(f"blob {self.ref}: no bytes have this name")
        await self._store.put_bytes(b"")

    def _end_all(self, error: BlobError | None) -> None:
        self.closed = True
        for waiter in self._waiters:
            waiter.end(error)
        self._waiters.clear()

    async def _oversee(self, sink: _Sink, nursery: trio.Nursery) -> None:
        """Let waiters in and out and sources in, until nobody waits."""
        while True:
            changed = self._changed
            await self._admit(sink)
            await self._release(sink)
            for source, state in self._sources.items():
                if not state.used and not state.lost and self._may_bring(source):
                    state.used = True
                    self._working += 1
                    nursery.start_soon(self._use_source, source, sink)
            self._give_up()
            if not self._waiters:
                self.closed = True
                return
            await changed.wait()

    async def _admit(self, sink: _Sink) -> None:
        for waiter in [waiter for waiter in self._waiters if waiter.left is None]:
            try:
                left = set(await sink.missing(waiter.part.chunks))
            except QuotaExceeded as error:
                # There may be room enough for what the others want.
                self._dismiss(waiter, error)
                continue
            if waiter not in self._waiters:
                continue  # it left meanwhile
            waiter.left = left
            for index in sorted(left):
                if index not in self._out:
                    self._missing[index] = None
            self._news()

    def _dismiss(self, waiter: Waiter, error: BlobError | None = None) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            waiter.end(error)

    async def _release(self, sink: _Sink) -> None:
        finished = [waiter for waiter in self._waiters if waiter.left is not None and not waiter.left]
        if finished:
            await sink.settle()
        for waiter in finished:
            self._dismiss(waiter)

    def _give_up(self) -> None:
        """Let go those who wait for what no source is left for."""
        live = {source for source, state in self._sources.items() if not state.lost}
        hopeless = {index for index, refused in self._refused.items() if index not in self._out and live <= refused}
        for waiter in list(self._waiters):
            if waiter.left and (not live or not hopeless.isdisjoint(waiter.left)):
                self._dismiss(waiter, self._unavailable())
                self._forget_unwanted(waiter.left)

    def _forget_unwanted(self, chunks: set[int]) -> None:
        for index in chunks:
            if index in self._missing and not any(index in (waiter.left or ()) for waiter in self._waiters):
                del self._missing[index]

    # --- the list --------------------------------------------------------------------------------------------------
    async def _open(self) -> _Sink:
        if self.ref.chunks == 1:
            return _Small(self._store, self.ref)
        digests = await self._store.saved_list(self.ref) or await self._fetch_list()
        return await self._store.open_partial(self.ref, digests)

    async def _fetch_list(self) -> list[bytes]:
        """The chunk list from the first source that gives it. Only the whole of it can be checked."""
        found: list[list[bytes]] = []
        asked: set[PeerId] = set()
        async with trio.open_nursery() as nursery:
            while not found:
                fresh = next((s for s, state in self._sources.items() if not state.lost and s not in asked), None)
                if fresh is not None:
                    asked.add(fresh)
                    self._working += 1
                    nursery.start_soon(self._try_list, fresh, found)
                elif not self._working:
                    raise self._unavailable()
                # The next one's turn comes when this one has failed, or takes long.
                with trio.move_on_after(self._hedge_s):
                    await self._changed.wait()
            nursery.cancel_scope.cancel()
        return found[0]

    async def _try_list(self, source: PeerId, found: list[list[bytes]]) -> None:
        try:
            digests = await self._list_from(source)
            if digests is not None and blob_root(digests) == self.ref.digest:
                found.append(digests)
            elif digests is not None:
                self._blame(source, "blob-list")
        finally:
            self._working -= 1
            self._news()

    async def _list_from(self, source: PeerId) -> list[bytes] | None:
        digests: list[bytes] = []
        while len(digests) < self.ref.chunks:
            count = min(LIST_PIECE_DIGESTS, self.ref.chunks - len(digests))
            ask = partial(AskList, ref=self.ref, first=len(digests))
            outcome = await self._asker.ask(source, ask, count * files.DIGEST_BYTES)
            if isinstance(outcome, Failure):
                self._sources[source].lost = outcome
                return None
            digests += files.split_digests(b"".join(outcome))
        return digests

    # --- the chunks ------------------------------------------------------------------------------------------------
    async def _use_source(self, source: PeerId, sink: _Sink) -> None:
        state = self._sources[source]
        try:
            await self._wait_turn(source)
            state.active = True
            self._news()
            async with trio.open_nursery() as lanes:
                for _ in range(LANES):
                    lanes.start_soon(self._lane, source, sink)
        finally:
            state.used = state.active = False
            self._working -= 1
            self._news()

    async def _wait_turn(self, source: PeerId) -> None:
        """So many at once, in their order: who lately was asked in vain comes last.

        What one source can deliver at once is not shared out: the next one's turn comes when one before it is lost or
        does not have it, or has taken long. Nor is more than this machine can take in.
        """
        started = trio.current_time()
        while not self._is_turn(source, trio.current_time() - started):
            with trio.move_on_after(min(self._hedge_s, IN_FLOW_S)):
                await self._turned.wait()

    def _is_turn(self, source: PeerId, waited_s: float) -> bool:
        states = list(self._sources.values())
        rank = list(self._sources).index(source)
        if sum(state.active for state in states) >= SOURCES_ACTIVE_MAX:
            return False
        if any(state.used and not state.active for state in states[:rank]) or self._is_enough(waited_s):
            return False
        passed = sum(1 for state in states if state.lost or state.refusals)
        is_little = 0 < len(self._missing) + len(self._out) <= LANES
        return not is_little or rank <= passed + waited_s / self._hedge_s

    def _is_enough(self, waited_s: float) -> bool:
        """Whether those who are at work bring as much as this machine can take in, or have only just begun."""
        at_work = [state for state in self._sources.values() if state.active]
        if not at_work or self._has_room():
            return False
        return waited_s < IN_FLOW_S or any(trio.current_time() - state.delivered < IN_FLOW_S for state in at_work)

    async def _lane(self, source: PeerId, sink: _Sink) -> None:
        while (index := await self._take(source)) is not None:
            try:
                await self._bring(source, index, sink)
            finally:
                self._put_back(source, index)

    async def _bring(self, source: PeerId, index: int, sink: _Sink) -> None:
        ask = partial(AskChunk, ref=self.ref, chunk=index)
        told = partial(self._out[index].wait, source)
        outcome = await self._asker.ask(source, ask, files.chunk_length(self.ref, index), told)
        if isinstance(outcome, Failure):
            self._failed(source, index, outcome)
        elif not await sink.write(index, outcome):
            self._blame(source, "blob-bytes")
        else:
            self._sources[source].refusals = 0
            self._sources[source].delivered = trio.current_time()
            self._out.pop(index, None)
            self._missing.pop(index, None)
            for waiter in self._waiters:
                if waiter.left:
                    waiter.left.discard(index)

    def _failed(self, source: PeerId, index: int, failure: Failure) -> None:
        state = self._sources[source]
        if failure is not Failure.NOT_HERE:
            state.lost = failure
            return
        self._refused.setdefault(index, set()).add(source)
        state.refusals += 1
        if self.ref.chunks == 1 or state.refusals >= REFUSALS_MAX:
            state.lost = failure

    async def _take(self, source: PeerId) -> int | None:
        """The next chunk to ask `source` for; None when there is nothing more for it to do."""
        state = self._sources[source]
        # Once it has refused all that is wanted it makes place for another source; it is used again for other chunks.
        while not state.lost and self._may_bring(source):
            index = next(self._choices(source, state), None)
            if index is not None:
                del self._missing[index]
                self._out[index] = _Out({source: trio.current_time()})
                return index
            late = self._late(source)
            if late is not None:
                self._out[late].wait(source, trio.current_time())
                return late
            with trio.move_on_after(self._hedge_s):
                await self._changed.wait()
        return None

    def _choices(self, source: PeerId, state: _Source) -> Iterator[int]:
        """Missing chunks that it may have. One that lacks some is asked from both ends: it may hold either."""
        order = reversed(self._missing) if state.refusals % 2 else iter(self._missing)
        return (index for index in order if source not in self._refused.get(index, ()))

    def _may_bring(self, source: PeerId) -> bool:
        """Whether anything is wanted that it has not refused."""
        return any(
            source not in self._refused.get(index, ()) for chunks in (self._missing, self._out) for index in chunks
        )

    def _late(self, source: PeerId) -> int | None:
        """A chunk that others have been asked for long ago.

        One more is asked for each `hedge_s`, since all of them may be slow on purpose; but a third not while one of
        them is at work: a source sends its chunks one after the other, and each repetition costs a whole one.
        """
        now = trio.current_time()
        for index, out in self._out.items():
            if source in out.sources or source in self._refused.get(index, ()):
                continue
            if len(out.sources) > 1 and any(self._is_at_work(other) for other in out.sources):
                continue
            if now - min(out.sources.values()) >= self._hedge_s * len(out.sources):
                return index
        return None

    def _is_at_work(self, source: PeerId) -> bool:
        return trio.current_time() - self._sources[source].delivered < AT_WORK_HEDGES * self._hedge_s

    def _put_back(self, source: PeerId, index: int) -> None:
        """The question is over. If that did not bring the chunk, it is free for others."""
        out = self._out.get(index)
        if out is not None:
            out.sources.pop(source, None)
            if not out.sources:
                del self._out[index]
                if any(index in (waiter.left or ()) for waiter in self._waiters):
                    self._missing[index] = None
                    self._missing.move_to_end(index, last=False)
            self._news()
        else:
            self._chunk_came()

    def _news(self) -> None:
        self._turned.set()
        self._turned = trio.Event()
        self._chunk_came()

    def _chunk_came(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _blame(self, source: PeerId, rule: str) -> None:
        self._sources[source].lost = Failure.BROKE_RULES
        log.warning("blob_source_wrong", peer=source, blob=str(self.ref), rule=rule)
        self._on_bad(source, PeerError(rule, "not what its name says", penalty=WRONG_BYTES_PENALTY))

    def _unavailable(self) -> BlobUnavailable:
        said = [
            f"{source} {(state.lost or Failure.NOT_HERE).value}"
            for source, state in self._sources.items()
            if state.lost or state.refusals
        ]
        return BlobUnavailable(f"blob {self.ref}: {'; '.join(said) or 'no peer to ask'}")


def _first(group: BaseExceptionGroup[BlobError]) -> BlobError:
    """One of the errors inside."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BlobError)
    return error
