"""The life of one container: begun or found again, watched, paused, ended, and told as an Ended.

Bounded at every step: the engine may refuse, vanish, restart or hang, and the run ends all the same. An engine that is
back within a while and has kept the container (live-restore) costs nothing; one that has ended it costs the run, as
`try-elsewhere`. Does not know other runs, images, or who removes what is left: that is sandbox.py's.

A container outlives its daemon. It carries the digest of its settings, so that a daemon that comes back goes on with it
only when it would have begun the very same; what only the daemon knew (the beginning of a long log, pauses) lies in the
run's scratch, where the task does not see it (docs/decisions/0012-containers-are-adopted.md).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
import trio

from nexapod.executor.capture import reason_text
from nexapod.executor.contract import EXIT_KILLED, Ended, OnReport, TaskRun, outcome_of_exit
from nexapod.executor.docker.cgroups import Cgroups
from nexapod.executor.docker.engine import CALL_S, EXIT_UNKNOWN, WAIT_SLICE_S, Container, Engine, EngineError, Stream
from nexapod.executor.docker.killing import kill_by_id, kill_containers
from nexapod.executor.docker.notes import Notes, notes_of
from nexapod.executor.docker.settings import LOG_BYTES
from nexapod.executor.watch import Clock, MustStop, Scratch, Watch
from nexapod.executor.writes import Writes, writes
from nexapod.protocol.types import Usage

log = structlog.get_logger()
T = TypeVar("T")

AWAY_S: Final = 30.0
"""How long an engine may be away before its run is given up."""
RETRY_S: Final = 0.5
LAST_WORDS_S: Final = 5.0
"""How long what a killed task has printed may take to arrive."""
STATS_FIRST_S: Final = 1.0
STATS_EVERY_S: Final = 10.0
NOTE_EVERY_S: Final = 1.0
LATE_S: Final = 0.02
"""How far a container's end may come after the end of what it prints."""
SILENT_S: Final = 0.5
"""How far an engine's log may be behind what it hands to listeners."""
NOTE_PRINTED_MIN: Final = LOG_BYTES // 2
"""From here on the engine may be about to forget the beginning of the log, which is noted then."""
_VMSTAT: Final = Path("/proc/vmstat")
_NOT_RUNNABLE: Final = (126, 127)
"""What the engine reports when the command itself cannot be executed: the job's mistake, not this machine's."""
_ENDED_BY_ENGINE: Final = (EXIT_KILLED, EXIT_UNKNOWN)
"""Exit statuses of what an engine ends when it stops, or finds ended when it starts."""


