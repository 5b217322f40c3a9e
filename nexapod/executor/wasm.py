"""The embedded executor: WebAssembly in runner processes of our own, with no engine to install.

Responsible for the pool of runners (started ahead, reused, replaced when one dies), for bounding a run from the
outside, and for what its end means. What happens inside a runner is wasm_runner.py's; this module never loads
wasmtime, which would cost the daemon 30 MB.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import PIPE
from typing import Any, Final, Literal, TypeAlias

import msgpack
import structlog
import trio

from nexapod.executor.capture import reason_text, render
from nexapod.executor.contract import (
    EXIT_KILLED,
    EXIT_TRAPPED,
    PROGRESS_ENV,
    PROGRESS_PATH,
    Availability,
    BadRun,
    Ended,
    TaskRun,
    outcome_of_exit,
)
from nexapod.executor.watch import (
    MustStop,
    Progress,
    Scratch,
    overrun,
    remove_leftovers,
    wait_must_stop,
)
from nexapod.protocol.types import ExecutorName, Usage

log = structlog.get_logger()

Priority: TypeAlias = Literal["normal", "low", "idle"]
"""How much of a busy machine tasks may take: `low` is nice 10, `idle` only what nothing else wants."""

START_S: Final = 15.0
COMPILE_S: Final = 120.0
"""A module is compiled before its wall time begins, so that a slow machine judges it no differently."""
WALL_GRACE_S: Final = 2.0
"""After the wall limit the runner has so long to say so itself before it is killed."""
KILL_S: Final = 5.0
IDLE_S: Final = 300.0
MODULES_PER_RUNNER: Final = 8
CACHE_FILE_BYTES_MAX: Final = 256 << 20
REPLY_BYTES_MAX: Final = 64 * 1024
_READ_BYTES: Final = 16 * 1024
_STDERR_BYTES: Final = 1000


class RunnerLost(Exception):
    """A runner process ended, or answered nonsense. `started`: whether the request may have begun."""

    def __init__(self, reason: str, *, started: bool) -> None:
        super().__init__(reason)
        self.started = started


class _Runner:
    """One runner process, as its parent sees it. Requests and replies alternate."""

    def __init__(self, process: trio.Process, stderr_fd: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._to = process.stdin
        self._from = process.stdout
        self._stderr_fd = stderr_fd
        self._buffer = bytearray()
        self._ready = False
        self.modules: OrderedDict[str, None] = OrderedDict()
        """What it holds compiled, the least recently used first."""

    @classmethod
    async def start(cls, priority: Priority, idle_s: float) -> _Runner:
        """The process starts on its own time: `wait_ready` is for whoever needs it first. Raises OSError."""
        argv = [sys.executable, "-I", "-m", "nexapod.executor.wasm_runner", str(idle_s), priority]
        stderr_fd = os.memfd_create("nexapod-runner")
        try:
            with trio.CancelScope(shield=True):  # a process that started must not be forgotten
                process = await trio.lowlevel.open_process(
                    argv,
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=stderr_fd,
                    env=_runner_env(),
                    start_new_session=True,  # a Ctrl-C in the daemon's terminal is the daemon's
                )
        except OSError:
            os.close(stderr_fd)
            raise
        return cls(process, stderr_fd)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def wait_ready(self) -> None:
        if self._ready:
            return
        reply: dict[str, Any] = {}
        with trio.move_on_after(START_S):
            reply = await self._receive()
        if reply.get("kind") != "ready":
            raise RunnerLost(f"not ready in {START_S:.0f} s ({reply!r:.100})", started=False)
        if not reply.get("fenced"):
            log.warning("wasm_runner_without_system_call_filter")
        self._ready = True

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply. Raises RunnerLost. When cancelled, the runner is of no more use."""
        body = msgpack.packb(request)
        try:
            await self._to.send_all(len(body).to_bytes(4, "big") + body)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise RunnerLost(self._epitaph(), started=False) from None
        return await self._receive()

    async def _receive(self) -> dict[str, Any]:
        size = int.from_bytes(await self._exactly(4), "big")
        if size > REPLY_BYTES_MAX:
            raise RunnerLost(f"a reply of {size} bytes", started=True)
        raw = await self._exactly(size)
        try:
            reply = msgpack.unpackb(raw)
        except (ValueError, msgpack.UnpackException) as error:
            raise RunnerLost(f"an unreadable reply: {error}", started=True) from None
        if not isinstance(reply, dict):
            raise RunnerLost("a reply that is no map", started=True)
        return reply

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = await self._from.receive_some(_READ_BYTES)
            if not piece:
                with trio.move_on_after(1):
                    await self._process.wait()
                # An idle runner leaves with status 0 and without reading the request.
                raise RunnerLost(self._epitaph(), started=self._process.returncode != 0)
            self._buffer += piece
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def cpu_ms(self) -> int:
        """CPU time that the process has used in all; 0 when it is gone."""
        try:
            with open(f"/proc/{self._process.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return 0
        return (int(fields[11]) + int(fields[12])) * 1000 // os.sysconf("SC_CLK_TCK")

    def _epitaph(self) -> str:
        status = self._process.returncode
        how = "closed its pipe" if status is None else f"ended with status {status}"
        size = os.fstat(self._stderr_fd).st_size
        said = os.pread(self._stderr_fd, _STDERR_BYTES, max(0, size - _STDERR_BYTES)).decode("utf-8", "replace")
        return f"the wasm runner {how}{': ' + said.strip() if said.strip() else ''}"

    async def end(self) -> None:
        """Kill it and wait until it is gone; at most KILL_S, whatever is cancelled meanwhile."""
        with trio.move_on_after(KILL_S) as deadline:
            deadline.shield = True
            self._process.kill()
            await self._process.wait()
        if deadline.cancelled_caught:
            log.error("wasm_runner_not_killed", pid=self._process.pid)
        with trio.CancelScope(shield=True):
            await self._to.aclose()
            await self._from.aclose()
        if self._stderr_fd >= 0:
            os.close(self._stderr_fd)
            self._stderr_fd = -1


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
    ) -> None:
        """`scratch` and `cache` are directories of this daemon alone, made here (0700). `cache` None: no compiled
        module outlives its runner. A runner unused for `idle_s` seconds ends itself."""
        self._scratch = scratch
        self._cache = cache
        self._idle_max = idle_max
        self._priority: Priority = priority
        self._idle_s = idle_s
        self._idle: list[_Runner] = []
        self._live: set[str] = set()
        for directory in (scratch, cache):
            if directory is not None:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                directory.chmod(0o700)

    @property
    def idle_pids(self) -> frozenset[int]:
        """The runners that wait for a task."""
        return frozenset(runner.pid for runner in self._idle)

    async def probe(self) -> Availability:
        """Starts a runner (kept for the first task), which proves that wasmtime works on this machine."""
        try:
            found = version("wasmtime")
        except PackageNotFoundError:
            return Availability(False, reason="the wasmtime package is missing: reinstall nexapod")
        try:
            async with self._runner() as runner:
                await runner.wait_ready()
        except (RunnerLost, OSError) as error:
            return Availability(False, found, reason_text(f"wasm runners do not start: {error}"))
        return Availability(True, found)

    async def run(self, run: TaskRun, on_progress: Callable[[float], None]) -> Ended:
        """See Executor.run. A runner that dies costs this run only."""
        if run.module is None:
            raise BadRun("a wasm run names a module")
        if run.limits.gpus:
            return Ended("try-elsewhere", EXIT_KILLED, reason="a wasm task has no GPU")
        scratch = Scratch(self._scratch, run.label)
        self._live.add(run.label)
        try:
            scratch.make()
            return await self._run_in(scratch, run, Progress(scratch, on_progress))
        finally:
            scratch.remove()
            self._live.discard(run.label)

    async def reap_orphans(self) -> int:
        """Runners end with their daemon (they watch their stdin), so only scratch can be left behind."""
        return await trio.to_thread.run_sync(remove_leftovers, self._scratch, frozenset(self._live))

    async def aclose(self) -> None:
        while self._idle:
            await self._idle.pop().end()

    async def _run_in(self, scratch: Scratch, run: TaskRun, progress: Progress) -> Ended:
        last_attempt = False
        while True:
            began = trio.current_time()
            try:
                async with self._runner() as runner:
                    await runner.wait_ready()
                    refused = await self._load(runner, run)
                    return refused or await self._execute(runner, run, scratch, progress)
            except OSError as error:
                return Ended("try-elsewhere", EXIT_KILLED, reason=reason_text(f"no wasm runner starts: {error}"))
            except RunnerLost as lost:
                # One that had been idle too long was gone before it read the request: another takes it.
                if lost.started or last_attempt:
                    log.warning("wasm_runner_lost", label=run.label, reason=str(lost))
                    usage = Usage(wall_ms=round((trio.current_time() - began) * 1000))
                    return Ended("try-elsewhere", EXIT_KILLED, usage, reason=reason_text(str(lost)))
                last_attempt = True

    async def _load(self, runner: _Runner, run: TaskRun) -> Ended | None:
        """Have the runner hold the module compiled; the end of the run when it cannot be."""
        assert run.module is not None
        key = str(run.module)
        if key in runner.modules:
            runner.modules.move_to_end(key)
            return None
        drop = [runner.modules.popitem(last=False)[0]] if len(runner.modules) >= MODULES_PER_RUNNER else []
        reply: dict[str, Any] = {}
        with trio.move_on_after(COMPILE_S):
            reply = await runner.ask(
                {
                    "op": "load",
                    "key": key,
                    "path": key,
                    "drop": drop,
                    "cache": self._cache and str(self._cache),
                    "memory": run.limits.memory,
                    "file_bytes": CACHE_FILE_BYTES_MAX,
                }
            )
        if not reply:
            await runner.end()
            return Ended("try-elsewhere", EXIT_KILLED, reason=f"the module does not compile in {COMPILE_S:.0f} s")
        if reply.get("kind") != "loaded":
            return _ended(reply, run)
        runner.modules[key] = None
        return None

    async def _execute(self, runner: _Runner, run: TaskRun, scratch: Scratch, progress: Progress) -> Ended:
        cpu_before, began = runner.cpu_ms(), trio.current_time()
        race = await _race(runner, run, scratch, progress)
        if race.lost:
            raise race.lost
        progress.look()
        if race.reply is not None:
            ended = _ended(race.reply, run)
            too_much = await trio.to_thread.run_sync(overrun, run, scratch)
            return _stopped(too_much, ended) if too_much else ended
        usage = Usage(cpu_ms=max(0, runner.cpu_ms() - cpu_before), wall_ms=round((trio.current_time() - began) * 1000))
        await runner.end()
        stop = race.stop or MustStop("wall-limit", _wall_reason(run))
        return _stopped(stop, Ended("failed", EXIT_KILLED, usage))

    @asynccontextmanager
    async def _runner(self) -> AsyncIterator[_Runner]:
        """A runner for one run. It goes back to the pool unless something went wrong: then it is killed."""
        runner = None
        while self._idle and runner is None:
            runner = self._idle.pop()
            if not runner.alive:
                await runner.end()
                runner = None
        if runner is None:
            runner = await _Runner.start(self._priority, self._idle_s)
        keep = False
        try:
            yield runner
            keep = runner.alive and len(self._idle) < self._idle_max
        finally:
            if keep:
                self._idle.append(runner)
            else:
                await runner.end()


