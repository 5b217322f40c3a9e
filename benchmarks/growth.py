"""What protocol 3 costs as it grows: one job of a million tasks, meshes of many peers, many tasks on uneven machines.

    .venv/bin/python benchmarks/growth.py million [--tasks 1000000]     placing one huge job
    .venv/bin/python benchmarks/growth.py messages [--peers 100,1000]   what a task costs, however many peers there are
    .venv/bin/python benchmarks/growth.py makespan [--peers 1000]       5,000 tasks on uneven machines, some die
    .venv/bin/python benchmarks/growth.py crowd [--peers 10000]         two tasks for each of very many peers
    .venv/bin/python benchmarks/growth.py certificate [--tasks 1000000] checking what such a job leaves

Everything runs in the simulator of protocol 3: real nodes, a virtual clock. Each says its figures beside their bars and
exits with 1 when one is missed. `million` keeps the submitter's node in a process of its own, whose memory is what is
measured, and compares a small job of the same mesh with the same one undisturbed.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nexapod.protocol.certificate.check import check
from nexapod.protocol.events import Effect, Event, Save
from nexapod.protocol.node.node import Node
from nexapod.protocol.notices import JobPlaced
from nexapod.protocol.records import Record
from nexapod.sim import scenarios
from nexapod.sim.checkers import Checkers
from nexapod.sim.keys import HashSigner, verify
from nexapod.sim.plan import Plan
from nexapod.sim.world import World

MEBIBYTE = 1 << 20
PLACE_S, PLACE_MB = 60.0, 250.0
UNHARMED = 1.5
"""How many times as long another job may take meanwhile."""
MESSAGES, FLAT = 30.0, 1.10
SPREADING = ("Want", "Job", "Closing")
MAKESPAN = 1.2
CHECK_MB = 64.0
CROWD_S, CROWD_MB = 600.0, 8 * 1024.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number and the most that it may be (None: it is only said)."""

    name: str
    value: float
    most: float | None = None

    @property
    def holds(self) -> bool:
        return self.most is None or self.value <= self.most


def peak_mb() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEBIBYTE


def now_mb() -> float:
    """What it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MEBIBYTE


# --- a node in a process of its own --------------------------------------------------------------------------------
def serve(pipe: Connection, signer: HashSigner, entropy: Callable[[int], bytes], arguments: dict[str, Any]) -> None:
    """The other side of Apart: makes the node, and does what it is asked until the pipe is closed."""
    disk: dict[tuple[str, bytes], bytes] = {}

    def read(kind: str, prefix: bytes) -> list[Record]:
        found = sorted(key for of_kind, key in disk if of_kind == kind and key.startswith(prefix))
        return [Record(kind, key, disk[kind, key]) for key in found]

    node = Node(signer, verify, *arguments.pop("network"), entropy, archive=read, **arguments)
    while True:
        try:
            name, given = pipe.recv()
        except EOFError:
            return
        if name in ("peak_mb", "now_mb"):
            answer: Any = peak_mb() if name == "peak_mb" else now_mb()
        elif name == "certificate":
            answer = list(node.certificate(*given))
        else:
            answer = getattr(node, name)(*given)
        if name == "handle":
            for effect in answer:
                if isinstance(effect, Save):
                    disk.pop((effect.record.kind, effect.record.key), None)
                    if effect.record.value is not None:
                        disk[effect.record.kind, effect.record.key] = effect.record.value
        pipe.send((answer, node.deadline))


class Apart:
    """A node as the simulator uses it, which lives in another process."""

    def __init__(self, signer: HashSigner, network: str, grouping: str, entropy: Any, **arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        del arguments["archive"]
        given = {"network": (network, grouping), **arguments}
        self._process = context.Process(target=serve, args=(theirs, signer, entropy, given), daemon=True)
        self._process.start()
        theirs.close()
        self.deadline: int | None = None
        self.report()

    def _ask(self, name: str, *given: Any) -> Any:
        self._pipe.send((name, given))
        answer, self.deadline = self._pipe.recv()
        return answer

    def handle(self, event: Event, now: int) -> list[Effect]:
        effects: list[Effect] = self._ask("handle", event, now)
        return effects

    def report(self) -> Any:
        return self._ask("report")

    def certificate(self, job: Any) -> Iterator[bytes]:
        return iter(self._ask("certificate", job))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *given: self._ask(name, *given)


# --- one huge job --------------------------------------------------------------------------------------------------
class Stopwatch(Checkers):
    """Notes when the huge job was placed, by the wall's clock."""

    placed: float | None = None

    def noticed(self, machine: Any, notice: Any) -> None:
        if isinstance(notice, JobPlaced) and self.world.specs[notice.job].index == 0:
            self.placed = time.monotonic()
        super().noticed(machine, notice)


