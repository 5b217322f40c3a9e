"""Replacing members of one job's panel that have been away for long (docs/protocol.md, Renewal).

The first member in the panel's order that is there proposes; whoever follows waits longer. Signatures gather as members
come by. The rules are pure functions; Renewals applies them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.job import JobState, panel_quorum
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.rules import seats
from nexapod.protocol.rules.panel import Candidate, are_spread, newcomers
from nexapod.protocol.rules.succession import leaving_max, quorum
from nexapod.protocol.steward.tenure.ballots import Ballots
from nexapod.protocol.steward.tenure.petitions import Petitions
from nexapod.protocol.steward.tenure.presence import Presence
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.bodies import Renewal
from nexapod.protocol.wire.statements import Statement

DEPARTURES_MIN: Final = 3
"""Of fewer members that have left nothing is concluded."""
STAGGER_MS: Final = limits.PROBE_MAX_MS
AWAY_PART: Final = 8
"""A member is replaced when it has been away for this part of the time that half of them stay; where none of those that
are there may be missed, for this part of that."""


def half_life_ms(departures: int, seen_ms: Millis) -> Millis | None:
    """After what time half of the members are gone: by how many went while all of them, those that are still there
    included, were seen for so long in all (the estimate of greatest likelihood for exponential lifetimes of which some
    have not ended). None: too few went."""
    return None if departures < DEPARTURES_MIN else round(math.log(2) * seen_ms) // departures


def usual_away_ms(departures: int, seen_ms: Millis, last_ms: Millis = limits.MEMBER_GONE_MS) -> Millis:
    """How long a member must have been away where many could be missed: a part of the half-life, within bounds.

    `last_ms`: what it was when the panel last renewed itself, for whoever knows no half-life.
    """
    half_life = half_life_ms(departures, seen_ms)
    usual = last_ms if half_life is None else half_life // AWAY_PART
    return max(limits.MEMBER_GONE_MIN_MS, min(limits.MEMBER_GONE_MS, usual))


def gone_after_ms(members: int, silent: int, usual_ms: Millis) -> Millis:
    """How long it must have been away now: less, the fewer may still go before no majority is left.

    `silent`: members that do not answer.
    """
    spare_max = members - quorum(members)
    spare = max(0, spare_max - silent)
    share = usual_ms * spare // spare_max if spare_max else usual_ms
    return max(limits.MEMBER_GONE_MIN_MS, share, usual_ms // AWAY_PART)


def leaving(
    members: Sequence[PeerId], silent_ms: Callable[[PeerId], Millis], away_ms: Millis, most: int
) -> tuple[PeerId, ...]:
    """Who is to leave: those away for longest first, as many as may leave and as can be replaced."""
    away = [(-silent_ms(peer), peer) for peer in members if silent_ms(peer) >= away_ms]
    return tuple(peer for _, peer in sorted(away)[: min(most, leaving_max(len(members)))])


class Renewals:
    """One member's part. `candidates()`: peers that this node has dialled itself, and that would be stewards."""

    def __init__(
        self,
        ctx: Context,
        job: JobState,
        presence: Presence,
        ballots: Ballots,
        candidates: Callable[[], Sequence[Candidate]],
    ) -> None:
        self.due: Millis = ctx.now + limits.RENEWAL_MS
        self._ctx = ctx
        self._job = job
        self._presence = presence
        self._ballots = ballots
        self._candidates = candidates
        self._seen_ms: dict[PeerId, Millis] = {}
        """Of members, and of those that left: for how long they were seen."""
        self._left: dict[PeerId, None] = {}
        self._epoch = job.panel_epoch
        self._signed_at = self._renewed_at = ctx.now
        self._petitions = Petitions(ctx, job.addrs, limits.RENEWAL_MS)

    @property
    def deadline(self) -> Millis:
        return min(when for when in (self.due, self._petitions.deadline) if when is not None)

    def tick(self) -> None:
        self._petitions.tick()
        if self.due <= self._ctx.now:
            self._learn()
            self._give_up()
            if not len(self._petitions) and self._renewed_at + limits.RENEWAL_MS <= self._ctx.now:
                self._propose()
            self.due = self._ctx.now + (STAGGER_MS if self._silent() else limits.RENEWAL_MS)

    def job_changed(self) -> None:
        """What counts is made known; what does not follow the present panel is over."""
        if self._epoch != self._job.panel_epoch:
            self._epoch, self._renewed_at = self._job.panel_epoch, self._ctx.now
        for statement in self._petitions.all():
            if self._job.counts(statement):
                self._announce(self._job.get(statement.id) or statement)
            elif statement.body.previous != self._job.panel_id:
                self._petitions.close(statement.id)

    def peer_up(self, peer: PeerId) -> None:
        self._petitions.hurry(peer)

    def on_statement(self, statement: Statement, sender: PeerId) -> None:
        """A proposal: this node's with more signatures, or another's to be signed."""
        whole = self._petitions.signed(statement)
        if whole is not None:
            self._conclude(whole)
        elif self._may_sign(statement.body) and self._ballots.may_sign("panel", statement.body.epoch, statement.id):
            self._cast(statement)
            signed = self._ctx.cosign(statement)
            self._ctx.deliver(sender, (signed,), self._job.addrs(sender))
            self._conclude(signed)

    # --- the rules, applied ------------------------------------------------------------------------------------------
    def _learn(self) -> None:
        """How long members stay, of this panel and of earlier ones."""
        for peer in self._job.members():
            self._seen_ms[peer] = self._presence.seen_ms(peer)
            if self._presence.silent_ms(peer) >= limits.MEMBER_GONE_MIN_MS:
                self._left[peer] = None
            else:
                self._left.pop(peer, None)
        for peer in list(self._seen_ms)[: -2 * limits.PANEL_MAX]:
            del self._seen_ms[peer]
            self._left.pop(peer, None)

    def _silent(self) -> int:
        """How many members do not answer."""
        return sum(
            1 for peer in self._job.members() if self._presence.silent_ms(peer) >= limits.MEMBER_GONE_MIN_MS // 2
        )

    def _usual_ms(self) -> Millis:
        return usual_away_ms(len(self._left), sum(self._seen_ms.values()), self._job.renewal_away_ms)

    def _away_ms(self, usual_ms: Millis) -> Millis:
        return gone_after_ms(len(self._job.members()), self._silent(), usual_ms)

    def _cast(self, statement: Statement) -> None:
        self._ballots.cast("panel", statement.body.epoch, statement.id)
        self._signed_at = self._ctx.now

    def _give_up(self) -> None:
        """What was signed and found no majority stands in nobody's way for ever: somebody whom it removes is back, or
        the member that brought it is gone."""
        signed = self._ballots.last("panel")
        if signed is None or signed[0] != self._job.panel_epoch + 1:
            return
        statement = self._job.get(signed[1]) or self._petitions.get(signed[1])
        patience_ms = limits.MEMBER_GONE_MS if statement is None else statement.body.away
        removed = () if statement is None else statement.body.removed
        back = any(self._presence.silent_ms(peer) == 0 for peer in removed)
        if back or self._signed_at + patience_ms <= self._ctx.now:
            self._ctx.trace("renewal_given_up", job=self._job.job, epoch=signed[0], back=back)
            self._ballots.release("panel")
            self._petitions.close(signed[1])

    def _propose(self) -> None:
        members = self._job.members()
        epoch = self._job.panel_epoch + 1
        if self._ctx.me not in members or not self._ballots.is_free("panel", epoch):
            return
        usual_ms = self._usual_ms()
        away_ms = self._away_ms(usual_ms) + self._rank() * STAGGER_MS
        removed = leaving(members, self._presence.silent_ms, away_ms, leaving_max(len(members)))
        added: tuple[Candidate, ...] = ()
        while len(added) < len(removed):
            removed = removed[: len(added) or None]
            added = self._newcomers(removed)
            if not added:
                return
        if not removed:
            return
        envelopes = tuple(one.offer.envelope for one in added)
        body = Renewal(self._job.job, epoch, removed, envelopes, "panel", self._job.panel_id, usual_ms)
        statement = self._ctx.sign(body)
        self._cast(statement)
        voters = tuple(peer for peer in members if peer != self._ctx.me and peer not in removed)
        self._petitions.open(statement, voters)
        self._ctx.trace("renewal_proposed", job=self._job.job, epoch=epoch, removed=removed)
        self._conclude(statement)
        self._petitions.tick()

    def _newcomers(self, removed: Sequence[PeerId]) -> tuple[Candidate, ...]:
        kept = {peer: self._job.addrs(peer) for peer in self._job.members() if peer not in removed}
        ctx = self._ctx
        others = [one for one in self._candidates() if one.peer not in removed]
        return newcomers(others, self._job.spec, len(removed), kept=kept, grouping=ctx.grouping, draw=ctx.entropy)

    def _rank(self) -> int:
        """How many members before this one, in the panel's order, are there."""
        before = []
        for peer in seats.order(self._job.job, 0, self._job.members()):
            if peer == self._ctx.me:
                break
            before.append(peer)
        return sum(1 for peer in before if self._presence.silent_since(peer) is None)

    def _readable(self, envelopes: Sequence[bytes]) -> list[Statement]:
        """Offers to this network; whoever is silent here is not asked in."""
        found = []
        for envelope in envelopes[: 2 * limits.PANEL_MAX]:
            try:
                offer = statements.decode(envelope, self._ctx.verify)
            except PeerError:
                continue
            if offer.kind == "offer" and offer.body.network == self._job.spec.network:
                found.append(offer)
        return found

    def _may_sign(self, body: Renewal) -> bool:
        """True by this member's own observation: those removed were away for half the time, and the rest fits."""
        follows = body.previous == self._job.panel_id and body.epoch == self._job.panel_epoch + 1
        if not follows or body.authority != "panel" or self._ctx.me not in self._job.members():
            return False
        if body.away < self._least_ms():
            return False
        half_ms = self._away_ms(body.away) // 2
        away = all(peer != self._ctx.me and self._presence.silent_ms(peer) >= half_ms for peer in body.removed)
        members = self._job.members()
        added = self._readable(body.added)
        fits = len(added) == len(body.added) == len(body.removed) <= leaving_max(len(members))
        kept = [self._job.addrs(peer) for peer in members if peer not in body.removed]
        spread = are_spread([offer.body.addrs for offer in added], kept, self._ctx.grouping, len(members))
        return bool(body.removed) and away and fits and spread

    def _least_ms(self) -> Millis:
        """What a renewal must say that members were away usually: half of what this member would say itself, since
        members have seen different ones leave. One that joined a panel which renews itself and knows better by nothing
        lets the others judge."""
        joined = self._job.panel_epoch > 0 and len(self._left) < DEPARTURES_MIN
        return limits.MEMBER_GONE_MIN_MS if joined else max(limits.MEMBER_GONE_MIN_MS, self._usual_ms() // 2)

    def _conclude(self, statement: Statement) -> None:
        signers = [peer for peer in statement.signers if peer in self._job.members()]
        if len(signers) >= panel_quorum(self._job):
            self._ctx.deliver(self._ctx.me, (statement,))
            self._announce(statement)

    def _announce(self, statement: Statement) -> None:
        """It counts: make it known to the old panel, the new members, and the submitter.

        A new member gets the job with it: it may have to sign, or to take a seat, before it is one.
        """
        self._petitions.close(statement.id)
        joined = [offer.author for offer in self._readable(statement.body.added)]
        for peer in joined:
            self._ctx.deliver(peer, self._story(statement), self._ctx.peers.addrs(peer))
        for peer in dict.fromkeys((*self._job.members(), *self._job.owners)):
            if peer != self._ctx.me and peer not in joined and self._presence.silent_since(peer) is None:
                self._ctx.deliver(peer, (statement,), self._job.addrs(peer))
        self._ctx.trace("panel_renewed", job=self._job.job, epoch=statement.body.epoch)

    def _story(self, last: Statement) -> list[Statement]:
        """The job, who holds it, and all its renewals."""
        known = [one for one in self._job.statements() if one.kind in ("job", "placed", "renewal")]
        return known if any(one.id == last.id for one in known) else [*known, last]
