"""Seats keep the same statements of a shard: by comparing ranges, every so often (docs/protocol.md, Reconcile).

Bounded, and patient: a seat answers a peer a limited number of times between two rounds of its own, and asks ever more
rarely where asking changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Digest, JobId, Millis, PeerId, StatementId
from nexapod.protocol.wire import reconcile
from nexapod.protocol.wire.messages import Message, Reconcile

SOON_MS: Final = limits.BATCH_MS
"""After the seats have changed: by then the others know of it too."""
ANSWERS_MAX: Final = 64
"""Answers to one peer between two rounds."""
PERIOD_MAX_MS: Final = 64 * limits.SEAT_SYNC_MS


@dataclass(slots=True)
class _Partner:
    period: Millis = limits.SEAT_SYNC_MS
    due: Millis = 0
    answers: int = 0
    agreed: Digest | None = None
    """What both had when they last had the same."""
    asked: Digest | None = None
    """What was here when it was asked last."""


class Replication:
    """One seat's comparing with the other seats of its shard. `ids`: what it keeps, sorted."""

    def __init__(
        self,
        job: JobId,
        shard: int,
        ids: Callable[[], Sequence[StatementId]],
        send: Callable[[PeerId, Message], None],
        deliver: Callable[[PeerId, Sequence[StatementId]], None],
    ) -> None:
        self._job = job
        self._shard = shard
        self._ids = ids
        self._send = send
        self._deliver = deliver
        self._partners: dict[PeerId, _Partner] = {}

    def with_seats(self, others: Collection[PeerId], now: Millis) -> None:
        """These are the other seats now: compare with them soon."""
        self._partners = {peer: self._partners.get(peer, _Partner()) for peer in others}
        for peer in others:
            self.soon(peer, now)

    def soon(self, peer: PeerId, now: Millis) -> None:
        """There may be something new: a seat came back."""
        partner = self._partners.get(peer)
        if partner is not None:
            partner.period, partner.agreed = limits.SEAT_SYNC_MS, None
            partner.due = now + SOON_MS

    def tick(self, now: Millis, linked: Callable[[PeerId], bool]) -> None:
        due = [(peer, partner) for peer, partner in self._partners.items() if partner.due <= now]
        mine = reconcile.digest_of(self._ids()) if due else None
        for peer, partner in due:
            self._pace(partner, mine, now)
            if partner.agreed != mine and linked(peer):
                self._ask(peer)

    @staticmethod
    def _pace(partner: _Partner, mine: Digest | None, now: Millis) -> None:
        stale = partner.asked == mine
        partner.period = min(2 * partner.period, PERIOD_MAX_MS) if stale else limits.SEAT_SYNC_MS
        partner.asked = mine
        partner.answers = 0
        # Asked again at the usual pace as soon as something is new here; `changed` sees to it.
        partner.due = now + partner.period

    def changed(self, now: Millis) -> None:
        """Something new is kept: whoever was given up on is asked again at the usual pace."""
        for partner in self._partners.values():
            if partner.period > limits.SEAT_SYNC_MS:
                partner.period = limits.SEAT_SYNC_MS
                partner.due = min(partner.due, now + limits.SEAT_SYNC_MS)

    def _ask(self, peer: PeerId) -> None:
        self._send(peer, Reconcile(self._job, self._shard, b"", reconcile.opening(self._ids())))

    def on_reconcile(self, peer: PeerId, message: Reconcile) -> None:
        """Another seat's ranges: send what it lacks, and ask for what is missing here. Raises PeerError."""
        partner = self._partners.get(peer)
        if partner is None:
            return
        ids = self._ids()
        step = reconcile.answer(ids, message.start, message.ranges, ask=True)
        if not step.give and not step.ranges:
            self._same(peer, partner, message, ids)
            return
        if partner.answers >= ANSWERS_MAX:
            return
        partner.answers += 1
        if step.give:
            self._deliver(peer, step.give)
        if step.ranges:
            self._send(peer, Reconcile(self._job, self._shard, step.start, step.ranges))

    def _same(self, peer: PeerId, partner: _Partner, message: Reconcile, ids: Sequence[StatementId]) -> None:
        everything = message.start == b"" and len(message.ranges) == 1 and not message.ranges[0].end
        mine = reconcile.digest_of(ids)
        if everything and partner.agreed != mine:
            # Said back once, so that the other one knows it too and need not ask again.
            partner.agreed = mine
            self._ask(peer)

    @property
    def next_at(self) -> Millis | None:
        return min((partner.due for partner in self._partners.values()), default=None)