@dataclass(slots=True)
class Threads:
    """Where blocking calls go: `calls` end by themselves within their deadline; `waits` last as long as a task."""

    calls: trio.CapacityLimiter
    waits: trio.CapacityLimiter

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await trio.to_thread.run_sync(partial(function, *args, **kwargs), limiter=self.calls)

    async def ask(self, function: Callable[..., T], *args: Any) -> T:
        """A call whose answer is of no use once the task has ended: an engine may take its whole deadline for it."""
        return await trio.to_thread.run_sync(  # type: ignore[call-arg, unused-ignore]
            partial(function, *args), limiter=self.calls, abandon_on_cancel=True
        )

    async def wait(self, function: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(partial(function, *args), limiter=self.waits)


@dataclass(slots=True)
class _Race:
    """What came first: the container's end, an engine error, or a reason to stop it."""

    over: bool = False
    killed: bool = False
    lost: bool = False
    """Whether the engine was away meanwhile."""
    error: EngineError | None = None
    stop: MustStop | None = None


@dataclass(slots=True)
class Life:
    """One container, from `go` to its Ended. It is not removed here."""

    engine: Engine
    cgroups: Cgroups | None
    threads: Threads
    run: TaskRun
    name: str
    settings: dict[str, Any]
    scratch: Scratch
    on_report: OnReport
    away_s: float = AWAY_S
    _watch: Watch | None = None
    _writes: Writes | None = None
    _notes: Notes | None = None
    _race: _Race = field(default_factory=_Race)
    _stream: Stream | None = None
    _left: Container | None = None
    """What is left of it, once it has ended."""
    _heard: float = 0.0
    _listened: float = 0.0
    """Monotonic: when the last piece came, or listening began."""
    _noted: tuple[int, bool] | None = None
    _noted_at: float = 0.0
    _began: float = 0.0
    _id: str = ""
    _oom_kills: int | None = None
    """Of this machine, before it began."""
    _deaf: bool = False
    _heard_all: trio.Event = field(default_factory=trio.Event)
    _changing: trio.Lock = field(default_factory=trio.Lock)
    _hearing: threading.Lock = field(default_factory=threading.Lock)
    _pause_wanted: bool = False
    _started: bool = False
    _over: bool = False

    async def go(self) -> Ended:
        """Raises EngineError: what the engine made of it is not known, but nothing of it runs any more."""
        try:
            return await self._go()
        except EngineError:
            with trio.CancelScope(shield=True):
                await self.threads.call(self._halt)
            raise
        finally:
            if self._stream:
                self._stream.close()
            if self._writes:
                self._writes.close()

    async def _go(self) -> Ended:
        watch = await self._adopt() or await self._begin()
        if isinstance(watch, Ended):
            return watch
        if self._pause_wanted:
            await self.pause()
        await self._run_race(watch)
        if self._race.error:
            raise self._race.error
        return await self._tell(watch)

    async def pause(self) -> bool:
        self._pause_wanted = True
        async with self._changing:
            if self._over:
                return False
            if self._watch is None or not self._started:
                return True  # it is being started: it will be paused at once
            done = await self.threads.call(self.engine.pause, self.name)
            if done and not self._watch.clock.paused:
                self._watch.clock.pause()
                await self._note_pause(time.monotonic())
            return done

    async def resume(self) -> bool:
        self._pause_wanted = False
        async with self._changing:
            if self._over:
                return False
            if self._watch is None or not self._started:
                return True
            done = await self.threads.call(self.engine.resume, self.name)
            if done:
                self._watch.clock.resume()
                await self._note_pause(None)
            return done

    async def _note_pause(self, since: float | None) -> None:
        assert self._notes is not None
        self._notes.paused_s, self._notes.paused_since = self._notes.paused_for(), since
        await self.threads.call(self._notes.write)

    # --- how it begins ---------------------------------------------------------------------------------------------
    async def _adopt(self) -> Watch | None:
        """Go on with the container that a former daemon began; None: there is none that can be trusted to be it."""
        if not self.scratch.run.is_dir():
            return None
        try:
            found = await self.threads.call(self.engine.look, self.name)
        except EngineError as error:
            if error.status != 404:
                raise
            found = None
        if found is None or not is_survivor(found, self.settings):
            log.info("container_begun_anew", label=self.run.label, found=found.status if found else "nothing")
            await self.threads.call(self.engine.remove, self.name)
            await self.threads.call(self.scratch.remove)
            return None
        notes = await self.threads.call(Notes.read, self._notes_path)
        until = found.finished if found.over else time.time()
        watch = self._watch_from(notes.ran_for(until - found.started, over=found.over), notes)
        self._began, self._id = found.started, found.id
        self._started = True
        if notes.printed:
            watch.restore(*notes.printed, notes.progress)
            self._heard = notes.heard
        if found.status == "paused" and not self._pause_wanted:
            await self.resume()
        self._stream = await self.threads.call(self.engine.follow, self.name, self._heard)
        self._listened = self._noted_at = time.monotonic()
        log.info("container_adopted", label=self.run.label, status=found.status, ran_ms=watch.wall_ms)
        return watch

    async def _begin(self) -> Watch | Ended:
        """Create and start. An Ended when the command cannot be executed, which is the job's doing."""
        await self.threads.call(self._make)
        assert self._stream is not None
        self._began = time.time()
        watch = self._watch_from(0.0)
        try:
            await self._start(watch)
        except EngineError as refused:
            self._stream.close()
            found = await self.threads.call(self.engine.look, self.name)
            if found.exit in _NOT_RUNNABLE:
                return Ended("failed", found.exit, reason=reason_text(found.error or str(refused)))
            raise
        watch.clock = Clock()
        assert self._notes is not None
        self._notes.began = time.monotonic()
        await self.threads.call(self._notes.write)
        self._started = True
        return watch

    def _make(self) -> None:
        """In a worker thread: all that comes before the start. Raises EngineError."""
        _prepare(self.run, self.scratch, self.engine.facts.owner)
        try:
            self._id = self.engine.create(self.name, self.settings)
        except EngineError as error:
            if error.status != 409:
                raise
            # Left by a run whose end the engine did not live to see.
            self.engine.remove(self.name)
            self._id = self.engine.create(self.name, self.settings)
        self._stream = self.engine.attach(self.name)
        self._oom_kills = oom_kills()

    async def _start(self, watch: Watch) -> None:
        """A container runs a while before the engine says so, and is watched from then on. Raises EngineError."""
        refused: list[EngineError] = []

        async def start(scope: trio.CancelScope) -> None:
            try:
                await self.threads.call(self.engine.start, self.name)
            except EngineError as error:
                refused.append(error)
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, nursery.cancel_scope)
            # What this finds is halted, and found again by the watch that follows.
            nursery.start_soon(partial(watch.wait_must_stop, quiet=True))
        if refused:
            raise refused[0]

    @property
    def _notes_path(self) -> Path:
        return notes_of(self.scratch.root)

    def _watch_from(self, ran_s: float, notes: Notes | None = None) -> Watch:
        self._notes = notes or Notes(self._notes_path)
        self._writes = writes()
        self._watch = Watch(
            self.run,
            self.scratch,
            self.on_report,
            ran_s=ran_s,
            measure_usage=self._measure,
            writes=self._writes,
            halt=self._halt,
        )
        return self._watch

    # --- while it runs ---------------------------------------------------------------------------------------------
    async def _run_race(self, watch: Watch) -> None:
        """Until the container ends, must be stopped, or the engine is lost."""
        race = self._race

        async def wait(scope: trio.CancelScope) -> None:
            try:
                await self._wait_over()
            except EngineError as error:
                race.error = error
            else:
                race.over = True
            scope.cancel()

        async def stop(scope: trio.CancelScope) -> None:
            race.stop = await watch.wait_must_stop()
            scope.cancel()

        async def kill_when_cancelled() -> None:
            # A thread that waits cannot be cancelled: it ends because the container does.
            try:
                await trio.sleep_forever()
            finally:
                if not race.over and race.error is None:
                    race.killed = True
                    await self._kill()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, nursery.cancel_scope)
                nursery.start_soon(stop, nursery.cancel_scope)
                nursery.start_soon(kill_when_cancelled)
                nursery.start_soon(self._notice_a_deaf_engine)
                if self.cgroups is None:
                    nursery.start_soon(self._sample, watch)
        finally:
            self._over = True

    async def _wait_over(self) -> None:
        """Until the container has ended. Raises EngineError: the engine refuses, or is away for too long."""
        while True:
            lost = EngineError("the container engine did not answer for a while")
            try:
                assert self._stream is not None
                try:
                    await self.threads.wait(self.engine.listen, self._stream, self._hear)
                finally:
                    self._heard_all.set()
                if await self._ended_by(time.time()):
                    return
                if not self._deaf:
                    await self._follow()
                    continue
            except EngineError as error:
                if error.status:
                    raise
                lost = error
            await self._regain(lost)

    async def _ended_by(self, silence: float) -> bool:
        """Whether the container has ended, and had when its stream did. Else there may be more to hear: the stream of
        an engine that vanishes ends without a word, like that of a task that closes its outputs. Of one that had ended
        before that stream began, all has been heard, whatever the engine's clock says.
        """
        was_over = self._left is not None
        self._left = await self.threads.wait(self._wait_left)
        return self._left is not None and (was_over or self._left.finished < silence + LATE_S)

    def _wait_left(self) -> Container | None:
        """In a worker thread: what is left of the container; None: it goes on. Raises EngineError."""
        return None if self.engine.wait(self.name) is None else self.engine.look(self.name)

    async def _follow(self) -> None:
        """Listen again, from where listening ended. Raises EngineError."""
        self._stream = await self.threads.call(self.engine.follow, self.name, self._heard)
        self._heard_all = trio.Event()

    async def _regain(self, error: EngineError) -> None:
        """Listen again, once the engine is back. Raises EngineError."""
        log.warning("container_engine_lost", label=self.run.label, reason=str(error))
        self._race.lost = True
        assert self._watch is not None
        self._deaf, self._watch.deaf = False, True
        with trio.move_on_after(self.away_s):
            while True:
                await trio.sleep(RETRY_S)
                try:
                    await self.threads.call(self.engine.look, self.name)
                    await self._follow()
                except EngineError as again:
                    if again.status:
                        raise
                else:
                    log.info("container_engine_regained", label=self.run.label)
                    self._watch.deaf = False
                    return
        raise error

    async def _notice_a_deaf_engine(self) -> None:
        """A stream has no deadline: when the engine no longer answers otherwise, it is not waited for either."""
        while True:
            await trio.sleep(WAIT_SLICE_S)
            try:
                await self.threads.call(self.engine.ping)
            except EngineError:
                self._deaf = True
                if self._stream:
                    self._stream.close()

    async def _sample(self, watch: Watch) -> None:
        await trio.sleep(STATS_FIRST_S)
        while True:
            sampled = await self.threads.ask(self.engine.stats, self.name)
            watch.usage = sampled or watch.usage
            await trio.sleep(STATS_EVERY_S)

    async def _kill(self) -> None:
        with trio.move_on_after(2 * CALL_S) as deadline:
            deadline.shield = True
            try:
                await self.threads.call(self.engine.kill, self.name)
                await self.threads.call(self.engine.wait, self.name)
                with trio.move_on_after(LAST_WORDS_S):
                    await self._heard_all.wait()
            except EngineError as error:
                log.warning("container_not_killed", container=self.name, reason=str(error))
                self._race.lost = True
                await self.threads.call(self._halt)
        if self._stream:
            self._stream.close()  # harmless when it has ended; else the thread that reads it would never

    def _halt(self) -> None:
        """In a worker thread: end all that is in the container without the engine, which may take long or be away."""
        cgroups = self.cgroups.containers(self.run.label) if self.cgroups else []
        if cgroups:
            kill_containers(cgroups)
        else:
            kill_by_id(self._id)

    def _hear(self, piece: bytes, stdout: bool) -> None:
        """In the thread that listens."""
        assert self._watch is not None
        with self._hearing:
            self._watch.hear(piece, stdout=stdout)
            self._heard, self._listened = time.time(), time.monotonic()

    def _measure(self) -> Usage | None:
        """In a worker thread, with every look."""
        assert self._watch is not None
        assert self._notes is not None
        now = time.monotonic()
        if self._watch.printed[2] >= NOTE_PRINTED_MIN and now - self._noted_at >= NOTE_EVERY_S:
            self._note_printed()
            self._noted_at = now
        return self.cgroups.usage(self.run.label) if self.cgroups else None

    def _note_printed(self) -> None:
        """What was heard, and until when. The engine hands a piece to listeners before it writes it to its log, with
        the time of then: only after a while of silence is what was heard sure to be in the log already. Until then a
        daemon that comes back may hear the last piece again.
        """
        assert self._watch is not None
        assert self._notes is not None
        with self._hearing:
            silent = time.monotonic() - self._listened >= SILENT_S
            until, printed = (time.time() if silent else self._heard), self._watch.printed
        if (printed[2], silent) != self._noted:
            self._notes.printed, self._notes.heard = printed, until
            self._notes.progress = self._watch.progress
            self._notes.write()
            self._noted = (printed[2], silent)

    # --- how it ended ----------------------------------------------------------------------------------------------
    async def _tell(self, watch: Watch) -> Ended:
        left = self._left
        if left is None:
            left = await self.threads.call(self.engine.look, self.name)
        halted = watch.halted
        too_much = await watch.finish()
        usage = replace(watch.usage, wall_ms=watch.wall_ms)
        ended = _ended(left, self._race, self.run, usage, watch.log)
        if await self._machine_was_out_of_memory(left, ended):
            return Ended("try-elsewhere", EXIT_KILLED, usage, watch.log, "this machine ran out of memory")
        if ended.exit in _ENDED_BY_ENGINE and ended.outcome == "failed" and not self._race.killed:
            ended = _stopped(halted, ended) if halted else await self._by_whom(ended)
        return _stopped(too_much, ended) if too_much else ended

    async def _machine_was_out_of_memory(self, left: Container, ended: Ended) -> bool:
        """Whether it was killed for what all of this machine's programs took together. The engine does not tell it from
        a task's own excess, and tasks are the first to go; but one at its own limit has been near it."""
        if self._oom_kills is None or self._race.killed or not (left.oom or left.exit == EXIT_KILLED):
            return False
        if not 0 < ended.usage.peak_memory < self._memory_nearly_full:
            return False
        now = await self.threads.call(oom_kills)
        return now is not None and now > self._oom_kills

    @property
    def _memory_nearly_full(self) -> int:
        return self.run.limits.memory * 15 // 16

    async def _by_whom(self, ended: Ended) -> Ended:
        """It was killed, and not by us: by itself, or from outside, which is no result."""
        if self.engine.facts.podman and ended.usage.peak_memory >= self._memory_nearly_full:
            return _out_of_memory(self.run, ended.usage, ended.log)  # this engine does not tell
        outside = self._race.lost or await self.threads.call(self.engine.killed_from_outside, self.name, self._began)
        if not outside:
            return ended
        reason = "the container engine restarted" if self._race.lost else "somebody else ended the container"
        return Ended("try-elsewhere", EXIT_KILLED, ended.usage, ended.log, reason)


