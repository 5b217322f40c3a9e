"""A job of this node's user, from the first delivery to the settlement: joins the parts of this package.

It trusts no steward: it folds the same evidence as they do, and repeats every judgement. Once the job is placed nothing
depends on it: it may vanish, and collect later (docs/protocol.md, 7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from nexapod.protocol import limits
from nexapod.protocol.certificate.build import build
from nexapod.protocol.context import Context
from nexapod.protocol.errors import LocalError, PeerError
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.job import JobState
from nexapod.protocol.notices import JobRefused
from nexapod.protocol.primitives import File, Millis, Part, PeerId, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.report import SubmissionReport
from nexapod.protocol.rules.panel import Candidate
from nexapod.protocol.submitter import records
from nexapod.protocol.submitter.collecting import Collecting
from nexapod.protocol.submitter.deciding import Archive, Deciding, shard_of
from nexapod.protocol.submitter.decisions import Revealed
from nexapod.protocol.submitter.fetching import input_owner
from nexapod.protocol.submitter.inquiry import Inquiry
from nexapod.protocol.submitter.placing import Placing
from nexapod.protocol.submitter.replacing import Replacing
from nexapod.protocol.submitter.results import Result
from nexapod.protocol.submitter.seating import Seating
from nexapod.protocol.submitter.settling import Settling
from nexapod.protocol.tables import TableReport
from nexapod.protocol.wire.bodies import Cancel
from nexapod.protocol.wire.messages import Decided, Message, Ready, Refused, TaskLog, View, Want
from nexapod.protocol.wire.statements import Statement


class Submission:
    """One job of this node's user.

    `candidates`: whom a renewal may add to the panel. `archive`: reads the evidence of a shard back from disk; without
    it the evidence of all shards stays in memory.
    """

    def __init__(
        self,
        ctx: Context,
        job: JobState,
        candidates: Callable[[], Sequence[Candidate]] = lambda: (),
        archive: Archive | None = None,
    ) -> None:
        self.ctx = ctx
        self.job = job
        self.rests_on = ""
        self.placing = Placing(ctx, job)
        self.replacing = Replacing(ctx, job, self.placing, candidates)
        self.deciding = Deciding(ctx, job, ShardEvidence, self.replacing.refuse, archive)
        self.collecting = Collecting(ctx, job, self._is_finished, self.deciding.decided_in)
        self.settling = Settling(ctx, job, self.deciding)
        self.inquiry = Inquiry(ctx, job, self.deciding.failing)
        self._seating = Seating(job)
        self._sweep_at: Millis = ctx.now
        self._wanted_at: dict[PeerId, Millis] = {}
        for ref in job.spec.blobs:
            ctx.pin(ref, input_owner(job.job))

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        if self.job.closed:
            return self.deciding.fetching.deadline
        parts = (self.placing, self.replacing, self.collecting, self.deciding, self.settling)
        times = [part.deadline for part in parts]
        times.append(self._sweep_at if self._seating.unfinished else None)
        return min((at for at in times if at is not None), default=None)

    def tick(self) -> None:
        if self.job.closed:
            self.deciding.fetching.tick()
            return
        if self._seating.unfinished and self._sweep_at <= self.ctx.now:
            self._sweep()
        self.placing.tick()
        self.replacing.tick()
        self.collecting.tick()
        self.deciding.tick()
        self.settling.tick()

    def _sweep(self) -> None:
        self._sweep_at = self.ctx.now + limits.SWEEP_MS
        for moved in self._seating.sweep():
            self.placing.moved(moved)
            self.replacing.moved(moved)
            self.deciding.moved(moved)
            if moved.before is not None:
                self.collecting.reopened(moved.now.shard)
            if moved.now.authority == "caretaker":
                self.settling.check_caretakers()
        if not self._seating.unfinished:
            self.placing.check()

    # --- what comes in ---------------------------------------------------------------------------------------------
    def job_changed(self) -> None:
        """Something about the whole job counts anew, or its end."""
        if self.job.closed:
            self._release_inputs()
            return
        self._seating.job_changed()
        self.placing.job_changed()
        self.collecting.job_changed()
        self.deciding.job_changed()
        self.settling.job_changed()

    def on_message(self, peer: PeerId, message: Message) -> None:
        """An answer of a seat or a worker. Raises PeerError on one that makes no sense."""
        shards = self.job.spec.shards
        match message:
            case Ready(shard=shard) | Decided(shard=shard) | View(shard=shard) if shard >= shards:
                raise PeerError("no-such-shard", "the job has no such shard")
            case Refused(reason=reason):
                self._on_refused(peer, reason)
            case Ready(shard=shard):
                self.placing.on_ready(peer, shard)
            case Decided():
                self.collecting.on_decided(peer, message)
                if peer in self.job.seats(message.shard).holders:
                    self.deciding.supply_lacking(peer, message.shard, message.decided)
            case View():
                self.inquiry.on_view(peer, message)
                self.collecting.on_view(peer, message)
            case TaskLog():
                self.inquiry.on_log(peer, message)
            case _:
                raise PeerError("misplaced-message", type(message).__name__)

    def on_statement(self, statement: Statement, sender: PeerId) -> None:
        """Evidence of a shard. Raises PeerError when it cannot be true of this job."""
        shard = shard_of(statement)
        if shard >= self.job.spec.shards:
            raise PeerError("no-such-shard", "the job has no such shard")
        if self.job.closed or not self._listens_to(sender, shard):
            return
        added = self.deciding.add(statement)
        if added == "orphan" or (added == "proposal" and statement.kind in ("freeze", "verdict")):
            self.collecting.missed(shard, sender)
            self._want_job(sender)

    def kept(self, shard: int, id: StatementId) -> Statement | None:
        """A statement of a shard's evidence, if it is in memory."""
        return self.deciding.kept(shard, id)

    def _listens_to(self, sender: PeerId, shard: int) -> bool:
        """Seats and members keep a job's evidence; what anybody else says of it comes by way of them."""
        return sender == self.ctx.me or sender in self.job.members() or sender in self.job.seats(shard).holders

    def _want_job(self, peer: PeerId) -> None:
        """A succession, an admission or an adoption that this seat knows may be missing here."""
        last = self._wanted_at.get(peer)
        if peer != self.ctx.me and (last is None or self.ctx.now - last >= limits.ASK_AGAIN_MS):
            self._wanted_at[peer] = self.ctx.now
            self.ctx.send(peer, Want((self.job.statement.id,)))

    def _on_refused(self, peer: PeerId, reason: str) -> None:
        self.replacing.refuse(peer, reason)
        if self.replacing.exhausted and not self.job.workable:
            self.ctx.notify(JobRefused(self.job.job, reason))
            self.cancel(f"every steward has refused it: {reason}"[: limits.TEXT_MAX])

    def peer_up(self, peer: PeerId) -> None:
        self.placing.peer_up(peer)
        self.collecting.link_changed(peer)

    def peer_down(self, peer: PeerId) -> None:
        self.collecting.link_changed(peer)

    def blob_ready(self, part: Part) -> None:
        self.deciding.fetching.blob_ready(part)

    def blob_failed(self, part: Part) -> None:
        self.deciding.fetching.blob_failed(part)

    # --- what the user wants ---------------------------------------------------------------------------------------
    def ask_task(self, task: int) -> None:
        """How does it stand, and what does it print?"""
        self.inquiry.ask(task)

    def ask_shard(self, shard: int) -> None:
        """How do its tasks stand?"""
        self.inquiry.ask_shard(shard)

    def ratify(self) -> None:
        """Accept what caretakers have done so far."""
        self.settling.ratify()

    def cancel(self, reason: str) -> None:
        """End the job; what was decided is not settled."""
        if not self.job.closed:
            statement = self.ctx.sign(Cancel(self.job.job, reason))
            for peer in dict.fromkeys((self.ctx.me, *self.job.members())):
                self.ctx.deliver(peer, [statement], self.job.addrs(peer))

    def result(self, task: int) -> Result | None:
        """How a task ended, as this node has checked it; None: it has not."""
        return self.deciding.result(task)

    def outputs(self, task: int) -> tuple[File, ...]:
        """The accepted output files of a task; none before it is decided, or when it failed."""
        return self.deciding.outputs(task)

    def revealed(self, task: int) -> tuple[Revealed, ...]:
        """Every result of a task that was shown here: for people, of one whose results disagree."""
        return self.deciding.revealed(task)

    def certificate(self) -> Iterator[bytes]:
        """The job's certificate, in pieces. Raises LocalError before it is settled."""
        settlement = self.job.closing
        if settlement is None or settlement.kind != "settlement":
            raise LocalError("the job is not settled: its certificate is written when every task is decided")
        return build(self.deciding.job, self.deciding.evidence(), settlement)

    def _job_as_settled(self, ids: bytes) -> JobState:
        """What its settlement signs of the job: what came later is no part of the certificate."""
        wanted = records.ids(ids)
        job = JobState(self.job.statement, self.ctx.verify)
        for statement in self.job.statements():
            if statement.id in wanted:
                job.add(statement)
        return job

    def report(self) -> SubmissionReport:
        """For the API."""
        return SubmissionReport(
            job=self.job.job,
            rests_on=self.rests_on,
            tasks=self.job.spec.tasks,
            accepted=self.deciding.accepted,
            failed=self.deciding.failed,
            running=self.collecting.running,
            shards=self.job.spec.shards,
            shards_placed=self.placing.shards_placed,
            shards_finished=len(self.deciding.finished),
            placed=self.placing.placed,
            holders=self.placing.holders,
            held_least=self.placing.held_least,
            refused=tuple(sorted(self.replacing.refused.items())),
            unanswered=tuple(sorted(self.placing.delivered)),
            unratified=self.settling.unratified,
            problems=self.settling.problems,
            failing=self.deciding.failing.first,
        )

    def tables(self) -> tuple[TableReport, ...]:
        """How full its bounded tables are."""
        inquiry = self.inquiry
        return (
            TableReport("views of a submission", len(inquiry.views), limits.SHARD_TASKS),
            TableReport("logs of a submission", len(inquiry.logs), limits.TASK_LOGS_MAX),
            TableReport("failings told of a submission", len(self.deciding.failing), limits.FAILINGS_MAX),
            TableReport("outputs being fetched of a submission", self.deciding.fetching.in_flight, limits.FETCHES_MAX),
        )

    # --- the end, and the beginning --------------------------------------------------------------------------------
    def _is_finished(self, shard: int) -> bool:
        return self.deciding.finished.get(shard) == self.job.seats(shard).epoch

    def _release_inputs(self) -> None:
        for ref in self.job.spec.blobs:
            self.ctx.unpin(ref, input_owner(self.job.job))

    def close(self) -> None:
        """Nobody will ask for its results any more: nothing of it is kept."""
        self._release_inputs()
        self.deciding.unpin()

    def restore(self, saved: list[Record]) -> None:
        """Go on from what a former process had saved."""
        shards: dict[int, bytes] = {}
        evidence: dict[int, list[bytes]] = {}
        settled: dict[int, bytes] = {}
        job_level = b""
        for record in saved:
            value = record.value or b""
            match record.kind:
                case records.RESTS_ON:
                    self.rests_on = value.decode(errors="replace")
                case records.PLACED:
                    self.placing.placed = True
                case records.RATIFIED:
                    self.settling.restore(records.ids(value))
                case records.FAILING:
                    self.deciding.failing.restore(value)
                case records.SHARD:
                    shards[records.shard_of(record.key)] = value
                case records.EVIDENCE:
                    evidence.setdefault(records.shard_of(record.key), []).append(value)
                case records.SETTLED if len(record.key) > len(self.job.job):
                    settled[records.shard_of(record.key)] = value
                case records.SETTLED:
                    job_level = value
        closing = self.job.closing
        if closing is not None and closing.kind == "settlement":
            self.deciding.job = self._job_as_settled(job_level)
        else:
            # Of a settlement that was about to be signed.
            settled = {}
        self.deciding.restore(shards, evidence, settled)
        self.job_changed()
