"""How many bytes a second blobs may move: for this machine and for each peer, up and down.

Up, a frame is sent when its bytes are due. Down, a chunk is asked for when its bytes are due: nobody can be made to
send slower than they do, but nobody sends what was not asked for. Knows trio's clock and nothing of blobs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import trio

from nexapod.protocol.primitives import PeerId

RATE_MIN: Final = 64 << 10
"""Below it an answer would take longer than the peers that asked wait for it."""
PEERS_MAX: Final = 1024
PIECE_S: Final = 1.0
"""A capped sender sends pieces of at most so long: a peer that hears nothing for long takes it for gone."""
PIECE_BYTES_MIN: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class Caps:
    """Bytes a second, at least RATE_MIN; None: no cap. `peer_...`: for each peer by itself."""

    up_max: int | None = None
    down_max: int | None = None
    peer_up_max: int | None = None
    peer_down_max: int | None = None


class TokenBucket:
    """`rate` bytes a second, of which a second's worth may come at once after a pause.

    Whoever takes waits until that is due: first come, first served, and a piece may be larger than the bucket.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._full_at = -math.inf
        """When the bucket is, or was, full again: the debt and the credit in one number."""
        self._spare = 0
        """Bytes that were waited for and then did not move, at most one piece of them: the next one's."""
        self._turn = trio.Lock()
        self._returned = trio.Event()

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may move. Cancelled, it has taken nothing."""
        async with self._turn:
            self._full_at = max(self._full_at, trio.current_time() - 1.0)
            while (due := self._due(size)) > trio.current_time():
                with trio.move_on_at(due):
                    await self._returned.wait()
            self._full_at = due
            self._spare = max(0, self._spare - size)

    def give_back(self, size: int) -> None:
        """So many of the bytes taken will not move."""
        self._spare = max(self._spare, size)
        self._returned.set()
        self._returned = trio.Event()

    def _due(self, size: int) -> float:
        return self._full_at + max(0, size - self._spare) / self._rate


class _Direction:
    """One way: a bucket for all, and one for each peer that moved something lately."""

    def __init__(self, total: int | None, each: int | None) -> None:
        self._total = TokenBucket(total) if total else None
        self._each = each
        self._peers: OrderedDict[PeerId, TokenBucket] = OrderedDict()

    async def move(self, peer: PeerId, size: int) -> None:
        # The peer's own first: whoever has to wait for that one holds up nobody else.
        each = self._bucket(peer, self._each) if self._each else None
        if each:
            await each.take(size)
        if self._total:
            try:
                await self._total.take(size)
            except trio.Cancelled:
                if each:
                    each.give_back(size)
                raise

    def give_back(self, peer: PeerId, size: int) -> None:
        if self._each:
            self._bucket(peer, self._each).give_back(size)
        if self._total:
            self._total.give_back(size)

    def _bucket(self, peer: PeerId, rate: int) -> TokenBucket:
        bucket = self._peers.setdefault(peer, TokenBucket(rate))
        self._peers.move_to_end(peer)
        if len(self._peers) > PEERS_MAX:
            # The one unused for longest; only with more peers than that at once does it still owe something.
            self._peers.popitem(last=False)
        return bucket


class Rates:
    """All caps of this machine."""

    def __init__(self, caps: Caps | None = None) -> None:
        caps = caps or Caps()
        self._up = _Direction(caps.up_max, caps.peer_up_max)
        self._down = _Direction(caps.down_max, caps.peer_down_max)
        self._slowest_up = min((rate for rate in (caps.up_max, caps.peer_up_max) if rate), default=None)

    async def up(self, peer: PeerId, size: int) -> None:
        """Wait until so many bytes may go to a peer."""
        await self._up.move(peer, size)

    async def down(self, peer: PeerId, size: int) -> None:
        """Wait until so many bytes may be asked of a peer."""
        await self._down.move(peer, size)

    def not_down(self, peer: PeerId, size: int) -> None:
        """So many bytes that were asked for will not come."""
        self._down.give_back(peer, size)

    def piece_bytes(self, most: int) -> int:
        """How large a piece of an answer to send at once."""
        if self._slowest_up is None:
            return most
        return max(PIECE_BYTES_MIN, min(most, int(self._slowest_up * PIECE_S)))
