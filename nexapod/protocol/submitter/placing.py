"""Brings a job to the panel members that have a seat, until enough of them hold it (docs/protocol.md, 4).

Knows no clock but that of its own repetitions: who is replaced is replacing.py's matter. What has been counted is
counted for good; a member's `placed` costs the shards of that member, and never all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from nexapod.protocol import limits
from nexapod.protocol.calling import card_of, first_call, groups_wanted
from nexapod.protocol.context import Context
from nexapod.protocol.notices import JobPlaced
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.records import Record
from nexapod.protocol.submitter import records
from nexapod.protocol.submitter.seating import Moved
from nexapod.protocol.timers import Timers
from nexapod.protocol.wire.messages import Announce, Card

if TYPE_CHECKING:
    from nexapod.protocol.job import JobState


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a member was sent that has not answered yet."""

    since: Millis
    attempts: int

    @property
    def pause_ms(self) -> Millis:
        """Before it is sent again."""
        return min(limits.RETRY_MIN_MS << min(self.attempts, 16), limits.PLACE_RETRY_MAX_MS)


class Placing:
    """Who holds a job of this node's user."""

    def __init__(self, ctx: Context, job: JobState) -> None:
        self.ctx = ctx
        self.job = job
        self.placed = False
        """Every shard has enough seats that hold it: the submitter may leave."""
        self.short: dict[int, None] = {}
        """Shards that have not."""
        self.delivered: dict[PeerId, Delivered] = {}
        """By member, if it has a seat and has neither placed nor refused."""
        self._unseen = job.spec.shards
        self._shards_of: dict[PeerId, dict[int, None]] = {}
        self._awaited: dict[PeerId, dict[int, None]] = {}
        """Those of them that a member has not said to be ready."""
        self._first: dict[int, tuple[PeerId, ...]] = {}
        """Who held a shard by the job itself, where others do now: their `placed` speaks of it."""
        self._ready: dict[int, dict[PeerId, None]] = {}
        self._counted: dict[PeerId, None] = {}
        self._excused: dict[PeerId, None] = {}
        self._announced = False
        self._timers = Timers()

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        return self._timers.next

    def tick(self) -> None:
        """Deliver again what was not answered."""
        while (peer := self._timers.pop_due(self.ctx.now)) is not None:
            self._deliver(PeerId(str(peer)))

    def peer_up(self, peer: PeerId) -> None:
        """A link to a member is the best time to deliver."""
        if peer in self.delivered:
            self.delivered[peer] = Delivered(self.ctx.now, 0)
            self._deliver(peer)

    # --- who holds it ----------------------------------------------------------------------------------------------
    def moved(self, moved: Moved) -> None:
        """The seats of a shard are others, or known for the first time."""
        shard = moved.now.shard
        if moved.before is None:
            self._unseen -= 1
        elif moved.before.epoch == 0:
            self._first[shard] = moved.before.holders
        for peer in moved.before.holders if moved.before is not None else ():
            self._shards_of.get(peer, {}).pop(shard, None)
            self._awaited.get(peer, {}).pop(shard, None)
        for peer in moved.now.holders:
            self._shards_of.setdefault(peer, {})[shard] = None
            if peer not in self._ready.get(shard, ()):
                self._awaited.setdefault(peer, {})[shard] = None
            # Whoever holds the job already hears of a new seat from those who gave it, and says Ready.
            if peer not in self._counted and not self._holds(shard, peer):
                self._begin(peer)
        self._count(shard)
        if shard == 0 and moved.before is not None and self.job.workable:
            self._tell_gate()

    def job_changed(self) -> None:
        """Some member may have signed `placed`."""
        for peer in [peer for peer in self.job.placed() if peer not in self._counted]:
            self._counted[peer] = None
            self._end(peer)
            for shard in list(self._shards_of.get(peer, ())):
                self._count(shard)
        if self.job.workable and not self._announced:
            self._announced = True
            self._tell_gate()
            self.ctx.send(self.ctx.me, Announce((card(self.ctx, self.job),)))
        self.check()

    def on_ready(self, peer: PeerId, shard: int) -> None:
        """A seat by succession holds what its shard needs."""
        if peer in self.job.seats(shard).holders:
            self._ready.setdefault(shard, {})[peer] = None
            self._awaited.get(peer, {}).pop(shard, None)
            if peer in self._counted or not self._awaited.get(peer):
                self._end(peer)
            self._count(shard)
            self.check()

    def excuse(self, peer: PeerId) -> None:
        """A member has refused, or is passed over: nothing is delivered to it any more."""
        self._excused[peer] = None
        self._end(peer)

    def shards_of(self, peer: PeerId) -> Iterable[int]:
        """Those of which a member has a seat."""
        return self._shards_of.get(peer, {})

    @property
    def holders(self) -> tuple[PeerId, ...]:
        """Members with a seat that hold the job."""
        return tuple(sorted(peer for peer in self.job.placed() if self._shards_of.get(peer)))

    @property
    def shards_placed(self) -> int:
        """Shards that enough seats hold."""
        return self.job.spec.shards - self._unseen - len(self.short)

    @property
    def held_least(self) -> tuple[int, int]:
        """Of the shard that the fewest seats hold: how many do, and how many must; of many the first few count."""
        if self._unseen == self.job.spec.shards:
            return 0, min(limits.WITNESSES, len(self.job.members()))
        counts = [self._holding(shard) for shard in islice(self.short, limits.SHARDS_SWEPT)]
        enough = self.job.seats(0).witnesses
        return min(counts, key=lambda of_shard: of_shard[0] - of_shard[1], default=(enough, enough))

    def _holding(self, shard: int) -> tuple[int, int]:
        seats = self.job.seats(shard)
        return sum(1 for peer in seats.holders if self._holds(shard, peer)), seats.witnesses

    def _holds(self, shard: int, peer: PeerId) -> bool:
        if peer in self._ready.get(shard, ()):
            return True
        by_the_job = self._first.get(shard) or (
            self.job.seats(shard).holders if not self.job.seats(shard).epoch else ()
        )
        return peer in by_the_job and peer in self.job.placed()

    def _count(self, shard: int) -> None:
        held, needed = self._holding(shard)
        if held >= needed:
            self.short.pop(shard, None)
        else:
            self.short[shard] = None

    def check(self) -> None:
        """Say so when all shards are placed."""
        if self.placed or self.short or self._unseen:
            return
        self.placed = True
        self.ctx.save(Record(records.PLACED, bytes(self.job.job), b""))
        self.ctx.notify(JobPlaced(self.job.job, self.holders))

    # --- delivering ------------------------------------------------------------------------------------------------
    def _begin(self, peer: PeerId) -> None:
        if peer not in self.delivered and peer not in self._excused:
            self.delivered[peer] = Delivered(self.ctx.now, 0)
            self._deliver(peer)

    def _end(self, peer: PeerId) -> None:
        self.delivered.pop(peer, None)
        self._timers.set(peer, None)

    def _deliver(self, peer: PeerId) -> None:
        delivered = self.delivered.get(peer)
        if delivered is None or self.job.closed:
            return
        self.ctx.deliver(peer, self.job.statements(), self.job.addrs(peer))
        self._timers.set(peer, self.ctx.now + delivered.pause_ms)
        self.delivered[peer] = Delivered(delivered.since, delivered.attempts + 1)

    def _tell_gate(self) -> None:
        """Nobody works on a job before it has seen two `placed`: those who admit workers have them first."""
        placed: Mapping[PeerId, object] = self.job.placed()
        shown = [self.job.placed()[peer] for peer in sorted(placed)[: limits.WITNESSES]]
        for holder in self.job.gate().holders:
            self.ctx.deliver(holder, [self.job.statement, *shown], self.job.addrs(holder))


def card(ctx: Context, job: JobState) -> Card:
    """The first announcement of a job, which this node's links are told of."""
    wanted = groups_wanted(job.spec.tasks * job.spec.validate.agree, job.spec.shards)
    return card_of(job, first_call(wanted, len(ctx.peers.links()) + 1), 0)
