"""What the mesh adds to a task, on real daemons on loopback, each a process of its own.

    .venv/bin/python benchmarks/mesh.py [--daemons 5] [--tasks 256] [--rounds 3] [--only NAME ...] [--json]

cpu        processor time of all daemons for one empty wasm task of a batch, two replicas, by thread; beside it what the
           same runs take without a mesh (one process, the same sandbox), measured in the same run
submit     from `nexapod submit` to placed, and a job of one trivial task from submitted to settled
makespan   a job of tasks of about a second each on as many workers as there are cores, against work x replicas / cores
lost       how long after the process of a task's worker was killed the next worker has begun the task

Exits with 1 when a bar is missed. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import trio
import wasmtime

from nexapod.cli.client import Client
from nexapod.cli.errors import CliError

NETWORK: Final = "benchmark"
WAIT_S: Final = 120.0
POLL_S: Final = 0.005
EMPTY: Final = '(module (memory (export "memory") 1) (func (export "_start")))'
SPIN: Final = """(module (memory (export "memory") 1) (func (export "_start") (local $i i64)
  (loop $again (local.set $i (i64.add (local.get $i) (i64.const 1)))
    (br_if $again (i64.lt_u (local.get $i) (i64.const {turns}))))))"""
BARS: Final = {
    "cpu_ms_a_task": 15.0,
    "placed_s": 0.3,
    "one_task_settled_s": 0.3,
    "makespan_of_ideal": 1.10,
    "next_worker_s": 1.0,
}


# --- daemons -------------------------------------------------------------------------------------------------------
@dataclass
class Daemon:
    """One daemon, by its home."""

    home: Path
    process: subprocess.Popen[bytes]
    client: Client
    addrs: list[str] = field(default_factory=list)


class Mesh:
    """Some daemons that know one another. `slots`: of each worker; the first does not work."""

    def __init__(self, folder: Path, workers: int, slots: int) -> None:
        self.folder = folder
        self.daemons: list[Daemon] = []
        self._start(["--no-work"])
        self._up(self.daemons[0])
        for _ in range(workers):
            self._start(["--slots", str(slots), "--bootstrap", self.daemons[0].addrs[0]])
        for daemon in self.daemons[1:]:
            self._up(daemon)
        until(self._met, "the daemons find one another")

    def _start(self, more: list[str]) -> None:
        home = self.folder / f"d{len(self.daemons)}"
        home.mkdir()
        command = [sys.executable, "-m", "nexapod", "start", "--home", str(home), "--network", NETWORK]
        command += ["--listen", "/ip4/127.0.0.1/tcp/0", "--log-format", "json", *more]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NEXAPOD_")}
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=kept | {"XDG_CONFIG_HOME": str(self.folder / "config")},
                start_new_session=True,
            )
        self.daemons.append(Daemon(home, process, Client(home / "api.sock")))

    def _up(self, daemon: Daemon) -> None:
        def up() -> bool:
            if daemon.process.poll() is not None:
                raise SystemExit(f"a daemon ended at its start:\n{(daemon.home / 'log').read_text()[-2000:]}")
            status = asked(daemon, "/v1/status")
            if not status or not status["listen"]:
                return False
            daemon.addrs = status["listen"]
            return True

        until(up, "a daemon starts")

    def _met(self) -> bool:
        """Linked, and each knows what the others are."""
        for daemon in self.daemons:
            peers = asked(daemon, "/v1/peers")
            if peers is None or sum(1 for peer in peers if peer["connected"]) < len(self.daemons) - 1:
                return False
        return True

    def stop(self) -> None:
        for how in (signal.SIGTERM, signal.SIGKILL):
            for daemon in self.daemons:
                if daemon.process.poll() is None:
                    daemon.process.send_signal(how)
            for daemon in self.daemons:
                try:
                    daemon.process.wait(20)
                except subprocess.TimeoutExpired:
                    continue

    # --- jobs ------------------------------------------------------------------------------------------------------
    def job(self, name: str, module: bytes, tasks: int, extra: str = "") -> Path:
        """A job file."""
        folder = self.folder / f"job-{name}-{time.monotonic_ns()}"
        folder.mkdir()
        (folder / "m.wasm").write_bytes(module)
        text = f'[job]\nname = "{name}"\n[run]\nexecutor = "wasm"\nmodule = "m.wasm"\n[tasks]\ncount = {tasks}\n{extra}'
        (folder / "job.toml").write_text(text)
        return folder / "job.toml"

    def submit(self, job: Path, at: int = 0, *words: str) -> dict[str, Any]:
        """What the real command answers."""
        command = [sys.executable, "-m", "nexapod", "submit", str(job), "--json", "--home", str(self.daemons[at].home)]
        done = subprocess.run([*command, *words], check=True, capture_output=True, text=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def post(self, module: bytes, tasks: int, at: int = 0) -> str:
        """Submit through the API alone; the job's id."""
        client = self.daemons[at].client
        ref = str(client.upload(io.BytesIO(module), len(module), lambda moved: None))
        body = {"name": "benchmark", "tasks": tasks, "run": {"executor": "wasm", "module": ref}}
        return str(client.post("/v1/jobs", body)["job_id"])

    def settled(self, job: str, at: int = 0) -> None:
        """Returns when it is. Listens: asking again and again would be most of what is measured."""
        for name, facts in self.daemons[at].client.events(job):
            if name == "closed" or (name == "snapshot" and facts["state"] == "settled"):
                return


