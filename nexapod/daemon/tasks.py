"""The tasks that run on this machine: prepared, executed, watched, paused, and their results handed to the core.

Decides nothing about who runs what: the core says Run and Stop, and is told Finished. Whatever goes wrong on this
machine ends as `try-elsewhere` with the reason, never as a result and never as an exception.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Literal, TypeAlias

import structlog
import trio

from nexapod.blobs.store import BlobStore
from nexapod.daemon.gpu_desk import GpuDesk, NoGpu
from nexapod.daemon.keeping import keep_checkpoints
from nexapod.daemon.staging import End, InputError, Note, Staging, label_of
from nexapod.executor.contract import Ended, Executor, Report, TaskRun
from nexapod.executor.outputs import OutputRefused
from nexapod.protocol.events import Checkpointed, Event, Finished, Progressed, Run, Vacated
from nexapod.protocol.limits import TEXT_MAX
from nexapod.protocol.primitives import File, TaskId
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import Usage

log = structlog.get_logger()

EXIT_UNAVAILABLE: Final = 69
"""EX_UNAVAILABLE: this machine could not run the task; not the task's own word, which is EXIT_TRY_ELSEWHERE."""
REAP_S: Final = 60.0
TAKEN_UP_S: Final = 10.0
"""So soon after its start the core has gone on with all that it has room for; it takes a second or two."""
SETTLE_MIN_S: Final = 0.02
SETTLE_MAX_S: Final = 0.5
"""A task that cannot be frozen yet, because its sandbox is only being made, is tried again so soon; then less often."""
Stage: TypeAlias = Literal["preparing", "running", "gathering"]


@dataclass(eq=False, slots=True)
class RunningTask:
    """One of them, for those who look."""

    effect: Run
    scope: trio.CancelScope
    began: float
    """Trio's clock."""
    stage: Stage = "preparing"
    frozen: bool = False
    unsure: bool = False
    """Its sandbox was asked to stand still or to go on, and has not said that it does."""
    gpus: tuple[str, ...] = ()
    report: Report = field(default_factory=Report)

    @property
    def label(self) -> str:
        return label_of(self.effect.task)


