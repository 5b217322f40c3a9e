"""Watching a task from outside while it runs: how it stands, and whether a limit says that it must be stopped.

Used by every executor. Keeps the clocks (wall and idle time, which stand still during a pause), what the task printed,
its progress, and what it has written; reports all that to whoever asked for the run. Reads what the task writes as
hostile bytes. Does not know how to stop a task: it returns the reason for which it must be stopped.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog
import trio

from nexapod.executor.capture import PROGRESS_BYTES_MAX, Capture, ProgressLines, progress_of, render
from nexapod.executor.contract import OnReport, Report, TaskRun
from nexapod.executor.outputs import Left, OutputRefused, measure
from nexapod.protocol.limits import OUTPUT_FILES_MAX
from nexapod.protocol.types import RunOutcome, Usage

log = structlog.get_logger()

WATCH_S: Final = 0.25
WATCH_FIRST_S: Final = 0.05
WATCH_MIN_S: Final = 0.02
REPORT_S: Final = 1.0
DISK_FREE_MIN: Final = 512 << 20
"""Below this much room (bytes) on the disk of the outputs, a task is stopped: a volunteer's machine must not fill up,
whatever the task hides from the count (unlinked files that it holds open)."""
CHECKPOINT_FILES_MAX: Final = 1024
SCRATCH_BYTES_MAX: Final = 1 << 20
SCRATCH_FILES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class MustStop:
    """Why a task may not go on."""

    outcome: RunOutcome
    reason: str


@dataclass(frozen=True, slots=True)
class Written:
    """What a task has written so far, in each directory that it can write to."""

    output: Left = field(default_factory=Left)
    checkpoint: Left = field(default_factory=Left)
    scratch: Left = field(default_factory=Left)

    @property
    def size(self) -> int:
        """What counts against limits.disk."""
        return self.output.size + self.checkpoint.size


class Scratch:
    """The private directory of one run, of which the task sees a part as /run: where it may write its progress.

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
        """Harmless when there is none."""
        if self.root.exists():
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


class Clock:
    """How long a run has gone on, in seconds, without the time during which it was paused."""

    def __init__(self, ran_s: float = 0.0) -> None:
        self._ran_s = ran_s
        self._since: float | None = trio.current_time()
        self._running = trio.Event()

    @property
    def ran_s(self) -> float:
        return self._ran_s + (0.0 if self._since is None else trio.current_time() - self._since)

    @property
    def paused(self) -> bool:
        return self._since is None

    def pause(self) -> None:
        self._ran_s, self._since = self.ran_s, None

    def resume(self) -> None:
        if self._since is None:
            self._since = trio.current_time()
            self._running.set()
            self._running = trio.Event()

    async def wait_resumed(self) -> None:
        while self.paused:
            await self._running.wait()