def asked(daemon: Daemon, path: str) -> Any:
    """One answer of a daemon's API; None while there is none."""
    try:
        return daemon.client.get(path)
    except CliError:
        return None


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(POLL_S)


@contextmanager
def mesh(workers: int, slots: int) -> Iterator[Mesh]:
    with tempfile.TemporaryDirectory(prefix="nxp-") as folder:
        made = Mesh(Path(folder), workers, slots)
        try:
            yield made
        finally:
            made.stop()


# --- processor time ------------------------------------------------------------------------------------------------
def cpu_by_thread(daemons: list[Daemon]) -> Counter[str]:
    """Seconds of processor time so far: of the main threads, of the other threads, of the sandboxes' processes."""
    found: Counter[str] = Counter()
    for daemon in daemons:
        process = psutil.Process(daemon.process.pid)
        for thread in process.threads():
            name = "loop" if thread.id == process.pid else _thread_name(process.pid, thread.id)
            found[name] += thread.user_time + thread.system_time
        for child in process.children(recursive=True):
            try:
                used = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            found["sandboxes"] += used.user + used.system + used.children_user + used.children_system
    return found


def _thread_name(pid: int, thread: int) -> str:
    try:
        name = Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()
    except OSError:
        name = "gone"
    return f"thread {re.sub(r'[-_ ]*[0-9]+$', '', name)}"


def measure_cpu(options: argparse.Namespace) -> dict[str, Any]:
    empty = wasmtime.wat2wasm(EMPTY)
    rounds: list[tuple[float, Counter[str]]] = []
    with mesh(options.daemons, 2) as made:
        made.settled(made.post(empty, 4))
        for _ in range(options.rounds):
            before, began = cpu_by_thread(made.daemons), time.monotonic()
            made.settled(made.post(empty, options.tasks))
            seconds = time.monotonic() - began
            spent = cpu_by_thread(made.daemons)
            spent.subtract(before)
            rounds.append((seconds, spent))
    seconds, spent = min(rounds, key=lambda one: one[1].total())
    alone = trio.run(_alone, empty, 2 * options.tasks)
    milli = {name: 1000 * used / options.tasks for name, used in sorted(spent.items()) if used > 0}
    return {
        "tasks": options.tasks,
        "tasks_a_second": options.tasks / seconds,
        "cpu_ms_a_task": sum(milli.values()),
        "by_thread_ms": milli,
        "without_a_mesh_ms": 1000 * alone / options.tasks,
    }


async def _alone(module: bytes, runs: int) -> float:
    """Processor seconds that so many runs take in the daemons' sandbox, two at a time, with no mesh around it."""
    from nexapod.executor.contract import TaskRun
    from nexapod.executor.wasm.runners import Roots
    from nexapod.executor.wasm.sandbox import WasmExecutor
    from nexapod.protocol.types import Limits

    with tempfile.TemporaryDirectory(prefix="nxp-") as place:
        folder = Path(place)
        (folder / "m.wasm").write_bytes(module)
        roots = Roots(reads=(folder,), writes=(folder,))
        before = _own_cpu()
        executor = WasmExecutor(scratch=folder / "scratch", cache=folder / "modules", roots=roots)
        limit = trio.CapacityLimiter(2)

        async def one(number: int) -> None:
            async with limit:
                own = folder / str(number)
                for name in ("input", "output", "checkpoint"):
                    (own / name).mkdir(parents=True)
                run = TaskRun(
                    label=f"{number:x}",
                    executor="wasm",
                    module=folder / "m.wasm",
                    image=None,
                    command=(),
                    env=(),
                    workdir="",
                    input=own / "input",
                    output=own / "output",
                    checkpoint=own / "checkpoint",
                    limits=Limits(),
                    seed=bytes(32),
                )
                ended = await executor.run(run, lambda report: None)
                assert ended.outcome == "ok", ended

        async with trio.open_nursery() as nursery:
            for number in range(runs):
                nursery.start_soon(one, number)
        await executor.aclose()
        return _own_cpu() - before


