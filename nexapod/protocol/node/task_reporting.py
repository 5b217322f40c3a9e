"""How tasks stand, from what this node itself holds: as a seat of their shard, or as the submitter of their job.

A page of tasks costs one look at each of its shards, whose evidence may lie on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nexapod.protocol import limits
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.facts.verdicts import Decision
from nexapod.protocol.node.hosting import Hosting
from nexapod.protocol.primitives import JobId, PeerId
from nexapod.protocol.report import ReplicaReport, TaskReport, TaskStanding
from nexapod.protocol.steward.shard.steward import Steward
from nexapod.protocol.submitter.decisions import ShardDecisions
from nexapod.protocol.submitter.submission import Submission
from nexapod.protocol.types import Group
from nexapod.protocol.wire.messages import TaskView


def task_reports(hosting: Hosting, job: JobId, tasks: range) -> Iterator[TaskReport]:
    """Those of `tasks` that this node can speak of, ascending. `tasks` are the job's."""
    submission, stewardship = hosting.submissions.get(job), hosting.stewardships.get(job)
    looked_at: _Shard | None = None
    for task in tasks:
        shard = task // limits.SHARD_TASKS
        if looked_at is None or looked_at.shard != shard:
            steward = None if stewardship is None else stewardship.steward(shard)
            looked_at = _Shard(job, shard, steward, submission)
        if steward is not None or submission is not None:
            yield looked_at.report(task)


class _Shard:
    """What is known of one shard."""

    def __init__(self, job: JobId, shard: int, steward: Steward | None, submission: Submission | None) -> None:
        self.shard = shard
        self._job = job
        self._steward = steward
        self._submission = submission
        self._decisions = _decisions(submission, shard)

    def report(self, task: int) -> TaskReport:
        view, evidence = self._view(task), self._evidence()
        decision = None if evidence is None else evidence.verdict(task)
        result = None if self._decisions is None else self._decisions.results.get(task)
        standing = _standing(view, decision) if result is None else result.outcome
        workers = () if view is None else view.workers
        return TaskReport(
            job=self._job,
            task=task,
            standing=standing,
            progress=1000 if standing in ("accepted", "failed") else 0 if view is None else view.progress,
            workers=workers,
            notes=() if view is None else view.notes,
            outputs=() if result is None else result.outputs,
            reason=result.reason if result is not None else "" if decision is None else decision.reason,
            root=None if decision is None else decision.root,
            replicas=_replicas(task, evidence, decision, workers, self._logs(task)),
            judges=() if decision is None else decision.statement.signers,
        )

    def _view(self, task: int) -> TaskView | None:
        """As this node's own seat has it; of a job submitted here, else as its seats have last said."""
        if self._steward is not None and (views := self._steward.views((task,))):
            return views[0]
        return None if self._submission is None else self._submission.inquiry.views.get(task)

    def _evidence(self) -> ShardEvidence | None:
        if self._decisions is not None:
            return self._decisions.evidence
        return None if self._steward is None else self._steward.evidence

    def _logs(self, task: int) -> Mapping[PeerId, str]:
        logs = {} if self._submission is None else self._submission.inquiry.logs
        return {worker: log for (index, worker), log in logs.items() if index == task}


def _decisions(submission: Submission | None, shard: int) -> ShardDecisions | None:
    if submission is None or not submission.deciding.has_evidence(shard):
        return None
    return submission.deciding.look(shard)


def _standing(view: TaskView | None, decision: Decision | None) -> TaskStanding:
    if decision is not None:
        return decision.outcome
    return "open" if view is None else view.state


def _replicas(
    task: int,
    evidence: ShardEvidence | None,
    decision: Decision | None,
    workers: tuple[PeerId, ...],
    logs: Mapping[PeerId, str],
) -> tuple[ReplicaReport, ...]:
    committed = () if evidence is None else tuple(evidence.commits(task))
    shown = (_replica(task, evidence, decision, worker, logs) for worker in committed if evidence is not None)
    running = () if decision is not None else [worker for worker in workers if worker not in committed]
    return (*shown, *(ReplicaReport(worker, "running", log=logs.get(worker, "")) for worker in running))


def _replica(
    task: int, evidence: ShardEvidence, decision: Decision | None, worker: PeerId, logs: Mapping[PeerId, str]
) -> ReplicaReport:
    fact = evidence.reveal_of(task, worker)
    if fact is None:
        return ReplicaReport(worker, "committed", log=logs.get(worker, ""))
    item = fact.item
    return ReplicaReport(
        worker,
        item.outcome,
        exit=item.exit,
        reason=item.reason,
        log=item.log,
        root=fact.root,
        outputs=item.outputs,
        resumed=item.resumed,
        usage=item.usage,
        hardware=fact.statement.body.hardware,
        agrees=None if decision is None else decision.root is not None and decision.root == fact.root,
        group=_group(task, evidence, worker),
    )


def _group(task: int, evidence: ShardEvidence, worker: PeerId) -> Group:
    frozen = evidence.frozen(task)
    return next((entry.group for entry in frozen.entries if entry.worker == worker), "") if frozen is not None else ""
