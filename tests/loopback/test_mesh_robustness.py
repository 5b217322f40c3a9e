"""A thousand malformed streams and sockets on every protocol that a node serves, while it serves a good peer."""

import random
import struct
from contextlib import suppress

import pytest
import trio
from mesh_nodes import Node, running, stranger, until

from nexapod.dht.containment import kad_protocol
from nexapod.mesh.events import Frame, PeerDown, channel_protocol
from nexapod.mesh.library import ID, STREAM_ERRORS

PROTOCOLS = [
    kad_protocol("test"),
    "/ipfs/id/1.0.0",
    "/ipfs/id/push/1.0.0",
    "/ipfs/ping/1.0.0",
    channel_protocol("test", "control"),
    channel_protocol("test", "bulk"),
]
STREAMS = 1000
"""To each protocol, and really written: a stream that was refused does not count."""
THROW_S = 60
STREAM_S = 2
SOCKETS = 200


def garbage(rng: random.Random) -> bytes:
    """Bytes of the kinds that break parsers: noise, huge lengths, cut protobufs, and plausible prefixes."""
    body = rng.randbytes(rng.choice([0, 1, 3, 30, 300, 3000]))
    return rng.choice(
        [
            body,
            bytes([min(len(body), 127)]) + body[:127],
            b"\xff" * 10 + body,
            b"\xff\xff\xff\xff\x0f" + body,
            b"\x80" * 40,
            len(body).to_bytes(4, "big") + body,
            b"\x00\x00\x00\x00" + body,
            struct.pack(">I", 2**31) + body,
            b"\x13/multistream/1.0.0\n" + body,
            bytes([4, 0x0A, 0x7F]) + body,
        ]
    )


async def throw(victim: Node, protocol: str, rng: random.Random) -> int:
    """Write garbage to STREAMS streams of a protocol, as a stranger that comes back whenever it is cut off."""
    thrown = 0
    with trio.fail_after(THROW_S):
        while thrown < STREAMS:
            async with stranger(victim) as host:
                with suppress(*STREAM_ERRORS):  # cut off: the next stranger goes on
                    while thrown < STREAMS:
                        with trio.move_on_after(STREAM_S):
                            stream = await host.new_stream(ID.from_base58(victim.id), [protocol])
                            await stream.write(garbage(rng))
                            thrown += 1
                            await (stream.reset if rng.random() < 0.5 else stream.close)()
    return thrown


async def throw_at_socket(port: int, rng: random.Random) -> None:
    with trio.move_on_after(5):
        try:
            socket = await trio.open_tcp_stream("127.0.0.1", port)
            async with socket:
                opening = rng.choice([b"", b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x07/noise\n"])
                await socket.send_all(opening + rng.choice([garbage(rng), b"GET / HTTP/1.1\r\n\r\n"]))
                if rng.random() < 0.3:
                    with trio.move_on_after(0.05):
                        await socket.receive_some(1000)
        except (OSError, trio.BrokenResourceError):
            return


async def served(good: Node, victim: Node, word: bytes) -> None:
    """The good peer's frame arrives."""
    assert good.mesh.send_nowait(victim.id, "control", word)
    await until(lambda: any(event.data == word for event in victim.of(Frame)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_garbage_on_a_protocol_harms_no_one_else(protocol: str) -> None:
    rng = random.Random(protocol)
    victim = Node("victim")
    async with running(victim, dht="server"):
        good = Node("good", victim.mesh.addrs)
        async with running(good):
            await until(lambda: good.linked(victim) and victim.linked(good))
            assert await throw(victim, protocol, rng) == STREAMS
            await served(good, victim, b"after")
            assert not any(event.peer == good.id for event in victim.of(PeerDown))


async def test_garbage_on_the_socket_and_half_handshakes_harm_no_one() -> None:
    rng = random.Random(1)
    victim = Node("victim")
    async with running(victim):
        good = Node("good", victim.mesh.addrs)
        port = int(victim.mesh.addrs[0].split("/")[4])
        async with running(good), trio.open_nursery() as nursery:
            await until(lambda: good.linked(victim) and victim.linked(good))
            silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(60)]
            async with trio.open_nursery() as throwers:
                for n in range(SOCKETS):
                    throwers.start_soon(throw_at_socket, port, rng)
                    if n % 20 == 19:
                        await trio.sleep(0.02)
            await served(good, victim, b"meanwhile")
            late = Node("late", victim.mesh.addrs)
            await nursery.start(late.run)
            await until(lambda: late.linked(victim))
            for socket in silent:  # cut off when no handshake comes
                with trio.fail_after(10):
                    while await socket.receive_some(1000):
                        pass
            limiter = victim.mesh.host.get_network()._inbound_limiter
            await until(lambda: limiter.borrowed_tokens <= 2)
            nursery.cancel_scope.cancel()


async def test_garbage_under_the_multiplexer_costs_the_connection_only() -> None:
    rng = random.Random(2)
    victim = Node("victim")
    async with running(victim):
        good = Node("good", victim.mesh.addrs)
        async with running(good):
            await until(lambda: good.linked(victim) and victim.linked(good))
            for n in range(20):
                async with stranger(victim, name=f"stranger {n}") as host:
                    muxed = host.get_network().get_connections()[0].muxed_conn
                    for _ in range(10):
                        header = struct.pack(
                            "!BBHII", 0, rng.randrange(5), rng.randrange(16), rng.randrange(9), rng.randrange(200)
                        )
                        try:
                            await muxed._write_frame(header + rng.randbytes(rng.randrange(200)))
                        except (*STREAM_ERRORS, trio.BrokenResourceError, trio.ClosedResourceError):
                            break
            await served(good, victim, b"after")
            await until(lambda: len(victim.mesh.host.get_connected_peers()) == 1)
