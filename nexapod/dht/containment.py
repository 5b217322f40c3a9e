"""Every correction of py-libp2p 0.8.1's Kademlia, in one place; each has the test that fails without it.

As released it always speaks /ipfs/kad/1.0.0 whatever it is told, waits 10 s (in effect 20) for each dead peer of a
lookup, takes clients for servers, dials one address of a peer only, and stores what strangers send without bound.
libp2p is imported where it is used, not above: the mesh, which prepares it, may be loaded later than this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import structlog
import trio

from nexapod.protocol.errors import LocalError

log = structlog.get_logger()

QUERY_S: Final = 2
DIAL_S: Final = 1.8
DIAL_STAGGER_S: Final = 0.25
DEAD_S: Final = 60.0
DEAD_MAX: Final = 4096
PROVIDED_KEYS_MAX: Final = 20_000
_ADDRS_MAX: Final = 8


def kad_protocol(network: str) -> str:
    """The Kademlia protocol id of a network."""
    return f"/nexapod/{network}/kad/1.0.0"


def patch_query_timeout() -> None:
    """Wait QUERY_S for a peer of a lookup. Process-wide, idempotent. Raises LocalError on another libp2p."""
    from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store

    for module in (common, kad_dht, peer_routing, provider_store):
        if not hasattr(module, "QUERY_TIMEOUT"):
            raise LocalError(f"{module.__name__} has no QUERY_TIMEOUT: install the libp2p that NEXAPod pins")
        module.QUERY_TIMEOUT = QUERY_S


class _Peerstore:
    """The host's peerstore, where our Kademlia id reads as the one that the library looks for."""

    def __init__(self, inner: Any, own: str, library: str) -> None:
        self._inner = inner
        self._own = own
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get_protocols(self, peer: Any) -> list[str]:
        """Empty for a peer that identify has not told of yet, where the library raises."""
        from libp2p.peer.peerstore import PeerStoreError

        try:
            spoken = self._inner.get_protocols(peer)
        except PeerStoreError:
            return []
        return [self._library if name == self._own else name for name in spoken]


class NetworkHost:
    """The host as the library's Kademlia may see it: with this network's protocol id, and no patience for the dead."""

    def __init__(self, host: Any, network: str) -> None:
        from libp2p.kad_dht.common import PROTOCOL_ID

        self._host = host
        self._ids = {str(PROTOCOL_ID): kad_protocol(network)}
        self._peerstore = _Peerstore(host.get_peerstore(), kad_protocol(network), str(PROTOCOL_ID))
        self._dead: dict[Any, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def get_peerstore(self) -> Any:
        return self._peerstore

    def set_stream_handler(self, protocol: Any, handler: Any) -> None:
        self._host.set_stream_handler(self._own(protocol), handler)

    def remove_stream_handler(self, protocol: Any) -> None:
        self._host.remove_stream_handler(self._own(protocol))

    def _own(self, protocol: Any) -> str:
        return self._ids.get(str(protocol), str(protocol))

    def is_client(self, peer: Any) -> bool:
        """Whether the peer has told what it speaks, and Kademlia is not of it."""
        spoken = self._peerstore.get_protocols(peer)
        return bool(spoken) and not set(self._ids) & set(spoken)

    def is_dead(self, peer: Any) -> bool:
        """Whether the peer could not be dialled within the last minute and is still not connected."""
        return self._dead.get(peer, 0.0) > trio.current_time() and not self._host.get_network().get_connections(peer)

    async def new_stream(self, peer: Any, protocols: Sequence[Any]) -> Any:
        """As the host's, but over every address of the peer, and at once an error for one that just failed."""
        if not self._host.get_network().get_connections(peer):
            await self._connect(peer)
        return await self._host.new_stream(peer, [self._own(protocol) for protocol in protocols])

    async def _connect(self, peer: Any) -> None:
        from libp2p.network.exceptions import SwarmException

        if self.is_dead(peer):
            raise SwarmException("could not be dialled a moment ago")
        network = self._host.get_network()
        self._note_dead(peer)
        with trio.move_on_after(DIAL_S):
            async with trio.open_nursery() as nursery:
                for addr in self._addrs(peer):
                    nursery.start_soon(self._dial, network, addr, peer, nursery.cancel_scope)
                    await trio.sleep(DIAL_STAGGER_S)
        if not network.get_connections(peer):
            raise SwarmException("cannot be dialled")
        self._dead.pop(peer, None)

    def _note_dead(self, peer: Any) -> None:
        """Before dialling, since the library may cancel us while we wait."""
        self._dead.pop(peer, None)
        self._dead[peer] = trio.current_time() + DEAD_S
        if len(self._dead) > DEAD_MAX:
            del self._dead[next(iter(self._dead))]

    def _addrs(self, peer: Any) -> list[Any]:
        from libp2p.peer.peerstore import PeerStoreError

        try:
            return list(self._peerstore.addrs(peer))[:_ADDRS_MAX]
        except PeerStoreError:
            return []

    async def _dial(self, network: Any, addr: Any, peer: Any, others: trio.CancelScope) -> None:
        try:
            await network.dial_addr(addr, peer)
            others.cancel()
        except Exception as error:  # an address is whatever some peer sent: any failure only means "not there"
            log.debug("dht_dial_failed", error=repr(error)[:120])


def admit_servers_only(kademlia: Any, host: NetworkHost) -> None:
    """Keep clients and the dead out of the routing table: the library adds whoever opens a stream to it."""
    inner = kademlia.routing_table.add_peer

    async def add_peer(peer: Any, *, skip_server_mode_check: bool = False) -> bool:
        identity = getattr(peer, "peer_id", peer)
        if host.is_dead(identity):
            return False
        if skip_server_mode_check and not host.get_peerstore().get_protocols(identity):
            return False  # it asked us something before we know what it is: identify tells soon
        return bool(await inner(peer, skip_server_mode_check=False))

    kademlia.routing_table.add_peer = add_peer


def bound_providers(kademlia: Any) -> None:
    """Refuse provider records of further keys once PROVIDED_KEYS_MAX are held: the library has no limit."""
    store = kademlia.provider_store
    inner = store.add_provider

    def add_provider(key: bytes, provider: Any) -> None:
        if key in store.providers or len(store.providers) < PROVIDED_KEYS_MAX:
            inner(key, provider)
        else:
            log.warning("dht_providers_full", keys=len(store.providers))

    store.add_provider = add_provider
