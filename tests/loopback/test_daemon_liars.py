"""Real daemons, some of which lie: every result that settles is right, and every task settles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Cluster, assert_certified, assert_right, copying_job, example_job, example_module

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
    # Stewards are told of all results that they judge: a copycat among them would learn of them in time.
    honest = [daemon.peer_id for daemon in infiltrated.daemons if not daemon.lie and daemon is not submitter]
    job_id = submitter.submit(job, friends=honest)
    view = infiltrated.wait_state(submitter, job_id, "settled", JOB_S)
    assert (view["accepted"], view["failed"]) == (len(job.pieces), 0)
    tables = {
        job.pieces[task].split()[0][1:].decode(): score.parse_table(data.decode()).labels
        for task, data in submitter.outputs(job_id, "prediction.tsv").items()
    }
    assert tables == {chain.name: chain.reference for chain in score.load_chains()}
    assert_certified(submitter, job_id)
    agreed = {r["peer"] for task in view["task_list"] for r in task["replicas"] if r["agrees"]}
    liars = {daemon.name: daemon for daemon in infiltrated.daemons if daemon.lie}
    assert agreed.isdisjoint(liar.peer_id for liar in liars.values())
    # Without these three the test would prove nothing: each did what it is here for.
    assert liars["wrong"].events("tasks_committed")
    assert liars["copycat"].events("tasks_committed")
    assert liars["hoard"].events("task_begun")
    assert not liars["hoard"].events("tasks_committed")


SEATS = ("lying-seat", "two-faced-seat", "mute-seat", "usurper", "stopper")
OTHERS = ("relay", "filler", "leech", "withholder", "equivocator")


@pytest.mark.slow
@pytest.mark.parametrize(
    "lie", [pytest.param(lie, marks=[pytest.mark.long] if at % 5 else []) for at, lie in enumerate([*SEATS, *OTHERS])]
)
def test_one_liar_of_the_simulator_changes_nothing_on_real_daemons(lie: str) -> None:
    with Cluster() as mesh:
        submitter = mesh.add("submitter", "--slots", "1")
        for number in (1, 2):
            mesh.add(f"worker-{number}", "--slots", "1")
        liar = mesh.add(lie, lie=lie)
        mesh.wait_met()
        job = copying_job(6, 0.2)
        job_id = submitter.submit(job)
        assert lie not in SEATS or liar.peer_id in submitter.job(job_id)["panel"]
        mesh.wait_state(submitter, job_id, "settled", JOB_S)
        assert_right(submitter, job_id, job)
        assert liar.events("lied"), "it did what it is here for"
