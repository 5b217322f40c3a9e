"""The machines that this node runs, and when each wants to be called: one worker, and for each job that names this
node a stewardship, or for its own user's a submission.

Creates them, passes on to them what concerns all of a job's, and closes them. Which message goes to which of them is
routing.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.node.archive import ARCHIVED, Archive
from nexapod.protocol.node.clearing import Clearing
from nexapod.protocol.node.parties import Parties
from nexapod.protocol.node.recovery import Recovered, machine_of
from nexapod.protocol.node.stored import Stored
from nexapod.protocol.primitives import JobId, Part, PeerId
from nexapod.protocol.records import Record
from nexapod.protocol.rules.matching import Policy
from nexapod.protocol.rules.panel import Candidate
from nexapod.protocol.steward.stewardship import Stewardship
from nexapod.protocol.submitter.records import CLEARED
from nexapod.protocol.submitter.submission import Submission
from nexapod.protocol.timers import Timers
from nexapod.protocol.worker.worker import Worker

SHARDS_MAX: Final = -(-limits.TASKS_MAX // limits.SHARD_TASKS)
"""Of any job."""


class Hosting:
    """`accepts`: why this node would not be a steward of a job; "": it would. `candidates`: who would be one.
    `population`: how many peers are known. `archive`: reads records back; without it the evidence of this node's own
    jobs stays in memory."""

    def __init__(
        self,
        ctx: Context,
        policy: Policy,
        timers: Timers,
        accepts: Callable[[JobState], str],
        candidates: Callable[[], Sequence[Candidate]],
        population: Callable[[], int],
        archive: Archive | None = None,
    ) -> None:
        self._ctx = ctx
        self._timers = timers
        self._accepts = accepts
        self._candidates = candidates
        self._population = population
        self._worker = Worker(ctx, policy)
        self._worker_touched = True
        self.stewardships: dict[JobId, Stewardship] = {}
        self.submissions: dict[JobId, Submission] = {}
        self.parties = Parties()
        self.stored = Stored(() if archive is None else ARCHIVED)
        self._archive = archive
        self._clearing = None if archive is None else Clearing(ctx, archive)
        self._touched: dict[JobId, None] = {}

    @property
    def worker(self) -> Worker:
        """The worker. Whoever asks for it may change what it wants of the clock."""
        self._worker_touched = True
        return self._worker

    # --- jobs ------------------------------------------------------------------------------------------------------
    def job_opened(self, state: JobState) -> None:
        """This node keeps a job: begin what it is to do in it."""
        if state.submitter == self._ctx.me:
            archive = None if self._archive is None else partial(self._archive.evidence, state.job)
            self.submissions[state.job] = Submission(self._ctx, state, self._candidates, archive)
        self._join_panel(state)
        self._name_parties(state)
        self.touch(state.job)

    def job_changed(self, state: JobState) -> None:
        """Something counts that did not before."""
        self._join_panel(state)
        self._name_parties(state)
        if (stewardship := self.stewardships.get(state.job)) is not None:
            stewardship.job_changed()
        if (submission := self.submissions.get(state.job)) is not None:
            submission.job_changed()
        worker = self.worker
        if state.workable and not state.closed:
            worker.job_changed(state)
        self.touch(state.job)

    def job_over(self, job: JobId) -> None:
        """It has ended or is dropped: only the submission of this node's user, if it is that, remains."""
        self.worker.job_over(job)
        stewardship = self.stewardships.pop(job, None)
        if stewardship is not None:
            stewardship.close()
        if job not in self.submissions:
            self.parties.forget_job(job)
        self.stored.job_over(job, submission=job in self.submissions)
        self.touch(job)

    def submission_over(self, job: JobId) -> None:
        """Nobody will ask for its certificate any more."""
        submission = self.submissions.pop(job, None)
        if submission is not None:
            submission.close()
            if self._clearing is not None:
                self._clearing.begin(job, submission.job.spec.shards)
        self.stored.job_over(job, submission=False)
        self.parties.forget_job(job)
        self.touch(job)

    def _join_panel(self, state: JobState) -> None:
        # By the job itself, or by a renewal.
        if self._ctx.me in state.members() and state.job not in self.stewardships and not state.closed:
            self.stewardships[state.job] = Stewardship(
                self._ctx, state, self._accepts, candidates=self._candidates, population=self._population
            )

    def _name_parties(self, state: JobState) -> None:
        if state.job in self.stewardships or state.job in self.submissions:
            self.parties.name(state.job, (*state.owners, *state.members()))

    @property
    def served(self) -> int:
        """Jobs of others that this node is a steward of; those that it refuses are not."""
        me = self._ctx.me
        return sum(1 for one in self.stewardships.values() if not one.refused and one.submitter != me)

    # --- links and blobs -------------------------------------------------------------------------------------------
    def peer_up(self, peer: PeerId) -> None:
        self.worker.peer_up(peer)
        for job in self.parties.jobs_of(peer):
            self.touch(job)
            for machine in self._of(job):
                machine.peer_up(peer)

    def peer_down(self, peer: PeerId) -> None:
        self.worker.peer_down(peer)
        for job in self.parties.jobs_of(peer):
            self.touch(job)
            for machine in self._of(job):
                machine.peer_down(peer)
        self.parties.forget_link(peer)

    def blob_ready(self, part: Part) -> None:
        jobs = self._jobs_with(part)
        self.worker.blob_ready(part)
        for job in jobs:
            for machine in self._of(job):
                machine.blob_ready(part)

    def blob_failed(self, part: Part) -> None:
        jobs = self._jobs_with(part)
        self.worker.blob_failed(part)
        for job in jobs:
            for machine in self._of(job):
                machine.blob_failed(part)

    def _jobs_with(self, part: Part) -> list[JobId]:
        """Those that have asked for the blob: a node may have thousands, and each asks for parts of its own."""
        jobs = self._ctx.jobs_with(part.blob)
        for job in jobs:
            self.touch(job)
        return jobs

    def _of(self, job: JobId) -> list[Stewardship | Submission]:
        found = (self.stewardships.get(job), self.submissions.get(job))
        return [machine for machine in found if machine is not None]

    # --- time ------------------------------------------------------------------------------------------------------
    def touch(self, job: JobId) -> None:
        """What the machines of this job want of the clock may have changed."""
        self._touched[job] = None

    def tick(self, name: object) -> None:
        """The time of a timer that `arm` has set has come."""
        match name:
            case ("worker",):
                self.worker.tick()
            case ("clearing",) if self._clearing is not None:
                self._clearing.tick()
            case (("stewardship" | "submission") as role, bytes() as id):
                self._tick_one(role, JobId(id))

    def _tick_one(self, role: str, job: JobId) -> None:
        machine = self.stewardships.get(job) if role == "stewardship" else self.submissions.get(job)
        if machine is not None:
            self.touch(job)
            machine.tick()

    def arm(self) -> None:
        """Set the timers of what was touched."""
        for job in self._touched:
            stewardship, submission = self.stewardships.get(job), self.submissions.get(job)
            self._timers.set(("stewardship", job), None if stewardship is None else stewardship.deadline)
            self._timers.set(("submission", job), None if submission is None else submission.deadline)
        self._touched.clear()
        if self._worker_touched:
            self._timers.set(("worker",), self._worker.deadline)
            self._worker_touched = False
        if self._clearing is not None:
            self._timers.set(("clearing",), self._clearing.deadline)

    # --- restart ---------------------------------------------------------------------------------------------------
    def restore(self, jobs: Mapping[JobId, JobState], saved: Recovered) -> list[Record]:
        """Give each machine its records. Returns those whose job is not here."""
        kept: dict[JobId, list[Record]] = {}
        for record in saved.of_jobs:
            if record.kind == CLEARED and self._clearing is not None:
                self._clearing.restore(record)
                continue
            self.stored.note(record)
            kept.setdefault(JobId(record.key[:32]), []).append(record)
        for job, stewardship in self.stewardships.items():
            stewardship.restore([r for r in kept.get(job, ()) if machine_of(r) != "submission"])
            self.touch(job)
        for job, submission in self.submissions.items():
            submission.restore([r for r in kept.get(job, ()) if machine_of(r) == "submission"])
            self.touch(job)
        self.worker.restore(saved.of_worker, jobs)
        strays = {job: records for job, records in kept.items() if job not in jobs}
        for job, records in strays.items():
            if self._clearing is not None and any(machine_of(record) == "submission" for record in records):
                self._clearing.begin(job, SHARDS_MAX)
        return [record for records in strays.values() for record in records]
