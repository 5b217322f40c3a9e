"""Learns of peers that have dialled this one whether they can be dialled: by dialling them back, until it works.

A steward has to be found by whoever needs it, and an address that only its owner names proves nothing. A peer that was
dialled in the first place needs no proof. One whose link comes from elsewhere than it can be dialled at is not reached.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from typing import Final

import trio

from nexapod.mesh.events import MeshEvent, Reached
from nexapod.mesh.peers import Dialler
from nexapod.mesh.presence import Presence
from nexapod.protocol.primitives import PeerId

PAUSES_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0, 30.0, 120.0)
"""Before each attempt; the last of them again and again. The first few wait for the peer to say where it is."""


class Reaching:
    """One task for each linked peer that nobody here has got through to."""

    def __init__(self, presence: Presence, dialler: Dialler, emit: Callable[[MeshEvent], None]) -> None:
        self._presence = presence
        self._dialler = dialler
        self._emit = emit
        self._under_way: dict[PeerId, trio.CancelScope] = {}

    async def run(self) -> None:
        """Look at everybody who comes up or goes, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                changed = self._presence.changed
                wanted = self._presence.unreached()
                for peer in [peer for peer in self._under_way if peer not in wanted]:
                    self._under_way.pop(peer).cancel()
                for peer in wanted:
                    if peer not in self._under_way:
                        scope = self._under_way[peer] = trio.CancelScope()
                        nursery.start_soon(self._reach, peer, scope)
                await changed.wait()

    async def _reach(self, peer: PeerId, scope: trio.CancelScope) -> None:
        seen = self._presence.up()[peer]
        with scope:
            for pause_s in chain(PAUSES_S, repeat(PAUSES_S[-1])):
                await trio.sleep(pause_s)
                if await self._dialler.answers(peer, seen):
                    break
            if self._presence.reached(peer):
                self._emit(Reached(peer, seen))
        if self._under_way.get(peer) is scope:
            del self._under_way[peer]
