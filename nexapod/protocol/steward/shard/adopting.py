"""What a seat takes over from earlier epochs (docs/protocol.md, section 4.1, adoption).

A seat that was there then signs what it saw count; of epochs in which it had no seat, as a newcomer does, what a
quorum of theirs signed, or had adopted. So nobody who has left can put something into the past without a seat that
stayed.
"""

from __future__ import annotations

from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.job import GATE
from nexapod.protocol.primitives import Millis, StatementId
from nexapod.protocol.steward.shard.cosigning import Answer
from nexapod.protocol.steward.shard.state import ShardState
from nexapod.protocol.wire.bodies import Adoption
from nexapod.protocol.wire.statements import Statement

PATIENCE_MS: Final = limits.SEAT_GONE_MS
"""So long after the seats have changed nothing new is frozen of a task that something may still be adopted of."""
ADOPTED_MAX: Final = 512
"""Statements that one adoption names."""


class Adopting:
    """One seat's memory of what counted."""

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self._job = state.job
        self._shard = state.shard
        self._epoch = state.seats.epoch
        self._until: Millis = state.ctx.now + PATIENCE_MS if self._epoch else state.ctx.now
        self._counted: dict[StatementId, None] = {}
        """In the present epoch, so far."""
        self._before: dict[StatementId, None] = {}
        """In the last epoch that this node had a seat in."""
        self._was_there: int | None = None
        """The last epoch before the present one in which this node had a seat, and saw what counted."""
        self._found: tuple[tuple[int, int], dict[StatementId, tuple[int, ...]]] | None = None

    def note(self, statement: Statement) -> None:
        """A freeze or verdict counts here."""
        self._counted[statement.id] = None

    def epoch_changed(self, was_holder: bool, now: Millis) -> None:
        """The seats have changed."""
        if was_holder:
            self._was_there = self._epoch
            self._before = {**self._before, **self._counted}
        self._epoch = self._job.seats(self._shard).epoch
        self._until = now + PATIENCE_MS
        self._counted = {}

    # --- which -----------------------------------------------------------------------------------------------------
    def wanted(self) -> dict[StatementId, tuple[int, ...]]:
        """What should be adopted and is not yet, each with the tasks that it is about; none for admissions."""
        version = self._state.evidence.version, self._job.version
        if self._found is None or self._found[0] != version:
            self._found = version, self._look() if self._epoch else {}
        return self._found[1]

    def _look(self) -> dict[StatementId, tuple[int, ...]]:
        found: dict[StatementId, tuple[int, ...]] = {}
        for id in self._state.evidence.adoptable():
            statement = self._state.evidence.get(id)
            if statement is not None and not self._job.counts(statement) and self.may_adopt(id) == "sign":
                found[id] = tuple(item.task for item in statement.body.items)
        if self._shard == GATE:
            adopted = self._job.adopted(GATE)
            found |= {id: () for id in self._job.adoptable_admissions() if id not in adopted}
        return found

    def may_adopt(self, id: StatementId) -> Answer:
        """Whether this seat signs an adoption that names it."""
        if self._shard == GATE and id in self._job.adoptable_admissions():
            return "sign"
        statement = self._state.evidence.get(id)
        if statement is None:
            return "wait"
        if id in self._before or self._job.counts(statement):
            return "sign"
        if self._was_there is not None and statement.body.epoch <= self._was_there:
            return "refuse"
        return "sign" if id in self._state.evidence.adoptable() else "wait"

    def waits(self, task: int, now: Millis) -> bool:
        """Whether something of the task may still be adopted, so that nothing new should be frozen."""
        return now < self._until and any(task in tasks for tasks in self.wanted().values())

    def bodies(self, found: dict[StatementId, tuple[int, ...]]) -> list[tuple[Adoption, tuple[int, ...]]]:
        """Adoptions of these, each with its tasks. Admissions, which are about no task, go apart: more rests on it."""
        apart = [id for id, tasks in sorted(found.items()) if not tasks]
        others = [id for id, tasks in sorted(found.items()) if tasks]
        bodies = []
        for ids in (apart, others):
            for at in range(0, len(ids), ADOPTED_MAX):
                some = tuple(ids[at : at + ADOPTED_MAX])
                tasks = tuple(sorted({task for id in some for task in found[id]}))
                bodies.append((Adoption(self._job.job, self._shard, self._epoch, some), tasks))
        return bodies
