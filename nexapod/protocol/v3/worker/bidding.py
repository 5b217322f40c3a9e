"""Asks the gates of jobs to admit this worker, until they have (docs/protocol-3.md, section 5, Bid)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nexapod.protocol.types import JobId, Millis, PeerId, StatementId
from nexapod.protocol.v3 import limits
from nexapod.protocol.v3.context import Context
from nexapod.protocol.v3.rules.lottery import turn
from nexapod.protocol.v3.wire.messages import Bid
from nexapod.protocol.v3.worker.prospects import Prospect

STANDING_MAX: Final = 32
"""Jobs that one worker bids for at a time."""


@dataclass(frozen=True, slots=True)
class _Standing:
    until: Millis
    """When it is to be said again."""
    gate: StatementId


def is_called(prospect: Prospect, ctx: Context) -> bool:
    """Whether this worker's turn has come."""
    return turn(prospect.job, ctx.me) < prospect.call


class Bidding:
    """The bids that stand."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._standing: dict[JobId, _Standing] = {}

    @property
    def deadline(self) -> Millis | None:
        """When a bid has to be repeated, if it is still of use."""
        return min((bid.until for bid in self._standing.values()), default=None)

    def bid(self, prospects: Iterable[Prospect]) -> None:
        """Bid for these, and for no others, best first: not admitted, called, and there is room for their tasks."""
        now = self._ctx.now
        wanted: dict[JobId, _Standing] = {}
        for prospect in prospects:
            if len(wanted) >= STANDING_MAX:
                break
            standing, gate = self._standing.get(prospect.job), prospect.state.gate().id
            if standing is None or standing.until <= now or standing.gate != gate:
                self._say(prospect)
                standing = _Standing(now + limits.BID_RENEW_MS, gate)
            wanted[prospect.job] = standing
        # One that is not repeated now has still been said: it must not be said again at once when there is room.
        kept = {job: bid for job, bid in self._standing.items() if bid.until > now and job not in wanted}
        self._standing = {**wanted, **dict(list(kept.items())[:STANDING_MAX])}

    def peer_up(self, peer: PeerId, prospects: Mapping[JobId, Prospect]) -> None:
        """A link is back: a gate's seat forgets the bid of a worker whose link breaks."""
        for job in [job for job in self._standing if peer in prospects[job].state.gate().holders]:
            del self._standing[job]

    def forget(self, job: JobId) -> None:
        """The job is over, or has admitted this worker."""
        self._standing.pop(job, None)

    def _say(self, prospect: Prospect) -> None:
        self._ctx.trace("bid_sent", job=prospect.job)
        prospect.tell(self._ctx, 0, Bid(prospect.job))
