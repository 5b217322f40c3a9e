"""The node as JSON: what the API shows. Reads, never changes; every word in it is DESIGN's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nexapod.daemon.gpus import GpuState
from nexapod.daemon.image_shelf import Shelved
from nexapod.daemon.tasks import RunningTask
from nexapod.protocol.limits import SHARD_TASKS
from nexapod.protocol.messages import ActiveTask
from nexapod.protocol.node import JobEntry, Node
from nexapod.protocol.statements import Verdict
from nexapod.protocol.submitter import Submission
from nexapod.protocol.types import JobId, Profile


def profile_view(profile: Profile) -> dict[str, Any]:
    """A profile's facts."""
    return {
        "agent": profile.agent,
        "stamp": profile.stamp,
        "os": profile.os,
        "arch": profile.arch,
        "cpu_model": profile.cpu_model,
        "cpus": profile.cpus,
        "memory": profile.memory,
        "disk_free": profile.disk_free,
        "gpus": [
            {"model": g.model, "memory": g.memory, "capability": g.capability, "driver": g.driver} for g in profile.gpus
        ],
        "executors": [{"name": e.name, "version": e.version} for e in profile.executors],
        "images": list(profile.images),
        "registries": list(profile.registries),
        "addrs": list(profile.addrs),
        "serves": profile.serves,
        "slots": profile.slots,
    }


def gpus_view(states: Sequence[GpuState]) -> list[dict[str, Any]]:
    """This machine's GPUs, for its own user: what peers are not told is here too."""
    return [
        {
            "index": state.reading.index,
            "uuid": state.reading.uuid,
            "model": state.reading.model,
            "capability": state.reading.capability,
            "driver": state.reading.driver,
            "cuda": state.reading.cuda,
            "memory": state.reading.memory_bytes,
            "memory_used": state.reading.memory_used_bytes,
            "utilisation_percent": state.reading.utilisation_percent,
            "temperature_c": state.reading.temperature_c,
            "power_w": state.reading.power_w,
            "power_limit_w": state.reading.power_limit_w,
            "mig": state.reading.mig,
            "compute_processes": state.reading.compute_processes,
            "leased_by": state.leased_by,
            "withheld": state.withheld,
        }
        for state in states
    ]


def image_view(image: Shelved) -> dict[str, Any]:
    """A container image that was added here."""
    return {
        "image": image.image,
        "names": list(image.names),
        "platform": image.platform,
        "arch": image.arch,
        "size": image.size,
        "blobs": [str(ref) for ref in image.blobs],
        "added": image.added,
    }


def peers_view(node: Node) -> list[dict[str, Any]]:
    """Every peer that is known or connected, this one left out."""
    directory = node.ctx.directory
    rows = []
    for peer in sorted({*directory.known, *directory.links} - {node.me}):
        known = directory.known.get(peer)
        row: dict[str, Any] = {
            "peer_id": peer,
            "connected": peer in directory.links,
            "address": directory.links.get(peer, ""),
            "live": directory.live(peer, node.ctx.now),
            "heard_s": (node.ctx.now - known.heard) // 1000 if known else None,
        }
        row |= profile_view(known.profile) if known else {}
        rows.append(row)
    return rows


def job_state(node: Node, entry: JobEntry) -> str:
    """placing, running, complete or cancelled; `active` when this peer is not its submitter."""
    submission = node.submissions.get(JobId(entry.statement.id))
    if entry.state == "cancelled":
        return "cancelled"
    if entry.state == "settled":
        return "complete"
    if submission is None:
        return "active"
    return "running" if submission.placed else "placing"


def job_row(node: Node, entry: JobEntry) -> dict[str, Any]:
    """One line of the list of jobs. Counts are null where this peer does not know them."""
    job = JobId(entry.statement.id)
    submission = node.submissions.get(job)
    decided = list(submission.decided.values()) if submission else None
    active = active_tasks(submission) if submission else {}
    return {
        "job_id": job.hex(),
        "name": entry.spec.name,
        "submitter": entry.statement.author,
        "mine": submission is not None,
        "state": job_state(node, entry),
        "tasks": entry.spec.tasks,
        "settled": None if decided is None else sum(1 for v in decided if v.outcome == "accepted"),
        "failed": None if decided is None else sum(1 for v in decided if v.outcome == "failed"),
        "running": None if decided is None else len(active),
        "created": entry.spec.stamp,
    }


def job_view(node: Node, entry: JobEntry, tasks: range) -> dict[str, Any]:
    """A job: its description, where it is placed, and those of `tasks` that this peer can speak of."""
    job = JobId(entry.statement.id)
    submission = node.submissions.get(job)
    spec = entry.spec
    placed = {peer for peers in submission.placed_on.values() for peer in peers} if submission else set()
    return job_row(node, entry) | {
        "description": spec.description,
        "tags": list(spec.tags),
        "executor": spec.run.executor,
        "agree": spec.validate.agree,
        "max_replicas": spec.validate.max_replicas,
        "placed": bool(submission and submission.placed),
        **_holders(submission),
        "placed_on": sorted(placed - {node.me}),
        "task_list": _tasks(submission, tasks) if submission else [],
    }


