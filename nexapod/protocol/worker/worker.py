"""This peer in the act of working: joins the machines that bid, claim, run, commit and reveal (docs/protocol.md, 5).

Each rule lives in a module of its own; here is who hears of what, and what a task's beginning and end set going.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.notices import WorkRefused
from nexapod.protocol.primitives import File, JobId, Millis, Part, PeerId, StatementId, TaskId
from nexapod.protocol.records import Record
from nexapod.protocol.report import AttemptReport
from nexapod.protocol.rules.lottery import turn
from nexapod.protocol.rules.matching import Decision, Policy, accepts, satisfies
from nexapod.protocol.runs import RunResult
from nexapod.protocol.tables import TableReport
from nexapod.protocol.timers import earliest
from nexapod.protocol.types import Profile
from nexapod.protocol.wire import text
from nexapod.protocol.wire.messages import AskLog, Gone, Grant, Message, Status, TaskLog
from nexapod.protocol.wire.statements import Statement
from nexapod.protocol.worker import restoring
from nexapod.protocol.worker.asking import Asking
from nexapod.protocol.worker.attempt import Claimed, Decide, Granted, Reopen, may
from nexapod.protocol.worker.attempts import Attempt, Attempts, Place, outputs_of
from nexapod.protocol.worker.claiming import STANDING_MAX
from nexapod.protocol.worker.deciding import Deciding
from nexapod.protocol.worker.executing import Executing
from nexapod.protocol.worker.granting import Granting
from nexapod.protocol.worker.handover import Handover
from nexapod.protocol.worker.health import Fault, Health
from nexapod.protocol.worker.inputs import Inputs
from nexapod.protocol.worker.prospects import Prospect
from nexapod.protocol.worker.renewing import WHOLE, Renewing
from nexapod.protocol.worker.resuming import Resuming
from nexapod.protocol.worker.standing import Heard, Standings

RELEASED_MS: Final = 2 * limits.LEASE_TTL_MS
"""A task that this machine could not run is left to others for so long, and then ever longer."""
_NOT_PROBED: Final = Decision(False, "this peer's hardware has not been probed yet")


class _OfJobs(Protocol):
    def forget_job(self, job: JobId) -> None: ...


class Worker:
    """The machine. `policy` is what the owner allows; `profile` what the computer is."""

    def __init__(self, ctx: Context, policy: Policy) -> None:
        self._ctx = ctx
        self._policy = policy
        self.profile: Profile | None = None
        self.draining = False
        self.paused = False
        self._prospects: dict[JobId, Prospect] = {}
        self._seats: dict[Place, StatementId] = {}
        self.attempts = Attempts(ctx)
        self._health = Health()
        self._inputs = Inputs(ctx)
        self._asking = Asking(ctx, self._prospects, self.attempts, self._health, self._may_ask)
        self._granting = Granting(ctx, self._prospects, self.attempts, self._welcomes)
        self._resuming = Resuming(ctx, self._prospects, self.attempts)
        self._renewing = Renewing(ctx, self._prospects, self.attempts, self._resuming)
        self._handover = Handover(ctx, self._prospects, self.attempts)
        self._deciding = Deciding(ctx, self._prospects, self.attempts)
        self._standings = Standings(ctx, self._prospects, self.attempts, self._deciding, self._handover)
        self._executing = Executing(
            ctx,
            self._prospects,
            self.attempts,
            self._health,
            self._inputs,
            self._resuming,
            self._handover,
            self._refuse,
        )

        self._of_jobs: tuple[_OfJobs, ...] = (
            self.attempts,
            self._granting,
            self._handover,
            self._renewing,
            self._deciding,
            self._health,
            self._asking,
            self._inputs,
        )

    def tables(self) -> tuple[TableReport, ...]:
        """How full its bounded tables are."""
        return (
            TableReport("own claims", len(self._asking.claiming), STANDING_MAX),
            TableReport("jobs to work on", len(self._prospects), limits.JOBS_MAX),
            *self.attempts.tables(),
            self._health.table(),
        )

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        return earliest(
            self._asking.deadline,
            self._granting.deadline,
            self._handover.deadline,
            self._inputs.deadline,
            self._renewing.deadline,
            self._resuming.deadline,
        )

    def tick(self) -> None:
        taken, failed = self._granting.tick()
        self._give_back(failed)
        self._take(taken)
        self._inputs.tick()
        self._resuming.tick()
        self._handover.tick()
        self._renewing.tick()
        self._asking.tick()
        self._start()

    def _start(self) -> None:
        # What a former process ran begins in a pause, too: its sandboxes may be there, for the driver to freeze.
        self._executing.start(only_interrupted=self.paused)

    def _go_on(self) -> None:
        """Something has changed that a slot may have waited for."""
        self._start()
        self._asking.look()

    # --- jobs ------------------------------------------------------------------------------------------------------
    def job_known(self, job: JobState, call: int = 0) -> None:
        """A job is workable and open. Again whenever it is announced: `call` says whose turn has come."""
        prospect = self._prospect(job)
        prospect.call = max(prospect.call, call)
        self._asking.look()

    def job_changed(self, job: JobState) -> None:
        """Something of the job counts that did not: this worker may be admitted, or seats may be others."""
        if job.job not in self._prospects:
            return
        decided: dict[Place, list[Attempt]] = {}
        for attempt in self.attempts.decided(job.job):
            decided.setdefault(attempt.place, []).append(attempt)
        judged = ((job.job, shard) for shard in self._prospects[job.job].judged)
        for place in sorted({*self.attempts.places_of(job.job), *decided, *judged}):
            seats = job.seats(place[1]).id
            if self._seats.get(place, seats) != seats:
                self._take(self._granting.seats_changed(place))
                self._reopen(place, decided.get(place, []))
                self._renewing.soon(place)
            self._seats[place] = seats
        self._over(self._deciding.job_changed(job.job))
        self._handover.job_changed(job.job)
        self._go_on()

    def job_over(self, job: JobId) -> None:
        """Cancelled, settled or forgotten: stop everything of it."""
        if self._prospects.pop(job, None) is None:
            return
        for attempt in [attempt for attempt in self.attempts if attempt.task.job == job]:
            self._executing.stop(attempt)
            self._granting.forget(attempt.task)
            self._resuming.forget(attempt.task)
        self._seats = {place: seats for place, seats in self._seats.items() if place[0] != job}
        for machine in self._of_jobs:
            machine.forget_job(job)
        self._ctx.unpin_owner(outputs_of(job))
        self._go_on()

    def decide(self, job: JobState) -> Decision:
        """Would this peer work on this job now, and why (not)?"""
        if self.profile is None:
            return _NOT_PROBED
        if self.draining:
            return Decision(False, "this peer is draining: it takes no new tasks")
        if self.paused:
            return Decision(False, "this peer is paused: nexapod resume lets it go on")
        if self._health.machine_rests_until > self._ctx.now:
            return Decision(False, "this machine could not run the last tasks; it tries again soon")
        if self._health.rests_until(job.job, job.submitter) > self._ctx.now:
            return Decision(False, "the last tasks of the job, or of its submitter, could not be run here")
        return self._fit(job)

    def _fit(self, job: JobState) -> Decision:
        if self.profile is None:
            return _NOT_PROBED
        decision = accepts(self._policy, job.submitter)
        return satisfies(self.profile, job.spec) if decision.ok else decision

    def _prospect(self, job: JobState) -> Prospect:
        if job.job not in self._prospects:
            self._prospects[job.job] = Prospect(job, self._fit(job), turn(job.job, self._ctx.me))
        return self._prospects[job.job]

    # --- the machine and its owner ---------------------------------------------------------------------------------
    def profile_changed(self, profile: Profile) -> None:
        """What this machine is, at start and whenever it is something else."""
        self.profile = self._asking.profile = self._executing.profile = profile
        for prospect in self._prospects.values():
            prospect.fit = self._fit(prospect.state)
        self._handover.profile_changed(profile)
        if not profile.slots:
            # Its owner wants no work here any more: what a former process ran is others' to do.
            self._give_back_waiting(interrupted=True)
        self._go_on()

    def drain(self) -> None:
        """Take nothing new: what has not begun is given back, what runs goes on."""
        self.draining = True
        self._give_back_waiting(interrupted=True)
        self._go_on()

    def pause(self, paused: bool) -> None:
        """While the owner wants the machine: nothing new is taken, what has not begun is given back, and the leases of
        what runs, frozen by the driver, are kept alive. So are those of what a former process ran: its sandboxes may
        be there, frozen as it left them."""
        self.paused = paused
        if paused:
            self._give_back_waiting(interrupted=False)
        self._go_on()

    def _give_back_waiting(self, *, interrupted: bool) -> None:
        def waits(attempt: Attempt) -> bool:
            match attempt.state:
                case Claimed():
                    return True
                case Granted(interrupted=was_running):
                    return interrupted or not was_running
                case _:
                    return False

        self._give_back([attempt for attempt in self.attempts if waits(attempt)])

    def _may_ask(self) -> bool:
        rests_until = self._health.machine_rests_until
        if rests_until > self._ctx.now:
            self._asking.wake("machine", rests_until)
            return False
        return not self.draining and not self.paused

    def _welcomes(self, place: Place) -> bool:
        return self._may_ask() and self.profile is not None and place in self._asking.claiming

    # --- what seats and submitters say -----------------------------------------------------------------------------
    def on_message(self, peer: PeerId, message: Message) -> None:
        """Raises PeerError."""
        match message:
            case Grant() if self._is_of_a_shard(message.job, message.shard):
                self._take(self._granting.on_grant(peer, message))
                self._go_on()
            case Status() if self._is_of_a_shard(message.job, message.shard):
                self._hear(self._standings.on_status(peer, message))
            case Gone() if message.job in self._prospects:
                self._hear(self._standings.on_gone(peer, message))
            case AskLog():
                self._on_ask_log(peer, message)
            case _:
                pass

    def on_statement(self, statement: Statement, sender: PeerId) -> None:
        """A freeze or verdict, with some of its signatures; whose link it came on does not matter. Raises PeerError."""
        if statement.body.job not in self._prospects:
            return
        if statement.kind == "freeze" and self._is_of_a_shard(statement.body.job, statement.body.shard):
            self._handover.on_freeze(statement)
        elif statement.kind == "verdict":
            self._over(self._deciding.on_verdict(statement))
            self._go_on()

    def _is_of_a_shard(self, job: JobId, shard: int) -> bool:
        return job in self._prospects and shard < self._prospects[job].spec.shards

    def _hear(self, heard: Heard) -> None:
        self._over(heard.over)
        self._give_back(heard.lost)
        self._go_on()

    def _on_ask_log(self, peer: PeerId, message: AskLog) -> None:
        """Whoever submitted the job may see what its tasks print; nobody else."""
        attempt = self.attempts.get(TaskId(message.job, message.task))
        if attempt is not None and self._prospects[message.job].submitter == peer:
            log = text.clean(attempt.log, limits.LOG_TAIL_MAX)
            self._ctx.send(peer, TaskLog(message.job, message.task, log))

    def peer_up(self, peer: PeerId) -> None:
        """A link is (back) there: if it is a seat's, tell it soon that this worker is alive."""
        for place in self.attempts.places():
            if peer in self._prospects[place[0]].state.seats(place[1]).holders:
                self._renewing.soon(place)
        self._asking.peer_up(peer)

    def peer_down(self, peer: PeerId) -> None:
        """Nothing ends: seats that are gone are replaced, and what is held stays held."""
        self._asking.peer_down(peer)

    # --- inputs ----------------------------------------------------------------------------------------------------
    def blob_ready(self, part: Part) -> None:
        if self._inputs.ready(part):
            self._start()

    def blob_failed(self, part: Part) -> None:
        self._executing.inputs_failed(part)
        self._asking.look()

    # --- what the driver says of tasks -----------------------------------------------------------------------------
    def progressed(self, task: TaskId, progress: int, log: str) -> None:
        """In thousandths; the head and the tail of what it has printed."""
        self._executing.progressed(task, progress, log)

    def checkpointed(self, task: TaskId, files: tuple[File, ...], continued: bool) -> None:
        """What it keeps in /checkpoint has changed."""
        self._executing.checkpointed(task, files, continued)

    def vacated(self, task: TaskId) -> None:
        """It has left its slot, and has not finished: the next one need not wait for that."""
        if self._executing.vacated(task):
            self._go_on()

    def finished(self, task: TaskId, result: RunResult) -> None:
        """It has ended."""
        if self._executing.finished(task, result):
            self._go_on()

    # --- a task's way ----------------------------------------------------------------------------------------------
    def _take(self, attempts: Iterable[Attempt]) -> None:
        """A quorum has granted these: they wait for their inputs and a slot, unless there is no room for them."""
        granted = list(attempts)
        surplus = self._asking.surplus(granted)
        for attempt in granted:
            prospect, place = self._prospects[attempt.task.job], attempt.place
            self._asking.claiming.brought(place)
            self._seats[place] = prospect.state.seats(place[1]).id
            if attempt not in surplus:
                self._inputs.want(prospect, place[1])
                self._renewing.held(place)
        self._give_back(surplus)

    def _give_back(self, attempts: Iterable[Attempt], *, unable: bool = False, reason: str = "") -> None:
        given = list(attempts)
        self._granting.give_back(given, unable=unable, reason=text.clean(reason, limits.REASON_MAX))
        for attempt in given:
            self._resuming.forget(attempt.task)
            self._deciding.forget(attempt)
            self._asking.claiming.gave_back(attempt.place)
        if given:
            self._asking.look()

    def _refuse(self, attempts: list[Attempt], fault: Fault, reason: str) -> None:
        """This machine cannot run these: others go first for a while."""
        for attempt in attempts:
            prospect, task = self._prospects[attempt.task.job], attempt.task
            prospect.cool(task.index, self._ctx.now, RELEASED_MS)
            self._asking.wake(task, prospect.cooling[task.index][0])
            self._ctx.notify(WorkRefused(task.job, task.index, fault, reason))
        self._give_back(attempts, unable=True, reason=reason)

    def _over(self, attempts: Iterable[Attempt]) -> None:
        """Nobody needs more of this worker's work on these."""
        over = [attempt for attempt in attempts if may(attempt.state, Decide)]
        for attempt in over:
            self._executing.stop(attempt)
            self.attempts.move(attempt, Decide())
            self._granting.forget(attempt.task)
            self._resuming.forget(attempt.task)
            self._deciding.forget(attempt)
        for place in dict.fromkeys(attempt.place for attempt in over):
            self._handover.decided(place)

    def _reopen(self, place: Place, decided: Iterable[Attempt]) -> None:
        """The seats have changed, perhaps because those are gone that had decided these: the new ones may lack them."""
        self._prospects[place[0]].seats_changed(place[1])
        for attempt in decided:
            self.attempts.move(attempt, Reopen())
            self._handover.reopened(attempt)

    # --- restart and reading ---------------------------------------------------------------------------------------
    def restore(self, saved: Iterable[Record], jobs: Mapping[JobId, JobState]) -> None:
        """Take up what a former process of this node had saved. Attempts of jobs that are not open are deleted."""
        found = restoring.sort(saved, self._ctx.verify)
        for record in found.seqs:
            self._asking.claiming.restore(record)
        open_jobs = {job: state for job, state in jobs.items() if not state.closed}
        for attempt in restoring.restore(self._ctx, self.attempts, found, open_jobs):
            self._take_up(attempt, self._prospect(open_jobs[attempt.task.job]))
        for job in self.attempts.jobs():
            self._prospect(open_jobs[job])
        self._asking.look()

    def _take_up(self, attempt: Attempt, prospect: Prospect) -> None:
        self._seats[attempt.place] = prospect.state.seats(attempt.task.shard).id
        self._renewing.soon(attempt.place)
        if isinstance(attempt.state, Granted):
            self._inputs.want(prospect, attempt.task.shard)
        else:
            attempt.progress = WHOLE
            self._handover.restored(attempt)

    def report(self) -> tuple[AttemptReport, ...]:
        """What this worker holds, by task."""
        return tuple(AttemptReport(a.task, type(a.state).__name__.lower(), a.progress) for a in self.attempts)
