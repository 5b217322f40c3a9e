"""nexapod.daemon.views: what the API shows of a job is so."""

from __future__ import annotations

from typing import Any

from protocol_kit import Mesh, job_spec, pid, result_of

from nexapod.daemon import views
from nexapod.protocol.events import CancelJob, Submit
from nexapod.protocol.messages import TaskLog
from nexapod.protocol.submitter import Submission
from nexapod.protocol.types import JobId, Validate

WORKER = 4


def under_way() -> tuple[Mesh, JobId, Submission]:
    """A job of one task that waits for its second result, and whose submitter has heard of the one worker."""
    mesh = Mesh(range(5), silent=range(4))
    mesh.result = lambda peer, run: None
    mesh.do(0, Submit(job_spec(validate=Validate(agree=2, max_replicas=3))))
    (job,) = mesh.nodes[pid(0)].jobs
    submission = mesh.nodes[pid(0)].submissions[job]
    assert mesh.run(60_000, lambda: bool(views.active_tasks(submission)))
    submission.logs[0, pid(WORKER)] = TaskLog(job, 0, "a line")
    return mesh, job, submission


def row(mesh: Mesh, job: JobId) -> dict[str, Any]:
    node = mesh.nodes[pid(0)]
    return views.job_view(node, node.jobs[job], range(1))


def test_nothing_of_a_cancelled_job_is_under_way() -> None:
    mesh, job, _ = under_way()
    assert (row(mesh, job)["running"], row(mesh, job)["task_list"][0]["state"]) == (1, "leased")
    mesh.do(0, CancelJob(job, "not wanted"))
    shown = row(mesh, job)
    assert (shown["state"], shown["running"], shown["task_list"][0]["state"]) == ("cancelled", 0, "open")


def test_a_task_that_waits_for_others_is_committed_in_its_log_too() -> None:
    mesh, job, submission = under_way()
    assert [entry["outcome"] for entry in views.log_view(submission, 0)] == ["running"]
    mesh.finish(WORKER, result_of(b"result"))
    assert mesh.run(60_000, lambda: row(mesh, job)["task_list"][0]["state"] == "committed")
    assert [entry["outcome"] for entry in views.log_view(submission, 0)] == ["committed"]
