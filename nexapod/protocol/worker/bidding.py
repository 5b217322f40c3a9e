"""Asks the gates of jobs to admit this worker, until they have (docs/protocol.md, section 5, Bid)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.primitives import JobId, Millis, PeerId, StatementId
from nexapod.protocol.timers import earliest
from nexapod.protocol.wire.messages import Bid
from nexapod.protocol.worker.prospects import Prospect

FRESH_MAX: Final = 32
"""Bids that a worker says within LEADER_MUTE_MS. Those that stand unanswered for longer keep nobody from his turn."""


@dataclass(frozen=True, slots=True)
class _Standing:
    said: Millis
    gate: StatementId
    seats_version: int
    """Of the job, when the gate was looked up."""
    queued: frozenset[PeerId] = frozenset()
    """Seats that hear it once their links come up."""

    @property
    def until(self) -> Millis:
        """When it is to be said again."""
        return self.said + limits.BID_RENEW_MS

    @property
    def fresh_until(self) -> Millis:
        return self.said + limits.LEADER_MUTE_MS


class Bidding:
    """The bids that stand."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._standing: dict[JobId, _Standing] = {}
        self._times: Counter[JobId] = Counter()
        """How often a bid was said in vain."""
        self._room_at: Millis | None = None
        """When the first of those bids is no longer fresh for which another job waits."""
        self._until: Millis | None = None
        """When the first bid has to be repeated; None: not known."""

    @property
    def deadline(self) -> Millis | None:
        """When a bid has to be repeated, if it is still of use, or when there is room for another."""
        if self._until is None and self._standing:
            self._until = min(bid.until for bid in self._standing.values())
        return earliest(self._until, self._room_at)

    def bid(self, prospects: Iterable[Prospect]) -> None:
        """Bid for these: not admitted, called, and there is room for their tasks. Those least often tried in vain go
        first, then those whose gate is there, then as they come: jobs that nobody admits to hold up no others."""
        now = self._ctx.now
        if self._until is None or self._until <= now:
            self._standing = {job: bid for job, bid in self._standing.items() if bid.until > now}
        mute_since = now - limits.LEADER_MUTE_MS
        fresh = [bid.fresh_until for bid in self._standing.values() if bid.said > mute_since]
        self._room_at = self._until = None
        for prospect in sorted((p for p in prospects if not self._stands(p)), key=self._turn):
            if len(fresh) >= FRESH_MAX:
                self._room_at = min(fresh)
                break
            said = self._standing[prospect.job] = self._say(prospect)
            fresh.append(said.fresh_until)

    def _stands(self, prospect: Prospect) -> bool:
        standing = self._standing.get(prospect.job)
        if standing is None:
            return False
        state = prospect.state
        return standing.seats_version == state.seats_version or standing.gate == state.gate().id

    def _turn(self, prospect: Prospect) -> tuple[int, bool]:
        gate = prospect.state.gate().holders
        return self._times[prospect.job], not any(self._ctx.peers.linked(seat) for seat in gate)

    def peer_up(self, peer: PeerId, prospects: Mapping[JobId, Prospect]) -> None:
        """A link is back: a gate's seat forgets the bid of a worker whose link breaks."""
        self._until = None
        for job in [job for job in self._standing if peer in prospects[job].state.gate().holders]:
            standing = self._standing[job]
            if peer in standing.queued:
                self._standing[job] = replace(standing, queued=standing.queued - {peer})
            else:
                del self._standing[job]

    def peer_down(self, peer: PeerId, prospects: Mapping[JobId, Prospect]) -> None:
        """What waited for its link is lost. Of a seat that was linked: it may have admitted this worker with its last
        words, and the other seats take that for told; whoever bids again is answered with it."""
        self._until = None
        for job, standing in list(self._standing.items()):
            if peer in standing.queued:
                self._standing[job] = replace(standing, queued=standing.queued - {peer})
            elif peer in prospects[job].state.gate().holders:
                del self._standing[job]

    def forget(self, job: JobId) -> None:
        """The job is over, or has admitted this worker."""
        self._until = None
        self._standing.pop(job, None)
        self._times.pop(job, None)

    def _say(self, prospect: Prospect) -> _Standing:
        self._times[prospect.job] += 1
        self._ctx.trace("bid_sent", job=prospect.job)
        queued = prospect.tell(self._ctx, 0, Bid(prospect.job))
        return _Standing(self._ctx.now, prospect.state.gate().id, prospect.state.seats_version, queued)
