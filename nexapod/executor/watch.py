"""Watching a task from outside while it runs: how it stands, and whether a limit says that it must be stopped.

Used by every executor. Keeps the clocks (wall and idle time, which stand still during a pause), what the task printed,
its progress, and what it has written; reports all that to whoever asked for the run. Reads what the task writes as
hostile bytes. Does not know how to stop a task: it returns the reason for which it must be stopped.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog
import trio

from nexapod.executor.capture import PROGRESS_BYTES_MAX, Capture, ProgressLines, progress_of, render
from nexapod.executor.contract import OnReport, Report, TaskRun
from nexapod.executor.outputs import Left, OutputRefused, measure
from nexapod.executor.removal import remove_tree
from nexapod.executor.writes import Writes
from nexapod.protocol.limits import OUTPUT_FILES_MAX
from nexapod.protocol.runs import RunEnd
from nexapod.protocol.types import Usage

log = structlog.get_logger()

WATCH_S: Final = 0.25
WATCH_FIRST_S: Final = 0.05
WATCH_MIN_S: Final = 0.002
WATCH_SUDDEN_S: Final = 0.02
"""A task that writes all the time, but slowly, is looked at again after so long: it could begin to write fast."""
WATCH_SHARE: Final = 4
"""A pause is at least so many times as long as the look before it, whatever the task makes a look cost."""
FAST_BYTES_PER_S: Final = 4 << 30
"""As fast as a task may write all of a sudden: to the memory that is a disk's cache (seen: 5 GB/s)."""
REPORT_S: Final = 1.0
DISK_FREE_MIN: Final = 512 << 20
"""Below this much room (bytes) on the disk of the outputs, a task is stopped: a volunteer's machine must not fill up,
whatever the task hides from the count (unlinked files that it holds open). More than can be written
between two looks."""
CHECKPOINT_FILES_MAX: Final = 1024
SCRATCH_BYTES_MAX: Final = 1 << 20
SCRATCH_FILES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class MustStop:
    """Why a task may not go on."""

    outcome: RunEnd
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
        remove_tree(self.root)


def set_aside(parent: Path, live: Set[str]) -> list[Scratch]:
    """Give all scratch but that of these labels a name that no run has: it can then be removed at leisure, whatever
    begins meanwhile. Blocks for a moment."""
    if not parent.is_dir():
        return []
    with os.scandir(parent) as entries:
        left = [entry.path for entry in entries if entry.name not in live and entry.is_dir(follow_symlinks=False)]
    aside = [Scratch(parent, f"left-{secrets.token_hex(8)}") for _ in left]
    for path, scratch in zip(left, aside, strict=True):
        os.rename(path, scratch.root)
    return aside


