"""The mesh: this peer's place in its network, over libp2p. Joins host, links and peer keeping.

Moves bytes and reports who is there. Does not know what frames mean, decides nothing about jobs, and stores nothing:
what should outlive the process (addresses, bans, the seed) the daemon keeps.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import structlog
import trio

from nexapod.mesh import containment
from nexapod.mesh.addresses import check_free, expand, parse_known, parse_listen
from nexapod.mesh.events import Channel, MeshEvent
from nexapod.mesh.host import build_host
from nexapod.mesh.identity import peer_id
from nexapod.mesh.keeping import Keeper
from nexapod.mesh.library import Multiaddr
from nexapod.mesh.links import Links
from nexapod.mesh.multiplexer import contained
from nexapod.mesh.peers import AddressBook, Dialler
from nexapod.mesh.presence import Presence
from nexapod.mesh.reaching import Reaching
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import PeerId

log = structlog.get_logger()

_NETWORK_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


class Mesh:
    """One peer of one network. `run` serves it; everything else may be called while it runs.

    `on_event` is called from the mesh's tasks and must not block; `on_bulk` is awaited for every bulk frame (at most
    links.BULK_HANDLER_S). What either raises is logged and counted, and harms nothing. `said_addrs` is asked where a
    peer says that it can be dialled. Raises LocalError for malformed addresses or names.
    """

    def __init__(
        self,
        *,
        seed: bytes,
        network: str,
        listen: Sequence[str],
        known_addrs: Iterable[str] = (),
        on_event: Callable[[MeshEvent], None],
        on_bulk: Callable[[PeerId, bytes], Awaitable[None]],
        said_addrs: Callable[[PeerId], Sequence[str]] = lambda peer: (),
        peers_min: int = 4,
        peers_max: int = 64,
    ) -> None:
        if not _NETWORK_NAME.fullmatch(network):
            raise LocalError(f"bad network name {network!r}: 1 to 32 of a-z, 0-9, dot, dash, underscore")
        if not 0 <= peers_min <= peers_max:
            raise LocalError(f"peers_min ({peers_min}) must be at most peers_max ({peers_max})")
        self.peer_id: PeerId = peer_id(seed)
        self.network = network
        self._listen_on = parse_listen(listen)
        self._listen = [Multiaddr(text) for text in listen]
        self._on_event = on_event
        self._handler_errors = 0
        self.host: Any = build_host(seed, peers_max)
        """The libp2p host, for the DHT."""
        self._book = AddressBook(self.peer_id, clock=_clock)
        self._dialler = Dialler(self.host, self._book, said_addrs)
        self._links = Links(self.host, network, self._dialler, self._emit, on_bulk, self._heard)
        self._keeper = Keeper(
            self.host, self._book, self._dialler, lambda: self._presence, self._links.used_at, (peers_min, peers_max)
        )
        self._presence = Presence(self.host, network, self._links, self._book, self._emit, self._keeper.look)
        self._reaching = Reaching(self._presence, self._dialler, self._emit)
        self._nursery: trio.Nursery | None = None
        for text in known_addrs:
            peer, addr = parse_known(text)
            self._book.learn(peer, [addr], pinned=True)

    # --- life ----------------------------------------------------------------------------------------------------
    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started() once listening. Closes every connection on the way out.

        Raises LocalError when a listen address cannot be used.
        """
        check_free(self._listen_on)
        end = trio.Event()
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self._run_host, end)
                await self._serve(task_status)
            finally:
                with trio.CancelScope(shield=True):
                    await containment.close_all(self.host)
                end.set()

    async def _run_host(self, end: trio.Event, task_status: Any) -> None:
        """Run libp2p until `end`: shielded, since a cancelled swarm leaves its sockets open for ever."""
        with trio.CancelScope(shield=True):
            async with self.host.run(self._listen):
                task_status.started()
                await end.wait()

    async def _serve(self, task_status: Any) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self._links.start(nursery)
                self._presence.start(nursery)
                nursery.start_soon(self._reaching.run)
                nursery.start_soon(self._keeper.run)
                log.info("mesh_started", peer=self.peer_id, network=self.network, addrs=self.addrs)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @property
    def addrs(self) -> list[str]:
        """Where others can dial this peer, each with /p2p/<id>; empty when it listens nowhere."""
        listening = [str(addr) for addr in self.host.get_transport_addrs()]
        return [f"{addr}/p2p/{self.peer_id}" for addr in expand(listening)]

    # --- direct messages -----------------------------------------------------------------------------------------
    def send_nowait(self, peer: PeerId, channel: Channel, frame: bytes, addrs: Sequence[str] = ()) -> bool:
        """Queue a frame for a peer, connecting to it if need be; `addrs` are tried beside those already known.

        False, and counted, when its queue is full. Best effort: an Unreachable event tells that what was queued was
        dropped. Raises LocalError for an empty frame or one above FRAME_BYTES_MAX.
        """
        if addrs:
            self._book.learn(peer, addrs)
        return self._links.send_nowait(peer, channel, frame)

    async def send(self, peer: PeerId, channel: Channel, frame: bytes, addrs: Sequence[str] = ()) -> None:
        """As send_nowait, but waits for room. Raises links.PeerUnreachable."""
        if addrs:
            self._book.learn(peer, addrs)
        await self._links.send(peer, channel, frame)

    # --- peers ---------------------------------------------------------------------------------------------------
    def connected(self) -> dict[PeerId, str]:
        """Peers that are up, with their remote multiaddr."""
        return self._presence.up()

    @property
    def was_dialled(self) -> bool:
        """Whether another peer has got through to this one since it began: it can be dialled, from somewhere."""
        return self._presence.was_dialled

    def learn(self, peer: PeerId, addrs: Sequence[str]) -> None:
        """Note where a peer may be reached. What cannot be dialled, or names another peer, is ignored."""
        if self._book.learn(peer, addrs):
            self._keeper.look()

    def ban(self, peer: PeerId, ban_ms: int, reason: str) -> None:
        """Close all connections to a peer, and for `ban_ms` neither dial it nor keep a connection that it opens."""
        log.info("peer_banned", peer=peer, reason=reason, ban_ms=ban_ms)
        self._book.ban(peer, ban_ms / 1000)
        if self._nursery is not None:
            self._nursery.start_soon(containment.close_peer, self.host, peer)

    def counts(self) -> dict[str, int]:
        """Counters for metrics: what was moved, refused, dropped, contained."""
        caught = {f"contained_{guard}": count for guard, count in contained.items()}
        return {
            **self._links.counts,
            **self._presence.counts,
            **caught,
            "event_handler_errors": self._handler_errors,
        }

    # --- inside --------------------------------------------------------------------------------------------------
    def _heard(self, peer: PeerId, connection: Any) -> None:
        self._presence.heard(peer, connection)

    def _emit(self, event: MeshEvent) -> None:
        try:
            self._on_event(event)
        except Exception:
            self._handler_errors += 1
            log.exception("mesh_event_handler_failed", event_kind=type(event).__name__)


def _clock() -> float:
    """Trio's clock inside its run, and zero before it: addresses may be learnt while the daemon is being built."""
    try:
        return trio.current_time()
    except RuntimeError:
        return 0.0