def _own_cpu() -> float:
    """Of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# --- submitting ----------------------------------------------------------------------------------------------------
def measure_submit(options: argparse.Namespace) -> dict[str, Any]:
    empty = wasmtime.wat2wasm(EMPTY)
    placed, settled, command = [], [], []
    with mesh(options.daemons, 2) as made:
        made.settled(made.post(empty, 4))
        daemon = made.daemons[0]
        for _ in range(options.rounds * 3):
            began = time.monotonic()
            job = made.post(empty, 1)
            until(lambda job=job: bool((asked(daemon, f"/v1/jobs/{job}?count=0") or {}).get("placed")), "placed")
            placed.append(time.monotonic() - began)
            made.settled(job)
            settled.append(time.monotonic() - began)
        for _ in range(options.rounds):
            job_file = made.job("submitted", empty, 1)
            began = time.monotonic()
            made.submit(job_file)
            command.append(time.monotonic() - began)
    return {
        "placed_s": statistics.median(placed),
        "one_task_settled_s": statistics.median(settled),
        "submit_command_s": statistics.median(command),
    }


# --- makespan ------------------------------------------------------------------------------------------------------
def _turns_a_second() -> int:
    """Turns of the spinning module's loop in a second of this machine."""
    store = wasmtime.Store()
    turns = 200_000_000
    module = wasmtime.Module(store.engine, wasmtime.wat2wasm(SPIN.format(turns=turns)))
    start = wasmtime.Instance(store, module, []).exports(store)["_start"]
    began = time.process_time()
    start(store)  # type: ignore[operator]
    return int(turns / (time.process_time() - began))


def measure_makespan(options: argparse.Namespace) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    spin = wasmtime.wat2wasm(SPIN.format(turns=_turns_a_second()))
    tasks = 16 * cores
    found = []
    with mesh(cores, 1) as made:
        made.settled(made.post(wasmtime.wat2wasm(EMPTY), 4))
        for _ in range(options.rounds):
            before, began = cpu_by_thread(made.daemons)["sandboxes"], time.monotonic()
            made.settled(made.post(spin, tasks))
            seconds = time.monotonic() - began
            work = cpu_by_thread(made.daemons)["sandboxes"] - before
            found.append((seconds / (work / cores), seconds, work))
    ratio, seconds, work = min(found)
    return {"makespan_of_ideal": ratio, "seconds": seconds, "work_s": work, "tasks": tasks, "cores": cores}


# --- a worker that is killed ---------------------------------------------------------------------------------------
def measure_lost(options: argparse.Namespace) -> dict[str, Any]:
    spin = wasmtime.wat2wasm(SPIN.format(turns=20 * _turns_a_second()))
    found = []
    for _ in range(options.rounds):
        with mesh(3, 1) as made:
            made.settled(made.post(wasmtime.wat2wasm(EMPTY), 4))
            made.post(spin, 1)
            running = _running(made, 2)
            spare = next(d for d in made.daemons[1:] if d not in running)
            running[0].process.kill()
            began = time.monotonic()
            until(lambda spare=spare: bool(asked(spare, "/v1/tasks")), "another worker begins")
            found.append(time.monotonic() - began)
    return {"next_worker_s": statistics.median(found), "rounds": found}


def _running(made: Mesh, count: int) -> list[Daemon]:
    found: list[Daemon] = []

    def enough() -> bool:
        found[:] = [d for d in made.daemons[1:] if asked(d, "/v1/tasks")]
        return len(found) >= count

    until(enough, "workers run the task")
    return found


# --- all of it -----------------------------------------------------------------------------------------------------
MEASURES: Final[dict[str, Callable[[argparse.Namespace], dict[str, Any]]]] = {
    "cpu": measure_cpu,
    "submit": measure_submit,
    "makespan": measure_makespan,
    "lost": measure_lost,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemons", type=int, default=5, help="that work")
    parser.add_argument("--tasks", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=sorted(MEASURES), default=sorted(MEASURES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = {name: MEASURES[name](options) for name in options.only}
    if options.json:
        print(json.dumps(figures))
    else:
        say(figures)
    missed = [bar for found in figures.values() for bar in found if bar in BARS and found[bar] > BARS[bar]]
    return int(bool(missed))


def say(figures: dict[str, dict[str, Any]]) -> None:
    for name, found in figures.items():
        for figure, value in found.items():
            bar = f"   bar {BARS[figure]:g}: {'kept' if value <= BARS[figure] else 'MISSED'}" if figure in BARS else ""
            print(f"{name:9} {figure:20} {_said(value)}{bar}")


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(_said(one) for one in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
