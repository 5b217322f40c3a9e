"""What the daemon may rely on in a mesh's links: the same tests on the real mesh and on the fake one.

The fake serves tests that need many peers and no sockets; that it passes these is what makes it worth using.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from nexapod.mesh.events import Channel, Frame, MeshEvent, PeerDown, PeerUp, Reached, Unreachable
from nexapod.mesh.framing import encode_frame
from nexapod.mesh.identity import peer_id
from nexapod.mesh.links import PeerUnreachable
from nexapod.mesh.mesh import Mesh
from nexapod.protocol.errors import LocalError
from nexapod.protocol.limits import FRAME_BYTES_MAX
from nexapod.protocol.primitives import PeerId

OnEvent = Callable[[MeshEvent], None]
OnBulk = Callable[[PeerId, bytes], Awaitable[None]]
NOBODY = peer_id(b"n" * 32)


class FakeMesh:
    """Links in memory: a table of running peers stands for the network, and an address is the peer's name."""

    running: dict[str, "FakeMesh"] = {}  # noqa: RUF012  (the network is one for all)
    QUEUE = 8

    def __init__(self, *, seed: bytes, on_event: OnEvent, on_bulk: OnBulk, **_: Any) -> None:
        self.peer_id = peer_id(seed)
        self._on_event, self._on_bulk = on_event, on_bulk
        self._nursery: trio.Nursery | None = None
        self._up: set[PeerId] = set()
        self._queues: dict[tuple[PeerId, Channel], list[bytes]] = {}
        self._pumping: set[tuple[PeerId, Channel]] = set()
        self._room = trio.Condition()
        self._banned: set[PeerId] = set()

    @property
    def addrs(self) -> list[str]:
        return [f"/fake/{self.peer_id}"]

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            FakeMesh.running[self.peer_id] = self
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                del FakeMesh.running[self.peer_id]
                for peer in list(self._up):
                    FakeMesh.running[peer]._lose(self.peer_id)

    def _lose(self, peer: PeerId) -> None:
        self._up.discard(peer)
        self._on_event(PeerDown(peer))

    def _link(self, peer: PeerId) -> bool:
        other = FakeMesh.running.get(peer)
        if other is None or peer in self._banned or self.peer_id in other._banned:
            return False
        if peer not in self._up:
            for one, two in ((self, other), (other, self)):
                one._up.add(two.peer_id)
                one._on_event(PeerUp(two.peer_id, "", dialled=one is self))
            other._on_event(Reached(self.peer_id, ""))
        return True

    def connected(self) -> dict[PeerId, str]:
        return dict.fromkeys(self._up, "")

    def send_nowait(self, peer: PeerId, channel: Channel, frame: bytes, addrs: Sequence[str] = ()) -> bool:
        encode_frame(frame)
        queue = self._queues.setdefault((peer, channel), [])
        if self._nursery is None or len(queue) >= self.QUEUE:
            return False
        queue.append(frame)
        if (peer, channel) not in self._pumping:
            self._pumping.add((peer, channel))
            self._nursery.start_soon(self._pump, peer, channel)
        return True

    async def send(self, peer: PeerId, channel: Channel, frame: bytes, addrs: Sequence[str] = ()) -> None:
        if not self._link(peer):
            raise PeerUnreachable(peer)
        async with self._room:
            while not self.send_nowait(peer, channel, frame):
                await self._room.wait()

    async def _pump(self, peer: PeerId, channel: Channel) -> None:
        queue = self._queues[peer, channel]
        while queue:
            await trio.lowlevel.checkpoint()
            if not self._link(peer):
                self._on_event(Unreachable(peer, len(queue)))
                queue.clear()
                break
            frame, other = queue.pop(0), FakeMesh.running[peer]
            if channel == "bulk":
                await other._on_bulk(self.peer_id, frame)
            else:
                other._on_event(Frame(self.peer_id, channel, frame))
            async with self._room:
                self._room.notify_all()
        self._pumping.discard((peer, channel))

    def ban(self, peer: PeerId, ban_ms: int, reason: str) -> None:
        self._banned.add(peer)
        assert self._nursery is not None
        self._nursery.start_soon(self._forgive, peer, ban_ms / 1000)
        if peer in self._up:
            FakeMesh.running[peer]._lose(self.peer_id)
            self._lose(peer)

    async def _forgive(self, peer: PeerId, seconds: float) -> None:
        await trio.sleep(seconds)  # a pause: the fake peer's own time
        self._banned.discard(peer)


class Side:
    """One mesh of a pair, and what it reported."""

    def __init__(self, kind: type[Any], name: str) -> None:
        self.events: list[MeshEvent] = []
        self.bulk: list[tuple[PeerId, bytes]] = []
        self.gate = trio.Event()
        self.gate.set()
        self.mesh = kind(
            seed=hashlib.sha256(name.encode()).digest(),
            network="contract",
            listen=["/ip4/127.0.0.1/tcp/0"],
            on_event=self.events.append,
            on_bulk=self._take,
            peers_min=0,
        )
        self.scope = trio.CancelScope()

    async def _take(self, peer: PeerId, frame: bytes) -> None:
        await self.gate.wait()
        self.bulk.append((peer, frame))

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            await self.mesh.run(task_status=task_status)


@pytest.fixture(params=[FakeMesh, Mesh], ids=["fake", "real"])
def kind(request: pytest.FixtureRequest) -> type[Any]:
    return request.param  # type: ignore[no-any-return]


