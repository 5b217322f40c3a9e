"""Direct messages between real meshes: order, bounds, backpressure, failure, and peers coming and going."""

import pytest
import trio
from mesh_nodes import Node, running, stranger, until

from nexapod.mesh import links
from nexapod.mesh.events import Foreign, Frame, Misbehaved, PeerDown, PeerUp, Reached, Unreachable, channel_protocol
from nexapod.mesh.identity import peer_id
from nexapod.mesh.library import ID
from nexapod.protocol.errors import LocalError
from nexapod.protocol.limits import FRAME_BYTES_MAX

NOBODY = peer_id(b"n" * 32)


async def test_frames_arrive_whole_and_in_order_both_ways() -> None:
    a = Node("a")
    async with running(a):
        b = Node("b", a.mesh.addrs)
        async with running(b):
            await until(lambda: a.linked(b) and b.linked(a))
            sent = [bytes([n % 256]) * (1 + n * 997 % 9000) for n in range(300)]
            for frame in sent:
                assert a.mesh.send_nowait(b.id, "control", frame)
                assert b.mesh.send_nowait(a.id, "control", frame)
            for node in (a, b):
                await until(lambda node=node: len(node.of(Frame)) == len(sent))
                assert [event.data for event in node.of(Frame)] == sent
            assert len(a.of(PeerUp)) == len(b.of(PeerUp)) == 1


async def test_a_first_frame_dials_a_peer_whose_address_comes_with_it() -> None:
    a, b = Node("a", peers_min=0), Node("b", peers_min=0)
    async with running(a, b):
        largest = b"x" * FRAME_BYTES_MAX
        assert a.mesh.send_nowait(b.id, "control", largest, b.mesh.addrs)
        await until(lambda: b.of(Frame))
        assert b.of(Frame)[0].data == largest


async def test_frames_that_cannot_be_delivered_are_reported_and_counted() -> None:
    a = Node("a")
    async with running(a):
        for addrs in ([], ["/ip4/127.0.0.1/tcp/1"], ["nonsense", "/ip4/0.0.0.0/tcp/4"]):
            a.events.clear()
            assert a.mesh.send_nowait(NOBODY, "control", b"1", addrs)
            assert a.mesh.send_nowait(NOBODY, "control", b"2", addrs)
            await until(lambda: a.of(Unreachable))
            assert sum(event.frames for event in a.of(Unreachable)) == 2
        with pytest.raises(links.PeerUnreachable):
            await a.mesh.send(NOBODY, "bulk", b"x")
        assert a.mesh.counts()["frames_dropped"] == 6


async def test_an_impossible_frame_is_our_own_mistake() -> None:
    a = Node("a")
    for frame in (b"", b"x" * (FRAME_BYTES_MAX + 1)):
        with pytest.raises(LocalError):
            a.mesh.send_nowait(NOBODY, "control", frame)
    assert not a.mesh.send_nowait(NOBODY, "control", b"x"), "not running"


async def test_a_full_queue_refuses_and_send_waits_for_room() -> None:
    a, b = Node("a", peers_min=0), Node("b", peers_min=0)
    gate = trio.Event()
    frame = b"x" * FRAME_BYTES_MAX

    async def slow(peer: str, data: bytes) -> None:
        await gate.wait()
        b.bulk.append(data)

    b.on_bulk = slow
    async with running(a, b) as nursery:
        a.mesh.learn(b.id, b.mesh.addrs)
        sent = refused = 0
        with trio.fail_after(10):
            while refused < 40:  # until the queue, the windows and the sockets are all full
                accepted = a.mesh.send_nowait(b.id, "bulk", frame)
                sent, refused = sent + accepted, 0 if accepted else refused + 1
                await trio.sleep(0.01)
        assert 8 <= sent < 80
        assert a.mesh.counts()["frames_refused"] >= 1
        waited = trio.Event()

        async def wait_for_room() -> None:
            await a.mesh.send(b.id, "bulk", frame)
            waited.set()

        nursery.start_soon(wait_for_room)
        assert a.mesh.send_nowait(b.id, "control", b"overtakes")
        await until(lambda: b.of(Frame))
        assert not waited.is_set()
        gate.set()
        await waited.wait()
        await until(lambda: len(b.bulk) == sent + 1)


