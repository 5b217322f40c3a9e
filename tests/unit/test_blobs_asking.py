"""nexapod.blobs.asking: who counts as silent, on a slow line and where a liar keeps the line busy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio
import trio.testing

from nexapod.blobs.asking import GIVEN_UP_MAX, Asker, Failure, Outcome, Timing
from nexapod.blobs.frames import AskChunk, ChunkPart, NotHere, decode
from nexapod.blobs.rates import Rates
from nexapod.protocol.primitives import PeerId, blob_of

ANN = PeerId("ann")
SIZE = 100
TIMING = Timing(stall=10, answer=60)


class Peer:
    """One that is asked, and answers only when the test says so."""

    def __init__(self, rates: Rates | None = None) -> None:
        self.asked: list[AskChunk] = []
        self.asker = Asker(self._send, TIMING, rates or Rates())

    async def _send(self, peer: PeerId, frame: bytes) -> None:
        question = decode(frame)
        assert isinstance(question, AskChunk)
        self.asked.append(question)

    async def ask(self, size: int = SIZE) -> Outcome:
        return await self.asker.ask(ANN, partial(AskChunk, ref=blob_of(bytes(size)), chunk=0), size)

    def sends(self, number: int, offset: int, count: int) -> None:
        self.asker.on_answer(ANN, ChunkPart(self.asked[number].id, offset, bytes(count)))


async def given_up(ask: Callable[[], Awaitable[Outcome]]) -> None:
    with trio.move_on_after(1):
        await ask()


async def test_a_peer_that_still_sends_what_was_given_up_is_not_silent(autojump_clock: trio.testing.MockClock) -> None:
    peer = Peer()
    await given_up(peer.ask)
    outcomes: list[Outcome] = []

    async def ask_again() -> None:
        outcomes.append(await peer.ask())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_again)
        for part in range(4):
            await trio.sleep(9)
            peer.sends(0, part * 25, 25)
        await trio.sleep(9)  # a pause: of the virtual clock
        peer.sends(1, 0, SIZE)
    assert [b"".join(outcome) for outcome in outcomes if not isinstance(outcome, Failure)] == [bytes(SIZE)]


async def test_sending_more_than_was_asked_for_does_not_keep_a_peer_alive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = Peer()
    await given_up(peer.ask)

    async def chatter(frame: Callable[[], None]) -> None:
        while True:
            await trio.sleep(1)
            frame()

    for frame in (
        lambda: peer.sends(0, 0, 50),  # twice, and it has brought all that it may
        lambda: peer.asker.on_answer(ANN, NotHere(0)),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chatter, frame)
            began = trio.current_time()
            assert await peer.ask() is Failure.SILENT
            assert trio.current_time() - began < 15
            nursery.cancel_scope.cancel()


async def test_what_was_given_up_is_remembered_within_bounds(autojump_clock: trio.testing.MockClock) -> None:
    peer = Peer()
    async with trio.open_nursery() as nursery:
        for _ in range(GIVEN_UP_MAX + 50):
            nursery.start_soon(given_up, peer.ask)
            await trio.testing.wait_all_tasks_blocked()
            if len(peer.asked) % 10 == 0:
                await trio.sleep(2)
    assert len(peer.asker._given_up) == GIVEN_UP_MAX
    assert peer.asker._asked == {}
