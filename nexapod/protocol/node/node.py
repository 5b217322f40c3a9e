"""A node: all roles of one peer behind one function (docs/protocol.md).

    effects = node.handle(event, now)      node.deadline -> call handle(Tick(), now) no later than this

Total: no remote input makes `handle` raise; bad input becomes a penalty for its sender. Deterministic: the same
constructor arguments and (event, now) sequence give the same effects. Save before speaking: the driver commits all
Save effects of a call in one transaction before any other effect of it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import assert_never

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import (
    AskShard,
    AskTask,
    BlobFailed,
    BlobReady,
    CancelJob,
    Checkpointed,
    Drain,
    Effect,
    Event,
    Finished,
    Misbehaved,
    OfferChanged,
    Pause,
    PeerDown,
    PeerUp,
    Penalise,
    ProfileChanged,
    Progressed,
    RatifyJob,
    Received,
    Send,
    Submit,
    Tick,
    Unreachable,
    Vacated,
)
from nexapod.protocol.node import recovery, reporting
from nexapod.protocol.node.admission import Ledger
from nexapod.protocol.node.archive import ARCHIVED, Archive, ReadRecords
from nexapod.protocol.node.clock import Clock
from nexapod.protocol.node.directory import Directory
from nexapod.protocol.node.hosting import Hosting
from nexapod.protocol.node.jobs import Jobs
from nexapod.protocol.node.learning import Learning
from nexapod.protocol.node.lifecycle import Lifecycle
from nexapod.protocol.node.routing import Routing
from nexapod.protocol.node.sampling import Sampling
from nexapod.protocol.node.stewarding import Stewarding
from nexapod.protocol.node.submitting import Submitting
from nexapod.protocol.node.sync import Sync
from nexapod.protocol.node.tables import Tables
from nexapod.protocol.primitives import BlobRef, JobId, Millis, PeerId, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.report import JobReport, NodeReport, PeerReport, TaskReport
from nexapod.protocol.rules.matching import Policy
from nexapod.protocol.rules.panel import Candidate
from nexapod.protocol.timers import Timers
from nexapod.protocol.types import Grouping
from nexapod.protocol.wire import messages
from nexapod.protocol.wire.messages import Deliver, Message, Want
from nexapod.protocol.wire.statements import Signer, Statement, Unverified, Verify

CALLS_MAX = 10_000
"""Timers that run, or messages to itself that a node reads, in one call: a machine that always has one more gets the
next at the next call, and no endless loop."""


class Node:
    """One peer. `entropy(n)` gives n unpredictable bytes; `records` is what a former process of it had saved.

    `stewards`: whether this node consents to be a steward at all (what it offers is OfferChanged's matter). `archive`:
    reads records of one kind whose keys begin with these bytes, of what all earlier calls have saved; with it `records`
    need not contain the kinds in archive.ARCHIVED, and the evidence of finished shards does not stay in memory.
    """

    def __init__(
        self,
        signer: Signer,
        verify: Verify,
        network: str,
        grouping: Grouping,
        entropy: Callable[[int], bytes],
        *,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        stewards: bool = True,
        records: Iterable[Record] = (),
        archive: ReadRecords | None = None,
        now: Millis = 0,
    ) -> None:
        self.me = signer.peer
        self._clock = Clock(now)
        self._timers = Timers()
        self._directory = Directory(self.me, network, grouping, entropy, now)
        self._ctx = ctx = Context(signer, verify, network, grouping, entropy, self._directory)
        ctx.now = now
        saved = recovery.recover(records, () if archive is None else ARCHIVED)
        self._ledger = Ledger(self.me)
        self._jobs = Jobs(ctx)
        stewarding = Stewarding(ctx, policy, enabled=stewards)
        self._hosting = Hosting(
            ctx,
            policy,
            self._timers,
            stewarding.refusal,
            self._candidates,
            self._directory.__len__,
            None if archive is None else Archive(ctx, archive),
        )
        stewarding.hosting = self._hosting
        self._learning = Learning(ctx, self._jobs, self._ledger, self._hosting, self._statement_for)
        self._lifecycle = Lifecycle(ctx, self._jobs, self._hosting, self._timers, self._learning)
        self._sync = Sync(ctx, self._jobs, self._learning)
        self._tables = Tables(ctx, self._directory, self._jobs, self._ledger, self._learning, self._hosting)
        self._sampling = Sampling(ctx, self._directory, self._check, saved.seqs)
        self._submitting = Submitting(ctx, self._directory, self._jobs, self._hosting, self._lifecycle)
        self._routing = Routing(
            ctx,
            self._ledger,
            self._jobs,
            self._hosting,
            self._lifecycle,
            self._learning,
            self._sampling,
            self._sync,
        )
        self._ticked: Millis = ctx.now - limits.TICK_MS
        """When the last Tick came."""
        self._restore(saved)
        self._settle()

    # --- the interface ---------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        """Call handle(Tick(), now) no later than this. What is due within TICK_MS of the last Tick is done together: a
        node has as many timers as it has jobs, and is not woken for each."""
        due = self._timers.next
        return self._clock.outside(None if due is None else max(due, self._ticked + limits.TICK_MS))

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        """Everything that this event leads to. Raises LocalError only, and only for Submit, CancelJob, RatifyJob,
        AskTask and AskShard."""
        skipped = self._clock.advance(now, self._timers.next)
        self._ctx.now = self._clock.now
        if skipped:
            self._ctx.trace("clock_gap_skipped", skipped_ms=skipped)
        if isinstance(event, Tick):
            self._ticked = self._ctx.now
        self._dispatch(event)
        self._hear_oneself()
        self._run_due()
        self._settle()
        effects, self._ctx.effects = self._ctx.effects, []
        effects += self._hosting.stored.follow(effects)
        self._tables.effects = len(effects)
        return effects

    def pinned(self) -> frozenset[BlobRef]:
        """Every blob that must not be dropped."""
        return self._ctx.pinned()

    def peers_to_dial(self, count: int) -> list[tuple[PeerId, tuple[str, ...]]]:
        """Random known peers without a link, and where they say they can be dialled."""
        return self._directory.unlinked(count)

    def report(self) -> NodeReport:
        tables = self._tables.report(CALLS_MAX)
        return reporting.node_report(self._ctx, self._directory, self._jobs, self._hosting, tables)

    def peer_reports(self) -> tuple[PeerReport, ...]:
        """Everybody that this node knows of."""
        return reporting.peer_reports(self._ctx, self._directory)

    def link_reports(self) -> tuple[PeerReport, ...]:
        """Those that there is a link to."""
        return reporting.link_reports(self._ctx, self._directory)

    def job_report(self, job: JobId) -> JobReport | None:
        """None: it is not known here (any more)."""
        return reporting.job_report(self._ctx, self._jobs, self._hosting, job)

    def task_report(self, job: JobId, task: int) -> TaskReport | None:
        """None: this node neither submitted the job nor keeps the task's shard."""
        return next(iter(self.task_reports(job, range(task, task + 1))), None)

    def task_reports(self, job: JobId, tasks: range) -> tuple[TaskReport, ...]:
        """Those of `tasks` of which this node submitted the job or keeps the shard, ascending."""
        return reporting.task_reports(self._jobs, self._hosting, job, tasks)

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer says that it can be dialled."""
        return self._directory.addrs(peer)

    def certificate(self, job: JobId) -> Iterator[bytes]:
        """The certificate of a settled job of this node's user, in pieces. Raises LocalError."""
        return self._submitting.certificate(job)

    # --- events ----------------------------------------------------------------------------------------------------
    def _dispatch(self, event: Event) -> None:
        match event:
            case Tick():
                pass
            case Received(peer, frame):
                self._received(peer, frame)
            case PeerUp(peer, addr, dialled):
                self._peer_up(peer, addr, dialled=dialled)
            case PeerDown(peer):
                self._directory.peer_down(peer, self._ctx.now)
                self._sync.peer_down()
                self._hosting.peer_down(peer)
            case Unreachable(peer):
                self._directory.unreachable(peer, self._ctx.now)
                self._hosting.peer_down(peer)
            case ProfileChanged(profile):
                self._hosting.worker.profile_changed(self._sampling.profile_changed(profile))
            case OfferChanged(offer):
                self._sampling.offer_changed(offer)
            case Submit():
                self._submitting.submit(event)
            case CancelJob(job, reason):
                self._submitting.cancel(job, reason)
            case RatifyJob(job):
                self._submitting.ratify(job)
            case AskTask(job, task):
                self._submitting.ask_task(job, task)
            case AskShard(job, shard):
                self._submitting.ask_shard(job, shard)
            case Drain():
                self._hosting.worker.drain()
            case Pause(paused):
                self._hosting.worker.pause(paused)
            case Progressed(task, progress, log):
                self._hosting.worker.progressed(task, progress, log)
            case Checkpointed(task, files, continued):
                self._hosting.worker.checkpointed(task, files, continued)
            case Vacated(task):
                self._hosting.worker.vacated(task)
            case Finished(task, result):
                self._hosting.worker.finished(task, result)
            case Misbehaved(peer, rule, penalty):
                self._penalise(peer, PeerError(rule, penalty=penalty))
            case BlobReady(part):
                if self._ctx.jobs_with(part.blob):
                    self._ctx.blob_stored(part)
                self._hosting.blob_ready(part)
            case BlobFailed(part):
                self._hosting.blob_failed(part)
            case _:
                assert_never(event)

    def _peer_up(self, peer: PeerId, addr: str, *, dialled: bool) -> None:
        self._directory.peer_up(peer, addr, self._ctx.now, dialled=dialled)
        if self._ledger.banned(peer, self._ctx.now):
            return
        self._sampling.peer_up(peer)
        self._sync.peer_up(peer)
        self._hosting.peer_up(peer)

    # --- what peers send -------------------------------------------------------------------------------------------
    def _received(self, peer: PeerId, frame: bytes) -> None:
        now = self._ctx.now
        if self._ledger.banned(peer, now):
            return
        if not self._ledger.admit(peer, len(frame), now):
            if self._ledger.ran_dry(peer, now):
                self._ctx.trace("frames_dropped", peer=peer)
            return
        before = len(self._ctx.effects)
        try:
            message = messages.decode(frame)
            self._routing.on_message(peer, message, len(frame))
        except PeerError as error:
            self._penalise(peer, error)
        else:
            self._bound_answer(peer, message, len(frame), before)
        answered = sum(len(effect.frame) for effect in self._answers(peer, before))
        self._ledger.answered(peer, answered, now)

    def _answers(self, peer: PeerId, before: int) -> Iterator[Send]:
        return (effect for effect in self._ctx.effects[before:] if isinstance(effect, Send) and effect.peer == peer)

    def _bound_answer(self, peer: PeerId, message: Message, question: int, before: int) -> None:
        """Whoever has no part in any job here is not told more than a multiple of what it said.

        Messages are idempotent: one that is left out costs time only. Want has a bound of its own, and what a
        statement leads to is no answer.
        """
        if peer == self.me or isinstance(message, Want | Deliver) or self._hosting.parties.is_party(peer):
            return
        left = max(limits.ANSWER_FREE_BYTES, limits.ANSWER_FACTOR_MAX * question)
        kept = self._ctx.effects[:before]
        for effect in self._ctx.effects[before:]:
            if isinstance(effect, Send) and effect.peer == peer:
                left -= len(effect.frame)
                if left < 0:
                    continue
            kept.append(effect)
        if left < 0:
            self._ctx.effects[:] = kept
            self._ctx.trace("answer_cut", peer=peer, message=type(message).__name__)

    def _hear_oneself(self) -> None:
        """A node speaks to itself as to any other peer: it is often seat and worker of one task."""
        for _ in range(CALLS_MAX):
            if not self._ctx.to_self:
                return
            message = self._ctx.to_self.popleft()
            try:
                self._routing.on_message(self.me, message, limits.FRAME_BYTES_MAX)
            except PeerError as error:
                # Never a peer's doing: a machine here has said what another here does not take.
                self._ctx.trace("own_message_refused", message=type(message).__name__, reason=str(error))

    def _penalise(self, peer: PeerId, error: PeerError) -> None:
        sentence = self._ledger.penalise(peer, error, self._ctx.now)
        self._ctx.trace("peer_penalised", peer=peer, rule=error.rule, detail=error.detail, points=sentence.points)
        if sentence.lifted is not None:
            self._ctx.save(recovery.ban_record(sentence.lifted, None))
        ban_ms = 0
        if sentence.ban is not None:
            self._ctx.save(recovery.ban_record(peer, sentence.ban.times))
            self._timers.set(("bans",), self._ctx.now + limits.BAN_MAX_MS)
            ban_ms = sentence.ban.until - self._ctx.now
        self._ctx.effects.append(Penalise(peer, error.rule, ban_ms))

    def _check(self, peer: PeerId, unverified: Unverified) -> Statement | None:
        return self._routing.check(peer, unverified)

    def _candidates(self) -> list[Candidate]:
        return self._directory.candidates(self._ctx.now)

    def _statement_for(self, peer: PeerId, id: StatementId) -> Statement | None:
        """A statement that a peer may ask for: of the jobs that it has to do with here."""
        for job in self._hosting.parties.jobs_of(peer):
            known = self._jobs.get(job)
            found = None if known is None else known.state.get(id)
            if found is not None:
                return found
        return None

    # --- time ------------------------------------------------------------------------------------------------------
    def _run_due(self) -> None:
        for _ in range(CALLS_MAX):
            due = self._timers.pop_due(self._ctx.now)
            if due is None:
                return
            self._on_timer(due)
            self._hear_oneself()

    def _on_timer(self, due: object) -> None:
        match due:
            case ("sample",):
                self._sampling.tick()
            case ("sync",):
                self._sync.tick()
            case ("wanting",):
                self._learning.tick()
            case ("retention", bytes() as job):
                self._lifecycle.expire(JobId(job))
            case ("ages",):
                self._lifecycle.save_ages()
            case ("bans",):
                self._forget_bans()
            case _:
                self._hosting.tick(due)

    def _forget_bans(self) -> None:
        for peer in self._ledger.served(self._ctx.now):
            self._ctx.save(recovery.ban_record(peer, None))
        self._timers.set(("bans",), self._ctx.now + limits.BAN_MAX_MS if self._ledger.has_bans else None)

    def _settle(self) -> None:
        """The call is done: when does whoever acted in it want to be called again?"""
        self._hosting.arm()
        self._timers.set(("sample",), self._sampling.deadline)
        self._timers.set(("sync",), self._sync.deadline)
        self._timers.set(("wanting",), self._learning.deadline)

    # --- restart ---------------------------------------------------------------------------------------------------
    def _restore(self, saved: recovery.Recovered) -> None:
        """Become again what a former process of this node had saved. Its bans are told with the first call."""
        for peer, times in saved.bans.items():
            ban = self._ledger.restore_ban(peer, times, self._ctx.now)
            self._ctx.effects.append(Penalise(peer, "banned-before", ban.until - self._ctx.now))
            self._timers.set(("bans",), self._ctx.now + limits.BAN_MAX_MS)
        for order, job, closing in saved.ended:
            self._jobs.restore_ended(job, closing, order)
        states = {}
        for job, kept in saved.jobs.items():
            state = self._lifecycle.restore(kept, saved.ages.get(job, 0), ended=self._jobs.has_ended(job))
            if state is not None:
                states[job] = state
        strays = self._hosting.restore(states, saved)
        for record in strays:
            # Of a job that is over or was displaced: nothing will ever ask for it.
            self._ctx.save(Record(record.kind, record.key, None))
        for record, reason in saved.set_aside:
            self._ctx.trace("record_set_aside", kind=record.kind, key=record.key.hex(), reason=reason)
        self._lifecycle.resume()
        self._hear_oneself()
