"""Real nodes on an in-memory network with a virtual clock: every link has a latency, every blob is everywhere."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from nexapod.protocol.events import (
    BlobReady,
    Effect,
    Event,
    Fetch,
    Finished,
    OfferChanged,
    PeerDown,
    PeerUp,
    Penalise,
    ProfileChanged,
    Received,
    Run,
    Save,
    Send,
    Stop,
    Tick,
    Trace,
    Unreachable,
    Vacated,
)
from nexapod.protocol.node.archive import ARCHIVED
from nexapod.protocol.node.node import Node
from nexapod.protocol.notices import Notice
from nexapod.protocol.primitives import File, JobId, Millis, PeerId, TaskId, blob_of
from nexapod.protocol.records import Record
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import Executor, Grouping, JobSpec, Offer, Profile, Validate
from nexapod.protocol.types import Run as RunSpec
from nexapod.protocol.wire import messages
from nexapod.sim.keys import HashSigner, verify

NETWORK = "net"
FAR = 1 << 50
FETCH_MS = 5


def profile(*, slots: int = 4, stamp: int = 1) -> Profile:
    return Profile(
        network=NETWORK,
        seq=0,
        stamp=stamp,
        agent="test",
        minor=0,
        os="linux",
        arch="x86_64",
        cpu_model="",
        cpus=8,
        memory=1 << 36,
        disk_free=1 << 40,
        gpus=(),
        executors=(Executor("wasm", "1"),),
        images=(),
        registries=(),
        addrs=("/ip4/10.0.0.1/tcp/4001",),
        slots=slots,
    )


def offer() -> Offer:
    return Offer(NETWORK, 0, ("/ip4/10.0.0.1/tcp/4001",), 1 << 40, 1_000, FAR)


def job_spec(*, tasks: int = 4, agree: int = 2, nonce: bytes = b"n" * 16) -> JobSpec:
    run = RunSpec("wasm", module=blob_of(b"module"))
    return JobSpec(NETWORK, "a job", nonce, 1, run, tasks, validate=Validate(agree=agree))


@dataclass
class Peer:
    """One node with its driver's state."""

    signer: HashSigner
    node: Node
    records: dict[tuple[str, bytes], Record] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    running: set[TaskId] = field(default_factory=set)
    penalties: list[Penalise] = field(default_factory=list)

    def noticed(self, kind: type) -> list[Notice]:
        return [notice for notice in self.notices if isinstance(notice, kind)]


