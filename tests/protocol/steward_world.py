"""Stewards of one shard, with workers and a submitter played by hand, on a bus without delay; time is a number."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Fetch, Save, Send, Trace
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import BlobRef, Part, PeerId
from nexapod.protocol.records import Record
from nexapod.protocol.steward.shard.steward import Steward
from nexapod.protocol.types import Group, Grouping, Profile
from nexapod.protocol.wire import messages, statements
from nexapod.protocol.wire.messages import Claim, Collect, Decided, Deliver, Grant, Held, Message, Renew, Status
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner, verify
from tests.protocol.kit import JobKit, Result, make_kit

JOB_KINDS = ("succession", "renewal", "admission", "beacon", "placed", "cancel", "settlement", "fault", "adoption")


class WorldPeers:
    """One seat's view: who is linked to it, each its own group unless the world says otherwise."""

    def __init__(self, world: World, me: PeerId) -> None:
        self._world = world
        self._me = me

    def linked(self, peer: PeerId) -> bool:
        return peer == self._me or self._world.linked(self._me, peer)

    def links(self) -> tuple[PeerId, ...]:
        return ()

    def group(self, peer: PeerId, grouping: Grouping) -> Group | None:
        return self._world.seen_groups.get(peer, peer) if self.linked(peer) else None

    def met(self, peer: PeerId) -> int | None:
        return 0

    def lost(self, peer: PeerId) -> int | None:
        return None

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        return ()

    def profile(self, peer: PeerId) -> Profile | None:
        return None


@dataclass
class Seat:
    """A node that has nothing but one steward."""

    ctx: Context
    job: JobState
    steward: Steward
    records: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    traces: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    blobs: Callable[[BlobRef], bool] = lambda ref: True

    @property
    def evidence(self) -> ShardEvidence:
        return self.steward.evidence


class Worker:
    """Does what an honest worker does, as far as these tests need it."""

    def __init__(self, world: World, signer: HashSigner, room: int, took_ms: int) -> None:
        self.world = world
        self.signer = signer
        self.peer = signer.peer
        self.room = room
        self.took_ms = took_ms
        self.result: Callable[[int], Result | None] = lambda task: Result(task)
        self.reveals = True
        self.granted: dict[int, set[PeerId]] = {}
        self.running: dict[int, None] = {}
        self.done: dict[int, Statement] = {}
        self.shown: dict[int, Statement] = {}
        self.heard: list[Message] = []
        self.seq = 0
        self.claiming = False

    def claim(self) -> None:
        self.seq += 1
        self.claiming = False
        room = max(0, self.room - len(self.running))
        held = tuple(sorted({*self.running, *self.granted}))
        message = Claim(self.world.kit.job, 0, self.seq, room, held, tuple(sorted(self.done)), 0)
        self.to_seats(message)

    def to_seats(self, message: Message) -> None:
        for seat in self.world.holders():
            self.world.send(self.peer, seat, message)

    def receive(self, sender: PeerId, message: Message) -> None:
        self.heard.append(message)
        match message:
            case Grant(tasks=tasks):
                for task in tasks:
                    self._granted(task, sender)
            case Deliver(envelopes=envelopes):
                for envelope in envelopes:
                    self._told(statements.decode(envelope, verify))
            case Status(tasks=tasks):
                self._asked_again(sender, [task for task, standing in tasks if standing == "unknown"])

    def _asked_again(self, seat: PeerId, tasks: list[int]) -> None:
        again = [self.done[task] for task in tasks if task in self.done]
        again += [self.shown[task] for task in tasks if task in self.shown]
        if again:
            self.world.send(self.peer, seat, Deliver(tuple(statement.envelope for statement in again)))

    def _granted(self, task: int, sender: PeerId) -> None:
        votes = self.granted.setdefault(task, set())
        votes.add(sender)
        if len(votes) >= len(self.world.holders()) // 2 + 1 and task not in self.running and task not in self.done:
            self.running[task] = None
            self.world.at(self.took_ms, lambda: self.finish(task))

    def finish(self, task: int) -> None:
        result = self.result(task)
        if task not in self.running or result is None:
            return
        del self.running[task]
        commit = self.world.kit.commit(self.signer, result)
        self.done[task] = commit
        self.deliver(commit)
        if not self.claiming:
            self.claiming = True
            self.world.at(1, self.claim)

    def _told(self, statement: Statement) -> None:
        if statement.kind == "freeze" and len(statement.signatures) >= len(self.world.holders()) // 2 + 1:
            for item in statement.body.items:
                named = {statement.body.workers[place][0] for place, _ in item.entries}
                if self.peer in named and item.task not in self.shown and self.reveals:
                    self.show(item.task)
        if statement.kind == "verdict":
            for item in statement.body.items:
                self.running.pop(item.task, None)
                self.granted.pop(item.task, None)

    def show(self, task: int) -> None:
        result = self.result(task)
        assert result is not None
        self.shown[task] = self.world.kit.reveal(self.signer, self.done[task], result)
        self.deliver(self.shown[task])

    def deliver(self, *some: Statement) -> None:
        self.to_seats(Deliver(tuple(statement.envelope for statement in some)))

    def renew(self) -> None:
        held = [Held(task, "running", 10) for task in self.running]
        held += [Held(task, "revealed" if task in self.shown else "committed", 1000) for task in self.done]
        self.to_seats(Renew(self.world.kit.job, 0, tuple(held)))


