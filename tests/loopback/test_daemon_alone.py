"""A daemon that knows nobody, and two that know only each other: they say so, and lose nothing."""

from __future__ import annotations

import time

import pytest
from harness import Cluster, assert_right, copying_job, gone, wait_until

JOB_S = 60.0


def test_a_job_submitted_with_nobody_around_waits_for_a_second_peer_and_says_why() -> None:
    with Cluster() as alone:
        submitter = alone.add("submitter", "--slots", "1")
        job = copying_job(2, 0.01)
        job_id = submitter.submit(job)
        wait_until(lambda: bool(submitter.events("tasks_committed")), 20, "it works on its own job")
        looked_until = time.monotonic() + 3
        while time.monotonic() < looked_until:
            view = submitter.job(job_id)
            assert (view["state"], view["accepted"], view["failed"]) == ("running", 0, 0)
            assert view["placed_on"] == [submitter.peer_id]
            assert not view["may_leave"]
        said = " ".join(submitter.get(f"/v1/jobs/{job_id}/why")["sentences"])
        assert "Only 1 known peer can run it, in 1 operator group, and each task needs 2 groups that agree" in said
        assert view["rests_on"] in said
        alone_said = " ".join(submitter.get("/v1/why")["sentences"])
        assert "No bootstrap peer is named: give a running daemon's address with --bootstrap." in alone_said
        # A second peer is enough to go on.
        alone.add("worker", "--slots", "1")
        alone.wait_met()
        alone.wait_state(submitter, job_id, "settled", JOB_S)
        assert_right(submitter, job_id, job)
        below = submitter.below()
        assert below
        submitter.terminate()
        assert submitter.wait_end(15) == 0
        wait_until(lambda: gone(below), 5, "its runners are gone")
        assert not (submitter.home / "api.sock").exists()


@pytest.mark.parametrize("submits", [0, 1])
@pytest.mark.parametrize("killed", [0, 1])
def test_two_daemons_alone_settle_a_job_though_one_is_killed(submits: int, killed: int) -> None:
    with Cluster() as pair:
        daemons = [pair.add(name, "--slots", "2") for name in ("one", "other")]
        pair.wait_met()
        submitter = daemons[submits]
        job = copying_job(4, 0.5)
        job_id = submitter.submit(job)
        wait_until(lambda: submitter.job(job_id)["running"] > 0, JOB_S, "tasks run")
        daemons[killed].kill()
        daemons[killed].start()
        daemons[killed].wait_up()
        pair.wait_state(submitter, job_id, "settled", JOB_S)
        assert_right(submitter, job_id, job)
