"""Watching from outside: progress, room and scratch, where the task may have left anything."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from test_executor_writes import told as told

from nexapod.executor import watch
from nexapod.executor.contract import Report, TaskRun
from nexapod.executor.watch import (
    MustStop,
    Scratch,
    Watch,
    Written,
    overrun,
    read_progress,
    remove_all,
    set_aside,
)
from nexapod.executor.writes import Writes
from nexapod.protocol.types import Limits, Usage


@pytest.fixture
def run(tmp_path: Path) -> TaskRun:
    for name in ("input", "output", "checkpoint"):
        (tmp_path / name).mkdir()
    return TaskRun(
        label="1",
        executor="wasm",
        module=Path("m"),
        image=None,
        command=(),
        env=(),
        workdir="",
        input=tmp_path / "input",
        output=tmp_path / "output",
        checkpoint=tmp_path / "checkpoint",
        limits=Limits(output=100),
        seed=bytes(32),
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    made = Scratch(tmp_path / "scratch", "1")
    made.make()
    return made


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0.25", 0.25),
        (" 1 \n", 1.0),
        ("7", 1.0),
        ("-3", 0.0),
        ("nan", None),
        ("inf", None),
        ("", None),
        ("x" * 500, None),
    ],
)
def test_progress_is_a_number_from_0_to_1(tmp_path: Path, written: str, value: float | None) -> None:
    path = tmp_path / "progress"
    path.write_text(written)
    assert read_progress(path) == value


def test_progress_is_read_from_a_plain_file_only(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "none") is None
    (tmp_path / "real").write_text("0.5")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_progress(tmp_path / "link") is None
    os.mkfifo(tmp_path / "pipe")
    assert read_progress(tmp_path / "pipe") is None
    (tmp_path / "directory").mkdir()
    assert read_progress(tmp_path / "directory") is None


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Jumps only when no worker thread is likely to be busy: trio does not wait for them by itself."""
    return trio.testing.MockClock(autojump_threshold=0.01)


def watching(run: TaskRun, scratch: Scratch, **options: Any) -> tuple[Watch, list[Report]]:
    reports: list[Report] = []
    return Watch(run, scratch, reports.append, **options), reports


def limited(run: TaskRun, **limits: Any) -> TaskRun:
    return replace(run, limits=replace(run.limits, **limits))


async def test_progress_comes_from_the_file_or_a_line_and_what_changed_last_counts(
    run: TaskRun, scratch: Scratch
) -> None:
    watch, reports = watching(run, scratch)
    for written, line in (("", ""), ("0.1", ""), ("0.1", "0.5"), ("0.1", "0.5"), ("nan", "0.6"), ("0.2", "0.6")):
        scratch.progress.write_text(written)
        watch.hear(f"NEXAPOD_PROGRESS={line}\n".encode())
        watch.hear(b"NEXAPOD_PROGRESS=0.9\n", stdout=False)
        assert await watch.finish() is None
    assert [report.progress for report in reports] == [None, 0.1, 0.5, 0.5, 0.6, 0.2]


def test_every_directory_that_a_task_can_write_to_is_bounded(run: TaskRun, scratch: Scratch) -> None:
    run = limited(run, output=100, disk=150)
    assert overrun(run, scratch) == Written()

    def refused() -> str:
        stop = overrun(run, scratch)
        assert isinstance(stop, MustStop)
        assert stop.outcome == "output-limit"
        return stop.reason

    (run.output / "one").write_bytes(b"x" * 101)
    assert refused() == "more than 100 bytes of output"
    (run.output / "one").write_bytes(b"x" * 100)
    (run.checkpoint / "big").write_bytes(b"x" * 151)
    assert refused() == "more than 150 bytes of output (in /checkpoint)"
    (run.checkpoint / "big").write_bytes(b"x" * 51)
    assert refused() == "more than 150 bytes in /output and /checkpoint together"
    (run.checkpoint / "big").write_bytes(b"x" * 50)
    fits = overrun(run, scratch)
    assert isinstance(fits, Written)
    assert fits.size == 150
    for index in range(watch.SCRATCH_FILES_MAX + 1):
        (scratch.run / str(index)).touch()
    assert refused() == "more than 16 output files (in /run)"


async def test_a_task_is_stopped_when_it_has_written_too_much(
    run: TaskRun, scratch: Scratch, autojump_clock: trio.testing.MockClock
) -> None:
    scratch.progress.write_text("0.5")
    (run.output / "big").write_bytes(b"x" * 101)
    seen, reports = watching(run, scratch)
    stop = await seen.wait_must_stop()
    assert (stop.outcome, stop.reason) == ("output-limit", "more than 100 bytes of output")
    assert [report.progress for report in reports] == [0.5]
    assert trio.current_time() == pytest.approx(watch.WATCH_FIRST_S, abs=0.01)