async def test_handlers_that_raise_harm_nothing() -> None:
    a, b = Node("a", peers_min=0), Node("b", peers_min=0)

    def broken(event: object) -> None:
        b.events.append(event)  # type: ignore[arg-type]
        raise RuntimeError("handler")

    async def broken_bulk(peer: str, data: bytes) -> None:
        b.bulk.append(data)
        raise RuntimeError("bulk handler")

    b.on_event, b.on_bulk = broken, broken_bulk
    async with running(a, b):
        a.mesh.learn(b.id, b.mesh.addrs)
        for n in range(1, 4):
            a.mesh.send_nowait(b.id, "control", b"c")
            a.mesh.send_nowait(b.id, "bulk", b"b")
            await until(lambda n=n: len(b.of(Frame)) == n and len(b.bulk) == n)
        assert b.mesh.counts()["event_handler_errors"] >= 4
        assert b.mesh.counts()["handler_errors"] == 3
        assert a.linked(b)


async def test_peers_that_dial_each_other_at_once_are_up_once_and_down_once() -> None:
    a, b = Node("a", peers_min=0), Node("b", peers_min=0)
    async with running(a, b):
        async with trio.open_nursery() as nursery:
            for one, other in ((a, b), (b, a)):
                one.mesh.learn(other.id, other.mesh.addrs)
                nursery.start_soon(one.mesh.send, other.id, "control", b"hello")
        await until(lambda: a.of(Frame) and b.of(Frame) and a.linked(b) and b.linked(a))
        for _ in range(20):
            a.mesh.send_nowait(b.id, "control", b"more")
        await until(lambda: len(b.of(Frame)) == 21)
        await b.stop()
        await until(lambda: a.of(PeerDown))
        assert len(a.of(PeerUp)) == len(a.of(PeerDown)) == 1


async def test_a_peer_that_restarts_is_found_again_and_its_links_work() -> None:
    a = Node("a")
    async with running(a) as nursery:
        b = Node("b", a.mesh.addrs)
        await nursery.start(b.run)
        await until(lambda: a.linked(b) and b.linked(a))
        a.mesh.send_nowait(b.id, "control", b"before")
        await until(lambda: b.of(Frame))
        await b.stop()
        await until(lambda: a.of(PeerDown))
        again = Node("b", a.mesh.addrs)
        await nursery.start(again.run)
        await until(lambda: a.linked(again) and again.linked(a))
        a.mesh.send_nowait(again.id, "control", b"after")
        await until(lambda: again.of(Frame))
        assert len(a.of(PeerUp)) == 2


async def test_a_banned_peer_that_dials_again_and_again_is_never_up_and_costs_no_connection() -> None:
    victim = Node("victim", peers_min=0)
    async with running(victim) as nursery:
        pest = Node("pest", victim.mesh.addrs)
        await nursery.start(pest.run)
        await until(lambda: victim.linked(pest))
        victim.mesh.ban(pest.id, 60_000, "for the test")
        await until(lambda: victim.of(PeerDown))
        await pest.stop()
        for life in range(1, 3):
            pest = Node("pest", victim.mesh.addrs)
            await nursery.start(pest.run)
            await until(lambda life=life: victim.mesh.counts().get("banned_refused", 0) >= life)
            await until(lambda: not victim.mesh.host.get_connected_peers())
            await pest.stop()
        assert len(victim.of(PeerUp)) == len(victim.of(PeerDown)) == 1
        assert not victim.mesh.connected()


async def test_who_cannot_be_dialled_is_never_reached_and_who_begins_to_listen_is() -> None:
    a = Node("a", peers_min=0)
    async with running(a) as nursery:
        silent = Node("b", a.mesh.addrs, listen=[])
        await nursery.start(silent.run)
        await until(lambda: a.linked(silent))
        await trio.sleep(1)  # a pause: nothing is to happen
        assert a.of(Reached) == []
        assert a.mesh.was_dialled
        assert not silent.mesh.was_dialled
        await silent.stop()
        await until(lambda: a.of(PeerDown))
        b = Node("b", a.mesh.addrs)
        await nursery.start(b.run)
        a.said_addrs[b.id] = b.mesh.addrs
        await until(lambda: a.of(Reached))
        assert [event.peer for event in a.of(Reached)] == [b.id]


