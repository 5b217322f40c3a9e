"""The embedded executor: WebAssembly in runner processes of our own, with no engine to install.

Responsible for the life of a run: a runner that holds its module, a watch over it from the outside, and what its end
means. The processes are runners.py's, what happens inside one runner.py's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from nexapod.executor.capture import reason_text
from nexapod.executor.contract import (
    EXIT_KILLED,
    EXIT_TRAPPED,
    PROGRESS_ENV,
    PROGRESS_PATH,
    Availability,
    BadRun,
    Ended,
    OnReport,
    TaskRun,
    outcome_of_exit,
)
from nexapod.executor.wasm.runners import START_S, Leash, Pool, Priority, Reply, Roots, Runner, RunnerLost
from nexapod.executor.watch import (
    CHECKPOINT_FILES_MAX,
    SCRATCH_BYTES_MAX,
    SCRATCH_FILES_MAX,
    MustStop,
    Scratch,
    Watch,
    remove_all,
    set_aside,
)
from nexapod.protocol.limits import OUTPUT_FILES_MAX
from nexapod.protocol.primitives import ExecutorName
from nexapod.protocol.types import Usage

log = structlog.get_logger()

COMPILE_S: Final = 120.0
"""A module is compiled before its wall time begins, so that a slow machine judges it no differently."""
WALL_GRACE_S: Final = 2.0
"""After the wall limit the runner has so long to say so itself before it is killed."""
IDLE_S: Final = 300.0
MODULES_PER_RUNNER: Final = 8
CACHE_FILE_BYTES_MAX: Final = 256 << 20
THROTTLE_S: Final = 0.05
"""How often a run with less than one core is held to its share."""


class WasmExecutor:
    """Runs WASI preview 1 commands. As many at once as `run` is called; `idle_max` runners are kept for the next."""

    name: ExecutorName = "wasm"

    def __init__(
        self,
        *,
        scratch: Path,
        cache: Path | None,
        idle_max: int = 2,
        priority: Priority = "low",
        idle_s: float = IDLE_S,
        roots: Roots | None = None,
    ) -> None:
        """`scratch` and `cache` are directories of this daemon alone, made here (0700). `cache` None: no compiled
        module outlives its runner. A runner unused for `idle_s` seconds ends itself. `roots`: where all runs' modules
        (reads) and folders (writes) lie, so that runners can be kept from all other files; None: they are not."""
        self._scratch = scratch
        self._cache = cache
        self._runs: dict[str, Leash] = {}
        self._compiling: dict[str, trio.Event] = {}
        own = (scratch,) if cache is None else (scratch, cache)
        for directory in own:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        if roots is not None:
            for directory in (*roots.reads, *roots.writes):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            roots = Roots(roots.reads, (*roots.writes, *own))
        self._pool = Pool(idle_max=idle_max, priority=priority, idle_s=idle_s, roots=roots)

    @property
    def idle_pids(self) -> frozenset[int]:
        """The runners that wait for a task."""
        return self._pool.idle_pids

    async def probe(self) -> Availability:
        """Starts a runner (kept for the first task) and has it prove that wasmtime works on this machine."""
        try:
            found = version("wasmtime")
        except PackageNotFoundError:
            return Availability(False, reason="the wasmtime package is missing: reinstall nexapod")
        try:
            async with self._pool.runner() as runner:
                await _start(runner, Leash())
                with trio.fail_after(START_S):
                    proof = await runner.ask({"op": "prove"})
        except (RunnerLost, OSError) as error:
            return Availability(False, found, reason_text(f"wasm runners do not start: {error}"))
        except trio.TooSlowError:
            return Availability(False, found, f"the wasm runner says nothing for {START_S:.0f} s")
        if proof.kind != "proved":
            return Availability(False, found, reason_text(f"no module can run here: {proof.message}"))
        return Availability(True, found)

    async def run(self, run: TaskRun, on_report: OnReport) -> Ended:
        """See Executor.run. A runner that dies costs this run only."""
        if run.module is None:
            raise BadRun("a wasm run names a module")
        if run.label in self._runs:
            raise BadRun(f"a run {run.label} is in progress")
        if run.limits.gpus:
            return Ended("try-elsewhere", EXIT_KILLED, reason="a wasm task has no GPU")
        scratch = Scratch(self._scratch, run.label)
        self._runs[run.label] = leash = Leash()
        try:
            scratch.remove()  # what an earlier daemon left, when nobody has asked to reap it
            scratch.make()
            return await self._run_in(scratch, run, leash, on_report)
        finally:
            scratch.remove()
            del self._runs[run.label]

    async def pause(self, label: str) -> bool:
        """Stops the run's runner, whatever it is at."""
        leash = self._runs.get(label)
        if leash:
            leash.pause()
        return leash is not None

    async def resume(self, label: str) -> bool:
        leash = self._runs.get(label)
        if leash:
            leash.resume()
        return leash is not None

    async def survivors(self) -> frozenset[str]:
        """None: runners end with their daemon."""
        return frozenset()

    async def reap_orphans(self, keep: frozenset[str] = frozenset()) -> int:
        """Runners end with their daemon (they watch their stdin), so only scratch can be left behind."""
        # In one step, before a run can begin: it may even have the label of what is left.
        left = set_aside(self._scratch, keep | self._runs.keys())
        await trio.to_thread.run_sync(remove_all, left)
        return len(left)

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def _run_in(self, scratch: Scratch, run: TaskRun, leash: Leash, on_report: OnReport) -> Ended:
        last_attempt = False
        while True:
            try:
                async with self._pool.runner(str(run.module)) as runner:
                    with leash.on(runner):
                        await _start(runner, leash)
                        refused = await self._load(runner, run, leash)
                        return refused or await _execute(runner, run, leash, scratch, on_report)
            except OSError as error:
                return Ended("try-elsewhere", EXIT_KILLED, reason=reason_text(f"no wasm runner starts: {error}"))
            except RunnerLost as lost:
                # One that had been idle too long was gone before it read the request: another takes it.
                if lost.started or last_attempt:
                    log.warning("wasm_runner_lost", label=run.label, reason=str(lost))
                    return Ended("try-elsewhere", EXIT_KILLED, reason=str(lost))
                last_attempt = True

    async def _load(self, runner: Runner, run: TaskRun, leash: Leash) -> Ended | None:
        """Have the runner hold the module compiled; the end of the run when it cannot be."""
        key = str(run.module)
        if key in runner.modules:
            runner.modules.move_to_end(key)
            return None
        drop = [runner.modules.popitem(last=False)[0]] if len(runner.modules) >= MODULES_PER_RUNNER else []
        with leash.within(COMPILE_S) as scope:
            async with self._turn(key):
                reply = await runner.ask(_load_request(run, drop, self._cache))
        if scope.cancelled_caught:
            await runner.end()
            return Ended("try-elsewhere", EXIT_KILLED, reason=f"the module does not compile in {COMPILE_S:.0f} s")
        if reply.kind != "loaded":
            return _ended(reply, run, "")
        runner.modules[key] = None
        runner.memory_before = runner.private_bytes()
        return None

    @asynccontextmanager
    async def _turn(self, module: str) -> AsyncIterator[None]:
        """One runner at a time compiles a module, the others find it in the cache. One that takes too long, it may
        be paused, is not waited for."""
        with trio.move_on_after(COMPILE_S / 2):
            while module in self._compiling:
                await self._compiling[module].wait()
        done = trio.Event()
        self._compiling.setdefault(module, done)
        try:
            yield
        finally:
            if self._compiling.get(module) is done:
                del self._compiling[module]
            done.set()


