"""A mesh of five real daemons that loses some of them, and is attacked: nothing is lost, nothing is left running."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import time
from pathlib import Path

import psutil
import trio
from harness import NETWORK, Cluster, Daemon, Job, copying_job, gone, wait_until

from nexapod.mesh import identity
from nexapod.mesh.events import Frame, Gossip, MeshEvent, PeerDown, PeerUp
from nexapod.mesh.mesh import Mesh
from nexapod.protocol import certificate, limits, messages
from nexapod.protocol.messages import Offer, Query

JOB_S = 60.0
DOWN_S = 5.0
RSS_GROWTH_MAX = 64 << 20


def assert_right(daemon: Daemon, job_id: str, job: Job) -> None:
    """Every task settled, none failed, every output what its task should have written, and the certificate holds."""
    view = daemon.job(job_id)
    assert (view["settled"], view["failed"]) == (len(job.pieces), 0)
    assert daemon.outputs(job_id, "out.txt") == dict(enumerate(job.pieces))
    report = certificate.check(daemon.ask("GET", f"/v1/jobs/{job_id}/certificate"), identity.verify)
    assert report.ok, report


def settled_by(daemon: Daemon, job_id: str) -> set[int]:
    """The tasks of a job that this daemon, as a steward, saw settle."""
    return {event["task"] for event in daemon.events("settled") if event["job"] == job_id}


def test_a_first_bid_follows_a_submission_within_half_a_second(mesh: Cluster) -> None:
    job = copying_job(1, 0.01)
    began = time.time()
    job_id = mesh.daemons[1].submit(job)
    mesh.wait_state(mesh.daemons[1], job_id, "complete", JOB_S)
    first = min(event["at"] for daemon in mesh.daemons for event in daemon.stamped("run") if event["job"] == job_id)
    assert first - began < 0.5
    assert_right(mesh.daemons[1], job_id, job)


def test_a_job_settles_without_its_submitter_and_the_results_wait_for_its_return(mesh: Cluster, tmp_path: Path) -> None:
    job = copying_job(8, 0.5)
    submitter = mesh.daemons[1]
    job_id = submitter.submit(job)
    wait_until(lambda: bool(submitter.job(job_id)["placed"]), 10, "the job is placed")
    assert submitter.job(job_id)["settled"] < len(job.pieces)
    submitter.kill()
    others = [daemon for daemon in mesh.daemons if daemon is not submitter]

    def settled_elsewhere() -> bool:
        return sum(settled_by(daemon, job_id) == set(range(len(job.pieces))) for daemon in others) >= 2

    wait_until(settled_elsewhere, JOB_S, "two stewards have seen every task settle")
    submitter.start()
    submitter.wait_up()
    mesh.wait_state(submitter, job_id, "complete", 15)
    assert_right(submitter, job_id, job)
    fetched = tmp_path / "fetched"
    submitter.command_line("results", job_id, "-o", str(fetched))
    (certificate_file,) = fetched.rglob("*.cert")
    report = json.loads(submitter.command_line("verify", str(certificate_file), "--results", str(fetched), "--json"))
    assert report["ok"] is True
    assert sorted(path.read_bytes() for path in fetched.rglob("out.txt")) == sorted(job.pieces)


def test_a_job_settles_though_every_daemon_is_killed_in_its_turn(mesh: Cluster) -> None:
    job = copying_job(16, 0.6)
    submitter = mesh.daemons[1]
    job_id = submitter.submit(job)
    wait_until(lambda: bool(submitter.job(job_id)["placed"]), 10, "the job is placed")
    runners: list[psutil.Process] = []
    for daemon in mesh.daemons:
        runners += daemon.below()
        daemon.kill()
        down_until = time.monotonic() + DOWN_S
        wait_until(lambda end=down_until: time.monotonic() > end, DOWN_S + 1, "it has been down for long enough")
        daemon.start()
    for daemon in mesh.daemons:
        daemon.wait_up()
    mesh.wait_state(submitter, job_id, "complete", JOB_S + 2 * limits.LEASE_TTL_MS / 1000)
    assert_right(submitter, job_id, job)
    assert gone(runners)
    assert not [event for daemon in mesh.daemons for event in daemon.events("fault_proven")]


def test_no_process_outlives_a_daemon_that_is_killed_while_a_task_runs(mesh: Cluster) -> None:
    job = copying_job(8, 3.0)
    submitter = mesh.daemons[1]
    job_id = submitter.submit(job)
    worker = mesh.daemons[2]
    wait_until(lambda: worker.status()["running_tasks"] == 1, 10, "the worker runs a task")
    wait_until(lambda: any(p.cpu_percent(0.1) > 10 for p in worker.below()), 10, "its runner is busy")
    below = worker.below()
    worker.kill()
    wait_until(lambda: gone(below), 5, "its runners are gone")
    submitter.ask("POST", f"/v1/jobs/{job_id}/cancel", b"")
    wait_until(lambda: all(d.status()["running_tasks"] == 0 for d in mesh.daemons if d.alive), 10, "all others stop")


def test_a_worker_that_is_asked_to_end_hands_over_the_task_that_it_runs(mesh: Cluster) -> None:
    job = copying_job(3, 1.5)
    submitter, worker = mesh.daemons[1], mesh.daemons[3]
    job_id = submitter.submit(job)
    wait_until(lambda: worker.status()["running_tasks"] == 1, 10, "the worker runs a task")
    running = {event["task"] for event in worker.events("run") if event["job"] == job_id}
    below = worker.below()
    worker.terminate()
    assert worker.wait_end(40) == 0
    wait_until(lambda: gone(below), 5, "its runners are gone")
    judged = {event["task"]: event["agreed"] for event in worker.events("result_judged") if event["job"] == job_id}
    assert judged == dict.fromkeys(running, True)
    mesh.wait_state(submitter, job_id, "complete", JOB_S)
    assert_right(submitter, job_id, job)


def test_a_second_daemon_on_one_home_says_who_holds_it(mesh: Cluster) -> None:
    daemon = mesh.daemons[0]
    assert daemon.process is not None
    ended = subprocess.run(daemon.command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert f"process {daemon.process.pid} is already running" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert daemon.status()["pid"] == daemon.process.pid


def test_a_daemon_of_another_network_does_not_link(mesh: Cluster) -> None:
    before = {daemon.name: daemon.status()["connected_peers"] for daemon in mesh.daemons}
    stranger = mesh.add("stranger", "--network", "somewhere-else")
    try:
        stranger.wait_up()
        wait_until(
            lambda: bool(stranger.events("foreign_network") or mesh.daemons[0].events("foreign_network")),
            20,
            "one of the two has noticed",
        )
        assert stranger.status()["connected_peers"] == 0
        assert stranger.status()["known_peers"] == 0
        assert {daemon.name: daemon.status()["connected_peers"] for daemon in mesh.daemons[:-1]} == before
    finally:
        stranger.kill()
        mesh.daemons.remove(stranger)


# --- a hostile peer --------------------------------------------------------------------------------------------------
class Hostile:
    """A peer of this process: a real libp2p host of the same network that says whatever it likes."""

    def __init__(self, target: Daemon) -> None:
        self.target = target
        self.up = False
        self._changed = trio.Event()
        self.mesh = Mesh(
            seed=secrets.token_bytes(32),
            network=NETWORK,
            listen=(),
            known_addrs=target.listen[:1],
            on_event=self._on_event,
            on_bulk=self._on_bulk,
            validate=lambda _topic, _data: True,
            peers_min=1,
        )

    def _on_event(self, event: MeshEvent) -> None:
        match event:
            case PeerUp(peer, _) if peer == self.target.peer_id:
                self._set(True)
            case PeerDown(peer) if peer == self.target.peer_id:
                self._set(False)
            case Frame() | Gossip() | _:
                pass

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


def malformed_frames() -> list[bytes]:
    """A thousand frames: random bytes, damaged and truncated messages, statements that are none."""
    honest = messages.encode(Query(secrets.token_bytes(32), 0))  # type: ignore[arg-type]
    frames = [secrets.token_bytes(size % 700 + 1) for size in range(400)]
    frames += [honest[:at] for at in range(1, len(honest))]
    frames += [messages.encode(Offer((secrets.token_bytes(300),) * 20)) for _ in range(200)]
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
    for channel in ("control", "bulk", "gossip"):
        hostile = Hostile(target)
        async with trio.open_nursery() as nursery:
            await nursery.start(hostile.mesh.run)
            await hostile.wait_up(True, 15)
            for frame in malformed_frames():
                if channel == "gossip":
                    await hostile.mesh.publish("job", frame[: limits.ENVELOPE_BYTES_MAX])
                else:
                    hostile.mesh.send_nowait(target.peer_id, channel, frame)  # type: ignore[arg-type]
                    await trio.sleep(0.001)
            if channel != "gossip":
                # Gossip is not held against who forwards it: its author may be anybody.
                await hostile.wait_up(False, 20)
            nursery.cancel_scope.cancel()
        assert target.alive
        assert (await trio.to_thread.run_sync(target.status))["state"] == "running"
    assert target.rss() - before < RSS_GROWTH_MAX
    counts = target.counts()
    assert counts["penalty"] > 0
    job = copying_job(4, 0.05)
    job_id = submitter.submit(job)
    mesh.wait_state(submitter, job_id, "complete", JOB_S)
    assert_right(submitter, job_id, job)
