"""Tells the seats of shards how much room this worker has for their tasks, and no more often than they need to hear it
(docs/protocol.md, section 5, Claim)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.primitives import JobId, Millis, PeerId, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.wire.messages import Claim
from nexapod.protocol.worker import records, slots
from nexapod.protocol.worker.attempt import Committed, Revealed
from nexapod.protocol.worker.attempts import Attempts, Place
from nexapod.protocol.worker.prospects import Prospect

STANDING_MAX: Final = 16
"""Shards that one worker asks for work at a time."""
PATIENCE_MS: Final = limits.LEADER_MUTE_MS
"""A claim that has brought nothing for so long stands on, but its room is offered elsewhere too."""
ROOM_SHARE: Final = 4
"""By less than this part of all that it may hold a claim's room may be another than the seats know."""
SEQ_BLOCK: Final = 4_096
"""Numbers of claims that are reserved on disk at a time, so that they rise across restarts."""
SEQ_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Said:
    """What the seats were last told."""

    at: Millis
    room: int
    holding: frozenset[int]
    seats: StatementId
    given_back: int = 0
    """Tasks since: the seats take those to be none that it has room for."""

    def room_left(self, holding: frozenset[int], now: Millis) -> int:
        """The room that the seats take this worker to have, with what it holds now: what was granted since takes of
        it, what was committed gives it back."""
        if not self.room or self.at + limits.BID_TTL_MS <= now:
            return 0
        return max(0, self.room + len(self.holding) - self.given_back - len(holding))


def differs(room: int, known: int, holding: int, *, full: bool) -> bool:
    """Whether seats that take a worker to have room for `known` more tasks must hear that it has `room`: a little more
    or less of the same is not worth a message. `full`: it has none because of the short tasks that it holds: of those
    one more does no harm."""
    if not known or not (room or full):
        return room != known
    if full and known == 1:
        return False
    return ROOM_SHARE * abs(room - known) > known + holding


@dataclass(slots=True)
class Standing:
    """A claim. `since`: it has brought nothing since then."""

    room: int
    since: Millis
    said: Said | None = None
    queued: frozenset[PeerId] = frozenset()
    """Seats that hear it once their links come up."""
    is_stale: bool = False
    """That it is has been noticed."""
    is_full: bool = False
    """There is no room just now; as soon as there is, it is wanted again."""