def million(options: argparse.Namespace) -> list[Figure]:
    alone = _small_job(replace(_million(options.tasks), jobs=_million(options.tasks).jobs[1:]))
    plan = _million(options.tasks)
    apart: list[Apart] = []

    def make(signer: HashSigner, verifying: Any, network: str, grouping: Any, entropy: Any, **more: Any) -> Any:
        if signer.peer != HashSigner(plan.seed, plan.jobs[0].submitter).peer:
            return Node(signer, verifying, network, grouping, entropy, **more)
        apart.append(Apart(signer, network, grouping, entropy, **more))
        return apart[-1]

    world = World(plan, factory=make)
    world.checkers = watch = Stopwatch(world)
    world.run_until(plan.jobs[0].at - 1)
    before_mb, began = apart[0].now_mb(), time.monotonic()
    world.run()
    ended = time.monotonic()
    placed_s = float("inf") if watch.placed is None else watch.placed - began
    huge, small = world.jobs
    shared = float("inf") if small.settled_at is None else small.settled_at - small.plan.at
    return [
        Figure("seconds until it is placed, all nodes together", placed_s, PLACE_S),
        Figure("... in simulated time", ((huge.placed_at or 0) - huge.plan.at) / 1_000),
        Figure("MiB of the submitter's process", apart[0].peak_mb(), PLACE_MB),
        Figure("... before it submits", before_mb),
        Figure("MiB of all other nodes' process", peak_mb()),
        Figure("another job, in times of what it takes undisturbed", shared / alone, UNHARMED),
        Figure("seconds, all in all", ended - began),
        Figure("violations", float(len(watch.violations)), 0.0),
    ]


def _million(tasks: int) -> Plan:
    return scenarios.million(1, tasks=tasks)


def _small_job(plan: Plan) -> float:
    world = World(plan)
    world.run()
    [job] = world.jobs
    assert job.settled_at is not None, "the small job alone does not settle"
    return job.settled_at - job.plan.at


# --- many peers ----------------------------------------------------------------------------------------------------
def _simulated(plan: Plan) -> tuple[World, scenarios.Result, float]:
    began = time.process_time()
    world = World(plan)
    world.run()
    return world, scenarios.result_of(world), time.process_time() - began


def messages(options: argparse.Namespace) -> list[Figure]:
    """The same job in meshes of different sizes: what a task costs must not depend on who else is there."""
    figures: list[Figure] = []
    costs: list[float] = []
    for peers in (int(part) for part in options.peers.split(",")):
        quiet = scenarios.quiet(1, peers=peers, tasks=options.tasks)
        world, result, seconds = _simulated(quiet)
        costs.append(result.messages_per_task)
        figures.append(Figure(f"{peers} peers: direct messages a task", result.messages_per_task, MESSAGES))
        spread = sum(count for kind, count in result.by_kind if kind in SPREADING)
        figures.append(
            Figure(f"{peers} peers: ... of them to make the jobs, and their ends, known", spread / result.tasks)
        )
        gossip = sum(count for kind, count in result.by_kind if kind in scenarios.UPKEEP)
        figures.append(Figure(f"{peers} peers: what peers say of themselves, a peer", gossip / peers))
        figures.append(Figure(f"{peers} peers: seconds of processor time", seconds))
        figures.append(Figure(f"{peers} peers: tasks not settled", float(options.tasks - result.settled), 0.0))
        del world
    figures.append(Figure("the most of them, in times of the least", max(costs) / min(costs), FLAT))
    return figures


def least_ms(plan: Plan) -> float:
    """How long a job takes whose tasks one who sees everything deals out, message for message at once: the next run to
    whoever is free, and, when none is left, another of the run that would end last to whoever would end it sooner."""
    job = plan.jobs[0]
    dies = {crash.peer: crash.at - job.at for crash in plan.crashes}
    missing = dict.fromkeys(range(job.tasks), job.agree)
    todo = [task for task in missing for _ in range(job.agree)]
    running: dict[int, tuple[float, int]] = {}
    free = [(0.0, peer) for peer in range(len(plan.peers))]
    now, done_at = 0.0, 0.0
    while free:
        now, peer = heapq.heappop(free)
        _, task = running.pop(peer, (now, -1))
        dead = dies.get(peer, math.inf) <= now
        if task >= 0 and dead:
            todo.append(task)
        elif task >= 0 and missing[task]:
            missing[task] -= 1
            done_at = now
        if dead:
            continue
        takes_ms = job.task_ms * 1_000 / plan.peers[peer].speed
        while todo and not missing[todo[-1]]:
            todo.pop()
        late = [] if todo else [one for one in running.values() if one[0] > now + takes_ms and missing[one[1]]]
        mine = todo.pop() if todo else max(late)[1] if late else None
        if mine is not None:
            running[peer] = now + takes_ms, mine
            heapq.heappush(free, (min(now + takes_ms, max(now, dies.get(peer, math.inf))), peer))
        elif running:
            # It looks again when somebody ends.
            heapq.heappush(free, (min(end for end, _ in running.values()) + 1, peer))
    return done_at


