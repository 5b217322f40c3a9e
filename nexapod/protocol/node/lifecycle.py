"""A job's life on this node: held while a message is read, kept when there is reason to, changed, closed, expired.

What counts is saved in the same call; a closing statement is flooded once, over the links of this node, since those
that do not know the job drop it unread. A foreign job is kept when two of its panel have placed it, or when its panel
names this node (docs/protocol.md, Placing).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts import Added
from nexapod.protocol.job import JobState
from nexapod.protocol.node.hosting import Hosting
from nexapod.protocol.node.jobs import Jobs, Known
from nexapod.protocol.node.learning import Learning
from nexapod.protocol.notices import FaultProven, JobClosed, JobLearned
from nexapod.protocol.primitives import JobId, Millis, PeerId, StatementId
from nexapod.protocol.timers import Timers
from nexapod.protocol.wire.statements import COSIGNED, Statement

How: TypeAlias = Literal["settled", "cancelled", "expired"]
AGE_SAVE_MS: Millis = 600_000
"""What a job has aged since is lost with a restart."""


class Lifecycle:
    """Who keeps jobs and lets go of them, on behalf of all other parts of the node."""

    def __init__(self, ctx: Context, jobs: Jobs, hosting: Hosting, timers: Timers, learning: Learning) -> None:
        self._ctx = ctx
        self._jobs = jobs
        self._hosting = hosting
        self._timers = timers
        self._learning = learning
        self._workable: set[JobId] = set()
        """Jobs that were told to be workable; only membership is asked."""

    # --- beginning -------------------------------------------------------------------------------------------------
    def hold(self, statement: Statement, source: PeerId, age: Millis = 0) -> Known:
        """A job that came here: `settle_held` decides whether it is kept. Raises PeerError."""
        if statement.body.network != self._ctx.network:
            raise PeerError("wrong-network", "a job of another network")
        return self._jobs.hold(JobState(statement, self._ctx.verify), source, age)

    def settle_held(self) -> None:
        """The message is read: keep the jobs that there is reason to keep, forget the others."""
        for job in self._jobs.held():
            known = self._jobs.get(job)
            assert known is not None
            mine = known.state.submitter == self._ctx.me
            member = self._ctx.me in known.state.members()
            if (known.state.workable or member or mine) and self._jobs.room(known.state.submitter):
                self._keep(known, engaged=member or mine)
            else:
                self._jobs.release(job)
                self._ctx.trace("job_refused", job=job, source=known.source, workable=known.state.workable)

    def _keep(self, known: Known, *, engaged: bool) -> None:
        job = known.state.job
        leaving = self._jobs.keep(job, engaged=engaged)
        if leaving is not None:
            self._drop(leaving)
        self._jobs.save_all(known)
        self._arm_retention(known)
        if known.state.submitter != self._ctx.me:
            self._ctx.notify(JobLearned(job, known.state.submitter))
        self._hosting.job_opened(known.state)
        self._tell_workable(known)
        if known.state.closing is not None:
            self._close(known, known.state.closing, known.source)

    def _drop(self, job: JobId) -> None:
        self._jobs.drop(job)
        self._leave(job)
        self._ctx.trace("job_displaced", job=job)

    def _tell_workable(self, known: Known) -> None:
        job = known.state.job
        if known.state.workable and not known.state.closed and job not in self._workable:
            self._workable.add(job)
            self._learning.workable(known)

    # --- changing --------------------------------------------------------------------------------------------------
    def add(self, known: Known, statement: Statement, sender: PeerId) -> None:
        """A statement of the job's that is not about tasks. Raises PeerError."""
        match self._try(known, statement, sender):
            case "new":
                self._count(known, sender)
            case "proposal":
                self._to_stewardship(known, statement, sender)
            case "known":
                # Whoever brings fewer signatures than are here has not heard of the others: a seat may answer it.
                kept = known.state.get(statement.id)
                if kept is not None and len(statement.signatures) < len(kept.signatures):
                    self._to_stewardship(known, statement, sender)
            case "orphan":
                pass

    def _to_stewardship(self, known: Known, statement: Statement, sender: PeerId) -> None:
        stewardship = self._hosting.stewardships.get(known.state.job)
        if stewardship is not None and statement.kind in COSIGNED:
            self._hosting.touch(known.state.job)
            stewardship.on_statement(known.state.get(statement.id) or statement, sender)

    def _try(self, known: Known, statement: Statement, sender: PeerId) -> Added:
        added = known.state.add(statement)
        job = known.state.job
        if added == "new" and self._is_kept(job):
            self._jobs.save(known, known.state.get(statement.id) or statement)
            if statement.kind == "fault":
                self._ctx.notify(FaultProven(job, statement.body.peer))
        elif added == "orphan":
            self._jobs.set_orphan(known, statement, sender)
            if sender != self._ctx.me and self._is_kept(job):
                # Whoever knows what follows something knows that, too.
                self._learning.want(sender, [StatementId(job)])
        return added

    def _is_kept(self, job: JobId) -> bool:
        return job not in self._jobs.held()

    def _count(self, known: Known, sender: PeerId) -> None:
        """Something counts anew: what waited for it may count as well; then everybody here is told, once."""
        self._offer_orphans(known)
        if not self._is_kept(known.state.job):
            return
        self._hosting.job_changed(known.state)
        self._tell_workable(known)
        if known.state.closing is not None:
            self._close(known, known.state.closing, sender)

    def _offer_orphans(self, known: Known) -> None:
        progress = True
        while progress and known.orphans:
            waiting = list(known.orphans.values())
            known.orphans.clear()
            progress = False
            for statement, sender in waiting:
                try:
                    progress |= self._try(known, statement, sender) == "new"
                except PeerError as error:
                    # Its sender could not know better than we did when it came.
                    self._ctx.trace("orphan_refused", job=known.state.job, rule=error.rule)

    # --- ending ----------------------------------------------------------------------------------------------------
    def _close(self, known: Known, closing: Statement, source: PeerId) -> None:
        job = known.state.job
        if known.state.submitter == self._ctx.me:
            self._jobs.archive(job, closing.envelope)
        else:
            self._jobs.end(job, closing.envelope)
        for peer in self._ctx.peers.some_links(limits.CLOSING_LINKS_MAX, source):
            self._ctx.deliver(peer, [closing])
        self._leave(job, archived=known.state.submitter == self._ctx.me)
        how: How = "settled" if closing.kind == "settlement" else "cancelled"
        self._ctx.notify(JobClosed(job, how))

    def expire(self, job: JobId) -> None:
        """Its retention has ended."""
        if self._jobs.archived(job) is not None:
            self._jobs.expire(job)
        elif self._jobs.get(job) is not None:
            self._jobs.end(job, b"")
            self._ctx.notify(JobClosed(job, "expired"))
        self._leave(job)
        self._hosting.submission_over(job)

    def _leave(self, job: JobId, *, archived: bool = False) -> None:
        self._workable.discard(job)
        self._learning.job_over(job)
        self._hosting.job_over(job)
        if not archived:
            self._timers.set(("retention", job), None)

    # --- time ------------------------------------------------------------------------------------------------------
    def _arm_retention(self, known: Known) -> None:
        self._timers.set(("retention", known.state.job), max(self._ctx.now, known.until))
        if ("ages",) not in self._timers:
            self._timers.set(("ages",), self._ctx.now + AGE_SAVE_MS)

    def save_ages(self) -> None:
        self._jobs.save_ages()
        self._timers.set(("ages",), self._ctx.now + AGE_SAVE_MS if len(self._jobs) else None)

    # --- restart ---------------------------------------------------------------------------------------------------
    def restore(self, statements: list[Statement], age: Millis, *, ended: bool) -> JobState | None:
        """A job as a former process had saved it. None: it cannot be made sense of (any more)."""
        try:
            known = self.hold(statements[0], self._ctx.me, age)
        except PeerError as error:
            self._ctx.trace("job_set_aside", job=statements[0].id, reason=str(error))
            return None
        job = known.state.job
        waiting, before = statements[1:], None
        while waiting and len(waiting) != before:
            before = len(waiting)
            waiting = [statement for statement in waiting if not self._restored(known, statement)]
        if ended:
            self._jobs.restore_archived(job)
        else:
            self._jobs.keep(job, engaged=self._ctx.me in (known.state.submitter, *known.state.members()))
        for statement in statements:
            self._jobs.restored(known, statement)
        self._arm_retention(known)
        self._hosting.job_opened(known.state)
        return known.state

    def _restored(self, known: Known, statement: Statement) -> bool:
        """False: offer it again after the others."""
        try:
            return known.state.add(statement) not in ("orphan", "proposal")
        except PeerError as error:
            self._ctx.trace("statement_set_aside", job=known.state.job, id=statement.id, reason=str(error))
            return True

    def resume(self) -> None:
        """Every machine has its records: tell the worker which jobs there are."""
        for _, known in list(self._jobs.open()):
            self._tell_workable(known)
