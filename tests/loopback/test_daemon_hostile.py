"""Real daemons attacked by a peer of this process that has no seat and does no work: they go on, and refuse it."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from harness import NETWORK, Cluster, Daemon, assert_right, copying_job

from nexapod.mesh import identity
from nexapod.mesh.events import Frame, MeshEvent, PeerDown, PeerUp
from nexapod.mesh.mesh import Mesh
from nexapod.protocol import limits
from nexapod.protocol.primitives import Digest, JobId, StatementId
from nexapod.protocol.wire import bodies, messages, statements
from nexapod.protocol.wire.messages import Collect, Deliver, Want

JOB_S = 60.0
RSS_GROWTH_MAX = 64 << 20
ANSWER_S = 0.5
"""How long the API of an attacked daemon may take at worst, on a busy machine."""


class Hostile:
    """A real libp2p host of the same network that says whatever it likes."""

    def __init__(self, target: Daemon, seed: bytes | None = None) -> None:
        self.target = target
        self.seed = seed or secrets.token_bytes(32)
        self.up = False
        self.heard: list[bytes] = []
        self._changed = trio.Event()
        self.mesh = Mesh(
            seed=self.seed,
            network=NETWORK,
            listen=(),
            known_addrs=target.listen[:1],
            on_event=self._on_event,
            on_bulk=self._on_bulk,
            peers_min=1,
        )

    def _on_event(self, event: MeshEvent) -> None:
        match event:
            case PeerUp(peer) if peer == self.target.peer_id:
                self._set(True)
            case PeerDown(peer) if peer == self.target.peer_id:
                self._set(False)
            case Frame(data=data):
                self.heard.append(data)

    def _set(self, up: bool) -> None:
        self.up = up
        self._changed.set()
        self._changed = trio.Event()

    async def _on_bulk(self, _peer: str, _frame: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_up(self, wanted: bool, seconds: float) -> None:
        with trio.fail_after(seconds):
            while self.up != wanted:
                await self._changed.wait()

    def say(self, frame: bytes) -> None:
        self.mesh.send_nowait(self.target.peer_id, "control", frame)  # type: ignore[arg-type]


@asynccontextmanager
async def attacking(target: Daemon, seed: bytes | None = None) -> AsyncIterator[Hostile]:
    """A hostile peer that is linked to the target."""
    hostile = Hostile(target, seed)
    async with trio.open_nursery() as nursery:
        await nursery.start(hostile.mesh.run)
        await hostile.wait_up(True, 15)
        yield hostile
        nursery.cancel_scope.cancel()


def malformed_frames() -> list[bytes]:
    """A thousand frames: random bytes, damaged and truncated messages, statements that are none."""
    honest = messages.encode(Collect(JobId(Digest(secrets.token_bytes(32))), 0, 0))
    frames = [secrets.token_bytes(size % 700 + 1) for size in range(400)]
    frames += [honest[:at] for at in range(1, len(honest))]
    frames += [messages.encode(Deliver((secrets.token_bytes(300),) * 20)) for _ in range(200)]
    while len(frames) < 990:
        at = secrets.randbelow(len(honest))
        frames.append(honest[:at] + secrets.token_bytes(1) + honest[at + 1 :])
    frames += [secrets.token_bytes(limits.FRAME_BYTES_MAX) for _ in range(10)]
    return frames


def throw_garbage(port: int) -> None:
    """Connections to the daemon's TCP port that do not speak libp2p."""
    half_polite = b"\x13/multistream/1.0.0\n" + b"\xff" * 4096
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", secrets.token_bytes(65536), half_polite):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                continue  # it hung up on us in the middle: as it should


async def test_garbage_from_a_hostile_peer_harms_nothing_and_has_it_sent_away(mesh: Cluster) -> None:
    target, submitter = mesh.daemons[2], mesh.daemons[1]
    for _ in range(10):
        throw_garbage(target.port)
    before = target.rss()
    for channel in ("control", "bulk"):
        async with attacking(target) as hostile:
            for frame in malformed_frames():
                hostile.mesh.send_nowait(target.peer_id, channel, frame)  # type: ignore[arg-type]
                await trio.sleep(0.001)
            await hostile.wait_up(False, 20)
        assert target.alive
        assert (await trio.to_thread.run_sync(target.status))["state"] == "running"
    assert target.rss() - before < RSS_GROWTH_MAX
    assert target.counts()["peer_penalised"] > 0
    job = copying_job(4, 0.05)
    job_id = submitter.submit(job)
    mesh.wait_state(submitter, job_id, "settled", JOB_S)
    assert_right(submitter, job_id, job)


