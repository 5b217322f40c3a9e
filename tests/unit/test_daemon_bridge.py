"""nexapod.daemon.bridge: what the mesh reports, as the core hears it and as the blobs do."""

from __future__ import annotations

from typing import Any, cast

from nexapod.daemon.bridge import FOREIGN_MAX, FRAMING_PENALTY, MeshBridge
from nexapod.mesh import events as mesh_events
from nexapod.protocol import events
from nexapod.protocol.events import Event
from nexapod.protocol.primitives import PeerId

PEER = PeerId("peer")
ADDR = "/ip4/10.0.0.1/tcp/4001"


class Both:
    """An engine and an exchange that note what they are told."""

    def __init__(self) -> None:
        self.posted: list[Event] = []
        self.gone: list[PeerId] = []
        self.frames: list[tuple[PeerId, bytes]] = []
        self.bridge = MeshBridge(cast(Any, self), cast(Any, self))

    def post(self, event: Event) -> None:
        self.posted.append(event)

    def peer_gone(self, peer: PeerId) -> None:
        self.gone.append(peer)

    async def on_frame(self, peer: PeerId, frame: bytes) -> None:
        self.frames.append((peer, frame))


def test_links_and_frames_become_events_of_the_core() -> None:
    it = Both()
    for event in (
        events.PeerUp(PEER, ADDR, dialled=False),
        mesh_events.Reached(PEER, ADDR),
        mesh_events.Frame(PEER, "control", b"frame"),
        mesh_events.Misbehaved(PEER, "frame-length"),
        mesh_events.Unreachable(PEER, 3),
        events.PeerDown(PEER),
    ):
        it.bridge.on_event(event)
    assert it.posted == [
        events.PeerUp(PEER, ADDR, dialled=False),
        events.PeerUp(PEER, ADDR, dialled=True),
        events.Received(PEER, b"frame"),
        events.Misbehaved(PEER, "frame-length", FRAMING_PENALTY),
        events.Unreachable(PEER),
        events.PeerDown(PEER),
    ]
    assert it.gone == [PEER, PEER], "whoever waits for a blob of it need not"


def test_the_networks_of_strangers_are_kept_for_whoever_asks_why_and_bounded() -> None:
    it = Both()
    for number in range(FOREIGN_MAX + 3):
        it.bridge.on_event(mesh_events.Foreign(PeerId(f"peer {number}"), f"network {number}"))
    assert list(it.bridge.foreign.values()) == [f"network {number}" for number in range(3, FOREIGN_MAX + 3)]
    assert it.posted == []


async def test_bulk_frames_are_the_blobs() -> None:
    it = Both()
    await it.bridge.on_bulk(PEER, b"bulk")
    assert (it.frames, it.posted) == ([(PEER, b"bulk")], [])