class World:
    """`seats`: how many hold the shard; further members of the panel are spare."""

    def __init__(
        self,
        seats: int = 3,
        *,
        spare: int = 0,
        workers: int = 3,
        tasks: int = 4,
        agree: int = 2,
        max_replicas: int = 5,
        room: int = 4,
        took_ms: int = 1_000,
        kit: JobKit | None = None,
    ) -> None:
        self.kit = kit or make_kit(seats + spare, workers, tasks=tasks, agree=agree, max_replicas=max_replicas)
        self.now = 1_000
        self.queue: deque[tuple[PeerId, PeerId, Message]] = deque()
        self._alarms: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self.cut: set[frozenset[PeerId]] = set()
        self.away: set[PeerId] = set()
        self.drops: Callable[[PeerId, PeerId, Message], bool] = lambda sender, to, message: False
        self.seen_groups: dict[PeerId, Group] = {}
        self.counted: dict[str, int] = {}
        self.submitter_heard: list[Message] = []
        self.collected: list[Statement] = []
        self.fetched: list[tuple[PeerId, Part]] = []
        self._setup = [self.kit.placed(member) for member in self.kit.members]
        self._setup += self.kit.round() if self.kit.workers else []
        self.seats: dict[PeerId, Seat] = {}
        for member in self.kit.members:
            self.seats[member.peer] = self.start(member)
        self.workers = [Worker(self, signer, room, took_ms) for signer in self.kit.workers]

    def holders(self) -> tuple[PeerId, ...]:
        return next(seat for peer, seat in self.seats.items() if peer not in self.away).job.seats(0).holders

    def seat(self, place: int) -> Seat:
        """By the order of the holders."""
        return self.seats[self.holders()[place]]

    # --- one node --------------------------------------------------------------------------------------------------
    def start(self, member: HashSigner, records: dict[tuple[str, bytes], bytes] | None = None) -> Seat:
        ctx = Context(member, verify, "net", "peer", lambda n: bytes(n), WorldPeers(self, member.peer))
        ctx.now = self.now
        job = JobState(self.kit.job_statement, verify)
        for statement in self._setup:
            assert job.add(statement) in ("new", "proposal"), statement.kind
        seat = Seat(ctx, job, Steward(ctx, job, 0, lambda: True), dict(records or {}))
        if records is not None:
            seat.steward.resume()
        if records:
            seat.steward.restore([Record(kind, key, value) for (kind, key), value in sorted(records.items())])
        return seat

    def restart(self, peer: PeerId) -> Seat:
        """A crash, and a new process with what was saved."""
        old = self.seats[peer]
        self.queue = deque(entry for entry in self.queue if entry[1] != peer)
        self.seats[peer] = self.start(self.kit.signer(peer), old.records)
        self.effects(self.seats[peer])
        return self.seats[peer]

    def call(self, seat: Seat, what: Callable[[], None]) -> None:
        seat.ctx.now = self.now
        try:
            what()
        except PeerError as error:
            seat.errors.append(f"{error.rule}: {error.detail}")
        self.effects(seat)

    def effects(self, seat: Seat) -> None:
        while seat.ctx.effects or seat.ctx.to_self:
            effects, seat.ctx.effects = list(seat.ctx.effects), []
            for effect in effects:
                match effect:
                    case Save(record):
                        if record.value is None:
                            seat.records.pop((record.kind, record.key), None)
                        else:
                            seat.records[record.kind, record.key] = record.value
                    case Send(peer, frame, _):
                        self.send(seat.ctx.me, peer, messages.decode(frame))
                    case Fetch(part, _):
                        self.fetched.append((seat.ctx.me, part))
                        self._fetch(seat, part)
                    case Trace(name, facts):
                        seat.traces.append((name, dict(facts)))
            while seat.ctx.to_self:
                self._to_node(seat, seat.ctx.me, seat.ctx.to_self.popleft())

    def _fetch(self, seat: Seat, part: Part) -> None:
        if seat.blobs(part.blob):
            seat.ctx.blob_stored(part)
            self.at(1, lambda: self.call(seat, lambda: seat.steward.blob_ready(part)))
        else:
            self.at(1, lambda: self.call(seat, lambda: seat.steward.blob_failed(part)))

    def _to_node(self, seat: Seat, sender: PeerId, message: Message) -> None:
        if isinstance(message, Deliver):
            for envelope in message.envelopes:
                try:
                    self._statement(seat, statements.decode(envelope, verify), sender)
                except PeerError as error:
                    seat.errors.append(f"{error.rule}: {error.detail}")
        else:
            seat.steward.on_message(sender, message)

    def _statement(self, seat: Seat, statement: Statement, sender: PeerId) -> None:
        if statement.kind not in JOB_KINDS:
            seat.steward.on_statement(statement, sender)
            return
        added = seat.job.add(statement)
        if added == "new":
            seat.steward.job_changed()
        elif added == "proposal" and statement.kind == "adoption":
            seat.steward.on_statement(statement, sender)

    # --- the bus ---------------------------------------------------------------------------------------------------
    def linked(self, one: PeerId, other: PeerId) -> bool:
        return not ({one, other} & self.away) and frozenset((one, other)) not in self.cut

    def send(self, sender: PeerId, to: PeerId, message: Message) -> None:
        name = type(message).__name__
        self.counted[name] = self.counted.get(name, 0) + 1
        if self.linked(sender, to) and not self.drops(sender, to, message):
            self.queue.append((sender, to, message))

    def at(self, after_ms: int, what: Callable[[], None]) -> None:
        heapq.heappush(self._alarms, (self.now + after_ms, next(self._order), what))

    def flush(self) -> None:
        """Everything that was said is heard."""
        for _ in range(100_000):
            if not self.queue:
                return
            sender, to, message = self.queue.popleft()
            self._deliver(sender, to, message)
        raise AssertionError("they talk without end")

    def _deliver(self, sender: PeerId, to: PeerId, message: Message) -> None:
        if to in self.seats:
            seat = self.seats[to]
            self.call(seat, lambda: self._to_node(seat, sender, message))
        elif to == self.kit.submitter.peer:
            self.submitter_heard.append(message)
            if isinstance(message, Deliver):
                self.collected += [statements.decode(envelope, verify) for envelope in message.envelopes]
        for worker in self.workers:
            if worker.peer == to:
                worker.receive(sender, message)

    def run(self, for_ms: int, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass, at most so long. Whether `until` has become true."""
        end = self.now + for_ms
        for _ in range(200_000):
            self.flush()
            if until is not None and until():
                return True
            when = min(
                (t for t in (self._next_alarm(), *map(self._deadline, self.seats)) if t is not None), default=end
            )
            if when > end:
                self.now = end
                return until is not None and until()
            self.now = max(self.now, when)
            while self._alarms and self._alarms[0][0] <= self.now:
                heapq.heappop(self._alarms)[2]()
            for peer, seat in self.seats.items():
                deadline = seat.steward.deadline
                if peer not in self.away and deadline is not None and deadline <= self.now:
                    self.call(seat, seat.steward.tick)
                    after = seat.steward.deadline
                    assert after is None or after > self.now, f"a deadline that stays: {self.timers_of(seat)}"
        raise AssertionError("time does not pass")

    def timers_of(self, seat: Seat) -> object:
        return {name: value for name, value in vars(seat.steward).items() if name.startswith("_")}

    def _next_alarm(self) -> int | None:
        return self._alarms[0][0] if self._alarms else None

    def _deadline(self, peer: PeerId) -> int | None:
        return None if peer in self.away else self.seats[peer].steward.deadline

    # --- what happens ----------------------------------------------------------------------------------------------
    def claim_all(self) -> None:
        """All workers claim, again every 20 s, and renew what they have."""
        for worker in self.workers:
            if worker.peer not in self.away:
                worker.renew()
                worker.claim()
        self.at(limits.RENEW_MS, self.claim_all)

    def leave(self, peer: PeerId) -> None:
        """It is gone for everybody."""
        self.away.add(peer)
        for seat in self.seats.values():
            if seat.ctx.me not in self.away:
                self.call(seat, lambda s=seat: s.steward.peer_down(peer))  # type: ignore[misc]

    def come_back(self, peer: PeerId) -> None:
        self.away.discard(peer)
        for seat in self.seats.values():
            if seat.ctx.me not in self.away:
                self.call(seat, lambda s=seat: s.steward.peer_up(peer))  # type: ignore[misc]

    def tell_all(self, *some: Statement) -> None:
        """A statement of the job itself reaches every seat."""
        for seat in self.seats.values():
            for statement in some:
                self.call(seat, lambda s=seat, one=statement: self._statement(s, one, s.ctx.me))  # type: ignore[misc]

    def collect(self, since: int = 0) -> None:
        for peer in self.holders():
            self.send(self.kit.submitter.peer, peer, Collect(self.kit.job, 0, since))

    def decided(self, tasks: int | None = None, seats: int | None = None) -> bool:
        """Whether so many tasks (all) are decided at so many seats (all that are there)."""
        many = self.kit.spec.tasks if tasks is None else tasks
        there = [self.seats[peer] for peer in self.holders() if peer not in self.away]
        done = [seat for seat in there if seat.evidence.decided >= many]
        return len(done) >= (len(there) if seats is None else seats)

    def outcomes(self, seat: Seat) -> list[str | None]:
        found = [seat.evidence.verdict(task) for task in seat.evidence.tasks]
        return [None if one is None else one.outcome for one in found]

    @property
    def last_decided(self) -> Decided | None:
        said = [message for message in self.submitter_heard if isinstance(message, Decided)]
        return said[-1] if said else None