async def test_a_banned_peer_that_dials_again_is_refused_also_by_the_next_daemon_of_that_home(mesh: Cluster) -> None:
    target, seed = mesh.daemons[3], secrets.token_bytes(32)
    async with attacking(target, seed) as hostile:
        for _ in range(20):
            hostile.say(b"garbage")
        await hostile.wait_up(False, 20)
    assert [event["peer"] for event in target.events("peer_banned")] == [hostile.mesh.peer_id]
    await refused(target, seed)
    target.kill()
    target.start()
    target.wait_up()
    await refused(target, seed)
    assert not await trio.to_thread.run_sync(lambda: linked(target, hostile.mesh.peer_id))


def linked(daemon: Daemon, peer_id: str) -> bool:
    return any(peer["peer_id"] == peer_id and peer["connected"] for peer in daemon.get("/v1/peers"))


async def refused(target: Daemon, seed: bytes) -> None:
    """Whoever has this key dials the target, which closes the connection; no frame of it is handled."""
    before = target.counts("adapter_events_total").get("banned_refused", 0)
    traced = target.counts().get("peer_penalised", 0)
    hostile = Hostile(target, seed)
    async with trio.open_nursery() as nursery:
        await nursery.start(hostile.mesh.run)
        with trio.fail_after(20):
            while True:
                hostile.say(b"garbage")
                counts = await trio.to_thread.run_sync(lambda: target.counts("adapter_events_total"))
                if counts.get("banned_refused", 0) > before:
                    break
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert target.counts().get("peer_penalised", 0) == traced


def signed_frames(count: int) -> list[bytes]:
    """Frames as large as they may be, full of well-signed commits to tasks of jobs that nobody knows."""
    keys = [identity.Signer(secrets.token_bytes(32)) for _ in range(4)]
    frames = []
    for number in range(count):
        envelopes, size = [], 0
        while size < limits.FRAME_BYTES_MAX - 2048:
            job = JobId(Digest(secrets.token_bytes(32)))
            item = bodies.CommitItem(0, Digest(secrets.token_bytes(32)))
            made = statements.make(bodies.Commit(job, 0, (item,)), keys[number % 4]).envelope
            envelopes.append(made)
            size += len(made) + 8
        frames.append(messages.encode(Deliver(tuple(envelopes))))
    return frames


async def test_a_flood_of_signed_statements_does_not_keep_a_daemon_from_its_user(mesh: Cluster) -> None:
    target = mesh.daemons[2]
    frames = await trio.to_thread.run_sync(lambda: signed_frames(12))
    took: list[float] = []
    before = target.rss()

    async def ask() -> None:
        while True:
            began = time.monotonic()
            await trio.to_thread.run_sync(target.status)
            took.append(time.monotonic() - began)
            await trio.sleep(0.05)

    async with attacking(target) as hostile, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        for _ in range(10):
            for frame in frames:
                hostile.say(frame)
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    print(f"{len(took)} answers, the slowest {max(took):.3f} s")
    assert len(took) >= 10
    assert sorted(took)[-2] < ANSWER_S
    assert target.rss() - before < RSS_GROWTH_MAX


async def test_a_small_question_has_no_large_answer(mesh: Cluster) -> None:
    submitter = mesh.daemons[1]
    job_id = submitter.submit(copying_job(1, 0.01))
    mesh.wait_state(submitter, job_id, "settled", JOB_S)
    ids = [StatementId(bytes.fromhex(job_id)), *(StatementId(secrets.token_bytes(32)) for _ in range(255))]
    question = messages.encode(Want(tuple(ids)))
    async with attacking(submitter) as hostile:
        await trio.sleep(1)  # a pause: the greeting has come
        said = sum(map(len, hostile.heard))
        for _ in range(20):
            hostile.say(question)
            await trio.sleep(0.1)
        await trio.sleep(2)  # a pause: whatever else is to come
        heard = sum(map(len, hostile.heard)) - said
    print(f"20 questions of {len(question)} bytes, answers of {heard} bytes in all")
    assert heard < limits.ANSWER_FACTOR_MAX * 20 * len(question)
