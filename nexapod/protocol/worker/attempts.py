"""All attempts of this worker: finds them by task, by shard and by job, and saves each move that must outlive the
process before whoever made it speaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar, cast

from nexapod.protocol import limits
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.primitives import JobId, StatementId, TaskId
from nexapod.protocol.records import Record
from nexapod.protocol.tables import TableReport, longest
from nexapod.protocol.wire.statements import Statement
from nexapod.protocol.worker import records
from nexapod.protocol.worker.attempt import (
    Claimed,
    Dropped,
    Finished,
    Forget,
    Granted,
    Move,
    Over,
    Running,
    State,
    advance,
)

Place: TypeAlias = tuple[JobId, int]
"""One shard of one job."""
Kind = TypeVar("Kind", bound=State)
_UNCOMMITTED: Final = (Claimed, Granted, Running, Finished)


@dataclass(slots=True)
class Attempt:
    """One task that this worker holds or held. Only `Attempts.move` changes `state`."""

    task: TaskId
    state: State
    progress: int = 0
    """In thousandths."""
    log: str = ""
    """The head and the tail of what the task has printed so far."""

    @property
    def place(self) -> Place:
        return (self.task.job, self.task.shard)


def outputs_of(job: JobId) -> Owner:
    """Who pins a worker's results: until the job is over, for the seats that judged them may all vanish."""
    return ("outputs", job, 0)


