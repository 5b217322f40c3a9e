"""Real daemons, three of which lie: every result that settles is right, and every task settles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Cluster, example_job, example_module

from nexapod.mesh import identity
from nexapod.protocol import certificate

JOB_S = 90.0


@pytest.fixture
def infiltrated() -> Iterator[Cluster]:
    """A bootstrap, four honest workers, and one peer for each kind of lie."""
    with Cluster() as made:
        made.add("bootstrap", "--no-work")
        for number in range(1, 5):
            made.add(f"worker-{number}", "--slots", "1")
        for lie in ("wrong", "copycat", "hoard"):
            made.add(lie, lie=lie)
        made.wait_met()
        yield made


def test_three_liars_change_no_label_and_stop_no_task(infiltrated: Cluster, weights: bytes) -> None:
    score = example_module("score")
    job = example_job(weights)
    submitter = infiltrated.daemons[1]
    job_id = submitter.submit(job)
    view = infiltrated.wait_state(submitter, job_id, "complete", JOB_S)
    assert (view["settled"], view["failed"]) == (len(job.pieces), 0)
    tables = {
        job.pieces[task].split()[0][1:].decode(): score.parse_table(data.decode()).labels
        for task, data in submitter.outputs(job_id, "prediction.tsv").items()
    }
    assert tables == {chain.name: chain.reference for chain in score.load_chains()}
    assert certificate.check(submitter.ask("GET", f"/v1/jobs/{job_id}/certificate"), identity.verify).ok
    agreed = {r["peer"] for task in view["task_list"] for r in task["replicas"] if r["agreed"]}
    liars = {daemon.name: daemon for daemon in infiltrated.daemons if daemon.lie}
    assert liars["wrong"].peer_id not in agreed
    assert liars["hoard"].peer_id not in agreed
    # Without these three the test would prove nothing: each did what it is here for.
    assert liars["wrong"].events("committed")
    assert liars["copycat"].events("committed")
    assert liars["hoard"].events("run")
    assert not liars["hoard"].events("committed")
