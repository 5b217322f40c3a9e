"""Real meshes in one process, and what the loopback tests wait for. Not a fake: every byte goes over a socket."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from nexapod.dht.dht import Dht
from nexapod.mesh.events import MeshEvent
from nexapod.mesh.library import ID, BasicHost, Multiaddr, create_new_key_pair, new_host
from nexapod.mesh.mesh import Mesh
from nexapod.protocol.primitives import PeerId

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
EventT = TypeVar("EventT")


async def until(condition: Callable[[], object], deadline_s: float = 30.0) -> None:
    """Wait for a condition; fail when it does not come."""
    with trio.fail_after(deadline_s):
        while not condition():  # noqa: ASYNC110  (what is waited for has no event)
            await trio.sleep(0.01)


class Node:
    """A mesh, everything that it reported, and the handlers that a test may replace."""

    def __init__(self, name: str, known: list[str] | None = None, *, network: str = "test", **options: Any) -> None:
        self.events: list[MeshEvent] = []
        self.bulk: list[bytes] = []
        self.on_event: Callable[[MeshEvent], None] = self.events.append
        self.on_bulk: Callable[[PeerId, bytes], Awaitable[None]] = self._keep_bulk
        self.said_addrs: dict[PeerId, list[str]] = {}
        self.dht: Dht | None = None
        self._scope = trio.CancelScope()
        self.stopped = trio.Event()
        self.mesh = Mesh(
            seed=hashlib.sha256(name.encode()).digest(),
            network=network,
            listen=options.pop("listen", [LOOPBACK]),
            known_addrs=known or [],
            on_event=lambda event: self.on_event(event),
            on_bulk=lambda peer, frame: self.on_bulk(peer, frame),
            said_addrs=lambda peer: self.said_addrs.get(peer, ()),
            **options,
        )

    @property
    def id(self) -> PeerId:
        return self.mesh.peer_id

    async def _keep_bulk(self, peer: PeerId, frame: bytes) -> None:
        self.bulk.append(frame)

    def of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]

    def linked(self, *others: "Node") -> bool:
        return all(other.id in self.mesh.connected() for other in others)

    async def run(self, dht: str = "", task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve; with dht "server" or "client" also in the DHT, passing on what it finds as the daemon does."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.mesh.run)
                    if dht:
                        self.dht = Dht(self.mesh.host, self.mesh.network, server=dht == "server")
                        await nursery.start(self.dht.run)
                        nursery.start_soon(self._discover)
                    task_status.started()
        finally:
            self.stopped.set()

    async def _discover(self) -> None:
        assert self.dht
        while True:
            for peer, addrs in await self.dht.find_peers(64):
                self.mesh.learn(peer, addrs)
            await trio.sleep(0.5)

    async def stop(self) -> None:
        self._scope.cancel()
        await self.stopped.wait()


@asynccontextmanager
async def running(*nodes: Node, dht: str = "") -> AsyncIterator[trio.Nursery]:
    """The nodes, started in turn, until the block ends."""
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.run, dht)
        yield nursery
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stranger(*targets: Node, name: str = "stranger") -> AsyncIterator[BasicHost]:
    """A bare libp2p host, connected to the targets, that speaks none of our protocols and obeys no rule."""
    host = new_host(key_pair=create_new_key_pair(hashlib.sha256(name.encode()).digest()))
    async with host.run([Multiaddr(LOOPBACK)]):
        for target in targets:
            await connect(host, target)
        yield host
        for peer in list(host.get_connected_peers()):
            await host.disconnect(peer)


async def connect(host: Any, target: Node) -> None:
    await host.get_network().dial_addr(Multiaddr(target.mesh.addrs[0]), ID.from_base58(target.id))
