"""The wasm executor where it differs from others: its runners, its module cache, and its deterministic guest."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from subprocess import PIPE
from typing import Any

import msgpack
import psutil
import pytest
import trio
import trio.testing
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_kit import task_run
from wasm.wasm_kit import wat
from wasmtime import wat2wasm

from nexapod.executor.contract import BadRun, Ended, Report, TaskRun
from nexapod.executor.wasm import cache as module_cache
from nexapod.executor.wasm.board import Board
from nexapod.executor.wasm.cache import engine_config
from nexapod.executor.wasm.guest import CLOCK_BASE_NS, CLOCK_STEP_NS, Guest
from nexapod.executor.wasm.runner import DATA_SLACK, EXIT_UNWATCHED
from nexapod.executor.wasm.runners import Reply, Runner, RunnerLost
from nexapod.executor.wasm.sandbox import WasmExecutor, _load_request, _run_request
from nexapod.executor.watch import Scratch
from nexapod.protocol.limits import MODULE_BYTES_MAX, WALL_MAX_MS
from nexapod.protocol.types import Limits

WAT = Path(__file__).parent.parent / "wasm"
LIMITS = Limits(memory=32 << 20, output=1 << 20, wall_ms=20_000)


@dataclass
class Bench:
    executor: WasmExecutor
    root: Path
    count: int = 0
    reports: list[Report] = field(default_factory=list)

    @property
    def progress(self) -> list[float]:
        return [report.progress for report in self.reports if report.progress is not None]

    def task(self, name: str, *command: str, limits: Limits = LIMITS, seed: bytes = bytes(32)) -> TaskRun:
        self.count += 1
        module = self.root / f"{name}.wasm"
        if not module.exists():
            module.write_bytes(wat2wasm((WAT / f"{name}.wat").read_text()))
        home = self.root / f"run-{self.count}"
        return task_run(home, f"{self.count:x}", "wasm", *command, module=module, limits=limits, seed=seed)

    async def run(self, run: TaskRun) -> Ended:
        with trio.fail_after(60):
            return await self.executor.run(run, self.reports.append)

    async def do(self, name: str, *command: str, limits: Limits = LIMITS, seed: bytes = bytes(32)) -> Ended:
        return await self.run(self.task(name, *command, limits=limits, seed=seed))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    executor = WasmExecutor(scratch=tmp_path / "scratch", cache=tmp_path / "cache")
    yield Bench(executor, tmp_path)
    await executor.aclose()
    assert list((tmp_path / "scratch").iterdir()) == []


_MANY_FUNCTIONS = "".join(
    f"(func (param i32) (result i32) (local.get 0) {'(i32.const 3) (i32.mul) (i32.const 7) (i32.rotl) ' * 40})"
    for _ in range(1500)
)
"""What takes a compiler a while."""


def _module(bench: Bench, body: str, **options: Any) -> Path:
    path = bench.root / f"module-{bench.count}.wasm"
    path.write_bytes(wat(body, **options))
    return path


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110  (what is waited for happens in other processes)
            await trio.sleep(0.02)


def _runners() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "nexapod.executor.wasm.runner" in child.cmdline()]


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


async def test_a_runner_is_used_again(bench: Bench) -> None:
    await bench.do("empty")
    first = bench.executor.idle_pids
    for _ in range(3):
        assert (await bench.do("empty")).outcome == "ok"
    assert bench.executor.idle_pids == first
    assert len(first) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
async def test_a_runner_that_dies_costs_one_run(bench: Bench, number: signal.Signals) -> None:
    """SIGKILL is also what the kernel sends when memory runs out."""
    ends: list[Ended] = []
    run = bench.task("progress_then_spin")
    run = replace(run, module=_module(bench, "(drop (call $write #1 [last words])) (loop $l (br $l))"))

    async def execute() -> None:
        ends.append(await bench.run(run))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(execute)
        await _until(lambda: bool(bench.reports) and bench.reports[-1].printed > 0)
        (runner,) = _runners()
        # The first SIGSEGV that no instruction caused is wasmtime's, which waits for it to be caused again.
        await _until(lambda: bool(ends) or _signalled(runner, number))
    assert ends[0].outcome == "try-elsewhere"
    assert ends[0].reason.startswith(f"the wasm runner ended with status -{number.value}")
    assert ends[0].log == "last words", "what was printed is on the page that both share"
    assert (await bench.do("empty")).outcome == "ok"


@pytest.mark.parametrize(
    "said", [b"\0\0\0\x01", b"\xff" * 100, b"\0\0\0\x05garbage", b"\0\0\0\1\x93", b"\0\0\0\2\x81\xc0", b""]
)
async def test_garbage_from_a_runner_is_the_loss_of_that_runner(said: bytes) -> None:
    program = f"import os, sys; os.write(1, {said!r}); os.read(0, 9999)"
    process = await trio.lowlevel.open_process([sys.executable, "-c", program], stdin=PIPE, stdout=PIPE)
    runner = Runner(process, os.memfd_create("stderr"), Board(), ())
    with trio.fail_after(20), pytest.raises(RunnerLost):
        await runner.ask({"op": "run"})
    await runner.end()
    await runner.end()


_FIELDS = st.sampled_from(["kind", "code", "message", "memory", "fences"])
_VALUES = st.one_of(st.none(), st.integers(-9, 1 << 63), st.text(max_size=9), st.lists(st.integers(0, 9), max_size=2))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=100), st.dictionaries(_FIELDS, _VALUES).map(msgpack.packb)))
def test_any_bytes_are_a_reply_or_the_loss_of_the_runner(raw: bytes) -> None:
    with suppress(RunnerLost):
        reply = Reply.parse(raw)
        assert isinstance(reply.kind, str)
        assert isinstance(reply.message, str)
        assert min(reply.code, reply.memory, reply.cpu_ms, reply.wall_ms) >= 0


def _signalled(runner: psutil.Process, number: signal.Signals) -> bool:
    """Send it; True once there is nobody to have it."""
    with suppress(psutil.NoSuchProcess):
        runner.send_signal(number)
        return False
    return True


def _proc(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text().splitlines()


async def test_a_runner_is_fenced_in(bench: Bench) -> None:
    await bench.do("empty")
    (pid,) = bench.executor.idle_pids
    status = dict(line.split(":\t", 1) for line in _proc(pid, "status"))
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["Threads"]) == 2, "the module's and the watchdog's"
    limits = {line[:26].strip(): line[26:].split()[:2] for line in _proc(pid, "limits")}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"] == ["128", "192"]
    assert limits["Max file size"][0] == str(max(LIMITS.output, LIMITS.disk) + 1)
    assert limits["Max data size"][0] == str(LIMITS.memory + DATA_SLACK)
    assert _proc(pid, "oom_score_adj") == ["500"]
    (environment,) = _proc(pid, "environ")
    assert {entry.partition("=")[0] for entry in environment.split("\0")} <= {
        "",
        "LC_ALL",
        "LC_CTYPE",
        "LD_LIBRARY_PATH",
        "TOKIO_WORKER_THREADS",
    }
    assert "TOKIO_WORKER_THREADS=1" in environment.split("\0"), "as many as CPUs would use up the memory that is ours"


_HOLDER = """
import mmap
from nexapod.executor.wasm.runner import DATA_SLACK, RUN_BYTES, main
held = mmap.mmap(-1, DATA_SLACK - RUN_BYTES, flags=mmap.MAP_PRIVATE)
main()
"""


async def test_a_runner_that_holds_too_much_itself_leaves_the_run_to_another(bench: Bench, tmp_path: Path) -> None:
    """Its module would be denied memory before the job's limit, and could go on to another result."""
    run, board = bench.task("empty"), Board()
    argv = [sys.executable, "-c", _HOLDER, "60", "normal", str(board.fd)]
    process = await trio.lowlevel.open_process(argv, stdin=PIPE, stdout=PIPE, pass_fds=(board.fd,))
    runner = Runner(process, os.memfd_create("stderr"), board, ())
    with trio.fail_after(30):
        await runner.wait_ready()
        assert (await runner.ask(_load_request(run, [], None))).kind == "loaded"
        with pytest.raises(RunnerLost, match=r"itself holds 4\d\d MiB") as lost:
            await runner.ask(_run_request(run, Scratch(tmp_path, "none")))
    assert not lost.value.started
    await runner.end()


