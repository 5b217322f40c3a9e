"""Finding peers: whom the Kademlia network or the core knows, the mesh learns; whom it has met, the store remembers.

A peer that knows one bootstrap address finds the others through it, and needs it no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog
import trio

from nexapod.dht.dht import Dht
from nexapod.mesh.mesh import Mesh
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import PeerId
from nexapod.store.store import Store

log = structlog.get_logger()

EAGER_S = (0.3, 0.3, 0.5, 1.0, 1.0, 2.0, 3.0, 5.0, 10.0)
"""Pauses between look-ups after the start, when few peers are known."""
LOOKUP_S = 60.0
REMEMBER_S = 60.0
FOUND_MAX = 32
KNOWN_MAX = 8
"""Peers of which the core has heard, and that the mesh is told of at a time."""


class Discovery:
    """Runs until cancelled; every look-up has the DHT's own deadline."""

    def __init__(
        self,
        mesh: Mesh,
        dht: Dht,
        store: Store,
        addrs: Callable[[PeerId], Sequence[str]],
        known: Callable[[int], Sequence[tuple[PeerId, Sequence[str]]]],
    ) -> None:
        """`known(count)`: peers without a link of which the core has heard, and where they say they are."""
        self._mesh = mesh
        self._dht = dht
        self._store = store
        self._addrs = addrs
        self._known = known

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look)
            nursery.start_soon(self._remember)

    async def _look(self) -> None:
        rounds = 0
        while True:
            await trio.sleep(EAGER_S[rounds] if rounds < len(EAGER_S) else LOOKUP_S)
            if self._mesh.connected():
                rounds += 1
            for peer, addrs in (*await self._dht.find_peers(FOUND_MAX), *self._known(KNOWN_MAX)):
                if peer != self._mesh.peer_id:
                    self._mesh.learn(peer, addrs)

    async def _remember(self) -> None:
        """Where connected peers were reached, for the next start. Losing it costs a look-up, no more."""
        while True:
            await trio.sleep(REMEMBER_S)
            await self.remember()

    async def remember(self) -> None:
        now = int(time.time() * 1000)
        rows = [(peer, addrs, now) for peer in self._mesh.connected() if (addrs := self._addrs(peer))]
        try:
            await self._store.remember_peers(rows)
        except LocalError as error:
            log.warning("peers_not_remembered", error=str(error))