def remove_all(scratches: Sequence[Scratch]) -> None:
    for scratch in scratches:
        scratch.remove()


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
        writes: Writes | None = None,
        halt: Callable[[], None] = lambda: None,
    ) -> None:
        """`ran_s`: how long it has run already. `wall_grace_s`: how much later than at its wall limit it must stop,
        for executors that end it in time by themselves. `measure_usage` is asked in a worker thread; None: unknown.
        `writes` tells when to look, for executors that do not bound what is written by themselves; without it, only
        time does. `halt` is called in that thread as soon as it is seen to have written too much: it writes no more
        while the daemon gets round to ending it."""
        self._run = run
        self._scratch = scratch
        self._on_report = on_report
        self._wall_s = run.limits.wall_ms / 1000 + wall_grace_s
        self._measure_usage = measure_usage
        self._writes = writes
        self._halt = halt
        self._sudden_s = WATCH_MIN_S
        self._disk_free = 0
        self._lock = threading.Lock()
        self._capture = Capture()
        self._kept: tuple[bytes, bytes, int] | None = None
        self._lines = ProgressLines()
        self._told: dict[str, float | None] = {}
        self._written = Written()
        self._signs: object = None
        self.deaf = False
        """Whether what the task prints cannot be heard now: its silence is then no idleness."""
        self._alive_s = ran_s
        self._reported: Report | None = None
        self._report_due = 0.0
        self.clock = Clock(ran_s)
        self.progress: float | None = None
        self.usage = Usage()
        self.halted: MustStop | None = None
        """Why it was halted."""

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

    async def wait_must_stop(self, *, quiet: bool = False) -> MustStop:
        """Report as things change, and return once the task must be stopped. Cancel it when the task has ended.

        `quiet`: without reports, while it may not have begun.
        """
        pause_s = 0.0 if self._writes else WATCH_FIRST_S  # a look also begins to follow what there is
        while True:
            before = self._written.size
            since = await self._wait(pause_s)
            pause_s = WATCH_S
            if self.clock.paused:
                await self.clock.wait_resumed()
                continue
            began = trio.current_time()
            stop = await trio.to_thread.run_sync(self._look_and_halt)
            if not quiet:
                self._report()
            stop = stop or self._out_of_time()
            if stop:
                return stop
            now = trio.current_time()
            pause_s = _next_look_s(
                self._written.size - before,
                now - since,
                self._room,
                least_s=max(WATCH_MIN_S, WATCH_SHARE * (now - began)),
                sudden_s=self._sudden_s if self._writes else WATCH_S,
            )

    async def _wait(self, pause_s: float) -> float:
        """Until the next look is due, at `pause_s` or with the first write after it. Since when what it will show to
        be new was written, at the earliest."""
        began = trio.current_time()
        due = began + max(0.0, min(pause_s, self._wall_s - self.clock.ran_s))
        await trio.sleep_until(due)
        if self._writes is None or not pause_s:
            return began
        with trio.move_on_at(max(due, began + min(WATCH_S, self._wall_s - self.clock.ran_s))):
            await self._writes.wait()
        now = trio.current_time()
        self._sudden_s = WATCH_MIN_S if now - due >= WATCH_SUDDEN_S else min(2 * self._sudden_s, WATCH_SUDDEN_S)
        return began if now - due < WATCH_MIN_S else now  # what had been written by then tells nothing of when

    async def finish(self) -> MustStop | None:
        """After its end: a last look and a last report. MustStop: it left too much, or the disk is nearly full and what
        it left may be cut short; either way it is no result."""
        stop = await trio.to_thread.run_sync(self._look)
        self._report_due = 0.0
        self._report()
        return stop

    def _look_and_halt(self) -> MustStop | None:
        stop = self._look()
        if stop:
            self.halted = stop
            self._halt()
        return stop

    def _look(self) -> MustStop | None:
        """Blocks: what the task has written, told and used."""
        self.usage = self._measure_usage() or self.usage
        self._hear_progress("file", read_progress(self._scratch.progress))
        with self._lock:
            told = self._lines.value
        self._hear_progress("line", told)
        stop = self._overrun()
        disk = os.statvfs(self._run.output)
        self._disk_free = disk.f_bavail * disk.f_frsize
        if stop is None and self._disk_free < DISK_FREE_MIN:
            return MustStop("try-elsewhere", "the disk of this machine is nearly full")
        return stop

    def _hear_progress(self, source: str, value: float | None) -> None:
        """The file and the lines tell it independently of each other: what changed last counts."""
        if value is not None and value != self._told.get(source):
            self._told[source] = self.progress = value

    def _overrun(self) -> MustStop | None:
        found = overrun(self._run, self._scratch, self._writes.follow if self._writes else None)
        if isinstance(found, MustStop):
            return found
        self._written = found
        return None

    def _out_of_time(self) -> MustStop | None:
        limits, ran_s = self._run.limits, self.clock.ran_s
        signs = (self.printed[2], self.progress, self._written)
        if signs != self._signs or self.deaf:
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
        """Bytes that it may still write."""
        limits, written = self._run.limits, self._written
        return min(limits.output - written.output.size, limits.disk - written.size, self._disk_free - DISK_FREE_MIN)


def overrun(run: TaskRun, scratch: Scratch, follow: Callable[[int], None] | None = None) -> Written | MustStop:
    """What the task has written; or that it is more than it may, in any directory that it can write to.

    `follow`: see outputs.measure.
    """
    limits = run.limits
    found = []
    for directory, where, bytes_max, files_max in (
        (run.output, "", limits.output, OUTPUT_FILES_MAX),
        (run.checkpoint, " (in /checkpoint)", limits.disk, CHECKPOINT_FILES_MAX),
        (scratch.run, " (in /run)", SCRATCH_BYTES_MAX, SCRATCH_FILES_MAX),
    ):
        try:
            found.append(measure(directory, bytes_max=bytes_max, files_max=files_max, follow=follow))
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


def _next_look_s(grown: int, elapsed_s: float, room: int, *, least_s: float, sudden_s: float) -> float:
    """Half the time in which a task that goes on writing as it did last would be at its limit; and no longer than it
    takes one that begins to write fast, but for the first `sudden_s`."""
    steady_s = WATCH_S if grown <= 0 else room * elapsed_s / grown / 2
    return min(WATCH_S, max(least_s, min(steady_s, max(sudden_s, room / FAST_BYTES_PER_S))))
