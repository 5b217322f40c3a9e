"""The fast way through the encrypted connection against the library as released, in a process of its own.

Run as a program, this file is that other side: it echoes, and prints where it listens.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from nexapod.mesh import host as host_module
from nexapod.mesh import library
from nexapod.mesh.library import ID, Multiaddr, create_new_key_pair, new_host

LISTEN = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
ECHO = "/test/echo/1"
SIZE = 6 << 20
"""More than a stream's window, so that it has to be opened again in both directions."""


async def echo(stream: Any) -> None:
    while True:
        await stream.write(await stream.read(100_000))


async def serve() -> None:
    library.check_pin()
    assert library.yamux_module.YamuxStream.write.__module__.startswith("libp2p"), "this side must be uncorrected"
    host = new_host(key_pair=create_new_key_pair(b"released".ljust(32)))

    async def handler(stream: Any) -> None:
        try:
            await echo(stream)
        except library.STREAM_ERRORS:
            await stream.reset()

    host.set_stream_handler(ECHO, handler)
    async with host.run(LISTEN):
        print(json.dumps([str(host.get_transport_addrs()[0]), host.get_id().to_base58()]), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


@pytest.fixture
def released() -> Iterator[tuple[str, str]]:
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        addr, peer = json.loads(process.stdout.readline())
        yield addr, peer
        process.kill()


@pytest.mark.parametrize("piece", [1, 700, 65_492, 65_493, 300_000])
async def test_bytes_pass_both_ways_whatever_the_size_of_the_writes(released: tuple[str, str], piece: int) -> None:
    addr, peer = released
    size = min(SIZE, piece * 2000)
    data = os.urandom(size)
    host = host_module.build_host(hashlib.sha256(b"ours").digest(), 8)
    with trio.fail_after(60):
        async with host.run(LISTEN), trio.open_nursery() as nursery:
            identity = ID.from_base58(peer)
            host.get_peerstore().add_addrs(identity, [Multiaddr(addr)], 3600)
            await host.get_network().dial_addr(Multiaddr(f"{addr}/p2p/{peer}"), identity)
            stream = await host.new_stream(identity, [ECHO])

            async def write() -> None:
                for at in range(0, size, piece):
                    await stream.write(data[at : at + piece])

            nursery.start_soon(write)
            back = bytearray()
            while len(back) < size:
                back += await stream.read(50_000)
            assert bytes(back) == data
            await stream.reset()
            await host.disconnect(identity)


if __name__ == "__main__":
    trio.run(serve)
