"""Who holds which task of a shard, and until when: values in, values out (docs/protocol.md, section 5, Lease).

A lease is soft: it may be lost in a crash, and grows back when its worker renews it. A worker whose link broke keeps
its lease in doubt: the task is open for others at once, while it may still come back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.tables import TableReport, longest
from nexapod.protocol.types import Group

BARS_MAX: Final = 64
"""Workers barred from one task that are remembered."""
BAR_SPAN_MAX_MS: Final = 64 * limits.LEASE_TTL_MS


@dataclass(frozen=True, slots=True)
class Lease:
    """One worker's right to one task. `doubtful`: its link is gone."""

    worker: PeerId
    group: Group
    granted: Millis
    expires: Millis
    progress: int = 0
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A worker that let a task down: others go first until then, each time for twice as long."""

    until: Millis
    span: Millis


@dataclass(frozen=True, slots=True)
class TaskLeases:
    """One task's leases and bars, each worker once, in the order in which they came."""

    leases: tuple[Lease, ...] = ()
    bars: tuple[tuple[PeerId, Bar], ...] = ()

    def of(self, worker: PeerId) -> Lease | None:
        return next((lease for lease in self.leases if lease.worker == worker), None)

    def barred(self, worker: PeerId, now: Millis) -> bool:
        return any(peer == worker and bar.until > now for peer, bar in self.bars)

    @property
    def firm(self) -> tuple[Lease, ...]:
        """Those whose worker is linked."""
        return tuple(lease for lease in self.leases if not lease.doubtful)


NONE: Final = TaskLeases()


def grant(table: TaskLeases, worker: PeerId, group: Group, now: Millis) -> TaskLeases:
    """A new lease; one that is there already is extended."""
    if table.of(worker) is not None:
        return renew(table, worker, now)
    return replace(table, leases=(*table.leases, Lease(worker, group, now, now + limits.LEASE_TTL_MS)))


def renew(table: TaskLeases, worker: PeerId, now: Millis, progress: int = 0) -> TaskLeases:
    """Extend a worker's lease, if it has one; it is in doubt no more."""
    return _changed(table, worker, lambda lease: _renewed(lease, now, progress))


def _renewed(lease: Lease, now: Millis, progress: int) -> Lease:
    expires = now + limits.LEASE_TTL_MS
    return replace(lease, expires=expires, progress=max(lease.progress, progress), doubtful=False)


def lose(table: TaskLeases, worker: PeerId) -> TaskLeases:
    """Its worker's link is gone."""
    return _changed(table, worker, lambda lease: replace(lease, doubtful=True))


def _changed(table: TaskLeases, worker: PeerId, change: object) -> TaskLeases:
    assert callable(change)
    return replace(table, leases=tuple(change(lease) if lease.worker == worker else lease for lease in table.leases))


def release(table: TaskLeases, worker: PeerId) -> TaskLeases:
    """It has the task no more."""
    return replace(table, leases=tuple(lease for lease in table.leases if lease.worker != worker))


def bar(table: TaskLeases, worker: PeerId, now: Millis, span: Millis = 2 * limits.LEASE_TTL_MS) -> TaskLeases:
    """Others go first, for `span` the first time. Of too many bars the one that ends first is forgotten."""
    old = dict(table.bars).get(worker)
    span = span if old is None else min(2 * old.span, BAR_SPAN_MAX_MS)
    others = [entry for entry in table.bars if entry[0] != worker]
    if len(others) >= BARS_MAX:
        others.remove(min(others, key=lambda entry: (entry[1].until, entry[0])))
    return replace(table, bars=(*others, (worker, Bar(now + span, span))))


def expire(
    table: TaskLeases, now: Millis, wall_ms: Millis, committed: Collection[PeerId]
) -> tuple[TaskLeases, tuple[Lease, ...]]:
    """Without the leases that have run out, and those. One that is renewed for longer than a task may run, without a
    commit, has run out too, and its worker is barred."""
    over = tuple(lease for lease in table.leases if _over(lease, now, wall_ms, committed))
    for lease in over:
        table = release(table, lease.worker)
        if lease.expires > now:
            table = bar(table, lease.worker, now)
        elif not lease.doubtful:
            # It is there, but does not renew: whoever says that it has the task goes first.
            table = bar(table, lease.worker, now, 2 * limits.RENEW_MS)
    return table, over


