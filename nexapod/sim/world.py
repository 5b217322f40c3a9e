"""A deterministic world: an event heap, a virtual clock, machines, links, disks, and the faults that befall them.

It drives real nodes of protocol 3 as the daemon does, and keeps the same promises: all Save effects of a call are on
disk before any other effect of it happens; a crash comes between any two effects; what was not saved is lost. It
decides no policy and judges nothing: checkers.py watches.

One plan decides everything. No set is iterated, no hash() or id() used: a run is the same under any PYTHONHASHSEED.
"""

from __future__ import annotations

import hashlib
import heapq
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import (
    BlobFailed,
    BlobReady,
    CancelJob,
    Drain,
    Drop,
    Effect,
    Event,
    Fetch,
    OfferChanged,
    Pause,
    Penalise,
    ProfileChanged,
    RatifyJob,
    Received,
    Run,
    Save,
    Send,
    Stop,
    Submit,
    Tick,
    Trace,
)
from nexapod.protocol.node.archive import ARCHIVED
from nexapod.protocol.node.node import Node
from nexapod.protocol.notices import JobAccepted, JobPlaced, JobRefused, JobSettled, Notice, RatificationNeeded
from nexapod.protocol.primitives import BlobRef, File, JobId, Millis, PeerId, TaskId, blob_of
from nexapod.protocol.records import Record
from nexapod.protocol.rules.matching import Policy
from nexapod.protocol.types import Executor, JobSpec, Limits, Offer, Profile, TrustPolicy, Validate
from nexapod.protocol.types import Run as RunSpec
from nexapod.protocol.wire import messages, statements
from nexapod.sim.checkers import Checkers
from nexapod.sim.conduct import Conduct
from nexapod.sim.keys import HashSigner, verify
from nexapod.sim.liars import KINDS
from nexapod.sim.liars.base import Gang, Target
from nexapod.sim.links import Links
from nexapod.sim.machine import Machine
from nexapod.sim.plan import ClockJump, Crash, DiskFault, JobPlan, Order, Plan
from nexapod.sim.rng import Rng
from nexapod.sim.running import Running
from nexapod.sim.sizes import sizes_of
from nexapod.sim.truth import checkpoint_blob, short

NETWORK: Final = "sim"
MODULE: Final = blob_of(b"a wasm module")
NOWHERE: Final = blob_of(b"an input that nobody has")
UNFIT_MEMORY: Final = 1 << 40
RATIFIED_AFTER_MS: Final = 5_000
DOOMED_FOR_MS: Final = 2_000
SUBMIT_CHECK_MS: Final = 5_000
AFTERMATH_MS: Final = 20_000
"""How long the world goes on once every job is over: nothing may go wrong then either."""
SPREAD_KINDS: Final[tuple[tuple[statements.Kind, str], ...]] = (
    ("job", "Job"),
    ("settlement", "Closing"),
    ("cancel", "Closing"),
)
_NIL: Final = 0xC0
"""In msgpack."""
NodeFactory: TypeAlias = Callable[..., Node]


@dataclass(slots=True)
class Job:
    """A job of the plan, and what became of it."""

    index: int
    plan: JobPlan
    draft: JobSpec
    id: JobId | None = None
    """Known once its submitter has signed it: the panel is part of it."""
    panel: tuple[PeerId, ...] = ()
    """Its first panel, likewise."""
    submitted_at: Millis | None = None
    placed_at: Millis | None = None
    settled_at: Millis | None = None
    refused: str = ""
    cancelled: bool = False

    @property
    def over(self) -> bool:
        return self.settled_at is not None or self.cancelled or bool(self.refused)


@dataclass(slots=True)
class Stats:
    """What is counted."""

    events: int = 0
    sent: int = 0
    sent_bytes: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    bytes_by_kind: dict[str, int] = field(default_factory=dict)
    traces: dict[str, int] = field(default_factory=dict)
    notices: dict[str, int] = field(default_factory=dict)
    crashes: int = 0
    runs: int = 0
    honest_penalties: dict[str, int] = field(default_factory=dict)


