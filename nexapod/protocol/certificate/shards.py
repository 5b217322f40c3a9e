"""Repeats the judgement of one shard's tasks from the evidence of a certificate (docs/protocol.md, 5, 6 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from nexapod.protocol.certificate.report import Replica, TaskReport
from nexapod.protocol.evidence import Decision, Entry, ShardEvidence
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import PeerId

Complain: TypeAlias = Callable[[str], None]


def task_reports(job: JobState, evidence: ShardEvidence, complain: Complain) -> Iterator[TaskReport]:
    """Each decided task of a shard; what is wrong with one, or that one is not decided, is complained of."""
    for task in evidence.tasks:
        decision = evidence.verdict(task)
        if decision is None:
            complain(f"task {task}: no verdict that its seats' signatures make count")
            continue
        error = evidence.error_in(decision.item, decision.statement.body)
        if error is not None:
            complain(f"task {task}: its verdict does not follow from the evidence: {error}")
        for entry in decision.frozen.entries:
            if job.group(entry.worker) is None:
                complain(f"task {task}: a result of {entry.worker}, whom the gate has not admitted, was judged")
        yield _report(evidence, task, decision)


def _report(evidence: ShardEvidence, task: int, decision: Decision) -> TaskReport:
    return TaskReport(
        task,
        decision.outcome,
        decision.reason,
        decision.root,
        evidence.outputs(task),
        tuple(_replica(evidence, task, entry) for entry in decision.frozen.entries),
        decision.statement.signers,
    )


def _replica(evidence: ShardEvidence, task: int, entry: Entry) -> Replica:
    shown = evidence.reveal_of(task, entry.worker)
    if shown is None:
        return Replica(entry.worker, entry.group, None)
    item, reveal = shown.item, shown.statement.body
    usage = item.usage
    return Replica(
        entry.worker,
        entry.group,
        item.outcome,
        item.exit,
        shown.root,
        (usage.wall_ms, usage.cpu_ms, usage.gpu_ms),
        f"{reveal.executor} {reveal.version}",
        reveal.hardware,
    )


def admitted(job: JobState, task: TaskReport) -> frozenset[PeerId]:
    """Those of a task's workers that the gate has admitted."""
    return frozenset(replica.worker for replica in task.replicas if job.group(replica.worker) is not None)
