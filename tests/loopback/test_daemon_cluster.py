"""A mesh of five real daemons that loses some of them: nothing is lost, nothing is left running."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import psutil
from harness import Cluster, Daemon, Refused, assert_right, copying_job, gone, wait_until

from nexapod.protocol import limits

JOB_S = 60.0
DOWN_S = 5.0


def decided_at(daemon: Daemon, job_id: str) -> int:
    """Tasks of a job that this daemon, as a steward, knows to be accepted."""
    try:
        view = daemon.job(job_id)
    except Refused:
        return 0  # it has never heard of it, or has let go of it already
    return sum(task["state"] == "accepted" for task in view["task_list"])


def test_a_first_bid_follows_a_submission_and_waits_for_no_period(mesh: Cluster) -> None:
    job = copying_job(1, 0.01)
    submitter = mesh.daemons[1]
    began = time.time()
    job_id = submitter.submit(job)
    mesh.wait_state(submitter, job_id, "settled", JOB_S)
    bids = [event for daemon in mesh.daemons for event in daemon.stamped("bid_sent") if event["job"] == job_id]
    # Well within the shortest period at which anything is said again; how fast it is, benchmarks/mesh.py measures.
    assert min(event["at"] for event in bids) - began < 5
    assert_right(submitter, job_id, job)


def test_a_job_settles_without_its_submitter_and_the_results_wait_for_its_return(mesh: Cluster, tmp_path: Path) -> None:
    job = copying_job(8, 0.5)
    submitter = mesh.daemons[1]
    job_id = submitter.submit(job)
    wait_until(lambda: bool(submitter.job(job_id)["placed"]), 10, "the job is placed")
    assert submitter.job(job_id)["accepted"] < len(job.pieces)
    submitter.kill()
    others = [daemon for daemon in mesh.daemons if daemon is not submitter]

    def settled_elsewhere() -> bool:
        return sum(decided_at(daemon, job_id) == len(job.pieces) for daemon in others) >= 2

    wait_until(settled_elsewhere, JOB_S, "two stewards have seen every task decided")
    submitter.start()
    submitter.wait_up()
    mesh.wait_state(submitter, job_id, "settled", 15)
    wait_until(lambda: len(submitter.outputs(job_id, "out.txt")) == len(job.pieces), 15, "the outputs are here")
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
    mesh.wait_state(submitter, job_id, "settled", JOB_S + 2 * limits.LEASE_TTL_MS / 1000)
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
    running = {task["index"] for task in worker.get("/v1/tasks") if task["job_id"] == job_id}
    below = worker.below()
    worker.terminate()
    assert worker.wait_end(40) == 0
    wait_until(lambda: gone(below), 5, "its runners are gone")
    view = mesh.wait_state(submitter, job_id, "settled", JOB_S)
    agreed = {
        t["index"] for t in view["task_list"] for r in t["replicas"] if r["peer"] == worker.peer_id and r["agrees"]
    }
    assert running <= agreed
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