async def test_what_is_printed_is_told_while_the_module_runs(bench: Bench) -> None:
    run = replace(
        bench.task("empty"),
        module=_module(
            bench,
            """
        (drop (call $write #1 [NEXAPOD_PROGRESS=0.5])) (i32.store8 #0 #10) (drop (call $write #1 #0 #1))
        (drop (call $write #2 [and more])) (loop $l (br $l))""",
        ),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.executor.run, run, bench.reports.append)
        await _until(lambda: bool(bench.reports) and bench.reports[-1].usage.cpu_ms > 100)
        nursery.cancel_scope.cancel()
    last = bench.reports[-1]
    assert (last.progress, last.log, last.printed) == (0.5, "NEXAPOD_PROGRESS=0.5\nand more", 29)
    assert 0 <= last.usage.peak_memory <= LIMITS.memory
    assert last.usage.wall_ms > 0


async def test_a_run_can_be_paused_at_any_time(bench: Bench) -> None:
    """Also while its runner starts, or compiles."""
    for _ in range(3):
        ends: list[Ended] = []
        await bench.executor.aclose()
        run = bench.task("empty")
        run = replace(run, module=_module(bench, "", more=_MANY_FUNCTIONS))

        async def execute(run: TaskRun, ends: list[Ended]) -> None:
            ends.append(await bench.run(run))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(execute, run, ends)
            await _until(lambda: bool(_runners()))
            assert await bench.executor.pause(run.label)
            (runner,) = _runners()
            await _until(lambda runner=runner: runner.status() == psutil.STATUS_STOPPED)
            used = sum(runner.cpu_times()[:2])
            await trio.sleep(0.3)  # a pause: in which nothing may happen
            assert sum(runner.cpu_times()[:2]) == used
            assert ends == []
            assert await bench.executor.resume(run.label)
        assert ends[0].outcome == "ok"