@dataclass(slots=True)
class _Race:
    """What came first: the runner's reply, its death, or a reason to stop it. None of them: the wall limit."""

    reply: dict[str, Any] | None = None
    lost: RunnerLost | None = None
    stop: MustStop | None = None


async def _race(runner: _Runner, run: TaskRun, scratch: Scratch, progress: Progress) -> _Race:
    race = _Race()

    async def execute(scope: trio.CancelScope) -> None:
        try:
            race.reply = await runner.ask(_request(run, scratch))
        except RunnerLost as error:
            race.lost = error
        scope.cancel()

    async def watch(scope: trio.CancelScope) -> None:
        race.stop = await wait_must_stop(run, scratch, progress)
        scope.cancel()

    with trio.move_on_after(run.limits.wall_ms / 1000 + WALL_GRACE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(execute, nursery.cancel_scope)
            nursery.start_soon(watch, nursery.cancel_scope)
    return race


def _runner_env() -> dict[str, str]:
    """Nothing of the daemon's environment but where shared libraries lie."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ} | {"LC_ALL": "C.UTF-8"}


def _request(run: TaskRun, scratch: Scratch) -> dict[str, Any]:
    return {
        "op": "run",
        "key": str(run.module),
        "argv": ["task", *run.command],
        "env": [*run.env, (PROGRESS_ENV, PROGRESS_PATH)],
        "dirs": [
            (str(run.input), "/input", False),
            (str(run.output), "/output", True),
            (str(run.checkpoint), "/checkpoint", True),
            (str(scratch.run), "/run", True),
        ],
        "memory": run.limits.memory,
        # One byte more than a file may have: a task that runs into it is over its limit, and is seen to be.
        "file_bytes": run.limits.output + 1,
        "wall_ms": run.limits.wall_ms,
        "seed": run.seed,
    }


def _ended(reply: dict[str, Any], run: TaskRun) -> Ended:
    """What a runner's reply means."""
    printed = render(*reply["printed"]) if "printed" in reply else ""
    memory = int(reply.get("memory", 0))
    usage = Usage(int(reply.get("cpu_ms", 0)), int(reply.get("wall_ms", 0)), memory)
    said = reason_text(str(reply.get("message", "")))
    match reply.get("kind"):
        case "exit":
            code = int(reply["code"])
            outcome = outcome_of_exit(code)
            if outcome == "failed" and _memory_used_up(memory, run):
                return Ended("memory-limit", code, usage, printed, _memory_reason(run))
            return Ended(outcome, code, usage, printed, reason_text(_exit_reason(code)))
        case "interrupted":
            return Ended("wall-limit", EXIT_KILLED, usage, printed, _wall_reason(run))
        case "trap":
            if _memory_used_up(memory, run):
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


def _exit_reason(code: int) -> str:
    return f"exit status {code}" if code else ""


def _wall_reason(run: TaskRun) -> str:
    return f"not done after {run.limits.wall_ms} ms"


def _memory_reason(run: TaskRun) -> str:
    return f"out of its {run.limits.memory} bytes of memory"
