"""A worker that knows a job, and what its seats say to it. Its worker is `kit.workers[0]`; the others are rivals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from kit import OUTPUT, JobKit, Result, accepted, make_kit

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.events import Effect, Fetch, Run, Save, Send
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import JobId, Part, PeerId, TaskId
from nexapod.protocol.records import Record
from nexapod.protocol.rules.matching import Policy
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import Executor, Group, Grouping, Profile, Usage
from nexapod.protocol.wire import messages, statements
from nexapod.protocol.wire.messages import Deliver, Grant, Message, Status
from nexapod.protocol.wire.statements import Statement
from nexapod.protocol.worker.asking import LOOK_MS
from nexapod.protocol.worker.attempt import Committed, Revealed
from nexapod.protocol.worker.worker import Worker
from nexapod.sim.keys import HashSigner, verify

EVERYBODY = 1 << 16


class NoPeers:
    """A directory that knows nobody: addresses are those of the offers."""

    def linked(self, peer: PeerId) -> bool:
        return True

    def links(self) -> tuple[PeerId, ...]:
        return ()

    def group(self, peer: PeerId, grouping: Grouping) -> Group | None:
        return peer

    def met(self, peer: PeerId) -> int | None:
        return 0

    def lost(self, peer: PeerId) -> int | None:
        return None

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        return ()

    def profile(self, peer: PeerId) -> Profile | None:
        return None


def a_profile(slots: int = 1, **changes: object) -> Profile:
    base = Profile(
        network="net",
        seq=1,
        stamp=0,
        agent="nexapod/test",
        minor=0,
        os="linux",
        arch="x86_64",
        cpu_model="test",
        cpus=4,
        memory=8 << 30,
        disk_free=100 << 30,
        gpus=(),
        executors=(Executor("wasm", "1"),),
        images=(),
        registries=(),
        addrs=("/ip4/127.0.0.1/tcp/4001",),
        slots=slots,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def a_context(signer: HashSigner, now: int = 10_000) -> Context:
    numbers = itertools.count()
    ctx = Context(signer, verify, "net", "peer", lambda n: next(numbers).to_bytes(n, "big"), NoPeers())
    ctx.now = now
    return ctx


def state_of(kit: JobKit, *, admit: Sequence[HashSigner] | None = None) -> JobState:
    """The job with its panel in place, and these workers admitted (all of them, if not said)."""
    state = JobState(kit.job_statement, verify)
    for member in kit.members:
        state.add(kit.placed(member))
    if admit is None or admit:
        for statement in kit.round(admit):
            state.add(statement)
    return state


class Bench:
    """`tasks` and the like are those of kit.make_kit. The job's input is here from the start, unless `bare`."""

    def __init__(
        self,
        kit: JobKit | None = None,
        *,
        slots: int = 1,
        policy: Policy | None = None,
        admitted: bool = True,
        bare: bool = False,
        now: int = 10_000,
        call: int = EVERYBODY,
        **shape: int,
    ) -> None:
        self.kit = kit or make_kit(**shape)  # type: ignore[arg-type]
        self.me = self.kit.workers[0]
        self.ctx = a_context(self.me, now)
        self.state = state_of(self.kit, admit=None if admitted else [])
        self.worker = Worker(self.ctx, policy or Policy())
        self.profile = a_profile(slots)
        self.bare = bare
        self.saved: dict[tuple[str, bytes], Record] = {}
        self.sent: list[tuple[PeerId, Message]] = []
        self.effects: list[Effect] = []
        if call >= 0:
            self.worker.profile_changed(self.profile)
            self.worker.job_known(self.state, call)
            self.at(now + LOOK_MS)
        self.settle()

    # --- names -----------------------------------------------------------------------------------------------------
    @property
    def job(self) -> JobId:
        return self.kit.job

    @property
    def seats(self) -> list[HashSigner]:
        return self.kit.seats()

    def task(self, index: int = 0) -> TaskId:
        return TaskId(self.job, index)

    def states(self) -> dict[int, str]:
        return {report.task.index: report.state for report in self.worker.report()}

    # --- effects ---------------------------------------------------------------------------------------------------
    def settle(self) -> None:
        """Take the effects of what was done: records are kept, blobs come at once unless this bench is bare."""
        while self.ctx.effects:
            effects, self.ctx.effects = self.ctx.effects, []
            self.effects += effects
            for effect in effects:
                match effect:
                    case Save(record) if record.value is None:
                        self.saved.pop((record.kind, record.key), None)
                    case Save(record):
                        self.saved[record.kind, record.key] = record
                    case Send(peer, frame, _):
                        self.sent.append((peer, messages.decode(frame)))
                    case Fetch(part, _) if not self.bare:
                        self.arrive(part)

    def arrive(self, part: Part) -> None:
        self.ctx.blob_stored(part)
        self.worker.blob_ready(part)

    def take(self) -> list[Effect]:
        """What has been done since the last time."""
        self.settle()
        effects, self.effects, self.sent = self.effects, [], []
        return effects

    def said(self, seat: HashSigner, kind: type | None = None) -> list[Message]:
        """What a seat was told since the last time; nothing is taken away."""
        self.settle()
        return [m for peer, m in self.sent if peer == seat.peer and (kind is None or isinstance(m, kind))]

    def delivered(self, seat: HashSigner) -> list[Statement]:
        found = [e for m in self.said(seat, Deliver) if isinstance(m, Deliver) for e in m.envelopes]
        return [statements.decode(envelope, verify) for envelope in found]

    def kinds(self, seat: HashSigner) -> list[str]:
        return [statement.kind for statement in self.delivered(seat)]

    def begun(self) -> list[int]:
        """Tasks that have begun since the last time; takes all effects away."""
        return [effect.task.index for effect in self.take() if isinstance(effect, Run)]

    # --- what happens ----------------------------------------------------------------------------------------------
    def at(self, now: int) -> None:
        """Let the clock come to `now`, with a tick at each deadline on the way."""
        while (deadline := self.worker.deadline) is not None and deadline <= now:
            self.ctx.now = max(self.ctx.now, deadline)
            self.worker.tick()
            self.settle()
        self.ctx.now = now
        self.worker.tick()
        self.settle()

    def later(self, span_ms: int) -> None:
        self.at(self.ctx.now + span_ms)

    def hear(self, seat: HashSigner, message: Message) -> None:
        self.worker.on_message(seat.peer, message)
        self.settle()

    def grant(
        self, *tasks: int, seats: Sequence[HashSigner] | None = None, shard: int = 0, checkpoints: Sequence[bytes] = ()
    ) -> None:
        """By two seats, if not said otherwise."""
        for seat in seats if seats is not None else self.kit.quorum(shard):
            self.hear(seat, Grant(self.job, shard, 0, tasks, tuple(checkpoints)))

    def status(self, seat: HashSigner, standing: str, *tasks: int) -> None:
        self.hear(seat, Status(self.job, 0, tuple((task, standing) for task in tasks or (0,))))  # type: ignore[misc]

    def finish(self, *tasks: int, result: RunResult | None = None) -> None:
        for task in tasks or (0,):
            self.worker.finished(self.task(task), result or ok())
        self.settle()

    def commit_of(self, task: int = 0) -> Statement:
        attempt = self.worker.attempts.get(self.task(task))
        assert attempt is not None
        assert isinstance(attempt.state, (Committed, Revealed))
        return attempt.state.commit

    def committed(self, task: int = 0) -> Statement:
        """Granted, run and committed."""
        self.grant(task)
        self.finish(task)
        return self.commit_of(task)

    def freeze(
        self, *tasks: int, rivals: int = 1, signers: Sequence[HashSigner] | None = None, **more: int
    ) -> Statement:
        """This worker's commits to these tasks, and as many of others for each."""
        commits = {
            task: [self.commit_of(task), *(self.kit.commit(w, Result(task)) for w in self.kit.workers[1 : 1 + rivals])]
            for task in tasks or (0,)
        }
        return self.kit.freeze(commits, signers, **more)

    def show(self, statement: Statement) -> None:
        self.worker.on_statement(statement, self.seats[0].peer)
        self.settle()

    def revealed(self, task: int = 0) -> Statement:
        self.committed(task)
        freeze = self.freeze(task)
        self.show(freeze)
        return freeze

    def verdict(self, freeze: Statement, *tasks: int, signers: Sequence[HashSigner] | None = None) -> Statement:
        return self.kit.verdict({task: (freeze, accepted()) for task in tasks or (0,)}, signers)

    def change(self, *added: Statement) -> None:
        """Job-level statements have come."""
        for statement in added:
            assert self.state.add(statement) == "new"
        self.worker.job_changed(self.state)
        self.settle()

    def restarted(self, *, now: int = 50_000, known: bool = True) -> Bench:
        """A new process with what this one had saved."""
        self.settle()
        again = Bench(self.kit, now=now, call=-1)
        again.state = self.state
        again.saved = dict(self.saved)
        jobs = {self.job: self.state} if known else {}
        again.worker.restore([self.saved[key] for key in sorted(self.saved)], jobs)
        again.settle()
        return again

    def start(self) -> None:
        """What the driver says first."""
        self.worker.profile_changed(self.profile)
        self.worker.job_known(self.state, EVERYBODY)
        self.settle()


def ok(wall_ms: int = 10_000) -> RunResult:
    return RunResult("ok", 0, OUTPUT, Usage(wall_ms=wall_ms))


def unable(exit_status: int = 69, reason: str = "no disk", wall_ms: int = 0) -> RunResult:
    return RunResult("try-elsewhere", exit_status, usage=Usage(wall_ms=wall_ms), reason=reason)


assert limits.SEATS == 3
