"""One peer's stewardship of one shard: it leases the tasks, keeps the evidence, and judges (docs/protocol.md, Steward).

A task goes: open -> leased -> committed -> revealed -> judged -> settled. What is kept for ever is in ShardState; what
is here besides (leases, who was asked to reveal, what is being fetched) may be lost in a crash and grows back: workers
renew, stewards compare what they hold, timers ask again.

`active` is false when, by this node's view, K closer peers are live: then it grants and judges nothing, and hands
over what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from nexapod.protocol import limits
from nexapod.protocol.checkpoints import Checkpoints
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.desk import Desk, Lease
from nexapod.protocol.inputs import Inputs
from nexapod.protocol.messages import (
    ActiveTask,
    Collect,
    Grant,
    Have,
    Query,
    Release,
    Renew,
    Standing,
    Status,
    Summary,
    TaskStatus,
    View,
    statuses,
)
from nexapod.protocol.quorum import Accepted, Failed, Result, Undecided, judge
from nexapod.protocol.records import Record
from nexapod.protocol.shard import Contradiction, ShardState, lineages
from nexapod.protocol.statements import Bid, Fault, Reveal, Statement, Verdict, Vote
from nexapod.protocol.types import BlobRef, Digest, JobId, JobSpec, Millis, Part, PeerId, StatementId

NO_ROOT = Digest(bytes(32))
WITHHELD_AFTER = 3
"""So many failed fetches of an accepted output, and its results are counted as withheld."""
INTEREST_MAX = 64
VIEW_WORKERS_MAX = 8
"""Workers of one task that a view names: it is for people, and must fit a frame whatever happens."""
RELAYS = 3
STEWARD_ROLE = "steward"
SHARD_RECORD = "shard"


class Steward:
    """The machine. Its driver is node.py, which calls `reconsider` when the set of live peers changes."""

    def __init__(self, ctx: Context, statement: Statement, shard: int) -> None:
        self.ctx = ctx
        self.statement = statement
        self.job = JobId(statement.id)
        self.spec: JobSpec = statement.body
        self.shard = shard
        self.state = ShardState(self.job, self.spec, shard)
        self.desks: dict[int, Desk] = {}
        self.stewards: tuple[PeerId, ...] = ()
        self.size = 0
        """The most stewards that this shard was seen to have: a node that wakes up alone must not judge alone."""
        self.active = False
        self.closed = False
        """The job was cancelled or settled: nothing more is granted or judged."""
        self.inputs = Inputs(ctx, statement, shard, self.owner)
        self.checkpoints = Checkpoints(ctx, self.job, self.spec)
        self._awaited: dict[BlobRef, set[int]] = {}
        self._interest: dict[PeerId, Millis] = {}
        self._alike: dict[PeerId, Digest] = {}
        """Other stewards, and the summary that we last had in common."""
        self._newcomers: dict[PeerId, int] = {}
        """Stewards that became so after this one, and how often they are still told what may be gone on from."""
        self._sync_at: Millis = ctx.now + limits.STEWARD_SYNC_MS
        self._check_at: Millis | None = None
        self._typical_ms: Millis | None = None
        """How long tasks of this shard have taken of late, from lease to commit."""

    # --- time and membership ---------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        times = [t for t in (self._check_at, self.inputs.retry_at, self._sync_at) if t is not None]
        return min(times) if times else None

    def reconsider(self) -> None:
        """The directory changed: am I still, or newly, one of the K?"""
        stewards = self.ctx.stewards(self.job, self.shard)
        if stewards == self.stewards:
            return
        known, self.stewards = self.stewards, stewards
        if len(stewards) > self.size:
            self.size = len(stewards)
            self.ctx.save_record(Record(SHARD_RECORD, shard_record_key(self.job, self.shard), bytes([self.size])))
        new = [peer for peer in stewards if peer not in known and peer != self.ctx.me]
        was, self.active = self.active, self.ctx.me in stewards
        if was:
            self._newcomers |= dict.fromkeys(new, RELAYS)
        self._sync_at = min(self._sync_at, self.ctx.now + 100)
        if self.active and not was:
            self.ctx.trace("steward_began", job=self.job, shard=self.shard, stewards=stewards)
            self.inputs.take(self.stewards)
        if self.active:
            for task in list(self.state.files):
                self._judge(task)

    def restore(self, size: int, statements: list[Statement]) -> None:
        """Take up what a former process of this node had saved. Leases begin anew."""
        self.size = size
        for statement in in_order(statements):
            if statement.kind == "checkpoint":
                self.checkpoints.restore(statement)
            else:
                self.state.add(statement)
        for task, file in self.state.files.items():
            for worker in file.commits:
                if worker not in file.reveals and worker not in file.faults:
                    self._lease(task, worker)
        for bid in self.state.bids.values():
            for task in bid.body.tasks:
                file = self.state.file(task)
                if bid.author not in {*file.commits, *file.faults, *self._desk(task).leases}:
                    self._lease(task, bid.author)
        for task in list(self.state.files):
            self._judge(task)

    def tick(self) -> None:
        now = self.ctx.now
        if self.inputs.retry_at is not None and self.inputs.retry_at <= now:
            self.inputs.fetch(self.stewards)
        if self._check_at is not None and self._check_at <= now:
            self._check()
        if self._sync_at <= now:
            self._sync_at = now + limits.STEWARD_SYNC_MS
            self._sync()

    def _wake(self, when: Millis) -> None:
        self._check_at = when if self._check_at is None else min(self._check_at, when)

    def _check(self) -> None:
        """End what has run out: leases, requests to reveal, pauses between fetches."""
        now = self.ctx.now
        self._check_at = None
        for task, desk in self.desks.items():
            freed = False
            for worker, lease in list(desk.leases.items()):
                overrun = self._overrun(task, worker, lease)
                if lease.expires <= now or overrun:
                    del desk.leases[worker]
                    desk.asked.pop(worker, None)
                    freed = True
                    if overrun:
                        desk.lapse(worker, self.ctx.now)
                    self.ctx.trace("lease_expired", job=self.job, task=task, worker=worker)
                else:
                    self._wake(lease.expires)
            for worker, until in list(desk.asked.items()):
                if until <= now:
                    # It renews but does not show its result: somebody else is needed.
                    desk.leases.pop(worker, None)
                    del desk.asked[worker]
                    freed = True
                    desk.lapse(worker, self.ctx.now)
                    self.ctx.trace("reveal_missing", job=self.job, task=task, worker=worker)
                else:
                    self._wake(until)
            if desk.retry is not None:
                if desk.retry <= now:
                    desk.retry = None
                    self._judge(task)
                else:
                    self._wake(desk.retry)
            if freed:
                self._judge(task)
                self._announce_open(task)
        self._help_late()

    def _help_late(self) -> None:
        """When nothing else is left to do, a task whose worker is late gets one more: the end must not wait for it."""
        if self._typical_ms is None or not self.active or self.closed:
            return
        patience = self._patience(self._typical_ms)
        late = []
        for task, desk in self.desks.items():
            commits = self.state.file(task).commits
            since = min((lease.granted for worker, lease in desk.leases.items() if worker not in commits), default=None)
            if since is None or desk.extra or desk.settled is not None:
                continue
            if since + patience > self.ctx.now:
                self._wake(since + patience)
            else:
                late.append(task)
        if not late:
            return
        if any(task not in self.desks or self._is_open(task) for task in self.state.tasks):
            self._wake(self.ctx.now + limits.RETRY_MIN_MS)
            return
        for task in late:
            self.desks[task].extra = 1
            self.ctx.trace("late", job=self.job, task=task)
            self._announce_open(task)

    def _patience(self, typical_ms: Millis) -> Millis:
        return max(limits.LATE_MIN_MS, limits.LATE_FACTOR * typical_ms)

    def worker_lost(self, worker: PeerId) -> None:
        """Its link broke: its leases end soon, unless it comes back and renews them."""
        soon = self.ctx.now + limits.LOST_LINK_MS
        for desk in self.desks.values():
            lease = desk.leases.get(worker)
            if lease is not None and lease.expires > soon:
                lease.expires = soon
                self._wake(soon)

    def _overrun(self, task: int, worker: PeerId, lease: Lease) -> bool:
        """Whether it renews but cannot be running any more: no task may take longer than the job says."""
        allowed = self.spec.limits.wall_ms + 2 * limits.LEASE_TTL_MS
        return worker not in self.state.file(task).commits and lease.granted + allowed <= self.ctx.now

    # --- inputs ----------------------------------------------------------------------------------------------------
    @property
    def owner(self) -> Owner:
        return (STEWARD_ROLE, self.job, self.shard)

    def submitter_up(self) -> None:
        """The submitter is there (again): tell it what it may have missed."""
        if self.active and self.inputs.placed and not self.closed:
            self.inputs.say_placed()

    def blob_ready(self, part: Part) -> None:
        self.inputs.ready(part)
        self.checkpoints.blob_ready(part)
        for task in sorted(self._awaited.pop(part.blob, ())) if part.is_whole else ():
            self._judge(task)

    def blob_failed(self, part: Part) -> None:
        self.inputs.failed(part)
        self.checkpoints.blob_failed(part)
        for task in sorted(self._awaited.pop(part.blob, ())) if part.is_whole else ():
            self._output_unavailable(task)

    # --- claims ----------------------------------------------------------------------------------------------------
    def on_bid(self, statement: Statement) -> None:
        """A worker's own bid: grant what is open to it."""
        bid: Bid = statement.body
        worker = statement.author
        outstanding = sum(1 for desk in self.desks.values() if worker in desk.leases)
        granted = []
        for task in bid.tasks:
            held = worker in self._desk(task).leases
            if held or (outstanding < limits.LEASES_PER_PEER_MAX and self._grants(task, worker)):
                self._lease(task, worker)
                granted.append(task)
                outstanding += not held
        if granted:
            self.ctx.save(statement)
            self.ctx.trace("granted", job=self.job, tasks=granted, worker=worker)
        given = self._give_checkpoints(granted, worker)
        self.ctx.send(worker, Grant(self.job, self.shard, statement.id, tuple(granted), given))
        # One view is enough to choose by; should the nearest steward be silent, the worker will ask another.
        if len(granted) < len(bid.tasks) and self.stewards[:1] == (self.ctx.me,):
            self._tell_view(worker)

    def _give_checkpoints(self, tasks: list[int], worker: PeerId) -> tuple[bytes, ...]:
        """What workers that are gone had kept of these tasks, as much as a frame has room for."""
        found: list[bytes] = []
        room = limits.OFFER_BYTES_MAX
        for task in tasks:
            statement = self.checkpoints.give(task, worker, partial(self._is_gone, task))
            if statement is not None and len(statement.envelope) + 5 <= room:
                room -= len(statement.envelope) + 5
                found.append(statement.envelope)
        return tuple(found)

    def _is_gone(self, task: int, worker: PeerId) -> bool:
        """It has neither a lease nor a result of the task."""
        return worker not in self._desk(task).leases and worker not in self.state.file(task).commits

    def on_checkpoint(self, statement: Statement, sender: PeerId) -> None:
        """A worker has kept something of a task that it holds; or another steward passes that on. Raises PeerError."""
        task, worker = statement.body.task, statement.author
        if task not in self.state.tasks or not self.active or self.closed or self._desk(task).settled is not None:
            return
        if sender != worker and sender in self.stewards:
            self.checkpoints.relayed(statement, sender)
            return
        bid = self.state.bids.get(statement.body.bid)
        if bid is None or bid.author != worker or task not in bid.body.tasks:
            return
        if sender == worker and worker in self._desk(task).leases:
            self.checkpoints.add(statement)

    def _grants(self, task: int, worker: PeerId) -> bool:
        group = self.ctx.directory.group(worker)
        desk = self._desk(task)
        return self._is_open(task) and not desk.lapsed(worker, self.ctx.now) and group not in self._groups(task)

    def _lease(self, task: int, worker: PeerId) -> None:
        now = self.ctx.now
        desk = self._desk(task)
        old = desk.leases.get(worker)
        desk.leases[worker] = Lease(now + limits.LEASE_TTL_MS, old.granted if old else now, old.progress if old else 0)
        self._wake(now + limits.LEASE_TTL_MS)
        if old is None and self._typical_ms is not None:
            self._wake(now + self._patience(self._typical_ms))

    def _desk(self, task: int) -> Desk:
        desk = self.desks.get(task)
        if desk is None:
            desk = self.desks[task] = Desk(wanted=self.spec.validate.agree)
        return desk

    def _groups(self, task: int) -> set[str]:
        """Operator groups that have this task now: with a lease, or with a result."""
        desk = self._desk(task)
        group = self.ctx.directory.group
        found = {group(worker) for worker in desk.leases}
        # Whoever's checkpoint is gone on from has the task through its successor.
        found |= {group(author) for author, worker in self.checkpoints.handed(task) if worker in desk.leases}
        file = self.state.files.get(task)
        if file is not None:
            found |= {group(p) for worker, s in file.reveals.items() for p in (worker, *s.body.continued)}
            found |= {group(worker) for worker in file.faults}
        return found

    def _counted(self, task: int) -> int:
        """Groups that have given, or are about to give, a result that counts."""
        desk = self._desk(task)
        group = self.ctx.directory.group
        file = self.state.file(task)
        shown = {w: s for w, s in file.reveals.items() if w not in file.faults and w not in desk.withheld}
        revealed = set(lineages(shown, group).values())
        return len(revealed | {group(w) for w in desk.leases if w not in file.faults})

    def _is_open(self, task: int) -> bool:
        desk = self._desk(task)
        return self.active and not self.closed and desk.settled is None and self._counted(task) < desk.places

    def on_release(self, worker: PeerId, message: Release) -> None:
        for task in message.tasks:
            if task not in self.state.tasks:
                continue
            desk = self._desk(task)
            if message.unable and worker in desk.leases:
                desk.lapse(worker, self.ctx.now)
            committed = worker in self.state.file(task).commits
            if desk.leases.get(worker) is not None and not committed:
                del desk.leases[worker]
                # A failure is not signed while a replica is out: this may have been the last.
                self._judge(task)
                self._announce_open(task)

    def on_renew(self, worker: PeerId, message: Renew) -> None:
        answers: dict[int, TaskStatus] = {}
        for held in message.held:
            if held.task in self.state.tasks and held.task not in answers:
                answers[held.task] = self._renewed(worker, held.task, held.bid, held.progress, held.stage)
        for status in statuses(self.job, self.shard, list(answers.values())):
            self.ctx.send(worker, status)

    def _renewed(self, worker: PeerId, task: int, bid: StatementId, progress: int, stage: str) -> TaskStatus:
        desk = self._desk(task)
        file = self.state.file(task)
        known_stage = "revealed" if worker in file.reveals else "committed" if worker in file.commits else "running"
        lease = desk.leases.get(worker)
        mine_to_keep = self.active and not self.closed and desk.settled is None
        known = bid in self.state.bids
        # After a restart, or an expiry: it goes on if nobody took its place.
        if (
            lease is None
            and mine_to_keep
            and known
            and worker not in file.reveals
            and worker not in file.faults
            and (self._grants(task, worker) or (worker in file.commits and not desk.lapsed(worker, self.ctx.now)))
        ):
            self._lease(task, worker)
            lease = desk.leases[worker]
        if lease is not None:
            lease.expires = self.ctx.now + limits.LEASE_TTL_MS
            lease.progress = max(lease.progress, progress)
        if worker in file.commits and worker not in desk.asked:
            # It was asked by a steward that has forgotten, or before its lease ran out while it was away.
            self._open_reveals(task)
        order = ("running", "committed", "revealed")
        behind = not known or order.index(stage) > order.index(known_stage)
        if behind and desk.settled is None and not self.closed:
            return TaskStatus(task, "unknown", ())
        return self._status(task, worker)

    def _status(self, task: int, worker: PeerId) -> TaskStatus:
        desk = self._desk(task)
        file = self.state.file(task)
        standing: Standing = "held"
        envelopes: list[bytes] = []
        if desk.settled is not None:
            standing = "settled"
            verdicts = [s.envelope for s in file.verdicts.values() if s.body.result == desk.settled.result]
            # A majority of the K settles; twice as many cover two views of who they are.
            envelopes = verdicts[: 2 * limits.STEWARDS]
        elif self.closed or worker in file.faults:
            standing = "closed"
        elif worker in file.reveals:
            standing = "held"
        elif worker in file.commits and worker in desk.asked:
            standing = "reveal"
            envelopes = [s.envelope for author, s in file.commits.items() if author != worker]
        elif worker not in desk.leases and worker not in file.commits:
            standing = "lost"
        return TaskStatus(task, standing, tuple(envelopes[: 2 * limits.REPLICAS_MAX]))

    def _tell(self, task: int, workers: Iterable[PeerId]) -> None:
        for worker in workers:
            self.ctx.send(worker, Status(self.job, self.shard, (self._status(task, worker),)))

    # --- views -----------------------------------------------------------------------------------------------------
    def on_query(self, peer: PeerId, message: Query) -> None:
        self._tell_view(peer)

    def _tell_view(self, peer: PeerId) -> None:
        view = self.view()
        self.ctx.send(peer, view)
        if not view.open and (peer in self._interest or len(self._interest) < INTEREST_MAX):
            self._interest[peer] = self.ctx.now + limits.POLL_MAX_MS

    def view(self) -> View:
        """The shard as this steward has it."""
        opened: list[int] = []
        active: list[ActiveTask] = []
        settled: list[int] = []
        failed: list[int] = []
        for task in self.state.tasks:
            desk = self.desks.get(task)
            if desk is None:
                if self.active and not self.closed:
                    opened.append(task)
                continue
            if desk.settled is not None:
                (settled if desk.settled.outcome == "accepted" else failed).append(task)
                continue
            if self._is_open(task):
                opened.append(task)
            commits = self.state.file(task).commits
            workers = tuple(sorted({*desk.leases, *commits}))
            if workers:
                progress = max((lease.progress for lease in desk.leases.values()), default=0)
                active.append(ActiveTask(task, bool(commits), progress, workers[:VIEW_WORKERS_MAX]))
        return View(self.job, self.shard, tuple(opened), tuple(active), tuple(settled), tuple(failed))

    def _announce_open(self, task: int) -> None:
        """Tell the workers that asked in vain that there is something to do."""
        if not self._interest or not self._is_open(task):
            return
        waiting = [p for p, until in self._interest.items() if until > self.ctx.now]
        self._interest.clear()
        for peer in waiting:
            self.ctx.send(peer, self.view())

    # --- evidence --------------------------------------------------------------------------------------------------
    def add(self, statement: Statement, sender: PeerId) -> None:
        """Fold in a statement of this shard. Raises PeerError when it cannot be true."""
        body = statement.body
        if isinstance(body, Verdict) and not self.ctx.may_judge(statement.author, self.job, self.shard):
            return
        if self._too_late(statement, sender):
            return
        added = self.state.add(statement)
        if isinstance(added, Contradiction):
            self._prove_fault(added)
            return
        if added == "orphan":
            if statement.author == sender and not isinstance(body, (Bid, Verdict, Fault)):
                standing: Standing = "lost" if self._was_too_late(statement) else "unknown"
                self.ctx.send(sender, Status(self.job, self.shard, (TaskStatus(body.task, standing, ()),)))
            return
        if isinstance(body, Bid):
            if added == "new" and statement.author == sender and self.active and not self.closed:
                self.on_bid(statement)
            return
        desk = self._desk(body.task)
        asked, settled = set(desk.asked), desk.settled
        if added == "new":
            self._save_new(statement)
            self._advance(statement)
        told = sender in desk.asked.keys() - asked or (desk.settled is not None and desk.settled is not settled)
        if statement.author == sender and not told and not isinstance(body, (Verdict, Fault)):
            self._tell(body.task, (sender,))

    def _too_late(self, statement: Statement, sender: PeerId) -> bool:
        """A commit that its worker brings after results were shown, without a lease, may be a copy.

        Another steward that had leased the task to it will have accepted it; then it comes from there.
        """
        body = statement.body
        if statement.kind != "commit" or statement.author != sender or body.task not in self.state.tasks:
            return False
        file = self.state.file(body.task)
        if statement.author in file.commits or not file.reveals or sender in self._desk(body.task).leases:
            return False
        self._tell(body.task, (sender,))
        return True

    def _was_too_late(self, statement: Statement) -> bool:
        """A reveal whose commit was refused as too late: asking for the commit again would lead nowhere."""
        body = statement.body
        file = self.state.file(body.task)
        return statement.kind == "reveal" and statement.author not in file.commits and bool(file.reveals)

    def _save_new(self, statement: Statement) -> None:
        if statement.kind == "commit":
            self.ctx.save(self.state.bids[statement.body.bid])
        self.ctx.save(statement)

    def _advance(self, statement: Statement) -> None:
        """What a new statement makes possible."""
        task = statement.body.task
        desk = self._desk(task)
        match statement.kind:
            case "commit":
                self._note_duration(desk.leases.get(statement.author))
                if desk.settled is None and statement.author not in {*desk.leases, *self.state.file(task).faults}:
                    self._lease(task, statement.author)
            case "reveal":
                desk.leases.pop(statement.author, None)
                desk.asked.pop(statement.author, None)
            case "fault":
                desk.leases.pop(statement.body.peer, None)
                desk.asked.pop(statement.body.peer, None)
        self._judge(task)
        if statement.kind == "commit":
            self._open_reveals(task)

    def _note_duration(self, lease: Lease | None) -> None:
        if lease is None:
            return
        took, old = self.ctx.now - lease.granted, self._typical_ms
        self._typical_ms = took if old is None else (3 * old + took) // 4
        if old is None:
            self._wake(self.ctx.now + limits.LATE_MIN_MS)

    def _prove_fault(self, found: Contradiction) -> None:
        body = found.first.body
        worker = found.first.author
        if worker in self.state.file(body.task).faults:
            return
        fault = Fault(self.job, body.task, worker, found.first.envelope, found.second.envelope)
        statement = self.ctx.sign(fault)
        self.ctx.trace("fault_proven", job=self.job, task=body.task, worker=worker)
        self.ctx.publish("job", statement)
        self.add(statement, self.ctx.me)

    def _open_reveals(self, task: int) -> None:
        """Once enough groups have committed, all of them may show: nobody can copy any more."""
        desk = self._desk(task)
        if not self.active or self.closed or desk.settled is not None:
            return
        file = self.state.file(task)
        group = self.ctx.directory.group
        in_play = [w for w in file.commits if (w in desk.leases or w in file.reveals) and w not in file.faults]
        if len({group(w) for w in in_play}) < (desk.wanted or self.spec.validate.agree):
            return
        waiting = [w for w in in_play if w not in file.reveals and w not in desk.asked]
        for worker in waiting:
            desk.asked[worker] = self.ctx.now + limits.REVEAL_TTL_MS
            self._wake(desk.asked[worker])
        self._tell(task, waiting)

    # --- judgement -------------------------------------------------------------------------------------------------
    def _judge(self, task: int) -> None:
        desk = self._desk(task)
        self._settle(task)
        if desk.settled is not None:
            if desk.settled.outcome == "accepted" and self.active and desk.retry is None:
                self._keep_outputs(task, desk.settled.root)
            if not self.active or self.ctx.me in self.state.file(task).verdicts:
                return
        group = self.ctx.directory.group
        results = [r for r in self.state.results(task, group) if r.worker not in desk.withheld]
        desk.judgement = judge(results, self.spec.validate)
        match desk.judgement:
            case Undecided(wanted):
                desk.wanted = wanted
                self._open_reveals(task)
                self._announce_open(task)
            case Accepted() as accepted:
                desk.wanted = 0
                if self.active and not self.closed and desk.retry is None and self._keep_outputs(task, accepted.root):
                    self._sign(task, "accepted", accepted.root, accepted.agreeing, accepted.dissenting, "")
            case Failed(failed, reason):
                desk.wanted = 0
                # A replica that is still out may yet bring the agreement.
                if self.active and not self.closed and not desk.leases:
                    self._sign(task, "failed", NO_ROOT, (), failed, reason)

    def _keep_outputs(self, task: int, root: Digest) -> bool:
        """Whether the outputs under this root are here; those that are not are being fetched."""
        file = self.state.file(task)
        shown = sorted((w, s.body) for w, s in file.reveals.items() if s.body.root == root)
        if not shown:
            return False
        reveal: Reveal = shown[0][1]
        missing = False
        for ref in (f.blob for f in reveal.outputs):
            if self.ctx.has(Part.whole(ref)):
                self.ctx.hold(ref, self.owner)
                continue
            missing = True
            waiting = self._awaited.setdefault(ref, set())
            if task not in waiting:
                waiting.add(task)
                self.ctx.fetch(Part.whole(ref), self.owner, [*(w for w, _ in shown), *self.stewards])
        return not missing

    def _output_unavailable(self, task: int) -> None:
        desk = self._desk(task)
        desk.fetch_failures += 1
        desk.retry = self.ctx.now + limits.FETCH_RETRY_MS * 2 ** min(desk.fetch_failures - 1, 6)
        self._wake(desk.retry)
        if desk.fetch_failures >= WITHHELD_AFTER and desk.settled is None and isinstance(desk.judgement, Accepted):
            # Nobody shows what was agreed on: these results are worth nothing, others are asked.
            desk.withheld |= {r.worker for r in desk.judgement.agreeing}
            desk.fetch_failures = 0
            self.ctx.trace("outputs_withheld", job=self.job, task=task, workers=sorted(desk.withheld))

    def _sign(
        self,
        task: int,
        outcome: str,
        root: Digest,
        agreeing: tuple[Result, ...],
        others: tuple[Result, ...],
        reason: str,
    ) -> None:
        file = self.state.file(task)
        votes = tuple(
            Vote(r.reveal, r.worker, r.group, agreed)
            for part, agreed in ((agreeing, True), (others, False))
            for r in part
        )[: 2 * limits.REPLICAS_MAX]
        old = file.verdicts.get(self.ctx.me)
        if old is not None and (len(old.body.votes) >= len(votes) or old.body.result == (outcome, root)):
            return
        verdict = Verdict(self.job, task, outcome, root, votes, self.stewards, reason)  # type: ignore[arg-type]
        statement = self.ctx.sign(verdict)
        self.state.add(statement)
        self.ctx.save(statement)
        self.ctx.trace("judged", job=self.job, task=task, outcome=outcome, root=root)
        self._spread(task, statement)
        self._settle(task)

    def _spread(self, task: int, verdict: Statement) -> None:
        """To the other stewards; to the submitter too, with all the evidence from the nearest of us.

        The workers are shown the verdicts when a majority of them is there.
        """
        for peer in self.stewards:
            if peer not in (self.ctx.me, self.statement.author):
                self.ctx.offer(peer, [verdict])
        whole = self.stewards[:1] == (self.ctx.me,)
        self.ctx.offer(self.statement.author, self.state.evidence(task) if whole else [verdict])

    def _settle(self, task: int) -> None:
        desk = self._desk(task)
        verdict = self.state.decided(task, self.size)
        if verdict is None and desk.settled is not None:
            # One of the agreeing workers has contradicted itself since: what is left does not bear the verdict out.
            desk.settled = None
            self.ctx.trace("unsettled", job=self.job, task=task)
        if verdict is None or (desk.settled is not None and verdict.result == desk.settled.result):
            return
        desk.settled = verdict
        self.ctx.trace("settled", job=self.job, task=task, outcome=verdict.outcome, root=verdict.root)
        self.checkpoints.drop(task)
        busy = [*desk.leases, *(w for w in self.state.file(task).commits if w not in desk.leases)]
        desk.clear()
        self._tell(task, busy)

    @property
    def finished(self) -> bool:
        """Every task of the shard is settled."""
        return len(self.desks) == len(self.state.tasks) and all(d.settled is not None for d in self.desks.values())

    def close(self) -> None:
        """The job is over for everybody: whoever runs one of its tasks is told to stop."""
        self.closed = True
        self.checkpoints.drop_all()
        for task, desk in self.desks.items():
            workers = [*desk.leases]
            desk.clear()
            self._tell(task, workers)

    # --- keeping the same statements as the other stewards -----------------------------------------------------------
    def _sync(self) -> None:
        self._relay_checkpoints()
        count, digest = self.state.summary()
        for peer in self.stewards:
            handed_over = self.finished or not self.active
            if peer != self.ctx.me and not (handed_over and self._alike.get(peer) == digest):
                self.ctx.send(peer, Summary(self.job, self.shard, count, digest))

    def _relay_checkpoints(self) -> None:
        """A newcomer may learn of its place a moment later than the others: it is told more than once."""
        for peer, times in list(self._newcomers.items()):
            if times == 0 or peer not in self.stewards:
                del self._newcomers[peer]
                continue
            self._newcomers[peer] = times - 1
            self.ctx.offer(peer, self.checkpoints.ready())

    def on_summary(self, peer: PeerId, message: Summary) -> None:
        count, digest = self.state.summary()
        if message.digest == digest:
            if self._alike.get(peer) != digest:
                self._alike[peer] = digest
                self.ctx.send(peer, Summary(self.job, self.shard, count, digest))
            return
        self.ctx.send(peer, self._have(answer=True))

    def _have(self, *, answer: bool) -> Have:
        ids = sorted(s.id[:8] for s in self.state.statements())
        return Have(self.job, self.shard, tuple(ids[: limits.STATEMENTS_PER_SHARD_MAX]), answer)

    def on_have(self, peer: PeerId, message: Have) -> None:
        theirs = set(message.ids)
        # A result that is not judged yet is shown to those that judge only: anybody else could claim it as its own.
        judges = self.ctx.may_judge(peer, self.job, self.shard)
        missing = [s for s in self.state.statements() if s.id[:8] not in theirs] if judges else []
        if missing:
            self.ctx.offer(peer, in_order(missing))
        ours = {s.id[:8] for s in self.state.statements()}
        if message.answer and not theirs <= ours:
            self.ctx.send(peer, self._have(answer=False))

    def on_collect(self, peer: PeerId, message: Collect) -> None:
        if peer != self.statement.author:
            # The evidence of a whole shard is much to send for a question: only who needs it gets it.
            self._tell_view(peer)
            return
        have = set(message.have)
        wanted = [t for t, d in self.desks.items() if d.settled is not None and t not in have]
        gathered: list[Statement] = []
        for task in wanted:
            gathered += self.state.evidence(task)
        if gathered:
            self.ctx.offer(peer, in_order(gathered))
        self._tell_view(peer)


def shard_record_key(job: JobId, shard: int) -> bytes:
    """The key under which a stewardship is kept."""
    return bytes(job) + shard.to_bytes(4, "big")


_RANK = {"bid": 0, "commit": 1, "reveal": 2, "verdict": 3, "fault": 3, "checkpoint": 4}


def in_order(found: list[Statement]) -> list[Statement]:
    """Each statement once, before those that answer it."""
    unique = {s.id: s for s in found}
    return sorted(unique.values(), key=lambda s: (_RANK[s.kind], s.id))
