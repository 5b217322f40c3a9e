"""When a task needs no more of this worker: by a verdict that counts, or by the word of enough of its seats
(docs/protocol.md, section 5 and 6)."""

from __future__ import annotations

from collections.abc import Mapping

from nexapod.protocol.context import Context
from nexapod.protocol.primitives import JobId, PeerId, TaskId
from nexapod.protocol.wire.statements import Statement
from nexapod.protocol.worker.attempts import Attempt, Attempts, Place
from nexapod.protocol.worker.proposals import Proposals
from nexapod.protocol.worker.prospects import Prospect


class Deciding:
    """Verdicts on this worker's tasks, and which seats have closed or lost which of them."""

    def __init__(self, ctx: Context, prospects: Mapping[JobId, Prospect], attempts: Attempts) -> None:
        self._ctx = ctx
        self._prospects = prospects
        self._attempts = attempts
        self._verdicts: dict[Place, Proposals] = {}
        self._closed_by: dict[TaskId, set[PeerId]] = {}
        self._lost_by: dict[TaskId, set[PeerId]] = {}

    def on_verdict(self, statement: Statement) -> list[Attempt]:
        """Attempts that are over by a copy of a verdict."""
        body = statement.body
        prospect, place = self._prospects.get(body.job), (body.job, body.shard)
        if prospect is None or body.shard >= prospect.spec.shards:
            return []
        counts = prospect.state.counts(statement)
        if not self._matters(statement) and not counts:
            return []
        seats = prospect.state.seats(body.shard)
        if not counts and not set(statement.signers).intersection(seats.holders):
            return []
        if place not in self._verdicts:
            self._verdicts[place] = Proposals(prospect.state)
        merged = self._verdicts[place].add(statement)
        return [] if merged is None else self._apply(prospect, merged)

    def job_changed(self, job: JobId) -> list[Attempt]:
        """Attempts that are over now that other verdicts count than before."""
        over: dict[TaskId, Attempt] = {}
        for place, verdicts in self._verdicts.items():
            for verdict in verdicts.counting() if place[0] == job else ():
                over.update((attempt.task, attempt) for attempt in self._apply(self._prospects[job], verdict))
        return list(over.values())

    def closed(self, attempt: Attempt, seat: PeerId) -> bool:
        """A seat will hear no more of this attempt. Whether enough of them say so."""
        return self._enough(self._closed_by, attempt, seat, quorum=False)

    def lost(self, attempt: Attempt, seat: PeerId) -> bool:
        """A seat has no lease of this task for this worker. Whether a quorum says so."""
        return self._enough(self._lost_by, attempt, seat, quorum=True)

    def kept(self, attempt: Attempt, seat: PeerId) -> None:
        """A seat has a lease, or a commit, after all."""
        self._lost_by.get(attempt.task, set()).discard(seat)

    def forget(self, attempt: Attempt) -> None:
        """The attempt is no more."""
        self._closed_by.pop(attempt.task, None)
        self._lost_by.pop(attempt.task, None)
        place = attempt.place
        if place in self._verdicts:
            kept = {verdict.id for verdict in self._verdicts[place] if self._matters(verdict)}
            self._verdicts[place].keep(kept)

    def forget_job(self, job: JobId) -> None:
        for place in [place for place in self._verdicts if place[0] == job]:
            del self._verdicts[place]
        for table in (self._closed_by, self._lost_by):
            for task in [task for task in table if task.job == job]:
                del table[task]

    def _matters(self, statement: Statement) -> bool:
        body = statement.body
        return any(self._attempts.get(TaskId(body.job, item.task)) is not None for item in body.items)

    def _apply(self, prospect: Prospect, verdict: Statement) -> list[Attempt]:
        over, shard = [], verdict.body.shard
        tasks = prospect.spec.shard_tasks(shard)
        for item in verdict.body.items:
            if item.task not in tasks:
                continue
            prospect.judge(shard, item.task)
            attempt = self._attempts.get(TaskId(prospect.job, item.task))
            if attempt is not None:
                self._ctx.trace("task_over", job=prospect.job, task=item.task, outcome=item.outcome)
                over.append(attempt)
        return over

    def _enough(self, table: dict[TaskId, set[PeerId]], attempt: Attempt, seat: PeerId, *, quorum: bool) -> bool:
        seats = self._prospects[attempt.task.job].state.seats(attempt.task.shard)
        said = table.setdefault(attempt.task, set())
        said.add(seat)
        said.intersection_update(seats.holders)
        return len(said) >= (seats.quorum if quorum else seats.witnesses)