async def test_the_runner_s_own_clock_stands_still_during_a_pause(bench: Bench) -> None:
    """It ends the run at the wall limit itself, and must not count the pause."""
    run = bench.task("progress_then_spin", limits=replace(LIMITS, wall_ms=1_000))
    ends: list[Ended] = []

    async def execute() -> None:
        ends.append(await bench.run(run))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(execute)
        await _until(lambda: bool(bench.reports))
        assert await bench.executor.pause(run.label)
        await trio.sleep(1.5)  # a pause: longer than the wall limit
        assert ends == []
        assert await bench.executor.resume(run.label)
    assert (ends[0].outcome, ends[0].reason) == ("wall-limit", "not done after 1000 ms")
    assert ends[0].usage.wall_ms >= 1_000
    assert len(bench.executor.idle_pids) == 1, "it ended by itself"


async def test_a_paused_runner_ends_with_its_daemon(bench: Bench) -> None:
    """It is stopped, so it cannot see for itself that the daemon is gone."""
    run = bench.task("progress_then_spin")
    folders = [str(run.module), str(run.input), str(run.output), str(run.checkpoint)]
    daemon = subprocess.Popen(  # noqa: ASYNC220  (killed below; trio would not let it die alone)
        [sys.executable, "-c", _DAEMON, str(bench.root / "scratch"), *folders], stdout=subprocess.PIPE
    )
    try:
        assert daemon.stdout is not None
        with trio.fail_after(30):
            pid = int(await trio.to_thread.run_sync(daemon.stdout.readline))
        runner = psutil.Process(pid)
        await _until(lambda: runner.status() == psutil.STATUS_STOPPED)
    finally:
        daemon.kill()
        daemon.wait(timeout=10)
        assert daemon.stdout is not None
        daemon.stdout.close()
    await _until(lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE)
    assert await bench.executor.reap_orphans() == 1


