# ruff: noqa: ASYNC110  (what is waited for has no event)
"""The DHT among real hosts: everyone is found through one address, and what it answers is right and in time."""

import hashlib
from typing import Any

import pytest
import trio
from libp2p.peer.peerinfo import PeerInfo
from mesh_nodes import Node, running, until

from nexapod.dht import containment
from nexapod.mesh.library import ID, Multiaddr
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import Digest, PeerId, kad_key

DIGEST = Digest(hashlib.sha256(b"blob").digest())


async def started(nursery: trio.Nursery, count: int) -> list[Node]:
    """`count` nodes that know the first one only."""
    nodes: list[Node] = []
    for n in range(count):
        node = Node(f"node {n}", nodes[0].mesh.addrs if nodes else [])
        await nursery.start(node.run, "server")
        nodes.append(node)
    return nodes


def known(node: Node) -> set[PeerId]:
    return set(node.mesh.connected()) | {peer for peer in node.mesh._book._known if node.mesh._book.addrs(peer)}


def everyone_known(nodes: list[Node]) -> bool:
    return all(known(node) >= {other.id for other in nodes} - {node.id} for node in nodes)


async def test_all_find_all_through_one_address_which_may_then_die() -> None:
    async with trio.open_nursery() as nursery:
        nodes = await started(nursery, 6)
        await until(lambda: everyone_known(nodes))
        await until(lambda: all(len(node.mesh.connected()) >= 4 for node in nodes))
        bootstrap, *others = nodes
        await bootstrap.stop()
        await until(lambda: all(bootstrap.id not in node.mesh.connected() for node in others))
        assert all(node.mesh.connected() for node in others)

        key = b"nexapod/shard\0" + bytes(36)
        target = int.from_bytes(hashlib.sha256(key).digest(), "big")
        right = sorted((node.id for node in others[1:]), key=lambda peer: kad_key(peer) ^ target)[:3]
        asking = others[0].dht
        assert asking
        with trio.fail_after(30):
            while await asking.closest(key, 3) != right:
                await trio.sleep(0.1)

        holder, looker = others[2].dht, others[4].dht
        assert holder
        assert looker
        with trio.fail_after(30):
            while not await holder.provide(DIGEST):
                await trio.sleep(0.1)
            while others[2].id not in (found := await looker.providers(DIGEST, 10)):
                await trio.sleep(0.1)
        assert found == [others[2].id], "once only"
        assert await looker.providers(Digest(bytes(32)), 10) == []
        nursery.cancel_scope.cancel()


async def test_networks_and_clients_keep_to_themselves() -> None:
    a, b, client = Node("a"), Node("b", network="other", peers_min=0), Node("client")
    async with running(a, b, dht="server"), running(client, dht="client"):
        client.mesh.learn(a.id, a.mesh.addrs)
        await until(lambda: client.linked(a) and a.linked(client))
        assert client.dht
        assert a.dht
        await until(lambda: client.dht and client.dht.size() == 1)
        assert client.id not in await a.dht.closest(b"key", 5), "a client serves nobody"
        assert a.dht.size() == 0
        assert await client.dht.closest(b"key", 5) == [a.id]


async def never_answering(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def test_the_dead_cost_a_question_little() -> None:
    """Peers that accept a connection and never answer: a lookup waits for each once, not for 10 s."""
    a = Node("a", peers_min=0)
    async with running(a, dht="server") as nursery:
        assert a.dht
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, never_answering, listeners)
        for n in range(4):
            identity = ID.from_base58(Node(f"dead {n}").id)
            a.mesh.host.get_peerstore().add_addrs(identity, [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")], 600)
            await a.dht._kad.routing_table.add_peer(PeerInfo(identity, [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")]))
        assert a.dht.size() == 4
        begun = trio.current_time()
        assert await a.dht.closest(b"key", 3) == []
        first = trio.current_time() - begun
        assert await a.dht.closest(b"key", 3) == []
        second = trio.current_time() - begun - first
        assert first < 6
        assert second < 0.5, "the dead are remembered"


async def test_questions_of_a_lonely_peer_have_empty_answers() -> None:
    a = Node("a")
    async with running(a, dht="server"):
        assert a.dht
        assert await a.dht.find_peers(10) == []
        assert await a.dht.closest(b"key", 3) == []
        assert await a.dht.providers(DIGEST, 3) == []
        assert not await a.dht.provide(DIGEST)
        for key in (b"", b"k", b"k" * 51):
            with pytest.raises(LocalError):
                await a.dht.closest(key, 3)


async def test_records_of_strangers_are_bounded_and_values_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, "PROVIDED_KEYS_MAX", 3)
    a, b = Node("a"), Node("b")
    async with running(a, dht="server"):
        b.mesh.learn(a.id, a.mesh.addrs)
        async with running(b, dht="server"):
            assert a.dht
            assert b.dht
            await until(lambda: a.dht and b.dht and a.dht.size() == b.dht.size() == 1)
            for n in range(6):
                await b.dht.provide(Digest(hashlib.sha256(bytes([n])).digest()))
            store: Any = a.dht._kad.provider_store
            await until(lambda: len(store.providers) == 3)
            with pytest.raises(Exception, match=r"namespace|key|validator"):
                await b.dht._kad.put_value("/pk/x", b"value")
            assert a.dht._kad.value_store.size() == 0