async def test_a_task_is_stopped_when_the_disk_is_nearly_full(
    run: TaskRun, scratch: Scratch, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "DISK_FREE_MIN", 1 << 62)
    seen, _ = watching(run, scratch)
    stop = await seen.wait_must_stop()
    assert stop.outcome == "try-elsewhere"
    assert "disk" in stop.reason
    assert await seen.finish() == stop, "what it left may be cut short"
    (run.output / "big").write_bytes(b"x" * 101)
    stop = await seen.finish()
    assert stop is not None
    assert stop.outcome == "output-limit", "which is the task's own doing"


async def test_wall_time_is_exact_and_stands_still_during_a_pause(
    run: TaskRun, scratch: Scratch, autojump_clock: trio.testing.MockClock
) -> None:
    seen, _ = watching(limited(run, wall_ms=10_000), scratch, ran_s=4.0)

    async def pause_for_an_hour() -> None:
        await trio.sleep(2)  # a pause: of the virtual clock
        for again in (seen.clock.pause, seen.clock.pause):
            again()
        assert seen.clock.paused
        await trio.sleep(3600)  # a pause: of the virtual clock
        for again in (seen.clock.resume, seen.clock.resume):
            again()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pause_for_an_hour)
        stop = await seen.wait_must_stop()
    assert (stop.outcome, stop.reason) == ("wall-limit", "not done after 10000 ms")
    assert trio.current_time() == pytest.approx(3606, abs=watch.WATCH_S + 0.05)
    assert seen.wall_ms == pytest.approx(10_000, abs=300)


async def test_a_sandbox_that_keeps_the_wall_limit_itself_is_given_some_grace(
    run: TaskRun, scratch: Scratch, autojump_clock: trio.testing.MockClock
) -> None:
    seen, _ = watching(limited(run, wall_ms=1_000), scratch, wall_grace_s=2.0)
    assert (await seen.wait_must_stop()).outcome == "wall-limit"
    assert trio.current_time() == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("sign", ["print", "line", "file", "output", "checkpoint", "rewrite", "none"])
async def test_a_task_without_a_sign_of_life_is_idle(
    run: TaskRun, scratch: Scratch, autojump_clock: trio.testing.MockClock, sign: str
) -> None:
    seen, _ = watching(limited(run, idle_ms=2_000), scratch)
    (run.checkpoint / "state").write_bytes(b"x")

    async def show_life_once() -> None:
        await trio.sleep(1)  # a pause: of the virtual clock
        match sign:
            case "print":
                seen.hear(b".", stdout=False)
            case "line":
                seen.hear(b"NEXAPOD_PROGRESS=0.5\n")
            case "file":
                scratch.progress.write_text("0.5")
            case "output":
                (run.output / "x").touch()
            case "checkpoint":
                (run.checkpoint / "x").write_bytes(b"x")
            case "rewrite":
                os.utime(run.checkpoint / "state", ns=(0, 1))
                (run.checkpoint / "state").write_bytes(b"y")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(show_life_once)
        stop = await seen.wait_must_stop()
    assert (stop.outcome, stop.reason) == ("idle-limit", "no sign of life for 2000 ms")
    assert trio.current_time() == pytest.approx(2 if sign == "none" else 3, abs=2 * watch.WATCH_S)


async def test_who_cannot_be_heard_is_not_idle(
    run: TaskRun, scratch: Scratch, autojump_clock: trio.testing.MockClock
) -> None:
    seen, _ = watching(limited(run, idle_ms=2_000), scratch)

    async def hear_again_after_a_minute() -> None:
        seen.deaf = True
        await trio.sleep(60)  # a pause: of the virtual clock
        seen.deaf = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear_again_after_a_minute)
        assert (await seen.wait_must_stop()).outcome == "idle-limit"
    assert trio.current_time() == pytest.approx(62, abs=2 * watch.WATCH_S)


