"""One seat of one shard: joins its leases, votes, outputs, checkpoints and replication (docs/protocol.md, 4.1, 5, 6).

Every call notes what has changed, and ends with `_settle`: tasks are looked at again, and what follows is done, until
nothing changes any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Millis, Part, PeerId, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.steward.shard import leases, restoring, viewing
from nexapod.protocol.steward.shard.assigning import Assigned
from nexapod.protocol.steward.shard.checkpoints import Checkpoints
from nexapod.protocol.steward.shard.collecting import Collecting
from nexapod.protocol.steward.shard.granting import Granting
from nexapod.protocol.steward.shard.intake import Intake
from nexapod.protocol.steward.shard.leading import Leading
from nexapod.protocol.steward.shard.outputs import Outputs
from nexapod.protocol.steward.shard.refreshing import gather, refresh
from nexapod.protocol.steward.shard.replication import Replication
from nexapod.protocol.steward.shard.state import ShardState
from nexapod.protocol.steward.shard.telling import Telling
from nexapod.protocol.steward.shard.voting import Voting
from nexapod.protocol.tables import TableReport
from nexapod.protocol.timers import earliest
from nexapod.protocol.wire import messages
from nexapod.protocol.wire.messages import Message, Status, TaskView
from nexapod.protocol.wire.statements import Statement

PASSES_MAX: Final = 1_000
"""Passes of one `_settle`: a bug would show as this assertion rather than as a node that stands still."""


class Steward:
    """`has_inputs`: whether the inputs of the shard are here, so that its tasks may be granted."""

    def __init__(self, ctx: Context, job: JobState, shard: int, has_inputs: Callable[[], bool]) -> None:
        self._ctx = ctx
        self._state = ShardState(ctx, job, shard)
        self.evidence = self._state.evidence
        self._outputs = Outputs(ctx, job.job, shard)
        self._checkpoints = Checkpoints(ctx, job.job, job.spec, shard, self._state.save_checkpoint)
        self._granting = Granting(self._state, self._checkpoints, has_inputs)
        self._leading = Leading(ctx.me)
        self._voting = Voting(self._state, self._outputs, self._leading, self._fold)
        self._telling = Telling(self._state)
        self._collecting = Collecting(ctx, job, shard, self.evidence, lambda: self.leased)
        self._intake = Intake(
            self._state, self._granting, self._voting, self._telling, self._collecting, self._checkpoints, self._touch
        )
        self._replication = Replication(job.job, shard, self._ids, self._send, self._hand_over)
        self._seats = job.seats(shard)
        self._adopted = job.adopted(shard)
        self._job_version = job.version
        self._wanted_at: dict[PeerId, Millis] = {}
        """When members were last asked for what makes them see other seats than this node does."""
        self._news = False
        """Something has been learnt that proposals may have waited for."""
        self._heirs: dict[PeerId, None] = {}
        """Seats that this node, which is none any more, has still to hand over to what it knows."""
        self._unassigned: tuple[tuple[int, PeerId], ...] = ()
        """As another seat than the leader: what a leader would assign."""
        self._leased_at = ctx.now
        """When another seat leased something last."""
        self._assign_at: Millis | None = None
        """Not before: assignments and looks at what could be assigned. None: nobody has claimed yet."""
        self._begun = False
        """Whether anybody has spoken of its tasks: before that nothing is kept of any of them."""
        self._replication.with_seats(self._state.others, ctx.now)
        self._settle()

    # --- messages --------------------------------------------------------------------------------------------------
    def on_message(self, peer: PeerId, message: Message) -> None:
        """Of this job and shard. Raises PeerError on what no honest peer says."""
        state, holders = self._state, self._state.seats.holders
        if isinstance(message, messages.Claim | messages.Renew | messages.Release | messages.Lease):
            self._begin()
        match message:
            case messages.Claim():
                if state.active and not self._answer_over(peer, message):
                    self._granting.on_claim(peer, message)
            case messages.Renew():
                self._on_renew(peer, message)
            case messages.Release():
                self._granting.on_release(peer, message)
            case messages.Lease():
                if message.epoch > state.seats.epoch or not state.active:
                    self._want_job(peer)
                if peer in holders and state.active:
                    self._leading.spoke(peer)
                    self._leased_at = self._ctx.now
                    self._granting.on_lease(peer, message)
            case messages.Object():
                if peer in holders:
                    self._voting.on_object(peer, message)
            case messages.Reconcile():
                if peer in holders:
                    self._replication.on_reconcile(peer, message)
                if peer not in holders or not state.active:
                    self._want_job(peer)
            case messages.Collect():
                self._collecting.on_collect(peer, message)
            case messages.Inspect():
                self._on_inspect(peer, message)
            case _:
                raise PeerError("not-for-a-seat", type(message).__name__)
        self._settle()

    def _begin(self) -> None:
        """Look at every task: of a large job's shards most wait long for the first worker, and cost nothing before."""
        if not self._begun:
            self._begun = True
            self._state.mark(*self.evidence.tasks)
            self._refresh_dirty()

    def _on_renew(self, worker: PeerId, message: messages.Renew) -> None:
        answers = self._granting.on_renew(worker, message)
        if answers:
            self._telling.prove(worker, answers)
            self._ctx.send(worker, Status(self._state.job.job, self._state.shard, tuple(answers)))

    def _answer_over(self, worker: PeerId, message: messages.Claim) -> bool:
        """In a shard that is wholly decided nobody is given anything more. Whether it is, and the worker was told: once
        a quorum of the seats has said so it asks elsewhere."""
        state = self._state
        if state.wanting or self.evidence.decided < len(self.evidence.tasks):
            return False
        if message.room and state.admitted(worker) is not None:
            standing: messages.Standing = "decided"
            tasks = tuple((task, standing) for task in self.evidence.tasks)
            self._ctx.send(worker, Status(state.job.job, state.shard, tasks))
        if state.claims.drop(worker):
            state.presence_changed()
        return True

    def _want_job(self, peer: PeerId) -> None:
        """A member takes this node for a seat, or itself, that is none here: a succession is missing on one side."""
        job, now = self._state.job, self._ctx.now
        last = self._wanted_at.get(peer)
        if job.was_member(peer) and not job.closed and (last is None or now - last >= limits.ASK_AGAIN_MS):
            self._wanted_at[peer] = now
            self._send(peer, messages.Want((job.statement.id,)))

    def _on_inspect(self, peer: PeerId, message: messages.Inspect) -> None:
        """For people: of those who have to do with the job."""
        job = self._state.job
        if peer in job.owners or job.was_member(peer):
            tasks = message.tasks or tuple(self.evidence.tasks)
            self._ctx.send(peer, messages.View(job.job, self._state.shard, self.views(tasks)))

    # --- statements ------------------------------------------------------------------------------------------------
    def on_statement(self, statement: Statement, sender: PeerId) -> None:
        """Of this shard; `sender` is the link that it came on. Raises PeerError when it cannot be true."""
        self._begin()
        if statement.kind in ("freeze", "verdict") and statement.body.epoch > self._state.seats.epoch:
            self._want_job(sender)
        self._intake.take(statement, sender)
        self._settle()

    def _fold(self, statement: Statement) -> None:
        """What this seat has signed itself."""
        self._intake.fold(statement)

    def _touch(self, tasks: Iterable[int]) -> None:
        """Something new is known of these."""
        some = [task for task in tasks if task in self.evidence.tasks]
        for task in some:
            self._voting.nudge(task)
        self._state.mark(*some)
        self._replication.changed(self._ctx.now)
        self._news = True

    # --- blobs -----------------------------------------------------------------------------------------------------
    def blob_ready(self, part: Part) -> None:
        self._checkpoints.blob_ready(part)
        self._touch(self._outputs.ready(part))
        self._settle()

    def blob_failed(self, part: Part) -> None:
        self._checkpoints.blob_failed(part)
        for task in self._outputs.failed(part):
            self._withhold(task)
        self._settle()

    def _withhold(self, task: int) -> None:
        """Nobody gives what was agreed on: these results are worth nothing, others are asked."""
        frozen, soft = self.evidence.frozen(task), self._state.task(task)
        if frozen is None or self._state.decided(task) or task not in self.evidence.tasks:
            return
        place = getattr(soft.judgement, "representative", None)
        if place is None:
            return
        shown = self.evidence.shown(task)
        given = [one.worker for one in shown if one.root == shown[place].root]
        soft.ungiven |= dict.fromkeys(given)
        self._ctx.trace("outputs_withheld", job=self._state.job.job, task=task, workers=tuple(sorted(given)))
        self._touch([task])

    def inputs_ready(self) -> None:
        """What the shard's tasks need is here: they may be granted."""
        self._state.assignable = True
        self._settle()

    # --- peers and seats -------------------------------------------------------------------------------------------
    def peer_up(self, peer: PeerId) -> None:
        self._replication.soon(peer, self._ctx.now)
        self._hand_on()
        self._presence_changed(peer)

    def peer_down(self, peer: PeerId) -> None:
        self._collecting.gone(peer)
        if self._granting.lost(peer):
            self._settle()
        else:
            self._presence_changed(peer)

    def _presence_changed(self, peer: PeerId) -> None:
        """A node has thousands of shards, and a peer has to do with few of them."""
        state = self._state
        tasks = state.leases.tasks_of(peer)
        if tasks or state.claims.get(peer) is not None or peer in state.seats.holders:
            state.mark(*tasks)
            state.presence_changed()
            self._settle()

    def job_changed(self) -> None:
        """Something of the job counts anew: its seats, what they adopted, its workers, its end."""
        state = self._state
        if state.job.version == self._job_version:
            return
        self._job_version = state.job.version
        if state.job.closed:
            self.close()
            return
        if state.seats.id != self._seats.id:
            self._seats_changed()
        if state.job.adopted(state.shard) != self._adopted:
            self._adopted_more()
        for worker in sorted(state.job.faults()):
            for task in state.leases.tasks_of(worker):
                self._granting.ended(task, worker)
        self._touch(task for task in state.soft if self.evidence.commits(task) and not state.decided(task))
        state.presence_changed()
        self._settle()

    def _seats_changed(self) -> None:
        state = self._state
        was_holder = self._ctx.me in self._seats.holders
        newcomers = [peer for peer in state.others if peer not in self._seats.holders]
        self._seats = state.seats
        if not was_holder and state.active:
            state.began = self._ctx.now
        self._voting.epoch_changed(was_holder)
        self._replication.with_seats(state.others, self._ctx.now)
        for peer in newcomers if was_holder else ():
            self._ctx.deliver(peer, self._checkpoints.ready(), state.job.addrs(peer))
        self._heirs = {} if state.active else dict.fromkeys(state.others if was_holder else self._heirs)
        self._hand_on()
        if was_holder:
            self._tell_workers([peer for peer in state.seats.holders if peer not in newcomers])
        self._ctx.trace("seats_changed", job=state.job.job, shard=state.shard, epoch=state.seats.epoch)
        self._touch(self.evidence.tasks if self._begun else ())

    def _hand_on(self) -> None:
        """What was decided while those who hold the seats now were away can be adopted only if they hear of it."""
        for peer in [peer for peer in self._heirs if self._ctx.peers.linked(peer)]:
            del self._heirs[peer]
            self._hand_over(peer, self.evidence.ids())

    def _tell_workers(self, staying: Sequence[PeerId]) -> None:
        """The first of the seats that stayed tells the workers; whoever misses it asks when it hears of the epoch."""
        state = self._state
        if not staying or staying[0] != self._ctx.me:
            return
        succession = state.job.get(state.seats.id)
        if succession is None:
            return
        workers = (*self._telling.workers(self.evidence.tasks), *(claim.worker for claim in state.claims))
        for worker in dict.fromkeys(workers):
            if self._ctx.peers.linked(worker):
                self._ctx.deliver(worker, (succession,))

    def _adopted_more(self) -> None:
        state = self._state
        new = state.job.adopted(state.shard) - self._adopted
        self._adopted = state.job.adopted(state.shard)
        self._voting.adopted()
        found = [self.evidence.get(id) for id in sorted(new)]
        for statement in sorted((s for s in found if s is not None), key=lambda s: (s.kind, s.id)):
            self._intake.counts(statement)

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        if self._state.closed:
            return None
        return earliest(
            self._state.timers.next,
            self._state.claims.next_end,
            self._outputs.next_at,
            self._replication.next_at,
            self._collecting.next_at,
            self._voting.next_at(),
        )

    def tick(self) -> None:
        state, now = self._state, self._ctx.now
        if state.closed:
            return
        while (name := state.timers.pop_due(now)) is not None:
            assert isinstance(name, tuple)
            self._timed_out(*name)
        if state.claims.expire(now):
            state.presence_changed()
        self._outputs.tick(now)
        self._replication.tick(now, self._ctx.peers.linked)
        self._voting.tick()
        self._settle()

    def _timed_out(self, what: str, task: int) -> None:
        match what:
            case "task" | "stuck" | "bar" | "idle" | "doubt" | "slow":
                self._state.mark(task)
            case "lease":
                self._granting.expire(task)
            case "widen" | "late":
                self._state.assignable = True
            case "assign":
                pass
            case "early":
                self._granting.grant_early()
            case "cosign":
                self._news = True
            case "tell":
                self._telling.tell_late()
            case "verdicts":
                self._telling.tell_held()

    # --- what follows ----------------------------------------------------------------------------------------------
    def _settle(self) -> None:
        """Until nothing changes any more."""
        for _ in range(PASSES_MAX):
            if self._state.closed:
                return
            self._refresh_dirty()
            if self._news:
                self._news = False
                self._voting.reconsider()
            elif not self._state.dirty and not self._act():
                break
        else:
            raise AssertionError("a shard does not settle")
        self._collecting.tick(self._ctx.now)

    def _refresh_dirty(self) -> None:
        while self._state.dirty:
            task = next(iter(self._state.dirty))
            del self._state.dirty[task]
            refresh(self._state, self._outputs, task)
            for worker in self._state.task(task).late:
                self._let_down(task, worker)

    def _let_down(self, task: int, worker: PeerId) -> None:
        """It renews but does not show its result: somebody else is needed."""
        table = self._state.leases[task]
        if table.of(worker) is not None:
            self._state.leases.put(task, leases.bar(leases.release(table, worker), worker, self._ctx.now))
            self._state.mark(task)

    def _act(self) -> bool:
        """Propose and assign as the leader; as another seat watch that somebody does. Whether anything came of it."""
        state, now = self._state, self._ctx.now
        if not state.active or not state.job.workable:
            return False
        leader = self._leading.leader(state.seats.holders, self._ctx.peers.linked, now)
        if leader == self._ctx.me:
            self._voting.lead()
            return self._assign() or bool(state.dirty) or self._news
        return self._watch(leader)

    def _assign(self) -> bool:
        """Give out what is open. Whether there was anything."""
        if not self._may_assign(limits.ASSIGN_MS):
            return False
        assigned = self._granting.assigned()
        if assigned.items:
            self._granting.lead(assigned)
        else:
            self._granting.widen(assigned)
        self._granting.help_late()
        return True

    def _may_assign(self, pause_ms: Millis) -> bool:
        """Whether claims or openings have changed, and the last assignment is long enough ago; else it is due later."""
        state, now = self._state, self._ctx.now
        if not state.assignable or not len(state.claims):
            return False
        if self._assign_at is None:
            # Those who were admitted together claim at the same moment.
            self._assign_at = now + limits.ASSIGN_MS
        due = max(self._assign_at, state.gathered_at())
        if now < due:
            state.wake(("assign", 0), due)
            return False
        state.assignable = False
        self._assign_at = now + pause_ms
        return True

    def _watch(self, leader: PeerId | None) -> bool:
        undone: list[tuple[object, ...]] = [*self._voting.undone()]
        if self._may_assign(limits.WATCH_MS):
            assigned = self._granting.assigned()
            self._unassigned = self._owed(assigned)
            if not assigned.items:
                self._granting.widen(assigned)
            self._granting.help_late()
        undone += [("lease", *item) for item in self._unassigned]
        due = self._leading.watch(undone, self._ctx.now)
        if due is None:
            self._state.timers.set(("watch", 0), None)
            return bool(self._state.dirty)
        if due > self._ctx.now:
            self._state.wake(("watch", 0), due)
            return bool(self._state.dirty)
        assert leader is not None
        self._ctx.trace("leader_passed_over", job=self._state.job.job, shard=self._state.shard, seat=leader)
        self._leading.passed_over(leader, self._ctx.now)
        self._state.assignable = True
        return True

    def _owed(self, assigned: Assigned) -> tuple[tuple[int, PeerId], ...]:
        """What a leader that leaves it undone is passed over for. Whose own a task is all seats see alike; how much
        beyond its own a group may have they may see differently, so that is owed only by one that leases nothing."""
        silent = self._leased_at + limits.SEAT_GONE_MS <= self._ctx.now
        return assigned.items if silent else assigned.items[: assigned.own]

    # --- plumbing --------------------------------------------------------------------------------------------------
    def _send(self, peer: PeerId, message: Message) -> None:
        self._ctx.send(peer, message, self._state.job.addrs(peer))

    def _ids(self) -> list[StatementId]:
        """What all seats should hold alike, sorted: the evidence, and what the job says of the shard."""
        return sorted([*self.evidence.ids(), *(one.id for one in self._state.job.about(self._state.shard))])

    def _hand_over(self, peer: PeerId, ids: Sequence[StatementId]) -> None:
        """Statements that another seat lacks."""
        lacking = frozenset(ids)
        about = [one for one in self._state.job.about(self._state.shard) if one.id in lacking]
        found = [statement for id in ids if (statement := self.evidence.get(id)) is not None]
        found.sort(key=lambda statement: (restoring.RANK.get(statement.kind, 9), statement.id))
        self._ctx.deliver(peer, [*about, *found], self._state.job.addrs(peer))

    def resume(self) -> None:
        """A former process of this node had this seat: what it had leased it may hear of again."""
        self._state.began = self._ctx.now

    def restore(self, records: Sequence[Record]) -> None:
        """What a former process of this node had saved of this shard: `state.record_prefix` begins their keys."""
        for statement in restoring.restore(self._state, self._checkpoints, records):
            if self._state.job.counts(statement):
                self._voting.adopting.note(statement)
                if statement.kind == "verdict":
                    for item in statement.body.items:
                        self._collecting.decided(item.task)
                        gather(self._state, self._outputs, item.task)
        self._begin()
        self._settle()

    def close(self) -> None:
        """The job is over for everybody: whoever runs one of its tasks is told to stop."""
        if self._state.closed:
            return
        self._state.closed = True
        self._telling.closed()
        self._state.claims.clear()
        self._checkpoints.drop_all()
        self._outputs.drop_all()

    def ran_by(self, count: int) -> tuple[PeerId, ...]:
        """Workers, some, that are linked and have run a task of the shard."""
        tasks = self.evidence.tasks
        found = dict.fromkeys(worker for task in tasks for worker in self._state.committed(task))
        return tuple(worker for worker in found if self._ctx.peers.linked(worker))[:count]

    # --- for people ------------------------------------------------------------------------------------------------
    def views(self, tasks: Iterable[int]) -> tuple[TaskView, ...]:
        return viewing.views(self._state, tasks)

    def tables(self) -> Iterator[TableReport]:
        """How full its bounded tables are."""
        yield TableReport("claims", len(self._state.claims), limits.CLAIMS_MAX)
        yield from self._granting.tables()
        yield from self._state.leases.tables()
        yield from self._state.ledger.tables()
        yield from self._voting.tables()
        yield from self._checkpoints.tables()
        yield from self.evidence.tables()

    @property
    def open_places(self) -> int:
        """Places of open tasks that nobody has."""
        if not self._begun:
            return len(self.evidence.tasks) * self._state.job.spec.validate.agree
        return sum(task.places for task in self._state.open.values())

    @property
    def leased(self) -> int:
        """Tasks with a lease."""
        return self._state.leases.leased
