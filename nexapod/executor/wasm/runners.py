"""The runner processes that execute WebAssembly, as their daemon sees them: started ahead, asked, stopped, ended.

Responsible for one process each (its pipes, its signals, what it used) and for the pool that keeps some for the next
run. Believes nothing that a runner says: a reply that is not one is the loss of that runner and of its run. What
happens inside is runner.py's; this module never loads wasmtime, which would cost the daemon 30 MB.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any, Final, Literal, TypeAlias

import msgpack
import structlog
import trio

from nexapod.executor.capture import reason_text
from nexapod.executor.wasm.board import Board
from nexapod.executor.watch import Clock

log = structlog.get_logger()

Priority: TypeAlias = Literal["normal", "low", "idle"]
"""How much of a busy machine tasks may take: `low` is nice 10, `idle` only what nothing else wants."""

START_S: Final = 15.0
KILL_S: Final = 5.0
REPLY_BYTES_MAX: Final = 64 * 1024
_NUMBER_MAX: Final = 1 << 62
_NUMBERS: Final = ("code", "cpu_ms", "wall_ms", "memory", "process_cpu_ms")
_READ_BYTES: Final = 16 * 1024
_STDERR_BYTES: Final = 1000
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICK_HZ: Final = os.sysconf("SC_CLK_TCK")
_GROUP: Final[dict[str, Any]] = {"process_group": 0}
"""A group of its own, since a Ctrl-C in the daemon's terminal is the daemon's; but no session of its own: then the
kernel wakes and ends a runner that is stopped when its daemon dies. (trio's types do not know the option.)"""


class RunnerLost(Exception):
    """A runner process ended, or answered nonsense. `started`: whether the request may have begun."""

    def __init__(self, reason: str, *, started: bool) -> None:
        super().__init__(reason_text(reason))
        self.started = started


@dataclass(frozen=True, slots=True)
class Roots:
    """The directories below which all folders and modules of all runs lie. A runner can open nothing else."""

    reads: tuple[Path, ...]
    writes: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a runner answered: `kind` says how it went; what does not belong to the kind is empty."""

    kind: str
    message: str = ""
    code: int = 0
    cpu_ms: int = 0
    wall_ms: int = 0
    memory: int = 0
    process_cpu_ms: int = 0
    """All that the process has used so far."""
    fences: tuple[str, ...] = ()
    """What a runner that is ready is bounded by, beside wasmtime."""

    @classmethod
    def parse(cls, raw: bytes) -> Reply:
        """Raises RunnerLost: this is no reply."""
        try:
            fields = msgpack.unpackb(raw)
            numbers = {name: _natural(fields.get(name, 0)) for name in _NUMBERS}
            fences = tuple(_text(fence) for fence in fields.get("fences", ()))
            return cls(_text(fields["kind"]), _text(fields.get("message", "")), **numbers, fences=fences)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, msgpack.UnpackException) as error:
            raise RunnerLost(f"an unreadable reply of the wasm runner: {error!r:.100}", started=True) from None


class Runner:
    """One process. Requests and replies alternate."""

    def __init__(self, process: trio.Process, stderr_fd: int, board: Board, fences: tuple[str, ...]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._to = process.stdin
        self._from = process.stdout
        self._stderr_fd = stderr_fd
        self._buffer = bytearray()
        self._fences = fences
        self._ready = False
        self._holds: set[str] = set()
        self.board = board
        self.modules: OrderedDict[str, None] = OrderedDict()
        """What it holds compiled, the least recently used first."""
        self.cpu_before_ms = 0
        self.memory_before = 0
        """What it had used, and held as its own, before the run in progress."""

    @classmethod
    async def start(cls, priority: Priority, idle_s: float, roots: Roots | None) -> Runner:
        """The process starts on its own time: `wait_ready` is for whoever needs it first. Raises OSError."""
        stderr_fd, board = os.memfd_create("nexapod-runner"), Board()
        argv = [sys.executable, "-I", "-m", "nexapod.executor.wasm.runner", str(idle_s), priority, str(board.fd)]
        try:
            with trio.CancelScope(shield=True):  # a process that started must not be forgotten
                process = await trio.lowlevel.open_process(
                    [*argv, *_root_arguments(roots)],
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=stderr_fd,
                    pass_fds=(board.fd,),
                    env=_environment(),
                    **_GROUP,
                )
        except OSError:
            os.close(stderr_fd)
            board.close()
            raise
        return cls(process, stderr_fd, board, ("system_calls",) if roots is None else ("system_calls", "files"))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def held(self) -> bool:
        return bool(self._holds)

    async def wait_ready(self) -> None:
        if self._ready:
            return
        reply = await self._receive()
        if reply.kind != "ready":
            raise RunnerLost(f"the wasm runner does not start: {reply.kind} {reply.message}", started=False)
        missing = [fence for fence in self._fences if fence not in reply.fences]
        if missing:
            log.warning("wasm_runner_without_fence", missing=missing)
        self.memory_before = self.private_bytes()
        self._ready = True

    async def ask(self, request: dict[str, Any]) -> Reply:
        """The reply. Raises RunnerLost. When cancelled, the runner is of no more use."""
        if self._buffer:
            raise RunnerLost("the wasm runner spoke without having been asked", started=False)
        body = msgpack.packb(request)
        try:
            await self._to.send_all(len(body).to_bytes(4, "big") + body)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise RunnerLost(self._epitaph(), started=False) from None
        reply = await self._receive()
        if reply.kind == "full":  # what it has kept of earlier runs is in the way: one that is new has room
            raise RunnerLost(reply.message, started=False)
        return reply

    async def _receive(self) -> Reply:
        size = int.from_bytes(await self._exactly(4), "big")
        if size > REPLY_BYTES_MAX:
            raise RunnerLost(f"a reply of {size} bytes of the wasm runner", started=True)
        reply = Reply.parse(await self._exactly(size))
        self.cpu_before_ms = reply.process_cpu_ms
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

    def hold(self, why: str) -> None:
        """Stop the process: it uses no CPU until each of those who held it has let it go."""
        self._holds.add(why)
        self._signal(signal.SIGSTOP)

    def let_go(self, why: str) -> None:
        self._holds.discard(why)
        if not self._holds:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:  # that it has not been waited for makes the pid its own
            self._process.send_signal(number)

    def cpu_ms(self) -> int:
        """CPU time that the process has used in all; 0 when it is gone."""
        try:
            with open(f"/proc/{self._process.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return 0
        return (int(fields[11]) + int(fields[12])) * 1000 // _TICK_HZ

    def private_bytes(self) -> int:
        """Memory that is the process's alone, as it is now; 0 when it is gone."""
        try:
            with open(f"/proc/{self._process.pid}/statm", "rb") as file:
                _, resident, shared, *_ = file.read().split()
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * _PAGE_BYTES

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
        self.board.close()
        if self._stderr_fd >= 0:
            os.close(self._stderr_fd)
            self._stderr_fd = -1


class Pool:
    """Runners that wait for a task. As many run at once as are asked for; `idle_max` are kept."""

    def __init__(self, *, idle_max: int, priority: Priority, idle_s: float, roots: Roots | None) -> None:
        self._idle_max = idle_max
        self._priority: Priority = priority
        self._idle_s = idle_s
        self._roots = roots
        self._idle: list[Runner] = []

    @property
    def idle_pids(self) -> frozenset[int]:
        return frozenset(runner.pid for runner in self._idle)

    @asynccontextmanager
    async def runner(self, module: str = "") -> AsyncIterator[Runner]:
        """A runner for one run, one that holds `module` if there is one. It goes back unless something went wrong:
        then it is killed."""
        runner = None
        while self._idle and runner is None:
            runner = self._idle.pop(self._best(module))
            if not runner.alive:
                await runner.end()
                runner = None
        if runner is None:
            runner = await Runner.start(self._priority, self._idle_s, self._roots)
        keep = False
        try:
            yield runner
            keep = runner.alive and not runner.held and len(self._idle) < self._idle_max
        finally:
            if keep:
                self._idle.append(runner)
            else:
                await runner.end()

    async def aclose(self) -> None:
        while self._idle:
            await self._idle.pop().end()

    def _best(self, module: str) -> int:
        holders = (at for at in range(len(self._idle) - 1, -1, -1) if module in self._idle[at].modules)
        return next(holders, len(self._idle) - 1)


class Leash:
    """What `pause` and `resume` reach of one run, whatever it is at: its runner, and the time it has for a step.

    A paused run can still be cancelled: its process is killed where it stands.
    """

    def __init__(self) -> None:
        self.paused = False
        self._runner: Runner | None = None
        self._step: trio.CancelScope | None = None
        self._left_s = 0.0
        self._clock: Clock | None = None
        self._clock_began = 0.0

    def pause(self) -> None:
        if self.paused:
            return
        self.paused = True
        if self._runner:
            self._runner.hold("pause")
        if self._clock:
            self._clock.pause()
        self._stop_the_step()

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        if self._step:
            self._step.deadline = trio.current_time() + self._left_s
        if self._clock:
            self._clock.resume()
        if self._runner:
            self._runner.board.set_paused_ns(self._paused_ns())
            self._runner.let_go("pause")

    @contextmanager
    def on(self, runner: Runner) -> Iterator[None]:
        """While this runner works for the run."""
        self._runner = runner
        if self.paused:
            runner.hold("pause")
        try:
            yield
        finally:
            self._runner = None

    @contextmanager
    def timing(self, clock: Clock) -> Iterator[None]:
        """While this clock, which has just started, measures the run."""
        self._clock, self._clock_began = clock, trio.current_time()
        if self.paused:
            clock.pause()
        try:
            yield
        finally:
            self._clock = None

    @contextmanager
    def within(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Like move_on_after; the time stands still during a pause."""
        with trio.move_on_after(seconds) as scope:
            self._step = scope
            if self.paused:
                self._stop_the_step()
            try:
                yield scope
            finally:
                self._step = None

    def _paused_ns(self) -> int:
        """For how long the run, not its preparation, has stood still in all."""
        if self._clock is None:
            return 0
        return max(0, round((trio.current_time() - self._clock_began - self._clock.ran_s) * 1e9))

    def _stop_the_step(self) -> None:
        if self._step:
            self._left_s = self._step.deadline - trio.current_time()
            self._step.deadline = float("inf")


def _natural(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= _NUMBER_MAX:
        raise ValueError(f"{value!r:.40} is no size")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _root_arguments(roots: Roots | None) -> Iterable[str]:
    if roots is not None:
        yield from (f"r{path.absolute()}" for path in roots.reads)
        yield from (f"w{path.absolute()}" for path in roots.writes)


def _environment() -> dict[str, str]:
    """Nothing of the daemon's environment but where shared libraries lie. WASI's own threads would be as many as there
    are CPUs, with 2 MiB of stack each: memory that a machine with hundreds of them would lack for the module."""
    ours = {"LC_ALL": "C.UTF-8", "TOKIO_WORKER_THREADS": "1"}
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ} | ours
