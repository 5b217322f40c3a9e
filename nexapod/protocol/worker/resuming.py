"""Checkpoints: those that a task of this worker may be resumed from, and those that it leaves for others.

Files of the newest one are pinned here while its task runs; the seats fetch them from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nexapod.protocol import limits
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import File, JobId, Millis, Part, StatementId, TaskId
from nexapod.protocol.timers import Timers
from nexapod.protocol.wire import bodies, statements
from nexapod.protocol.wire.statements import Statement
from nexapod.protocol.worker.attempt import Claimed, Keep, Running
from nexapod.protocol.worker.attempts import Attempt, Attempts
from nexapod.protocol.worker.prospects import Prospect


def owner_of(task: TaskId) -> Owner:
    """Who pins what a running task of this worker keeps in its checkpoint."""
    return ("own checkpoint", task.job, task.index)


def handed_out(ctx: Context, job: JobId, tasks: Iterable[int], envelopes: Iterable[bytes]) -> dict[int, Statement]:
    """The checkpoints that came with a grant, by task. Raises PeerError."""
    named, found = frozenset(tasks), {}
    for envelope in envelopes:
        statement = statements.decode(envelope, ctx.verify)
        if statement.kind != "checkpoint" or statement.body.job != job or statement.body.task not in named:
            raise PeerError("bad-checkpoint", f"a seat hands out a {statement.kind} with a grant")
        found[statement.body.task] = statement
    return found


def agreed(state: Claimed, seats: Iterable[str], quorum: int) -> Statement | None:
    """The checkpoint that a quorum of the seats handed out: one seat alone could make two workers one group with it."""
    present = frozenset(seats)
    enough = [checkpoint for checkpoint, given_by in state.offered if len(present.intersection(given_by)) >= quorum]
    return min(enough, key=lambda checkpoint: (-checkpoint.body.progress, checkpoint.id), default=None)


class Resuming:
    """The checkpoints that this worker signs."""

    def __init__(self, ctx: Context, prospects: Mapping[JobId, Prospect], attempts: Attempts) -> None:
        self._ctx = ctx
        self._prospects = prospects
        self._attempts = attempts
        self._last: dict[TaskId, Millis] = {}
        self._waiting: dict[TaskId, tuple[tuple[File, ...], bool]] = {}
        self._timers = Timers()

    @property
    def deadline(self) -> Millis | None:
        return self._timers.next

    def tick(self) -> None:
        while (due := self._timers.pop_due(self._ctx.now)) is not None:
            assert isinstance(due, TaskId)
            attempt, waiting = self._attempts.get(due), self._waiting.pop(due, None)
            if attempt is not None and waiting is not None:
                self._state(attempt, *waiting)

    def keep(self, attempt: Attempt, files: tuple[File, ...], continued: bool) -> None:
        """A running task has kept something: at most one of its checkpoints is stated every CHECKPOINT_MIN_MS, the
        newest."""
        if not isinstance(attempt.state, Running) or not files:
            return
        stated = attempt.state.checkpoint.body.files if attempt.state.checkpoint is not None else ()
        for file in files:
            self._ctx.pin(file.blob, owner_of(attempt.task))
            self._ctx.blob_stored(Part.whole(file.blob))
        self._ctx.unpin_owner(owner_of(attempt.task), but={file.blob for file in (*files, *stated)})
        self._waiting[attempt.task] = (files, continued)
        last = self._last.get(attempt.task)
        due = self._ctx.now if last is None else max(self._ctx.now, last + limits.CHECKPOINT_MIN_MS)
        self._timers.set(attempt.task, due)
        self.tick()

    def forget(self, task: TaskId) -> None:
        """The task runs here no more."""
        self._last.pop(task, None)
        self._waiting.pop(task, None)
        self._timers.set(task, None)
        self._ctx.unpin_owner(owner_of(task))

    def newest(self, attempts: Iterable[Attempt]) -> list[Statement]:
        """What seats that may lack them are to be offered again."""
        states = [attempt.state for attempt in attempts]
        return [s.checkpoint for s in states if isinstance(s, Running) and s.checkpoint is not None]

    def _state(self, attempt: Attempt, files: tuple[File, ...], continued: bool) -> None:
        state, task = attempt.state, attempt.task
        if not isinstance(state, Running):
            return
        resumed: StatementId | None = state.basis.id if continued and state.basis is not None else None
        ordered = tuple(sorted(files, key=lambda file: file.path))
        body = bodies.Checkpoint(task.job, task.index, state.seq + 1, attempt.progress, ordered, resumed)
        try:
            statements.check_body(body)
        except PeerError as error:
            self._ctx.trace("checkpoint_refused", job=task.job, task=task.index, reason=error.detail)
            return
        checkpoint = self._ctx.sign(body)
        self._attempts.move(attempt, Keep(checkpoint))
        self._last[task] = self._ctx.now
        self._ctx.unpin_owner(owner_of(task), but={file.blob for file in files})
        self._ctx.trace("checkpoint_signed", job=task.job, task=task.index, seq=body.seq)
        prospect = self._prospects[task.job]
        for seat in prospect.state.seats(task.shard).holders:
            self._ctx.deliver(seat, [checkpoint], prospect.state.addrs(seat))
