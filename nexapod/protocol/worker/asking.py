"""What this worker asks for when it has room: which gates to admit it, which seats to give it tasks.

Joins the arithmetic of slots.py and choosing.py with the bids and claims that stand. Looking goes through all jobs, so
it is done at most once in LOOK_MS however often tasks end; how often seats hear of it is claiming.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.primitives import JobId, Millis, PeerId
from nexapod.protocol.timers import Timers, earliest
from nexapod.protocol.types import Profile
from nexapod.protocol.worker import slots
from nexapod.protocol.worker.attempt import Claimed, Granted, Running
from nexapod.protocol.worker.attempts import Attempt, Attempts, Place
from nexapod.protocol.worker.bidding import Bidding
from nexapod.protocol.worker.choosing import Candidate, deal
from nexapod.protocol.worker.claiming import STANDING_MAX, Claiming
from nexapod.protocol.worker.executing import running_specs
from nexapod.protocol.worker.health import Health
from nexapod.protocol.worker.prospects import Prospect

CANDIDATES_MAX: Final = 32
"""Jobs among which the room is dealt at a time."""
PER_SUBMITTER_MAX: Final = 4
"""... of one submitter, so that one with many jobs leaves places to others."""
SHARDS_TRIED: Final = 64
LOOK_MS: Final = 20
JOBS_PER_LOOK_MS: Final = 16
"""A worker that knows of many jobs looks at them more rarely: a millisecond later for so many."""
_LOOK: Final = "look"
_LOADING: Final = (Claimed, Granted, Running)
"""The states of attempts that take something of the machine."""
STALE_MAX: Final = STANDING_MAX * 3 // 4
"""Claims that may stand without bringing anything, so that there is a place for others."""
WITHDRAWN_MS: Final = 60_000
"""For so long a shard is left alone whose claim had to make room for another."""


class Asking:
    """`may_ask`: whether this machine takes new tasks at all."""

    def __init__(
        self,
        ctx: Context,
        prospects: Mapping[JobId, Prospect],
        attempts: Attempts,
        health: Health,
        may_ask: Callable[[], bool],
    ) -> None:
        self._ctx = ctx
        self._prospects = prospects
        self._attempts = attempts
        self._health = health
        self._may_ask = may_ask
        self.profile: Profile | None = None
        self.bidding = Bidding(ctx)
        self.claiming = Claiming(ctx, prospects, attempts)
        self._wakes = Timers()
        self._looked_at: Millis | None = None

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        # Before it has looked again its claims may be out of date: they wait.
        claims = None if _LOOK in self._wakes else self.claiming.deadline
        return earliest(self._wakes.next, self.bidding.deadline, claims)

    def tick(self) -> None:
        due = self.bidding.deadline is not None and self.bidding.deadline <= self._ctx.now
        while self._wakes.pop_due(self._ctx.now) is not None:
            due = True
        if due or self.claiming.newly_stale():
            self._look()
        elif _LOOK not in self._wakes:
            self.claiming.tick()

    def look(self) -> None:
        """Something has changed: look again, now or when the time has come."""
        last = self._looked_at
        pause_ms = max(LOOK_MS, len(self._prospects) // JOBS_PER_LOOK_MS)
        due = self._ctx.now if last is None else max(self._ctx.now, last + pause_ms)
        self.wake(_LOOK, due)
        if due <= self._ctx.now:
            self.tick()

    def peer_up(self, peer: PeerId) -> None:
        """A link is back: a seat there has forgotten what was asked of it."""
        self.claiming.peer_up(peer)
        self.bidding.peer_up(peer, self._prospects)
        self.look()

    def peer_down(self, peer: PeerId) -> None:
        """A link is gone, or could not be made."""
        self.claiming.peer_down(peer)
        self.bidding.peer_down(peer, self._prospects)
        self.look()

    def forget_job(self, job: JobId) -> None:
        """The job is over."""
        self.claiming.forget_job(job)
        self.bidding.forget(job)

    def wake(self, name: object, when: Millis) -> None:
        """Look again then."""
        self._wakes.set(name, when)

    # --- what is held ----------------------------------------------------------------------------------------------
    def load_of(self, attempt: Attempt) -> slots.Load | None:
        """What an attempt takes of the machine; None: nothing, any more."""
        state, prospect = attempt.state, self._prospects[attempt.task.job]
        match state:
            case Claimed() | Granted():
                since = None
            case Running(vacated=False):
                since = state.since
            case _:
                return None
        return slots.Load(prospect.job, prospect.submitter, prospect.expected_ms, since)

    def loads(self, but: Sequence[Attempt] = ()) -> list[slots.Load]:
        others = {attempt.task for attempt in but}
        held = [attempt for state in _LOADING for attempt, _ in self._attempts.in_state(state)]
        found = [self.load_of(attempt) for attempt in held if attempt.task not in others]
        return [load for load in found if load is not None]

    def surplus(self, granted: Sequence[Attempt]) -> list[Attempt]:
        """Which of the tasks just granted have no place beside what is held: several shards may have answered at
        once."""
        if self.profile is None or not granted:
            return []
        room = slots.room_ms(self.profile, self.loads(but=granted), self._ctx.now)
        surplus: list[Attempt] = []
        for attempt in granted:
            load = self.load_of(attempt)
            if slots.is_surplus(self._prospects[attempt.task.job].expected_ms, room, self.profile.slots):
                surplus.append(attempt)
            elif load is not None:
                room -= slots.load_ms(load, self._ctx.now)
        return surplus

    # --- looking ---------------------------------------------------------------------------------------------------
    def _look(self) -> None:
        now = self._looked_at = self._ctx.now
        self._wakes.set(_LOOK, None)
        loads = self.loads() if self.profile is not None and self._may_ask() else []
        room = slots.room_ms(self.profile, loads, now) if self.profile is not None and self._may_ask() else 0
        if room <= 0:
            self.bidding.bid(())
            self.claiming.ask({}, busy=bool(loads), full=bool(loads))
            self._wakes.set("opens", slots.opens_at(loads, now))
            return
        loaded: dict[PeerId, Millis] = {}
        for load in loads:
            loaded[load.submitter] = loaded.get(load.submitter, 0) + slots.load_ms(load, now)
        workable = self._workable(loaded)
        admitted: list[Prospect] = []
        called: list[Prospect] = []
        for prospect in workable:
            if prospect.state.group(self._ctx.me) is not None:
                admitted.append(prospect)
            elif prospect.is_called:
                called.append(prospect)
        self.bidding.bid(called)
        stale = self._stale(workable, room)
        self.claiming.ask(self._claims(admitted, stale, loads, loaded, room), busy=bool(loads))

    def _workable(self, loaded: Mapping[PeerId, Millis]) -> list[Prospect]:
        """The jobs that this machine would work on, in the order in which it would."""
        found = [prospect for prospect in self._prospects.values() if prospect.fit.ok and not prospect.state.closed]
        if self._health.any_rests(self._ctx.now):
            found = [prospect for prospect in found if not self._rests(prospect)]
        found.sort(key=attrgetter("rank"))
        if loaded:
            found.sort(key=lambda prospect: loaded.get(prospect.submitter, 0))
        return found

    def _rests(self, prospect: Prospect) -> bool:
        until = self._health.rests_until(prospect.job, prospect.submitter)
        if until > self._ctx.now:
            self.wake(prospect.job, until)
        return until > self._ctx.now

    def _stale(self, workable: list[Prospect], room: Millis) -> dict[Place, int]:
        """Claims that have brought nothing, with as much as there is room for."""
        stale = self.claiming.stale()
        jobs = {prospect.job: prospect for prospect in workable} if stale else {}
        return {
            place: min(claimed, -(-room // slots.task_ms(jobs[place[0]].expected_ms)))
            for place, claimed in stale.items()
            if place[0] in jobs and self._most(jobs[place[0]], place[1]) > 0
        }

    def _claims(
        self,
        admitted: list[Prospect],
        standing: dict[Place, int],
        loads: list[slots.Load],
        loaded: Mapping[PeerId, Millis],
        room: Millis,
    ) -> dict[Place, int]:
        """Claims that have brought nothing stand on; the room is dealt among others."""
        dealt = deal(self._candidates(admitted, loads, standing), loaded, room)
        for job, shard in list(standing)[: max(0, len(standing) - STALE_MAX)] if dealt else ():
            del standing[job, shard]
            self._prospects[job].withdrawn[shard] = self._ctx.now + WITHDRAWN_MS
        dealt = dict(list(dealt.items())[: STANDING_MAX - len(standing)])
        return standing | dealt

    def _candidates(
        self, admitted: list[Prospect], loads: list[slots.Load], standing: Mapping[Place, int]
    ) -> list[Candidate]:
        found: list[Candidate] = []
        per_submitter: dict[PeerId, int] = {}
        for prospect in admitted:
            if len(found) >= CANDIDATES_MAX:
                break
            if per_submitter.get(prospect.submitter, 0) >= PER_SUBMITTER_MAX:
                continue
            candidate = self._candidate(prospect, loads, standing)
            if candidate is not None:
                found.append(candidate)
                per_submitter[prospect.submitter] = per_submitter.get(prospect.submitter, 0) + 1
        return found

    def _candidate(
        self, prospect: Prospect, loads: list[slots.Load], standing: Mapping[Place, int]
    ) -> Candidate | None:
        assert self.profile is not None
        at_once = slots.room_for(
            self.profile, prospect.spec, running_specs(self._prospects, self._attempts, but=prospect.job)
        )
        own = sum(slots.load_ms(load, self._ctx.now) for load in loads if load.job == prospect.job)
        room = min(at_once, self.profile.slots) * slots.AHEAD_MS - own
        if room <= 0:
            return None
        shards = tuple(self._shards(prospect, standing))
        task_ms = slots.task_ms(prospect.expected_ms)
        priority = prospect.spec.priority
        return Candidate(prospect.job, prospect.submitter, priority, task_ms, room, shards) if shards else None

    def _shards(self, prospect: Prospect, standing: Mapping[Place, int]) -> Iterator[tuple[int, int]]:
        """Where to ask for tasks of a job, and for how many at most: in shards whose draw this worker is in."""
        lottery, group = prospect.state.lottery, prospect.state.group(self._ctx.me)
        tried = found = 0
        for shard in lottery.shards_for(self._ctx.me):
            if (prospect.job, shard) in standing or prospect.withdrawn.get(shard, 0) > self._ctx.now:
                continue
            most = self._most(prospect, shard)
            if most <= 0:
                continue
            tried += 1
            if group in lottery.roster(shard):
                found += 1
                yield shard, most
            if tried >= SHARDS_TRIED or found >= STANDING_MAX:
                return

    def _most(self, prospect: Prospect, shard: int) -> int:
        """How many tasks of a shard this worker could still be given."""
        place, tasks = (prospect.job, shard), prospect.spec.shard_tasks(shard)
        gone = self._attempts.over(place) | prospect.judged.get(shard, set())
        gone = gone | set(prospect.cooling_in(tasks, self._ctx.now))
        held = {attempt.task.index for attempt in self._attempts.at(place)}
        return min(limits.CLAIM_TASKS_MAX, len(tasks) - len(gone | held))
