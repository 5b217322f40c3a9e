"""Gossip between real meshes: everyone hears, nobody hears what is invalid, and a restart loses nothing."""

import pytest
import trio
from mesh_nodes import Node, running, until

from nexapod.mesh import gossip
from nexapod.mesh.events import Gossip
from nexapod.protocol.errors import LocalError


async def test_a_message_crosses_peers_that_are_not_connected_and_names_its_author() -> None:
    a, b, c = (Node(name, peers_min=0) for name in "abc")
    async with running(a, b, c):
        for one, other in ((a, b), (b, c)):
            one.mesh.learn(other.id, other.mesh.addrs)
            one.mesh.send_nowait(other.id, "control", b"link")
        await until(lambda: b.mesh._gossip.mesh_size("job") == 2)
        assert not a.linked(c)
        await a.mesh.publish("job", b"news")
        await a.mesh.publish("profile", b"x" * 60_000)
        await until(lambda: len(c.of(Gossip)) == 2)
        assert {(event.topic, event.peer, len(event.data)) for event in c.of(Gossip)} == {
            ("job", a.id, 4),
            ("profile", a.id, 60_000),
        }
        assert a.of(Gossip) == [], "nobody hears itself"


async def test_what_is_invalid_or_kills_the_validator_is_not_passed_on() -> None:
    a, b, c = (Node(name, peers_min=0) for name in "abc")

    def raising(topic: object, data: bytes) -> bool:
        if data == b"boom":
            raise RuntimeError("validator")
        return data != b"reject"

    b.validate = raising
    async with running(a, b, c):
        for one, other in ((a, b), (b, c)):
            one.mesh.learn(other.id, other.mesh.addrs)
            one.mesh.send_nowait(other.id, "control", b"link")
        await until(lambda: b.mesh._gossip.mesh_size("job") == 2)
        for data in (b"boom", b"reject", b"good"):
            await a.mesh.publish("job", data)
        await until(lambda: c.of(Gossip))
        assert [event.data for event in b.of(Gossip)] == [b"good"]
        assert [event.data for event in c.of(Gossip)] == [b"good"]
        assert b.mesh.counts()["gossip_validator_errors"] == 1
        assert b.mesh.counts()["gossip_invalid"] == 1


async def test_too_large_a_message_is_refused_where_it_is_published() -> None:
    a = Node("a")
    async with running(a):
        with pytest.raises(LocalError):
            await a.mesh.publish("job", b"x" * (64 * 1024 + 1))


async def test_a_burst_arrives_whole() -> None:
    a = Node("a")
    async with running(a):
        b = Node("b", a.mesh.addrs)
        async with running(b):
            await until(lambda: b.mesh._gossip.mesh_size("job") == 1 and a.mesh._gossip.mesh_size("job") == 1)
            sent = {f"{n}".encode() for n in range(300)}
            for data in sent:
                await b.mesh.publish("job", data)
            await until(lambda: len(a.of(Gossip)) == len(sent))
            assert {event.data for event in a.of(Gossip)} == sent


async def test_a_restarted_publisher_is_heard_at_once() -> None:
    a = Node("a")
    async with running(a) as nursery:
        for life in range(2):
            b = Node("b", a.mesh.addrs)
            await nursery.start(b.run)
            await until(lambda b=b: b.mesh._gossip.mesh_size("job") == 1)
            for n in range(20):
                await b.mesh.publish("job", f"{life}-{n}".encode())
            await until(lambda life=life: len(a.of(Gossip)) == 20 * (life + 1))
            await b.stop()


async def test_a_flood_by_one_peer_is_cut_before_it_costs_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether a busy machine can publish faster than the real bound is not what is asked here.
    monkeypatch.setattr(gossip, "FORWARDER_RATE", 1.0)
    monkeypatch.setattr(gossip, "FORWARDER_BURST", 20.0)
    a = Node("a")
    async with running(a):
        b = Node("b", a.mesh.addrs)
        async with running(b):
            await until(lambda: b.mesh._gossip.mesh_size("job") == 1)
            with trio.move_on_after(20):
                while not a.mesh.counts().get("gossip_rate_limited"):
                    for n in range(50):
                        await b.mesh.publish("job", f"{n}".encode())
                    await trio.sleep(0.01)
            assert a.mesh.counts()["gossip_rate_limited"]
            assert a.linked(b)
