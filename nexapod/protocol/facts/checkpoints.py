"""Whose checkpoints there are of one task, and which results rest on them (docs/protocol.md, 5)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nexapod.protocol import limits
from nexapod.protocol.primitives import PeerId, StatementId
from nexapod.protocol.rules.agreement import Shown
from nexapod.protocol.types import Group
from nexapod.protocol.wire.bodies import Checkpoint
from nexapod.protocol.wire.statements import Statement


@dataclass(slots=True)
class Checkpoints:
    """The newest of a few workers, by the draw, and those that a result rests on."""

    newest: dict[PeerId, Statement] = field(default_factory=dict)
    rested_on: dict[StatementId, Statement] = field(default_factory=dict)
    _wanted: set[StatementId] = field(default_factory=set)
    """What results, or checkpoints that they rest on, say that they went on from."""
    _authors: dict[StatementId, tuple[PeerId, StatementId | None]] = field(default_factory=dict)
    """Author, and what it went on from: the last LINEAGE_MAX seen."""

    def add(self, statement: Statement, places: Mapping[PeerId, int]) -> bool:
        """Whether it changed anything. `places`: where each author stands in the draw."""
        body: Checkpoint = statement.body
        self._remember(statement, body)
        if statement.id in self._wanted and statement.id not in self.rested_on:
            self._rest_on(statement)
            return True
        old = self.newest.get(statement.author)
        if old is not None and (old.body.seq, statement.id) >= (body.seq, old.id):
            return False
        self.newest[statement.author] = statement
        if len(self.newest) <= limits.CHECKPOINTS_PER_TASK_MAX:
            return True
        last = max(self.newest, key=lambda author: (places.get(author, len(places)), author))
        del self.newest[last]
        return last != statement.author

    def want(self, id: StatementId) -> None:
        """A result says that it rests on this one."""
        if id in self._wanted or len(self._wanted) >= limits.LINEAGE_MAX:
            return
        self._wanted.add(id)
        here = next((statement for statement in self.newest.values() if statement.id == id), None)
        if here is not None:
            self._rest_on(here)

    def _rest_on(self, statement: Statement) -> None:
        self.rested_on[statement.id] = statement
        if statement.body.resumed is not None:
            self.want(statement.body.resumed)

    def _remember(self, statement: Statement, body: Checkpoint) -> None:
        self._authors[statement.id] = statement.author, body.resumed
        if len(self._authors) > limits.LINEAGE_MAX:
            del self._authors[next(iter(self._authors))]

    @property
    def lineage(self) -> Collection[StatementId]:
        """The checkpoints whose authors are remembered."""
        return self._authors

    def get(self, id: StatementId) -> Statement | None:
        return self.rested_on.get(id) or next((s for s in self.newest.values() if s.id == id), None)

    def all(self) -> list[Statement]:
        found = {statement.id: statement for statement in (*self.newest.values(), *self.rested_on.values())}
        return [found[id] for id in sorted(found)]

    def ancestors(self, resumed: StatementId | None) -> frozenset[PeerId]:
        """Whose checkpoints a result rests on, directly or not; as far as they are known here."""
        found: set[PeerId] = set()
        for _ in range(limits.LINEAGE_MAX):
            known = None if resumed is None else self._authors.get(resumed)
            if known is None:
                break
            author, resumed = known
            found.add(author)
        return frozenset(found)


def joined(shown: Sequence[Shown], rests_on: Sequence[frozenset[Group]]) -> tuple[Shown, ...]:
    """The same with results that share a checkpoint in one group, named by the smallest name of theirs.

    `rests_on`: of each result the groups whose checkpoints it went on from. Only results with equal roots are joined:
    so a checkpoint never gives one result two votes, and nobody silences another's different result by claiming to
    have gone on from its checkpoint. Groups that are one already stay one.
    """
    if not any(rests_on):
        return tuple(shown)
    names = [frozenset((entry.group, *groups)) for entry, groups in zip(shown, rests_on, strict=True)]
    cluster = list(range(len(shown)))
    for j in range(len(shown)):
        for i in range(j):
            if _are_one(shown[i], shown[j]) or (_equal(shown[i], shown[j]) and names[i] & names[j]):
                cluster = [cluster[i] if of == cluster[j] else of for of in cluster]
    smallest: dict[int, Group] = {}
    for entry, of in zip(shown, cluster, strict=True):
        smallest[of] = min(smallest.get(of, entry.group), entry.group)
    return tuple(replace(entry, group=smallest[of]) for entry, of in zip(shown, cluster, strict=True))


def _are_one(one: Shown, other: Shown) -> bool:
    return one.group == other.group


def _equal(one: Shown, other: Shown) -> bool:
    return one.root is not None and one.root == other.root
