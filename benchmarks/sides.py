"""One side of a transfer, in a process of its own: what benchmarks/blobs.py starts, and what it measures.

Each role prints JSON lines: `{"ready": ...}` once it can be talked to, and a fetcher `{"seconds": ..., ...}` at its
end. Everything is on loopback.

    provide HOME FILE PORT            a daemon's mesh and blob store, holding FILE
    fetch HOME REF ADDR...            the same, fetching REF from the peers at ADDR; with TELL in the environment, it
                                      says after each MiB how much has come
    bare-give SIZE / bare-take ADDR   a py-libp2p stream of the same host settings, 64 KiB writes, nothing stored
    tcp-give FILE / tcp-take PORT F   a plain TCP copy of FILE into F
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
import time
from pathlib import Path

import trio

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
REPORT_BYTES = 1 << 20
NETWORK = "benchmark"
BARE_PROTOCOL = "/nexapod/benchmark/bare/1"
WRITE_BYTES = 64 << 10
FETCH_DEADLINE_S = 600.0
REPORTING_S = 2.0
"""Linux tells the host of free memory so long after some became free (PAGE_REPORTING_DELAY, mm/page_reporting.c)."""


def say(**facts: object) -> None:
    """One JSON line to whoever started this process."""
    print(json.dumps(facts), flush=True)


def peak_rss() -> int:
    """Bytes: the most memory this process had since the last reset_peak."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) << 10


