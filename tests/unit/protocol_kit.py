"""What the tests of the core share: peers with a keyed hash for a signature, bodies with sensible values, and a small
mesh of nodes on a virtual clock. Knows nothing of faults or randomness: that is the simulator's part."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from nexapod.protocol import messages, statements
from nexapod.protocol.context import Context
from nexapod.protocol.events import (
    BlobFailed,
    BlobReady,
    Drop,
    Effect,
    Event,
    Fetch,
    Finished,
    Gossiped,
    PeerUp,
    Penalise,
    ProfileChanged,
    Publish,
    Received,
    Run,
    Save,
    Send,
    Stop,
    Tick,
    Trace,
)
from nexapod.protocol.messages import Message
from nexapod.protocol.node import Node
from nexapod.protocol.records import Record
from nexapod.protocol.statements import Bid, Commit, Reveal, Statement, Verdict, Vote, commitment, output_root
from nexapod.protocol.types import (
    BlobRef,
    Digest,
    Executor,
    File,
    JobId,
    JobSpec,
    PeerId,
    Profile,
    RunResult,
    StatementId,
    TaskId,
    Usage,
    Validate,
    blob_of,
    key_of_peer_id,
    peer_id_of_key,
)
from nexapod.protocol.types import Run as RunSpec

NETWORK = "test"
MODULE = blob_of(b"module")
ZERO = Digest(bytes(32))


def _mac(key: bytes, data: bytes) -> bytes:
    return hashlib.sha512(b"signature" + key + data).digest()


@dataclass(frozen=True)
class FakeSigner:
    """Signs with a keyed hash that everyone can repeat: enough to tell a damaged statement from a whole one."""

    key: bytes

    @property
    def peer(self) -> PeerId:
        return peer_id_of_key(self.key)

    def sign(self, data: bytes) -> bytes:
        return _mac(self.key, data)


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    return signature == _mac(key_of_peer_id(peer), data)


@lru_cache
def signer(number: int) -> FakeSigner:
    return FakeSigner(hashlib.sha256(b"peer %d" % number).digest())


def pid(number: int) -> PeerId:
    return signer(number).peer


def make(body: Any, author: int) -> Statement:
    return statements.make(body, signer(author))


def profile(**changes: Any) -> Profile:
    base = Profile(
        network=NETWORK,
        seq=1,
        stamp=0,
        agent="nexapod/test",
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
        serves=True,
        slots=1,
    )
    return replace(base, **changes)


def job_spec(**changes: Any) -> JobSpec:
    base = JobSpec(NETWORK, "a job", bytes(16), 0, RunSpec("wasm", module=MODULE), tasks=1)
    return replace(base, **changes)


def job(author: int = 9, **changes: Any) -> Statement:
    return make(job_spec(**changes), author)


@dataclass(frozen=True)
class Replica:
    """One worker's statements on one task."""

    worker: int
    bid: Statement
    commit: Statement
    reveal: Statement

    @property
    def all(self) -> list[Statement]:
        return [self.bid, self.commit, self.reveal]

    @property
    def root(self) -> Digest:
        root: Digest = self.reveal.body.root
        return root


