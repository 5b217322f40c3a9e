"""Tells the user of results that did not end well: once each, and no more than it may remember.

The first is kept across restarts: it is what a user who comes back asks for.
"""

from __future__ import annotations

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.notices import TaskFailing
from nexapod.protocol.primitives import JobId, PeerId
from nexapod.protocol.records import Record
from nexapod.protocol.submitter import records
from nexapod.protocol.wire import fields
from nexapod.protocol.wire.messages import TaskView
from nexapod.protocol.wire.statements import Statement


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
            self._keep(failing)
        if about not in self._told and len(self._told) < limits.FAILINGS_MAX:
            self._told[about] = None
            self.ctx.notify(failing)

    # --- on disk ---------------------------------------------------------------------------------------------------
    def _keep(self, failing: TaskFailing) -> None:
        if failing == self.first:
            return
        self.first = failing
        value = [failing.task, failing.worker, failing.exit, failing.reason, failing.outcome, failing.log]
        self.ctx.save(Record(records.FAILING, bytes(self.job), fields.pack(value)))

    def restore(self, value: bytes) -> None:
        """What a former process had told of first; what cannot be read is told anew."""
        try:
            task, worker, exit_status, reason, outcome, log = fields.unpack(value, limits.ENVELOPE_BYTES_MAX)
        except (PeerError, ValueError, TypeError):
            return
        self.first = TaskFailing(self.job, task, worker, exit_status, reason, outcome, log)
        self._told[task, worker] = None