async def test_a_run_that_begins_while_leftovers_are_removed_keeps_its_scratch(bench: Bench) -> None:
    """Also one that an earlier daemon began: its label is that of what is left."""
    scratch, again, new = bench.root / "scratch", bench.task("empty"), bench.task("empty")
    for label in (again.label, "abc"):
        Scratch(scratch, label).make()
    ends: list[Ended] = []

    async def execute(run: TaskRun) -> None:
        ends.append(await bench.run(run))

    threads = trio.to_thread.current_default_thread_limiter()
    threads.total_tokens = 1
    async with trio.open_nursery() as nursery:
        threads.acquire_on_behalf_of_nowait("nobody else")  # until both runs have begun
        nursery.start_soon(bench.executor.reap_orphans)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(execute, again)
        nursery.start_soon(execute, new)
        await trio.testing.wait_all_tasks_blocked()
        assert {again.label, new.label} <= {path.name for path in scratch.iterdir()}
        threads.release_on_behalf_of("nobody else")
    assert [ended.outcome for ended in ends] == ["ok", "ok"], ends


_DAEMON = """
import sys, trio, psutil
from io import BytesIO
from pathlib import Path
from nexapod.executor.contract import TaskRun
from nexapod.executor.wasm.sandbox import WasmExecutor, _load_request, _run_request
from nexapod.executor.watch import Scratch
from nexapod.protocol.limits import MODULE_BYTES_MAX, WALL_MAX_MS
from nexapod.protocol.types import Limits

scratch, module, *folders = map(Path, sys.argv[1:])
executor = WasmExecutor(scratch=scratch, cache=None)
task = TaskRun("a", "wasm", module, None, (), (), "", *folders, Limits(wall_ms=60_000), bytes(32))

async def main():
    async with trio.open_nursery() as nursery:
        begun = trio.Event()
        nursery.start_soon(executor.run, task, lambda report: begun.set())
        await begun.wait()
        await executor.pause("a")
        print(psutil.Process().children()[0].pid, flush=True)

trio.run(main)
"""


async def test_less_than_a_core_is_held_to(bench: Bench) -> None:
    limits = replace(LIMITS, cpus_milli=200, wall_ms=2_000)
    ended = await bench.do("progress_then_spin", limits=limits)
    assert ended.outcome == "wall-limit"
    assert ended.usage.cpu_ms < ended.usage.wall_ms / 2


async def test_a_gpu_is_nothing_for_a_module(bench: Bench) -> None:
    ended = await bench.do("empty", limits=replace(LIMITS, gpus=1))
    assert ended.outcome == "try-elsewhere"
    assert "GPU" in ended.reason


async def test_a_label_runs_once_at_a_time(bench: Bench) -> None:
    run = bench.task("progress_then_spin")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.executor.run, run, bench.reports.append)
        await _until(lambda: bool(bench.reports))
        with pytest.raises(BadRun):
            await bench.executor.run(run, bench.reports.append)
        nursery.cancel_scope.cancel()


async def test_a_runner_that_died_while_idle_costs_nothing(bench: Bench) -> None:
    await bench.do("empty")
    (pid,) = bench.executor.idle_pids
    os.kill(pid, signal.SIGKILL)
    await _until(lambda: _ended(pid))
    assert (await bench.do("empty")).outcome == "ok"
    assert pid not in bench.executor.idle_pids


async def test_a_runner_that_was_idle_too_long_leaves_and_costs_nothing(tmp_path: Path) -> None:
    executor = WasmExecutor(scratch=tmp_path / "scratch", cache=None, idle_s=0.05)
    bench = Bench(executor, tmp_path)
    await bench.do("empty")
    (pid,) = executor.idle_pids
    await _until(lambda: _ended(pid))
    assert (await bench.do("empty")).outcome == "ok"
    await executor.aclose()
    assert not psutil.pid_exists(pid)


