"""Has the seats of a job asked how its tasks stand, for as long as somebody looks at it.

Seats answer who asks and tell nobody else: a submission that nobody looks at costs them nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

import trio

from nexapod.daemon.engine import Engine
from nexapod.daemon.hub import Hub, TooManyWatchers
from nexapod.protocol.events import AskShard
from nexapod.protocol.limits import SHARD_TASKS
from nexapod.protocol.notices import TaskViewed
from nexapod.protocol.primitives import JobId
from nexapod.protocol.report import JobReport

SHARDS_MAX: Final = 4
"""The core keeps in mind so many at a time."""
FIRST_ANSWER_S: Final = 0.2
LOOK_S: Final = 1.0
REMEMBERED_MAX: Final = 1024


class Looking:
    """Asks, and waits for the first answer only."""

    def __init__(self, engine: Engine, hub: Hub) -> None:
        self._engine = engine
        self._node = engine.node
        self._hub = hub
        self._asked: OrderedDict[tuple[JobId, int], None] = OrderedDict()

    async def once(self, report: JobReport, tasks: range) -> None:
        """Somebody looks at these tasks of a job of this daemon's own. Returns with the first answer that is news, when
        they are looked at for the first time; else at once."""
        shards = sorted({task // SHARD_TASKS for task in tasks if task < report.tasks})[:SHARDS_MAX]
        new = [shard for shard in shards if (report.job, shard) not in self._asked]
        if not new:
            self._post(report.job, shards)
            return
        try:
            async with self._hub.watch() as told:
                self._post(report.job, shards)
                with trio.move_on_after(FIRST_ANSWER_S):
                    async for notice in told:
                        if isinstance(notice, TaskViewed) and notice.job == report.job:
                            return
        except TooManyWatchers:
            self._post(report.job, shards)

    async def again_and_again(self, job: JobId) -> None:
        """Somebody watches a job of this daemon's own, until cancelled or the job is over."""
        left: deque[int] | None = None
        while (report := self._node.job_report(job)) is not None and report.standing == "open":
            left = deque(range(report.spec.shards)) if left is None else left
            turn = [left.popleft() for _ in range(min(len(left), SHARDS_MAX))]
            shards = [shard for shard in turn if self._is_open(report, shard)]
            left += shards
            self._post(job, shards)
            await trio.sleep(LOOK_S)

    def _is_open(self, report: JobReport, shard: int) -> bool:
        tasks = self._node.task_reports(report.job, report.spec.shard_tasks(shard))
        return any(task.standing not in ("accepted", "failed") for task in tasks)

    def _post(self, job: JobId, shards: list[int]) -> None:
        for shard in shards:
            self._asked[job, shard] = None
            self._asked.move_to_end((job, shard))
            self._engine.post(AskShard(job, shard))
        while len(self._asked) > REMEMBERED_MAX:
            self._asked.popitem(last=False)
