"""Which peers are known, where they may be reached, and when it is worth trying again; and the dialling itself.

Decides nothing about how many peers to keep (keeping.py) and nothing about what is said to them.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
import trio

from nexapod.mesh import containment
from nexapod.mesh.addresses import dialable, same_host
from nexapod.mesh.library import DIAL_ERRORS, ID, STREAM_ERRORS, Multiaddr
from nexapod.protocol.primitives import PeerId

log = structlog.get_logger()

PEERS_MAX: Final = 4096
ADDRS_PER_PEER_MAX: Final = 8
BACKOFF_MIN_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
FOREIGN_S: Final = 600.0
DIAL_S: Final = 5.0
DIAL_STAGGER_S: Final = 0.25
DIALS_MAX: Final = 16
DIAL_BACKS_MAX: Final = 4
"""Addresses at which a peer that has dialled this one is looked for, at a time."""
BANS_MAX: Final = 4096
_ADDR_TTL_S: Final = 3600


@dataclass(slots=True)
class _Known:
    addrs: OrderedDict[str, None] = field(default_factory=OrderedDict)
    pinned: bool = False
    """Configured by the user: never forgotten."""
    failures: int = 0
    ready_at: float = 0.0


class AddressBook:
    """Peers and their addresses, bounded: the one longest unheard of goes first, configured ones never."""

    def __init__(self, own: PeerId, clock: Callable[[], float] = trio.current_time) -> None:
        self._own = own
        self._clock = clock
        self._known: OrderedDict[PeerId, _Known] = OrderedDict()
        self._bans: OrderedDict[PeerId, float] = OrderedDict()
        """Until when, by the clock; of too many the one that was said first is forgotten."""

    def learn(self, peer: PeerId, addrs: Iterable[str], *, pinned: bool = False) -> bool:
        """Add what can be dialled of `addrs`, most recent first. True when something is new."""
        usable = dialable(peer, addrs)
        if peer == self._own or not usable:
            return False
        known = self._known.setdefault(peer, _Known())
        self._known.move_to_end(peer)
        known.pinned = known.pinned or pinned
        new = [addr for addr in usable if addr not in known.addrs]
        for addr in reversed(usable):
            known.addrs[addr] = None
            known.addrs.move_to_end(addr, last=False)
        while len(known.addrs) > ADDRS_PER_PEER_MAX:
            known.addrs.popitem()
        if new:
            known.ready_at = min(known.ready_at, self._clock() + BACKOFF_MIN_S)
        self._shrink()
        return bool(new)

    def _shrink(self) -> None:
        while len(self._known) > PEERS_MAX:
            oldest = next((peer for peer, known in self._known.items() if not known.pinned), None)
            if oldest is None:
                return
            del self._known[oldest]

    def addrs(self, peer: PeerId) -> list[str]:
        known = self._known.get(peer)
        return list(known.addrs) if known else []

    def ready(self, peer: PeerId) -> bool:
        """Whether its backoff is over; a peer that is not known is ready, one that is banned is not."""
        if self.banned(peer):
            return False
        known = self._known.get(peer)
        return known is None or known.ready_at <= self._clock()

    def candidates(self, leave_out: Iterable[PeerId]) -> list[PeerId]:
        """Peers worth dialling now, in random order: so that a starting network does not dial one peer all at once."""
        out = set(leave_out)
        found = [peer for peer, known in self._known.items() if peer not in out and known.addrs and self.ready(peer)]
        random.shuffle(found)
        return found

    def failed(self, peer: PeerId) -> None:
        """Doubling backoff, with jitter, from 1 s to 60 s."""
        known = self._known.setdefault(peer, _Known())
        known.failures += 1
        pause = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(known.failures - 1, 10))
        known.ready_at = self._clock() + pause * random.uniform(0.7, 1.3)  # noqa: S311  (jitter, not a secret)
        self._shrink()

    def succeeded(self, peer: PeerId) -> None:
        known = self._known.get(peer)
        if known:
            known.failures, known.ready_at = 0, 0.0
            self._known.move_to_end(peer)

    def foreign(self, peer: PeerId) -> None:
        """Leave a peer of another network alone for ten minutes."""
        known = self._known.setdefault(peer, _Known())
        known.ready_at = self._clock() + FOREIGN_S
        self._shrink()

    def ban(self, peer: PeerId, seconds: float) -> None:
        """Have nothing to do with a peer for so long from now."""
        self._bans.pop(peer, None)
        self._bans[peer] = self._clock() + seconds
        if len(self._bans) > BANS_MAX:
            self._bans.popitem(last=False)

    def banned(self, peer: PeerId) -> bool:
        """Whether nothing is to be had to do with it now."""
        until = self._bans.get(peer)
        if until is not None and until <= self._clock():
            del self._bans[peer]
            return False
        return until is not None

    def forget_addr(self, peer: PeerId, addr: str) -> None:
        known = self._known.get(peer)
        if known:
            known.addrs.pop(addr, None)

    def __len__(self) -> int:
        return len(self._known)


class Dialler:
    """Connects to peers through the book: one dial a peer at a time, all its addresses, staggered."""

    def __init__(self, host: Any, book: AddressBook, said_addrs: Callable[[PeerId], Iterable[str]]) -> None:
        self._host = host
        self._book = book
        self._said_addrs = said_addrs
        self._limit = trio.CapacityLimiter(DIALS_MAX)
        self._dials: dict[PeerId, trio.Event] = {}

    @property
    def dialling(self) -> frozenset[PeerId]:
        return frozenset(self._dials)

    def connected(self, peer: PeerId) -> bool:
        connections = self._host.get_network().get_connections(ID.from_base58(peer))
        return any(not connection.is_closed for connection in connections)

    async def connect(self, peer: PeerId) -> bool:
        """Whether there is a connection in the end. Takes up to DIAL_S; a peer in its backoff is not tried."""
        if self.connected(peer):
            return True
        if peer in self._dials:
            await self._dials[peer].wait()
            return self.connected(peer)
        if not self._book.ready(peer):
            return False
        done = self._dials[peer] = trio.Event()
        try:
            async with self._limit:
                await self._dial(peer)
        finally:
            del self._dials[peer]
            done.set()
        if self.connected(peer):
            self._book.succeeded(peer)
            return True
        self._book.failed(peer)
        return False

    async def answers(self, peer: PeerId, seen: str) -> bool:
        """Whether a peer can be dialled: it answers at an address where it says it is, with its own key.

        Only on the host that its own link comes from (`seen`, a multiaddr): or a peer could have any machine dialled by
        everybody that it links to. No connection comes of it, so it may be asked of a peer that is connected already.
        Takes up to DIAL_S.
        """
        identity = ID.from_base58(peer)
        said = (*self._said_addrs(peer), *containment.identified_addrs(self._host, identity), *self._book.addrs(peer))
        addrs = [addr for addr in dialable(peer, said) if same_host(addr, seen)]
        async with self._limit:
            with trio.move_on_after(DIAL_S):
                for addr in addrs[:DIAL_BACKS_MAX]:
                    try:
                        await containment.shake_hands(self._host, Multiaddr(f"{addr}/p2p/{peer}"), identity)
                    except DIAL_ERRORS as error:
                        log.debug("peer_not_reached", peer=peer, addr=addr, error=repr(error)[:120])
                    else:
                        return True
        return False

    async def _dial(self, peer: PeerId) -> None:
        containment.forget_failed_dial(self._host, peer)
        addrs = self._book.addrs(peer)
        if not addrs:
            log.debug("no_address_to_dial", peer=peer)
            return
        with trio.move_on_after(DIAL_S):
            async with trio.open_nursery() as nursery:
                for addr in addrs:
                    failed = trio.Event()
                    nursery.start_soon(self._dial_addr, peer, addr, failed, nursery.cancel_scope)
                    with trio.move_on_after(DIAL_STAGGER_S):
                        await failed.wait()

    async def _dial_addr(self, peer: PeerId, addr: str, failed: trio.Event, others: trio.CancelScope) -> None:
        identity = ID.from_base58(peer)
        target = Multiaddr(f"{addr}/p2p/{peer}")
        try:
            self._host.get_peerstore().add_addrs(identity, [Multiaddr(addr)], _ADDR_TTL_S)
            await self._host.get_network().dial_addr(target, identity)
            others.cancel()
        except STREAM_ERRORS as error:
            self._explain(peer, addr, error)
            failed.set()

    def _explain(self, peer: PeerId, addr: str, error: Exception) -> None:
        reason = " < ".join(_reasons(error))
        if "PeerIDMismatchesPubkey" in reason:
            log.warning("address_belongs_to_another_peer", peer=peer, addr=addr)
            self._book.forget_addr(peer, addr)
        else:
            log.debug("dial_failed", peer=peer, addr=addr, reason=reason[:200])


def _reasons(error: BaseException) -> list[str]:
    """An error and what caused it, outermost first."""
    found: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(found) < 8:
        found.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    return found