class World:
    """One simulation. `factory` makes nodes (a test may break one); `tell` gets the lines of the trace."""

    def __init__(self, plan: Plan, *, factory: NodeFactory = Node, tell: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.now: Millis = 0
        self.rng = Rng(plan.seed).fork("world3", plan.scenario)
        self.stats = Stats()
        self._factory = factory
        self._tell = tell
        self._heap: list[tuple[Millis, int, Callable[[], None]]] = []
        self._order = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self.machines = [self._machine(i) for i in range(len(plan.peers))]
        self.by_peer = {machine.peer: machine for machine in self.machines}
        self.jobs = [self._job(i, j) for i, j in enumerate(plan.jobs)]
        self.specs: dict[JobId, Job] = {}
        self.checkers = Checkers(self)
        self.conduct = Conduct(self, self.checkers.violated)
        self.links = Links(self)
        self._running = Running(self)
        self._corrupt()
        self._schedule()

    # --- what the plan says ----------------------------------------------------------------------------------------
    def _machine(self, index: int) -> Machine:
        plan = self.plan.peers[index]
        rng = self.rng.fork("machine", index)
        low, high = self.plan.network.latency_ms
        addr = plan.addr or f"/ip4/10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}/tcp/4001"
        return Machine(index, plan, HashSigner(self.plan.seed, index), rng, addr, rng.between(low, high))

    def _corrupt(self) -> None:
        """Make liars of those that the plan names."""
        targets = tuple(Target(machine.peer, machine.addr) for machine in self.machines)
        gangs: dict[int, Gang] = {}
        for machine in self.machines:
            if machine.plan.liar is None:
                continue
            number = machine.plan.gang or -1 - machine.index
            gang = gangs.setdefault(number, Gang(number))
            gang.members.append(machine.signer)
            machine.liar = KINDS[machine.plan.liar](machine.signer, machine.rng.fork("liar"), targets, gang)

    def _job(self, index: int, plan: JobPlan) -> Job:
        env = [("FAILS", str(t)) for t in plan.failing] + [("DIFFERS", str(t)) for t in plan.nondeterministic]
        inputs = (File("gone", NOWHERE),) if plan.input_missing else ()
        draft = JobSpec(
            network=NETWORK,
            name=f"job-{index}",
            nonce=self.rng.fork("nonce", index).bytes(16),
            stamp=0,
            run=RunSpec(
                "wasm", module=MODULE, env=tuple(env[:64]), checkpoint="shared" if plan.checkpoints else "local"
            ),
            tasks=plan.tasks,
            inputs=inputs,
            limits=Limits(wall_ms=plan.wall_ms, memory=UNFIT_MEMORY if plan.unfit else 256 << 20),
            validate=Validate(agree=plan.agree, max_replicas=plan.max_replicas),
            policy=TrustPolicy(grouping=self.plan.network.grouping),
        )
        return Job(index, plan, draft)

    def _schedule(self) -> None:
        plan = self.plan
        for machine in self.machines:
            at = machine.plan.joins_at + machine.rng.between(0, 300)
            self.at(at, lambda machine=machine: self._boot(machine))  # type: ignore[misc]
        for link in self.links.overlay():
            start = max(plan.peers[link.one].joins_at, plan.peers[link.other].joins_at)
            self.at(start + self.rng.between(300, 900), lambda link=link: self.links.mend(link))  # type: ignore[misc]
        for job in self.jobs:
            self.at(job.plan.at, lambda job=job: self._submit(job))  # type: ignore[misc]
        for crash in plan.crashes:
            self.at(crash.at, lambda crash=crash: self._doom(crash))  # type: ignore[misc]
        for pause in plan.pauses:
            self.at(pause.at, lambda pause=pause: self._sleep(pause.peer, pause.for_ms))  # type: ignore[misc]
        for fault in plan.disk_faults:
            self.at(fault.at, lambda fault=fault: self._disk_fault(fault))  # type: ignore[misc]
        for jump in plan.clock_jumps:
            self.at(jump.at, lambda jump=jump: self._jump(jump))  # type: ignore[misc]
        for order in plan.orders:
            self.at(order.at, lambda order=order: self._obey(order))  # type: ignore[misc]
        for cut in plan.partitions:
            self.at(cut.at, lambda cut=cut: self._part(cut.sides))  # type: ignore[misc]
            self.at(cut.until, lambda: self._part(frozenset()))
        for clog in plan.clogs:
            pair = (clog.sender, clog.receiver)
            self.at(clog.at, lambda pair=pair, clog=clog: self.links.clogged.__setitem__(pair, clog.until))  # type: ignore[misc]

    # --- the heap --------------------------------------------------------------------------------------------------
    def at(self, when: Millis, act: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, act))

    def run(self) -> None:
        """To the end: every job over and the aftermath too, or out of time, or too much gone wrong."""
        with sizes_of(self.plan.shard_tasks, self.plan.caretaker_ms):
            self._run()

    def _run(self) -> None:
        last = max((j.plan.at for j in self.jobs), default=0)
        time_is_up = max(self.plan.heal_at, last) + self.plan.settle_within_ms
        end = time_is_up
        finished = False
        while self._heap and self._heap[0][0] <= end and not self.checkers.hopeless:
            self.now, _, act = heapq.heappop(self._heap)
            act()
            if not finished and self.now >= self.plan.heal_at and all(self._is_over(job) for job in self.jobs):
                finished = True
                end = min(time_is_up, self.now + AFTERMATH_MS)
        self.checkers.at_end()

    def run_until(self, end: Millis) -> None:
        """Go on for so long, whatever is over."""
        with sizes_of(self.plan.shard_tasks, self.plan.caretaker_ms):
            while self._heap and self._heap[0][0] <= end:
                self.now, _, act = heapq.heappop(self._heap)
                act()
        self.now = max(self.now, end)

    def _is_over(self, job: Job) -> bool:
        if job.over or job.plan.input_missing or (job.plan.unfit and job.placed_at is not None):
            return True
        return self.machines[job.plan.submitter].gone and (job.placed_at is None or self.checkers.seats_finished(job))

    @property
    def digest(self) -> str:
        """Of everything that happened, in order."""
        return self._trace.hexdigest()

    # --- machines --------------------------------------------------------------------------------------------------
    def _boot(self, machine: Machine) -> None:
        if machine.gone or machine.node is not None:
            return
        machine.boot += 1
        # A monotonic clock begins anywhere, and after a restart it may show less than before.
        machine.clock_base = machine.rng.between(0, 10_000_000)
        machine.clock_since = self.now
        machine.tick_at = None
        machine.paused = machine.draining = False
        machine.waiting.clear()
        entropy = machine.rng.fork("entropy", machine.boot)
        records = [Record(kind, key, value) for (kind, key), value in machine.disk.items() if kind not in ARCHIVED]
        try:
            machine.node = self._factory(
                machine.signer,
                verify,
                NETWORK,
                self.plan.network.grouping,
                entropy.bytes,
                policy=Policy(work=machine.plan.works),
                records=records,
                archive=machine.read,
                now=machine.local(self.now),
            )
        except Exception:
            self.checkers.violated("restart-raises", f"peer {machine.index}: {traceback.format_exc(limit=-4)}")
            machine.gone = True
            return
        self.say(machine, f"boots ({len(records)} records)")
        for job in machine.node.report().submissions:
            # It may have died after it had saved a job and before it could say so.
            self._accepted(machine, job)
        self.enter(machine, ProfileChanged(self._profile(machine)))
        if machine.plan.steward:
            self.enter(machine, OfferChanged(self._offer(machine)))

    def _profile(self, machine: Machine) -> Profile:
        liar = machine.liar
        return Profile(
            network=NETWORK,
            seq=0,
            stamp=self.now,
            agent="sim",
            minor=0,
            os="linux",
            arch="x86_64",
            cpu_model="virtual",
            cpus=64 if liar is not None and liar.slots is not None else 4,
            memory=(8 if liar is None or liar.slots is None else 64) << 30,
            disk_free=1 << 40,
            gpus=(),
            executors=(Executor("wasm", "1"),),
            images=(),
            registries=(),
            addrs=(machine.addr,),
            slots=liar.slots if liar is not None and liar.slots is not None else machine.plan.slots,
        )

    def _offer(self, machine: Machine) -> Offer:
        return Offer(NETWORK, 0, (machine.addr,), 1 << 40, 10_000, 1 << 50)

    def _doom(self, crash: Crash) -> None:
        """It dies in the middle of what it does next, or soon if it does nothing."""
        machine = self.machines[crash.peer]
        if machine.node is None or machine.doomed is not None:
            return
        machine.doomed = crash
        boot = machine.boot
        at = self.now + DOOMED_FOR_MS
        self.at(at, lambda: self._crash(machine) if machine.doomed is crash and machine.boot == boot else None)

    def _crash(self, machine: Machine) -> None:
        crash, machine.doomed = machine.doomed, None
        if machine.node is None or crash is None:
            return
        self.say(machine, "crashes")
        self.stats.crashes += 1
        self.links.break_all(machine, quickly=True)
        machine.node = None
        machine.boot += 1
        machine.running.clear()
        machine.vacated.clear()
        machine.waiting.clear()
        machine.busy_until = 0
        if crash.down_ms is None:
            machine.gone = True
        else:
            self.at(self.now + crash.down_ms, lambda: self._boot(machine))

    def _sleep(self, index: int, for_ms: Millis) -> None:
        machine = self.machines[index]
        machine.asleep_until = max(machine.asleep_until, self.now + for_ms)
        self.say(machine, f"sleeps for {for_ms} ms")
        if for_ms > 8_000:
            self.links.break_all(machine, quickly=False)

    def _disk_fault(self, fault: DiskFault) -> None:
        machine = self.machines[fault.peer]
        self.say(machine, f"has a disk that is {'slow' if fault.slow_ms else 'full'}")
        if fault.slow_ms:
            machine.disk_slow_until, machine.disk_slow_ms = fault.until, fault.slow_ms
        else:
            machine.disk_full_until = fault.until

    def _jump(self, jump: ClockJump) -> None:
        machine = self.machines[jump.peer]
        machine.clock_base += jump.by_ms
        self.say(machine, f"clock jumps by {jump.by_ms} ms")
        if machine.node is not None:
            self.enter(machine, Tick())

    def _obey(self, order: Order) -> None:
        event = Drain() if order.what == "drain" else Pause(order.what == "pause")
        self.enter(self.machines[order.peer], event)

    def _part(self, sides: frozenset[int]) -> None:
        for machine in self.machines:
            machine.side = 1 if machine.index in sides else 0
        self.links.break_sides()

    # --- a node's turn -----------------------------------------------------------------------------------------------
    def later(self, machine: Machine, delay: Millis, event: Event, holds: Callable[[], bool] | None = None) -> None:
        """An event for the process that runs there now; void if it has died by then."""
        boot = machine.boot

        def happen() -> None:
            if machine.boot == boot and machine.node is not None and (holds is None or holds()):
                self.enter(machine, event)

        self.at(self.now + delay, happen)

    def enter(self, machine: Machine, event: Event) -> None:
        """Let a node handle an event, and do what it wants done; later, if its machine sleeps or its disk is slow."""
        node = machine.node
        if node is None:
            return
        free_at = max(machine.asleep_until, machine.busy_until)
        if free_at > self.now:
            machine.waiting.append(lambda: self.enter(machine, event))
            if len(machine.waiting) == 1:
                self._wake_at(machine, free_at)
            return
        self.stats.events += 1
        machine.paused = event.paused if isinstance(event, Pause) else machine.paused
        machine.draining = machine.draining or isinstance(event, Drain)
        if isinstance(event, Received) and machine.honest:
            self.conduct.received(machine, event.peer, event.frame)
        liar = machine.liar
        own = liar.hears(node, event, self.now) if liar is not None else []
        effects: list[Effect] = []
        if liar is None or not liar.swallows(node, event):
            effects = self._handle(machine, node, event)
        if liar is not None:
            effects = [*own, *liar.speaks(node, effects)]
        self._record(machine, event)
        self.checkers.after(machine, event, effects)
        self._do_all(machine, effects)
        if machine.node is node:
            self._arm(machine)

    def _handle(self, machine: Machine, node: Node, event: Event) -> list[Effect]:
        try:
            return node.handle(event, machine.local(self.now))
        except LocalError as error:
            self.say(machine, f"refuses: {error}")
            if isinstance(event, Submit):
                self._refused(event, str(error))
        except Exception:
            what = f"peer {machine.index} on {event!r:.200}: {traceback.format_exc(limit=-4)}"
            self.checkers.violated("handle-raises", what)
        return []

    def _wake_at(self, machine: Machine, when: Millis) -> None:
        boot = machine.boot

        def wake() -> None:
            if machine.boot != boot:
                return
            waiting = list(machine.waiting)
            machine.waiting.clear()
            for act in waiting:
                act()

        self.at(when, wake)

    def _arm(self, machine: Machine) -> None:
        assert machine.node is not None
        deadline = machine.node.deadline
        if deadline is None:
            return
        when = max(machine.when(deadline), self.now + 1)
        if machine.tick_at is not None and self.now < machine.tick_at <= when:
            return
        machine.tick_at = when
        boot = machine.boot

        def tick() -> None:
            if machine.boot == boot and machine.tick_at == when:
                machine.tick_at = None
                self.enter(machine, Tick())

        self.at(when, tick)

    def _do_all(self, machine: Machine, effects: list[Effect]) -> None:
        saves = any(isinstance(effect, Save) for effect in effects)
        if saves and machine.disk_full_until > self.now:
            self._hold_up(machine, effects, machine.disk_full_until)
        elif saves and machine.disk_slow_until > self.now:
            self._hold_up(machine, effects, self.now + machine.disk_slow_ms)
        else:
            self._carry_out(machine, effects)

    def _hold_up(self, machine: Machine, effects: list[Effect], until: Millis) -> None:
        """Nothing is said before it is saved: the whole machine waits for its disk."""
        machine.busy_until = until
        boot = machine.boot

        def go_on() -> None:
            if machine.boot == boot and machine.node is not None:
                self._carry_out(machine, effects)
                self._arm(machine)

        self.at(until, go_on)

    def _carry_out(self, machine: Machine, effects: list[Effect]) -> None:
        rest = [effect for effect in effects if not isinstance(effect, Save)]
        if machine.doomed is None:
            self._save(machine, effects)
            for effect in rest:
                self._do(machine, effect)
            return
        done = machine.rng.below(len(rest) + 2) - 1
        if done >= 0:
            self._save(machine, effects)
            for effect in rest[:done]:
                self._do(machine, effect)
        self._crash(machine)

    def _save(self, machine: Machine, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Save):
                record = effect.record
                self._trace.update(b"save" + record.kind.encode() + record.key + (record.value or b""))
                if record.value is None:
                    removed = machine.disk.pop((record.kind, record.key), None)
                    machine.removed.append(removed or b"")
                else:
                    machine.disk[record.kind, record.key] = record.value

    def _do(self, machine: Machine, effect: Effect) -> None:
        match effect:
            case Send(peer, frame, addrs):
                self._send(machine, peer, frame, addrs)
            case Run():
                self.stats.runs += 1
                self._running.start(machine, effect)
            case Stop(task):
                machine.running.pop(task, None)
                machine.vacated.discard(task)
                machine.kept.pop(task, None)
            case Fetch():
                self._fetch(machine, effect)
            case Drop(ref):
                machine.blobs.discard(ref)
            case Penalise():
                self._penalise(machine, effect)
            case Trace(name, facts):
                self.stats.traces[name] = self.stats.traces.get(name, 0) + 1
                if self._tell is not None:
                    self.say(machine, f"{name} " + " ".join(f"{k}={_shown(v)}" for k, v in facts.items()))
            case Save():
                pass
            case _:
                self._on_notice(machine, effect)

    def _send(self, machine: Machine, peer: PeerId, frame: bytes, addrs: tuple[str, ...]) -> None:
        stats = self.stats
        stats.sent += 1
        stats.sent_bytes += len(frame)
        kind = _kind(frame)
        stats.by_kind[kind] = stats.by_kind.get(kind, 0) + 1
        stats.bytes_by_kind[kind] = stats.bytes_by_kind.get(kind, 0) + len(frame)
        self._trace.update(b"send%d" % self.now + peer.encode() + frame)
        self.conduct.sent(machine, peer, frame)
        other = self.by_peer.get(peer)
        if other is not None:
            self.links.send(machine, other, frame, addrs)

    def _penalise(self, machine: Machine, effect: Penalise) -> None:
        other = self.by_peer.get(effect.peer)
        if other is not None and effect.ban_ms > 0:
            self.say(machine, f"bans peer {other.index}: {effect.rule}")
            machine.banned[effect.peer] = self.now + effect.ban_ms
            self.links.break_between(machine, other, quickly=True)

    # --- blobs -----------------------------------------------------------------------------------------------------
    def keeps(self, machine: Machine, task: TaskId) -> BlobRef:
        """What a machine puts into a task's checkpoint folder half-way."""
        return machine.liar.keeps(task) if machine.liar is not None else checkpoint_blob(task)

    def holder(self, machine: Machine, ref: BlobRef, sources: tuple[PeerId, ...]) -> Machine | None:
        for peer in sources:
            other = self.by_peer.get(peer)
            if other is None or ref not in other.blobs:
                continue
            if self.links.reaches(other, machine) and self.links.reaches(machine, other):
                return other
        return None

    def _fetch(self, machine: Machine, effect: Fetch) -> None:
        ref = effect.part.blob
        if ref in machine.blobs:
            self.later(machine, 1, BlobReady(effect.part))
            return
        boot = machine.boot

        def arrive() -> None:
            if machine.boot != boot or machine.node is None:
                return
            if ref in machine.blobs or self.holder(machine, ref, effect.sources) is not None:
                machine.blobs.add(ref)
                self.enter(machine, BlobReady(effect.part))
            else:
                self.enter(machine, BlobFailed(effect.part))

        quick = self.holder(machine, ref, effect.sources) is not None
        self.at(self.now + (self.rng.between(5, 60) if quick else self.rng.between(200, 3_000)), arrive)

    # --- jobs ------------------------------------------------------------------------------------------------------
    def _submit(self, job: Job) -> None:
        """The user submits, and looks after a while whether it was kept: a crash may have come before the commit."""
        machine = self.machines[job.plan.submitter]
        if machine.gone or job.over or self._kept_by_submitter(machine, job):
            return
        if job.id is not None:
            self.checkers.violated("job-forgotten", f"{job.draft.name}: its submitter had accepted it")
        if machine.node is not None and max(machine.asleep_until, machine.busy_until) <= self.now:
            machine.blobs.update(ref for ref in job.draft.blobs if ref != NOWHERE)
            job.submitted_at = self.now
            self.enter(machine, Submit(job.draft, accept_unknown=True))
        self.at(self.now + SUBMIT_CHECK_MS, lambda: self._submit(job))

    def _kept_by_submitter(self, machine: Machine, job: Job) -> bool:
        if job.id is None:
            return False
        wanted = bytes(job.id)
        return any(wanted in key for _, key in machine.disk)

    def _refused(self, event: Submit, reason: str) -> None:
        for job in self.jobs:
            if job.draft is event.spec:
                self.checkers.refused(job, reason)

    def _on_notice(self, machine: Machine, notice: Notice) -> None:
        name = type(notice).__name__
        self.stats.notices[name] = self.stats.notices.get(name, 0) + 1
        if self._tell is not None:
            self.say(machine, f"{notice}")
        match notice:
            case JobAccepted(job):
                self._accepted(machine, job)
            case JobPlaced(job, holders) if holders != (machine.peer,):
                self._placed(machine, self.specs[job])
            case JobSettled(job):
                known = self.specs[job]
                known.settled_at = self.now if known.settled_at is None else known.settled_at
            case RatificationNeeded(job) if self.specs[job].plan.ratified:
                self.later(machine, RATIFIED_AFTER_MS, RatifyJob(job))
            case JobRefused(job, reason) if job in self.specs:
                self.specs[job].refused = reason
            case _:
                pass
        self.checkers.noticed(machine, notice)

    def _accepted(self, machine: Machine, job_id: JobId) -> None:
        assert machine.node is not None
        report = machine.node.job_report(job_id)
        assert report is not None, "an accepted job has a report"
        for job in self.jobs:
            if job.draft.name == report.name and job.id != job_id:
                job.id, job.panel = job_id, report.panel
                self.specs[job_id] = job
                if job.plan.cancelled_at is not None:
                    self.at(max(self.now + 1, job.plan.cancelled_at), lambda job=job: self._cancel(job))  # type: ignore[misc]

    def _cancel(self, job: Job) -> None:
        machine = self.machines[job.plan.submitter]
        if job.id is not None and machine.node is not None and not job.over:
            job.cancelled = True
            self.enter(machine, CancelJob(job.id, "changed my mind"))

    def _placed(self, machine: Machine, job: Job) -> None:
        if job.placed_at is not None:
            return
        job.placed_at = self.now
        if job.plan.vanishes != "no":
            crash = Crash(self.now, machine.index, 30_000 if job.plan.vanishes == "for-a-while" else None)
            self.at(self.now + self.rng.between(0, 500), lambda: self._doom(crash))

    # --- the trace ---------------------------------------------------------------------------------------------------
    def _record(self, machine: Machine, event: Event) -> None:
        self._trace.update(f"{self.now} {machine.index} {type(event).__name__}\n".encode())
        if self._tell is not None and not isinstance(event, Received | Tick):
            self.say(machine, _shown_event(self, event))

    def say(self, machine: Machine, text: str) -> None:
        if self._tell is not None:
            self._tell(f"{self.now:>8} {machine.index:>3} {text}")


