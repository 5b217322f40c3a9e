"""SIGKILL of whoever matters to a job, at moments that matter, and a new start: it settles, with every result right."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from harness import Cluster, Daemon, assert_right, copying_job, wait_until

from nexapod.protocol import limits

TASKS = 6
JOB_S = 60.0 + 2 * limits.LEASE_TTL_MS / 1000
DOWN_S = 2.0
MOMENTS = {
    "placed": lambda view: view["placed"],
    "running": lambda view: view["running"] > 0,
    "half accepted": lambda view: view["accepted"] >= TASKS // 2,
}


def seats(mesh: Cluster, submitter: Daemon, job_id: str) -> list[Daemon]:
    """Who holds the job's only shard, as its submitter knows."""
    (shard,) = submitter.job(job_id)["seats"]
    return [mesh.by_id(holder) for holder in shard["holders"]]


def victims(mesh: Cluster, submitter: Daemon, job_id: str, which: str) -> Sequence[Daemon]:
    holders = seats(mesh, submitter, job_id)
    assert len(holders) == limits.SEATS
    match which:
        case "first seat":
            return holders[:1]
        case "last seat":
            return holders[-1:]
        case "two seats":
            return holders[:2]
        case "all seats":
            return holders
        case "submitter":
            return [submitter]
        case _:
            return mesh.daemons


WHO = ("first seat", "last seat", "two seats", "all seats", "submitter", "all")
ALWAYS = {("first seat", "running"), ("two seats", "half accepted"), ("submitter", "running"), ("all", "half accepted")}


@pytest.mark.parametrize(
    ("which", "moment"),
    [
        pytest.param(which, moment, marks=[] if (which, moment) in ALWAYS else [pytest.mark.long])
        for which in WHO
        for moment in MOMENTS
    ],
)
def test_a_job_survives_a_kill_and_a_start_of(mesh: Cluster, which: str, moment: str) -> None:
    job = copying_job(TASKS, 0.4)
    submitter = mesh.daemons[1]
    job_id = submitter.submit(job)
    wait_until(lambda: bool(MOMENTS[moment](submitter.job(job_id))), JOB_S, moment)
    killed = victims(mesh, submitter, job_id, which)
    for daemon in killed:
        daemon.kill()
    until = time.monotonic() + DOWN_S
    wait_until(lambda: time.monotonic() > until, DOWN_S + 1, "they have been down for long enough")
    for daemon in killed:
        daemon.start()
    for daemon in killed:
        daemon.wait_up()
    began = time.monotonic()
    mesh.wait_state(submitter, job_id, "settled", JOB_S)
    print(f"settled {time.monotonic() - began:.1f} s after the start")
    assert_right(submitter, job_id, job)
    assert not [event for daemon in mesh.daemons for event in daemon.events("fault_proven")]


@pytest.mark.parametrize(
    "seat", [pytest.param(seat, marks=[pytest.mark.long] if seat else []) for seat in range(limits.SEATS)]
)
def test_a_job_settles_without_any_one_of_its_seats(mesh: Cluster, seat: int) -> None:
    job = copying_job(TASKS, 0.4)
    submitter = mesh.daemons[0]
    job_id = submitter.submit(job)
    wait_until(lambda: submitter.job(job_id)["running"] > 0, JOB_S, "tasks run")
    dead = seats(mesh, submitter, job_id)[seat]
    assert dead is not submitter
    dead.kill()
    mesh.wait_state(submitter, job_id, "settled", JOB_S)
    assert_right(submitter, job_id, job)
