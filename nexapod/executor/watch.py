"""Watching a task from outside while it runs: its progress, what it has written, and the room left on the disk.

Used by every executor. Reads what the task writes as hostile bytes. Does not know how to stop a task: it returns the
reason for which it must be stopped.
"""

from __future__ import annotations

import math
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from nexapod.executor.contract import TaskRun
from nexapod.executor.outputs import OutputRefused, refuse_overrun
from nexapod.protocol.types import RunOutcome

log = structlog.get_logger()

WATCH_S: Final = 0.25
DISK_FREE_MIN: Final = 512 << 20
"""Below this much room (bytes) on the disk of the outputs, a task is stopped: a volunteer's machine must not fill up,
whatever the task hides from the count (unlinked files that it holds open)."""
CHECKPOINT_FILES_MAX: Final = 1024
SCRATCH_BYTES_MAX: Final = 1 << 20
SCRATCH_FILES_MAX: Final = 16
_PROGRESS_BYTES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class MustStop:
    """Why a task may not go on."""

    outcome: RunOutcome
    reason: str


class Scratch:
    """The private directory of one run, seen by the task as /run: where it may write its progress.

    Made 0700 below a directory that only the daemon can enter; gone after `remove`.
    """

    def __init__(self, parent: Path, label: str) -> None:
        self.root = parent / label
        self.run = self.root / "run"
        self.progress = self.run / "progress"

    def make(self, owner: tuple[int, int] | None = None) -> None:
        """`owner`: the uid and gid that the task runs as, when not ours."""
        self.root.mkdir(mode=0o700, parents=True)
        self.run.mkdir(mode=0o700)
        if owner:
            os.chown(self.run, *owner)

    def remove(self) -> None:
        shutil.rmtree(self.root, onerror=_log_undeleted)


def remove_leftovers(parent: Path, live: frozenset[str]) -> int:
    """Remove the scratch of runs that ended with an earlier daemon; how many there were. `live`: labels to keep."""
    if not parent.is_dir():
        return 0
    with os.scandir(parent) as entries:
        left = [e.path for e in entries if e.name not in live and e.is_dir(follow_symlinks=False)]
    for path in left:
        shutil.rmtree(path, onerror=_log_undeleted)
    return len(left)


class Progress:
    """Passes a task's progress on, each number once."""

    def __init__(self, scratch: Scratch, on_progress: Callable[[float], None]) -> None:
        self._path = scratch.progress
        self._on_progress = on_progress
        self._last: float | None = None

    def look(self) -> None:
        """Read what the task has written (one small file) and tell it when it is new."""
        now = read_progress(self._path)
        if now is not None and now != self._last:
            self._last = now
            self._on_progress(now)


async def wait_must_stop(run: TaskRun, scratch: Scratch, progress: Progress) -> MustStop:
    """Report progress as it changes, and return once the task must be stopped. Cancel it when the task has ended."""
    while True:
        await trio.sleep(WATCH_S)
        progress.look()
        stop = await trio.to_thread.run_sync(_must_stop, run, scratch)
        if stop:
            return stop


def overrun(run: TaskRun, scratch: Scratch) -> MustStop | None:
    """Whether the task has left more than it may, in any directory that it can write to."""
    bounds = (
        (run.output, run.limits.output, None),
        (run.checkpoint, run.limits.output, CHECKPOINT_FILES_MAX),
        (scratch.run, SCRATCH_BYTES_MAX, SCRATCH_FILES_MAX),
    )
    for directory, bytes_max, files_max in bounds:
        try:
            if files_max is None:
                refuse_overrun(directory, bytes_max=bytes_max)
            else:
                refuse_overrun(directory, bytes_max=bytes_max, files_max=files_max)
        except OutputRefused as refused:
            where = "" if directory is run.output else f" (in {directory.name})"
            return MustStop(refused.outcome, refused.reason + where)
    return None


def read_progress(path: Path) -> float | None:
    """The number from 0 to 1 that a task wrote, or None. Whatever else lies there is ignored."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None  # not written yet, or a trick such as a link: no progress either way
    try:
        raw = os.read(fd, _PROGRESS_BYTES_MAX) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    try:
        value = float(raw)
    except ValueError:
        return None
    return min(1.0, max(0.0, value)) if math.isfinite(value) else None


def _must_stop(run: TaskRun, scratch: Scratch) -> MustStop | None:
    disk = os.statvfs(run.output)
    if disk.f_bavail * disk.f_frsize < DISK_FREE_MIN:
        return MustStop("try-elsewhere", "the disk of this machine is nearly full")
    return overrun(run, scratch)


def _log_undeleted(_: object, path: str, error: tuple[object, BaseException, object]) -> None:
    log.warning("scratch_not_removed", path=path, error=str(error[1]))