class Watch:
    """One run as it is seen from outside. The executor hands on what the task prints, and pauses its `clock`."""

    def __init__(
        self,
        run: TaskRun,
        scratch: Scratch,
        on_report: OnReport,
        *,
        ran_s: float = 0.0,
        wall_grace_s: float = 0.0,
        measure_usage: Callable[[], Usage | None] = lambda: None,
    ) -> None:
        """`ran_s`: how long it has run already. `wall_grace_s`: how much later than at its wall limit it must stop,
        for executors that end it in time by themselves. `measure_usage` is asked in a worker thread; None: unknown."""
        self._run = run
        self._scratch = scratch
        self._on_report = on_report
        self._wall_s = run.limits.wall_ms / 1000 + wall_grace_s
        self._measure_usage = measure_usage
        self._lock = threading.Lock()
        self._capture = Capture()
        self._kept: tuple[bytes, bytes, int] | None = None
        self._lines = ProgressLines()
        self._told: dict[str, float | None] = {}
        self._written = Written()
        self._signs: object = None
        self._alive_s = ran_s
        self._reported: Report | None = None
        self._report_due = 0.0
        self.clock = Clock(ran_s)
        self.progress: float | None = None
        self.usage = Usage()

    def hear(self, data: bytes, *, stdout: bool = True) -> None:
        """What the task printed, in the order in which it did. From any thread."""
        with self._lock:
            self._capture.write(data)
            if stdout:
                self._lines.write(data)

    def restore(self, head: bytes, tail: bytes, total: int, progress: float | None) -> None:
        """Go on where a watch of a former daemon was; before anything is heard."""
        self._capture = Capture.restored(head, tail, total)
        self.progress = progress

    @property
    def printed(self) -> tuple[bytes, bytes, int]:
        """Head, tail, and how many bytes in all."""
        with self._lock:
            return self._kept or (self._capture.head, self._capture.tail, self._capture.total)

    @property
    def log(self) -> str:
        return render(*self.printed)

    @property
    def wall_ms(self) -> int:
        return round(self.clock.ran_s * 1000)

    def hear_kept(self, head: bytes, tail: bytes, total: int, progress: float | None) -> None:
        """Instead of `hear`, for a sandbox that keeps head and tail and finds the progress lines itself."""
        with self._lock:
            self._kept, self._lines.value = (head, tail, total), progress

    async def wait_must_stop(self) -> MustStop:
        """Report as things change, and return once the task must be stopped. Cancel it when the task has ended."""
        pause_s = WATCH_FIRST_S
        while True:
            before, at = self._written.size, trio.current_time()
            await trio.sleep(max(0.0, min(pause_s, self._wall_s - self.clock.ran_s)))
            pause_s = WATCH_S
            if self.clock.paused:
                await self.clock.wait_resumed()
                continue
            stop = await trio.to_thread.run_sync(self._look)
            self._report()
            stop = stop or self._out_of_time()
            if stop:
                return stop
            pause_s = _next_look_s(self._written.size - before, trio.current_time() - at, self._room)

    async def finish(self) -> MustStop | None:
        """After its end: a last look and a last report. MustStop: it left too much, so what it left is no result."""
        stop = await trio.to_thread.run_sync(self._look)
        self._report_due = 0.0
        self._report()
        return stop if stop and stop.outcome != "try-elsewhere" else None

    def _look(self) -> MustStop | None:
        """Blocks: what the task has written, told and used."""
        self.usage = self._measure_usage() or self.usage
        self._hear_progress("file", read_progress(self._scratch.progress))
        with self._lock:
            told = self._lines.value
        self._hear_progress("line", told)
        return _disk_full(self._run) or self._overrun()

    def _hear_progress(self, source: str, value: float | None) -> None:
        """The file and the lines tell it independently of each other: what changed last counts."""
        if value is not None and value != self._told.get(source):
            self._told[source] = self.progress = value

    def _overrun(self) -> MustStop | None:
        found = overrun(self._run, self._scratch)
        if isinstance(found, MustStop):
            return found
        self._written = found
        return None

    def _out_of_time(self) -> MustStop | None:
        limits, ran_s = self._run.limits, self.clock.ran_s
        signs = (self.printed[2], self.progress, self._written)
        if signs != self._signs:
            self._signs, self._alive_s = signs, ran_s
        if ran_s >= self._wall_s:
            return MustStop("wall-limit", f"not done after {limits.wall_ms} ms")
        if limits.idle_ms and ran_s - self._alive_s >= limits.idle_ms / 1000:
            return MustStop("idle-limit", f"no sign of life for {limits.idle_ms} ms")
        return None

    def _report(self) -> None:
        now = trio.current_time()
        if now < self._report_due:
            return
        report = Report(self.progress, self.log, self.printed[2], self.usage)
        if report != self._reported:
            self._reported, self._report_due = report, now + REPORT_S
            self._on_report(replace(report, usage=replace(self.usage, wall_ms=self.wall_ms)))

    @property
    def _room(self) -> int:
        limits = self._run.limits
        return min(limits.output - self._written.output.size, limits.disk - self._written.size)


def overrun(run: TaskRun, scratch: Scratch) -> Written | MustStop:
    """What the task has written; or that it is more than it may, in any directory that it can write to."""
    limits = run.limits
    found = []
    for directory, where, bytes_max, files_max in (
        (run.output, "", limits.output, OUTPUT_FILES_MAX),
        (run.checkpoint, " (in /checkpoint)", limits.disk, CHECKPOINT_FILES_MAX),
        (scratch.run, " (in /run)", SCRATCH_BYTES_MAX, SCRATCH_FILES_MAX),
    ):
        try:
            found.append(measure(directory, bytes_max=bytes_max, files_max=files_max))
        except OutputRefused as refused:
            return MustStop(refused.outcome, refused.reason + where)
    written = Written(*found)
    if written.size > limits.disk:
        return MustStop("output-limit", f"more than {limits.disk} bytes in /output and /checkpoint together")
    return written


def read_progress(path: Path) -> float | None:
    """The number from 0 to 1 that a task wrote, or None. Whatever else lies there is ignored."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None  # not written yet, or a trick such as a link: no progress either way
    try:
        raw = os.read(fd, PROGRESS_BYTES_MAX) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    return progress_of(raw)


def _disk_full(run: TaskRun) -> MustStop | None:
    disk = os.statvfs(run.output)
    if disk.f_bavail * disk.f_frsize < DISK_FREE_MIN:
        return MustStop("try-elsewhere", "the disk of this machine is nearly full")
    return None


def _next_look_s(grown: int, elapsed_s: float, room: int) -> float:
    """Half the time in which a task that goes on writing as fast as it did last would be at its limit."""
    if grown <= 0:
        return WATCH_S
    return min(WATCH_S, max(WATCH_MIN_S, room * elapsed_s / grown / 2))


def _log_undeleted(_: object, path: str, error: tuple[object, BaseException, object]) -> None:
    log.warning("scratch_not_removed", path=path, error=str(error[1]))
