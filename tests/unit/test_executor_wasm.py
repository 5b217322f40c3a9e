"""The wasm executor where it differs from others: its runners, its module cache, and its deterministic guest."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import trio
from wasmtime import wat2wasm

from nexapod.executor.contract import Ended, TaskRun
from nexapod.executor.wasm import WasmExecutor
from nexapod.executor.wasm_runner import CLOCK_BASE_NS, CLOCK_STEP_NS, Guest
from nexapod.protocol.types import Limits

WAT = Path(__file__).parent.parent / "wasm"
LIMITS = Limits(memory=32 << 20, output=1 << 20, wall_ms=20_000)


@dataclass
class Bench:
    executor: WasmExecutor
    root: Path
    count: int = 0
    progress: list[float] = field(default_factory=list)

    def task(self, name: str, *command: str, limits: Limits = LIMITS, seed: bytes = bytes(32)) -> TaskRun:
        self.count += 1
        home = self.root / f"run-{self.count}"
        for directory in ("input", "output", "checkpoint"):
            (home / directory).mkdir(parents=True)
        module = self.root / f"{name}.wasm"
        if not module.exists():
            module.write_bytes(wat2wasm((WAT / f"{name}.wat").read_text()))
        return TaskRun(
            label=f"{self.count:x}",
            executor="wasm",
            module=module,
            image=None,
            command=command,
            env=(),
            input=home / "input",
            output=home / "output",
            checkpoint=home / "checkpoint",
            limits=limits,
            seed=seed,
        )

    async def run(self, run: TaskRun) -> Ended:
        with trio.fail_after(60):
            return await self.executor.run(run, self.progress.append)

    async def do(self, name: str, *command: str, limits: Limits = LIMITS, seed: bytes = bytes(32)) -> Ended:
        return await self.run(self.task(name, *command, limits=limits, seed=seed))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    executor = WasmExecutor(scratch=tmp_path / "scratch", cache=tmp_path / "cache")
    yield Bench(executor, tmp_path)
    await executor.aclose()
    assert list((tmp_path / "scratch").iterdir()) == []


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110  (what is waited for happens in other processes)
            await trio.sleep(0.02)


def _runners() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "nexapod.executor.wasm_runner" in child.cmdline()]


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


async def test_a_runner_is_used_again(bench: Bench) -> None:
    await bench.do("empty")
    first = bench.executor.idle_pids
    for _ in range(3):
        assert (await bench.do("empty")).outcome == "ok"
    assert bench.executor.idle_pids == first
    assert len(first) == 1


async def test_a_runner_that_is_killed_costs_one_run(bench: Bench) -> None:
    ends: list[Ended] = []
    spin = bench.task("progress_then_spin")

    async def run() -> None:
        ends.append(await bench.run(spin))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await _until(lambda: bool(bench.progress))
        (runner,) = [
            child for child in psutil.Process().children() if "nexapod.executor.wasm_runner" in child.cmdline()
        ]
        runner.send_signal(signal.SIGKILL)
    assert ends[0].outcome == "try-elsewhere"
    assert ends[0].reason == "the wasm runner ended with status -9"
    assert (await bench.do("empty")).outcome == "ok"


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
    spin = bench.task("progress_then_spin", limits=replace(LIMITS, wall_ms=1000))

    async def run() -> None:
        ends.append(await bench.run(spin))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await _until(lambda: bool(bench.progress))
        (runner,) = [
            child for child in psutil.Process().children() if "nexapod.executor.wasm_runner" in child.cmdline()
        ]
        runner.suspend()
    assert ends[0].outcome == "wall-limit"
    assert ends[0].usage.cpu_ms > 0
    assert not runner.is_running()


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


async def test_a_module_that_is_missing_means_elsewhere(bench: Bench) -> None:
    ended = await bench.run(replace(bench.task("empty"), module=bench.root / "none.wasm"))
    assert ended.outcome == "try-elsewhere"
    assert "FileNotFoundError" in ended.reason


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
    written = entry.stat().st_mtime_ns
    await bench.executor.aclose()
    assert (await bench.do("empty")).outcome == "ok"
    assert entry.stat().st_mtime_ns == written, "a new runner used it"


async def test_a_damaged_cache_entry_is_compiled_again(bench: Bench) -> None:
    await bench.do("empty")
    (entry,) = (bench.root / "cache").iterdir()
    good = entry.read_bytes()
    entry.write_bytes(good[:-100] + bytes(100))
    await bench.executor.aclose()
    assert (await bench.do("empty")).outcome == "ok"
    assert entry.read_bytes() == good


async def test_more_modules_than_a_runner_holds(bench: Bench) -> None:
    for index in range(20):
        path = bench.root / f"m{index}.wasm"
        path.write_bytes(wat2wasm(f'(module (memory (export "memory") {index + 1}) (func (export "_start")))'))
        ended = await bench.run(replace(bench.task("empty"), module=path))
        assert ended.usage.peak_memory == (index + 1) * 65536
    assert (await bench.do("exit", "3")).exit == 3


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