class Claiming:
    """The claims that stand, bounded by STANDING_MAX."""

    def __init__(self, ctx: Context, prospects: Mapping[JobId, Prospect], attempts: Attempts) -> None:
        self._ctx = ctx
        self._prospects = prospects
        self._attempts = attempts
        self._standing: dict[Place, Standing] = {}
        self._busy = False
        self._seq = 0
        self._reserved = 0

    # --- what stands -----------------------------------------------------------------------------------------------
    def __contains__(self, place: Place) -> bool:
        return place in self._standing

    def __len__(self) -> int:
        return len(self._standing)

    def stale(self) -> dict[Place, int]:
        """Claims that have brought nothing for long, the oldest first, and their room."""
        old = [(s.since, place) for place, s in self._standing.items() if s.room and self._is_stale(s)]
        return {place: self._standing[place].room for _, place in sorted(old)}

    def newly_stale(self) -> bool:
        """Whether a claim has become stale since this was last asked."""
        fresh = [s for s in self._standing.values() if s.room and not s.is_stale and self._is_stale(s)]
        for standing in fresh:
            standing.is_stale = True
        return bool(fresh)

    def _is_stale(self, standing: Standing) -> bool:
        return standing.since + PATIENCE_MS <= self._ctx.now

    def brought(self, place: Place) -> None:
        """The seats granted something there."""
        standing = self._standing.get(place)
        if standing is not None:
            standing.since, standing.is_stale = self._ctx.now, False

    def gave_back(self, place: Place) -> None:
        """A task that the seats granted there."""
        standing = self._standing.get(place)
        if standing is not None and standing.said is not None:
            standing.said = replace(standing.said, given_back=standing.said.given_back + 1)

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        """When a claim has to be said, or becomes stale."""
        times = [self._due(place, standing) for place, standing in self._standing.items()]
        times += [s.since + PATIENCE_MS for s in self._standing.values() if s.room and not self._is_stale(s)]
        return min((when for when in times if when is not None), default=None)

    def tick(self) -> None:
        """Say what is due, and forget claims for no room that the seats know of."""
        for place, standing in list(self._standing.items()):
            due = self._due(place, standing)
            if (
                due is None
                and not standing.room
                and not (standing.said and standing.said.room and self._holding(place))
            ):
                del self._standing[place]
            elif due is not None and due <= self._ctx.now:
                self._say(place, standing)

    def _due(self, place: Place, standing: Standing) -> Millis | None:
        said, now = standing.said, self._ctx.now
        if said is None:
            return now if standing.room else None
        if standing.room and said.seats != self._seats(place):
            return now
        # What has left its slot gives its room back when it is committed, which is soon enough for whoever has more.
        holding = self._holding(place) - (self._attempts.vacated(place) if self._busy else frozenset())
        left = said.room_left(holding, now)
        full = standing.is_full and 0 < self._prospects[place[0]].expected_ms < slots.AHEAD_MS
        if differs(standing.room, left, len(holding), full=full):
            return said.at + limits.BATCH_MS
        return said.at + limits.BID_RENEW_MS if standing.room else None

    # --- changes ---------------------------------------------------------------------------------------------------
    def ask(self, wanted: Mapping[Place, int], *, busy: bool = False, full: bool = False) -> None:
        """Claim so much room in these shards and none in any other. `busy`: a task runs or waits; `full`: nowhere is
        anything wanted, for want of room."""
        self._busy = busy
        for place, standing in self._standing.items():
            standing.is_full = full
            self._set_room(standing, min(wanted.get(place, 0), limits.CLAIM_TASKS_MAX))
        for place, room in wanted.items():
            if place not in self._standing and room > 0:
                self._standing[place] = Standing(min(room, limits.CLAIM_TASKS_MAX), self._ctx.now)
        self.tick()

    def _set_room(self, standing: Standing, room: int) -> None:
        if room and not standing.room:
            standing.since, standing.is_stale = self._ctx.now, False
        standing.room = room

    def peer_up(self, peer: PeerId) -> None:
        """A link is back: a seat forgets the claim of a worker whose link breaks."""
        for (job, shard), standing in self._standing.items():
            if peer in standing.queued:
                standing.queued -= {peer}
            elif peer in self._prospects[job].state.seats(shard).holders:
                standing.said = None

    def peer_down(self, peer: PeerId) -> None:
        """What waited for its link is lost."""
        for standing in self._standing.values():
            standing.queued -= {peer}

    def forget_job(self, job: JobId) -> None:
        for place in [place for place in self._standing if place[0] == job]:
            del self._standing[place]

    # --- saying it -------------------------------------------------------------------------------------------------
    def _say(self, place: Place, standing: Standing) -> None:
        job, shard = place
        prospect, holding = self._prospects[job], self._holding(place)
        claim = Claim(
            job=job,
            shard=shard,
            seq=self._next_seq(),
            room=standing.room,
            holding=tuple(sorted(holding)),
            done=tuple(sorted(self._done(prospect, place))),
            expected_ms=prospect.expected_ms,
        )
        standing.said = Said(self._ctx.now, standing.room, holding, self._seats(place))
        self._ctx.trace("claim_sent", job=job, shard=shard, room=standing.room)
        standing.queued = prospect.tell(self._ctx, shard, claim)

    def _seats(self, place: Place) -> StatementId:
        return self._prospects[place[0]].state.seats(place[1]).id

    def _holding(self, place: Place) -> frozenset[int]:
        """Running work, not committed work: the next tasks are claimed while the last are judged."""
        return self._attempts.holding(place)

    def _done(self, prospect: Prospect, place: Place) -> frozenset[int]:
        bound = {a.task.index for a in self._attempts.at(place) if isinstance(a.state, (Committed, Revealed))}
        cooling = prospect.cooling_in(prospect.spec.shard_tasks(place[1]), self._ctx.now)
        return (self._attempts.over(place) | bound | frozenset(cooling)) - self._holding(place)

    # --- numbers that rise across restarts -------------------------------------------------------------------------
    def restore(self, record: Record) -> None:
        assert record.value is not None
        self._seq = self._reserved = int.from_bytes(record.value, "big")

    def _next_seq(self) -> int:
        self._seq = min(self._seq + 1, SEQ_MAX)
        if self._seq >= self._reserved:
            self._reserved = min(self._seq + SEQ_BLOCK, SEQ_MAX)
            self._ctx.save(Record(records.SEQ, b"", self._reserved.to_bytes(4, "big")))
        return self._seq