async def _start(runner: Runner, leash: Leash) -> None:
    with leash.within(START_S) as scope:
        await runner.wait_ready()
    if scope.cancelled_caught:
        await runner.end()
        raise RunnerLost(f"no wasm runner is ready after {START_S:.0f} s", started=False)


@dataclass(slots=True)
class _Race:
    """What came first: the runner's reply, its death, or a reason to stop it."""

    reply: Reply | None = None
    lost: RunnerLost | None = None
    stop: MustStop | None = None


async def _execute(runner: Runner, run: TaskRun, leash: Leash, scratch: Scratch, on_report: OnReport) -> Ended:
    runner.board.clear()
    measure = _Meter(runner, run.limits.memory)
    watch = Watch(run, scratch, on_report, wall_grace_s=WALL_GRACE_S, measure_usage=lambda: measure(watch))
    with leash.timing(watch.clock):
        race = await _race(runner, run, scratch, watch)
    measure.reply = race.reply
    too_much = await watch.finish()
    if race.reply is not None:
        ended = _ended(race.reply, run, watch.log)
        return _stopped(too_much, ended) if too_much else ended
    usage = Usage(watch.usage.cpu_ms, watch.wall_ms, watch.usage.peak_memory)
    await runner.end()
    if race.stop is None:
        assert race.lost is not None
        log.warning("wasm_runner_lost", label=run.label, reason=str(race.lost))
        if not race.lost.started:
            raise race.lost
        return Ended("try-elsewhere", EXIT_KILLED, usage, watch.log, str(race.lost))
    return _stopped(race.stop, Ended("failed", EXIT_KILLED, usage, watch.log))


class _Meter:
    """What a run has used so far, of a runner that has run others before. Asked in a worker thread."""

    def __init__(self, runner: Runner, memory_max: int) -> None:
        self._runner = runner
        self._memory_max = memory_max
        self._cpu_before_ms = runner.cpu_before_ms
        self._peak = 0
        self.reply: Reply | None = None
        """Once the run has ended by itself: that says it better."""

    def __call__(self, watch: Watch) -> Usage | None:
        """Also has the watch hear what was printed: both are looked at together."""
        board = self._runner.board
        watch.hear_kept(*board.printed(), board.progress())
        if self.reply is not None:
            return Usage(self.reply.cpu_ms, peak_memory=min(self.reply.memory, self._memory_max))
        cpu_ms, memory = self._runner.cpu_ms(), self._runner.private_bytes()
        if not cpu_ms:
            return None
        # Seen from outside: what the run touched, where its end tells what it had.
        self._peak = max(self._peak, min(memory - self._runner.memory_before, self._memory_max))
        return Usage(max(0, cpu_ms - self._cpu_before_ms), peak_memory=self._peak)


