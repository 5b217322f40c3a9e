"""Keeps the leases of this worker, and asks how its results stand (docs/protocol.md, section 5, Lease)."""

from __future__ import annotations

from collections.abc import Mapping

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.primitives import JobId, Millis
from nexapod.protocol.timers import Timers
from nexapod.protocol.wire.messages import Held, Renew, Stage
from nexapod.protocol.worker.attempt import Claimed, Committed, Dropped, Finished, Granted, Over, Revealed, Running
from nexapod.protocol.worker.attempts import Attempt, Attempts, Place
from nexapod.protocol.worker.prospects import Prospect
from nexapod.protocol.worker.resuming import Resuming

WHOLE: int = 1000


class Renewing:
    """A timer for each shard with something held."""

    def __init__(
        self, ctx: Context, prospects: Mapping[JobId, Prospect], attempts: Attempts, resuming: Resuming
    ) -> None:
        self._ctx = ctx
        self._prospects = prospects
        self._attempts = attempts
        self._resuming = resuming
        self._timers = Timers()
        self._due: dict[Place, Millis] = {}

    @property
    def deadline(self) -> Millis | None:
        return self._timers.next

    def tick(self) -> None:
        while (place := self._timers.pop_due(self._ctx.now)) is not None:
            del self._due[place]  # type: ignore[arg-type]
            self._renew(place)  # type: ignore[arg-type]

    def held(self, place: Place) -> None:
        """Something is held here now: renew in the usual time."""
        self._within(place, limits.RENEW_MS)

    def soon(self, place: Place) -> None:
        """Its seats have changed, or one of them is back."""
        self._within(place, limits.RETRY_MIN_MS)

    def forget_job(self, job: JobId) -> None:
        for place in [place for place in self._due if place[0] == job]:
            del self._due[place]
            self._timers.set(place, None)

    def _within(self, place: Place, span_ms: Millis) -> None:
        due = min(self._due.get(place, self._ctx.now + span_ms), self._ctx.now + span_ms)
        self._due[place] = due
        self._timers.set(place, due)

    def _renew(self, place: Place) -> None:
        job, shard = place
        attempts = self._attempts.at(place)
        held = [h for h in map(held_as, attempts) if h is not None]
        if not held or job not in self._prospects:
            return
        prospect = self._prospects[job]
        prospect.tell(self._ctx, shard, Renew(job, shard, tuple(held[: limits.SHARD_TASKS])))
        # A seat may have had no lease for this worker when it was first offered them, or have failed to fetch them.
        checkpoints = self._resuming.newest(attempts)
        for seat in prospect.state.seats(shard).holders if checkpoints else ():
            self._ctx.deliver(seat, checkpoints, prospect.state.addrs(seat))
        self.held(place)


def held_as(attempt: Attempt) -> Held | None:
    """An attempt as the seats are told of it; None: there is nothing to keep."""
    match attempt.state:
        case Granted() | Running():
            stage: Stage = "running"
            progress = attempt.progress
        case Finished():
            stage, progress = "running", WHOLE
        case Committed():
            stage, progress = "committed", WHOLE
        case Revealed():
            stage, progress = "revealed", WHOLE
        case Claimed() | Over() | Dropped():
            return None
    return Held(attempt.task.index, stage, progress)