async def test_an_address_with_another_key_behind_it_is_no_proof() -> None:
    a, other = Node("a", peers_min=0), Node("other", peers_min=0)
    async with running(a, other) as nursery:
        liar = Node("liar", a.mesh.addrs, listen=[])
        await nursery.start(liar.run)
        await until(lambda: a.linked(liar))
        a.mesh.learn(liar.id, [addr.partition("/p2p/")[0] for addr in other.mesh.addrs])
        assert not await a.mesh._dialler.answers(liar.id, a.mesh.connected()[liar.id])
        assert a.of(Reached) == []


async def test_nobody_has_another_machine_dialled_by_naming_its_address() -> None:
    a = Node("a", peers_min=0)
    victim = await trio.open_tcp_listeners(0, host="127.0.0.2")
    port = victim[0].socket.getsockname()[1]
    calls: list[trio.SocketStream] = []

    async def take(stream: trio.SocketStream) -> None:
        calls.append(stream)

    async with running(a) as nursery:
        nursery.start_soon(trio.serve_listeners, take, victim)
        liar = Node("liar", a.mesh.addrs, listen=[])
        await nursery.start(liar.run)
        await until(lambda: a.linked(liar))
        a.said_addrs[liar.id] = [f"/ip4/127.0.0.2/tcp/{port}"]
        seen = a.mesh.connected()[liar.id]
        assert not await a.mesh._dialler.answers(liar.id, seen)
        assert calls == []
        assert not await a.mesh._dialler.answers(liar.id, "/ip4/127.0.0.2/tcp/1"), "nobody's key is there"
        assert len(calls) == 1, "where it comes from itself, it is looked for"


async def test_a_peer_of_another_network_is_named_and_sent_away() -> None:
    a = Node("a", network="one")
    async with running(a):
        b = Node("b", a.mesh.addrs, network="two")
        async with running(b):
            await until(lambda: a.of(Foreign) or b.of(Foreign))
            seen = {event.network for node in (a, b) for event in node.of(Foreign)}
            assert seen <= {"one", "two"}
            await until(lambda: not a.mesh.host.get_connected_peers() and not b.mesh.host.get_connected_peers())
            assert not a.of(PeerUp)
            assert not b.of(PeerUp)


async def test_a_wrong_peer_id_in_an_address_is_not_believed() -> None:
    a = Node("a")
    async with running(a):
        addr = a.mesh.addrs[0].replace(a.id, NOBODY)
        b = Node("b", [addr])
        async with running(b):
            await until(lambda: b.mesh._book.addrs(NOBODY) == [])
            assert not b.mesh.connected()


@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1, 2**32 - 1])
@pytest.mark.parametrize("channel", ["control", "bulk"])
async def test_bad_framing_resets_the_stream_and_names_the_peer(channel: links.Channel, length: int) -> None:
    a = Node("a")
    async with running(a), stranger(a) as host:
        stream = await host.new_stream(ID.from_base58(a.id), [channel_protocol("test", channel)])
        await stream.write(length.to_bytes(4, "big") + b"x" * 100)
        await until(lambda: a.of(Misbehaved))
        assert a.of(Misbehaved)[0].rule == "frame-length"
        with trio.fail_after(5), pytest.raises(links.STREAM_ERRORS):
            await stream.read(1)


async def test_a_port_in_use_is_a_local_error() -> None:
    a = Node("a")
    async with running(a):
        taken = a.mesh.addrs[0].partition("/p2p/")[0]
        b = Node("b", listen=[taken])
        with pytest.raises(LocalError, match="another daemon"):
            await b.mesh.run()


@pytest.mark.parametrize(
    "options",
    [{"known": ["nonsense"]}, {"known": ["/ip4/1.2.3.4/tcp/4"]}, {"listen": ["/ip4/x/tcp/4"]}, {"network": "A b"},
     {"network": "../x"}, {"peers_min": 9, "peers_max": 3}],
)  # fmt: skip
def test_a_malformed_configuration_is_a_local_error(options: dict[str, object]) -> None:
    with pytest.raises(LocalError):
        Node("a", **options)  # type: ignore[arg-type]
