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

from nexapod.protocol.types import PeerId

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

    Whoever takes may run into debt, and waits until it is paid: first come, first served, and a piece may be larger
    than the bucket.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._full_at = -math.inf
        """When the bucket is, or was, full again: the debt and the credit in one number."""

    def due_in(self, size: int) -> float:
        """Take `size` bytes, and say for how many seconds to wait before they may move."""
        now = trio.current_time()
        begins = max(self._full_at, now - 1.0)
        self._full_at = begins + size / self._rate
        return max(0.0, self._full_at - now)


class _Direction:
    """One way: a bucket for all, and one for each peer that moved something lately."""

    def __init__(self, total: int | None, each: int | None) -> None:
        self._total = TokenBucket(total) if total else None
        self._each = each
        self._peers: OrderedDict[PeerId, TokenBucket] = OrderedDict()

    async def move(self, peer: PeerId, size: int) -> None:
        pause = self._total.due_in(size) if self._total else 0.0
        if self._each:
            pause = max(pause, self._bucket(peer, self._each).due_in(size))
        if pause > 0:
            await trio.sleep(pause)

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

    def piece_bytes(self, most: int) -> int:
        """How large a piece of an answer to send at once."""
        if self._slowest_up is None:
            return most
        return max(PIECE_BYTES_MIN, min(most, int(self._slowest_up * PIECE_S)))