@asynccontextmanager
async def pair(kind: type[Any]) -> AsyncIterator[tuple[Side, Side]]:
    async with trio.open_nursery() as nursery:
        a, b = Side(kind, "a"), Side(kind, "b")
        for side in (a, b):
            await nursery.start(side.run)
        yield a, b
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  (what is waited for has no event)
            await trio.sleep(0.01)


async def test_frames_of_a_channel_arrive_once_whole_and_in_order(kind: type[Any]) -> None:
    async with pair(kind) as (a, b):
        frames = [bytes([n]) * (n * 500 + 1) for n in range(40)]
        for frame in frames:
            await a.mesh.send(b.mesh.peer_id, "control", frame, b.mesh.addrs)
            await a.mesh.send(b.mesh.peer_id, "bulk", frame, b.mesh.addrs)
        await until(lambda: len(b.of(Frame)) == len(frames) == len(b.bulk))
        assert b.of(Frame) == [Frame(a.mesh.peer_id, "control", frame) for frame in frames]
        assert b.bulk == [(a.mesh.peer_id, frame) for frame in frames]


async def test_each_side_learns_once_that_the_other_is_up_and_once_that_it_is_gone(kind: type[Any]) -> None:
    async with pair(kind) as (a, b):
        a.mesh.send_nowait(b.mesh.peer_id, "control", b"x", b.mesh.addrs)
        await until(lambda: a.of(PeerUp) and b.of(PeerUp) and b.of(Frame))
        assert set(a.mesh.connected()) == {b.mesh.peer_id}
        assert set(b.mesh.connected()) == {a.mesh.peer_id}
        b.scope.cancel()
        await until(lambda: a.of(PeerDown))
        assert a.mesh.connected() == {}
        assert [type(event) for event in a.events if not isinstance(event, Frame)] == [PeerUp, PeerDown]
        assert a.of(PeerUp)[0].dialled
        assert not b.of(PeerUp)[0].dialled


async def test_a_peer_that_dialled_is_dialled_back_once_and_then_counts_as_reached(kind: type[Any]) -> None:
    async with pair(kind) as (a, b):
        a.mesh.send_nowait(b.mesh.peer_id, "control", b"x", b.mesh.addrs)
        await until(lambda: b.of(Reached))
        assert [(event.peer, event.addr) for event in b.of(Reached)] == [(a.mesh.peer_id, b.of(PeerUp)[0].addr)]
        assert a.of(Reached) == []
        assert set(b.mesh.connected()) == {a.mesh.peer_id}
        await b.mesh.send(a.mesh.peer_id, "control", b"back")
        await until(lambda: a.of(Frame))
        assert a.of(PeerDown) == b.of(PeerDown) == []


async def test_frames_to_a_peer_that_is_not_there_end_in_unreachable(kind: type[Any]) -> None:
    async with pair(kind) as (a, _):
        for _ in range(3):
            assert a.mesh.send_nowait(NOBODY, "control", b"x")
        await until(lambda: a.of(Unreachable))
        assert sum(event.frames for event in a.of(Unreachable)) == 3
        with pytest.raises(PeerUnreachable):
            await a.mesh.send(NOBODY, "bulk", b"x")


async def test_a_slow_reader_fills_the_queue_and_then_everything_arrives(kind: type[Any]) -> None:
    async with pair(kind) as (a, b):
        b.gate = trio.Event()
        await a.mesh.send(b.mesh.peer_id, "control", b"link", b.mesh.addrs)
        sent = refused = 0
        while refused < 30:
            accepted = a.mesh.send_nowait(b.mesh.peer_id, "bulk", bytes(FRAME_BYTES_MAX))
            sent, refused = sent + accepted, 0 if accepted else refused + 1
            await trio.sleep(0.01)
        assert b.bulk == []
        b.gate.set()
        await until(lambda: len(b.bulk) == sent)


@pytest.mark.parametrize("size", [0, FRAME_BYTES_MAX + 1])
async def test_a_frame_out_of_bounds_is_a_local_error(kind: type[Any], size: int) -> None:
    async with pair(kind) as (a, b):
        with pytest.raises(LocalError):
            a.mesh.send_nowait(b.mesh.peer_id, "control", bytes(size), b.mesh.addrs)


async def test_a_banned_peer_is_cut_off_and_refused_both_ways_for_its_time(kind: type[Any]) -> None:
    async with pair(kind) as (a, b):
        await a.mesh.send(b.mesh.peer_id, "control", b"x", b.mesh.addrs)
        await until(lambda: a.of(PeerUp) and b.of(Frame))
        b.mesh.ban(a.mesh.peer_id, 3_000, "for the test")
        await until(lambda: a.of(PeerDown) and b.of(PeerDown))
        with pytest.raises(PeerUnreachable):
            await b.mesh.send(a.mesh.peer_id, "bulk", b"not even if it is this side that dials", a.mesh.addrs)
        a.mesh.send_nowait(b.mesh.peer_id, "control", b"again", b.mesh.addrs)
        await trio.sleep(1)  # a pause: nothing is to come of it
        assert len(b.of(PeerUp)) == len(b.of(Frame)) == 1

        def heard() -> bool:
            a.mesh.send_nowait(b.mesh.peer_id, "control", b"once more", b.mesh.addrs)
            return len(b.of(Frame)) > 1

        await until(heard)
