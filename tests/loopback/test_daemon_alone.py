"""A daemon that knows nobody: it says so, and loses nothing."""

from __future__ import annotations

import time

from harness import Cluster, copying_job, gone, wait_until

JOB_S = 60.0


def test_a_submitter_with_nobody_around_does_not_claim_that_its_job_is_placed() -> None:
    with Cluster() as alone:
        submitter = alone.add("submitter", "--slots", "1")
        job_id = submitter.submit(copying_job(2, 0.01))
        wait_until(lambda: bool(submitter.events("committed")), 20, "it works on its own job")
        looked_until = time.monotonic() + 3
        while time.monotonic() < looked_until:
            view = submitter.job(job_id)
            assert (view["placed"], view["state"], view["settled"], view["placed_on"]) == (False, "placing", 0, [])
        said = " ".join(submitter.get(f"/v1/jobs/{job_id}/why")["sentences"])
        assert "Only 1 known peers can run it, and each task needs 2 that agree" in said
        assert "keep this daemon running" in said
        assert "No bootstrap peer is named: give a running daemon's address with --bootstrap." in said
        # A second peer is enough to go on.
        alone.add("worker", "--slots", "1")
        alone.wait_met()
        view = alone.wait_state(submitter, job_id, "complete", JOB_S)
        assert (view["placed"], view["settled"], view["failed"]) == (True, 2, 0)
        below = submitter.below()
        assert below
        submitter.terminate()
        assert submitter.wait_end(15) == 0
        wait_until(lambda: gone(below), 5, "its runners are gone")
        assert not (submitter.home / "api.sock").exists()
