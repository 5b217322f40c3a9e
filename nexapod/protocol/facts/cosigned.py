"""What the seats of one shard sign together: admissions, beacons, adoptions, freezes, verdicts.

One rule for all of them (docs/protocol.md, Succession): a statement counts when a quorum of the present seats has
signed it, or when they have adopted it. What a quorum of the seats of an earlier epoch signed is kept, so that it can
be adopted, and counts for nothing before that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts import Added
from nexapod.protocol.facts.proposals import Proposals
from nexapod.protocol.primitives import PeerId, StatementId
from nexapod.protocol.rules.succession import Seats
from nexapod.protocol.tables import TableReport
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement


class Tenures:
    """The seats of one shard through its epochs, and what the present ones have adopted. Asked anew each time."""

    def __init__(
        self,
        now: Callable[[], Seats],
        at: Callable[[int], Seats | None],
        adopted: Callable[[], Collection[StatementId]],
        is_member: Callable[[PeerId], bool],
    ) -> None:
        self.now = now
        self.at = at
        self.adopted = adopted
        self.is_member = is_member
        """Whether a peer is, or was, a member of the panel."""


class CosignedTable:
    """The statements of one kind of one shard."""

    def __init__(self, tenures: Tenures) -> None:
        self._tenures = tenures
        self._proposals = Proposals(limits.PROPOSALS_PER_SIGNER_MAX)
        self.founded: dict[StatementId, Statement] = {}
        """Those that a quorum of the seats of their epoch has signed, or the present seats have adopted."""

    def get(self, id: StatementId) -> Statement | None:
        return self.founded.get(id) or self._proposals.get(id)

    def proposals(self) -> list[Statement]:
        """Those that are not founded, in the order in which they came."""
        return self._proposals.all()

    def proposals_table(self, name: str) -> TableReport:
        """How full the room of the busiest signer is."""
        return self._proposals.table(name)

    def counting(self) -> Iterator[Statement]:
        return (statement for statement in self.founded.values() if self.counts(statement))

    # --- the rule --------------------------------------------------------------------------------------------------
    def counts(self, statement: Statement) -> bool:
        seats = self._tenures.now()
        if statement.body.epoch == seats.epoch and seats.signed_by_quorum(statement.signers):
            return True
        return statement.id in self._tenures.adopted()

    def is_founded(self, statement: Statement) -> bool:
        seats = self._tenures.at(statement.body.epoch)
        signed = seats is not None and seats.signed_by_quorum(statement.signers)
        return signed or statement.id in self._tenures.adopted()

    # --- the fold --------------------------------------------------------------------------------------------------
    def offered(self, statement: Statement) -> Statement | None:
        """The statement with all signatures of its epoch's seats that are known, to be looked at before it is kept.

        None: it is an orphan, as its epoch is not known here, or other seats of it. Raises PeerError when no member of
        the panel has signed it.
        """
        seats = self._tenures.at(statement.body.epoch)
        if seats is None:
            return None
        known = self.founded.get(statement.id)
        if known is not None:
            return statements.merge(known, statements.keep_signers(statement, seats.holders))
        merged = self._proposals.merged(statement, seats.holders)
        if merged is None and statement.id in self._tenures.adopted():
            return statement
        if merged is None and not any(self._tenures.is_member(peer) for peer in statement.signers):
            raise PeerError("foreign-signature", f"no seat of its epoch has signed this {statement.kind}")
        return merged

    def keep(self, merged: Statement) -> Added:
        """Keep what `offered` gave."""
        if not self.is_founded(merged):
            return "proposal" if self._proposals.keep(merged) else "known"
        old = self.founded.get(merged.id)
        self._proposals.drop(merged.id)
        self.founded[merged.id] = merged
        if old is not None:
            return "known"
        return "new" if self.counts(merged) else "proposal"

    def drop(self, id: StatementId) -> None:
        """Forget one: the table is full, or it is of no use any more."""
        self.founded.pop(id, None)
        self._proposals.drop(id)

    def review(self) -> None:
        """The seats, or what they have adopted, have changed: sort what is here anew."""
        lost = [statement for statement in self.founded.values() if not self.is_founded(statement)]
        found = [statement for statement in self._proposals.all() if self.is_founded(statement)]
        for statement in lost:
            del self.founded[statement.id]
        for statement in found:
            self._proposals.drop(statement.id)
            self.founded[statement.id] = statement