def _holders(submission: Submission | None) -> dict[str, int]:
    """Of the shard that is held least."""
    placement = submission.placement() if submission is not None else [(0, 0)]
    held, needed = min(placement, key=lambda of_shard: of_shard[0] - of_shard[1])
    return {"holders": held, "holders_needed": needed}


def results_view(submission: Submission, tasks: range) -> list[dict[str, Any]]:
    """What is settled so far: outcome, reason and files of each decided task."""
    return [
        {
            "index": task,
            "outcome": verdict.outcome,
            "reason": verdict.reason,
            "files": [{"path": f.path, "ref": str(f.blob), "size": f.blob.size} for f in submission.outputs(task)],
        }
        for task, verdict in sorted(submission.decided.items())
        if task in tasks
    ]


def log_view(submission: Submission, task: int) -> list[dict[str, Any]]:
    """What each replica of a task printed: of those that were shown, and of those that run and have said it."""
    file = submission.states[task // SHARD_TASKS].file(task)
    active = active_tasks(submission).get(task)
    # Where several work on it, their stewards do not say which of them has committed.
    committed = {*file.commits, *(active.workers if active and active.committed and len(active.workers) == 1 else ())}
    return [
        {"peer": worker, "outcome": s.body.outcome, "exit": s.body.exit, "log": s.body.log}
        for worker, s in sorted(file.reveals.items())
    ] + [
        {"peer": worker, "outcome": "committed" if worker in committed else "running", "exit": None, "log": told.log}
        for (index, worker), told in sorted(submission.logs.items(), key=lambda item: item[0])
        if index == task and task not in submission.decided and worker not in file.reveals
    ]


def local_task_view(node: Node, task: RunningTask, now: float) -> dict[str, Any]:
    """A task on this machine. `now`: trio's clock."""
    effect, report = task.effect, task.report
    entry = node.jobs.get(effect.task.job)
    return {
        "job_id": effect.task.job.hex(),
        "index": effect.task.index,
        "name": effect.spec.name,
        "submitter": entry.statement.author if entry is not None else "",
        "executor": effect.spec.run.executor,
        "stage": task.stage,
        "frozen": task.frozen,
        "progress": report.progress,
        "age_s": now - task.began,
        "cpu_ms": report.usage.cpu_ms,
        "peak_memory": report.usage.peak_memory,
        "gpu_ms": report.usage.gpu_ms,
        "gpus": list(task.gpus),
        "printed": report.printed,
        "log": report.log,
    }


def active_tasks(submission: Submission) -> dict[int, ActiveTask]:
    """What stewards last said is being worked on, less what has been decided since; nothing once it is cancelled."""
    return {
        task.task: task
        for view in ([] if submission.cancelled else submission.views.values())
        for task in view.active
        if task.task not in submission.decided
    }


def _tasks(submission: Submission, tasks: range) -> list[dict[str, Any]]:
    active = active_tasks(submission)
    return [_task(submission, task, active.get(task)) for task in range(submission.spec.tasks) if task in tasks]


def _task(submission: Submission, task: int, active: ActiveTask | None) -> dict[str, Any]:
    verdict = submission.decided.get(task)
    file = submission.states[task // SHARD_TASKS].file(task)
    state = "open"
    if verdict is not None:
        state = "settled" if verdict.outcome == "accepted" else "failed"
    elif active is not None:
        state = "committed" if active.committed else "leased"
    return {
        "index": task,
        "state": state,
        "progress": 1.0 if verdict else (active.progress / 1000 if active else 0.0),
        "workers": list(active.workers) if active else sorted(file.commits),
        "reason": verdict.reason if verdict else "",
        "replicas": [
            {
                "peer": worker,
                "outcome": s.body.outcome,
                "root": s.body.root.hex(),
                "exit": s.body.exit,
                "wall_ms": s.body.usage.wall_ms,
                "cpu_ms": s.body.usage.cpu_ms,
                "peak_memory": s.body.usage.peak_memory,
                "gpu_ms": s.body.usage.gpu_ms,
                "hardware": s.body.hardware,
                "continued": list(s.body.continued),
                "agreed": _agreed(verdict, s.body.root),
            }
            for worker, s in sorted(file.reveals.items())
        ],
        "verdicts": [
            {"peer": steward, "outcome": s.body.outcome, "root": s.body.root.hex()}
            for steward, s in sorted(file.verdicts.items())
        ],
    }


def _agreed(verdict: Verdict | None, root: bytes) -> bool | None:
    if verdict is None:
        return None
    return verdict.outcome == "accepted" and verdict.root == root
