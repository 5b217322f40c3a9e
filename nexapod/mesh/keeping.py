"""Peer keeping: between peers_min and peers_max connections, dialled with backoff and jitter, trimmed when idle.

Which peers are worth keeping for what they hold is the core's business: here only how many, and how long unused.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from nexapod.mesh import containment
from nexapod.mesh.peers import AddressBook, Dialler
from nexapod.mesh.presence import Presence
from nexapod.protocol.primitives import PeerId

log = structlog.get_logger()

LOOK_S: Final = 1.0
TRIM_IDLE_S: Final = 60.0
"""A peer above peers_max that exchanged a frame so recently is kept a while."""


class Keeper:
    """Dials while there are fewer than `peers_min` peers, and closes idle ones while there are over `peers_max`."""

    def __init__(
        self,
        host: Any,
        book: AddressBook,
        dialler: Dialler,
        presence: Callable[[], Presence],
        used_at: dict[PeerId, float],
        bounds: tuple[int, int],
    ) -> None:
        self._host = host
        self._book = book
        self._dialler = dialler
        self._presence = presence
        self._used_at = used_at
        self._min, self._max = bounds
        self._changed = trio.Event()

    def look(self) -> None:
        """Something changed: look again now."""
        self._changed.set()

    async def run(self) -> None:
        """Keep peers until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                self._dial_missing(nursery)
                await self._trim()
                with trio.move_on_after(LOOK_S * random.uniform(0.75, 1.25)):  # noqa: S311  (jitter, not a secret)
                    await self._changed.wait()
                await trio.sleep(0.01)  # many changes at once are one look

    def _dial_missing(self, nursery: trio.Nursery) -> None:
        up = self._presence().up()
        dialling = self._dialler.dialling
        missing = self._min - len(up) - len(dialling)
        if missing <= 0:
            return
        for peer in self._book.candidates([*up, *dialling])[:missing]:
            nursery.start_soon(self._dialler.connect, peer)

    async def _trim(self) -> None:
        up = self._presence().up()
        excess = len(up) - self._max
        if excess <= 0:
            return
        now = trio.current_time()
        idle = sorted((self._used_at.get(peer, 0.0), peer) for peer in up)
        for used_at, peer in idle[:excess]:
            if now - used_at > TRIM_IDLE_S:
                log.info("peer_trimmed", peer=peer, peers=len(up), peers_max=self._max)
                await containment.close_peer(self._host, peer)
