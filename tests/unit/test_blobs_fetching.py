"""nexapod.blobs.fetching by the clock: who is asked when others are slow on purpose, refuse, or wait for a cap.

Blobs are kept in memory here: with disk threads the clock of these tests could not jump.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing

from nexapod.blobs.asking import Timing
from nexapod.blobs.errors import BlobUnavailable
from nexapod.blobs.exchange import Exchange
from nexapod.blobs.fetching import IN_FLOW_S, SOURCES_ACTIVE_MAX
from nexapod.blobs.frames import PIECE_BYTES, AskChunk, ChunkPart, NotHere, decode, encode
from nexapod.blobs.rates import Caps, Rates
from nexapod.blobs.store import BlobStore
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, Part, PeerId, blob_of

MIB = CHUNK_BYTES
GIVER = PeerId("giver")


class Store:
    """As much of a BlobStore as a fetch needs. Chunk lists are here from before."""

    def __init__(self) -> None:
        self.lists: dict[BlobRef, list[bytes]] = {}
        self.chunks: dict[BlobRef, dict[int, bytes]] = {}

    def know(self, data: bytes) -> BlobRef:
        ref = blob_of(data)
        self.lists[ref] = [hashlib.sha256(data[at : at + MIB]).digest() for at in range(0, len(data), MIB)]
        self.chunks[ref] = {}
        return ref

    def has(self, wanted: BlobRef | Part) -> bool:
        part = wanted if isinstance(wanted, Part) else Part.whole(wanted)
        return set(part.chunks) <= set(self.chunks.get(part.blob, ()))

    async def put_bytes(self, data: bytes) -> None:
        self.chunks[blob_of(data)] = {0: data}

    async def saved_list(self, ref: BlobRef) -> list[bytes]:
        return self.lists[ref]

    async def open_partial(self, ref: BlobRef, digests: list[bytes]) -> Sink:
        return Sink(self, ref)


class Sink:
    def __init__(self, store: Store, ref: BlobRef) -> None:
        self._chunks = store.chunks[ref]
        self._digests = store.lists[ref]

    async def missing(self, chunks: range) -> list[int]:
        return [index for index in chunks if index not in self._chunks]

    async def write(self, index: int, parts: Sequence[bytes | memoryview]) -> bool:
        data = b"".join(parts)
        if hashlib.sha256(data).digest() == self._digests[index]:
            self._chunks[index] = data
        return index in self._chunks

    async def settle(self) -> None:
        pass

    def close(self) -> None:
        pass


Answer = Callable[[PeerId, AskChunk], Any]


class Mesh:
    """One exchange, and the peers around it, which do what the test says: `answers` by name, a coroutine each."""

    def __init__(self, nursery: trio.Nursery, rates: Rates | None = None) -> None:
        self.store = Store()
        self.has_room = True
        self.answers: dict[PeerId, Answer] = {}
        self.asked: list[PeerId] = []
        self.chunks_asked: Counter[int] = Counter()
        self.exchange = Exchange(cast(BlobStore, self.store), self._send, rates=rates, has_room=lambda: self.has_room)
        self._nursery = nursery
        nursery.start_soon(self.exchange.run)

    async def _send(self, peer: PeerId, frame: bytes) -> None:
        question = decode(frame)
        assert isinstance(question, AskChunk)
        self.asked.append(peer)
        self.chunks_asked[question.chunk] += 1
        self._nursery.start_soon(self.answers[peer], peer, question)

    async def tell(self, peer: PeerId, frame: ChunkPart | NotHere) -> None:
        await self.exchange.on_frame(peer, encode(frame))

    async def gives(self, peer: PeerId, question: AskChunk, data: bytes) -> None:
        chunk = data[question.chunk * MIB :][:MIB]
        for at in range(0, len(chunk), PIECE_BYTES):
            await self.tell(peer, ChunkPart(question.id, at, chunk[at : at + PIECE_BYTES]))

    async def trickles(self, peer: PeerId, question: AskChunk) -> None:
        for at in range(1000):
            await trio.sleep(5)
            await self.tell(peer, ChunkPart(question.id, at, b"\0"))

    async def refuses(self, peer: PeerId, question: AskChunk) -> None:
        await self.tell(peer, NotHere(question.id))

    def giver(self, *datas: bytes) -> PeerId:
        """A peer that has these at once."""
        known = {blob_of(data): data for data in datas}

        async def answer(peer: PeerId, question: AskChunk) -> None:
            await self.gives(peer, question, known[question.ref])

        self.answers[GIVER] = answer
        return GIVER

    def peers(self, name: str, count: int, answer: Answer) -> list[PeerId]:
        found = [PeerId(f"{name}{number}") for number in range(count)]
        self.answers.update(dict.fromkeys(found, answer))
        return found

    async def fetch(self, wanted: BlobRef | Part, sources: Sequence[PeerId], deadline_s: float = 60) -> float:
        """How many seconds it took."""
        began = trio.current_time()
        part = wanted if isinstance(wanted, Part) else Part.whole(wanted)
        await self.exchange.fetch(part, sources, deadline_s=deadline_s)
        assert self.store.has(wanted)
        return trio.current_time() - began


@asynccontextmanager
async def mesh(rates: Rates | None = None) -> AsyncIterator[Mesh]:
    async with trio.open_nursery() as nursery:
        yield Mesh(nursery, rates)
        nursery.cancel_scope.cancel()


def flows(it: Mesh, data: bytes, *, seconds: float = 0.01, until: float = math.inf) -> Answer:
    """Each peer gives a chunk in so many seconds, one after the other; none once `until` has come."""
    lines = defaultdict[PeerId, trio.Lock](trio.Lock)

    async def answer(peer: PeerId, question: AskChunk) -> None:
        async with lines[peer]:
            await trio.sleep(seconds)  # a pause: of the virtual clock
        if trio.current_time() < until:
            await it.gives(peer, question, data)

    return answer


@pytest.mark.parametrize("size", [5000, 2 * MIB])
async def test_several_that_trickle_do_not_keep_a_chunk_from_who_has_it(
    autojump_clock: trio.testing.MockClock, size: int
) -> None:
    async with mesh() as it:
        data = os.urandom(size)
        ref = it.store.know(data)
        slow = it.peers("slow", 5, it.trickles)
        assert await it.fetch(ref, [*slow, it.giver(data)]) <= 20


async def test_a_chunk_is_asked_of_no_third_while_one_of_two_is_at_work(autojump_clock: trio.testing.MockClock) -> None:
    async with mesh() as it:
        data = os.urandom(16 * MIB)
        ref = it.store.know(data)
        await it.fetch(ref, it.peers("honest", 4, flows(it, data, seconds=3)), 120)
        assert max(it.chunks_asked.values()) == 2


async def test_who_was_asked_in_vain_is_asked_last_the_next_time(autojump_clock: trio.testing.MockClock) -> None:
    async with mesh() as it:
        datas = [os.urandom(5000) for _ in range(4)]
        refs = [it.store.know(data) for data in datas]
        slow = it.peers("slow", 1, it.trickles)
        sources = [*slow, it.giver(*datas)]
        asked = []
        for ref, pause in zip(refs, (0, 500, 1000), strict=False):
            it.asked.clear()
            await trio.sleep(pause)
            await it.fetch(ref, sources)
            asked.append(list(it.asked))
        # At last that is long ago, and it gets another chance.
        assert asked == [[*slow, GIVER], [GIVER], [*slow, GIVER]]


async def test_who_delivers_again_is_asked_in_its_place_again(autojump_clock: trio.testing.MockClock) -> None:
    async with mesh() as it:
        datas = [os.urandom(5000) for _ in range(3)]
        refs = [it.store.know(data) for data in datas]
        [slow] = it.peers("slow", 1, it.trickles)
        giver = it.giver(*datas)
        await it.fetch(refs[0], [slow, giver])
        it.answers[slow] = it.answers[giver]
        await it.fetch(refs[1], [slow])
        it.asked.clear()
        await it.fetch(refs[2], [slow, giver])
        assert it.asked == [slow]


async def test_those_that_have_nothing_make_place_for_who_has_it(autojump_clock: trio.testing.MockClock) -> None:
    async with mesh() as it:
        data = os.urandom(5 * MIB)
        ref = it.store.know(data)
        bare = it.peers("bare", SOURCES_ACTIVE_MAX, it.refuses)
        assert await it.fetch(ref, [*bare, it.giver(data)]) == 0


async def test_sources_of_a_large_blob_are_used_in_their_order(autojump_clock: trio.testing.MockClock) -> None:
    async with mesh() as it:
        data = os.urandom(9 * MIB)
        ref = it.store.know(data)
        slow = it.peers("slow", SOURCES_ACTIVE_MAX, it.trickles)
        with pytest.raises(BlobUnavailable):
            await it.fetch(ref, [*slow, it.giver(data)])
        assert GIVER not in it.asked
        await trio.sleep(5)  # as long as a node waits before it tries again  # a pause: of the virtual clock
        assert await it.fetch(ref, [*slow, GIVER]) < 20


async def test_a_source_that_had_nothing_is_asked_for_what_is_wanted_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with mesh() as it:
        data = os.urandom(6 * MIB)
        ref = it.store.know(data)

        async def has_the_beginning(peer: PeerId, question: AskChunk) -> None:
            await (it.gives(peer, question, data) if question.chunk < 5 else it.refuses(peer, question))

        low = it.peers("low", 1, has_the_beginning)
        slow = it.peers("slow", 1, it.trickles)

        async def in_vain() -> None:
            with pytest.raises(BlobUnavailable):
                await it.fetch(Part(ref, 5, 1), [*low, *slow], 50)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_vain)
            await trio.sleep(30)  # a pause: of the virtual clock
            assert it.asked == [*low, *slow]
            assert await it.fetch(Part(ref, 0, 5), []) < 5


async def test_a_further_source_is_not_asked_while_one_brings_all_that_this_machine_takes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with mesh() as it:
        data = os.urandom(40 * MIB)
        ref = it.store.know(data)
        it.has_room = False
        first, further = it.peers("first", 1, flows(it, data)), it.peers("further", 2, flows(it, data))
        assert await it.fetch(ref, [*first, *further]) == pytest.approx(0.4)
        assert set(it.asked) == {*first}


async def test_further_sources_are_asked_as_soon_as_there_is_room(autojump_clock: trio.testing.MockClock) -> None:
    async with mesh() as it:
        data = os.urandom(60 * MIB)
        ref = it.store.know(data)
        it.has_room = False
        first, further = it.peers("first", 1, flows(it, data)), it.peers("further", 1, flows(it, data))

        async def room_appears() -> None:
            await trio.sleep(0.2)  # a pause: of the virtual clock
            assert set(it.asked) == {*first}
            it.has_room = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(room_appears)
            assert await it.fetch(ref, [*first, *further]) <= 0.2 + IN_FLOW_S + 0.2 + 0.05


@pytest.mark.parametrize("until", [0.0, 0.2])
async def test_a_source_that_brings_nothing_keeps_no_other_from_its_turn(
    autojump_clock: trio.testing.MockClock, until: float
) -> None:
    async with mesh() as it:
        data = os.urandom(40 * MIB)
        ref = it.store.know(data)
        it.has_room = False
        stuck, giver = it.peers("stuck", 1, flows(it, data, until=trio.current_time() + until)), it.giver(data)
        # What was asked of the stuck one is asked elsewhere after the hedge.
        assert await it.fetch(ref, [*stuck, giver]) <= until + 3 * IN_FLOW_S + Timing().hedge
        assert it.asked.count(giver) >= 16


async def test_a_source_that_is_lost_keeps_no_other_from_its_turn(autojump_clock: trio.testing.MockClock) -> None:
    async with mesh() as it:
        data = os.urandom(40 * MIB)
        ref = it.store.know(data)
        it.has_room = False
        first, giver = it.peers("first", 1, flows(it, data)), it.giver(data)

        async def breaks() -> None:
            await trio.sleep(0.205)  # a pause: of the virtual clock
            it.answers.update(dict.fromkeys(first, it.refuses))
            it.exchange.peer_gone(first[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaks)
            assert await it.fetch(ref, [*first, giver]) == pytest.approx(0.205)


RATE = 256 << 10
CAPS = pytest.mark.parametrize("caps", [Caps(down_max=RATE), Caps(down_max=RATE, peer_down_max=RATE)])


@CAPS
async def test_who_does_not_have_it_takes_nothing_of_the_cap(
    autojump_clock: trio.testing.MockClock, caps: Caps
) -> None:
    async with mesh(Rates(caps)) as it:
        data = os.urandom(8 * MIB)
        bare = it.peers("bare", 12, it.refuses)
        seconds = await it.fetch(it.store.know(data), [it.giver(data), *bare], 120)
        # Not more than once again what the cap costs: a refusal too is waited for, but not paid for.
        assert seconds < 2 * 8 * MIB / RATE


async def test_what_waits_for_the_cap_is_asked_of_nobody_else(autojump_clock: trio.testing.MockClock) -> None:
    async with mesh(Rates(Caps(peer_down_max=RATE))) as it:
        data = os.urandom(5 * MIB)
        ref = it.store.know(data)
        giver = it.giver(data)
        other = it.peers("other", 1, it.answers[giver])
        await it.fetch(ref, [giver, *other], 120)
        assert len(it.asked) == 5


async def test_a_fetch_that_was_given_up_while_it_waited_for_the_cap_owes_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with mesh(Rates(Caps(down_max=RATE))) as it:
        datas = [os.urandom(size) for size in (8 * MIB, 2 * MIB)]
        refs = [it.store.know(data) for data in datas]
        giver = it.giver(*datas)
        with pytest.raises(BlobUnavailable):
            await it.fetch(refs[0], [giver], 10)
        assert await it.fetch(refs[1], [giver]) <= 2 * MIB / RATE
