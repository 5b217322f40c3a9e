"""Where the adapters meet: what the mesh reports becomes the core's events and the blobs' frames."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import structlog

from nexapod.blobs.exchange import Exchange
from nexapod.daemon.engine import Engine
from nexapod.mesh import events as mesh_events
from nexapod.protocol import events
from nexapod.protocol.primitives import PeerId

log = structlog.get_logger()

FRAMING_PENALTY = 20
FOREIGN_MAX = 8


@dataclass(frozen=True)
class MeshBridge:
    """What the mesh calls."""

    engine: Engine
    exchange: Exchange
    foreign: OrderedDict[PeerId, str] = field(default_factory=OrderedDict)
    """Peers of other networks that were met last, and the names of those networks: for `why`."""

    def on_event(self, event: mesh_events.MeshEvent) -> None:
        """The mesh's news, as events of the core."""
        post = self.engine.post
        match event:
            case events.PeerUp():
                post(event)
            case events.PeerDown(peer):
                self.exchange.peer_gone(peer)
                post(event)
            case mesh_events.Reached(peer, addr):
                post(events.PeerUp(peer, addr, dialled=True))
            case mesh_events.Unreachable(peer):
                self.exchange.peer_gone(peer)
                post(events.Unreachable(peer))
            case mesh_events.Frame(peer, _, data):
                post(events.Received(peer, data))
            case mesh_events.Misbehaved(peer, rule):
                post(events.Misbehaved(peer, rule, FRAMING_PENALTY))
            case mesh_events.Foreign(peer, network):
                log.warning("foreign_network", peer=peer, network=network, remedy="check --network and --bootstrap")
                self.foreign[peer] = network
                if len(self.foreign) > FOREIGN_MAX:
                    self.foreign.popitem(last=False)

    async def on_bulk(self, peer: PeerId, frame: bytes) -> None:
        await self.exchange.on_frame(peer, frame)
