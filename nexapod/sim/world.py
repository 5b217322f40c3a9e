"""A deterministic world: an event heap, a virtual clock, machines, links, disks, and the faults that befall them.

It drives real nodes (nexapod.protocol.node) as the daemon does, and keeps the same promises: all Save effects of a call
are on disk before any other effect of it happens; a crash comes between any two effects; what was not saved is lost.
It decides no policy and judges nothing: checkers.py watches.

One plan decides everything. No set is iterated, no hash() or id() used: a run is the same under any PYTHONHASHSEED.
"""

from __future__ import annotations

import hashlib
import heapq
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import (
    BlobFailed,
    BlobReady,
    Drop,
    Effect,
    Event,
    Fetch,
    Gossiped,
    PeerDown,
    PeerUp,
    Penalise,
    ProfileChanged,
    Publish,
    Received,
    Run,
    Save,
    Send,
    Stop,
    Submit,
    Tick,
    Trace,
    Unreachable,
)
from nexapod.protocol.node import Node
from nexapod.protocol.records import Record
from nexapod.protocol.statements import make
from nexapod.protocol.types import (
    BlobRef,
    Executor,
    JobId,
    JobSpec,
    Limits,
    Millis,
    PeerId,
    Profile,
    TaskId,
    Validate,
    blob_of,
)
from nexapod.protocol.types import Run as RunSpec
from nexapod.sim.checkers import Checkers
from nexapod.sim.keys import HashSigner, verify
from nexapod.sim.liars import KINDS, Liar
from nexapod.sim.plan import Crash, JobPlan, PeerPlan, Plan
from nexapod.sim.rng import Rng
from nexapod.sim.running import Kept, Running
from nexapod.sim.truth import checkpoint_blob, short

NETWORK = "sim"
MODULE = blob_of(b"a wasm module")
DOOMED_FOR_MS = 2_000
SUBMIT_CHECK_MS = 5_000
AFTERMATH_MS = 20_000
"""How long the world goes on once every job is complete: nothing may go wrong then either."""
BAN_MS = 600_000
NodeFactory: TypeAlias = Callable[..., Node]


@dataclass(slots=True)
class Link:
    """A connection that two peers keep: dialled again whenever it is down."""

    one: int
    other: int
    up: bool = False
    epoch: int = 0
    tries: int = 0


