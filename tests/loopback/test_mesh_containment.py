# ruff: noqa: ASYNC110  (waits for what has no event; nested where the order of leaving matters)
"""Each correction of py-libp2p against the released library: the attack succeeds without it and fails with it.

Run as a program, this file plays every attack on a host without (`off`) or with (`on`) the corrections and prints what
came of each; the corrections reach into the library's modules, so the two need a process each.
"""

import functools
import json
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from nexapod.dht import containment as dht_containment
from nexapod.mesh import containment, host, multiplexer
from nexapod.mesh.library import STREAM_ERRORS, Multiaddr, create_new_key_pair, new_host

LISTEN = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
ECHO = "/test/echo/1"
SLOTS = 6


def key(name: str) -> bytes:
    return name.encode().ljust(32, b"-")


def make_host(name: str, on: bool) -> Any:
    if on:
        built = host.build_host(key(name), 64)
        built.get_network()._inbound_limiter.total_tokens = SLOTS
        return built
    built = new_host(key_pair=create_new_key_pair(key(name)))
    built.get_network()._inbound_limiter.total_tokens = SLOTS
    return built


async def dial(one: Any, other: Any) -> None:
    with trio.fail_after(5):
        await one.get_network().dial_addr(other.get_addrs()[0], other.get_id())


async def ask(one: Any, other: Any, question: bytes = b"hello") -> bytes:
    """What `other` echoes: fails when it is dead, deaf or zombie."""
    with trio.fail_after(4):
        stream = await one.new_stream(other.get_id(), [ECHO])
        await stream.write(question)
        answer: bytes = await stream.read(len(question))
        await stream.reset()
        return answer


async def echo(stream: Any) -> None:
    await stream.write(await stream.read(100))


@asynccontextmanager
async def victim_and_attacker(on: bool) -> Any:
    victim, attacker = make_host("victim", on), new_host(key_pair=create_new_key_pair(key("attacker")))
    victim.set_stream_handler(ECHO, echo)
    async with victim.run(LISTEN), attacker.run(LISTEN):
        await dial(attacker, victim)
        yield victim, attacker
        await attacker.disconnect(victim.get_id())


async def handler_raises(on: bool) -> bool:
    async with victim_and_attacker(on) as (victim, attacker):

        async def broken(stream: Any) -> None:
            raise ValueError("a handler's mistake")

        victim.set_stream_handler("/test/broken/1", broken)
        await attacker.new_stream(victim.get_id(), ["/test/broken/1"])
        return await ask(attacker, victim) == b"hello"


async def handler_leaks_eof(on: bool) -> bool:
    async with victim_and_attacker(on) as (victim, attacker):

        async def until_end(stream: Any) -> None:
            while data := await stream.read(10):  # raises at the end of the stream
                await stream.write(data)

        victim.set_stream_handler("/test/loop/1", until_end)
        stream = await attacker.new_stream(victim.get_id(), ["/test/loop/1"])
        await stream.close()
        await trio.sleep(0.1)
        return await ask(attacker, victim) == b"hello"


async def inbound_slots(on: bool) -> bool:
    async with victim_and_attacker(on) as (victim, attacker):
        for _ in range(SLOTS * 2):
            await attacker.disconnect(victim.get_id())
            with trio.fail_after(5):
                while victim.get_network().get_connections():
                    await trio.sleep(0.01)
            await dial(attacker, victim)
        return await ask(attacker, victim) == b"hello"


async def own_kad_protocol(on: bool) -> bool:
    """Does the Kademlia of a network keep to itself, when told its protocol?"""
    from libp2p.kad_dht.kad_dht import DHTMode, KadDHT

    async with victim_and_attacker(on) as (victim, attacker):
        KadDHT(
            dht_containment.NetworkHost(victim, "mine") if on else victim,
            DHTMode.SERVER,
            protocol_prefix="/nexapod/mine",
        )
        spoken = await attacker.send_command(victim.get_id(), "ls")
        return "/nexapod/mine/kad/1.0.0" in spoken and "/ipfs/kad/1.0.0" not in spoken


async def silent_peer(on: bool) -> bool:
    """Is a connection closed whose other end has stopped answering?"""
    multiplexer.PING_MIN_S, multiplexer.PING_MAX_S, multiplexer.PING_TIMEOUT_S = 0.3, 0.5, 0.5
    async with victim_and_attacker(on) as (victim, attacker):
        await ask(attacker, victim)
        muxed = attacker.get_network().get_connections()[0].muxed_conn

        async def mute(data: bytes) -> None:
            await trio.lowlevel.checkpoint()

        muxed._write_frame = mute
        with trio.move_on_after(4):
            while victim.get_network().get_connections():
                await trio.sleep(0.05)
            return True
        return False