class Attempts:
    """The table."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._open: dict[Place, dict[int, Attempt]] = {}
        self._over: dict[Place, set[int]] = {}
        self._decided: dict[TaskId, Attempt] = {}
        """The last of those, which can be said again."""
        self._in_state: dict[type[object], dict[TaskId, Attempt]] = {}
        self._holding: dict[Place, frozenset[int]] = {}
        """What `holding` has said, until an attempt of the shard moves."""
        self._saved: dict[TaskId, tuple[StatementId, ...]] = {}
        self._uses: dict[StatementId, int] = {}

    # --- finding ---------------------------------------------------------------------------------------------------
    def tables(self) -> tuple[TableReport, ...]:
        claimed = Counter(attempt.place for attempt, _ in self.in_state(Claimed))
        return (
            TableReport("attempts at tasks of a shard", longest(self._open.values()), limits.SHARD_TASKS),
            TableReport(
                "tasks of a shard granted by few seats", max(claimed.values(), default=0), limits.CLAIM_TASKS_MAX
            ),
        )

    def get(self, task: TaskId) -> Attempt | None:
        """The attempt at a task, unless it is over."""
        return self._open.get((task.job, task.shard), {}).get(task.index)

    def at(self, place: Place) -> list[Attempt]:
        """Those of one shard that are not over, by task."""
        held = self._open.get(place, {})
        return [held[index] for index in sorted(held)]

    def in_state(self, state: type[Kind]) -> list[tuple[Attempt, Kind]]:
        """Those in one state, and it, in the order in which they came into it. May be changed meanwhile."""
        found: dict[TaskId, Attempt] = self._in_state.get(state, {})
        return [(attempt, cast(Kind, attempt.state)) for attempt in found.values()]

    def holding(self, place: Place) -> frozenset[int]:
        """Tasks of a shard that this worker has, and has not committed to."""
        held = self._holding.get(place)
        if held is None:
            mine = self._open.get(place, {}).values()
            held = frozenset(a.task.index for a in mine if isinstance(a.state, _UNCOMMITTED))
            self._holding[place] = held
        return held

    def vacated(self, place: Place) -> frozenset[int]:
        """Those of them that have left their slots: what they left is being looked at, or is about to be committed."""
        mine = self._open.get(place, {}).values()
        return frozenset(a.task.index for a in mine if isinstance(a.state, Running) and a.state.vacated)

    def over(self, place: Place) -> frozenset[int]:
        """Tasks of a shard that this worker committed to and is done with."""
        return frozenset(self._over.get(place, ()))

    def decided(self, job: JobId) -> list[Attempt]:
        """Attempts of a job that are over, and that can be said again."""
        return [attempt for task, attempt in self._decided.items() if task.job == job]

    def places(self) -> list[Place]:
        """Shards with an attempt that is not over."""
        return sorted(self._open)

    def jobs(self) -> list[JobId]:
        """Jobs of which this worker has anything on disk."""
        return sorted({task.job for task in self._saved})

    def places_of(self, job: JobId) -> list[Place]:
        return [place for place in self.places() if place[0] == job]

    def __iter__(self) -> Iterator[Attempt]:
        """All that are not over, in a fixed order. May be changed meanwhile."""
        return iter([attempt for place in self.places() for attempt in self.at(place)])

    # --- changing --------------------------------------------------------------------------------------------------
    def add(self, task: TaskId, state: State) -> Attempt:
        """A new attempt, or one that a former process saved."""
        attempt = Attempt(task, state)
        self._place(attempt)
        return attempt

    def move(self, attempt: Attempt, move: Move) -> State:
        """Advance an attempt by the table, and save what it has become."""
        self._in_state.get(type(attempt.state), {}).pop(attempt.task, None)
        attempt.state = advance(attempt.state, move)
        self._keep(attempt)
        self._place(attempt)
        return attempt.state

    def restore(self, task: TaskId, state: State) -> Attempt:
        """Take an attempt over from disk: its record and its statements' are there."""
        self._note_saved(task, records.rests_on(state))
        return self.add(task, state)

    def rests_on(self, statement: StatementId) -> bool:
        """Whether any attempt on disk needs this statement."""
        return statement in self._uses

    def forget_job(self, job: JobId) -> None:
        """The job is over: nothing of it is kept."""
        for task in sorted(task for task in self._saved if task.job == job):
            self._unsave(task)
        for table in (self._open, self._over, self._holding):
            for place in [place for place in table if place[0] == job]:
                del table[place]
        for attempts in (*self._in_state.values(), self._decided):
            for task in [task for task in attempts if task.job == job]:
                del attempts[task]

    def _place(self, attempt: Attempt) -> None:
        held = self._open.setdefault(attempt.place, {})
        self._holding.pop(attempt.place, None)
        match attempt.state:
            case Over(bound=bound):
                held.pop(attempt.task.index, None)
                self._over.setdefault(attempt.place, set()).add(attempt.task.index)
                if bound is not None:
                    self._keep_decided(attempt)
            case Dropped():
                held.pop(attempt.task.index, None)
            case _:
                held[attempt.task.index] = attempt
                if self._decided.pop(attempt.task, None) is not None:
                    self._over[attempt.place].discard(attempt.task.index)
                self._in_state.setdefault(type(attempt.state), {})[attempt.task] = attempt
        if not held:
            del self._open[attempt.place]

    def _keep_decided(self, attempt: Attempt) -> None:
        self._decided[attempt.task] = attempt
        if len(self._decided) > limits.DECIDED_KEPT_MAX:
            self.move(self._decided.pop(next(iter(self._decided))), Forget())

    # --- saving ----------------------------------------------------------------------------------------------------
    def _keep(self, attempt: Attempt) -> None:
        if not records.is_saved(attempt.state):
            if isinstance(attempt.state, Dropped) and attempt.task in self._saved:
                self._unsave(attempt.task)
            return
        needed = records.rests_on(attempt.state)
        for statement in needed:
            if statement.id not in self._uses:
                self._ctx.save(records.statement_record(statement))
        self._ctx.save(Record(records.ATTEMPT, records.key_of(attempt.task), records.pack(attempt.state)))
        self._note_saved(attempt.task, needed)

    def _note_saved(self, task: TaskId, needed: tuple[Statement, ...]) -> None:
        before = self._saved.get(task, ())
        self._saved[task] = tuple(statement.id for statement in needed)
        for id_ in self._saved[task]:
            self._uses[id_] = self._uses.get(id_, 0) + 1
        self._unuse(before)

    def _unsave(self, task: TaskId) -> None:
        self._ctx.save(Record(records.ATTEMPT, records.key_of(task), None))
        self._unuse(self._saved.pop(task))

    def _unuse(self, ids: tuple[StatementId, ...]) -> None:
        for id_ in ids:
            self._uses[id_] -= 1
            if not self._uses[id_]:
                del self._uses[id_]
                self._ctx.save(Record(records.STATEMENT, id_, None))