async def test_a_stopped_runner_is_killed_at_the_wall_limit(bench: Bench) -> None:
    """Epoch interruption cannot help when the whole process hangs: the parent does."""
    ends: list[Ended] = []
    spin = bench.task("progress_then_spin", limits=replace(LIMITS, wall_ms=2000))

    async def run() -> None:
        ends.append(await bench.run(spin))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await _until(lambda: bool(bench.progress))
        (runner,) = _runners()
        before = runner.cpu_times().user
        await _until(lambda: runner.cpu_times().user > before + 0.02)
        runner.suspend()
    assert ends[0].outcome == "wall-limit"
    assert ends[0].usage.cpu_ms > 0
    assert not runner.is_running()


async def test_a_wall_limit_of_a_month_leaves_the_watchdog_at_work(bench: Bench) -> None:
    assert (await bench.do("empty", limits=replace(LIMITS, wall_ms=WALL_MAX_MS))).outcome == "ok"
    (pid,) = bench.executor.idle_pids
    ended = await bench.do("progress_then_spin", limits=replace(LIMITS, wall_ms=700))
    assert (ended.outcome, ended.reason) == ("wall-limit", "not done after 700 ms")
    assert bench.executor.idle_pids == {pid}, "it ended the run by itself"


_UNWATCHED = """
import time
from nexapod.executor.wasm.runner import Watchdog
Watchdog(None, lambda: 1 / 0)
time.sleep(30)
"""


def test_a_runner_whose_watchdog_fails_ends_and_says_why() -> None:
    done = subprocess.run([sys.executable, "-c", _UNWATCHED], capture_output=True, timeout=20, check=False, text=True)
    assert done.returncode == EXIT_UNWATCHED
    assert done.stderr == "the watchdog failed: ZeroDivisionError: division by zero\n"


async def test_a_trap_is_the_module_s_failure(bench: Bench) -> None:
    ended = await bench.do("trap")
    assert (ended.outcome, ended.exit) == ("failed", 134)
    assert "integer divide by zero" in ended.reason


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a WebAssembly module"),
        (b"(module)", "not a WebAssembly module"),
        (b"\0asm\x01\0\0\0\xff", "malformed section"),
        (wat2wasm("(module)"), "must export _start and memory"),
        (wat2wasm('(module (memory (export "memory") 1) (global (export "_start") i32 (i32.const 0)))'), "must export"),
        (wat2wasm((WAT / "unknown_import.wat").read_text()), "unknown import"),
        (wat2wasm("(module (memory 1 1 shared))"), "threads"),
    ],
)
async def test_what_is_no_wasi_command_fails_with_the_reason(bench: Bench, content: bytes, said: str) -> None:
    run = bench.task("empty")
    module = bench.root / "odd.wasm"
    module.write_bytes(content)
    ended = await bench.run(replace(run, module=module))
    assert ended.outcome == "failed"
    assert said in ended.reason
    assert (await bench.do("empty")).outcome == "ok"
    assert len(bench.executor.idle_pids) == 1, "the runner survived"


async def test_a_module_too_large_is_refused_unread(bench: Bench) -> None:
    """On every machine, whatever it could hold."""
    run = replace(bench.task("empty"), module=bench.root / "large.wasm")
    assert run.module is not None
    run.module.write_bytes(b"\0asm\x01\0\0\0")
    os.truncate(run.module, 1 << 40)
    ended = await bench.run(run)
    assert (ended.outcome, ended.reason) == ("failed", "the module cannot run: a module has at most 96 MiB")
    (pid,) = bench.executor.idle_pids
    assert psutil.Process(pid).memory_info().rss < 256 << 20


async def test_the_largest_module_is_compiled_and_cached_beside_the_smallest_memory(bench: Bench) -> None:
    """A job may carry it, so no runner may run out of memory over it."""
    data = MODULE_BYTES_MAX - (1 << 20)
    segment = b"\x01\x01" + _leb(data) + bytes(data)  # a passive one
    run = replace(bench.task("empty", limits=replace(LIMITS, memory=1 << 20)), module=bench.root / "large.wasm")
    assert run.module is not None
    empty = wat2wasm('(module (memory (export "memory") 1) (func (export "_start")))')
    run.module.write_bytes(empty + b"\x0b" + _leb(len(segment)) + segment)
    for _ in range(2):
        assert (await bench.run(run)).outcome == "ok"
        await bench.executor.aclose()
    assert len(list((bench.root / "cache").iterdir())) == 1


