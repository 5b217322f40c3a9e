"""Gathers the seats' grants of a task until a quorum has given it (docs/protocol.md, section 5, Lease).

A grant that lacks a quorum for QUORUM_MS is given back, so that the seats which gave it do not wait for a worker that
has not begun. Where that has happened more is waited for: the seats may be far away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.primitives import JobId, Millis, PeerId, TaskId
from nexapod.protocol.timers import Timers
from nexapod.protocol.wire import messages
from nexapod.protocol.wire.messages import Release
from nexapod.protocol.worker import resuming
from nexapod.protocol.worker.attempt import Claimed, GiveBack, Grant, Take
from nexapod.protocol.worker.attempts import Attempt, Attempts, Place
from nexapod.protocol.worker.prospects import Prospect

QUORUM_MS: Final = limits.COSIGN_MS
"""How long a first grant waits for those of other seats; twice as long after each time in a row in vain."""
MISSES_MAX: Final = 3


class Granting:
    """Bounded by CLAIM_TASKS_MAX tasks of a shard without a quorum. `welcome`: whether a first grant there is."""

    def __init__(
        self,
        ctx: Context,
        prospects: Mapping[JobId, Prospect],
        attempts: Attempts,
        welcome: Callable[[Place], bool],
    ) -> None:
        self._ctx = ctx
        self._prospects = prospects
        self._attempts = attempts
        self._welcome = welcome
        self._timers = Timers()
        self._misses: dict[Place, int] = {}

    @property
    def deadline(self) -> Millis | None:
        return self._timers.next

    def tick(self) -> tuple[list[Attempt], list[Attempt]]:
        """Attempts that a quorum has granted, now that no more answers are waited for, and those to give back."""
        taken: list[Attempt] = []
        failed: list[Attempt] = []
        while (task := self._timers.pop_due(self._ctx.now)) is not None:
            assert isinstance(task, TaskId)
            attempt = self._attempts.get(task)
            if attempt is not None and isinstance(attempt.state, Claimed):
                (taken if self._weigh(attempt, late=True) else failed).append(attempt)
        for place in dict.fromkeys(attempt.place for attempt in failed):
            self._misses[place] = min(self._misses.get(place, 0) + 1, MISSES_MAX)
        return taken, failed

    def on_grant(self, seat: PeerId, message: messages.Grant) -> list[Attempt]:
        """Attempts that a quorum has granted now. Raises PeerError."""
        prospect = self._prospects[message.job]
        seats = prospect.state.seats(message.shard)
        if seat not in seats.holders or message.epoch != seats.epoch:
            return []
        tasks = prospect.spec.shard_tasks(message.shard)
        given = resuming.handed_out(self._ctx, message.job, message.tasks, message.checkpoints)
        taken, refused = [], []
        for index in (index for index in message.tasks if index in tasks):
            task = TaskId(message.job, index)
            attempt = self._attempts.get(task) or self._begin(prospect, task)
            if attempt is None:
                refused.append(index)
            elif isinstance(attempt.state, Claimed):
                self._attempts.move(attempt, Grant(seat, given.get(index)))
                taken += [attempt] if self._weigh(attempt, late=False) else []
        if refused:
            release = Release(message.job, message.shard, tuple(refused), False, "")
            self._ctx.send(seat, release, prospect.state.addrs(seat))
        return taken

    def seats_changed(self, place: Place) -> list[Attempt]:
        """What the present seats have not granted will not get a quorum of them; what they have may have one now."""
        taken = []
        for attempt in self._attempts.at(place):
            if isinstance(attempt.state, Claimed) and self._weigh(attempt, late=False):
                taken.append(attempt)
        return taken

    def give_back(self, attempts: Iterable[Attempt], *, unable: bool = False, reason: str = "") -> None:
        """Give leases back: one Release for each shard. The attempts are dropped."""
        by_place: dict[Place, list[int]] = {}
        for attempt in attempts:
            by_place.setdefault(attempt.place, []).append(attempt.task.index)
            self._attempts.move(attempt, GiveBack())
            self._timers.set(attempt.task, None)
        for (job, shard), tasks in by_place.items():
            self._ctx.trace("tasks_released", job=job, shard=shard, tasks=tasks, unable=unable)
            release = Release(job, shard, tuple(sorted(tasks)), unable, reason)
            self._prospects[job].tell(self._ctx, shard, release)

    def forget(self, task: TaskId) -> None:
        self._timers.set(task, None)

    def forget_job(self, job: JobId) -> None:
        """The job is over, and so are its attempts."""
        for place in [place for place in self._misses if place[0] == job]:
            del self._misses[place]

    def _begin(self, prospect: Prospect, task: TaskId) -> Attempt | None:
        """The first grant of a task, if it was asked for."""
        place = (task.job, task.shard)
        pending = [attempt for attempt, _ in self._attempts.in_state(Claimed) if attempt.place == place]
        if not self._welcome(place) or len(pending) >= limits.CLAIM_TASKS_MAX:
            return None
        if task.index in self._attempts.over(place) or prospect.is_cooling(task.index, self._ctx.now):
            return None
        self._timers.set(task, self._ctx.now + (QUORUM_MS << self._misses.get(place, 0)))
        return self._attempts.add(task, Claimed(self._ctx.now))

    def _weigh(self, attempt: Attempt, *, late: bool) -> bool:
        """Whether a quorum has granted it. `late`: no more answers are waited for."""
        state = attempt.state
        assert isinstance(state, Claimed)
        seats = self._prospects[attempt.task.job].state.seats(attempt.task.shard)
        granted = [seat for seat in seats.holders if seat in state.granted_by]
        if len(granted) < seats.quorum:
            return False
        basis = resuming.agreed(state, seats.holders, seats.quorum)
        if basis is None and state.offered and not late and len(granted) < len(seats.holders):
            return False  # with one more answer there may be a checkpoint to resume
        self._attempts.move(attempt, Take(self._ctx.now, basis))
        self._misses.pop(attempt.place, None)
        self._timers.set(attempt.task, None)
        return True
