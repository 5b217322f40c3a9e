"""Who holds the seats of each shard, by epochs (docs/protocol.md, Seats, Succession)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts import Added
from nexapod.protocol.facts.chain import Chain
from nexapod.protocol.facts.panels import Panels
from nexapod.protocol.facts.proposals import Proposals
from nexapod.protocol.primitives import JobId, PeerId, StatementId
from nexapod.protocol.rules import succession
from nexapod.protocol.rules.succession import Seats
from nexapod.protocol.tables import TableReport, fullest, longest
from nexapod.protocol.wire.bodies import Succession
from nexapod.protocol.wire.statements import Statement


class Successions:
    """The seats of all shards. A shard costs nothing before it is asked for.

    A caretaker's succession counts as soon as its holders have signed it. Whether a node believes that no quorum can
    be reached is for the node to decide before it offers one: nothing here knows how long anybody was away.
    """

    def __init__(self, job: JobId, shards: int, panels: Panels, owners: Collection[PeerId]) -> None:
        self._job = job
        self._shards = shards
        self._panels = panels
        self._owners = owners
        self._chains: dict[int, Chain] = {}
        self._proposals: dict[int, Proposals] = {}
        self._first: dict[int, Seats] = {}
        self._overruled: dict[int, dict[PeerId, tuple[int, Statement]]] = {}
        """By shard: caretakers in whose place seats or the panel put others, where in the chain, and by what."""
        self._rewritten = panels.rewritten

    # --- what it says ----------------------------------------------------------------------------------------------
    def seats(self, shard: int) -> Seats:
        """Who holds a shard now."""
        chain = self._chains.get(shard) if self._chains else None
        if chain is None or not chain.links:
            return self._first.get(shard) or self._first_seats(shard)
        return succession.succeeded(chain.links[-1])

    def at(self, shard: int, epoch: int) -> Seats | None:
        """Who held it in an epoch; None: there has been none such."""
        if epoch == 0:
            return self._first_seats(shard)
        chain = self._chains.get(shard)
        link = None if chain is None else chain.at(epoch - 1)
        return None if link is None else succession.succeeded(link)

    def tables(self) -> tuple[TableReport, ...]:
        longest_chain = longest(chain.links for chain in self._chains.values())
        proposals = (table.table("successions of a signer that do not count") for table in self._proposals.values())
        return (TableReport("successions of a shard", longest_chain, limits.EPOCHS_MAX), *fullest([proposals]))

    def _first_seats(self, shard: int) -> Seats:
        found = self._first.get(shard)
        if found is None:
            found = self._first[shard] = succession.first_seats(self._job, shard, self._panels.history[0])
        return found

    def counting(self) -> list[Statement]:
        """All that count, by shard, then by epoch."""
        return [link for shard in sorted(self._chains) for link in self._chains[shard].links]

    def chain(self, shard: int) -> list[Statement]:
        """Those of a shard, by epoch."""
        chain = self._chains.get(shard)
        return [] if chain is None else list(chain.links)

    def overruled(self, shard: int) -> list[Statement]:
        """Caretakers' successions of a shard that did not stand: who made one takes the shard alone no more."""
        entries = self._overruled.get(shard, {}).items()
        found = [statement for _, (place, statement) in sorted(entries) if self._stands_over(shard, place)]
        return list({statement.id: statement for statement in found}.values())

    def overruling(self) -> list[Statement]:
        """Those of all shards."""
        return [statement for shard in sorted(self._overruled) for statement in self.overruled(shard)]

    @property
    def any(self) -> bool:
        """Whether one counts, or has been proposed."""
        return bool(self._chains or self._proposals)

    def counts(self, statement: Statement) -> bool:
        chain = self._chains.get(statement.body.shard)
        return chain is not None and chain.has(statement.id)

    def get(self, id: StatementId) -> Statement | None:
        for chain in self._chains.values():
            if chain.has(id):
                return next((link for link in chain.links if link.id == id), None)
        found = (proposals.get(id) for proposals in self._proposals.values())
        return next((statement for statement in found if statement is not None), None)

    def rivals(self, statement: Statement) -> list[Statement]:
        """Other successions of the same shard to the same epoch that are here, proposals included."""
        body: Succession = statement.body
        chain = self._chains.get(body.shard)
        proposals = self._proposals.get(body.shard)
        known = [] if chain is None else chain.links[body.epoch - 1 : body.epoch]
        known = [*known, *([] if proposals is None else proposals.all())]
        return [other for other in known if other.id != statement.id and other.body.epoch == body.epoch]

    # --- the fold --------------------------------------------------------------------------------------------------
    def add(self, statement: Statement) -> Added:
        body: Succession = statement.body
        if body.shard >= self._shards or body.epoch > limits.EPOCHS_MAX:
            raise PeerError("bad-succession", "the job has no such shard, or no shard so many epochs")
        chain = self._chains.get(body.shard) or Chain(StatementId(self._job))
        place = chain.place(body.previous)
        if place is None:
            return "orphan"
        if body.authority == "caretaker" and self._is_barred(body, place):
            return "known"
        if not chain.would_take(place, statement):
            return self._overrule(place, statement)
        before = self.at(body.shard, place)
        assert before is not None
        proposals = self._proposals.get(body.shard) or Proposals(limits.PROPOSALS_PER_SIGNER_MAX)
        merged = proposals.merged(statement, self._eligible(body, before))
        if merged is None:
            # Whoever signed may be a member by a renewal that is not here.
            return "orphan"
        match self._standing(merged, before):
            case "orphan":
                return "orphan"
            case "proposal":
                self._proposals[body.shard] = proposals
                return "proposal" if proposals.keep(merged) else "known"
        replaced = chain.at(place)
        chain.put(place, merged)
        proposals.drop(merged.id)
        self._chains[body.shard] = chain
        if replaced is not None:
            self._overrule(place, replaced)
        return "new"

    # --- caretakers that were overruled ----------------------------------------------------------------------------
    def _stands_over(self, shard: int, place: int) -> bool:
        """Whether seats or the panel decided what stands at a place of a shard's chain."""
        link = self._chains[shard].at(place) if shard in self._chains else None
        return link is not None and link.body.authority in ("seats", "panel")

    def _is_barred(self, body: Succession, place: int) -> bool:
        known = self._overruled.get(body.shard, {})
        earlier = [known[peer][0] for peer in body.holders if peer in known]
        return any(before < place and self._stands_over(body.shard, before) for before in earlier)

    def _overrule(self, place: int, statement: Statement) -> Added:
        """A succession does not stand, as another is preferred. If it is a caretaker's, and seats or the panel were
        there to make the other, its holders were wrong that nobody was: they may not say so again of this shard."""
        body: Succession = statement.body
        chain = self._chains[body.shard]
        before = self.at(body.shard, place)
        if body.authority != "caretaker" or chain.has(statement.id) or not self._stands_over(body.shard, place):
            return "known"
        if before is None or self._standing(statement, before) != "counts":
            return "known"
        known = self._overruled.setdefault(body.shard, {})
        news = False
        for holder in body.holders:
            old = known.get(holder)
            if old is None or (place, statement.id) < (old[0], old[1].id):
                known[holder] = (place, statement)
                news = True
        if news:
            self._cut_barred(chain)
        return "new" if news else "known"

    def _cut_barred(self, chain: Chain) -> None:
        for place, link in enumerate(chain.links):
            if link.body.authority == "caretaker" and self._is_barred(link.body, place):
                chain.cut(place)
                return

    def _eligible(self, body: Succession, before: Seats) -> Collection[PeerId]:
        match body.authority:
            case "submitter":
                return self._owners
            case "seats":
                return before.holders
            case "caretaker":
                return body.holders
            case "panel":
                return frozenset(peer for members in self._panels.history for peer in members)

    def _standing(self, statement: Statement, before: Seats) -> succession.Standing | Literal["orphan"]:
        """`orphan`: a holder is no member, unless by a renewal that is not here."""
        holders = statement.body.holders
        if not any(all(holder in members for holder in holders) for members in self._panels.history):
            return "orphan"
        return succession.standing(statement, before, self._panels.history, self._owners)

    def panel_changed(self) -> bool:
        """Look again at what rests on the panel; whether any seats changed."""
        cut = self._panels.rewritten != self._rewritten and self._cut_unfounded()
        self._rewritten = self._panels.rewritten
        added = [self.add(statement) for own in list(self._proposals.values()) for statement in own.all()]
        return cut or "new" in added

    def _cut_unfounded(self) -> bool:
        """A renewal was replaced: what only the old one's members could have signed goes."""
        cut = False
        for shard, chain in self._chains.items():
            for place, link in enumerate(chain.links):
                before = self.at(shard, place)
                assert before is not None
                if self._standing(link, before) != "counts":
                    chain.cut(place)
                    cut = True
                    break
        return cut
