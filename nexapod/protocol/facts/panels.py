"""The panel of a job and its renewals (docs/protocol.md, Renewal)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts import Added
from nexapod.protocol.facts.chain import Chain
from nexapod.protocol.facts.proposals import Proposals
from nexapod.protocol.primitives import PeerId, StatementId
from nexapod.protocol.rules import succession
from nexapod.protocol.tables import TableReport
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.bodies import Renewal
from nexapod.protocol.wire.statements import Statement, Verify


class Panels:
    """Who the members were and are, by the job and by each renewal that counts."""

    def __init__(
        self, root: StatementId, network: str, panel: Iterable[bytes], owners: Collection[PeerId], verify: Verify
    ) -> None:
        self._network = network
        self._owners = owners
        self._verify = verify
        offers = [self._offer(envelope) for envelope in panel]
        members = tuple(offer.author for offer in offers)
        if not members or len(set(members)) != len(members):
            raise PeerError("bad-panel", "a panel has at least one member, each once")
        self._chain = Chain(root)
        self._proposals = Proposals(limits.PROPOSALS_PER_SIGNER_MAX)
        self._offers = [offers]
        """By the job, and by each renewal."""
        self.history: list[tuple[PeerId, ...]] = [members]
        """The members by the job, and after each renewal; the present ones last."""
        self._ever = frozenset(members)
        self.rewritten = 0
        """How often a renewal was replaced by one that is preferred."""

    # --- what it says ----------------------------------------------------------------------------------------------
    @property
    def members(self) -> tuple[PeerId, ...]:
        return self.history[-1]

    @property
    def epoch(self) -> int:
        return len(self._chain.links)

    def ever(self, peer: PeerId) -> bool:
        """Whether it is or was a member."""
        return peer in self._ever

    def tables(self) -> tuple[TableReport, ...]:
        return (
            TableReport("members of a panel", len(self.members), limits.PANEL_MAX),
            TableReport("renewals of a panel", len(self._chain.links), limits.EPOCHS_MAX),
            self._proposals.table("renewals of a signer that do not count"),
        )

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        """Where it can be dialled, by its newest offer in the panel; nothing for others."""
        for offers in reversed(self._offers):
            for offer in offers:
                if offer.author == peer:
                    addrs: tuple[str, ...] = offer.body.addrs
                    return addrs
        return ()

    def counting(self) -> list[Statement]:
        """The renewals that count, in their order."""
        return list(self._chain.links)

    def counts(self, id: StatementId) -> bool:
        return any(link.id == id for link in self._chain.links)

    def get(self, id: StatementId) -> Statement | None:
        return next((link for link in self._chain.links if link.id == id), None) or self._proposals.get(id)

    # --- the fold --------------------------------------------------------------------------------------------------
    def add(self, statement: Statement) -> Added:
        body: Renewal = statement.body
        if body.epoch > limits.EPOCHS_MAX:
            raise PeerError("bad-renewal", f"a panel is renewed at most {limits.EPOCHS_MAX} times")
        place = self._chain.place(body.previous)
        if place is None:
            return "orphan"
        if not self._chain.would_take(place, statement):
            return "known"
        merged = self._proposals.merged(statement, self._eligible(body, place))
        if merged is None:
            raise PeerError("foreign-signature", "nobody who may renew the panel has signed this renewal")
        offers = [self._offer(envelope) for envelope in body.added]
        if self._standing(merged, place, offers) == "proposal":
            return "proposal" if self._proposals.keep(merged) else "known"
        self._take(place, merged, offers)
        return "new"

    def _eligible(self, body: Renewal, place: int) -> Collection[PeerId]:
        return self._owners if body.authority == "submitter" else self.history[place]

    def _standing(self, statement: Statement, place: int, offers: list[Statement]) -> succession.Standing:
        return succession.renewal_standing(
            statement,
            place,
            statement.body.previous,
            self.history[place],
            [offer.author for offer in offers],
            self._owners,
        )

    def _take(self, place: int, statement: Statement, offers: list[Statement]) -> None:
        if place < len(self._chain.links):
            self.rewritten += 1
            del self.history[place + 1 :]
            del self._offers[place + 1 :]
        self._chain.put(place, statement)
        self._proposals.drop(statement.id)
        self._offers.append(offers)
        members = succession.renewed(self.history[place], statement.body.removed, [o.author for o in offers])
        self.history.append(members)
        self._ever = frozenset(peer for panel in self.history for peer in panel)

    def _offer(self, envelope: bytes) -> Statement:
        offer = statements.decode(envelope, self._verify)
        if offer.kind != "offer" or offer.body.network != self._network:
            raise PeerError("bad-panel", "a member is named by its offer to this network")
        return offer