class TaskRunner:
    """Carries out Run and Stop. `survivors`: labels of runs that a former daemon began and that still go on."""

    def __init__(
        self,
        staging: Staging,
        blobs: BlobStore,
        executors: Mapping[str, Executor],
        gpus: GpuDesk,
        post: Callable[[Event], None],
        hand_over: Callable[[Event], Awaitable[object]],
        nursery: trio.Nursery,
        *,
        survivors: frozenset[str] = frozenset(),
    ) -> None:
        """`post` never waits; `hand_over` returns once what came of the event is on disk."""
        self._staging = staging
        self._blobs = blobs
        self._executors = executors
        self._gpus = gpus
        self._post = post
        self._hand_over = hand_over
        self._nursery = nursery
        self._survivors = set(survivors)
        self._running: dict[TaskId, RunningTask] = {}
        self._go = trio.Event()
        self._go.set()
        self._settling = trio.Lock()

    @property
    def running(self) -> Mapping[TaskId, RunningTask]:
        return self._running

    def start(self, effect: Run) -> None:
        """Begin a task; Vacated and Finished follow unless it is stopped."""
        if effect.task not in self._running:
            task = RunningTask(effect, trio.CancelScope(), trio.current_time())
            self._running[effect.task] = task
            self._nursery.start_soon(self._supervise, task)

    def stop(self, task: TaskId) -> None:
        """End a task; nothing follows."""
        running = self._running.get(task)
        if running is not None:
            running.scope.cancel()

    async def run(self, *, taken_up_s: float = TAKEN_UP_S) -> None:
        """End what a former daemon left running and the core has not gone on with, now and then, until cancelled: it
        has no limits and no owner. An engine that was away when this daemon started is asked again in the same way.
        """
        await trio.sleep(taken_up_s)
        while True:
            self._survivors &= {task.label for task in self._running.values()}
            for executor in self._executors.values():
                await executor.reap_orphans(frozenset(self._survivors))
            await trio.sleep(REAP_S)

    # --- pausing ---------------------------------------------------------------------------------------------------
    @property
    def paused(self) -> bool:
        return not self._go.is_set()

    def want(self, *, paused: bool) -> None:
        """From now on no task begins, or they do again. `settle` has those that run follow."""
        if paused and self._go.is_set():
            self._go = trio.Event()
        elif not paused:
            self._go.set()

    async def settle(self) -> None:
        """Returns once every running task stands still, or goes on, as is wanted by then: not what was wanted when this
        was called. One call at a time asks the sandboxes; the others wait for it.
        """
        async with self._settling:
            pause_s = SETTLE_MIN_S
            # That a sandbox has come to be is nobody's event: it is looked for.
            while not all([await self._follows(task) for task in self._in_sandboxes()]):
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, SETTLE_MAX_S)

    def _in_sandboxes(self) -> list[RunningTask]:
        return [task for task in self._running.values() if task.stage == "running"]

    async def _follows(self, task: RunningTask) -> bool:
        wanted = self.paused
        if task.unsure or task.frozen != wanted:
            # Whoever is cancelled here, or told of an error, does not know what the sandbox did.
            task.unsure = True
            executor = self._executor(task)
            if await (executor.pause(task.label) if wanted else executor.resume(task.label)):
                task.unsure, task.frozen = False, wanted
        over = self._running.get(task.effect.task) is not task or task.stage != "running"
        return over or (not task.unsure and task.frozen == self.paused)

    def _executor(self, task: RunningTask) -> Executor:
        return self._executors[task.effect.spec.run.executor]

    # --- one task --------------------------------------------------------------------------------------------------
    async def _supervise(self, task: RunningTask) -> None:
        result: RunResult | None = None
        try:
            with task.scope:
                result = await self._result(task)
        finally:
            del self._running[task.effect.task]
            self._gpus.release(task.label)
            self._survivors.discard(task.label)
        # Not when the daemon ends: what the task has kept is there when it goes on.
        if result is None or result.outcome == "try-elsewhere":
            await self._staging.remove(task.effect.task)
            if result is not None:
                self._post(Finished(task.effect.task, result))
            return
        # What it left is there until the result is on disk: whatever ends this process, no work is lost.
        await self._hand_over(Finished(task.effect.task, result))
        await self._staging.remove(task.effect.task)

    async def _result(self, task: RunningTask) -> RunResult:
        try:
            end = await self._staging.end_of(task.effect) or await self._end(task)
            task.stage = "gathering"
            self._gpus.release(task.label)
            self._post(Vacated(task.effect.task))
            return await self._gather(task.effect, end)
        except InputError as error:
            return RunResult("failed", 1, log=str(error)[:TEXT_MAX])
        except Exception as error:
            # This machine's trouble (disk, engine, network) must cost one lease only, and be seen.
            log.exception("task_not_run", task=str(task.effect.task))
            cause = _cause(error)
            reason = f"{type(cause).__name__}: {cause}"[:TEXT_MAX]
            return RunResult("try-elsewhere", EXIT_UNAVAILABLE, reason=reason)

    async def _end(self, task: RunningTask) -> End:
        """Run it, or go on with it, to its end, and keep that."""
        run, note = await self._staging.prepare(task.effect, goes_on=task.label in self._survivors)
        granted = await self._lease(task, note)
        if isinstance(granted, NoGpu):
            return End(Ended("try-elsewhere", EXIT_UNAVAILABLE, reason=granted.reason[:TEXT_MAX]), note.continued)
        task.gpus = granted
        run = replace(run, gpus=granted)
        if granted and granted != note.gpus:
            await self._staging.note(run, replace(note, gpus=granted))
        if task.label not in self._survivors:
            while self.paused:  # again, it may be, by the time that this one has its turn
                await self._go.wait()
        task.stage = "running"
        if self.paused:
            # It runs already, or stands still; whichever it is, it is to stand still, and to be watched meanwhile.
            self._nursery.start_soon(self.settle)
        end = End(await self._execute(task, run, note), note.continued)
        if end.ended.outcome != "try-elsewhere":
            await self._staging.keep_end(task.effect, end)
        return end

    async def _lease(self, task: RunningTask, note: Note) -> tuple[str, ...] | NoGpu:
        """The GPUs of this run: those that it has already, when it goes on."""
        if task.label not in self._survivors or not note.gpus:
            return await self._gpus.lease(task.label, task.effect.spec)
        if self._gpus.hold(task.label, note.gpus):
            return note.gpus
        return NoGpu("another task has been given a GPU that this one still uses")

    async def _execute(self, task: RunningTask, run: TaskRun, note: Note) -> Ended:
        async with trio.open_nursery() as nursery:
            if task.effect.spec.run.checkpoint == "shared":
                nursery.start_soon(keep_checkpoints, run, self._blobs, partial(self._kept, task, note))
            ended = await self._executor(task).run(run, partial(self._report, task))
            nursery.cancel_scope.cancel()
        if task.gpus:
            await self._gpus.look()  # the last second counts as it was
        return replace(ended, usage=self._with_gpus(task, ended.usage))

    def _kept(self, task: RunningTask, note: Note, files: tuple[File, ...]) -> None:
        self._post(Checkpointed(task.effect.task, files, note.continued))

    def _report(self, task: RunningTask, report: Report) -> None:
        task.report = replace(report, usage=self._with_gpus(task, report.usage))
        progress = round(1000 * min(1.0, max(0.0, report.progress or 0.0)))
        self._post(Progressed(task.effect.task, progress, report.log))

    def _with_gpus(self, task: RunningTask, usage: Usage) -> Usage:
        return replace(usage, gpu_ms=self._gpus.gpu_ms(task.label)) if task.gpus else usage

    async def _gather(self, effect: Run, end: End) -> RunResult:
        ended = end.ended
        result = RunResult(ended.outcome, ended.exit, (), ended.usage, ended.log, ended.reason, end.continued)
        if ended.outcome != "ok":
            return result
        try:
            return replace(result, files=await self._staging.gather(effect))
        except OutputRefused as error:
            return replace(result, outcome=error.outcome, exit=ended.exit or 1, reason=error.reason)


def _cause(error: BaseException) -> BaseException:
    """What went wrong, out of the groups that nurseries put around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
