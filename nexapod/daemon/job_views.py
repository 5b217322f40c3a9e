"""Jobs and tasks as the API shows them: reports of the core in, JSON values of nexapod/api/models.py out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from nexapod.protocol.notices import JobAccepted, TaskFailing
from nexapod.protocol.primitives import BlobRef, File
from nexapod.protocol.report import JobReport, ReplicaReport, SubmissionReport, TaskReport
from nexapod.protocol.rules.succession import quorum

UNSHOWN: Final = ("running", "committed")
"""Outcomes of a replica whose result was not shown yet."""


def submitted_view(accepted: JobAccepted) -> dict[str, Any]:
    """What the user of a job is told at once."""
    return {"job_id": accepted.job.hex(), "panel": list(accepted.panel), "rests_on": accepted.rests_on}


# --- jobs ----------------------------------------------------------------------------------------------------------
def job_state(report: JobReport) -> str:
    """placing, running, settled or cancelled; `open` when this peer is not its submitter."""
    if report.standing != "open":
        return report.standing
    if report.submission is None:
        return "open"
    return "running" if report.submission.placed else "placing"


def job_row(report: JobReport) -> dict[str, Any]:
    """One line of the list of jobs."""
    mine = report.submission
    return {
        "job_id": report.job.hex(),
        "name": report.name,
        "submitter": report.submitter,
        "mine": mine is not None,
        "state": job_state(report),
        "tasks": report.tasks,
        "accepted": None if mine is None else mine.accepted,
        "failed": None if mine is None else mine.failed,
        "running": None if mine is None else mine.running if report.standing == "open" else 0,
        "created": report.spec.stamp,
    }


def job_view(report: JobReport, tasks: Sequence[TaskReport]) -> dict[str, Any]:
    """A job: its description, who keeps it, and `tasks`, those of one page that this peer can speak of."""
    spec = report.spec
    return job_row(report) | {
        "description": spec.description,
        "tags": list(spec.tags),
        "executor": spec.run.executor,
        "agree": spec.validate.agree,
        "max_replicas": spec.validate.max_replicas,
        "panel": list(report.panel),
        "seats": [{"shard": s.shard, "epoch": s.epoch, "holders": list(s.holders)} for s in report.seats],
        "workable": report.workable,
        "groups": report.groups,
        "works": report.works,
        "work": report.work,
        **_placement(report),
        "task_list": [task_view(task) for task in tasks],
    }


def _placement(report: JobReport) -> dict[str, Any]:
    """What only the submitter's peer knows."""
    mine = report.submission
    if mine is None:
        return {
            "rests_on": "", "placed": False, "placed_on": [], "may_leave": False, "holders": 0, "holders_needed": 0,
            "shards": None,
            "refused": [], "unanswered": [], "unratified": [], "problems": [], "failing": None,
        }  # fmt: skip
    held, needed = mine.held_least
    return {
        "rests_on": mine.rests_on,
        "placed": mine.placed,
        "placed_on": list(mine.holders),
        "may_leave": _may_leave(report, mine),
        "holders": held,
        "holders_needed": needed,
        "shards": {"total": mine.shards, "placed": mine.shards_placed, "finished": mine.shards_finished},
        "refused": [{"peer": peer, "reason": reason} for peer, reason in mine.refused],
        "unanswered": list(mine.unanswered),
        "unratified": list(mine.unratified),
        "problems": list(mine.problems),
        "failing": None if mine.failing is None else failing_view(mine.failing),
    }


def _may_leave(report: JobReport, mine: SubmissionReport) -> bool:
    """Whether its stewards go on without this machine. It is one of them itself where few others are known: each shard
    then has all of them as its seats."""
    if report.submitter not in report.panel:
        return mine.placed
    others = [peer for peer in mine.holders if peer != report.submitter]
    return mine.placed and len(others) >= quorum(len(report.panel))


def failing_view(failing: TaskFailing) -> dict[str, Any]:
    """A result that did not end well."""
    return {
        "index": failing.task,
        "peer": failing.worker,
        "exit": failing.exit,
        "reason": failing.reason,
        "outcome": failing.outcome,
        "log": failing.log,
    }


# --- tasks ---------------------------------------------------------------------------------------------------------
def task_view(task: TaskReport) -> dict[str, Any]:
    """One task, with each of its results."""
    return {
        "index": task.task,
        "state": task.standing,
        "progress": task.progress / 1000,
        "workers": list(task.workers),
        "reason": task.reason,
        "root": None if task.root is None else task.root.hex(),
        "replicas": [_replica(replica, failed=task.standing == "failed") for replica in task.replicas],
        "notes": [{"peer": peer, "exit": status, "reason": reason} for peer, status, reason in task.notes],
        "judges": list(task.judges),
    }


def _replica(replica: ReplicaReport, *, failed: bool) -> dict[str, Any]:
    usage, ended_badly = replica.usage, replica.outcome not in ("ok", *UNSHOWN)
    return {
        "peer": replica.worker,
        "group": replica.group,
        "outcome": replica.outcome,
        "exit": replica.exit,
        "reason": replica.reason,
        "root": None if replica.root is None else replica.root.hex(),
        "wall_ms": None if usage is None else usage.wall_ms,
        "cpu_ms": None if usage is None else usage.cpu_ms,
        "peak_memory": None if usage is None else usage.peak_memory,
        "gpu_ms": None if usage is None else usage.gpu_ms,
        "hardware": replica.hardware,
        "resumed": None if replica.resumed is None else replica.resumed.hex(),
        "agrees": replica.agrees,
        "log": replica.log if ended_badly else "",
        "files": [_file(file) for file in replica.outputs] if failed else [],
    }


def _file(file: File) -> dict[str, Any]:
    return {"path": file.path, "ref": str(file.blob), "size": file.blob.size}


def results_view(tasks: Sequence[TaskReport], here: Callable[[BlobRef], bool]) -> list[dict[str, Any]]:
    """How tasks ended, of those that are decided. `here`: whether a whole blob is in the store."""
    return [
        {
            "index": task.task,
            "outcome": task.standing,
            "reason": task.reason,
            "files": [_file(file) | {"here": here(file.blob)} for file in task.outputs],
        }
        for task in tasks
        if task.standing in ("accepted", "failed")
    ]


def log_view(task: TaskReport) -> list[dict[str, Any]]:
    """What each worker of a task printed: of those that have shown it, of those that run and have said it."""
    return [_log(replica) for replica in task.replicas] + list(_only_noted(task))


def _log(replica: ReplicaReport) -> dict[str, Any]:
    return {
        "peer": replica.worker,
        "outcome": replica.outcome,
        "exit": replica.exit,
        "reason": replica.reason,
        "log": replica.log,
    }


def _only_noted(task: TaskReport) -> Iterator[dict[str, Any]]:
    """Results that a seat says did not end well, and that this peer has not been shown itself."""
    shown = {replica.worker for replica in task.replicas if replica.outcome not in UNSHOWN}
    for peer, status, reason in task.notes:
        if peer not in shown:
            yield {"peer": peer, "outcome": "failed", "exit": status, "reason": reason, "log": ""}
