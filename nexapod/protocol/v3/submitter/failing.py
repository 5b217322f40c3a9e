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
        self.first: TaskFailing | None = None
        """The first of them, with what has become known of it since."""
        self._told: dict[tuple[int, PeerId], None] = {}

    def __len__(self) -> int:
        return len(self._told)

    def on_statement(self, statement: Statement) -> None:
        """A worker's own word."""
        if statement.kind == "reveal":
            for item in statement.body.items:
                if item.outcome != "ok":
                    reason = item.reason or item.outcome
                    author = statement.author
                    self._tell(TaskFailing(self.job, item.task, author, item.exit, reason, item.outcome, item.log))

    def on_view(self, view: TaskView) -> None:
        """A seat's word, before anything is decided: news, nothing rests on it."""
        for worker, exit_status, reason in view.notes:
            self._tell(TaskFailing(self.job, view.task, worker, exit_status, reason))

    def _tell(self, failing: TaskFailing) -> None:
        about = (failing.task, failing.worker)
        if self.first is None or (about == (self.first.task, self.first.worker) and failing.log):
            self.first = failing
        if about not in self._told and len(self._told) < limits.FAILINGS_MAX:
            self._told[about] = None
            self.ctx.notify(failing)
