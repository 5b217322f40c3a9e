"""Answers the user who looks at a task: asks its seats how it stands, and its workers what it prints.

What comes back is one peer's word, for people: nothing rests on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.notices import TaskLogged, TaskViewed
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.submitter.failing import Failing
from nexapod.protocol.wire.messages import AskLog, Inspect, TaskLog, TaskView, View

if TYPE_CHECKING:
    from nexapod.protocol.job import JobState

SHARDS_LOOKED_AT: Final = 4


class Inquiry:
    """What seats and workers said of the tasks of one submission."""

    def __init__(self, ctx: Context, job: JobState, failing: Failing) -> None:
        self.ctx = ctx
        self.job = job
        self.views: dict[int, TaskView] = {}
        """The newest view of each of the tasks that were looked at, newest last."""
        self.logs: dict[tuple[int, PeerId], str] = {}
        """By task and worker, newest last."""
        self._failing = failing
        self._asked: dict[int, None] = {}
        """Tasks whose workers are still to be asked for what they print."""
        self._looked_at: dict[int, None] = {}
        """Shards whose tasks the user looks at, those looked at last last."""

    def ask(self, task: int) -> None:
        """How does it stand, and what does it print? Answers come as View and TaskLog."""
        if not 0 <= task < self.job.spec.tasks:
            return
        shard = task // limits.SHARD_TASKS
        self._asked[task] = None
        _bound(self._asked, limits.SHARD_TASKS)
        for seat in self.job.seats(shard).holders:
            self.ctx.send(seat, Inspect(self.job.job, shard, (task,)), self.job.addrs(seat))

    def ask_shard(self, shard: int) -> None:
        """How do its tasks stand? One seat is asked, one that is linked if there is any; the answer comes as View."""
        if not 0 <= shard < self.job.spec.shards:
            return
        self._looked_at[shard] = None
        _bound(self._looked_at, SHARDS_LOOKED_AT)
        holders = self.job.seats(shard).holders
        seat = next((peer for peer in holders if self.ctx.peers.linked(peer)), holders[0])
        self.ctx.send(seat, Inspect(self.job.job, shard, ()), self.job.addrs(seat))

    def on_view(self, peer: PeerId, message: View) -> None:
        if message.shard >= self.job.spec.shards or peer not in self.job.seats(message.shard).holders:
            return
        tasks = self.job.spec.shard_tasks(message.shard)
        for view in message.tasks:
            if view.task in tasks:
                self._take(view)

    def on_log(self, worker: PeerId, message: TaskLog) -> None:
        """Only of somebody who was asked: a seat named it as the task's worker."""
        view = self.views.get(message.task)
        if view is None or worker not in view.workers:
            return
        self.logs.pop((message.task, worker), None)
        self.logs[(message.task, worker)] = message.log
        _bound(self.logs, limits.TASK_LOGS_MAX)
        self.ctx.notify(TaskLogged(self.job.job, message.task, worker, message.log))

    def _take(self, view: TaskView) -> None:
        self._failing.on_view(view)
        asked = view.task in self._asked
        looked_at = view.task // limits.SHARD_TASKS in self._looked_at
        if not asked and not looked_at and view.task not in self.views:
            return
        if self.views.pop(view.task, None) != view and (asked or view.state != "open"):
            self.ctx.notify(TaskViewed(self.job.job, view.task, view.state, view.progress, view.workers))
        self.views[view.task] = view
        _bound(self.views, limits.SHARD_TASKS)
        if asked and view.workers:
            del self._asked[view.task]
            for worker in view.workers:
                self.ctx.send(worker, AskLog(self.job.job, view.task))


def _bound(table: dict[int, None] | dict[int, TaskView] | dict[tuple[int, PeerId], str], most: int) -> None:
    """The oldest go first."""
    while len(table) > most:
        del table[next(iter(table))]  # type: ignore[arg-type]