async def test_reports_come_when_something_changed_and_once_a_second_at_most(
    run: TaskRun, scratch: Scratch, autojump_clock: trio.testing.MockClock
) -> None:
    at: list[float] = []
    used = [Usage(cpu_ms=1, peak_memory=2)]
    seen = Watch(run, scratch, lambda _: at.append(trio.current_time()), measure_usage=lambda: used[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seen.wait_must_stop)
        for _ in range(40):
            seen.hear(b"line\n")
            await trio.sleep(0.1)
        await trio.sleep(10)  # a pause: of the virtual clock
        nursery.cancel_scope.cancel()
    assert len(at) in (4, 5, 6)
    assert all(later - sooner > watch.REPORT_S - 0.01 for sooner, later in itertools.pairwise(at))


async def test_a_report_says_all_that_is_known(run: TaskRun, scratch: Scratch) -> None:
    seen, reports = watching(run, scratch, measure_usage=lambda: Usage(cpu_ms=5, peak_memory=7))
    seen.hear(b"begin" + b"x" * 5000, stdout=False)
    seen.hear(b"end\x1b")
    await seen.finish()
    [report] = reports
    assert (report.progress, report.printed) == (None, 5009)
    assert report.log.startswith("beginx")
    assert report.log.endswith("xend\\x1b")
    assert (report.usage.cpu_ms, report.usage.peak_memory) == (5, 7)


async def test_a_sandbox_may_keep_the_log_itself(run: TaskRun, scratch: Scratch) -> None:
    """What it says replaces what it said; it is asked together with what the run has used."""
    said = iter([(b"first", b"", 5, None), (b"first", b"last", 5_000, 0.5)])

    def measure_usage() -> Usage:
        seen.hear_kept(*next(said))
        return Usage(cpu_ms=1)

    seen, reports = watching(run, scratch, measure_usage=measure_usage)
    await seen.finish()
    await seen.finish()
    assert [(report.printed, report.progress) for report in reports] == [(5, None), (5_000, 0.5)]
    assert reports[-1].log.startswith("first")
    assert reports[-1].log.endswith("last")
    assert seen.log == reports[-1].log


@pytest.mark.parametrize(
    ("grown", "elapsed_s", "room", "next_s"),
    [(0, 0.25, 100, 0.25), (10, 0.25, 10_000, 0.25), (100, 0.2, 100, 0.1), (1000, 0.25, 10, 0.01), (-5, 0.2, 9, 0.25)],
)
def test_a_fast_writer_is_looked_at_more_often(grown: int, elapsed_s: float, room: int, next_s: float) -> None:
    found = watch._next_look_s(grown, elapsed_s, room, least_s=0.01, sudden_s=watch.WATCH_S)
    assert found == pytest.approx(next_s)


@pytest.mark.parametrize(("room", "next_s"), [(0, 0.02), (1 << 20, 0.02), (400 << 20, 0.1), (1 << 40, 0.25)])
def test_a_slow_writer_could_begin_to_write_fast(room: int, next_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FAST_BYTES_PER_S", 4000 << 20)
    for grown in (0, min(room, 1)):
        assert watch._next_look_s(grown, 99.0, room, least_s=0.01, sudden_s=0.02) == pytest.approx(next_s)
    assert watch._next_look_s(0, 99.0, room, least_s=0.5, sudden_s=0.02) == watch.WATCH_S, "whatever a look costs"


@pytest.fixture
def hours_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WATCH_S", 3600)


@pytest.mark.usefixtures("hours_between_looks")
@pytest.mark.parametrize("where", [".", "made/meanwhile"])
async def test_who_begins_to_write_is_looked_at_and_halted_at_once(
    run: TaskRun, scratch: Scratch, told: Writes, where: str
) -> None:
    looks = 0
    halts: list[bool] = []

    def measure_usage() -> None:
        nonlocal looks
        looks += 1

    run = limited(run, output=1_000_000, wall_ms=3_600_000)
    seen, _ = watching(
        run, scratch, measure_usage=measure_usage, writes=told, halt=lambda: halts.append(seen.halted is not None)
    )

    async def write() -> None:
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert looks == 1, "nothing is written, so nobody looks"
        (run.output / where).mkdir(parents=True, exist_ok=True)
        for name in ("a", "b", "c"):
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert not halts
            (run.output / where / name).write_bytes(b"x" * 400_000)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            stop = await seen.wait_must_stop()
    assert stop == seen.halted
    assert stop.reason == "more than 1000000 bytes of output"
    assert halts == [True]


async def test_the_wall_limit_holds_for_who_writes_nothing(run: TaskRun, scratch: Scratch, told: Writes) -> None:
    seen, _ = watching(limited(run, wall_ms=50), scratch, writes=told)
    with trio.fail_after(10):
        assert (await seen.wait_must_stop()).outcome == "wall-limit"
    assert seen.halted is None


def test_scratch_is_private_and_goes(scratch: Scratch, run: TaskRun) -> None:
    assert scratch.root.stat().st_mode & 0o777 == 0o700
    assert scratch.run.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        Scratch(scratch.root.parent, replace(run).label).make()
    scratch.progress.write_text("1")
    scratch.remove()
    assert not scratch.root.exists()
    scratch.remove()


def test_leftovers_are_set_aside_and_removed(scratch: Scratch, tmp_path: Path) -> None:
    parent = scratch.root.parent
    Scratch(parent, "2").make()
    (parent / "link").symlink_to(tmp_path / "input")
    (parent / "file").touch()
    [left] = set_aside(parent, {"2"})
    assert not scratch.root.exists()
    scratch.make()  # the same label again, before the old one is removed
    remove_all([left])
    assert sorted(path.name for path in parent.iterdir()) == ["1", "2", "file", "link"]
    assert set_aside(tmp_path / "none", set()) == []
