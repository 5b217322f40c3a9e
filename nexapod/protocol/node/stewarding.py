"""Whether this node would be a steward of a job: its owner's policy and the quota that it has offered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.node.sampling import author_of
from nexapod.protocol.primitives import Millis
from nexapod.protocol.rules import panel
from nexapod.protocol.rules.matching import Policy
from nexapod.protocol.types import Offer
from nexapod.protocol.wire import statements

if TYPE_CHECKING:
    from nexapod.protocol.node.hosting import Hosting


class Stewarding:
    """`hosting` is set once it is there: each knows of the other."""

    hosting: Hosting

    def __init__(self, ctx: Context, policy: Policy, *, enabled: bool) -> None:
        self._ctx = ctx
        self._policy = policy
        self._enabled = enabled

    def refusal(self, state: JobState) -> str:
        """Why not, in words; "": it would."""
        if state.submitter == self._ctx.me:
            return ""
        if self._ctx.me in state.placed():
            # It has given its word already: what has changed since concerns new jobs.
            return ""
        if not self._enabled:
            return "this peer is no steward"
        submitters = self._policy.submitters
        if submitters is not None and state.submitter not in submitters:
            return "its submitter is not among those that this peer serves"
        if self.hosting.served >= limits.STEWARDSHIPS_MAX:
            return f"this peer is a steward of {limits.STEWARDSHIPS_MAX} jobs already"
        return self._beyond_offer(state)

    def _beyond_offer(self, state: JobState) -> str:
        """By the offer that the panel names it for: what was promised then is kept.

        Counted before a single seat is worked out, which costs time and comes later: so with room for chance.
        """
        offer = self._promised(state)
        if offer is None:
            return ""
        if offer.until <= self._wall_clock():
            return "the offer for which it names this peer has run out"
        share = -(-state.spec.shards * limits.SEATS // max(limits.SEATS, len(state.members())))
        room = panel.holds(offer, state.spec)
        if share > 2 * room:
            return f"about {share} shards of it would be kept here, {room} fit what was offered"
        return ""

    def _wall_clock(self) -> Millis:
        """As this peer's own profile last said; 0: it has none."""
        profile = self._ctx.peers.profile(self._ctx.me)
        return 0 if profile is None else profile.stamp

    def _promised(self, state: JobState) -> Offer | None:
        """The offer in the job itself; None: it came into the panel by a renewal, whose proposers looked at it."""
        for envelope in state.spec.panel:
            unverified = statements.read(envelope)
            if author_of(unverified) == self._ctx.me:
                offer: Offer = statements.verified(unverified, self._ctx.verify).body
                return offer
        return None