class Mesh:
    """`run_ms`: how long a task takes."""

    def __init__(
        self, count: int, *, seed: int = 1, latency_ms: Millis = 10, run_ms: Millis = 300, grouping: Grouping = "peer"
    ) -> None:
        self.now: Millis = 1_000
        self.latency_ms = latency_ms
        self.run_ms = run_ms
        self.result: Callable[[TaskId], RunResult] = result_of
        self.grouping: Grouping = grouping
        self.sent: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.links: set[tuple[PeerId, PeerId]] = set()
        self._queue: list[tuple[Millis, int, PeerId, Event]] = []
        self._order = 0
        self._rng = random.Random(seed)
        self.peers: dict[PeerId, Peer] = {}
        self.names: list[PeerId] = []
        for number in range(count):
            signer = HashSigner(seed, "node", number)
            self.names.append(signer.peer)
            kept: dict[tuple[str, bytes], Record] = {}
            self.peers[signer.peer] = Peer(signer, self._new_node(signer, kept), kept)

    def __getitem__(self, number: int) -> Peer:
        return self.peers[self.names[number]]

    def _new_node(self, signer: HashSigner, kept: dict[tuple[str, bytes], Record]) -> Node:
        def archive(kind: str, prefix: bytes) -> list[Record]:
            return [kept[key] for key in sorted(kept) if key[0] == kind and key[1].startswith(prefix)]

        entropy = random.Random(self._rng.getrandbits(64)).randbytes
        records = [record for record in kept.values() if record.kind not in ARCHIVED]
        return Node(signer, verify, NETWORK, self.grouping, entropy, records=records, archive=archive, now=self.now)

    def start(self, *, slots: int = 4) -> None:
        """Every node with a profile and an offer, linked to every other."""
        for peer in self.names:
            self.give(peer, ProfileChanged(profile(slots=slots)))
            self.give(peer, OfferChanged(offer()))
        for number, one in enumerate(self.names):
            for other in self.names[:number]:
                self.link(one, other)

    def link(self, one: PeerId, other: PeerId) -> None:
        self.links |= {(one, other), (other, one)}
        for here, there in ((one, other), (other, one)):
            self.give(here, PeerUp(there, f"/ip4/10.0.{self.names.index(there)}.1/tcp/4001", dialled=True))

    def cut(self, one: PeerId, other: PeerId) -> None:
        self.links -= {(one, other), (other, one)}
        for here, there in ((one, other), (other, one)):
            if here in self.peers:
                self.give(here, PeerDown(there))

    def kill(self, me: PeerId) -> Peer:
        """It goes, and leaves this."""
        for other in [other for other in self.names if (me, other) in self.links]:
            self.cut(other, me)
        self._queue = [entry for entry in self._queue if entry[2] != me]
        heapq.heapify(self._queue)
        return self.peers.pop(me)

    def restart(self, number: int) -> None:
        """Kill a node, and start it from what it has saved."""
        me = self.names[number]
        others = [other for other in self.names if (me, other) in self.links]
        old = self.kill(me)
        kept = dict(old.records)
        self.peers[me] = Peer(old.signer, self._new_node(old.signer, kept), kept)
        self.give(me, ProfileChanged(profile()))
        self.give(me, OfferChanged(offer()))
        for other in others:
            self.link(me, other)

    def suspend(self, span_ms: Millis) -> None:
        """Every machine sleeps: what is under way arrives afterwards."""
        self.now += span_ms
        self._queue = [(when + span_ms, order, peer, event) for when, order, peer, event in self._queue]

    # --- the loop --------------------------------------------------------------------------------------------------
    def give(self, peer: PeerId, event: Event) -> None:
        """An event for a node, now."""
        self._apply(peer, self.peers[peer].node.handle(event, self.now))

    def run_until(self, condition: Callable[[], bool], limit_ms: Millis = 120_000) -> bool:
        end = self.now + limit_ms
        while not condition():
            when = min((t for t in (self._next_event(), self._next_deadline()) if t is not None), default=None)
            if when is None or when > end:
                return condition()
            self.now = max(self.now, when)
            self._step()
        return True

    def run_for(self, span_ms: Millis) -> None:
        end = self.now + span_ms
        self.run_until(lambda: False, span_ms)
        self.now = end

    def _next_event(self) -> Millis | None:
        return self._queue[0][0] if self._queue else None

    def _next_deadline(self) -> Millis | None:
        return min((d for p in self.peers.values() if (d := p.node.deadline) is not None), default=None)

    def _step(self) -> None:
        while self._queue and self._queue[0][0] <= self.now:
            _, _, peer, event = heapq.heappop(self._queue)
            if isinstance(event, Finished):
                self.peers[peer].running.discard(event.task)
            self.give(peer, event)
        for peer, each in self.peers.items():
            deadline = each.node.deadline
            if deadline is not None and deadline <= self.now:
                self.give(peer, Tick())

    def _later(self, delay_ms: Millis, peer: PeerId, event: Event) -> None:
        if peer not in self.peers:
            return
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay_ms, self._order, peer, event))

    def _apply(self, me: PeerId, effects: list[Effect]) -> None:
        here = self.peers[me]
        for effect in effects:
            match effect:
                case Save(record):
                    key = (record.kind, record.key)
                    if record.value is None:
                        here.records.pop(key, None)
                    else:
                        here.records[key] = record
                case Send(peer, frame):
                    self._send(me, peer, frame)
                case Run(task):
                    here.running.add(task)
                    self._later(self.run_ms, me, Vacated(task))
                    self._later(self.run_ms, me, Finished(task, self.result(task)))
                case Stop(task):
                    here.running.discard(task)
                    self._queue = [e for e in self._queue if not _is_of(e, me, task)]
                    heapq.heapify(self._queue)
                case Fetch(part):
                    self._later(FETCH_MS, me, BlobReady(part))
                case Trace():
                    here.traces.append(effect)
                case Penalise():
                    here.penalties.append(effect)
                case _ if type(effect).__module__.endswith("notices"):
                    here.notices.append(effect)  # type: ignore[arg-type]
                case _:
                    pass

    def _send(self, me: PeerId, peer: PeerId, frame: bytes) -> None:
        kind = type(messages.decode(frame)).__name__
        self.sent[kind] += 1
        self.bytes[kind] += len(frame)
        if (me, peer) in self.links:
            self._later(self.latency_ms, peer, Received(me, frame))
        else:
            self._later(self.latency_ms, me, Unreachable(peer))


def _is_of(entry: tuple[Millis, int, PeerId, Event], peer: PeerId, task: TaskId) -> bool:
    _, _, whose, event = entry
    return whose == peer and isinstance(event, Vacated | Finished) and event.task == task


def outputs_of(index: int) -> tuple[File, ...]:
    return (File("out.txt", blob_of(b"result of %d" % index)),)


def result_of(task: TaskId) -> RunResult:
    return RunResult("ok", 0, outputs_of(task.index))


def job_of(peer: Peer) -> JobId:
    """The one job that a node's user has submitted."""
    (job,) = peer.node.report().submissions
    return job
