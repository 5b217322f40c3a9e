"""Other seats' proposals at this one: signed, waited for, or objected to (docs/protocol.md, section 5).

What a proposal speaks of and is not here yet is waited for up to COSIGN_MS; what this seat will never sign is objected
to at once. Whether a task may be signed is the steward's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.wire.statements import Statement

Answer: TypeAlias = Literal["sign", "wait", "refuse"]
WAITING_MAX: Final = limits.PENDING_MAX


@dataclass(frozen=True, slots=True)
class Sign:
    """Every task of it is right."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Something is not here yet."""

    until: Millis


@dataclass(frozen=True, slots=True)
class Objection:
    """To these tasks."""

    tasks: tuple[int, ...]


Outcome: TypeAlias = Sign | Wait | Objection


def answer(answers: Mapping[int, Answer], arrived: Millis, now: Millis) -> Outcome:
    """What a seat says to a proposal, by what it thinks of each of its tasks."""
    refused = tuple(task for task, one in sorted(answers.items()) if one == "refuse")
    if refused:
        return Objection(refused)
    waiting = tuple(task for task, one in sorted(answers.items()) if one == "wait")
    if not waiting:
        return Sign()
    until = arrived + limits.COSIGN_MS
    return Wait(until) if now < until else Objection(waiting)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A proposal that something is missing for."""

    statement: Statement
    proposer: PeerId
    arrived: Millis


class Undecided:
    """The proposals that wait at one seat."""

    def __init__(self) -> None:
        self._waiting: dict[StatementId, Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, statement: Statement, proposer: PeerId, now: Millis) -> Waiting:
        """Take one up; the one there is keeps the time at which it came."""
        known = self._waiting.get(statement.id)
        if known is not None:
            return known
        if len(self._waiting) >= WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[statement.id] = Waiting(statement, proposer, now)
        return self._waiting[statement.id]

    def remove(self, id: StatementId) -> None:
        self._waiting.pop(id, None)

    def clear(self) -> None:
        self._waiting.clear()

    def all(self) -> tuple[Waiting, ...]:
        """In the order in which they came."""
        return tuple(self._waiting.values())

    @property
    def next_at(self) -> Millis | None:
        """When the first is objected to."""
        first = next(iter(self._waiting.values()), None)
        return None if first is None else first.arrived + limits.COSIGN_MS
