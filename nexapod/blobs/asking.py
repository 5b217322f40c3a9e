"""One question to one peer, and its answer: numbering, windows, timeouts. Does not know what a fetch is."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import trio

from nexapod.blobs.frames import Answer, AskChunk, AskList, ChunkPart, ListPart, NotHere, Question, encode
from nexapod.blobs.rates import Rates
from nexapod.blobs.serving import LINK_ERRORS, Send
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import PeerId

ASKED_PER_PEER_MAX = 12
"""Questions open at one peer: below what an honest server accepts, even with some that we gave up."""
MEMORY_MAX = 64 << 20
"""Bytes of all answers that may be in memory at once."""
GIVEN_UP_MAX = 1024
"""Questions given up, of all peers, whose answers are still known when they come."""
SLOW_S = 600.0
SLOW_PEERS_MAX = 1024
"""So many peers that were asked in vain are asked behind the others, each for so long."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `stall`: a silent source is given up. `answer`: one chunk, however it trickles. `hedge`: a
    chunk out for so long is asked of a second source. `send`: one frame into a link."""

    stall: float = 10.0
    answer: float = 120.0
    hedge: float = 2.0
    send: float = 20.0


class Failure(Enum):
    """Why a question has no answer."""

    NOT_HERE = "does not have it"
    SILENT = "did not answer in time"
    GONE = "is not connected"
    BROKE_RULES = "sent a wrong answer"


Parts: TypeAlias = Sequence[bytes | memoryview]
Outcome: TypeAlias = Parts | Failure
"""An answer's bytes, in the pieces in which they came."""


@dataclass(eq=False, slots=True)
class _Asked:
    """An open question. `size`: the bytes that its answer must have."""

    peer: PeerId
    question: Question
    size: int
    at: float
    parts: list[bytes | memoryview] = field(default_factory=list)
    received: int = 0
    failure: Failure | None = None
    done: trio.Event = field(default_factory=trio.Event)

    def end(self, failure: Failure | None = None) -> None:
        self.failure = failure
        self.done.set()


@dataclass(eq=False, slots=True)
class _GivenUp:
    """A question that nobody waits for any more. `left`: bytes that its answer may still bring."""

    peer: PeerId
    left: int


@dataclass(eq=False, slots=True)
class _Peer:
    """What is shared by the questions open at one peer; lives as long as there are any."""

    window: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(ASKED_PER_PEER_MAX))
    heard: float = 0.0
    delivered: float = -math.inf
    """When it last gave a whole answer."""
    users: int = 0


class ByteBudget:
    """Bytes of memory shared by many tasks, first come first served."""

    def __init__(self, total: int) -> None:
        self._free = total
        self._turn = trio.Lock()
        self._released = trio.Event()

    async def acquire(self, amount: int) -> None:
        """Wait until `amount` bytes (at most the total) are free, and take them."""
        async with self._turn:
            while self._free < amount:
                self._released = trio.Event()
                await self._released.wait()
            self._free -= amount

    def release(self, amount: int) -> None:
        self._free += amount
        self._released.set()


