"""Replaces panel members that refuse, lie or do not answer, by the submitter's own word (docs/protocol.md, 4.1, 4.2).

Seats that are placed and still a quorum replace each other, and a majority of the panel renews it; this is for shards
and panels that cannot help themselves, and for members that will never hold the job. A shard whose seats were
replaced with too few gets more when members come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.rules import seats as seating
from nexapod.protocol.rules.panel import Candidate, newcomers
from nexapod.protocol.rules.succession import Seats, next_holders, quorum
from nexapod.protocol.submitter.placing import Placing
from nexapod.protocol.submitter.seating import Moved
from nexapod.protocol.wire.bodies import Renewal, Succession
from nexapod.protocol.wire.messages import Probe
from nexapod.protocol.wire.statements import Statement

if TYPE_CHECKING:
    from nexapod.protocol.job import JobState


class Replacing:
    """Who is no steward of this job any more, in this node's eyes. `candidates`: whom a renewal may add."""

    def __init__(
        self, ctx: Context, job: JobState, placing: Placing, candidates: Callable[[], Sequence[Candidate]]
    ) -> None:
        self.ctx = ctx
        self.job = job
        self.refused: dict[PeerId, str] = {}
        """Members that will not, or must not, be stewards of this job: why."""
        self._placing = placing
        self._candidates = candidates
        self._panel = job.members()
        self._bad: dict[PeerId, None] = {}
        """Members that were found gone, mute or refusing when last looked at."""
        self._few: dict[int, None] = {}
        """Shards with fewer seats than there are members to hold them."""
        self._queue: deque[int] = deque()
        self._queued: dict[int, None] = {}
        self._signed_at: dict[int, Millis] = {}
        self._rival_since: dict[StatementId, Millis] = {}
        """By what it follows: since when this node's own proposal for the next epoch has been in the way."""
        self._renewed_at: Millis | None = None
        self._renewable_at: Millis = ctx.now + limits.MEMBER_GONE_MIN_MS
        self._helpless_since: Millis | None = None
        """Since when this node, which meets others, has met no majority of the panel."""
        self._knocked_at: Millis = ctx.now
        self._at: Millis = ctx.now + limits.COLLECT_MS

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        return None if self.job.closed else self._at

    def tick(self) -> None:
        if self.job.closed or self.ctx.now < self._at:
            return
        if self._at + limits.CLOCK_GAP_MS < self.ctx.now:
            self._helpless_since = None
        self._at = self.ctx.now + limits.COLLECT_MS
        self._look_at_members()
        self._renew()
        self._succeed()

    # --- what is said of members -----------------------------------------------------------------------------------
    def refuse(self, peer: PeerId, reason: str) -> None:
        """A member has refused, or has signed what is wrong. Nobody else's word counts here."""
        if peer in self.job.members() and peer not in self.refused:
            self.refused[peer] = reason
            self._placing.excuse(peer)
            self.ctx.trace("member_refused", job=self.job.job, peer=peer, reason=reason)

    def moved(self, moved: Moved) -> None:
        """The seats of a shard are others."""
        holders = moved.now.holders
        if len(holders) < min(limits.SEATS, len(self.job.members())):
            self._few[moved.now.shard] = None
            self._enqueue(moved.now.shard)
        else:
            self._few.pop(moved.now.shard, None)
        if any(peer in self._bad for peer in holders):
            self._enqueue(moved.now.shard)

    @property
    def exhausted(self) -> bool:
        """Whether every member has refused, and nobody is known who could take over."""
        return all(peer in self.refused for peer in self.job.members()) and not self._fresh(self.job.members())

    # --- who is bad ------------------------------------------------------------------------------------------------
    def _look_at_members(self) -> None:
        bad = {peer: None for peer in self.job.members() if self._is_bad(peer)}
        if self._panel != self.job.members():
            # There may be somebody now who can take the seats of those that are bad, or are members no more.
            for peer in (*(peer for peer in self._panel if peer not in self.job.members()), *bad):
                self._enqueue_those_of(peer)
            self._panel = self.job.members()
        for peer in bad:
            if peer not in self._bad:
                self._enqueue_those_of(peer)
        if any(peer not in bad for peer in self._bad):
            for shard in self._few:
                self._enqueue(shard)
        self._bad = bad

    def _enqueue_those_of(self, peer: PeerId) -> None:
        for shard in self._placing.shards_of(peer):
            self._enqueue(shard)

    def _is_bad(self, peer: PeerId) -> bool:
        return peer in self.refused or self._gone_ms(peer) >= limits.SEAT_GONE_MS or self._is_mute(peer)

    def _gone_ms(self, peer: PeerId) -> Millis:
        """For how long it could not be reached; 0: it can."""
        if self.ctx.peers.linked(peer):
            return 0
        delivered = self._placing.delivered.get(peer)
        since = self.ctx.peers.lost(peer)
        if since is None:
            since = None if delivered is None else delivered.since
        return 0 if since is None else self.ctx.now - since

    def _is_mute(self, peer: PeerId) -> bool:
        """It was sent the job long ago, has a link, and neither holds nor refuses it."""
        delivered = self._placing.delivered.get(peer)
        if delivered is None or not self.ctx.peers.linked(peer):
            return False
        patience = limits.SEAT_GONE_MS + self.job.spec.input_bytes // limits.PLACE_BYTES_PER_MS
        return self.ctx.now - delivered.since >= patience

    # --- successions -----------------------------------------------------------------------------------------------
    def _enqueue(self, shard: int) -> None:
        if shard not in self._queued:
            self._queued[shard] = None
            self._queue.append(shard)

    def _succeed(self) -> None:
        """The next few shards of those with a bad or a missing seat. Each member is told of all in one go."""
        told: dict[PeerId, list[Statement]] = {}
        for _ in range(min(len(self._queue), limits.SUCCESSIONS_MAX)):
            shard = self._queue.popleft()
            del self._queued[shard]
            now = self.job.seats(shard)
            holders = self._better(now)
            if holders == now.holders:
                continue
            self._enqueue(shard)
            if self._must(now, holders) and self._may(now):
                statement = self._sign(now, holders)
                if self._would_be_fault(statement):
                    continue
                self._signed_at[shard] = self.ctx.now
                self.ctx.trace("succession_signed", job=self.job.job, shard=shard, epoch=now.epoch + 1, holders=holders)
                for peer in dict.fromkeys((self.ctx.me, *now.holders, *holders)):
                    told.setdefault(peer, []).append(statement)
        for peer in told:
            self.ctx.deliver(peer, told[peer], self.job.addrs(peer))

    def _better(self, now: Seats) -> tuple[PeerId, ...]:
        members = self.job.members()
        order = seating.order(self.job.job, now.shard, members)
        reachable = [peer for peer in order if peer not in self._bad and self.ctx.peers.linked(peer)]
        gone = [peer for peer in now.holders if peer in self._bad or peer not in members]
        return next_holders(now, order, gone, reachable)

    def _must(self, now: Seats, holders: tuple[PeerId, ...]) -> bool:
        """Whether the shard cannot help itself, or has fewer seats than it could have."""
        members = self.job.members()
        good = [peer for peer in now.holders if peer in members and peer not in self._bad]
        refused = any(peer in self.refused for peer in now.holders)
        placing = not self._placing.placed and now.shard in self._placing.short
        return refused or placing or len(good) < quorum(len(now.holders)) or len(holders) > len(now.holders)

    def _may(self, now: Seats) -> bool:
        """At most once a minute, and the later the more often it was done; not by one who may be cut off itself."""
        last = self._signed_at.get(now.shard)
        if last is not None and self.ctx.now - last < limits.SUBMITTER_SUCCESSION_MS:
            return False
        if any(peer in self.refused for peer in now.holders):
            return True
        wait = min(limits.SEAT_GONE_MS << min(now.epoch, 16), limits.SEAT_GONE_MAX_MS)
        if not self.ctx.peers.links():
            wait = max(wait, limits.SUBMITTER_SUCCESSION_MS)
        gone = [self._gone_ms(peer) for peer in now.holders if peer in self._bad and not self._is_mute(peer)]
        return all(ms >= wait for ms in gone)

    def _sign(self, now: Seats, holders: tuple[PeerId, ...]) -> Statement:
        return self.ctx.sign(Succession(self.job.job, now.shard, now.epoch + 1, holders, "submitter", now.id))

    def _would_be_fault(self, statement: Statement) -> bool:
        """Whether this node, as a seat, has signed another to this epoch: that one gets a minute to be completed."""
        if not any(self.ctx.me in rival.signers for rival in self.job.rivals(statement)):
            return False
        since = self._rival_since.setdefault(statement.body.previous, self.ctx.now)
        return self.ctx.now - since < limits.SUBMITTER_SUCCESSION_MS

    # --- renewals --------------------------------------------------------------------------------------------------
    def _renew(self) -> None:
        """Members that refused leave the panel, and those lost when it cannot renew itself; peers known here come in
        their place. A panel that was small when the job was placed grows."""
        members = self.job.members()
        lost = self._lost()
        leaving = tuple(peer for peer in members if peer in self.refused or peer in lost)
        if not self._may_renew():
            return
        added = self._fresh(leaving) if leaving else self._more()
        if (not leaving and not added) or (len(leaving) == len(members) and not added):
            return
        self._renewed_at = self.ctx.now
        body = Renewal(
            self.job.job,
            self.job.panel_epoch + 1,
            leaving,
            tuple(one.offer.envelope for one in added),
            "submitter",
            self.job.panel_id,
        )
        statement = self.ctx.sign(body)
        self.ctx.trace("renewal_signed", job=self.job.job, removed=leaving, added=[one.peer for one in added])
        for peer in dict.fromkeys((self.ctx.me, *members, *(one.peer for one in added))):
            self.ctx.deliver(peer, [statement], self.job.addrs(peer))

    def _may_renew(self) -> bool:
        return self._renewed_at is None or self.ctx.now - self._renewed_at >= limits.SUBMITTER_SUCCESSION_MS

    def _lost(self) -> tuple[PeerId, ...]:
        """Members away for CARETAKER_MS, while for so long there was no majority of the panel that could replace them.
        A machine that meets nobody else judges nobody."""
        members, peers = self.job.members(), self.ctx.peers
        absent = [peer for peer in members if peer != self.ctx.me and not peers.linked(peer)]
        if len(members) - len(absent) >= quorum(len(members)) or not peers.links():
            self._helpless_since = None
            return ()
        if self._helpless_since is None:
            self._helpless_since = self._knocked_at = self.ctx.now
        elif self.ctx.now - self._knocked_at >= limits.PROBE_MAX_MS:
            self._knocked_at = self.ctx.now
            for peer in absent:
                self.ctx.send(peer, Probe(0, None), self.job.addrs(peer))
        if self.ctx.now - self._helpless_since < limits.CARETAKER_MS:
            return ()
        return tuple(peer for peer in absent if self._gone_ms(peer) >= limits.CARETAKER_MS)

    def _more(self) -> tuple[Candidate, ...]:
        """A third or more of a panel smaller than usual, once it has to live for longer than its members may be away:
        the fewer they are, the sooner no majority of them is left."""
        members = self.job.members()
        placed = self._placing.placed and self._renewable_at <= self.ctx.now
        if not placed or len(members) >= limits.PANEL_USUAL:
            return ()
        found = self._fresh((), limits.PANEL_USUAL - len(members))
        return found if 3 * len(found) >= len(members) else ()

    def _fresh(self, leaving: Collection[PeerId], more: int = 0) -> tuple[Candidate, ...]:
        """Peers that this node reached itself and that have never been asked: as many as leave, and some more."""
        known = [one for one in self._candidates() if one.reached and self.ctx.peers.linked(one.peer)]
        staying = {peer: self.job.addrs(peer) for peer in self.job.members() if peer not in leaving}
        return newcomers(
            [one for one in known if one.peer not in self.refused and one.peer not in leaving],
            self.job.spec,
            min(len(leaving) + more, limits.PANEL_MAX - len(staying)),
            kept=staying,
            grouping=self.ctx.grouping,
            draw=self.ctx.entropy,
        )
