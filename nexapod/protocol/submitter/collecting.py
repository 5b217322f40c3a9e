"""Asks the seats of unfinished shards for news, one seat of a shard at a time (docs/protocol.md, 7).

A seat that was asked pushes whatever it decides afterwards, so that a shard is asked again only to notice a seat that
is silent or keeps something back: ever less often while there is no news, and each time another seat. In each
COLLECT_MS a bounded number of shards is asked, however many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.timers import Timers
from nexapod.protocol.wire.messages import Collect, Decided, Inspect, View

if TYPE_CHECKING:
    from nexapod.protocol.job import JobState


@dataclass(slots=True)
class _Asked:
    """A shard that has been asked about."""

    seat: PeerId
    turn: int = 0
    awaited: bool = False
    """The seat has not answered yet."""
    unanswered: int = 0
    """Seats asked in a row that did not answer."""
    quiet_ms: Millis = limits.COLLECT_SILENT_MS
    running: int = 0
    since: dict[PeerId, int] = field(default_factory=dict)
    """By seat: its version of the last Decided, when all before it was of use."""


class Collecting:
    """The unfinished shards of a workable job."""

    def __init__(
        self, ctx: Context, job: JobState, finished: Callable[[int], bool], decided: Callable[[int], int]
    ) -> None:
        self.ctx = ctx
        self.job = job
        self._finished = finished
        self._decided = decided
        self._asked: dict[int, _Asked] = {}
        self._next = 0
        """The first shard that has never been asked about."""
        self._timers = Timers()
        self._told_by: dict[PeerId, dict[int, None]] = {}
        """By seat: the shards of which it was asked last, and pushes news."""
        self._lapsed: deque[dict[int, None]] = deque()
        """Shards whose seat's link is gone: it pushes nothing any more."""
        self._missed: dict[int, dict[PeerId, None]] = {}
        """Shards of which something came too early, and from whom."""
        self._window_at: Millis = ctx.now
        self._left = limits.COLLECTS_MAX

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        if not self.job.workable or self.job.closed:
            return None
        due = self.ctx.now if self._lapsed or self._next < self.job.spec.shards else self._timers.next
        if due is None or self._left:
            return due
        return max(due, self._window_at + limits.COLLECT_MS)

    def tick(self) -> None:
        if not self.job.workable or self.job.closed:
            return
        if self.ctx.now >= self._window_at + limits.COLLECT_MS:
            self._window_at, self._left = self.ctx.now, limits.COLLECTS_MAX
        while self._left and (shard := self._pop_due()) is not None:
            if self._finished(shard):
                self._drop(shard)
            else:
                self._left -= 1
                self._ask(shard)

    def _pop_due(self) -> int | None:
        """The next shard to ask about: first those that nobody pushes, then by time, then those never asked."""
        while self._lapsed:
            if self._lapsed[0]:
                return _pop_first(self._lapsed[0])
            self._lapsed.popleft()
        shard = self._timers.pop_due(self.ctx.now)
        if isinstance(shard, int):
            return shard
        if self._next < self.job.spec.shards:
            self._next += 1
            return self._next - 1
        return None

    # --- asking ----------------------------------------------------------------------------------------------------
    def _ask(self, shard: int) -> None:
        asked = self._asked.get(shard)
        if asked is None:
            asked = self._asked[shard] = _Asked(self.ctx.me)
        else:
            asked.turn += 1
        if asked.awaited:
            asked.unanswered += 1
        holders = self._in_turn(shard)
        self._told_by.get(asked.seat, {}).pop(shard, None)
        asked.seat, asked.awaited = holders[asked.turn % len(holders)], True
        self._told_by.setdefault(asked.seat, {})[shard] = None
        collect = Collect(self.job.job, shard, asked.since.get(asked.seat, 0))
        self.ctx.send(asked.seat, collect, self.job.addrs(asked.seat))
        if asked.running and not self._decided(shard):
            # Nothing is decided though somebody works on it: what went wrong is only in the seats' notes.
            self.ctx.send(asked.seat, Inspect(self.job.job, shard, ()), self.job.addrs(asked.seat))
        rounds = asked.unanswered // len(holders)
        self._timers.set(
            shard, self.ctx.now + min(limits.COLLECT_SILENT_MS << min(rounds, 8), limits.COLLECT_QUIET_MAX_MS)
        )

    def _in_turn(self, shard: int) -> tuple[PeerId, ...]:
        """The seats: this node first, if it has one; those without a link last."""
        holders = self.job.seats(shard).holders
        return tuple(sorted(holders, key=lambda peer: (peer != self.ctx.me, not self.ctx.peers.linked(peer))))

    @property
    def running(self) -> int:
        """Tasks with a lease, as the seats of unfinished shards last said."""
        return sum(asked.running for asked in self._asked.values())

    def on_decided(self, peer: PeerId, message: Decided) -> None:
        """A seat has answered, or pushed."""
        asked = self._asked.get(message.shard)
        if asked is None or peer not in self.job.seats(message.shard).holders:
            return
        news = message.version > asked.since.get(peer, 0)
        asked.since[peer] = message.version
        asked.running = message.running
        if message.decided > self._decided(message.shard) or peer in self._missed.get(message.shard, ()):
            # It says that it has told more than is here: from the beginning, next time.
            asked.since[peer] = 0
        if peer == asked.seat:
            asked.awaited, asked.unanswered = False, 0
        self._wait(message.shard, asked, news)

    def on_view(self, peer: PeerId, message: View) -> None:
        """A seat has told of all tasks of a shard."""
        asked = self._asked.get(message.shard)
        whole = len(message.tasks) == len(self.job.spec.shard_tasks(message.shard))
        if asked is not None and whole and peer in self.job.seats(message.shard).holders:
            asked.running = sum(1 for view in message.tasks if view.state in ("running", "committed", "frozen"))

    def _wait(self, shard: int, asked: _Asked, news: bool) -> None:
        if asked.awaited:
            return
        doubled = min(2 * asked.quiet_ms, limits.COLLECT_QUIET_MAX_MS)
        asked.quiet_ms = limits.COLLECT_SILENT_MS if news else doubled
        self._timers.set(shard, self.ctx.now + asked.quiet_ms)

    # --- what changes ----------------------------------------------------------------------------------------------
    def link_changed(self, peer: PeerId) -> None:
        """A seat whose link is gone, or new, pushes nothing: what it was asked is asked again."""
        shards = self._told_by.pop(peer, None)
        if shards:
            self._lapsed.append(shards)

    def missed(self, shard: int, peer: PeerId) -> None:
        """What a seat sent could not be understood yet: another statement, about the whole job, may be missing."""
        self._missed.setdefault(shard, {})[peer] = None

    def job_changed(self) -> None:
        """What could not be understood may be now."""
        for shard in list(islice(self._missed, limits.COLLECTS_MAX)):
            asked = self._asked.get(shard)
            for peer in self._missed.pop(shard):
                if asked is not None:
                    asked.since.pop(peer, None)
            self.reopened(shard)

    def reopened(self, shard: int) -> None:
        """Its seats are others, or what was decided does not count any more."""
        if shard < self._next:
            asked = self._asked.get(shard)
            if asked is not None:
                holders = self.job.seats(shard).holders
                asked.since = {peer: version for peer, version in asked.since.items() if peer in holders}
                asked.quiet_ms = limits.COLLECT_SILENT_MS
            self._timers.set(shard, self.ctx.now)

    def _drop(self, shard: int) -> None:
        self._missed.pop(shard, None)
        asked = self._asked.pop(shard, None)
        if asked is not None:
            self._told_by.get(asked.seat, {}).pop(shard, None)


def _pop_first(shards: dict[int, None]) -> int:
    shard = next(iter(shards))
    del shards[shard]
    return shard