async def flow_control_ignored(on: bool) -> bool:
    """Is a peer stopped that sends 40 MB into a stream which nobody reads?"""
    async with victim_and_attacker(on) as (victim, attacker):

        async def deaf(stream: Any) -> None:
            await trio.sleep_forever()

        victim.set_stream_handler("/test/deaf/1", deaf)
        stream = await attacker.new_stream(victim.get_id(), ["/test/deaf/1"])
        muxed = stream.muxed_stream.conn
        frame = struct.pack("!BBHII", 0, 0, 0, stream.muxed_stream.stream_id, 60_000) + bytes(60_000)
        with trio.move_on_after(10):
            try:
                for _ in range(700):
                    await muxed._write_frame(frame)
            except STREAM_ERRORS:
                pass  # cut off, as it should be
            await trio.sleep(0.1)
        held = [
            sum(map(len, conn.muxed_conn.stream_buffers.values())) for conn in victim.get_network().get_connections()
        ]
        return sum(held) <= multiplexer.CONNECTION_BUFFER_MAX


async def slow_reader(on: bool) -> bool:
    """Does a writer survive a reader that pauses for 7.5 s?"""
    writer = make_host("writer", on)
    async with victim_and_attacker(on) as (victim, _), writer.run([]):
        received = trio.Event()

        async def pausing(stream: Any) -> None:
            await trio.sleep(7.5)
            left = 40_000_000  # more than the library's largest window
            while left:
                left -= len(await stream.read(left))
            received.set()

        victim.set_stream_handler("/test/slow/1", pausing)
        await dial(writer, victim)
        stream = await writer.new_stream(victim.get_id(), ["/test/slow/1"])
        with trio.fail_after(25):
            await stream.write(bytes(40_000_000))
            await received.wait()
        return True


async def cancelled_writer(on: bool) -> bool:
    """Does a connection survive a writer that is cancelled in the middle of a frame?"""
    writer = make_host("writer", on)
    async with victim_and_attacker(on) as (victim, _), writer.run([]):

        async def drain(stream: Any) -> None:
            while True:
                await stream.read(1 << 16)

        victim.set_stream_handler("/test/drain/1", drain)
        await dial(writer, victim)
        stream = await writer.new_stream(victim.get_id(), ["/test/drain/1"])
        for n in range(40):
            with trio.move_on_after(0.0005 * (n % 8)):
                await stream.write(bytes(2_000_000))
            stream.muxed_stream.send_window = max(stream.muxed_stream.send_window, 4_000_000)
        return await ask(writer, victim) == b"hello"


Case = Callable[[bool], Awaitable[bool]]
CASES: dict[str, Case] = {
    case.__name__: case
    for case in (handler_raises, handler_leaks_eof, inbound_slots, own_kad_protocol, silent_peer, flow_control_ignored,
                 slow_reader, cancelled_writer)
}  # fmt: skip


def play(name: str, on: bool) -> str:
    try:
        return "survived" if trio.run(CASES[name], on) else "harmed"
    except BaseException as error:  # whatever the process would have died of is the result
        leaf: BaseException = error
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        return f"harmed: {type(leaf).__name__}"


@functools.cache
def outcomes() -> dict[str, dict[str, str]]:
    """Both processes at once: what came of every case, by mode."""
    runs = {
        mode: subprocess.Popen(
            [sys.executable, __file__, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for mode in ("off", "on")
    }
    results = {}
    for mode, run in runs.items():
        out, err = run.communicate(timeout=180)
        assert run.returncode == 0, err[-3000:]
        results[mode] = json.loads(out.strip().splitlines()[-1])
    return results


@pytest.mark.parametrize("name", CASES)
def test_the_attack_succeeds_on_the_library_as_released(name: str) -> None:
    assert outcomes()["off"][name].startswith("harmed")


@pytest.mark.parametrize("name", CASES)
def test_the_attack_fails_with_the_correction(name: str) -> None:
    assert outcomes()["on"][name] == "survived"


if __name__ == "__main__":
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if sys.argv[1] == "on":
        containment.install()
    chosen = sys.argv[2:] or list(CASES)
    print(json.dumps({name: play(name, sys.argv[1] == "on") for name in chosen}))
