"""Which peers are up: one PeerUp with a peer's first usable connection, one PeerDown with the end of its last.

A connection alone proves little: the peer may be of another network. It counts once a control link works in either
direction; a peer that speaks none of our protocols is named and sent away.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from nexapod.mesh import containment
from nexapod.mesh.events import CHANNELS, Foreign, MeshEvent, PeerDown, PeerUp, Reached, channel_protocol
from nexapod.mesh.library import ID, STREAM_ERRORS, Direction
from nexapod.mesh.links import Links
from nexapod.mesh.peers import AddressBook
from nexapod.protocol.primitives import PeerId, key_of_peer_id

log = structlog.get_logger()

ASK_S: Final = 5
_PROTOCOLS_READ_MAX: Final = 256


class Presence:
    """Follows the host's connections. Registered as the library's notifee, whose method names it has to use."""

    def __init__(
        self,
        host: Any,
        network: str,
        links: Links,
        book: AddressBook,
        emit: Callable[[MeshEvent], None],
        on_change: Callable[[], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.changed = trio.Event()
        """Set, and replaced, when somebody came up or went."""
        self._host = host
        self._network = network
        self._links = links
        self._book = book
        self._emit = emit
        self._on_change = on_change
        self.was_dialled = False
        """Somebody has dialled this peer."""
        self._up: dict[PeerId, str] = {}
        self._dialled: set[PeerId] = set()
        """Of those that are up, whom this peer has got through to itself."""
        self._nursery: trio.Nursery | None = None
        host.get_network().register_notifee(self)

    def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def up(self) -> dict[PeerId, str]:
        """Peers that are up, with the remote address of the connection that brought them."""
        return dict(self._up)

    def unreached(self) -> list[PeerId]:
        """Peers that are up and that this peer has not got through to itself."""
        return [peer for peer in self._up if peer not in self._dialled]

    def reached(self, peer: PeerId) -> bool:
        """This peer has got through to it. False when that is known, or when it is not up."""
        if peer not in self._up or peer in self._dialled:
            return False
        self._dialled.add(peer)
        return True

    def heard(self, peer: PeerId, connection: Any) -> None:
        """A peer opened a link to us: it is of our network."""
        self._mark_up(peer, connection)

    def _mark_up(self, peer: PeerId, connection: Any) -> None:
        if connection.is_closed or self._book.banned(peer):
            return
        dialled = is_outbound(connection)
        if peer in self._up:
            if dialled and self.reached(peer):
                self._emit(Reached(peer, self._up[peer]))
            return
        self._up[peer] = remote_addr(connection)
        if dialled:
            self._dialled.add(peer)
        else:
            self.was_dialled = True
        self._book.succeeded(peer)
        log.info("peer_up", peer=peer, addr=self._up[peer], dialled=dialled)
        self._emit(PeerUp(peer, self._up[peer], dialled))
        self._look()

    def _look(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
        self._on_change()

    # --- the library's notifee -----------------------------------------------------------------------------------
    async def connected(self, network: Any, connection: Any) -> None:
        await trio.lowlevel.checkpoint()
        if self._book.banned(PeerId(connection.muxed_conn.peer_id.to_base58())):
            self.counts["banned_refused"] += 1
            if self._nursery is not None:
                self._nursery.start_soon(containment.close_connection, connection)
            return
        for older in network.get_connections(connection.muxed_conn.peer_id):
            if older is not connection:
                older.muxed_conn.doubt()
        if self._nursery is not None:
            self._nursery.start_soon(self._greet, connection)

    async def disconnected(self, network: Any, connection: Any) -> None:
        await trio.lowlevel.checkpoint()
        identity = connection.muxed_conn.peer_id
        if any(not other.is_closed for other in network.get_connections(identity)):
            return
        peer = PeerId(identity.to_base58())
        self._links.forget(peer)
        self._dialled.discard(peer)
        if self._up.pop(peer, None) is not None:
            log.info("peer_down", peer=peer)
            self._emit(PeerDown(peer))
        self._look()

    async def opened_stream(self, _network: Any, _stream: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def closed_stream(self, _network: Any, _stream: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def listen(self, _network: Any, _addr: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def listen_close(self, _network: Any, _addr: Any) -> None:
        await trio.lowlevel.checkpoint()

    # --- greeting ------------------------------------------------------------------------------------------------
    async def _greet(self, connection: Any) -> None:
        peer = PeerId(connection.muxed_conn.peer_id.to_base58())
        try:
            key_of_peer_id(peer)
        except ValueError:
            log.info("peer_refused", peer=peer, reason="not an Ed25519 peer id")
            await containment.close_peer(self._host, peer)
            return
        if await self._links.open_control(peer):
            self._mark_up(peer, connection)
        elif not connection.is_closed and peer not in self._up:
            await self._send_away(peer)

    async def _send_away(self, peer: PeerId) -> None:
        spoken = await self._protocols_of(peer)
        if spoken is None:
            self._book.failed(peer)
        elif channel_protocol(self._network, "control") not in spoken:
            theirs = network_of(spoken, self._network)
            log.warning("foreign_network", peer=peer, theirs=theirs, ours=self._network)
            self._book.foreign(peer)
            self._emit(Foreign(peer, theirs))
        if peer not in self._up:
            await containment.close_peer(self._host, peer)

    async def _protocols_of(self, peer: PeerId) -> list[str] | None:
        """What a peer says it speaks; None when it does not answer."""
        try:
            with trio.move_on_after(ASK_S):
                answer = await self._host.send_command(ID.from_base58(peer), "ls", ASK_S)
                return [str(protocol) for protocol in answer[:_PROTOCOLS_READ_MAX]]
        except STREAM_ERRORS as error:
            log.debug("protocols_unknown", peer=peer, error=repr(error)[:120])
        return None


def network_of(protocols: list[str], ours: str) -> str:
    """The network named in a peer's protocol ids, safe to log; "" when it is none of NEXAPod's. One of our own network
    that speaks another version of the protocol is told with that version."""
    for protocol in protocols:
        parts = protocol.split("/")
        if len(parts) == 5 and parts[1] == "nexapod" and parts[3] in CHANNELS:
            name = ascii(parts[2][:64])[1:-1]
            return name if parts[2] != ours else f"{name} (version {ascii(parts[4][:8])[1:-1]} of the protocol)"
    return ""


def is_outbound(connection: Any) -> bool:
    """Whether this peer opened the connection."""
    return bool(connection.direction == Direction.OUTBOUND)


def remote_addr(connection: Any) -> str:
    """The remote end of a connection as a multiaddr, "" when the socket is already gone."""
    remote = connection.muxed_conn.get_remote_address()
    if remote is None:
        return ""
    host, port = remote[0], remote[1]
    return f"/ip{ipaddress.ip_address(host.partition('%')[0]).version}/{host}/tcp/{port}"
