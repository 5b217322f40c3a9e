"""Real machines of every kind, on meshes of few peers: a job is placed, worked on, judged, settled, and certified."""

from __future__ import annotations

import pytest

from nexapod.protocol import limits
from nexapod.protocol.events import CancelJob, Submit
from nexapod.protocol.notices import JobAccepted, JobClosed, JobLearned, JobPlaced, JobSettled, TaskDecided, TaskFailing
from nexapod.protocol.runs import RunResult
from tests.protocol.mesh import Mesh, Peer, job_of, job_spec

TASKS = 4


def settle(mesh: Mesh, *, agree: int, limit_ms: int = 120_000) -> Peer:
    mesh.start()
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(tasks=TASKS, agree=agree), accept_unknown=True))
    submitter = mesh[0]
    mesh.run_until(lambda: bool(submitter.noticed(JobSettled)), limit_ms)
    return submitter


def said(mesh: Mesh) -> str:
    counts = ", ".join(f"{kind} {count} ({mesh.bytes[kind]} B)" for kind, count in mesh.sent.most_common())
    return f"{len(mesh.peers)} nodes, {mesh.now} ms: {counts}"


@pytest.mark.parametrize(("nodes", "agree"), [(1, 1), (2, 2), (3, 2), (5, 2)])
def test_a_job_settles(nodes: int, agree: int) -> None:
    mesh = Mesh(nodes)
    submitter = settle(mesh, agree=agree)
    print(said(mesh))
    assert submitter.noticed(JobAccepted)
    assert submitter.noticed(JobPlaced)
    decided = submitter.noticed(TaskDecided)
    assert sorted(notice.task for notice in decided if isinstance(notice, TaskDecided)) == list(range(TASKS))
    (settled,) = submitter.noticed(JobSettled)
    assert isinstance(settled, JobSettled)
    assert (settled.settled, settled.failed) == (TASKS, 0)
    certificate = b"".join(submitter.node.certificate(settled.job))
    assert certificate.startswith(b"NEXAPOD-CERTIFICATE-3\n")
    for peer in mesh.peers.values():
        assert peer.penalties == []
        assert [t for t in peer.traces if t.name == "own_message_refused"] == []
    mesh.run_for(5_000)
    for peer in list(mesh.peers.values())[1:]:
        assert peer.noticed(JobLearned)
        assert peer.noticed(JobClosed)
        assert not peer.running


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_a_job_that_fails_everywhere_ends_when_nobody_else_can_try_it(nodes: int) -> None:
    mesh = Mesh(nodes)
    mesh.result = lambda task: RunResult("failed", 9)
    submitter = settle(mesh, agree=2, limit_ms=limits.NO_BID_MS + 5_000)
    (settled,) = submitter.noticed(JobSettled)
    assert isinstance(settled, JobSettled)
    assert (settled.settled, settled.failed) == (0, TASKS)
    failing = [(one.task, one.worker) for one in submitter.noticed(TaskFailing) if isinstance(one, TaskFailing)]
    tries = min(nodes, job_spec().validate.max_replicas)
    assert [sum(task == of for of, _ in failing) for task in range(TASKS)] == [tries] * TASKS, "each try is told"


def test_a_job_whose_whole_panel_has_gone_for_good_is_given_another_by_its_submitter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CARETAKER_MS", 300_000)
    mesh = Mesh(limits.PANEL_USUAL + 5, run_ms=60_000)
    mesh.start(slots=1)
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(tasks=TASKS)))
    submitter = mesh[0]
    assert mesh.run_until(lambda: bool(submitter.noticed(JobPlaced)))
    report = submitter.node.job_report(job_of(submitter))
    assert report is not None
    for peer in report.panel:
        mesh.kill(peer)
    mesh.run_for(limits.CARETAKER_MS - 60_000)
    before = submitter.node.job_report(report.job)
    assert before is not None
    assert before.panel == report.panel, "they may only be away for a while"
    assert mesh.run_until(lambda: bool(submitter.noticed(JobSettled)), 600_000)
    now = submitter.node.job_report(report.job)
    assert now is not None
    assert set(now.panel) <= set(mesh.peers)


def test_a_cancelled_job_is_over_everywhere() -> None:
    mesh = Mesh(4, run_ms=60_000)
    mesh.start()
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(), accept_unknown=True))
    assert mesh.run_until(lambda: any(peer.running for peer in mesh.peers.values()))
    mesh.give(mesh.names[0], CancelJob(job_of(mesh[0]), "enough"))
    mesh.run_for(2_000)
    for peer in mesh.peers.values():
        assert peer.noticed(JobClosed)
        assert not peer.running
        assert not peer.node.report().jobs
