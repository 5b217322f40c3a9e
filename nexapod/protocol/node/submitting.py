"""What this node's user asks for: a job submitted, cancelled, ratified, looked at, and its certificate."""

from __future__ import annotations

from collections.abc import Iterator

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import LocalError, PeerError
from nexapod.protocol.events import Submit
from nexapod.protocol.node.directory import Directory
from nexapod.protocol.node.hosting import Hosting
from nexapod.protocol.node.jobs import Jobs
from nexapod.protocol.node.lifecycle import Lifecycle
from nexapod.protocol.notices import JobAccepted
from nexapod.protocol.primitives import JobId, Part
from nexapod.protocol.rules.panel import Candidate
from nexapod.protocol.submitter.preparing import prepare
from nexapod.protocol.submitter.submission import Submission


class Submitting:
    """Every method raises LocalError when the user asks for what cannot be."""

    def __init__(self, ctx: Context, directory: Directory, jobs: Jobs, hosting: Hosting, lifecycle: Lifecycle) -> None:
        self._ctx = ctx
        self._directory = directory
        self._jobs = jobs
        self._hosting = hosting
        self._lifecycle = lifecycle

    def submit(self, event: Submit) -> JobId:
        """Choose a panel, sign the job, keep it, and begin to place it."""
        spec = event.spec
        if not self._jobs.room(self._ctx.me):
            raise LocalError(f"This daemon knows {limits.JOBS_MAX} jobs already: wait until some of them are over.")
        candidates = self._directory.candidates(self._ctx.now, spec.stamp)
        own = self._directory.offer(self._ctx.me)
        if own is not None:
            candidates.append(Candidate(own, "", self._directory.seen_up_ms(self._ctx.me, self._ctx.now)))
        statement = prepare(self._ctx, event, candidates)
        if self._jobs.get(JobId(statement.id)) is not None:
            # The very same job once more, nonce and all: whoever asks again is told the same.
            return JobId(statement.id)
        try:
            known = self._lifecycle.hold(statement, self._ctx.me)
        except PeerError as error:
            raise LocalError(f"The job cannot be submitted: {error.detail or error.rule}.") from None
        for ref in spec.blobs:
            self._ctx.blob_stored(Part.whole(ref))
        self._lifecycle.settle_held()
        self._hosting.submissions[known.state.job].rests_on = _rests_on(self._ctx)
        return known.state.job

    def cancel(self, job: JobId, reason: str) -> None:
        """End a job of this node's user: said to its panel, and to this node, which floods it."""
        submission = self._own(job)
        if self._jobs.has_ended(job):
            raise LocalError("The job has ended already: there is nothing to cancel.")
        submission.cancel(reason)

    def ratify(self, job: JobId) -> None:
        """The user accepts what caretakers decided."""
        self._own(job).ratify()
        self._hosting.touch(job)

    def ask_task(self, job: JobId, task: int) -> None:
        """Ask the seats and workers of a task how it stands."""
        self._own(job).ask_task(task)
        self._hosting.touch(job)

    def ask_shard(self, job: JobId, shard: int) -> None:
        """Ask a seat of a shard how its tasks stand."""
        self._own(job).ask_shard(shard)
        self._hosting.touch(job)

    def certificate(self, job: JobId) -> Iterator[bytes]:
        """In pieces."""
        return self._own(job).certificate()

    def _own(self, job: JobId) -> Submission:
        submission = self._hosting.submissions.get(job)
        if submission is None:
            raise LocalError("This daemon has not submitted such a job: ask the one that has.")
        return submission


def _rests_on(ctx: Context) -> str:
    """What the job just prepared will rest on, as its submitter is told."""
    return next(effect.rests_on for effect in reversed(ctx.effects) if isinstance(effect, JobAccepted))