def reset_peak() -> int:
    """Bytes in use now, from which on the peak counts."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_rss()


class Side:
    """What a daemon has of mesh and blobs, joined as the daemon joins them."""

    def __init__(self, home: Path, port: int = 0, *, tell: bool = False) -> None:
        from nexapod.blobs.exchange import Exchange
        from nexapod.blobs.load import Load
        from nexapod.blobs.rates import Caps, Rates
        from nexapod.blobs.store import BlobStore
        from nexapod.mesh import events
        from nexapod.mesh.links import PeerUnreachable
        from nexapod.mesh.mesh import Mesh

        self.taken = 0

        async def send(peer, frame):
            try:
                await self.mesh.send(peer, "bulk", frame)
            except PeerUnreachable as error:
                raise trio.BrokenResourceError(str(error)) from error

        async def on_bulk(peer, frame):
            before, self.taken = self.taken, self.taken + len(frame)
            if tell and before // REPORT_BYTES != self.taken // REPORT_BYTES:
                say(taken=self.taken)
            await self.exchange.on_frame(peer, frame)

        def on_event(event):
            if isinstance(event, events.PeerDown | events.Unreachable):
                self.exchange.peer_gone(event.peer)

        self.store = BlobStore(home / "blobs")
        rates = Rates(Caps(up_max=int(os.environ.get("LINE", "0")) or None))
        self.exchange = Exchange(self.store, send, rates=rates, has_room=Load().has_room)
        self.mesh = Mesh(
            seed=hashlib.sha256(str(home).encode()).digest(),
            network=NETWORK,
            listen=[f"/ip4/127.0.0.1/tcp/{port}"],
            on_event=on_event,
            on_bulk=on_bulk,
            validate=lambda topic, data: False,
        )


async def provide(home: Path, source: Path, port: int) -> None:
    side = Side(home, port)
    ref = await side.store.put_file(source)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(side.exchange.run)
        await nursery.start(side.mesh.run)
        base, cpu = reset_peak(), time.process_time()
        say(ready=True, addr=side.mesh.addrs[0], ref=str(ref))
        await _until_told()
        say(grown=peak_rss() - base, cpu=time.process_time() - cpu)
        nursery.cancel_scope.cancel()


async def fetch(home: Path, name: str, addrs: list[str]) -> None:
    from nexapod.protocol.primitives import BlobRef, Part, PeerId

    side, ref = Side(home, tell="TELL" in os.environ), BlobRef.parse(name)
    peers = [PeerId(addr.rpartition("/p2p/")[2]) for addr in addrs]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(side.exchange.run)
        await nursery.start(side.mesh.run)
        for peer, addr in zip(peers, addrs, strict=True):
            side.mesh.learn(peer, [addr])
        with trio.move_on_after(10):
            while not set(peers) <= set(side.mesh.connected()):  # noqa: ASYNC110  (nothing tells of it)
                await trio.sleep(0.05)
        await warm(home, ref.size)
        base = reset_peak()
        say(ready=True)
        began, cpu = time.perf_counter(), time.process_time()
        await _fetch_whole(side, Part.whole(ref), peers)
        seconds, spent = time.perf_counter() - began, time.process_time() - cpu
        say(seconds=seconds, cpu=spent, grown=peak_rss() - base, taken=side.taken)
        nursery.cancel_scope.cancel()


async def warm(folder: Path, size: int) -> None:
    """Have the kernel hold as much memory free as a file of that size is about to take.

    On a virtual machine the kernel gives back what stands free, and to get it anew costs as much time as half of a
    transfer: which way of several meets that is chance. The file stays until what became free before it (an earlier
    round's files) was reported; what it frees itself is not reported before the fetch is mostly done.
    """
    path = folder / "warm"
    await trio.to_thread.run_sync(_fill, path, size)
    await trio.sleep(1.25 * REPORTING_S)
    path.unlink()


def _fill(path: Path, size: int) -> None:
    block = bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(-(-size // len(block))):
            file.write(block)


async def _fetch_whole(side: Side, part: object, peers: list) -> None:
    """As the daemon does, it asks again after a failure: a provider may be on its way back."""
    from nexapod.blobs.errors import BlobUnavailable

    with trio.fail_after(FETCH_DEADLINE_S):
        while True:
            try:
                await side.exchange.fetch(part, peers, deadline_s=FETCH_DEADLINE_S)
            except BlobUnavailable:
                await trio.sleep(0.2)
            else:
                return


async def _until_told() -> None:
    """Until standard input is closed or has a line."""
    await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


# --- a bare stream -------------------------------------------------------------------------------------------------
def _bare_host(seed: str):
    """A host with the daemon's settings; the library as released where BARE_AS_RELEASED says so."""
    from nexapod.mesh import containment, host, library

    if os.environ.get("BARE_AS_RELEASED"):
        containment.install = library.check_pin
        host.ContainedYamux = library.Yamux
    return host.build_host(hashlib.sha256(seed.encode()).digest(), 8)


async def bare_give(size: int) -> None:
    from nexapod.mesh.library import Multiaddr

    host = _bare_host("giver")
    done = trio.Event()

    async def give(stream) -> None:
        data, left = os.urandom(WRITE_BYTES), size
        while left:
            await stream.write(data[: min(left, WRITE_BYTES)])
            left -= min(left, WRITE_BYTES)
        await stream.read(1)
        done.set()

    host.set_stream_handler(BARE_PROTOCOL, give)
    async with host.run([Multiaddr(LOOPBACK)]):
        say(ready=True, addr=f"{host.get_transport_addrs()[0]}/p2p/{host.get_id()}")
        await done.wait()
    os._exit(0)


async def bare_take(addr: str, size: int) -> None:
    from nexapod.mesh.library import ID, Multiaddr

    host = _bare_host("taker")
    async with host.run([Multiaddr(LOOPBACK)]):
        transport, _, peer = addr.rpartition("/p2p/")
        identity = ID.from_base58(peer)
        host.get_peerstore().add_addrs(identity, [Multiaddr(transport)], 3600)
        await host.get_network().dial_addr(Multiaddr(addr), identity)
        stream = await host.new_stream(identity, [BARE_PROTOCOL])
        say(ready=True)
        began, cpu = time.perf_counter(), time.process_time()
        left = size
        while left:
            left -= len(await stream.read(WRITE_BYTES))
        say(seconds=time.perf_counter() - began, cpu=time.process_time() - cpu)
        await stream.write(b"x")
    os._exit(0)


# --- plain TCP -----------------------------------------------------------------------------------------------------
def tcp_give(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        say(ready=True, port=server.getsockname()[1])
        connection, _ = server.accept()
        with connection, path.open("rb") as file:
            while piece := file.read(WRITE_BYTES):
                connection.sendall(piece)


def tcp_take(port: int, path: Path) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection, path.open("wb") as file:
        say(ready=True)
        began, cpu = time.perf_counter(), time.process_time()
        while piece := connection.recv(WRITE_BYTES):
            file.write(piece)
        say(seconds=time.perf_counter() - began, cpu=time.process_time() - cpu)


def main(role: str, *rest: str) -> None:
    from nexapod.log import setup_logging

    setup_logging("error", "json")
    match role, rest:
        case "provide", (home, source, port):
            trio.run(provide, Path(home), Path(source), int(port))
        case "fetch", (home, ref, *addrs):
            trio.run(fetch, Path(home), ref, addrs)
        case "bare-give", (size,):
            trio.run(bare_give, int(size))
        case "bare-take", (addr, size):
            trio.run(bare_take, addr, int(size))
        case "tcp-give", (source,):
            tcp_give(Path(source))
        case "tcp-take", (port, target):
            tcp_take(int(port), Path(target))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
