"""Which open jobs one peer knows and another does not: compared by ranges, on each new link and then in turn.

Both sides of a link compare in turn, one of them when it is new. A difference is settled by what learning.py does:
the one that has a job announces it, the one that knows it to be over says so.
"""

from __future__ import annotations

from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.node.jobs import Jobs
from nexapod.protocol.node.learning import Learning
from nexapod.protocol.primitives import JobId, Millis, PeerId, key_of_peer_id
from nexapod.protocol.wire import reconcile
from nexapod.protocol.wire.messages import Reconcile

NEWCOMER_LINKS: Final = 3
"""Of a node that may know nothing yet."""


class Sync:
    """The turn of this node's links."""

    def __init__(self, ctx: Context, jobs: Jobs, learning: Learning) -> None:
        self._ctx = ctx
        self._jobs = jobs
        self._learning = learning
        self._last: PeerId | None = None
        self.deadline: Millis = ctx.now + limits.PEER_SYNC_MS

    def peer_up(self, peer: PeerId) -> None:
        """Whoever has few links compares at once; which of the two begins, both know, but a newcomer waits for nobody.
        Where links are many, their turn comes soon enough."""
        links = len(self._ctx.peers.links())
        first = key_of_peer_id(self._ctx.me) < key_of_peer_id(peer)
        if links <= NEWCOMER_LINKS or (first and links <= limits.CARD_LINKS_MAX):
            self._begin(peer)
        self._arm()

    def peer_down(self) -> None:
        self._arm()

    def tick(self) -> None:
        """Compare with the next link."""
        if self._ctx.now < self.deadline:
            return
        links = self._ctx.peers.links()
        if links:
            self._last = next((peer for peer in links if self._last is None or peer > self._last), links[0])
            self._begin(self._last)
        self.deadline = self._ctx.now + self._period()

    def on_reconcile(self, peer: PeerId, message: Reconcile, allowance: int) -> None:
        """Raises PeerError. `allowance`: bytes that the answer's ranges may have."""
        step = reconcile.answer(self._jobs.ids(), message.start, message.ranges, allowance)
        if step.ranges:
            self._ctx.send(peer, Reconcile(None, 0, step.start, step.ranges))
        self._learning.announce_to(peer, map(JobId, step.give))
        wanted = [id for id in step.want if not self._jobs.has_ended(JobId(id))]
        for id in step.want[: limits.MESSAGE_STATEMENTS_MAX]:
            if self._jobs.has_ended(JobId(id)):
                self._learning.tell_gone(peer, JobId(id))
        self._learning.want(peer, wanted)

    def _begin(self, peer: PeerId) -> None:
        self._ctx.send(peer, Reconcile(None, 0, b"", reconcile.opening(self._jobs.ids())))

    def _period(self) -> Millis:
        """Each link once every PEER_SYNC_MS."""
        return max(limits.RETRY_MIN_MS, limits.PEER_SYNC_MS // max(1, len(self._ctx.peers.links())))

    def _arm(self) -> None:
        self.deadline = min(self.deadline, self._ctx.now + self._period())