class Asker:
    """All open questions of this machine."""

    def __init__(self, send: Send, timing: Timing, rates: Rates) -> None:
        self._send = send
        self._timing = timing
        self._rates = rates
        self._asked: dict[int, _Asked] = {}
        self._given_up: OrderedDict[int, _GivenUp] = OrderedDict()
        self._slow: OrderedDict[PeerId, float] = OrderedDict()
        """When each of these had been asked in vain. One that trickles its answers is never silent: it is known only
        by what it does not deliver."""
        self._peers: dict[PeerId, _Peer] = {}
        self._next_id = 0
        self._memory = ByteBudget(MEMORY_MAX)

    async def ask(
        self, peer: PeerId, question: Callable[[int], Question], size: int, told: Callable[[float], None] | None = None
    ) -> Outcome:
        """Ask, and wait for an answer of exactly `size` bytes.

        `told` hears since when the peer is waited for: math.inf while it is our own cap that holds the question back.
        """
        told = told or (lambda since: None)
        state = self._peers.setdefault(peer, _Peer())
        state.users += 1
        try:
            async with state.window:
                await self._memory.acquire(size)
                try:
                    told(math.inf)
                    await self._rates.down(peer, size)
                    told(trio.current_time())
                    return await self._ask(peer, state, question, size)
                finally:
                    self._memory.release(size)
        finally:
            state.users -= 1
            if not state.users:
                del self._peers[peer]

    def ranked(self, peers: Sequence[PeerId]) -> list[PeerId]:
        """Those that were lately asked in vain come last; otherwise in the order given."""
        since = trio.current_time() - SLOW_S
        return sorted(peers, key=lambda peer: self._slow.get(peer, -math.inf) > since)

    def on_answer(self, peer: PeerId, frame: Answer) -> None:
        """Take in an answer. Raises PeerError when it is none of ours, or not one to what was asked."""
        asked = self._asked.get(frame.id)
        if asked is None:
            if frame.id >= self._next_id:
                raise PeerError("bulk-unasked", "an answer to a question that was never asked")
            self._late(peer, frame)
            return
        if asked.peer != peer:
            raise PeerError("bulk-unasked", "an answer to a question asked of another peer")
        if asked.done.is_set():
            return  # its link broke, or it has all its bytes: the asking task is about to see that
        self._peers[peer].heard = trio.current_time()
        if isinstance(frame, NotHere):
            asked.end(Failure.NOT_HERE)
        elif not _fits(asked, frame):
            asked.end(Failure.BROKE_RULES)
            raise PeerError("bulk-answer", "of another kind or length than asked")
        else:
            asked.parts.append(frame.data)
            asked.received += len(frame.data)
            if asked.received == asked.size:
                asked.end()

    def _late(self, peer: PeerId, frame: Answer) -> None:
        """Take note of an answer to what we gave up. Its peer answers in order: while that one is on its way here, the
        peer is not silent about what we ask it now.

        Only for as many bytes as were asked for: whoever goes on sending must at last answer.
        """
        given_up = self._given_up.get(frame.id)
        if given_up is None or given_up.peer != peer:
            return
        if peer in self._peers:
            self._peers[peer].heard = trio.current_time()
        given_up.left -= 0 if isinstance(frame, NotHere) else len(frame.data)
        if isinstance(frame, NotHere) or given_up.left <= 0:
            del self._given_up[frame.id]

    def peer_gone(self, peer: PeerId) -> None:
        """Its link is gone: no answer will come."""
        for asked in self._asked.values():
            if asked.peer == peer:
                asked.end(Failure.GONE)

    async def _ask(self, peer: PeerId, state: _Peer, question: Callable[[int], Question], size: int) -> Outcome:
        id = self._next_id
        self._next_id += 1
        asked = _Asked(peer, question(id), size, trio.current_time())
        self._asked[id] = asked
        try:
            with trio.fail_after(self._timing.send):
                await self._send(peer, encode(asked.question))
            await self._wait(asked, state)
        except LINK_ERRORS:
            asked.end(Failure.GONE)
        except trio.TooSlowError:
            return Failure.SILENT
        finally:
            del self._asked[id]
            if not asked.done.is_set():
                self._give_up(id, asked, state)
        if asked.failure in (Failure.NOT_HERE, Failure.GONE):
            self._rates.not_down(peer, size - asked.received)
        if asked.failure:
            return asked.failure
        state.delivered = trio.current_time()
        self._slow.pop(peer, None)
        return asked.parts

    def _give_up(self, id: int, asked: _Asked, state: _Peer) -> None:
        self._given_up[id] = _GivenUp(asked.peer, asked.size - asked.received)
        if len(self._given_up) > GIVEN_UP_MAX:
            self._given_up.popitem(last=False)
        now = trio.current_time()
        if now - max(asked.at, state.delivered) >= self._timing.hedge:
            self._slow[asked.peer] = now
            self._slow.move_to_end(asked.peer)
            if len(self._slow) > SLOW_PEERS_MAX:
                self._slow.popitem(last=False)

    async def _wait(self, asked: _Asked, state: _Peer) -> None:
        """Until it is answered. Raises TooSlowError once the peer is silent for too long.

        Answers come one after another: while the peer is busy with an earlier one of ours it is not silent.
        """
        while not asked.done.is_set():
            deadline = min(max(asked.at, state.heard) + self._timing.stall, asked.at + self._timing.answer)
            if trio.current_time() >= deadline:
                raise trio.TooSlowError
            with trio.move_on_at(deadline):
                await asked.done.wait()


def _fits(asked: _Asked, frame: ListPart | ChunkPart) -> bool:
    if asked.received + len(frame.data) > asked.size:
        return False
    if isinstance(frame, ChunkPart):
        return isinstance(asked.question, AskChunk) and frame.offset == asked.received
    # A list answer is one frame: what is asked for fits.
    return isinstance(asked.question, AskList) and len(frame.data) == asked.size