def replica(
    of: Statement,
    worker: int,
    task: int = 0,
    content: bytes | None = b"result",
    *,
    outcome: Any = "ok",
    nonce: int = 1,
    salt: bytes = bytes(32),
) -> Replica:
    """A worker's bid, commit and reveal. `content` None: a result without files."""
    name = JobId(of.id)
    files = () if content is None else (File("out.txt", blob_of(content)),)
    exit_status = 0 if outcome == "ok" else 1
    root = output_root(outcome, exit_status, files)
    bid = make(Bid(name, task // 256, (task,), 0, StatementId(ZERO), nonce), worker)
    sealed = commitment(name, task, pid(worker), salt, root)
    commit = make(Commit(name, task, bid.id, sealed), worker)
    body = Reveal(name, task, commit.id, salt, root, outcome, exit_status, files, Usage(), "wasm", "linux-x86_64", "")
    return Replica(worker, bid, commit, make(body, worker))


def verdict(
    of: Statement,
    steward: int,
    agreeing: Sequence[Replica],
    *,
    others: Sequence[Replica] = (),
    stewards: Sequence[int] = (0, 1, 2),
    outcome: Any = "accepted",
    root: Digest | None = None,
    task: int = 0,
) -> Statement:
    votes = tuple(
        Vote(r.reveal.id, pid(r.worker), pid(r.worker), agreed)
        for part, agreed in ((agreeing, True), (others, False))
        for r in part
    )
    if root is None:
        root = agreeing[0].root if agreeing else ZERO
    listed = tuple(pid(s) for s in stewards)
    return make(Verdict(JobId(of.id), task, outcome, root, votes, listed, ""), steward)


def context(me: int = 0, serving: Iterable[int] = (0, 1, 2), others: Iterable[int] = (3, 4, 5, 6)) -> Context:
    """A node's context that knows `serving` peers (the stewards, when they are three) and `others` behind NAT."""
    ctx = Context(signer(me), NETWORK, lambda n: b"\x07" * n)
    for number in serving:
        ctx.directory.learn(make(profile(), number), 0)
    for number in others:
        ctx.directory.learn(make(profile(serves=False), number), 0)
    return ctx


def drain(ctx: Context) -> list[Effect]:
    """The effects so far, taken away."""
    effects, ctx.effects = ctx.effects, []
    return effects


def said(ctx: Context, to: int | None = None) -> list[Message]:
    """The messages sent so far (to one peer, or to all), taken away with all other effects."""
    found = [(e.peer, messages.decode(e.frame)) for e in drain(ctx) if isinstance(e, Send)]
    found += [(ctx.me, message) for message in ctx.to_self]
    ctx.to_self.clear()
    return [message for peer, message in found if to is None or peer == pid(to)]


def traced(effects: Iterable[Effect], name: str) -> list[Trace]:
    return [e for e in effects if isinstance(e, Trace) and e.name == name]


def decode(envelope: bytes) -> Statement:
    return statements.decode(envelope, verify)


class Mesh:
    """A few nodes, joined by perfect links, with one clock. Blobs move at once; tasks end when `finish` says so."""

    def __init__(self, numbers: Iterable[int], *, silent: Iterable[int] = ()) -> None:
        self.now = 0
        self.nodes: dict[PeerId, Node] = {}
        self.records: dict[PeerId, dict[tuple[str, bytes], bytes]] = {}
        self.blobs: dict[PeerId, set[BlobRef]] = {}
        self.running: dict[PeerId, dict[TaskId, Run]] = {}
        self.log: list[tuple[PeerId, Effect]] = []
        self.down: set[PeerId] = set()
        self.result: Callable[[PeerId, Run], RunResult | None] = lambda peer, run: same_result(run)
        """What a run gives, at once; None = it goes on until `finish`."""
        self._queue: deque[tuple[PeerId, Event]] = deque()
        for number in numbers:
            self.add(number, slots=0 if number in set(silent) else 1)

    def add(self, number: int, *, slots: int = 1, serves: bool = True, addr: str = "/ip4/127.0.0.1/tcp/1") -> Node:
        peer = pid(number)
        node = self.nodes[peer] = Node(signer(number), verify, NETWORK, lambda n: b"\x05" * n, now=self.now)
        self.records.setdefault(peer, {})
        self.blobs.setdefault(peer, set())
        self.running[peer] = {}
        self.do(number, ProfileChanged(profile(slots=slots, serves=serves)))
        self._link(peer, addr)
        return node

    def _link(self, peer: PeerId, addr: str) -> None:
        for other in [p for p in self.nodes if p != peer and p not in self.down]:
            self._queue.append((peer, PeerUp(other, addr)))
            self._queue.append((other, PeerUp(peer, addr)))
        self.settle()

    def restart(self, number: int) -> Node:
        """The same peer, from its records alone."""
        peer = pid(number)
        saved = [Record(kind, key, value) for (kind, key), value in sorted(self.records[peer].items())]
        self.nodes[peer] = Node(signer(number), verify, NETWORK, lambda n: b"\x06" * n, records=saved, now=self.now)
        self.running[peer] = {}
        self.down.discard(peer)
        self.do(number, ProfileChanged(profile(stamp=self.now + 10)))
        self._link(peer, "/ip4/127.0.0.1/tcp/1")
        return self.nodes[peer]

    def do(self, number: int, event: Event) -> list[Effect]:
        """Hand an event to one node, and run what follows everywhere. The effects of that one call."""
        effects = self._handle(pid(number), event)
        self.settle()
        return effects

    def settle(self) -> None:
        for _ in range(100_000):
            if not self._queue:
                return
            peer, event = self._queue.popleft()
            if peer not in self.down:
                self._handle(peer, event)
        raise AssertionError("the mesh does not come to rest")

    def run(self, span: int, until: Callable[[], bool] = lambda: False) -> bool:
        """Let at most `span` milliseconds pass; whether `until` came true."""
        end = self.now + span
        while not until():
            due = [
                (node.deadline, p) for p, node in self.nodes.items() if p not in self.down and node.deadline is not None
            ]
            if not due or min(due)[0] > end:
                self.now = end
                return until()
            when, peer = min(due)
            self.now = max(self.now, when)
            self._handle(peer, Tick())
            self.settle()
        return True

    def finish(self, number: int, result: RunResult) -> None:
        """End the tasks that run on a peer."""
        for task in sorted(self.running[pid(number)]):
            self._finish(pid(number), task, result)
        self.settle()

    def traces(self, name: str) -> list[tuple[PeerId, Trace]]:
        return [(p, e) for p, e in self.log if isinstance(e, Trace) and e.name == name]

    def penalties(self) -> list[Penalise]:
        return [e for _, e in self.log if isinstance(e, Penalise)]

    def _finish(self, peer: PeerId, task: TaskId, result: RunResult) -> None:
        del self.running[peer][task]
        self.blobs[peer].update(file.blob for file in result.files)
        self._queue.append((peer, Finished(task, result)))

    def _handle(self, peer: PeerId, event: Event) -> list[Effect]:
        effects = self.nodes[peer].handle(event, self.now)
        for effect in sorted(effects, key=lambda e: not isinstance(e, Save)):
            self.log.append((peer, effect))
            self._perform(peer, effect)
        return effects

    def _perform(self, peer: PeerId, effect: Effect) -> None:
        match effect:
            case Save(Record(kind, key, None)):
                self.records[peer].pop((kind, key), None)
            case Save(Record(kind, key, value)) if value is not None:
                self.records[peer][kind, key] = value
            case Send(to, frame, _) if to in self.nodes and to not in self.down:
                self._queue.append((to, Received(peer, frame)))
            case Publish(topic, data):
                for other in [p for p in self.nodes if p != peer and p not in self.down]:
                    assert self.nodes[other].admit(topic, data)
                    self._queue.append((other, Gossiped(peer, topic, data)))
            case Run(task, _, _, _):
                self.running[peer][task] = effect
                result = self.result(peer, effect)
                if result is not None:
                    self._finish(peer, task, result)
            case Stop(task):
                self.running[peer].pop(task, None)
            case Fetch(part, sources):
                ref = part.blob
                found = ref in self.blobs[peer] or any(
                    ref in self.blobs.get(s, ()) and s not in self.down for s in sources
                )
                if found:
                    self.blobs[peer].add(ref)
                self._queue.append((peer, BlobReady(part) if found else BlobFailed(part)))
            case Drop(ref):
                self.blobs[peer].discard(ref)


def result_of(content: bytes) -> RunResult:
    return RunResult("ok", 0, (File("out.txt", blob_of(content)),), Usage(10, 20, 30))


def same_result(run: Run) -> RunResult:
    """What every honest peer makes of a task."""
    return result_of(b"result of %d" % run.task.index)


def two_of(spec: JobSpec) -> JobSpec:
    return replace(spec, validate=Validate(agree=2, max_replicas=3))
