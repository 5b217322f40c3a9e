"""Whom to ask for a blob, in which order, and when to ask further peers. Does not know how a blob is brought here."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

import structlog
import trio

from nexapod.blobs.errors import BlobError, BlobUnavailable
from nexapod.protocol.primitives import BlobRef, Digest, Part, PeerId

log = structlog.get_logger()

HEDGE_S: Final = 3.0
HEDGE_BYTES_S: Final = 8 << 20
HEDGE_S_MAX: Final = 15.0
"""Further peers are asked when the ones before do not have it, or have not delivered within HEDGE_S, and a second more
for each HEDGE_BYTES_S: a large blob takes a while even from a good peer."""
FETCH_S: Final = 60.0
FETCH_BYTES_S: Final = 128 << 10
"""A fetch ends after FETCH_S and, for each of so many bytes, one second more. What has arrived by then stays."""
NEIGHBOURS_MAX: Final = 8
PROVIDERS_MAX: Final = 8


class Fetcher(Protocol):
    """What brings a part here: blobs.exchange.Exchange."""

    async def fetch(self, part: Part, sources: Sequence[PeerId], *, deadline_s: float) -> None: ...


class Providers:
    """Fetches parts: from those who were named, then from connected neighbours, then from whom the DHT names."""

    def __init__(
        self,
        exchange: Fetcher,
        *,
        connected: Callable[[], Mapping[PeerId, str]],
        lookup: Callable[[Digest, int], Awaitable[list[PeerId]]],
        addrs: Callable[[PeerId], Sequence[str]],
        me: PeerId,
    ) -> None:
        """`connected()`: peers with a link, and their remote multiaddr. `addrs(peer)`: where it says it is."""
        self._exchange = exchange
        self._connected = connected
        self._lookup = lookup
        self._addrs = addrs
        self._me = me

    async def fetch_whole(self, ref: BlobRef) -> None:
        """Bring a blob here of which nobody said who has it. Raises BlobError."""
        await self.fetch(Part.whole(ref), ())

    async def fetch(self, part: Part, sources: Sequence[PeerId], *, deadline_s: float | None = None) -> None:
        """Bring a part here. `sources`: who should have it. `deadline_s`: by default what its size needs on a slow
        line. Raises BlobUnavailable when nobody gave it in time, BlobError.
        """
        limit_s = FETCH_S + part.size / FETCH_BYTES_S if deadline_s is None else deadline_s
        search = _Search(self._exchange, part, limit_s)
        with trio.move_on_after(limit_s):
            async with trio.open_nursery() as nursery:
                await search.ask(self.ranked(sources), nursery)
                await search.ask(self._neighbours(search.asked), nursery)
                if not search.is_over:
                    named = await self._lookup(part.blob.digest, PROVIDERS_MAX)
                    await search.ask(self.ranked([peer for peer in named if peer not in search.asked]), nursery)
                await search.wait()
                nursery.cancel_scope.cancel()
        if not search.found:
            raise search.error or BlobUnavailable(f"blob {part.blob}: not here in time")

    def ranked(self, peers: Sequence[PeerId]) -> list[PeerId]:
        """Peers in the order in which to ask them: connected ones nearby, connected ones, those with an address, and
        the rest; as given within each.
        """
        linked = self._connected()
        others = [peer for peer in dict.fromkeys(peers) if peer != self._me]
        return sorted(others, key=lambda peer: self._rank(peer, linked))

    def _rank(self, peer: PeerId, linked: Mapping[PeerId, str]) -> int:
        if peer in linked:
            return 0 if is_nearby(linked[peer]) else 1
        return 2 if self._addrs(peer) else 3

    def _neighbours(self, asked: set[PeerId]) -> list[PeerId]:
        return self.ranked([peer for peer in sorted(self._connected()) if peer not in asked])[:NEIGHBOURS_MAX]


class _Search:
    """One fetch in several attempts, which the exchange joins: their sources add up."""

    def __init__(self, exchange: Fetcher, part: Part, limit_s: float) -> None:
        self._limit_s = limit_s
        self.asked: set[PeerId] = set()
        self.found = False
        self.error: BlobError | None = None
        self._exchange = exchange
        self._part = part
        self._begun = False
        self._running = 0
        self._changed = trio.Event()

    @property
    def is_over(self) -> bool:
        """It is here, or cannot be stored here, whoever gives it."""
        return self.found or not isinstance(self.error, BlobUnavailable | None)

    async def ask(self, peers: Sequence[PeerId], nursery: trio.Nursery) -> None:
        """Ask these too, and give them some time before anybody else is asked. The first time even without any: it may
        be here.
        """
        if self.is_over or (self._begun and not peers):
            return
        self._begun = True
        self.asked.update(peers)
        self._running += 1
        nursery.start_soon(self._attempt, peers)
        with trio.move_on_after(min(HEDGE_S_MAX, HEDGE_S + self._part.size / HEDGE_BYTES_S)):
            await self.wait()

    async def wait(self) -> None:
        """Until it is here, or all attempts have failed."""
        while self._running and not self.is_over:
            await self._changed.wait()

    async def _attempt(self, peers: Sequence[PeerId]) -> None:
        try:
            await self._exchange.fetch(self._part, peers, deadline_s=self._limit_s)
            self.found = True
        except BlobError as error:
            log.info("blob_not_fetched", blob=str(self._part.blob), chunks=self._part.count, error=str(error))
            self.error = error
        finally:
            self._running -= 1
            self._changed.set()
            self._changed = trio.Event()


def is_nearby(addr: str) -> bool:
    """Whether a multiaddr is on this machine or in a private network."""
    parts = addr.split("/")
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return False
    try:
        host = ipaddress.ip_address(parts[2])
    except ValueError:
        return False
    return host.is_private or host.is_loopback or host.is_link_local