@dataclass(slots=True)
class Box:
    """A machine: what survives a crash, and the process that runs on it, if one does."""

    index: int
    plan: PeerPlan
    signer: HashSigner
    rng: Rng
    latency_ms: Millis
    liar: Liar | None = None
    disk: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    blobs: set[BlobRef] = field(default_factory=set)
    node: Node | None = None
    boot: int = 0
    clock_base: Millis = 0
    clock_since: Millis = 0
    paused_until: Millis = 0
    tick_at: Millis | None = None
    running: dict[TaskId, int] = field(default_factory=dict)
    leaving: set[TaskId] = field(default_factory=set)
    """Those of them whose programs have ended."""
    kept: dict[TaskId, Kept] = field(default_factory=dict)
    """What lies in the checkpoint folders: it survives a crash."""
    run_number: int = 0
    dialling: dict[int, Millis] = field(default_factory=dict)
    banned: dict[PeerId, Millis] = field(default_factory=dict)
    doomed: Crash | None = None
    gone: bool = False
    side: int = 0
    links: dict[int, Link] = field(default_factory=dict)

    @property
    def peer(self) -> PeerId:
        return self.signer.peer

    @property
    def honest(self) -> bool:
        return self.plan.liar is None

    def local(self, now: Millis) -> Millis:
        """What this machine's monotonic clock shows."""
        return self.clock_base + (now - self.clock_since) * (1000 + self.plan.drift) // 1000

    def when(self, local: Millis) -> Millis:
        """When this machine's clock will show so much, or a little later."""
        return self.clock_since + -(-(local - self.clock_base) * 1000 // (1000 + self.plan.drift))


@dataclass(slots=True)
class Job:
    """A job of the plan, and what became of it."""

    plan: JobPlan
    spec: JobSpec
    id: JobId
    placed_at: Millis | None = None
    complete_at: Millis | None = None


@dataclass(slots=True)
class Stats:
    """What is counted."""

    events: int = 0
    sent: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    traces: dict[str, int] = field(default_factory=dict)
    crashes: int = 0
    honest_penalties: dict[str, int] = field(default_factory=dict)


class World:
    """One simulation. `factory` makes nodes (a test may break one); `tell` gets the lines of the trace."""

    def __init__(self, plan: Plan, *, factory: NodeFactory = Node, tell: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.now: Millis = 0
        self.rng = Rng(plan.seed).fork("world", plan.scenario)
        self.stats = Stats()
        self._factory = factory
        self._tell = tell
        self._heap: list[tuple[Millis, int, Callable[[], None]]] = []
        self._order = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self._clogged: dict[tuple[int, int], Millis] = {}
        self.boxes = [self._box(i, p) for i, p in enumerate(plan.peers)]
        self.by_peer = {box.peer: box for box in self.boxes}
        everybody = tuple(box.peer for box in self.boxes)
        for box in self.boxes:
            if box.plan.liar is not None:
                box.liar = KINDS[box.plan.liar](box.signer, box.rng.fork("liar"), everybody)
        self.jobs = [self._job(i, j) for i, j in enumerate(plan.jobs)]
        self.specs = {job.id: job for job in self.jobs}
        self.checkers = Checkers(self)
        self._running = Running(self)
        self._schedule()

    # --- what the plan says ----------------------------------------------------------------------------------------
    def _box(self, index: int, plan: PeerPlan) -> Box:
        rng = self.rng.fork("box", index)
        low, high = self.plan.network.latency_ms
        return Box(index, plan, HashSigner(self.plan.seed, index), rng, rng.between(low, high))

    def _job(self, index: int, plan: JobPlan) -> Job:
        kept: Literal["local", "shared"] = "shared" if plan.checkpoints else "local"
        spec = JobSpec(
            NETWORK,
            f"job-{index}",
            self.rng.fork("nonce", index).bytes(16),
            0,
            RunSpec("wasm", module=MODULE, env=tuple(("FAILS", str(t)) for t in plan.failing), checkpoint=kept),
            plan.tasks,
            limits=Limits(wall_ms=plan.wall_ms),
            validate=Validate(agree=plan.agree, max_replicas=plan.max_replicas),
        )
        return Job(plan, spec, JobId(make(spec, self.boxes[plan.submitter].signer).id))

    def _schedule(self) -> None:
        for box in self.boxes:
            self.at(box.plan.joins_at + box.rng.between(0, 300), lambda box=box: self._boot(box))  # type: ignore[misc]
        for link in self._topology():
            start = max(self.boxes[link.one].plan.joins_at, self.boxes[link.other].plan.joins_at)
            self.at(start + self.rng.between(300, 900), lambda link=link: self._mend(link))  # type: ignore[misc]
        for job in self.jobs:
            self.at(job.plan.at, lambda job=job: self._submit(job))  # type: ignore[misc]
        for crash in self.plan.crashes:
            self.at(crash.at, lambda crash=crash: self._doom(crash))  # type: ignore[misc]
        for pause in self.plan.pauses:
            self.at(pause.at, lambda pause=pause: self._pause(pause.peer, pause.for_ms))  # type: ignore[misc]
        for cut in self.plan.partitions:
            self.at(cut.at, lambda cut=cut: self._part(cut.sides))  # type: ignore[misc]
            self.at(cut.until, lambda: self._part(frozenset()))
        for clog in self.plan.clogs:
            pair = (clog.sender, clog.receiver)
            self.at(clog.at, lambda pair=pair, clog=clog: self._clogged.__setitem__(pair, clog.until))  # type: ignore[misc]

    def _topology(self) -> list[Link]:
        """Who keeps a link to whom: everybody to everybody, or a ring and random chords."""
        count, degree = len(self.boxes), self.plan.network.degree
        pairs: dict[tuple[int, int], None] = {}
        if not degree or degree >= count - 1:
            pairs = {(i, j): None for i in range(count) for j in range(i + 1, count)}
        else:
            rng = self.rng.fork("topology")
            for i in range(count):
                pairs[min(i, (i + 1) % count), max(i, (i + 1) % count)] = None
                for _ in range(max(0, degree // 2 - 1)):
                    j = rng.below(count)
                    if j != i:
                        pairs[min(i, j), max(i, j)] = None
        links = [Link(i, j) for i, j in pairs]
        for link in links:
            self.boxes[link.one].links[link.other] = link
            self.boxes[link.other].links[link.one] = link
        return links

    # --- the heap --------------------------------------------------------------------------------------------------
    def at(self, when: Millis, act: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, act))

    def run(self) -> None:
        """To the end: every job complete and the aftermath over, or out of time, or too much gone wrong."""
        last_submission = max((j.plan.at for j in self.jobs), default=0)
        time_is_up = max(self.plan.heal_at, last_submission) + self.plan.settle_within_ms
        end = time_is_up
        finished = False
        while self._heap and self._heap[0][0] <= end and not self.checkers.hopeless:
            self.now, _, act = heapq.heappop(self._heap)
            act()
            if not finished and self.now >= self.plan.heal_at and self._all_complete():
                finished = True
                end = min(time_is_up, self.now + AFTERMATH_MS)
        self.checkers.at_end()

    def run_until(self, end: Millis) -> None:
        """Go on for so long, whatever is complete."""
        while self._heap and self._heap[0][0] <= end:
            self.now, _, act = heapq.heappop(self._heap)
            act()
        self.now = max(self.now, end)

    def _all_complete(self) -> bool:
        return all(job.complete_at is not None or self._left_behind(job) for job in self.jobs)

    def _left_behind(self, job: Job) -> bool:
        """Whether nobody is left to collect a job, and it is finished all the same, or never began."""
        if not self.boxes[job.plan.submitter].gone:
            return False
        return job.placed_at is None or self.checkers.stewards_finished(job)

    def job_complete(self, job: JobId) -> None:
        """Called by whoever sees it first."""
        known = self.specs.get(job)
        if known is not None and known.complete_at is None:
            known.complete_at = self.now

    @property
    def digest(self) -> str:
        """Of everything that happened, in order."""
        return self._trace.hexdigest()

    # --- machines --------------------------------------------------------------------------------------------------
    def _boot(self, box: Box) -> None:
        if box.gone or box.node is not None:
            return
        box.boot += 1
        # A monotonic clock begins anywhere, and after a restart it may show less than before.
        box.clock_base = box.rng.between(0, 10_000_000)
        box.clock_since = self.now
        box.paused_until = 0
        box.tick_at = None
        entropy = box.rng.fork("entropy", box.boot)
        records = [Record(kind, key, value) for (kind, key), value in box.disk.items()]
        try:
            box.node = self._factory(
                box.signer, verify, NETWORK, entropy.bytes, records=records, now=box.local(self.now)
            )
        except Exception:
            self.checkers.violated("restart-raises", f"peer {box.index}: {traceback.format_exc(limit=-4)}")
            box.gone = True
            return
        for job, submission in box.node.submissions.items():
            if submission.settlement is not None:
                self.job_complete(job)  # it was saved, and the crash came before it was told
        self._say(box, f"boots ({len(records)} records)")
        self.enter(box, ProfileChanged(self._profile(box)))

    def _profile(self, box: Box) -> Profile:
        slots = 64 if box.plan.liar == "hoarder" else box.plan.slots
        return Profile(
            network=NETWORK,
            seq=0,
            stamp=self.now,
            agent="sim",
            os="linux",
            arch="x86_64",
            cpu_model="virtual",
            cpus=4,
            memory=8 << 30,
            disk_free=1 << 40,
            gpus=(),
            executors=(Executor("wasm", "1"),),
            images=(),
            registries=(),
            addrs=(),
            serves=box.plan.serves,
            slots=slots,
        )

    def _doom(self, crash: Crash) -> None:
        """It dies in the middle of what it does next, or soon if it does nothing."""
        box = self.boxes[crash.peer]
        if box.node is None or box.doomed is not None:
            return
        box.doomed = crash
        boot = box.boot
        self.at(
            self.now + DOOMED_FOR_MS, lambda: self._crash(box) if box.doomed is crash and box.boot == boot else None
        )

    def _crash(self, box: Box) -> None:
        crash, box.doomed = box.doomed, None
        if box.node is None or crash is None:
            return
        self._say(box, "crashes")
        self.stats.crashes += 1
        box.node = None
        box.boot += 1
        box.running.clear()
        box.leaving.clear()
        box.dialling.clear()
        box.banned.clear()
        for link in box.links.values():
            if link.up:
                self._break(link, quickly=box.rng.chance(800))
        if crash.down_ms is None:
            box.gone = True
        else:
            self.at(self.now + crash.down_ms, lambda: self._boot(box))

    def _pause(self, index: int, for_ms: Millis) -> None:
        self.boxes[index].paused_until = self.now + for_ms

    # --- links -----------------------------------------------------------------------------------------------------
    def _part(self, sides: frozenset[int]) -> None:
        for box in self.boxes:
            box.side = 1 if box.index in sides else 0
        for box in self.boxes:
            for other, link in box.links.items():
                if box.index < other and link.up and box.side != self.boxes[other].side:
                    self._break(link, quickly=False)

    def _break(self, link: Link, *, quickly: bool) -> None:
        """Both ends learn it some time later: from a reset, or from pings that are not answered."""
        link.up = False
        link.epoch += 1
        epoch = link.epoch
        for end, far in ((link.one, link.other), (link.other, link.one)):
            box, peer = self.boxes[end], self.boxes[far].peer
            delay = self.rng.between(10, 300) if quickly else self.rng.between(3_000, 12_000)
            self._later(box, delay, PeerDown(peer), lambda: link.epoch == epoch)
        self.at(self.now + self.rng.between(1_000, 4_000), lambda: self._mend(link))

    def _mend(self, link: Link) -> None:
        one, other = self.boxes[link.one], self.boxes[link.other]
        if link.up or one.gone or other.gone:
            return
        banned = one.banned.get(other.peer, 0) > self.now or other.banned.get(one.peer, 0) > self.now
        if banned or not self.reaches(one, other) or not self.reaches(other, one):
            link.tries += 1
            self.at(self.now + self.rng.between(500, 1_000 << min(link.tries, 3)), lambda: self._mend(link))
            return
        link.up = True
        link.epoch += 1
        link.tries = 0
        for box, far in ((one, other), (other, one)):
            self._later(box, self.rng.between(1, 20), PeerUp(far.peer, far.plan.addr), lambda: link.up)

    def reaches(self, sender: Box, receiver: Box) -> bool:
        """Whether bytes can get from one to the other now."""
        if sender.node is None or receiver.node is None or sender.side != receiver.side:
            return False
        return self._clogged.get((sender.index, receiver.index), 0) <= self.now

    def _latency(self, one: Box, other: Box) -> Millis:
        delay = one.latency_ms + other.latency_ms
        delay += self.rng.below(delay + 1)
        if self.now < self.plan.heal_at and self.rng.chance(self.plan.network.straggling):
            delay += self.rng.below(self.plan.network.straggle_ms)
        return delay

    # --- a node's turn -----------------------------------------------------------------------------------------------
    def _later(self, box: Box, delay: Millis, event: Event, unless: Callable[[], bool] | None = None) -> None:
        """An event for the process that runs there now; void if it has died by then."""
        boot = box.boot

        def happen() -> None:
            if box.boot == boot and box.node is not None and (unless is None or unless()):
                self.enter(box, event)

        self.at(self.now + delay, happen)

    def enter(self, box: Box, event: Event) -> None:
        """Let a node handle an event, and do what it wants done."""
        node = box.node
        if node is None:
            return
        if box.paused_until > self.now:
            boot = box.boot
            self.at(box.paused_until, lambda: self.enter(box, event) if box.boot == boot else None)
            return
        self.stats.events += 1
        own: list[Effect] = []
        if box.liar is not None and isinstance(event, Received):
            own = box.liar.hears(node, event)
        try:
            effects = node.handle(event, box.local(self.now))
        except LocalError as error:
            self._say(box, f"refuses: {error}")
            effects = []
        except Exception:
            self.checkers.violated(
                "handle-raises", f"peer {box.index} on {event!r:.200}: {traceback.format_exc(limit=-4)}"
            )
            effects, node.ctx.effects = node.ctx.effects, []
        if box.liar is not None:
            effects = [*own, *box.liar.speaks(node, effects)]
        self._record(box, event)
        self.checkers.after(box, event, effects)
        self._do_all(box, effects)
        if box.node is node:
            self._arm(box)

    def _arm(self, box: Box) -> None:
        assert box.node is not None
        deadline = box.node.deadline
        if deadline is None:
            return
        when = max(box.when(deadline), self.now + 1)
        if box.tick_at is not None and self.now < box.tick_at <= when:
            return
        box.tick_at = when
        boot = box.boot

        def tick() -> None:
            if box.boot == boot and box.tick_at == when:
                box.tick_at = None
                self.enter(box, Tick())

        self.at(when, tick)

    def _do_all(self, box: Box, effects: list[Effect]) -> None:
        rest = [e for e in effects if not isinstance(e, Save)]
        if box.doomed is None:
            self._save(box, effects)
            for effect in rest:
                self._do(box, effect)
            return
        done = box.rng.below(len(rest) + 2) - 1
        if done >= 0:
            self._save(box, effects)
            for effect in rest[:done]:
                self._do(box, effect)
        self._crash(box)

    def _save(self, box: Box, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Save):
                record = effect.record
                self._trace.update(b"save" + record.kind.encode() + record.key + (record.value or b""))
                if record.value is None:
                    box.disk.pop((record.kind, record.key), None)
                else:
                    box.disk[record.kind, record.key] = record.value

    def _do(self, box: Box, effect: Effect) -> None:
        match effect:
            case Send(peer, frame, _):
                self._send(box, peer, frame)
            case Publish():
                self._publish(box, effect)
            case Run():
                self._running.start(box, effect)
            case Stop(task):
                box.running.pop(task, None)
                box.leaving.discard(task)
                box.kept.pop(task, None)
            case Fetch():
                self._fetch(box, effect)
            case Drop(ref):
                box.blobs.discard(ref)
            case Penalise():
                self._penalise(box, effect)
            case Trace(name, facts):
                self._on_trace(box, name, dict(facts))
                if self._tell is not None:
                    self._say(box, f"{name} " + " ".join(f"{k}={_shown(v)}" for k, v in facts.items()))

    # --- messages --------------------------------------------------------------------------------------------------
    def _send(self, box: Box, peer: PeerId, frame: bytes) -> None:
        other = self.by_peer.get(peer)
        self.stats.sent += 1
        self._trace.update(b"send%d" % self.now + peer.encode() + frame)
        self.checkers.sent(box, frame)
        if other is None or other.banned.get(box.peer, 0) > self.now:
            return
        link = box.links.get(other.index)
        linked = link is not None and link.up
        if not self.reaches(box, other):
            if not linked:
                self._dial_in_vain(box, other)
            return
        network = self.plan.network
        faulty = self.now < self.plan.heal_at
        if faulty and self.rng.chance(network.loss):
            return
        extra = 0 if linked else self.rng.between(20, 150)
        self._later(other, extra + self._latency(box, other), Received(box.peer, frame))
        if faulty and self.rng.chance(network.duplication):
            self._later(other, extra + self._latency(box, other), Received(box.peer, frame))

    def _dial_in_vain(self, box: Box, other: Box) -> None:
        if box.dialling.get(other.index, 0) > self.now:
            return
        delay = self.rng.between(500, 4_000)
        box.dialling[other.index] = self.now + delay
        self._later(box, delay, Unreachable(other.peer))

    def _publish(self, box: Box, effect: Publish) -> None:
        self._trace.update(b"gossip" + effect.data)
        for other in self.boxes:
            if other is box or other.node is None or other.side != box.side:
                continue
            if self.now < self.plan.heal_at and self.rng.chance(self.plan.network.gossip_loss):
                continue
            if not box.honest and not other.node.admit(effect.topic, effect.data):
                continue
            hops = 1 + self.rng.below(3)
            delay = sum(self._latency(box, other) for _ in range(hops))
            self._later(other, delay, Gossiped(box.peer, effect.topic, effect.data))

    def _penalise(self, box: Box, effect: Penalise) -> None:
        other = self.by_peer.get(effect.peer)
        if other is None:
            return
        if effect.ban and box.banned.get(effect.peer, 0) <= self.now:
            self._say(box, f"bans peer {other.index}")
            box.banned[effect.peer] = self.now + BAN_MS
            link = box.links.get(other.index)
            if link is not None and link.up:
                self._break(link, quickly=True)

    # --- blobs -----------------------------------------------------------------------------------------------------
    def keeps(self, box: Box, task: TaskId) -> BlobRef:
        """What a machine puts into a task's checkpoint folder half-way."""
        return box.liar.keeps(task) if box.liar is not None else checkpoint_blob(task)

    def holder(self, box: Box, ref: BlobRef, sources: tuple[PeerId, ...]) -> Box | None:
        for peer in sources:
            other = self.by_peer.get(peer)
            if other is not None and ref in other.blobs and self.reaches(other, box) and self.reaches(box, other):
                return other
        return None

    def _fetch(self, box: Box, effect: Fetch) -> None:
        ref = effect.part.blob
        if ref in box.blobs:
            self._later(box, 1, BlobReady(effect.part))
            return
        boot = box.boot

        def arrive() -> None:
            if box.boot != boot or box.node is None:
                return
            if ref in box.blobs or self.holder(box, ref, effect.sources) is not None:
                box.blobs.add(ref)
                self.enter(box, BlobReady(effect.part))
            else:
                self.enter(box, BlobFailed(effect.part))

        quick = self.holder(box, ref, effect.sources) is not None
        self.at(self.now + (self.rng.between(5, 60) if quick else self.rng.between(200, 3_000)), arrive)

    # --- jobs ------------------------------------------------------------------------------------------------------
    def _submit(self, job: Job) -> None:
        """The user submits, and looks after a while whether it was kept: a crash may have come before the commit."""
        box = self.boxes[job.plan.submitter]
        if box.gone or ("statement", job.id) in box.disk:
            return
        if box.node is not None and box.paused_until <= self.now:
            box.blobs.update(job.spec.blobs)
            self.enter(box, Submit(job.spec))
        self.at(self.now + SUBMIT_CHECK_MS, lambda: self._submit(job))

    def _on_trace(self, box: Box, name: str, facts: dict[str, Any]) -> None:
        traces = self.stats.traces
        traces[name] = traces.get(name, 0) + 1
        if name == "placed":
            job = self.specs.get(facts["job"])
            if job is not None and job.placed_at is None:
                job.placed_at = self.now
                self._vanish(box, job)
        elif name == "complete":
            self.job_complete(facts["job"])

    def _vanish(self, box: Box, job: Job) -> None:
        if job.plan.vanishes == "no":
            return
        down = 30_000 if job.plan.vanishes == "for-a-while" else None
        crash = Crash(self.now, box.index, down)
        self.at(self.now + self.rng.between(0, 500), lambda: self._doom(crash))

    # --- the trace ---------------------------------------------------------------------------------------------------
    def _record(self, box: Box, event: Event) -> None:
        self._trace.update(f"{self.now} {box.index} {type(event).__name__}\n".encode())
        if self._tell is not None and isinstance(event, PeerUp | PeerDown | Unreachable):
            self._say(box, f"{type(event).__name__} peer {self.by_peer[event.peer].index}")

    def _say(self, box: Box, text: str) -> None:
        if self._tell is not None:
            self._tell(f"{self.now:>8} {box.index:>3} {text}")


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return short(value)
    if isinstance(value, str) and len(value) > 50:
        return value[-6:]
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_shown, value)) + "]"
    return str(value)


assert DOOMED_FOR_MS < limits.LEASE_TTL_MS
