"""Watching from outside: progress, room and scratch, where the task may have left anything."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from nexapod.executor import watch
from nexapod.executor.contract import TaskRun
from nexapod.executor.watch import (
    Progress,
    Scratch,
    overrun,
    read_progress,
    remove_leftovers,
    wait_must_stop,
)
from nexapod.protocol.types import Limits


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


def test_progress_is_told_once(scratch: Scratch) -> None:
    told: list[float] = []
    progress = Progress(scratch, told.append)
    for written in ("", "0.1", "0.1", "nan", "0.3", "0.1"):
        scratch.progress.write_text(written)
        progress.look()
    assert told == [0.1, 0.3, 0.1]


def test_every_directory_that_a_task_can_write_to_is_bounded(run: TaskRun, scratch: Scratch) -> None:
    assert overrun(run, scratch) is None
    (run.checkpoint / "big").write_bytes(b"x" * 101)
    stop = overrun(run, scratch)
    assert stop is not None
    assert (stop.outcome, stop.reason) == ("output-limit", "more than 100 bytes of output (in checkpoint)")
    (run.checkpoint / "big").unlink()
    for index in range(watch.SCRATCH_FILES_MAX + 1):
        (scratch.run / str(index)).touch()
    stop = overrun(run, scratch)
    assert stop is not None
    assert stop.reason == "more than 16 output files (in run)"


async def test_a_task_is_stopped_when_it_has_written_too_much(
    run: TaskRun, scratch: Scratch, autojump_clock: trio.testing.MockClock
) -> None:
    told: list[float] = []
    scratch.progress.write_text("0.5")
    (run.output / "big").write_bytes(b"x" * 101)
    stop = await wait_must_stop(run, scratch, Progress(scratch, told.append))
    assert (stop.outcome, stop.reason) == ("output-limit", "more than 100 bytes of output")
    assert told == [0.5]
    assert trio.current_time() == pytest.approx(watch.WATCH_S, abs=0.01)


async def test_a_task_is_stopped_when_the_disk_is_nearly_full(
    run: TaskRun, scratch: Scratch, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "DISK_FREE_MIN", 1 << 62)
    stop = await wait_must_stop(run, scratch, Progress(scratch, lambda _: None))
    assert stop.outcome == "try-elsewhere"
    assert "disk" in stop.reason


def test_scratch_is_private_and_goes(scratch: Scratch, run: TaskRun) -> None:
    assert scratch.root.stat().st_mode & 0o777 == 0o700
    assert scratch.run.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        Scratch(scratch.root.parent, replace(run).label).make()
    scratch.progress.write_text("1")
    scratch.remove()
    assert not scratch.root.exists()


def test_leftovers_are_removed_and_counted(scratch: Scratch, tmp_path: Path) -> None:
    Scratch(scratch.root.parent, "2").make()
    (scratch.root.parent / "link").symlink_to(tmp_path / "input")
    assert remove_leftovers(scratch.root.parent, frozenset({"2"})) == 1
    assert not scratch.root.exists()
    assert remove_leftovers(scratch.root.parent, frozenset()) == 1
    assert sorted(path.name for path in scratch.root.parent.iterdir()) == ["link"]
    assert remove_leftovers(tmp_path / "none", frozenset()) == 0
