"""Kademlia: finding peers, the peers closest to a key, and who has a blob. Always a hint, always within a deadline.

Never on the path of a claim or a verdict. Holds provider records of others and no values: a put is refused. Knows
nothing of links; the daemon hands it the mesh's host and passes what it finds back to the mesh.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
import trio

from nexapod.dht.containment import (
    NetworkHost,
    admit_servers_only,
    bound_providers,
    patch_query_timeout,
)
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import Digest, PeerId, key_of_peer_id

log = structlog.get_logger()

LOOKUP_S: Final = 8.0
PROVIDE_S: Final = 15.0
REFRESH_S: Final = 60.0
REFRESH_SOON_S: Final = 4.0
PLAUSIBLE_PEERS: Final = 8
"""A routing table with fewer peers is looked at again soon, with growing pauses."""
NEIGHBOURS_ASKED: Final = 3
IDENTIFY_S: Final = 5.0
IDENTIFY_LOOK_S: Final = 0.05
ASK_PROVIDERS_MAX: Final = 12
ASK_S: Final = 2.5
KEY_BYTES: Final = range(2, 51)
_SHA256_MULTIHASH: Final = b"\x12\x20"


class Dht:
    """This peer in the DHT of its network: as a server that answers others, or as a client that only asks.

    `run` keeps the routing table; the questions may be asked while it runs. They never raise for what the network
    does: an unanswered question gives what was found until its deadline.
    """

    def __init__(self, host: Any, network: str, *, server: bool) -> None:
        from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
        from libp2p.records.validator import NamespacedValidator

        patch_query_timeout()
        self._host = NetworkHost(host, network)
        self._own = host.get_id()
        self._kad: Any = KadDHT(
            self._host,
            DHTMode.SERVER if server else DHTMode.CLIENT,
            validator=NamespacedValidator({}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
        )
        admit_servers_only(self._kad, self._host)
        bound_providers(self._kad)
        self._nursery: trio.Nursery | None = None
        host.get_network().register_notifee(self)

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Follow connections and keep the routing table fresh, until cancelled."""
        from libp2p.tools.anyio_service import background_trio_service

        async with background_trio_service(self._kad), trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for identity in list(self._host.get_connected_peers()):
                    nursery.start_soon(self._adopt, identity)
                task_status.started()
                await self._refresh_forever()
            finally:
                self._nursery = None

    # --- questions -----------------------------------------------------------------------------------------------
    async def find_peers(self, count: int) -> list[tuple[PeerId, list[str]]]:
        """Up to `count` peers and their addresses, in random order: those known, and what neighbours name.

        Dials nobody, so that it may be asked every second while peers are missing.
        """
        async with self._within(LOOKUP_S):
            await self._ask_neighbours()
        table = [identity for identity in self._kad.routing_table.get_peer_ids() if not self._host.is_dead(identity)]
        random.shuffle(table)
        found = []
        for identity in table:
            peer, addrs = _peer(identity), self._addrs(identity)
            if peer is not None and addrs:
                found.append((peer, addrs))
        return found[:count]

    async def closest(self, key: bytes, count: int) -> list[PeerId]:
        """The `count` peers whose kad_key is closest (XOR) to sha2-256(key), closest first, this one left out.

        `key` is hashed by every peer asked, so it is the preimage: for a shard, what its key is the sha2-256 of.
        Raises LocalError unless it has 2 to 50 bytes.
        """
        if len(key) not in KEY_BYTES:
            raise LocalError(f"a DHT key has 2 to 50 bytes, not {len(key)}")
        found: list[Any] = []
        async with self._within(LOOKUP_S):
            found = await self._lookup(key)
        if not found:
            found = self._kad.routing_table.find_local_closest_peers(key, count * 2)
        # A lookup in a small network starts from whoever is connected, clients too.
        return self._usable([identity for identity in found if not self._host.is_client(identity)], count)

    async def provide(self, digest: Digest) -> bool:
        """Tell the peers closest to a blob's digest that we have it. True when one at least was told."""
        told = []
        async with self._within(PROVIDE_S):
            told.append(await self._kad.provider_store.provide(_SHA256_MULTIHASH + digest))
        return any(told)

    async def providers(self, digest: Digest, limit: int) -> list[PeerId]:
        """Peers that said they have a blob, without repetition and without this one; at most `limit`."""
        key = _SHA256_MULTIHASH + digest
        found = {info.peer_id: None for info in self._kad.provider_store.get_providers(key)}
        async with self._within(LOOKUP_S):
            closest = await self._lookup(key)
            async with trio.open_nursery() as nursery:
                for identity in closest[:ASK_PROVIDERS_MAX]:
                    nursery.start_soon(self._ask_providers, identity, key, found)
        return self._usable(found, limit)

    def size(self) -> int:
        """How many peers the routing table holds."""
        return int(self._kad.routing_table.size())

    # --- inside --------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def _within(self, seconds: float) -> AsyncIterator[None]:
        """A deadline around the library's lookups; what they raise is the network's doing, and logged."""
        with trio.move_on_after(seconds) as scope:
            try:
                yield
            except Exception as error:
                log.warning("dht_query_failed", error=repr(error)[:200])
        if scope.cancelled_caught:
            log.info("dht_query_late", deadline_s=seconds)

    async def _lookup(self, key: bytes) -> list[Any]:
        return list(await self._kad.peer_routing.find_closest_peers_network(key))

    async def _ask_providers(self, identity: Any, key: bytes, found: dict[Any, None]) -> None:
        with trio.move_on_after(ASK_S):
            providers, _ = await self._kad.provider_store._get_providers_from_peer_with_closers(identity, key)
            found.update({info.peer_id: None for info in providers})

    def _usable(self, identities: Iterable[Any], count: int) -> list[PeerId]:
        others = [identity for identity in identities if identity != self._own and not self._host.is_dead(identity)]
        peers = [peer for peer in map(_peer, others) if peer is not None]
        return list(dict.fromkeys(peers))[:count]

    def _addrs(self, identity: Any) -> list[str]:
        from libp2p.peer.peerstore import PeerStoreError

        try:
            return [str(addr) for addr in self._host.get_peerstore().addrs(identity)]
        except PeerStoreError:
            return []

    async def _ask_neighbours(self) -> None:
        """Ask a few connected peers for those near us, and for some anywhere."""
        connected = [identity for identity in self._host.get_connected_peers() if self._in_table(identity)]
        asked = random.sample(connected, min(NEIGHBOURS_ASKED, len(connected)))
        async with trio.open_nursery() as nursery:
            for identity in asked:
                nursery.start_soon(self._ask_neighbour, identity, self._own.to_bytes())
                if self.size() >= PLAUSIBLE_PEERS:  # in a small network everybody is near us
                    nursery.start_soon(self._ask_neighbour, identity, secrets.token_bytes(32))

    async def _ask_neighbour(self, identity: Any, key: bytes) -> None:
        """What the peer names goes into the routing table."""
        with trio.move_on_after(ASK_S):
            await self._kad.peer_routing._query_peer_for_closest(identity, key)

    def _in_table(self, identity: Any) -> bool:
        return bool(self._kad.routing_table.peer_in_table(identity))

    async def _refresh_forever(self) -> None:
        """Look up our own key and a random one: soon while the table is small, then every minute."""
        pause = REFRESH_SOON_S
        while True:
            before = self.size()
            await trio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311  (jitter, not a secret)
            async with self._within(LOOKUP_S):
                await self._lookup(self._own.to_bytes())
                await self._lookup(secrets.token_bytes(32))
            # Who has nobody new to find stops looking: of a mesh of six, five is all.
            growing = self.size() > before
            pause = REFRESH_S if self.size() >= PLAUSIBLE_PEERS else min(pause * (1.5 if growing else 3), REFRESH_S)

    # --- the library's notifee: it neither adds peers that connect nor drops those that leave -------------------------
    async def connected(self, _network: Any, connection: Any) -> None:
        await trio.lowlevel.checkpoint()
        if self._nursery is not None:
            self._nursery.start_soon(self._adopt, connection.muxed_conn.peer_id)

    async def disconnected(self, network: Any, connection: Any) -> None:
        await trio.lowlevel.checkpoint()
        identity = connection.muxed_conn.peer_id
        if not network.get_connections(identity):
            self._kad.routing_table.remove_peer(identity)

    async def opened_stream(self, _network: Any, _stream: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def closed_stream(self, _network: Any, _stream: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def listen(self, _network: Any, _addr: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def listen_close(self, _network: Any, _addr: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def _adopt(self, identity: Any) -> None:
        """Add a connected peer once identify, which says nothing when done, has told what it is and where."""
        with trio.move_on_after(IDENTIFY_S):
            while not (self._host.get_peerstore().get_protocols(identity) and self._addrs(identity)):  # noqa: ASYNC110
                await trio.sleep(IDENTIFY_LOOK_S)
            await self._kad.add_peer(identity)


def _peer(identity: Any) -> PeerId | None:
    """The peer id as text, None for a key that is not Ed25519: no peer of ours has one."""
    peer = PeerId(identity.to_base58())
    try:
        key_of_peer_id(peer)
    except ValueError:
        return None
    return peer