def _kind(frame: bytes) -> str:
    """The message's name. Comparing the sets of all jobs, which is about no job, is told apart; so is how jobs are made
    known: their bodies, and their closing statements."""
    if len(frame) < 4 or frame[1] >= len(messages.KINDS):
        return "garbage"
    kind = messages.KINDS[frame[1]]
    if kind == "Deliver":
        return _SPREADING.get(_first_statement(frame), kind)
    return "Sync" if kind == "Reconcile" and frame[3] == _NIL else kind


_SPREADING: Final = {statements.KINDS.index(kind): name for kind, name in SPREAD_KINDS}


def _first_statement(frame: bytes) -> int:
    """The code of the first statement of a Deliver, as its place says: 2 bytes into the first envelope; -1: none."""
    at = 4 if frame[3] & 0xF0 == 0x90 else 6
    header = {0xC4: 2, 0xC5: 3, 0xC6: 5}.get(frame[at] if len(frame) > at else 0, len(frame))
    return frame[at + header + 2] if len(frame) > at + header + 2 else -1


def _shown_event(world: World, event: Event) -> str:
    peer = getattr(event, "peer", None)
    other = world.by_peer.get(peer) if peer is not None else None
    return f"{type(event).__name__} {f'peer {other.index}' if other is not None else ''}".strip()


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return short(value)
    if isinstance(value, str) and len(value) > 50:
        return value[-6:]
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_shown, value)) + "]"
    return str(value)