def makespan(options: argparse.Namespace) -> list[Figure]:
    plan = scenarios.uneven(1, peers=options.peers, tasks=options.tasks)
    world, result, seconds = _simulated(plan)
    [job] = world.jobs
    ideal_ms = scenarios.ideal_ms(plan)
    took_ms = float("inf") if job.settled_at is None else job.settled_at - job.plan.at
    speeds = [peer.speed / 1_000 for peer in plan.peers]
    return [
        Figure("makespan, in times of the ideal", took_ms / ideal_ms, MAKESPAN),
        Figure("... of one who sees everything", least_ms(plan) / ideal_ms),
        Figure("... the ideal, seconds", ideal_ms / 1_000),
        Figure("median speed of a machine", statistics.median(speeds)),
        Figure("runs a task", result.runs / options.tasks),
        Figure("direct messages a task", result.messages_per_task),
        Figure("machines that died", float(result.crashes)),
        Figure("seconds of processor time", seconds),
        Figure("violations", float(len(result.violations)), 0.0),
    ]


def crowd(options: argparse.Namespace) -> list[Figure]:
    began = time.monotonic()
    _, result, seconds = _simulated(scenarios.crowd(1, peers=options.peers))
    return [
        Figure("seconds", time.monotonic() - began, CROWD_S),
        Figure("... of processor time", seconds),
        Figure("MiB", peak_mb(), CROWD_MB),
        Figure("direct messages a task", result.messages_per_task),
        Figure("tasks not settled", float(result.tasks - result.settled), 0.0),
        Figure("violations", float(len(result.violations)), 0.0),
    ]


# --- certificates --------------------------------------------------------------------------------------------------
def write_certificate(path: Path, tasks: int) -> None:
    """Of a settled job of so many tasks, two replicas each, a shard's results in one statement of each worker."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "protocol3"))
    import settled_job

    job = settled_job.settled(tasks, batch=128)
    with path.open("wb") as file:
        file.writelines(settled_job.build(job.job, job.shards(), job.settlement()))


def check_certificate(path: Path, answers: Connection) -> None:
    """In a process of its own, whose memory is what is measured."""
    before_mb, began = now_mb(), time.process_time()
    with path.open("rb") as file:
        report = check(file.read, verify)
    answers.send((report.ok, report.accepted, time.process_time() - began, peak_mb() - before_mb))


def certificate(options: argparse.Namespace) -> list[Figure]:
    context = multiprocessing.get_context("spawn")
    figures: list[Figure] = []
    grew: list[float] = []
    for tasks in (options.tasks // 10, options.tasks):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "certificate"
            write_certificate(path, tasks)
            ours, theirs = context.Pipe()
            checking = context.Process(target=check_certificate, args=(path, theirs))
            checking.start()
            theirs.close()
            holds, settled, seconds, grew_mb = ours.recv()
            checking.join()
            grew.append(grew_mb)
            figures.append(Figure(f"{tasks} tasks: bytes of certificate a task", path.stat().st_size / tasks, 1_000.0))
            figures.append(Figure(f"{tasks} tasks: seconds of processor time to check it", seconds))
            figures.append(Figure(f"{tasks} tasks: MiB that checking takes", grew_mb, CHECK_MB))
            figures.append(Figure(f"{tasks} tasks: not shown to be settled", float(tasks - settled * holds), 0.0))
    figures.append(Figure("memory for ten times the tasks, in times", grew[1] / grew[0]))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("million")
    part.add_argument("--tasks", type=int, default=1_000_000)
    part.set_defaults(measure=million)
    part = parts.add_parser("messages")
    part.add_argument("--peers", default="100,1000", help="how many there are, in turn")
    part.add_argument("--tasks", type=int, default=1_000)
    part.set_defaults(measure=messages)
    part = parts.add_parser("makespan")
    part.add_argument("--peers", type=int, default=1_000)
    part.add_argument("--tasks", type=int, default=5_000)
    part.set_defaults(measure=makespan)
    part = parts.add_parser("crowd")
    part.add_argument("--peers", type=int, default=10_000)
    part.set_defaults(measure=crowd)
    part = parts.add_parser("certificate")
    part.add_argument("--tasks", type=int, default=1_000_000)
    part.set_defaults(measure=certificate)
    options = parser.parse_args()
    figures: list[Figure] = options.measure(options)
    if options.json:
        print(json.dumps({figure.name: [figure.value, figure.most] for figure in figures}, indent=2))
    else:
        for figure in figures:
            wanted = "" if figure.most is None else f"   at most {figure.most:g}{'' if figure.holds else ': MISSED'}"
            print(f"{figure.value:12,.2f}  {figure.name}{wanted}")
    return int(not all(figure.holds for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
