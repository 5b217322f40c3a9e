"""Tasks of a submission with all that is known of them here, for people whose results fail or disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from nexapod.protocol.v3 import limits
from nexapod.protocol.v3.report import ShownResult, TaskDetail, TaskStanding
from nexapod.protocol.v3.submitter.decisions import ShardDecisions
from nexapod.protocol.v3.submitter.results import Result
from nexapod.protocol.v3.wire.messages import TaskView

if TYPE_CHECKING:
    from nexapod.protocol.v3.evidence import ShardEvidence
    from nexapod.protocol.v3.submitter.submission import Submission


def details(
    submission: Submission, tasks: Iterable[int], view_of: Callable[[int], TaskView | None]
) -> Iterator[TaskDetail]:
    """`tasks` in ascending order: a shard's evidence is read once. `view_of`: how a task stands by a seat's word."""
    for shard, wanted in groupby(tasks, lambda task: task // limits.SHARD_TASKS):
        decisions = submission.deciding.look(shard)
        for task in wanted:
            yield _detail(submission, decisions, task, view_of(task))


def _detail(submission: Submission, decisions: ShardDecisions, task: int, view: TaskView | None) -> TaskDetail:
    evidence, result = decisions.evidence, decisions.results.get(task)
    decision = None if result is None else evidence.verdict(task)
    workers = () if view is None else view.workers
    return TaskDetail(
        job=submission.job.job,
        task=task,
        standing=_standing(evidence, task, result, view),
        progress=1000 if result is not None else 0 if view is None else view.progress,
        workers=workers or tuple(sorted(evidence.commits(task))),
        reason="" if result is None else result.reason,
        outputs=() if result is None else result.outputs,
        results=_shown(evidence, task, result),
        notes=() if view is None else view.notes,
        judges=() if decision is None else decision.statement.signers,
        logs=tuple((worker, log) for (of, worker), log in submission.inquiry.logs.items() if of == task),
    )


def _standing(evidence: ShardEvidence, task: int, result: Result | None, view: TaskView | None) -> TaskStanding:
    if result is not None:
        return result.outcome
    if evidence.frozen(task) is not None:
        return "frozen"
    # That it is decided is taken from no seat's word: its evidence has to come first.
    if view is not None and view.state not in ("accepted", "failed"):
        return view.state
    return "committed" if evidence.commits(task) else "open"


def _shown(evidence: ShardEvidence, task: int, result: Result | None) -> tuple[ShownResult, ...]:
    frozen = evidence.frozen(task)
    found = []
    for entry in () if frozen is None else frozen.entries:
        fact = evidence.reveal_of(task, entry.worker)
        if fact is not None:
            item, body = fact.item, fact.statement.body
            found.append(
                ShownResult(
                    worker=entry.worker,
                    group=entry.group,
                    outcome=item.outcome,
                    exit=item.exit,
                    reason=item.reason,
                    root=fact.root,
                    outputs=item.outputs,
                    resumed=item.resumed is not None,
                    usage=item.usage,
                    hardware=body.hardware,
                    log=item.log,
                    agreed=None if result is None else result.accepted and result.root == fact.root,
                )
            )
    return tuple(found)
