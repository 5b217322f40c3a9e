"""Tells the user of results that did not end well: once each, and no more than it may remember."""

from __future__ import annotations

from nexapod.protocol.types import JobId, PeerId
from nexapod.protocol.v3 import limits
from nexapod.protocol.v3.context import Context
from nexapod.protocol.v3.notices import TaskFailing
from nexapod.protocol.v3.wire.messages import TaskView
from nexapod.protocol.v3.wire.statements import Statement


class Failing:
    """Those of one submission that its user was told of."""

    def __init__(self, ctx: Context, job: JobId) -> None:
        self.ctx = ctx
        self.job = job
        self._told: dict[tuple[int, PeerId], None] = {}

    def __len__(self) -> int:
        return len(self._told)

    def on_statement(self, statement: Statement) -> None:
        """A worker's own word."""
        if statement.kind == "reveal":
            for item in statement.body.items:
                if item.outcome != "ok":
                    self._tell(item.task, statement.author, item.exit, item.reason or item.outcome)

    def on_view(self, view: TaskView) -> None:
        """A seat's word, before anything is decided: news, nothing rests on it."""
        for worker, exit_status, reason in view.notes:
            self._tell(view.task, worker, exit_status, reason)

    def _tell(self, task: int, worker: PeerId, exit_status: int, reason: str) -> None:
        if (task, worker) not in self._told and len(self._told) < limits.FAILINGS_MAX:
            self._told[(task, worker)] = None
            self.ctx.notify(TaskFailing(self.job, task, worker, exit_status, reason))