def oom_kills() -> int | None:
    """How many processes this machine has killed for want of memory since it was started. Blocks."""
    try:
        counters = dict(line.split() for line in _VMSTAT.read_text().splitlines())
        return int(counters["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None  # a kernel that does not count them


def is_survivor(found: Container, settings: dict[str, Any]) -> bool:
    """Whether a container is the one that these settings would begin, and goes on or has ended by itself."""
    if {name: found.labels.get(name) for name in settings["Labels"]} != settings["Labels"]:
        return False
    return found.image == settings["Image"] and has_outcome(found)


def has_outcome(found: Container) -> bool:
    """Whether it goes on, or has ended by itself: not with its engine or its machine."""
    return found.alive or (found.over and (found.oom or found.exit not in _ENDED_BY_ENGINE))


def _ended(left: Container, race: _Race, run: TaskRun, usage: Usage, printed: str) -> Ended:
    """What a container's end means."""
    if left.oom:
        return _out_of_memory(run, usage, printed)
    if race.killed:
        assert race.stop is not None
        return _stopped(race.stop, Ended("failed", EXIT_KILLED, usage, printed))
    reason = left.error or (f"exit status {left.exit}" if left.exit else "")
    return Ended(outcome_of_exit(left.exit), left.exit, usage, printed, reason_text(reason))


def _out_of_memory(run: TaskRun, usage: Usage, printed: str) -> Ended:
    return Ended("memory-limit", EXIT_KILLED, usage, printed, f"out of its {run.limits.memory} bytes of memory")


def _stopped(stop: MustStop, ended: Ended) -> Ended:
    return Ended(stop.outcome, EXIT_KILLED, ended.usage, ended.log, reason_text(stop.reason))


def _prepare(run: TaskRun, scratch: Scratch, owner: tuple[int, int] | None) -> None:
    """Give the task's user what it may write to. The directories stay closed to everyone else (0700)."""
    try:
        scratch.make(owner)
        if owner:
            for top in (run.output, run.checkpoint):
                _chown_tree(top, owner)
    except OSError as error:
        raise EngineError(f"the directories of the task cannot be prepared: {error}") from None


def _chown_tree(top: Path, owner: tuple[int, int]) -> None:
    os.chown(top, *owner)
    top.chmod(0o700)
    for directory, folders, names, fd in os.fwalk(top):
        del directory
        for name in (*folders, *names):
            os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)
