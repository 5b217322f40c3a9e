"""Cosigned statements of one shard that name this worker's tasks: their signatures gathered until they count.

Each seat sends its own copy, with the signatures that it has. One that counted may cease to, when the seats change, and
count again by an adoption: so each is asked for anew whenever it matters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import StatementId
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement

PROPOSALS_MAX: Final = 64
"""Kept of one shard. Seats repeat what is still of use, so the oldest may go."""


class Proposals:
    """Bounded by PROPOSALS_MAX."""

    def __init__(self, job: JobState) -> None:
        self._job = job
        self._known: OrderedDict[StatementId, Statement] = OrderedDict()

    def add(self, statement: Statement) -> Statement | None:
        """Take a copy in: the statement with all signatures so far if it counts now, else None."""
        known = self._known.get(statement.id)
        merged = statement if known is None else statements.merge(known, statement)
        self._known[statement.id] = merged
        self._known.move_to_end(statement.id)
        if len(self._known) > PROPOSALS_MAX:
            self._known.popitem(last=False)
        return merged if self._job.counts(merged) else None

    def __iter__(self) -> Iterator[Statement]:
        return iter(list(self._known.values()))

    def __contains__(self, id: StatementId) -> bool:
        return id in self._known

    def counting(self) -> list[Statement]:
        """Those that count now, in the order in which they came."""
        return [statement for statement in self._known.values() if self._job.counts(statement)]

    def keep(self, kept: set[StatementId]) -> None:
        """Forget all others."""
        for id_ in [id_ for id_ in self._known if id_ not in kept]:
            del self._known[id_]