def _over(lease: Lease, now: Millis, wall_ms: Millis, committed: Collection[PeerId]) -> bool:
    return over_at(lease, wall_ms, committed) <= now


def over_at(lease: Lease, wall_ms: Millis, committed: Collection[PeerId]) -> Millis:
    """When a lease runs out unless something happens before. Who has committed runs nothing any more."""
    return lease.expires if lease.worker in committed else min(lease.expires, overrun_at(lease, wall_ms))


def overrun_at(lease: Lease, wall_ms: Millis) -> Millis:
    """When a worker cannot be running the task any more, whatever it says."""
    return lease.granted + wall_ms + 2 * limits.LEASE_TTL_MS


def late_since(table: TaskLeases, committed: Collection[PeerId], typical_ms: Millis, helped: int = 0) -> Millis | None:
    """When the task's slowest worker becomes, or became, late; None: nobody runs it. `helped`: how often that was so
    already: each time it takes twice as long."""
    running = [lease.granted for lease in table.leases if lease.worker not in committed]
    patience_ms = max(limits.LATE_MIN_MS, limits.LATE_FACTOR * typical_ms) << helped
    return min(running) + patience_ms if running else None


def is_held_up(
    table: TaskLeases, missing: Mapping[PeerId, Millis], results: int, typical_ms: Millis, now: Millis
) -> bool:
    """Whether another that begins the task now would end it well before those that have it bring the results it lacks.

    `missing`: workers that have not ended it, and what tasks take each, 0 where that is not known; `results`: how many
    of theirs are wanted.
    """
    running = [lease for lease in table.firm if lease.worker in missing]
    if not typical_ms or not 0 < results <= len(running):
        return False
    ends = sorted((lease.granted + missing[lease.worker], missing[lease.worker]) for lease in running)
    end, took_ms = ends[results - 1]
    return took_ms >= limits.SLOW_FACTOR * typical_ms and end > now + typical_ms + limits.SLOW_MIN_MS


def hopeless_at(lease: Lease, typical_ms: Millis) -> Millis:
    """When nobody waits for a worker any more to say that a task has failed: it was late as often as others help."""
    return lease.granted + (max(limits.LATE_MIN_MS, limits.LATE_FACTOR * typical_ms) << limits.LATE_MAX)


class LeaseTable:
    """The leases of one shard, by task and by worker."""

    def __init__(self) -> None:
        self._tasks: dict[int, TaskLeases] = {}
        self._of_worker: dict[PeerId, dict[int, None]] = {}
        self._groups: Counter[Group] = Counter()
        """How many leases that are not in doubt a group has."""

    def __getitem__(self, task: int) -> TaskLeases:
        return self._tasks.get(task, NONE)

    def __iter__(self) -> Iterator[int]:
        """The tasks with a lease or a bar."""
        return iter(list(self._tasks))

    def put(self, task: int, table: TaskLeases) -> None:
        self._groups.subtract(lease.group for lease in self[task].firm)
        self._groups.update(lease.group for lease in table.firm)
        for lease in self[task].leases:
            if self._groups[lease.group] <= 0:
                del self._groups[lease.group]
            if table.of(lease.worker) is None:
                self._forget(lease.worker, task)
        for lease in table.leases:
            self._of_worker.setdefault(lease.worker, {})[task] = None
        if table == NONE:
            self._tasks.pop(task, None)
        else:
            self._tasks[task] = table

    def _forget(self, worker: PeerId, task: int) -> None:
        tasks = self._of_worker[worker]
        del tasks[task]
        if not tasks:
            del self._of_worker[worker]

    def tasks_of(self, worker: PeerId) -> tuple[int, ...]:
        """The tasks that a worker has a lease of, ascending."""
        return tuple(sorted(self._of_worker.get(worker, ())))

    def workers(self) -> tuple[PeerId, ...]:
        """Everybody with a lease, sorted."""
        return tuple(sorted(self._of_worker))

    def groups(self) -> set[Group]:
        """Groups with a lease that is not in doubt."""
        return set(self._groups)

    def tables(self) -> tuple[TableReport, ...]:
        bars = longest(table.bars for table in self._tasks.values())
        return (
            TableReport("leases of a worker in a shard", longest(self._of_worker.values()), limits.SHARD_TASKS),
            TableReport("workers barred from a task", bars, BARS_MAX),
        )

    @property
    def leased(self) -> int:
        """Tasks with a lease."""
        return sum(1 for table in self._tasks.values() if table.leases)
