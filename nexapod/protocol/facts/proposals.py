"""Cosigned statements that do not count yet, bounded by signer."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from nexapod.protocol.primitives import PeerId, StatementId
from nexapod.protocol.tables import TableReport, longest
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement


class Proposals:
    """A table in which each signer has room for its newest few.

    Whoever signs more pushes out its own: a proposal stays for as long as one of its signers has room for it, so what
    honest peers signed is not lost to another's flood.
    """

    def __init__(self, per_signer: int) -> None:
        self._per_signer = per_signer
        self._kept: dict[StatementId, Statement] = {}
        self._of: dict[PeerId, deque[StatementId]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def table(self, name: str) -> TableReport:
        """How many the busiest signer has."""
        return TableReport(name, longest(self._of.values()), self._per_signer)

    def get(self, id: StatementId) -> Statement | None:
        return self._kept.get(id)

    def all(self) -> list[Statement]:
        return list(self._kept.values())

    def merged(self, statement: Statement, eligible: Collection[PeerId]) -> Statement | None:
        """With the signatures that are here already, and only those of peers who may sign; None: nobody of them has."""
        kept = self._kept.get(statement.id)
        whole = statement if kept is None else statements.merge(kept, statement)
        able = statements.keep_signers(whole, eligible)
        return able if able.signatures else None

    def keep(self, statement: Statement) -> bool:
        """Keep it as it is now; False: these signatures were here already."""
        old = self._kept.get(statement.id)
        if old is not None and old.signers == statement.signers:
            return False
        self._kept[statement.id] = statement
        for signer in statement.signers:
            if old is None or signer not in old.signers:
                self._charge(signer, statement.id)
        return True

    def drop(self, id: StatementId) -> None:
        statement = self._kept.pop(id, None)
        for signer in () if statement is None else statement.signers:
            self._discharge(signer, id)

    def _charge(self, signer: PeerId, id: StatementId) -> None:
        own = self._of.setdefault(signer, deque())
        own.append(id)
        if len(own) > self._per_signer:
            oldest = own.popleft()
            if not any(oldest in self._of.get(other, ()) for other in self._kept[oldest].signers):
                del self._kept[oldest]

    def _discharge(self, signer: PeerId, id: StatementId) -> None:
        own = self._of.get(signer)
        if own is None or id not in own:
            return
        own.remove(id)
        if not own:
            del self._of[signer]