async def _race(runner: Runner, run: TaskRun, scratch: Scratch, watch: Watch) -> _Race:
    race = _Race()

    async def execute(scope: trio.CancelScope) -> None:
        try:
            race.reply = await runner.ask(_run_request(run, scratch))
        except RunnerLost as error:
            race.lost = error
        scope.cancel()

    async def observe(scope: trio.CancelScope) -> None:
        race.stop = await watch.wait_must_stop()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(execute, nursery.cancel_scope)
        nursery.start_soon(observe, nursery.cancel_scope)
        if run.limits.cpus_milli < 1000:
            nursery.start_soon(_throttle, runner, run.limits.cpus_milli / 1000, lambda: watch.clock.ran_s)
    return race


async def _throttle(runner: Runner, share: float, ran_s: Callable[[], float]) -> None:
    """Hold the runner to a share of one core, by stopping it for as long as it is ahead. Until cancelled."""
    before_ms = runner.cpu_ms()
    while True:
        await trio.sleep(THROTTLE_S)
        ahead_s = (runner.cpu_ms() - before_ms) / 1000 / share - ran_s()
        if ahead_s > 0:
            runner.hold("share")
            try:
                await trio.sleep(ahead_s)
            finally:
                runner.let_go("share")


def _load_request(run: TaskRun, drop: list[str], cache: Path | None) -> dict[str, Any]:
    return {
        "op": "load",
        "key": str(run.module),
        "path": str(run.module),
        "drop": drop,
        "cache": cache and str(cache),
        "memory": run.limits.memory,
        "file_bytes": CACHE_FILE_BYTES_MAX,
    }


def _run_request(run: TaskRun, scratch: Scratch) -> dict[str, Any]:
    limits = run.limits
    return {
        "op": "run",
        "key": str(run.module),
        "argv": ["task", *run.command],
        "env": [*run.env, (PROGRESS_ENV, PROGRESS_PATH)],
        # Where on this machine, where in the module, and what may be written there: bytes and files.
        "dirs": [
            (str(run.input), "/input", None),
            (str(run.output), "/output", (limits.output, OUTPUT_FILES_MAX)),
            (str(run.checkpoint), "/checkpoint", (limits.disk, CHECKPOINT_FILES_MAX)),
            (str(scratch.run), "/run", (SCRATCH_BYTES_MAX, SCRATCH_FILES_MAX)),
        ],
        "memory": limits.memory,
        "disk": limits.disk + SCRATCH_BYTES_MAX,
        # One byte more than a file may have: a task that runs into it is over its limit, and is seen to be.
        "file_bytes": max(limits.output, limits.disk) + 1,
        "wall_ms": limits.wall_ms,
        "seed": run.seed,
    }


def _ended(reply: Reply, run: TaskRun, printed: str) -> Ended:
    """What a runner's reply means."""
    usage = Usage(reply.cpu_ms, reply.wall_ms, min(reply.memory, run.limits.memory))
    said = reason_text(reply.message)
    code = reply.code & 0xFF
    match reply.kind:
        case "exit":
            outcome = outcome_of_exit(code)
            if outcome == "failed" and _memory_used_up(reply.memory, run):
                return Ended("memory-limit", code, usage, printed, _memory_reason(run))
            return Ended(outcome, code, usage, printed, f"exit status {code}" if code else "")
        case "interrupted":
            return Ended("wall-limit", EXIT_KILLED, usage, printed, f"not done after {run.limits.wall_ms} ms")
        case "overrun":
            return Ended("output-limit", EXIT_KILLED, usage, printed, said)
        case "trap":
            if _memory_used_up(reply.memory, run):
                return Ended("memory-limit", EXIT_TRAPPED, usage, printed, _memory_reason(run))
            return Ended("failed", EXIT_TRAPPED, usage, printed, said)
        case "refused":
            if "exceeds memory limits" in said:
                return Ended("memory-limit", EXIT_TRAPPED, usage, printed, _memory_reason(run))
            return Ended("failed", EXIT_TRAPPED, usage, printed, reason_text(f"the module cannot run: {said}"))
        case _:
            log.error("wasm_runner_error", label=run.label, message=said)
            return Ended("try-elsewhere", EXIT_KILLED, usage, printed, said)


def _memory_used_up(memory: int, run: TaskRun) -> bool:
    """Whether a failure is put down to memory. wasmtime does not tell that it denied a module more, only the module
    knows; the size at the end does not depend on the machine, so replicas agree on this."""
    return memory > run.limits.memory * 7 // 8


def _stopped(stop: MustStop, ended: Ended) -> Ended:
    return Ended(stop.outcome, EXIT_KILLED, ended.usage, ended.log, reason_text(stop.reason))


def _memory_reason(run: TaskRun) -> str:
    return f"out of its {run.limits.memory} bytes of memory"