def _leb(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _leb(rest) if rest else bytes([low])


async def test_a_module_that_is_missing_means_elsewhere(bench: Bench) -> None:
    ended = await bench.run(replace(bench.task("empty"), module=bench.root / "none.wasm"))
    assert ended.outcome == "try-elsewhere"
    assert "FileNotFoundError" in ended.reason


async def test_a_machine_that_has_no_room_for_a_memory_says_nothing_about_the_task(bench: Bench) -> None:
    """A limit of address space (ulimit -v, LimitAS of systemd), or a kernel that never overcommits."""
    assert (await bench.executor.probe()).ok
    (pid,) = bench.executor.idle_pids
    resource.prlimit(pid, resource.RLIMIT_AS, (3 << 30, 3 << 30))
    for name in ("empty", "files"):  # without the shim and with it
        ended = await bench.do(name)
        assert ended.outcome == "try-elsewhere", ended
        assert "Cannot allocate memory (os error 12)" in ended.reason
    found = await bench.executor.probe()
    assert not found.ok
    assert found.reason.startswith("no module can run here")
    assert "Cannot allocate memory" in found.reason
    assert bench.executor.idle_pids == {pid}


async def test_a_module_cannot_pass_for_an_error_of_the_system(bench: Bench) -> None:
    """It fails on every machine, and is to be told so."""
    odd = '(module (import "a" "(os error 12)" (func)) (memory (export "memory") 1) (func (export "_start")))'
    path = bench.root / "odd.wasm"
    path.write_bytes(wat2wasm(odd))
    assert (await bench.run(replace(bench.task("empty"), module=path))).outcome == "failed"


async def test_memory_asked_for_at_once_is_denied_as_well(bench: Bench) -> None:
    ended = await bench.do("memory_at_once")
    assert ended.outcome == "memory-limit"


async def test_open_files_are_bounded(bench: Bench) -> None:
    ended = await bench.do("hog_open_files")
    assert (ended.outcome, ended.exit) == ("ok", 0)


async def test_addresses_outside_the_module_s_memory_are_errors(bench: Bench) -> None:
    ended = await bench.do("lost_pointers")
    assert (ended.outcome, ended.exit) == ("ok", 0)


async def test_sleeping_takes_no_time(bench: Bench) -> None:
    ended = await bench.do("sleep")
    assert ended.exit == 1, "one event"
    assert ended.usage.wall_ms < 10_000


async def test_clock_and_randomness_are_the_seed_s(bench: Bench) -> None:
    first = await bench.do("entropy", seed=bytes(32))
    again = await bench.do("entropy", seed=bytes(32))
    other = await bench.do("entropy", seed=bytes(31) + b"\1")
    assert first.log == again.log
    assert len(first.log) == 80
    assert first.log[:32] != other.log[:32]
    guest = Guest(bytes(32))
    expected = guest.random(16) + b"".join(guest.now_ns(clock).to_bytes(8, "little") for clock in (0, 0, 1))
    assert first.log == expected.hex()


async def test_compiled_modules_are_kept_on_disk_for_us_alone(bench: Bench) -> None:
    await bench.do("empty")
    cache = bench.root / "cache"
    (entry,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert entry.stat().st_mode & 0o777 == 0o600
    written = entry.stat()
    await bench.executor.aclose()
    assert (await bench.do("empty")).outcome == "ok"
    assert entry.stat().st_ino == written.st_ino, "a new runner used it"
    assert entry.stat().st_mtime_ns > written.st_mtime_ns, "and said so: the least recently used goes first"


async def test_a_damaged_cache_entry_is_compiled_again(bench: Bench) -> None:
    await bench.do("empty")
    (entry,) = (bench.root / "cache").iterdir()
    good = entry.read_bytes()
    entry.write_bytes(good[:-100] + bytes(100))
    await bench.executor.aclose()
    assert (await bench.do("empty")).outcome == "ok"
    assert entry.read_bytes() == good


async def test_a_large_module_is_compiled_once_for_all_runners(bench: Bench) -> None:
    large = _module(bench, "", pages=200, more=f'(data (i32.const 65536) "{"x" * (10 << 20)}")' + _MANY_FUNCTIONS)
    ends: list[Ended] = []

    async def one() -> None:
        ends.append(await bench.run(replace(bench.task("empty"), module=large)))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)
    assert [ended.outcome for ended in ends] == ["ok"] * 3
    (entry,) = (bench.root / "cache").iterdir()
    before = entry.stat()
    await bench.executor.aclose()
    await one()
    assert entry.stat().st_ino == before.st_ino


async def test_more_modules_than_a_runner_holds(bench: Bench) -> None:
    for index in range(20):
        path = bench.root / f"m{index}.wasm"
        path.write_bytes(wat2wasm(f'(module (memory (export "memory") {index + 1}) (func (export "_start")))'))
        ended = await bench.run(replace(bench.task("empty"), module=path))
        assert ended.usage.peak_memory == (index + 1) * 65536
    assert (await bench.do("exit", "3")).exit == 3


_COMPILE = """
import sys, wasmtime
from nexapod.executor.wasm.cache import compiled, engine_config
module = open(sys.argv[1], "rb")
sys.stdin.read(1)
for _ in range(3):
    compiled(wasmtime.Engine(engine_config()), module, sys.argv[2])
"""


def test_processes_that_compile_the_same_at_once_do_not_harm_each_other(tmp_path: Path) -> None:
    module, cache = tmp_path / "m.wasm", tmp_path / "cache"
    module.write_bytes(wat("", more=_MANY_FUNCTIONS))
    cache.mkdir(mode=0o700)
    argv = [sys.executable, "-c", _COMPILE, str(module), str(cache)]
    both = [subprocess.Popen(argv, stdin=PIPE) for _ in range(2)]
    for process in both:
        process.communicate(b"go", timeout=60)
        assert process.returncode == 0
    (entry,) = cache.iterdir()
    engine = wasmtime.Engine(engine_config())
    assert module_cache._from_cache(engine, str(entry)) is not None


def test_the_cache_is_bounded_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    for index in range(70):
        (tmp_path / f"{index:02}").touch()
        os.utime(tmp_path / f"{index:02}", (index, index))
    module_cache._trim_cache(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{index:02}" for index in range(6, 70)]
    for name in ("68", "69"):
        os.truncate(tmp_path / name, 300 << 20)
        os.utime(tmp_path / name, (int(name), int(name)))
    module_cache._trim_cache(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["69"]


def test_what_cannot_be_cached_leaves_nothing_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert module_cache.compiled(wasmtime.Engine(engine_config()), BytesIO(wat("")), str(tmp_path)) is not None
    assert list(tmp_path.iterdir()) == []
    assert "No space left" in capsys.readouterr().err


def test_the_guest_s_randomness_is_one_stream() -> None:
    whole = Guest(b"s" * 32).random(300_000)
    guest = Guest(b"s" * 32)
    assert Guest(b"t" * 32).random(16) != whole[:16]
    assert len(set(whole)) == 256
    pieces = guest.random(1) + guest.random(63) + guest.random(0)
    assert pieces == whole[:64]


def test_the_guest_s_clock_moves_when_it_is_read_or_slept_on() -> None:
    guest = Guest(bytes(32))
    assert guest.now_ns(0) == CLOCK_BASE_NS + CLOCK_STEP_NS
    assert guest.now_ns(1) == 2 * CLOCK_STEP_NS
    guest.sleep_ns(1, 10**9, absolute=False)
    assert guest.now_ns(1) == 10**9 + 3 * CLOCK_STEP_NS
    guest.sleep_ns(0, CLOCK_BASE_NS + 2 * 10**9, absolute=True)
    assert guest.now_ns(1) == 2 * 10**9 + CLOCK_STEP_NS
    guest.sleep_ns(1, 5, absolute=True)  # long past
    guest.sleep_ns(1, (1 << 64) - 1, absolute=False)
    assert guest.now_ns(0) < 1 << 63
