"""A job as this worker sees it: what it knows of the job's tasks from its own work, and where its seats are."""

from __future__ import annotations

from dataclasses import dataclass, field

from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import JobId, Millis, PeerId
from nexapod.protocol.rules.matching import Decision
from nexapod.protocol.types import JobSpec
from nexapod.protocol.wire.messages import Message, Want

COOLING_DOUBLINGS: int = 4


@dataclass(slots=True)
class Prospect:
    """Mutable; worker.py keeps one for each open job."""

    state: JobState
    fit: Decision
    """Whether this machine satisfies the job and its owner accepts the submitter."""
    turn: int
    """When this worker is asked to bid."""
    call: int = 0
    """Workers whose turn is below it are asked to bid."""
    expected_ms: Millis = 0
    """What its tasks take here, of late; 0: none has ended yet."""
    cooling: dict[int, tuple[Millis, int]] = field(default_factory=dict)
    """Tasks that were given back: not again before, and how often so far."""
    judged: dict[int, set[int]] = field(default_factory=dict)
    """By shard: tasks that are decided, by counting verdicts or a quorum of the seats' word."""
    judged_by: dict[int, set[PeerId]] = field(default_factory=dict)
    """Tasks that fewer seats call decided, and which."""
    withdrawn: dict[int, Millis] = field(default_factory=dict)
    """Shards in which a claim brought nothing for long: not again before."""
    told: dict[PeerId, Millis] = field(default_factory=dict)
    """When a member of the panel that did not know the job was last given it."""

    asked: int = 0
    """How often another member of the panel was asked because no seat was there."""
    unreached: int = 0
    """How often in a row no seat had a link when something was said: the first time may be what dials them."""
    job: JobId = field(init=False)
    spec: JobSpec = field(init=False)
    submitter: PeerId = field(init=False)
    rank: tuple[int, JobId] = field(init=False)
    """Among jobs for whose submitters this machine does equally much."""

    def __post_init__(self) -> None:
        # A worker that knows of many jobs goes through all of them: what never changes is at hand.
        self.job, self.spec, self.submitter = self.state.job, self.state.spec, self.state.submitter
        self.rank = -self.spec.priority, self.job

    @property
    def is_called(self) -> bool:
        """Whether this worker's turn to bid has come."""
        return self.turn < self.call

    def tell(self, ctx: Context, shard: int, message: Message) -> frozenset[PeerId]:
        """Say something to each seat of a shard. Returns those that have to be dialled first: they hear it when their
        links come up."""
        holders = self.state.seats(shard).holders
        for seat in holders:
            ctx.send(seat, message, self.state.addrs(seat))
        unlinked = frozenset(seat for seat in holders if not ctx.peers.linked(seat))
        self.unreached = self.unreached + 1 if len(unlinked) == len(holders) else 0
        if self.unreached > 1:
            self._ask_another(ctx, holders)
        return unlinked

    def _ask_another(self, ctx: Context, holders: tuple[PeerId, ...]) -> None:
        """None of the seats is there: they may have been replaced, and another member of the panel knows by whom."""
        others = [peer for peer in self.state.members() if peer not in holders and peer != ctx.me]
        if others:
            member = others[self.asked % len(others)]
            self.asked += 1
            ctx.send(member, Want((self.state.statement.id,)), self.state.addrs(member))

    def sources(self, shard: int) -> tuple[PeerId, ...]:
        """Who has the inputs of a shard's tasks, in order of preference."""
        return tuple(dict.fromkeys((*self.state.seats(shard).holders, *sorted(self.state.placed()), self.submitter)))

    def ended(self, wall_ms: Millis) -> None:
        """A task has ended with a result after so long."""
        wall_ms = max(1, wall_ms)
        self.expected_ms = (3 * self.expected_ms + wall_ms) // 4 if self.expected_ms else wall_ms

    def cool(self, task: int, now: Millis, least_ms: Millis) -> None:
        """Not this one again for a while, each time for longer."""
        _, times = self.cooling.get(task, (0, 0))
        self.cooling[task] = (now + (least_ms << min(times, COOLING_DOUBLINGS)), times + 1)

    def is_cooling(self, task: int, now: Millis) -> bool:
        return self.cooling.get(task, (0, 0))[0] > now

    def cooling_in(self, tasks: range, now: Millis) -> list[int]:
        return sorted(task for task in self.cooling if task in tasks and self.is_cooling(task, now))

    def judge(self, shard: int, task: int) -> None:
        """A task is decided."""
        self.judged.setdefault(shard, set()).add(task)
        self.judged_by.pop(task, None)

    def seats_changed(self, shard: int) -> None:
        """What was decided counts only if the new seats adopt it: they say so when they are asked for tasks."""
        for task in [task for task in self.judged_by if task in self.spec.shard_tasks(shard)]:
            del self.judged_by[task]
        self.judged.pop(shard, None)

    def note_decided(self, shard: int, task: int, seat: PeerId) -> None:
        """A seat calls a task decided that this worker has no attempt of. One alone must not keep it from the rest."""
        if task in self.judged.get(shard, ()):
            return
        seats = self.state.seats(shard)
        said = self.judged_by.setdefault(task, set())
        said.add(seat)
        if len(said.intersection(seats.holders)) >= seats.quorum:
            self.judge(shard, task)
