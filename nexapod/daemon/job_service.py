"""The daemon's jobs as the API sees them: that part of nexapod.api.backend.Backend. Translates; decides nothing.

What is shown comes from the core's reports, and what is streamed from its notices. Whoever looks at a job of this
daemon's own has its seats asked how the tasks stand, since they tell nobody who does not ask.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from nexapod.api.backend import Busy, Forbidden, Invalid, JobEvent, Json, NotFound, NotReady, Over
from nexapod.blobs.store import BlobStore
from nexapod.config.stewarding import SubmitSettings
from nexapod.daemon import job_views, why
from nexapod.daemon.engine import Engine
from nexapod.daemon.hub import Hub, Lagged, Told, TooManyWatchers
from nexapod.daemon.job_events import event_of
from nexapod.daemon.looking import Looking
from nexapod.daemon.stopping import Stop
from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import AskTask, CancelJob, RatifyJob, Submit
from nexapod.protocol.limits import SHARD_TASKS
from nexapod.protocol.notices import JobAccepted, TaskLogged
from nexapod.protocol.primitives import JobId, PeerId
from nexapod.protocol.report import JobReport, SubmissionReport, TaskReport
from nexapod.protocol.types import JobSpec

LOG_ANSWER_S: Final = 1.0


class JobService:
    """Submits, shows, watches and ends jobs."""

    def __init__(
        self,
        *,
        engine: Engine,
        blobs: BlobStore,
        hub: Hub,
        stop: Stop,
        submit: SubmitSettings,
        bootstrap: Sequence[str],
        foreign: Mapping[PeerId, str],
    ) -> None:
        """`submit`: what holds for a job whose user does not say otherwise."""
        self._engine = engine
        self._node = engine.node
        self._stored = blobs
        self._hub = hub
        self._stop = stop
        self._submit = submit
        self._bootstrap = bootstrap
        self._foreign = foreign
        self._looking = Looking(engine, hub)

    # --- the user's wishes -----------------------------------------------------------------------------------------
    async def submit(self, spec: JobSpec, friends: Sequence[PeerId], accept_unknown: bool) -> Json:
        if self._stop.requested.is_set():
            raise Busy("This daemon is stopping.", "Start it again, or submit at another peer.")
        event = Submit(
            spec,
            tuple(dict.fromkeys((*self._submit.friends, *friends))),
            accept_unknown or self._submit.accept_unknown,
        )
        try:
            effects = await self._engine.act(event)
        except LocalError as error:
            raise Invalid(str(error)) from None
        return job_views.submitted_view(next(effect for effect in effects if isinstance(effect, JobAccepted)))

    async def cancel(self, job: JobId) -> None:
        report = self._own(job, "Only the peer that submitted a job can cancel it.")
        if report.standing == "settled":
            raise Over(
                "The job is settled: there is nothing to cancel.", "Its results stay: nexapod results ID -o DIR."
            )
        if report.standing == "open":
            await self._engine.act(CancelJob(job, "cancelled by its submitter"))

    async def ratify(self, job: JobId) -> None:
        report = self._own(job, "Only the peer that submitted a job can ratify it.")
        if report.standing != "open":
            raise Over(f"The job is {report.standing}: there is nothing to ratify.")
        try:
            await self._engine.act(RatifyJob(job))
        except LocalError as error:
            raise Invalid(str(error)) from None

    # --- how they stand --------------------------------------------------------------------------------------------
    def job_ids(self) -> Collection[JobId]:
        report = self._node.report()
        return dict.fromkeys((*report.jobs, *report.submissions)).keys()

    async def jobs(self) -> list[Json]:
        rows = [job_views.job_row(report) for job in self.job_ids() if (report := self._node.job_report(job))]
        return sorted(rows, key=lambda row: (-row["created"], row["job_id"]))

    async def job(self, job: JobId, tasks: range) -> Json:
        report = self._report(job)
        if report.submission is not None and report.standing == "open":
            await self._looking.once(report, tasks)
            report = self._report(job)
        return job_views.job_view(report, self._node.task_reports(job, tasks))

    async def spec(self, job: JobId) -> JobSpec:
        return self._report(job).spec

    async def results(self, job: JobId, tasks: range) -> list[Json]:
        self._submission(job)
        return job_views.results_view(self._node.task_reports(job, tasks), self._stored.has)

    async def why_job(self, job: JobId) -> Json:
        report = self._report(job)
        tasks = self._node.task_reports(job, range(SHARD_TASKS))
        failing = None if report.submission is None else report.submission.failing
        if failing is not None and failing.task >= SHARD_TASKS:
            tasks += self._node.task_reports(job, range(failing.task, failing.task + 1))
        alone = why.why_alone(self._node.report(), self._bootstrap, self._foreign)
        return why.why_job(report, self._node.peer_reports(), tasks, alone)

    async def certificate(self, job: JobId) -> AsyncIterator[bytes]:
        mine = self._submission(job)
        if self._report(job).standing != "settled":
            decided = mine.accepted + mine.failed
            raise NotReady(
                f"The job is not settled: {decided} of {mine.tasks} tasks are decided.",
                "Wait for it: nexapod watch ID.",
            )
        pieces = self._node.certificate(job)
        try:
            first = next(pieces)
        except LocalError as error:
            raise NotReady(str(error)) from None
        return _in_turns(first, pieces)

    async def task_log(self, job: JobId, task: int) -> list[Json]:
        mine = self._submission(job)
        if not 0 <= task < mine.tasks:
            raise NotFound(f"The job has no task {task}.", f"Its tasks are 0 to {mine.tasks - 1}.")
        if self._report(job).standing == "open":
            await self._ask_log(job, task)
        report = self._node.task_report(job, task)
        return [] if report is None else job_views.log_view(report)

    async def _ask_log(self, job: JobId, task: int) -> None:
        """Have the workers of a task say what it prints; those that do not answer in time are left out."""
        try:
            async with self._hub.watch() as told:
                await self._engine.act(AskTask(job, task))
                with trio.move_on_after(LOG_ANSWER_S):
                    heard: set[PeerId] = set()
                    while self._unheard(self._node.task_report(job, task), heard):
                        match await anext(told):
                            case TaskLogged(of, index, worker) if (of, index) == (job, task):
                                heard.add(worker)
        except TooManyWatchers:
            await self._engine.act(AskTask(job, task))

    @staticmethod
    def _unheard(report: TaskReport | None, heard: set[PeerId]) -> bool:
        """Whether somebody may still say something: who runs it is not known before a seat has said so."""
        if report is None or report.standing in ("accepted", "failed"):
            return False
        running = {replica.worker for replica in report.replicas if replica.outcome == "running"}
        return not running or bool(running - heard)

    def _report(self, job: JobId) -> JobReport:
        report = self._node.job_report(job)
        if report is None:
            raise NotFound("This daemon knows of no such job.", "nexapod jobs lists those that it knows of.")
        return report

    def _submission(self, job: JobId) -> SubmissionReport:
        submission = self._report(job).submission
        if submission is None:
            raise NotFound(
                "This daemon did not submit the job, so it does not collect its results.",
                "Ask the peer that submitted it.",
            )
        return submission

    def _own(self, job: JobId, otherwise: str) -> JobReport:
        report = self._report(job)
        if report.submission is None:
            raise Forbidden(otherwise, "Run this at that peer.")
        return report

    # --- events ----------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def events(self, job: JobId) -> AsyncIterator[AsyncIterator[JobEvent]]:
        own = self._report(job).submission is not None
        try:
            async with self._hub.watch() as told, trio.open_nursery() as nursery:
                if own:
                    nursery.start_soon(self._looking.again_and_again, job)
                yield _of_job(told, job)
                nursery.cancel_scope.cancel()
        except TooManyWatchers:
            raise Busy("Too many watch this daemon already.", "End one of them, then try again.") from None


async def _of_job(told: AsyncIterator[Told], job: JobId) -> AsyncIterator[JobEvent]:
    async for notice in told:
        if isinstance(notice, Lagged):
            yield "lagged", {"lost": notice.lost}
            continue
        found = event_of(notice)
        if found is not None and found[0] == job:
            yield found[1]


async def _in_turns(first: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Pieces that take a while to make each: the loop goes on between them."""
    yield first
    for piece in pieces:
        await trio.lowlevel.checkpoint()
        yield piece
