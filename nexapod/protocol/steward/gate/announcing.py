"""Calling workers to a job: how many are asked to bid, and how often (docs/protocol.md, Announcing)."""

from __future__ import annotations

from collections.abc import Callable

from nexapod.protocol import limits
from nexapod.protocol.calling import CALL_ALL, card_of, first_call, groups_wanted
from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Millis
from nexapod.protocol.steward.gate.pledges import Pledges
from nexapod.protocol.wire.messages import Announce, Card


class Announcer:
    """Announces one job while too few operator groups have been admitted. `population`: peers that there may be;
    `open_places`: results that the job still lacks, about."""

    def __init__(
        self,
        ctx: Context,
        job: JobState,
        pledges: Pledges,
        population: Callable[[], int],
        open_places: Callable[[], int],
    ) -> None:
        self.due: Millis = ctx.now
        self._ctx = ctx
        self._job = job
        self._pledges = pledges
        self._population = population
        self._open_places = open_places
        self._call = 0
        self._pause_ms: Millis = limits.ANNOUNCE_FIRST_MS

    def heard(self, card: Card) -> None:
        """Somebody else's announcement: the next of this seat is passed on only with a larger number."""
        self._pledges.seq = max(self._pledges.seq, card.seq)

    def tick(self, leading: bool) -> None:
        """Announce, if it is time, this seat leads, and workers are wanted."""
        if self.due > self._ctx.now:
            return
        self.due = self._ctx.now + self._pause_ms
        wanted = groups_wanted(self._open_places(), self._job.spec.shards)
        if not leading or self._job.closed or not self._job.workable or self._present() >= wanted:
            return
        self._pause_ms = min(2 * self._pause_ms, limits.ANNOUNCE_MS)
        self.due = self._ctx.now + self._pause_ms
        known = max(self._population(), len(self._ctx.peers.links()))
        self._call = min(2 * self._call or first_call(wanted, known), CALL_ALL)
        announced = card_of(self._job, self._call, self._pledges.next_seq())
        self._ctx.send(self._ctx.me, Announce((announced,)))
        self._ctx.trace("job_announced", job=self._job.job, call=self._call, wanted=wanted)

    def _present(self) -> int:
        """Admitted groups with a link to this seat: those that have left answer nothing any more."""
        groups = {self._job.group(peer) for peer in (*self._ctx.peers.links(), self._ctx.me)}
        return len(groups - {None})
