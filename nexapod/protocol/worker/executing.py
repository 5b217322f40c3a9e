"""Begins tasks that have a slot and their inputs, and takes in what the driver says of them until they end.

What cannot be run is given back or ends as a failure, as health.py judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from nexapod.protocol.context import Context
from nexapod.protocol.events import Run, Stop
from nexapod.protocol.notices import WorkRefused
from nexapod.protocol.primitives import File, JobId, Part, TaskId
from nexapod.protocol.rules.seeds import task_seed
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import JobSpec, Profile
from nexapod.protocol.worker import results, slots
from nexapod.protocol.worker.attempt import Begin, End, Granted, Running, Vacate
from nexapod.protocol.worker.attempts import Attempt, Attempts, outputs_of
from nexapod.protocol.worker.handover import Handover
from nexapod.protocol.worker.health import Fault, Health, ItFailed, TryElsewhere
from nexapod.protocol.worker.inputs import Inputs
from nexapod.protocol.worker.prospects import Prospect
from nexapod.protocol.worker.resuming import Resuming

SALT_BYTES: Final = 16


class Refuse(Protocol):
    """Gives tasks back that this machine cannot run, and says whose fault that is and why."""

    def __call__(self, attempts: list[Attempt], fault: Fault, reason: str) -> None: ...


def running_specs(prospects: Mapping[JobId, Prospect], attempts: Attempts, but: JobId | None = None) -> list[JobSpec]:
    """The jobs of what occupies the machine now, one for each task."""
    return [
        prospects[attempt.task.job].spec
        for attempt, state in attempts.in_state(Running)
        if not state.vacated and attempt.task.job != but
    ]


class Executing:
    """`profile`: what the machine is; nothing begins before it is known."""

    def __init__(
        self,
        ctx: Context,
        prospects: Mapping[JobId, Prospect],
        attempts: Attempts,
        health: Health,
        inputs: Inputs,
        resuming: Resuming,
        handover: Handover,
        refuse: Refuse,
    ) -> None:
        self._ctx = ctx
        self._prospects = prospects
        self._attempts = attempts
        self._health = health
        self._inputs = inputs
        self._resuming = resuming
        self._handover = handover
        self._refuse = refuse
        self.profile: Profile | None = None

    # --- beginning -------------------------------------------------------------------------------------------------
    def start(self, *, only_interrupted: bool = False) -> None:
        """Begin what has a slot, and its inputs here; what was granted first, first. `only_interrupted`: of what a
        former process of this node ran."""
        waiting = [
            (attempt, state)
            for attempt, state in self._attempts.in_state(Granted)
            if state.interrupted or not only_interrupted
        ]
        if self.profile is None or not waiting:
            return
        taken = running_specs(self._prospects, self._attempts)
        if len(taken) >= self.profile.slots:
            return
        waiting.sort(key=lambda entry: (entry[1].since, entry[0].task.job, entry[0].task.index))
        for attempt, _ in waiting:
            if len(taken) >= self.profile.slots:
                return
            prospect = self._prospects[attempt.task.job]
            if self._inputs.are_here(prospect) and slots.room_for(self.profile, prospect.spec, taken):
                self._run(attempt, prospect)
                taken.append(prospect.spec)

    def _run(self, attempt: Attempt, prospect: Prospect) -> None:
        self._attempts.move(attempt, Begin(self._ctx.now))
        state, task = attempt.state, attempt.task
        assert isinstance(state, Running)
        self._ctx.trace("task_begun", job=task.job, task=task.index)
        sources = prospect.sources(task.shard)
        files: tuple[File, ...] = ()
        if state.basis is not None:
            files = state.basis.body.files
            sources = tuple(dict.fromkeys((*sources, state.basis.author)))
        others = tuple(peer for peer in sources if peer != self._ctx.me)
        self._ctx.effects.append(Run(task, prospect.spec, task_seed(task), others, files))

    def stop(self, attempt: Attempt) -> None:
        """Nobody needs it."""
        if isinstance(attempt.state, Running):
            self._ctx.effects.append(Stop(attempt.task))

    # --- while it runs ---------------------------------------------------------------------------------------------
    def progressed(self, task: TaskId, progress: int, log: str) -> None:
        attempt = self._attempts.get(task)
        if attempt is not None:
            attempt.progress, attempt.log = max(0, min(1000, progress)), log

    def checkpointed(self, task: TaskId, files: tuple[File, ...], continued: bool) -> None:
        attempt = self._attempts.get(task)
        if attempt is not None:
            self._resuming.keep(attempt, files, continued)

    def vacated(self, task: TaskId) -> bool:
        """A task has left its slot, and has not finished. Whether the next may begin."""
        attempt = self._attempts.get(task)
        if attempt is None or not isinstance(attempt.state, Running) or self.profile is None:
            return False
        leaving = sum(1 for _, state in self._attempts.in_state(Running) if state.vacated)
        # What ended tasks have left is on the disk until it has been looked at: no more of it than of what runs.
        if leaving >= self.profile.slots:
            return False
        self._attempts.move(attempt, Vacate())
        return True

    # --- ending ----------------------------------------------------------------------------------------------------
    def finished(self, task: TaskId, result: RunResult) -> bool:
        """A task has ended. Whether it was one that this worker ran."""
        attempt = self._attempts.get(task)
        if attempt is None or not isinstance(attempt.state, Running):
            return False
        if result.outcome == "try-elsewhere":
            self._on_unable(attempt, result)
        else:
            self._health.succeeded(task.job, self._prospects[task.job].submitter)
            self._end(attempt, results.presentable(task, result))
        return True

    def inputs_failed(self, part: Part) -> None:
        """No source gave a blob: of jobs for which it has been so for long nothing can begin."""
        for job in self._inputs.failed(part):
            waiting = [a for a in self._attempts if a.task.job == job and isinstance(a.state, Granted)]
            self._health.inputs_missing(job, self._ctx.now)
            self._inputs.forget_job(job)
            self._refuse(waiting, "job", "its inputs cannot be had from anybody")

    def _on_unable(self, attempt: Attempt, result: RunResult) -> None:
        submitter = self._prospects[attempt.task.job].submitter
        alone = all(p.submitter == submitter for p in self._prospects.values() if p.fit.ok)
        match self._health.failed(attempt.task, submitter, result, self._ctx.now, alone=alone):
            case TryElsewhere(fault):
                self._refuse([attempt], fault, result.reason)
            case ItFailed(reason):
                self._ctx.notify(WorkRefused(attempt.task.job, attempt.task.index, "job", reason))
                self._end(attempt, results.failure(result, reason))

    def _end(self, attempt: Attempt, result: RunResult) -> None:
        prospect, task = self._prospects[attempt.task.job], attempt.task
        assert isinstance(attempt.state, Running)
        prospect.ended(result.usage.wall_ms or self._ctx.now - attempt.state.since)
        for file in result.files:
            self._ctx.pin(file.blob, outputs_of(task.job))
            self._ctx.blob_stored(Part.whole(file.blob))
        attempt.progress = 1000
        self._attempts.move(attempt, End(result, self._ctx.entropy(SALT_BYTES)))
        self._resuming.forget(task)
        self._handover.ended(attempt)
