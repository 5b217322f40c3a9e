"""The processor time of the core for each task of a job: five nodes in one process, 1,000 empty tasks.

    .venv/bin/python benchmarks/core.py [--tasks 1000] [--nodes 5] [--slots 16] [--run-ms 200] [--profile] [--json]

Two workers run every task, and every signature is a real one (Ed25519). Network, disks and clock are simulated and not
counted: what is counted is the time inside `Node.handle`, of all nodes together, from submit to settlement. The
signatures are told apart from the rest: no code of ours makes them cheaper. Each node has a memory of its own of the
signatures that it has checked, as on a machine of its own. With --profile it runs once more under the profiler, and
says in which packages the time goes by.
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import json
import pstats
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexapod.mesh import identity
from nexapod.protocol import events, notices
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import Millis, PeerId, blob_of
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import Executor, JobSpec, Offer, Profile, Run, Validate
from nexapod.protocol.wire.messages import CLASSES

CORE_BAR_MS = 5.0
"""For each task, signatures aside."""
NETWORK = "benchmark"
LATENCY_MS: Millis = 10
BLOB_MS: Millis = 5
MEETING_MS: Millis = 500
"""The nodes have been linked for so long when the job comes."""
HORIZON_MS: Millis = 3_600_000
CORE = Path(__file__).parents[1] / "nexapod" / "protocol"


# --- keys -----------------------------------------------------------------------------------------------------------
@dataclass
class Meter:
    """Processor time of one kind of work, and how often it was done."""

    seconds: float = 0.0
    times: int = 0

    def count(self, began: float) -> None:
        self.seconds += time.process_time() - began
        self.times += 1


class Keys:
    """One node's key, and its checks of others' signatures."""

    def __init__(self, number: int, signing: Meter, checking: Meter) -> None:
        self._signer = identity.Signer(number.to_bytes(identity.SEED_BYTES, "big"))
        self.peer = self._signer.peer
        self._signing = signing
        self._checking = checking

    def sign(self, data: bytes) -> bytes:
        began = time.process_time()
        signature = self._signer.sign(data)
        self._signing.count(began)
        return signature

    def verify(self, peer: PeerId, data: bytes, signature: bytes) -> bool:
        began = time.process_time()
        holds = identity.verify(peer, data, signature)
        self._checking.count(began)
        return holds


# --- the network ----------------------------------------------------------------------------------------------------
@dataclass
class Mesh:
    """Nodes that are all linked to one another, and the simulated time."""

    nodes: int
    slots: int
    run_ms: Millis
    now: Millis = 1_000
    settled: notices.JobSettled | None = None
    handling: Meter = field(default_factory=Meter)
    signing: Meter = field(default_factory=Meter)
    checking: Meter = field(default_factory=Meter)
    sent: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    saved: int = 0
    by_peer: dict[PeerId, Node] = field(default_factory=dict)
    _queue: list[tuple[Millis, int, PeerId, events.Event]] = field(default_factory=list)
    _order: int = 0

    def __post_init__(self) -> None:
        for number in range(self.nodes):
            keys = Keys(number, self.signing, self.checking)
            entropy = random.Random(number).randbytes
            self.by_peer[keys.peer] = Node(keys, keys.verify, NETWORK, "peer", entropy, now=self.now)
        for peer in self.by_peer:
            self._give(peer, events.ProfileChanged(_profile(self.slots)))
            self._give(peer, events.OfferChanged(_offer()))
            for number, other in enumerate(self.by_peer):
                if other != peer:
                    self._later(LATENCY_MS, peer, events.PeerUp(other, _addr(number)))

    def work_through(self, spec: JobSpec) -> None:
        """From submit to settlement. Raises TimeoutError when the job does not end."""
        self._run_until(self.now + MEETING_MS)
        for meter in (self.handling, self.signing, self.checking):
            meter.seconds, meter.times = 0.0, 0
        self.sent.clear()
        self._give(next(iter(self.by_peer)), events.Submit(spec, accept_unknown=True))
        self._run_until(self.now + HORIZON_MS)
        if self.settled is None:
            raise TimeoutError(f"the job is not settled after {HORIZON_MS // 1000} simulated seconds")

    def _run_until(self, end: Millis) -> None:
        while self.settled is None:
            due = [when for node in self.by_peer.values() if (when := node.deadline) is not None]
            self.now = max(self.now, min([end, *due, *(entry[0] for entry in self._queue[:1])]))
            if self.now >= end:
                return
            while self._queue and self._queue[0][0] <= self.now:
                _, _, peer, event = heapq.heappop(self._queue)
                self._give(peer, event)
            for peer, node in self.by_peer.items():
                if node.deadline is not None and node.deadline <= self.now:
                    self._give(peer, events.Tick())

    def _give(self, peer: PeerId, event: events.Event) -> None:
        began = time.process_time()
        effects = self.by_peer[peer].handle(event, self.now)
        self.handling.count(began)
        for effect in effects:
            self._apply(peer, effect)

    def _later(self, delay_ms: Millis, peer: PeerId, event: events.Event) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay_ms, self._order, peer, event))

    def _apply(self, me: PeerId, effect: events.Effect) -> None:
        match effect:
            case events.Send(peer, frame):
                self.sent[CLASSES[frame[1]].__name__] += 1
                self.bytes += len(frame)
                self._later(LATENCY_MS, peer, events.Received(me, frame))
            case events.Run(task):
                result = RunResult("ok", 0, ())
                self._later(self.run_ms, me, events.Vacated(task))
                self._later(self.run_ms, me, events.Finished(task, result))
            case events.Fetch(part):
                self._later(BLOB_MS, me, events.BlobReady(part))
            case events.Save():
                self.saved += 1
            case notices.JobSettled():
                self.settled = effect
            case _:
                pass


def _addr(number: int) -> str:
    return f"/ip4/10.0.{number}.1/tcp/4001"


def _profile(slots: int) -> Profile:
    wasm = (Executor("wasm", "1"),)
    machine = ("linux", "x86_64", "", 8, 1 << 36, 1 << 40)
    return Profile(NETWORK, 0, 1, "benchmark", 0, *machine, (), wasm, (), (), (_addr(0),), slots)


def _offer() -> Offer:
    return Offer(NETWORK, 0, (_addr(0),), 1 << 40, 1_000, 1 << 50)


def _job(tasks: int) -> JobSpec:
    run = Run("wasm", module=blob_of(b"module"))
    return JobSpec(NETWORK, "empty tasks", bytes(16), 1, run, tasks, validate=Validate(agree=2))


# --- what it comes to -----------------------------------------------------------------------------------------------
def measured(options: argparse.Namespace) -> dict[str, Any]:
    """One run, in numbers for each task."""
    mesh = Mesh(options.nodes, options.slots, options.run_ms)
    began = mesh.now
    mesh.work_through(_job(options.tasks))
    assert mesh.settled is not None
    per_task = 1_000 / options.tasks
    signatures = mesh.signing.seconds + mesh.checking.seconds
    return {
        "tasks": options.tasks,
        "settled": mesh.settled.settled,
        "all_ms": mesh.handling.seconds * per_task,
        "signatures_ms": signatures * per_task,
        "core_ms": (mesh.handling.seconds - signatures) * per_task,
        "signed": mesh.signing.times / options.tasks,
        "checked": mesh.checking.times / options.tasks,
        "events": mesh.handling.times / options.tasks,
        "messages": mesh.sent.total() / options.tasks,
        "bytes": mesh.bytes / options.tasks,
        "records": mesh.saved / options.tasks,
        "simulated_s": (mesh.now - began) / 1_000,
        "by_message": {name: many / options.tasks for name, many in mesh.sent.most_common()},
    }


def by_package(options: argparse.Namespace) -> dict[str, float]:
    """The same run under the profiler: the shares of the core's packages. What is built in counts for its callers."""
    profile = cProfile.Profile()
    mesh = Mesh(options.nodes, options.slots, options.run_ms)
    profile.runcall(mesh.work_through, _job(options.tasks))
    shares: Counter[str] = Counter()
    for (file, _, _), (_, _, own, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file != "~":
            shares[_package(file)] += own
        for (caller, _, _), (_, _, of_caller, _) in callers.items() if file == "~" else ():
            shares[_package(caller)] += of_caller
    del shares["the benchmark"]
    total = shares.total()
    return {name: seconds / total for name, seconds in shares.most_common()}


def _package(file: str) -> str:
    path = Path(file)
    if path == Path(__file__):
        return "the benchmark"
    if not path.is_relative_to(CORE):
        return "signatures" if {"nacl", "mesh"} & set(path.parts) else "elsewhere"
    parts = path.relative_to(CORE).parts
    return parts[0]


def _say(figures: dict[str, Any]) -> None:
    print(f"{figures['settled']} of {figures['tasks']} tasks settled in {figures['simulated_s']:.1f} simulated seconds")
    print(f"for each task, on all nodes: {figures['all_ms']:.2f} ms of processor time")
    signatures = f"{figures['signed']:.2f} made, {figures['checked']:.2f} checked"
    print(f"  signatures {figures['signatures_ms']:.2f} ms ({signatures})")
    print(f"  the core   {figures['core_ms']:.2f} ms, at most {CORE_BAR_MS:.2f} wanted")
    print(f"  {figures['events']:.1f} events, {figures['messages']:.1f} messages, {figures['bytes']:,.0f} bytes sent,")
    print(f"  {figures['records']:.1f} records saved")
    often = [f"{name} {many:.2f}" for name, many in figures["by_message"].items() if many >= 0.01]
    print("messages: " + ", ".join(often))
    for name, share in figures.get("packages", {}).items():
        if share >= 0.005:
            print(f"  {share:6.1%}  {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--slots", type=int, default=16, help="tasks that each node runs at once")
    parser.add_argument("--run-ms", type=int, default=200, help="simulated milliseconds that a task takes")
    parser.add_argument("--profile", action="store_true", help="also say which packages the time goes to")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measured(options)
    if options.profile:
        figures["packages"] = by_package(options)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        _say(figures)
    return int(figures["core_ms"] > CORE_BAR_MS)


if __name__ == "__main__":
    sys.exit(main())
