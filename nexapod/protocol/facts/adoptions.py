"""What the seats of each epoch of one shard have taken over from earlier ones (docs/protocol.md, Succession)."""

from __future__ import annotations

from collections import Counter

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts import Added
from nexapod.protocol.facts.cosigned import CosignedTable, Tenures
from nexapod.protocol.primitives import StatementId
from nexapod.protocol.tables import TableReport
from nexapod.protocol.wire.bodies import Adoption
from nexapod.protocol.wire.statements import Statement

NOTHING: frozenset[StatementId] = frozenset()


class Adoptions:
    """Only what the present epoch adopted counts; the last one before is kept, as it says what may be adopted next."""

    def __init__(self, tenures: Tenures) -> None:
        self._tenures = tenures
        self._table = CosignedTable(Tenures(tenures.now, tenures.at, lambda: NOTHING, tenures.is_member))
        self._adopted: dict[int, frozenset[StatementId]] = {}

    def get(self, id: StatementId) -> Statement | None:
        return self._table.get(id)

    def counting(self) -> list[Statement]:
        """Those of the present epoch, by id."""
        return sorted(self._table.counting(), key=lambda statement: statement.id)

    def counts(self, statement: Statement) -> bool:
        return self._table.counts(statement)

    def now(self) -> frozenset[StatementId]:
        """What the present epoch has adopted."""
        return self._adopted.get(self._tenures.now().epoch, NOTHING)

    def last(self) -> tuple[int, frozenset[StatementId]]:
        """The last epoch before the present one that adopted anything, and what; (0, nothing) if there is none."""
        present = self._tenures.now().epoch
        return max(((e, ids) for e, ids in self._adopted.items() if e < present), default=(0, NOTHING))

    def tables(self) -> tuple[TableReport, ...]:
        of_epoch = Counter(statement.body.epoch for statement in self._table.founded.values())
        most = max(of_epoch.values(), default=0)
        return (
            TableReport("adoptions of an epoch", most, limits.ADOPTIONS_MAX),
            self._table.proposals_table("adoptions of a signer that do not count"),
        )

    def add(self, statement: Statement) -> Added:
        body: Adoption = statement.body
        if list(body.statements) != sorted(set(body.statements)):
            raise PeerError("bad-adoption", "what it adopts is not sorted, each once")
        merged = self._table.offered(statement)
        if merged is None:
            return "orphan"
        added = self._table.keep(merged)
        if statement.id in self._table.founded:
            self._bound(body.epoch)
            self._gather()
        return added if statement.id in self._table.founded or added == "proposal" else "known"

    def review(self) -> None:
        """The seats have changed."""
        self._table.review()
        last = self.last()[0]
        for statement in list(self._table.founded.values()):
            if statement.body.epoch < last:
                self._table.drop(statement.id)
        self._gather()

    def _bound(self, epoch: int) -> None:
        own = sorted(s.id for s in self._table.founded.values() if s.body.epoch == epoch)
        for id in own[limits.ADOPTIONS_MAX :]:
            self._table.drop(id)

    def _gather(self) -> None:
        adopted: dict[int, frozenset[StatementId]] = {}
        for statement in self._table.founded.values():
            body: Adoption = statement.body
            adopted[body.epoch] = adopted.get(body.epoch, NOTHING) | frozenset(body.statements)
        self._adopted = adopted
