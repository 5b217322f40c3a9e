"""Jobs as possible work: what a worker believes to be open in each, and which task it should ask for first.

Bookkeeping without messages: worker.py says when, and asks stewards.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from nexapod.protocol import limits, tickets
from nexapod.protocol.statements import Statement
from nexapod.protocol.types import JobId, JobSpec, Millis, PeerId, TaskId


@dataclass(slots=True)
class Outlook:
    """What this worker believes to be open in a shard: everything, until a steward's view says otherwise."""

    open: list[tuple[int, int]]
    """(ticket, task), smallest ticket first."""
    since: Millis
    query_at: Millis
    query_ms: Millis = limits.POLL_MS
    done: bool = False


@dataclass(slots=True)
class Prospect:
    """A job seen as possible work."""

    statement: Statement
    since: Millis
    announcements: int = 1
    attempted: set[int] = field(default_factory=set)
    """Tasks that this peer has bid for successfully, finished or given up: never again."""
    cooling: dict[int, tuple[Millis, int]] = field(default_factory=dict)
    """Tasks that too few stewards granted: (not again before, how often so far)."""
    shards: dict[int, Outlook] = field(default_factory=dict)
    expected_ms: Millis = 0
    elsewhere: int = 0
    """How many of its tasks in a row asked for another machine."""
    rest_until: Millis = 0

    @property
    def spec(self) -> JobSpec:
        spec: JobSpec = self.statement.body
        return spec

    @property
    def job(self) -> JobId:
        return JobId(self.statement.id)

    def shard_order(self, me: PeerId) -> list[int]:
        """Each peer begins elsewhere."""
        count = self.spec.shards
        if count == 1:
            return [0]
        first = tickets.ticket(TaskId(self.job, 0), me) * count // tickets.ONE
        return [(first + i) % count for i in range(count)]

    def outlook(self, shard: int, me: PeerId, now: Millis, busy: Container[TaskId]) -> Outlook:
        """The outlook of a shard; at first everything is open. `busy`: the tasks that this peer has."""
        outlook = self.shards.get(shard)
        if outlook is None:
            outlook = self.shards[shard] = Outlook([], self.since, now + limits.POLL_MS)
            self.believe_open(outlook, self.spec.shard_tasks(shard), me, now, busy)
        return outlook

    def believe_open(
        self, outlook: Outlook, tasks: range | tuple[int, ...], me: PeerId, now: Millis, busy: Container[TaskId]
    ) -> None:
        """These are open, less those that this peer has or had, and those that it should not ask for yet."""
        cooling = {task: until for task, (until, _) in self.cooling.items() if until > now}
        outlook.open = sorted(
            (tickets.ticket(TaskId(self.job, task), me), task)
            for task in tasks
            if task not in self.attempted and task not in cooling and TaskId(self.job, task) not in busy
        )
        again = [until for task, until in cooling.items() if task in tasks]
        if again:
            outlook.query_at = min([outlook.query_at, *again])

    def cool(self, task: TaskId, me: PeerId, now: Millis, least_ms: Millis) -> None:
        """Not this one again for a while: workers that took it from one another must not all come back at once."""
        _, times = self.cooling.get(task.index, (0, 0))
        span = least_ms << min(times, 4)
        span += span * tickets.ticket(task, me) // tickets.ONE
        self.cooling[task.index] = (now + span, times + 1)
        outlook = self.shards.get(task.shard)
        if outlook is not None:
            outlook.query_at = min(outlook.query_at, now + span)
