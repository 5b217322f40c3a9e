"""A node: the three roles of one peer and what they share, behind one function (docs/protocol.md, Node).

    effects = node.handle(event, now)      node.deadline -> call handle(Tick(), now) no later than this

Total: no remote input makes `handle` raise; bad input becomes a penalty for its sender. Deterministic: the same
constructor arguments and (event, now) sequence give the same effects. Save before speaking: the driver commits all
Save effects of a call in one transaction before any other effect of it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, assert_never

from nexapod.protocol import limits, messages, statements
from nexapod.protocol.attempts import ATTEMPT_RECORD
from nexapod.protocol.checkpoints import CHECKPOINT_ROLE
from nexapod.protocol.context import STATEMENT_RECORD, Context
from nexapod.protocol.errors import LocalError, PeerError
from nexapod.protocol.events import (
    AskLog,
    BlobFailed,
    BlobReady,
    CancelJob,
    Checkpointed,
    Drain,
    Effect,
    Event,
    Finished,
    Gossiped,
    Misbehaved,
    Pause,
    PeerDown,
    PeerUp,
    Penalise,
    ProfileChanged,
    Progressed,
    Received,
    Save,
    Submit,
    Tick,
    Topic,
    Unreachable,
    Vacated,
)
from nexapod.protocol.matching import Policy
from nexapod.protocol.messages import (
    Collect,
    Grant,
    Have,
    Message,
    Offer,
    Placed,
    Query,
    Redirect,
    Release,
    Renew,
    Status,
    Summary,
    Sync,
    TaskLog,
    View,
    Want,
)
from nexapod.protocol.records import Record
from nexapod.protocol.retention import AGE_SAVE_MS, Retention
from nexapod.protocol.shard import shard_of
from nexapod.protocol.statements import Cancel, Fault, Settlement, Signer, Statement, Verify
from nexapod.protocol.steward import SHARD_RECORD, STEWARD_ROLE, Steward, in_order
from nexapod.protocol.submitter import EVIDENCE_RECORD, STEWARDS_RECORD, Submission
from nexapod.protocol.tickets import shard_key
from nexapod.protocol.timers import Timers
from nexapod.protocol.types import BlobRef, JobId, JobSpec, Millis, Part, PeerId, Profile, StatementId
from nexapod.protocol.worker import Worker

SEQ_RECORD = "seq"
DIRECTORY_TICK_MS = 5_000
MEMBERSHIP_MS = 200
"""How long changes of the directory are gathered before stewardships are worked out anew."""

JobState: TypeAlias = Literal["active", "settled", "cancelled"]


@dataclass(slots=True)
class JobEntry:
    """A job that this node knows of."""

    statement: Statement
    since: Millis
    """When this node first heard of it; earlier processes of it count for as long as they ran."""
    heard: Millis
    state: JobState = "active"
    end: Statement | None = None
    """The settlement or cancellation."""

    @property
    def spec(self) -> JobSpec:
        spec: JobSpec = self.statement.body
        return spec


@dataclass(slots=True)
class Points:
    """How badly a peer has behaved of late."""

    points: int
    since: Millis


class Node:
    """One peer. `entropy(n)` gives n unpredictable bytes; `records` is what a former process of it had saved."""

    def __init__(
        self,
        signer: Signer,
        verify: Verify,
        network: str,
        entropy: Callable[[int], bytes],
        *,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        records: Iterable[Record] = (),
        now: Millis = 0,
    ) -> None:
        self.ctx = Context(signer, network, entropy)
        self.ctx.now = now
        self.me = signer.peer
        self.network = network
        self.verify = verify
        self.jobs: dict[JobId, JobEntry] = {}
        self.stewards: dict[tuple[JobId, int], Steward] = {}
        self.submissions: dict[JobId, Submission] = {}
        self.worker = Worker(self.ctx, verify, policy)
        self.seq = 0
        self.penalties: dict[PeerId, Points] = {}
        self._profile: Profile | None = None
        self._rates: dict[PeerId, tuple[Millis, int]] = {}
        self._timers = Timers()
        self._seen_version = 0
        self._sync_turn = 0
        self._touched: set[tuple[JobId, int]] = set()
        saved = list(records)
        self._retention = Retention(self.ctx, saved)
        self._restore(saved)
        self._timers.set(("directory",), now + DIRECTORY_TICK_MS)
        self._timers.set(("peers",), now + limits.PEER_SYNC_MS)
        self._arm_all()

    # --- the interface ---------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        """Call handle(Tick(), now) no later than this."""
        return self._timers.next

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        """Everything that this event leads to. Raises LocalError only, and only for Submit and CancelJob."""
        self.ctx.now = max(now, self.ctx.now)
        self._dispatch(event)
        self._run_due()
        self._hear_oneself()
        if self.ctx.directory.version != self._seen_version:
            self._seen_version = self.ctx.directory.version
            if ("membership",) not in self._timers:
                self._timers.set(("membership",), self.ctx.now + MEMBERSHIP_MS)
        self._arm_touched()
        effects, self.ctx.effects = self.ctx.effects, []
        return effects

    def admit(self, topic: Topic, data: bytes) -> bool:
        """Whether a gossip message may be forwarded: signature, schema, size, network. Changes nothing."""
        try:
            statement = statements.decode(data, self.verify)
        except PeerError:
            return False
        if topic == "profile":
            return statement.kind == "profile" and statement.body.network == self.network
        if statement.kind == "fault":
            return self._proves(statement.body)
        return statement.kind in ("cancel", "settlement") or (
            statement.kind == "job" and statement.body.network == self.network
        )

    def _proves(self, fault: Fault) -> bool:
        try:
            self._check_fault(fault)
        except PeerError:
            return False
        return True

    def held_blobs(self) -> frozenset[BlobRef]:
        """Every blob that must not be dropped."""
        return self.ctx.held()

    # --- events ----------------------------------------------------------------------------------------------------
    def _dispatch(self, event: Event) -> None:
        ctx = self.ctx
        match event:
            case Tick():
                pass
            case Received(peer, frame):
                self._guard(peer, lambda: self._on_message(peer, messages.decode(frame)))
            case Gossiped(peer, topic, data):
                self._guard(peer, lambda: self._on_gossip(topic, data))
            case PeerUp(peer, addr):
                self._peer_up(peer, addr)
            case PeerDown(peer):
                ctx.directory.peer_down(peer, ctx.now)
                self._worker_lost(peer)
            case Unreachable(peer):
                ctx.directory.unreachable(peer, ctx.now)
                self._worker_lost(peer)
            case ProfileChanged(profile):
                self._profile = profile
                self._publish_profile()
            case Submit(spec):
                self._submit(spec)
            case CancelJob(job, reason):
                self._cancel(job, reason)
            case Drain():
                self.worker.drain()
            case Progressed(task, progress, log):
                self.worker.progressed(task, progress, log)
            case Checkpointed(task, files, continued):
                self.worker.checkpointed(task, files, continued)
            case AskLog(job, task):
                if job in self.submissions:
                    self.submissions[job].ask_log(task)
            case Pause(paused):
                self.worker.pause(paused)
            case Vacated(task):
                self.worker.vacated(task)
            case Finished(task, result):
                self.worker.finished(task, result)
            case Misbehaved(peer, rule, penalty):
                self._penalise(peer, PeerError(rule, penalty=penalty))
            case BlobReady(part):
                ctx.store_has(part)
                self._on_blob(part, ready=True)
            case BlobFailed(part):
                self._on_blob(part, ready=False)
            case _:
                assert_never(event)

    def _guard(self, peer: PeerId, act: Callable[[], None]) -> None:
        """What a peer sent is handled, or held against it; it never raises."""
        try:
            act()
        except PeerError as error:
            self._penalise(peer, error)

    def _penalise(self, peer: PeerId, error: PeerError) -> None:
        old = self.penalties.get(peer)
        halvings = (self.ctx.now - old.since) // limits.PENALTY_DECAY_MS if old else 0
        points = (old.points >> min(halvings, 31) if old else 0) + error.penalty
        if len(self.penalties) >= limits.PROFILES_MAX and peer not in self.penalties:
            self.penalties.clear()
        self.penalties[peer] = Points(points, self.ctx.now)
        self.ctx.trace("penalty", peer=peer, rule=error.rule, detail=error.detail, points=points)
        self.ctx.effects.append(Penalise(peer, error.rule, points > limits.PENALTY_MAX))

    def _on_blob(self, part: Part, *, ready: bool) -> None:
        for key in self._stewards_waiting(part):
            steward = self.stewards[key]
            (steward.blob_ready if ready else steward.blob_failed)(part)
            self._touched.add(key)
        for submission in self.submissions.values():
            (submission.blob_ready if ready else submission.blob_failed)(part)

    def _stewards_waiting(self, part: Part) -> list[tuple[JobId, int]]:
        """The stewardships that asked for it: a node may have thousands, and each of them asks for parts of its own."""
        found: dict[tuple[JobId, int], None] = {}
        for role, job, number in self.ctx.owners(part.blob):
            if role in (STEWARD_ROLE, CHECKPOINT_ROLE):
                shard = number if role == STEWARD_ROLE else number // limits.SHARD_TASKS
                if (job, shard) in self.stewards:
                    found[job, shard] = None
        return list(found)

    def _hear_oneself(self) -> None:
        """A node speaks to itself as to any other peer: it is often steward and worker of one task."""
        while self.ctx.to_self:
            message = self.ctx.to_self.popleft()
            self._guard(self.me, lambda message=message: self._on_message(self.me, message))  # type: ignore[misc]

    # --- peers -----------------------------------------------------------------------------------------------------
    def _peer_up(self, peer: PeerId, addr: str) -> None:
        directory = self.ctx.directory
        directory.peer_up(peer, addr)
        self._sync_with(peer)
        self.worker.peer_up(peer)
        for key, steward in self.stewards.items():
            if steward.statement.author == peer:
                steward.submitter_up()
                self._touched.add(key)

    def _worker_lost(self, peer: PeerId) -> None:
        for key, steward in self.stewards.items():
            steward.worker_lost(peer)
            self._touched.add(key)

    def _sync_with(self, peer: PeerId) -> None:
        directory = self.ctx.directory
        mine = directory.known.get(self.me)
        if mine is not None:
            self.ctx.offer(peer, [mine.statement])
        active = sorted(job for job, entry in self.jobs.items() if entry.state == "active")
        newest = sorted(directory.known.items(), key=lambda item: (-item[1].heard, item[0]))
        profiles = tuple((p, k.profile.seq) for p, k in newest[: limits.MESSAGE_STATEMENTS_MAX])
        self.ctx.send(peer, Sync(tuple(active[: limits.MESSAGE_STATEMENTS_MAX]), profiles))

    def _on_sync(self, peer: PeerId, message: Sync) -> None:
        directory = self.ctx.directory
        theirs = set(message.jobs)
        give = [e.statement for j, e in sorted(self.jobs.items()) if e.state == "active" and j not in theirs]
        give += [e.end for j in message.jobs if (e := self.jobs.get(j)) is not None and e.end is not None]
        seqs = dict(message.profiles)
        give += [
            k.statement
            for p, k in sorted(directory.known.items())
            if p != peer and seqs.get(p, -1) < k.profile.seq and directory.live(p, self.ctx.now)
        ]
        self.ctx.offer(peer, give[: limits.MESSAGE_STATEMENTS_MAX])
        jobs = tuple(StatementId(j) for j in message.jobs if j not in self.jobs)
        profiles = tuple(
            p for p, seq in message.profiles if (k := directory.known.get(p)) is None or k.profile.seq < seq
        )
        if jobs or profiles:
            self.ctx.send(peer, Want(jobs, profiles))

    def _on_want(self, peer: PeerId, message: Want) -> None:
        found = [e.statement for i in message.statements if (e := self.jobs.get(JobId(i))) is not None]
        found += [k.statement for p in message.profiles if (k := self.ctx.directory.known.get(p)) is not None]
        self.ctx.offer(peer, found)

    def _publish_profile(self) -> None:
        profile = self._profile
        if profile is None:
            return
        self.seq = max(self.seq + 1, profile.stamp)
        statement = self.ctx.sign(replace(profile, seq=self.seq))
        self.ctx.save_record(Record(SEQ_RECORD, b"", self.seq.to_bytes(8, "big")))
        self.ctx.directory.learn(statement, self.ctx.now)
        self.worker.profile = statement.body
        self.worker.reconsider()
        self.ctx.publish("profile", statement)
        for peer in self.ctx.directory.links:
            self.ctx.offer(peer, [statement])
        jitter = int.from_bytes(self.ctx.entropy(2), "big") * (self.ctx.directory.period() // 4) // 65_536
        self._timers.set(("profile",), self.ctx.now + self.ctx.directory.period() - jitter)

    # --- jobs ------------------------------------------------------------------------------------------------------
    def _submit(self, spec: JobSpec) -> None:
        if spec.network != self.network:
            raise LocalError(f"The job is for the network {spec.network}; this daemon is on {self.network}.")
        try:
            statements.check_body(spec)
        except PeerError as error:
            raise LocalError(f"The job cannot be submitted: {error.detail}.") from None
        if len(self.jobs) >= limits.JOBS_MAX:
            raise LocalError(f"This daemon knows {limits.JOBS_MAX} jobs already: wait until some of them are over.")
        statement = self.ctx.sign(spec)
        for ref in spec.blobs:
            self.ctx.store_has(Part.whole(ref))
        self._learn_job(statement)
        submission = self.submissions[JobId(statement.id)]
        submission.announce()

    def _learn_job(self, statement: Statement) -> None:
        """A job, heard of for the first time or again."""
        job = JobId(statement.id)
        entry = self.jobs.get(job)
        now = self.ctx.now
        if entry is not None:
            if entry.state == "active" and entry.heard + limits.ANNOUNCE_MS // 2 <= now:
                entry.heard = now
                self.worker.job_known(statement)
                self._arm_announcement(job)
            return
        spec: JobSpec = statement.body
        if spec.network != self.network:
            raise PeerError("wrong-network", "a job of another network")
        if self._retention.is_over(job):
            return
        if statement.author != self.me and not self._within_rate(statement.author):
            # Not held against whoever passed it on: it may be one of many that are new to this node only.
            self.ctx.trace("job_refused", job=job, reason="its submitter announces too many jobs a minute")
            return
        if len(self.jobs) >= limits.JOBS_MAX:
            self.ctx.trace("job_refused", job=job, reason="too many jobs are known")
            return
        self.ctx.save(statement)
        self._enter(statement)
        self.ctx.trace("job_known", job=job, submitter=statement.author, title=spec.name, tasks=spec.tasks)

    def _enter(self, statement: Statement) -> JobEntry:
        job = JobId(statement.id)
        entry = self.jobs[job] = JobEntry(statement, self.ctx.now - self._retention.age(job), self.ctx.now)
        self._timers.set(("retention", job), max(self.ctx.now, entry.since + entry.spec.retention_ms))
        if ("ages",) not in self._timers:
            self._timers.set(("ages",), self.ctx.now + AGE_SAVE_MS)
        if statement.author == self.me:
            self.submissions[job] = Submission(self.ctx, statement)
        self._take_stewardships(entry)
        self.worker.job_known(statement)
        self._arm_announcement(job)
        return entry

    def _within_rate(self, author: PeerId) -> bool:
        minute = self.ctx.now // 60_000
        when, count = self._rates.get(author, (minute, 0))
        count = count + 1 if when == minute else 1
        if len(self._rates) >= limits.PROFILES_MAX:
            self._rates.clear()
        self._rates[author] = (minute, count)
        return count <= limits.JOBS_PER_AUTHOR_PER_MINUTE

    def _cancel(self, job: JobId, reason: str) -> None:
        entry = self.jobs.get(job)
        if entry is None or entry.statement.author != self.me:
            raise LocalError("Only the peer that submitted a job can cancel it: run this there.")
        if entry.state != "active":
            raise LocalError(f"The job is {entry.state} already: there is nothing to cancel.")
        statement = self.ctx.sign(Cancel(job, reason))
        self.ctx.publish("job", statement)
        for shard in range(entry.spec.shards):
            for steward in self.ctx.stewards(job, shard):
                if steward != self.me:
                    self.ctx.offer(steward, [statement])
        self._end(statement)

    def _end(self, statement: Statement) -> None:
        """A submitter has settled or cancelled its job."""
        entry = self.jobs.get(statement.body.job)
        if entry is None or entry.statement.author != statement.author or entry.end is not None:
            return
        job = JobId(entry.statement.id)
        entry.end = statement
        entry.state = "settled" if statement.kind == "settlement" else "cancelled"
        self.ctx.save(statement)
        submission = self.submissions.get(job)
        if submission is not None and entry.state == "cancelled":
            submission.cancelled = True
        self._leave(job, keep=submission is not None)
        self.ctx.trace("job_over", job=job, state=entry.state)

    def _leave(self, job: JobId, *, keep: bool) -> None:
        """Stop working for a job and forget what was kept for it; its own submitter keeps the evidence."""
        self.worker.job_over(job)
        for key in [k for k in self.stewards if k[0] == job]:
            steward = self.stewards.pop(key)
            steward.close()
            self.ctx.let_go_all(steward.owner)
            self.ctx.save_record(Record(SHARD_RECORD, bytes(job) + key[1].to_bytes(4, "big"), None))
            self._timers.set(("steward", *key), None)
            if not keep:
                for statement in {s.id: s for s in (*steward.state.bids.values(), *steward.state.statements())}:
                    self.ctx.forget(statement)
        self._timers.set(("announce", job), None)

    def _forget(self, job: JobId) -> None:
        """Retention has ended."""
        entry = self.jobs.pop(job, None)
        if entry is None:
            return
        self._leave(job, keep=False)
        submission = self.submissions.pop(job, None)
        if submission is not None:
            self.ctx.let_go_all(submission.owner)
            for state in submission.states:
                for statement in (*state.bids.values(), *state.statements()):
                    self.ctx.forget(statement.id)
            self._timers.set(("submission", job), None)
            for kind in (EVIDENCE_RECORD, STEWARDS_RECORD):
                self.ctx.save_record(Record(kind, bytes(job), None))
        self._retention.end(job)
        self.ctx.forget(entry.statement.id)
        if entry.end is not None:
            self.ctx.forget(entry.end.id)
        self.ctx.trace("job_forgotten", job=job)

    # --- stewardship -----------------------------------------------------------------------------------------------
    def _take_stewardships(self, entry: JobEntry) -> None:
        job = JobId(entry.statement.id)
        for shard in range(entry.spec.shards):
            key = (job, shard)
            if key in self.stewards:
                self.stewards[key].reconsider()
                self._touched.add(key)
            elif self.me in self.ctx.stewards(job, shard) and len(self.stewards) < limits.SHARDS_MAX:
                steward = self.stewards[key] = Steward(self.ctx, entry.statement, shard)
                steward.reconsider()
                self._touched.add(key)

    def _reconsider(self) -> None:
        for entry in list(self.jobs.values()):
            if entry.state == "active":
                self._take_stewardships(entry)
                self._arm_announcement(JobId(entry.statement.id))
        self.worker.reconsider()

    def _arm_announcement(self, job: JobId) -> None:
        """Stewards of an unfinished shard announce the job again, the nearest first; hearing it puts all off."""
        entry = self.jobs[job]
        ranks = [
            s.stewards.index(self.me) for (j, _), s in self.stewards.items() if j == job and s.active and not s.finished
        ]
        when = entry.heard + limits.ANNOUNCE_MS + min(ranks) * limits.ANNOUNCE_MS // 12 if ranks else None
        self._timers.set(("announce", job), when)

    def _announce(self, job: JobId) -> None:
        entry = self.jobs.get(job)
        if entry is not None and entry.state == "active":
            entry.heard = self.ctx.now
            self.ctx.publish("job", entry.statement)
            self.worker.job_known(entry.statement)
            self._arm_announcement(job)

    def _steward_of(self, peer: PeerId, job: JobId, shard: int) -> Steward | None:
        """This node's stewardship that a message is for; the sender is sent elsewhere when there is none."""
        entry = self.jobs.get(job)
        if entry is None:
            self.ctx.send(peer, Want((StatementId(job),), ()))
            return None
        if not 0 <= shard < entry.spec.shards:
            raise PeerError("no-such-shard")
        if entry.end is not None:
            self.ctx.offer(peer, [entry.end])
            return None
        steward = self.stewards.get((job, shard))
        if steward is not None and steward.active:
            self._touched.add((job, shard))
            return steward
        self._redirect(peer, job, shard)
        return None

    def _redirect(self, peer: PeerId, job: JobId, shard: int) -> None:
        nearest = self.ctx.directory.closest(shard_key(job, shard), limits.STEWARDS, self.ctx.now)
        known = self.ctx.directory.known
        self.ctx.offer(peer, [known[p].statement for p in nearest if p != peer and p in known])
        self.ctx.send(peer, Redirect(job, shard, nearest))

    # --- messages --------------------------------------------------------------------------------------------------
    def _on_message(self, peer: PeerId, message: Message) -> None:
        match message:
            case Sync():
                self._on_sync(peer, message)
            case Want():
                self._on_want(peer, message)
            case Offer(envelopes):
                for envelope in envelopes:
                    self._on_statement(statements.decode(envelope, self.verify), peer)
            case Grant():
                self.worker.on_grant(peer, message)
            case Status():
                self.worker.on_status(peer, message)
            case View():
                if not self.ctx.may_judge(peer, message.job, message.shard):
                    return
                self.worker.on_view(message)
                if message.job in self.submissions:
                    self.submissions[message.job].on_view(message)
            case Redirect():
                self.ctx.trace("redirected", job=message.job, shard=message.shard, by=peer)
            case Placed(job, shard):
                if job in self.submissions:
                    self.submissions[job].on_placed(peer, shard)
            case messages.AskLog():
                self.worker.on_ask_log(peer, message)
            case TaskLog(job, task, log):
                if job in self.submissions:
                    self.submissions[job].on_task_log(peer, task, log)
            case Summary() | Have():
                self._on_steward_message(peer, message)
            case Release() | Renew() | Query() | Collect():
                self._on_claim(peer, message)
            case _:
                assert_never(message)

    def _on_claim(self, peer: PeerId, message: Release | Renew | Query | Collect) -> None:
        steward = self._steward_of(peer, message.job, message.shard)
        if steward is None:
            return
        match message:
            case Release():
                steward.on_release(peer, message)
            case Renew():
                steward.on_renew(peer, message)
            case Query():
                steward.on_query(peer, message)
            case Collect():
                steward.on_collect(peer, message)

    def _on_steward_message(self, peer: PeerId, message: Summary | Have) -> None:
        """From another steward, or from one that was: it may hold what we lack even when we are none (any more)."""
        key = (message.job, message.shard)
        steward = self.stewards.get(key)
        if steward is None:
            steward = self._steward_of(peer, message.job, message.shard)
        if steward is None:
            return
        if not self.ctx.may_judge(peer, message.job, message.shard) and not steward.active:
            return
        self._touched.add(key)
        if isinstance(message, Summary):
            steward.on_summary(peer, message)
        else:
            steward.on_have(peer, message)

    def _on_gossip(self, topic: Topic, data: bytes) -> None:
        statement = statements.decode(data, self.verify)
        allowed = ("profile",) if topic == "profile" else ("job", "cancel", "settlement", "fault")
        if statement.kind not in allowed:
            raise PeerError("wrong-topic", f"a {statement.kind} on the topic {topic}")
        self._on_statement(statement, statement.author)

    def _on_statement(self, statement: Statement, sender: PeerId) -> None:
        match statement.kind:
            case "profile":
                if statement.author != self.me and self.ctx.directory.learn(statement, self.ctx.now):
                    self.ctx.trace("profile", peer=statement.author)
            case "job":
                self._learn_job(statement)
            case "cancel" | "settlement":
                self._end(statement)
            case "fault":
                self._on_fault(statement, sender)
            case "checkpoint":
                self._on_checkpoint(statement, sender)
            case _:
                self._on_shard_statement(statement, sender)

    def _on_checkpoint(self, statement: Statement, sender: PeerId) -> None:
        """For the stewards alone: others have no use for it."""
        key = (JobId(statement.body.job), shard_of(statement))
        steward = self.stewards.get(key)
        if steward is not None:
            self._touched.add(key)
            steward.on_checkpoint(statement, sender)

    def _on_fault(self, statement: Statement, sender: PeerId) -> None:
        """A proof: its two commits are checked here, whoever signed it."""
        self._check_fault(statement.body)
        self._on_shard_statement(statement, sender)

    def _check_fault(self, fault: Fault) -> None:
        first = statements.decode(fault.first, self.verify)
        second = statements.decode(fault.second, self.verify)
        for commit in (first, second):
            body = commit.body
            if (
                commit.kind != "commit"
                or commit.author != fault.peer
                or (body.job, body.task) != (fault.job, fault.task)
            ):
                raise PeerError("bad-fault", "it does not prove what it says", penalty=50)
        if first.id == second.id:
            raise PeerError("bad-fault", "its two commits are one", penalty=50)

    def _on_shard_statement(self, statement: Statement, sender: PeerId) -> None:
        job = JobId(statement.body.job)
        key = (job, shard_of(statement))
        submission = self.submissions.get(job)
        if submission is not None:
            submission.add(statement)
            if submission.settlement is not None:
                self._end(submission.settlement)
        if statement.kind == "verdict" and job in self.jobs:
            self.worker.on_verdict(statement)
        steward = self.stewards.get(key)
        if steward is not None and (steward.active or sender != statement.author):
            self._touched.add(key)
            steward.add(statement, sender)
        elif sender == statement.author and statement.kind in ("bid", "commit", "reveal"):
            self._steward_of(sender, *key)

    # --- time ------------------------------------------------------------------------------------------------------
    def _run_due(self) -> None:
        now = self.ctx.now
        # Bounded: a machine that sets itself an alarm in the past gets it at the next call, not in an endless loop.
        for _ in range(10_000):
            due = self._timers.pop_due(now)
            if due is None:
                return
            self._on_timer(due)
            self._hear_oneself()

    def _on_timer(self, due: object) -> None:
        match due:
            case ("steward", job, shard):
                steward = self.stewards.get((job, shard))  # type: ignore[arg-type]
                if steward is not None:
                    steward.tick()
                    self._touched.add((job, shard))  # type: ignore[arg-type]
            case ("worker",):
                self.worker.tick()
            case ("submission", job):
                submission = self.submissions[job]  # type: ignore[index]
                submission.tick()
                if submission.settlement is not None:
                    self._end(submission.settlement)
            case ("announce", job):
                self._announce(job)  # type: ignore[arg-type]
            case ("retention", job):
                self._forget(job)  # type: ignore[arg-type]
            case ("ages",):
                self._retention.save({job: entry.since for job, entry in self.jobs.items()})
                self._timers.set(("ages",), self.ctx.now + AGE_SAVE_MS if self.jobs else None)
            case ("membership",):
                self._reconsider()
            case ("directory",):
                self.ctx.directory.tick(self.ctx.now)
                self._timers.set(("directory",), self.ctx.now + DIRECTORY_TICK_MS)
            case ("profile",):
                self._publish_profile()
            case ("peers",):
                self._sync_in_turn()

    def _sync_in_turn(self) -> None:
        """Every link is compared once every few minutes."""
        links = sorted(self.ctx.directory.links)
        if links:
            self._sync_turn += 1
            self._sync_with(links[self._sync_turn % len(links)])
        self._timers.set(("peers",), self.ctx.now + limits.PEER_SYNC_MS // max(1, len(links)))

    def _arm_touched(self) -> None:
        for key in sorted(self._touched):
            steward = self.stewards.get(key)
            self._timers.set(("steward", *key), steward.deadline if steward else None)
        self._touched.clear()
        self._timers.set(("worker",), self.worker.deadline)
        for job, submission in self.submissions.items():
            self._timers.set(("submission", job), submission.deadline)

    def _arm_all(self) -> None:
        self._touched.update(self.stewards)
        self._arm_touched()

    # --- restart ---------------------------------------------------------------------------------------------------
    def _restore(self, records: list[Record]) -> None:
        """Become again what a former process of this node had saved."""
        by_job: dict[JobId, list[Statement]] = {}
        ends: list[Statement] = []
        for record in records:
            if record.value is None:
                continue
            if record.kind == SEQ_RECORD:
                self.seq = int.from_bytes(record.value, "big")
            elif record.kind == STATEMENT_RECORD:
                # Our own store is trusted: signatures were checked before anything was saved.
                statement = statements.decode(record.value, _saved)
                if statement.kind == "job":
                    self._enter(statement)
                elif statement.kind in ("cancel", "settlement"):
                    ends.append(statement)
                else:
                    by_job.setdefault(JobId(statement.body.job), []).append(statement)
        evidence = {
            JobId(r.key): frozenset(StatementId(r.value[at : at + 32]) for at in range(0, len(r.value), 32))
            for r in records
            if r.kind == EVIDENCE_RECORD and r.value is not None
        }
        sizes = {JobId(r.key): r.value[0] for r in records if r.kind == STEWARDS_RECORD and r.value is not None}
        self._restore_shards(records, by_job)
        for job, submission in self.submissions.items():
            submission.restore(in_order(by_job.get(job, [])), evidence.get(job), sizes.get(job, 0))
        for end in ends:
            self._restore_end(end)
        for record in records:
            if record.kind == ATTEMPT_RECORD and record.value is not None:
                self.worker.restore(record)

    def _restore_shards(self, records: list[Record], by_job: dict[JobId, list[Statement]]) -> None:
        for record in records:
            if record.kind != SHARD_RECORD or record.value is None:
                continue
            job, shard = JobId(record.key[:32]), int.from_bytes(record.key[32:], "big")
            entry = self.jobs.get(job)
            if entry is not None:
                steward = self.stewards[job, shard] = Steward(self.ctx, entry.statement, shard)
                steward.restore(record.value[0], [s for s in by_job.get(job, []) if shard_of(s) == shard])

    def _restore_end(self, end: Statement) -> None:
        job = JobId(end.body.job)
        submission = self.submissions.get(job)
        if submission is not None and isinstance(end.body, Settlement):
            submission.settlement = end
        self._end(end)
        # It is saved already.
        self.ctx.effects = [e for e in self.ctx.effects if not (isinstance(e, Save) and e.record.key == end.id)]


def _saved(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Verifies what this node's own store holds."""
    return True
