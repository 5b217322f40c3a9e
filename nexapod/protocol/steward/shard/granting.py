"""Workers and their leases at one seat: claims, leases, renewals, releases (docs/protocol.md, section 5).

The leading seat assigns; the others check what it says, each by what it sees itself, and say Grant too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.rules import entitlement
from nexapod.protocol.steward.shard import assigning, leases
from nexapod.protocol.steward.shard.assigning import Assigned, OpenTask, Room
from nexapod.protocol.steward.shard.checkpoints import Checkpoints
from nexapod.protocol.steward.shard.claims import Standing as Claim
from nexapod.protocol.steward.shard.ledger import Account
from nexapod.protocol.steward.shard.state import ShardState
from nexapod.protocol.tables import TableReport
from nexapod.protocol.types import Group
from nexapod.protocol.wire import messages
from nexapod.protocol.wire.messages import Grant, Held, LeaseItem, Standing
from nexapod.protocol.wire.statements import Statement

LEASE_ITEMS_MAX: Final = 512
EARLY_MAX: Final = 8
CHECKPOINT_BYTES_MAX: Final = limits.DELIVER_BYTES_MAX // 2
_ORDER: Final = ("running", "committed", "revealed")


class Granting:
    """Those of one shard."""

    def __init__(self, state: ShardState, checkpoints: Checkpoints, has_inputs: Callable[[], bool]) -> None:
        self._state = state
        self._ctx = state.ctx
        self._checkpoints = checkpoints
        self._has_inputs = has_inputs
        self._early: deque[tuple[PeerId, messages.Lease]] = deque(maxlen=EARLY_MAX)
        """What other seats leased while this one still waits for more groups; the oldest makes room."""
        self._widened: Millis | None = None
        """When the draw was widened last, or could first have been."""
        self._firsts: dict[tuple[int, int], tuple[Group, ...]] = {}
        """What `_first` has found, for `_firsts_of`: the groups present, and the version of the draw."""
        self._firsts_of: tuple[frozenset[Group], int] = (frozenset(), 0)

    # --- claims ----------------------------------------------------------------------------------------------------
    def on_claim(self, worker: PeerId, message: messages.Claim) -> None:
        """A worker has room. Also what it does not hold: a lease that it has not heard of, or does not want, ends."""
        state, now = self._state, self._ctx.now
        claim = state.claims.put(worker, message, now)
        if claim is None:
            return
        if worker not in state.claimants():
            state.presence_changed()
        for task in state.leases.tasks_of(worker):
            lease = state.leases[task].of(worker)
            assert lease is not None
            # What it has done it may just be committing.
            unheard = task not in claim.holding and task not in claim.done
            if unheard and lease.granted + limits.LEADER_MUTE_MS <= now and self._runs(task, worker):
                table = leases.release(state.leases[task], worker)
                # Others go first for a while; if there are none, it is asked again.
                self._put(task, leases.bar(table, worker, now, limits.RENEW_MS))
        state.assignable = True
        state.mark(*(task for task, soft in state.soft.items() if soft.idle_since is not None))

    def _put(self, task: int, table: leases.TaskLeases) -> None:
        self._state.leases.put(task, table)
        self._state.mark(task)
        self._state.assignable = True

    # --- assigning -------------------------------------------------------------------------------------------------
    def assigned(self) -> Assigned:
        """What open tasks and claims come to now; changes nothing."""
        state = self._state
        rooms = self._rooms()
        opened = [state.open[task] for task in sorted(state.open)]
        if not opened or not rooms or not self._has_inputs():
            return Assigned((), frozenset(room.group for room in rooms if room.room), tuple(o.task for o in opened))
        present = state.present_groups()
        known = present, state.job.lottery.version
        if known != self._firsts_of:
            self._firsts, self._firsts_of = {}, known
        return assigning.assign(opened, rooms, self._first, state.ledger.account(present))

    def _first(self, task: int, count: int) -> tuple[Group, ...]:
        found = self._firsts.get((task, count))
        if found is None:
            present = self._firsts_of[0]
            found = self._firsts[task, count] = self._state.job.lottery.first(task, present.__contains__, count)
        return found

    def _rooms(self) -> list[Room]:
        state = self._state
        found = []
        for worker, group in state.claimants().items():
            claim = state.claims.get(worker)
            if claim is not None:
                room = self._room_of(claim) if claim.room else 0
                found.append(Room(worker, group, room, self._done(claim) if room else frozenset()))
        return found

    def _room_of(self, claim: Claim) -> int:
        """What was granted since it said so takes of its room, what it has committed since gives it back."""
        leased = self._running(claim.worker)
        held = claim.holding.union(leased)
        running = [t for t in held if self._runs(t, claim.worker) and not self._state.decided(t)]
        return max(0, min(claim.room + len(claim.holding) - len(running), limits.CLAIM_TASKS_MAX - len(leased)))

    def _running(self, worker: PeerId) -> list[int]:
        """What a worker has a lease of and has not committed. What it has committed may wait for others' results: if
        that counted, workers that are all full would wait for one another."""
        return [task for task in self._state.leases.tasks_of(worker) if self._runs(task, worker)]

    def _done(self, claim: Claim) -> frozenset[int]:
        """What it must not have again. Only what it was given here, or it would choose its tasks by what it calls
        done."""
        state = self._state
        return frozenset(task for task in claim.done if state.ledger.had(claim.worker, self._place(task)))

    def _place(self, task: int) -> int:
        return task - self._state.evidence.tasks.start

    def _runs(self, task: int, worker: PeerId) -> bool:
        return self._state.evidence.commit_of(task, worker) is None

    def lead(self, assigned: Assigned) -> None:
        """Tell the other seats and the workers who is to have which tasks."""
        state = self._state
        items = [self._item(task, worker) for task, worker in assigned.items]
        for at in range(0, len(items), LEASE_ITEMS_MAX):
            some = tuple(items[at : at + LEASE_ITEMS_MAX])
            message = messages.Lease(state.job.job, state.shard, state.seats.epoch, some)
            for peer in state.others:
                self._ctx.send(peer, message)
        self._grant(items)

    def _item(self, task: int, worker: PeerId) -> LeaseItem:
        given = self._checkpoint_for(task, worker)
        return LeaseItem(task, worker, None if given is None else given.id)

    def _checkpoint_for(self, task: int, worker: PeerId) -> Statement | None:
        return self._checkpoints.give(task, worker, lambda other: self._is_gone(task, other))

    def _is_gone(self, task: int, worker: PeerId) -> bool:
        """It has neither a lease nor a result of the task, or its link is gone."""
        lease = self._state.leases[task].of(worker)
        return (lease is None or lease.doubtful) and self._state.evidence.commit_of(task, worker) is None

    def _grant(self, items: Iterable[LeaseItem]) -> None:
        """Lease these, and say so to their workers."""
        state = self._state
        of_worker: dict[PeerId, list[LeaseItem]] = {}
        for item in items:
            group = state.admitted(item.worker)
            assert group is not None
            self._lease(item.task, item.worker, group)
            of_worker.setdefault(item.worker, []).append(item)
            state.ctx.trace("lease_granted", job=state.job.job, task=item.task, worker=item.worker)
        for worker, theirs in of_worker.items():
            given = tuple(self._hand_out(theirs))
            tasks = tuple(sorted(item.task for item in theirs))
            self._ctx.send(worker, Grant(state.job.job, state.shard, state.seats.epoch, tasks, given))

    def _lease(self, task: int, worker: PeerId, group: Group) -> None:
        """A lease counts when it is given, whatever becomes of it."""
        state = self._state
        if state.leases[task].of(worker) is None:
            state.ledger.given(group, worker, self._place(task), own=self._is_own(task, group))
        self._put(task, leases.grant(state.leases[task], worker, group, self._ctx.now))
        self._watch(task)

    def _is_own(self, task: int, group: Group) -> bool:
        opened, present = self._state.wanting.get(task), self._state.present_groups()
        rank = self._state.job.lottery.rank(task, group, present.__contains__)
        return opened is not None and rank is not None and entitlement.is_own(rank, opened.wanted)

    def _hand_out(self, items: Sequence[LeaseItem]) -> list[bytes]:
        """The checkpoints that these name, as much as a message has room for."""
        found: list[bytes] = []
        room = CHECKPOINT_BYTES_MAX
        for item in items:
            given = None if item.checkpoint is None else self._checkpoints.find(item.task, item.checkpoint)
            if given is None:
                continue
            # On record even if it does not fit: the other seats say the same of it.
            self._state.hand(given)
            self._checkpoints.note_handed(given, item.worker)
            if len(given.envelope) <= room and len(found) < 64:
                room -= len(given.envelope)
                found.append(given.envelope)
        return found

    def _watch(self, task: int) -> None:
        """Look at a task's leases again when the first could run out."""
        table = self._state.leases[task]
        wall_ms = self._state.job.spec.limits.wall_ms
        if table.leases:
            committed = self._state.committed(task)
            first = min(leases.over_at(lease, wall_ms, committed) for lease in table.leases)
            self._state.wake(("lease", task), max(first, self._ctx.now + 1))

    def widen(self, assigned: Assigned) -> None:
        """Let more groups in where tasks stay open while others have nothing to do."""
        state, now = self._state, self._ctx.now
        unfilled = [task for task in assigned.unfilled if assigning.may_widen(state.open[task])]
        present = len(state.present_groups())
        if not unfilled or not entitlement.many_idle(present, len(assigned.idle)):
            self._widened = None
            state.timers.set(("widen", 0), None)
            return
        if self._widened is None:
            self._widened = now
        since_ms = now - self._widened
        if not entitlement.widening_due(present, len(assigned.idle), since_ms, state.typical_ms):
            state.wake(("widen", 0), self._widened + entitlement.patience_ms(state.typical_ms))
            return
        self._widened = now
        for task in unfilled:
            state.task(task).width += 1
        state.mark(*unfilled)

    # --- another seat's lease --------------------------------------------------------------------------------------
    def on_lease(self, seat: PeerId, message: messages.Lease) -> None:
        """Grant what this seat would let pass, too, once it would give out anything itself."""
        if self._state.gathered_at() > self._ctx.now:
            if len(self._early) == EARLY_MAX:
                self._ctx.trace("early_lease_dropped", job=self._state.job.job, shard=self._state.shard)
            self._early.append((seat, message))
            self._state.wake(("early", 0), self._state.gathered_at())
        else:
            self._on_lease(message)

    def grant_early(self) -> None:
        """The wait may be over."""
        early = list(self._early)
        self._early.clear()
        for seat, message in early:
            if seat in self._state.others and self._state.active:
                self.on_lease(seat, message)

    def tables(self) -> tuple[TableReport, ...]:
        return (TableReport("leases of other seats kept", len(self._early), EARLY_MAX), *self._state.pace.tables())

    def _on_lease(self, message: messages.Lease) -> None:
        state = self._state
        if message.epoch != state.seats.epoch or not self._has_inputs():
            return
        present = state.present_groups()
        workers = dict.fromkeys(item.worker for item in message.items)
        groups = {group for group in map(state.present, workers) if group is not None}
        account = state.ledger.account(present | groups)
        fitting: list[LeaseItem] = []
        named: dict[tuple[int, PeerId], None] = {}
        for item in message.items:
            if (item.task, item.worker) not in named and self._passes(item, present, fitting, account):
                named[item.task, item.worker] = None
                fitting.append(item)
        self._grant(fitting)

    def _passes(
        self, item: LeaseItem, present: frozenset[Group], fitting: Sequence[LeaseItem], account: Account
    ) -> bool:
        """`account`: what the groups present were given, and what those have of `fitting` that pass."""
        state = self._state
        held = state.leases[item.task].of(item.worker) if item.task in state.evidence.tasks else None
        if held is not None:
            # Its lease may be older than these seats, which have not adopted who admitted it.
            return state.admitted(item.worker) is not None and self._runs(item.task, item.worker)
        if item.checkpoint is not None and self._checkpoints.find(item.task, item.checkpoint) is None:
            return False
        theirs = [other.task for other in fitting if other.worker == item.worker]
        if self._is_full(item.worker, sum(1 for task in theirs if state.leases[task].of(item.worker) is None)):
            return False
        already = [other for other in fitting if other.task == item.task]
        if not self._may_have(item.task, item.worker, present, len(already), 1, account):
            return False
        group = state.present(item.worker)
        assert group is not None
        account.given(group, own=self._is_own(item.task, group))
        return True

    def _is_full(self, worker: PeerId, more: int = 0) -> bool:
        """Whether a worker has, with so many more, as many tasks of the shard to run as it may."""
        return len(self._running(worker)) + more >= limits.CLAIM_TASKS_MAX

    def _may_have(
        self,
        task: int,
        worker: PeerId,
        present: frozenset[Group],
        others: int,
        slack: int,
        account: Account | None = None,
    ) -> bool:
        """Whether this seat lets a worker have a task. `slack`: widths beyond its own, and as much for places: presence
        is seen differently from seat to seat. `account`: of all who come into question; None: what the ledger says."""
        state = self._state
        opened = state.wanting.get(task)
        group = state.present(worker)
        if opened is None or group is None or group in opened.taken or worker in opened.refused:
            return False
        if others >= opened.room(min(slack, 1)):
            return False
        known = present | {group}
        account = account or state.ledger.account(known)
        return self._entitled(opened, group, known, slack, account)

    def _entitled(self, opened: OpenTask, group: Group, known: frozenset[Group], slack: int, account: Account) -> bool:
        rank = self._state.job.lottery.rank(opened.task, group, known.__contains__)
        share = account.share(group)
        width = opened.width + slack
        return rank is not None and entitlement.entitled(rank, opened.wanted, width, share, shown=opened.shown)

    # --- renewing and giving back ----------------------------------------------------------------------------------
    def on_renew(self, worker: PeerId, message: messages.Renew) -> list[tuple[int, Standing]]:
        """Keep a worker's leases. How each of its tasks stands here."""
        answers: dict[int, Standing] = {}
        present = self._state.present_groups()
        if self._state.job.group(worker) is None and self._state.job.groups_seen(worker):
            # Admitted by an earlier epoch, and not adopted yet: there is nothing to say until it is.
            return []
        for held in message.held:
            if held.task in self._state.evidence.tasks and held.task not in answers:
                answers[held.task] = self._renewed(worker, held, present)
        return list(answers.items())

    def _renewed(self, worker: PeerId, held: Held, present: frozenset[Group]) -> Standing:
        state, task = self._state, held.task
        if state.active and not state.decided(task):
            self.regrow(worker, task, present)
            table = state.leases[task]
            lease = table.of(worker)
            if lease is not None:
                self._put(task, leases.renew(table, worker, self._ctx.now, held.progress))
                self._watch(task)
        return self.standing(worker, task, held.stage)

    def regrow(self, worker: PeerId, task: int, present: frozenset[Group] | None = None) -> bool:
        """A worker says that it has a task of which nothing is known here: after a restart of this seat, or when its
        lease ran out while it was away. It has it if there is a place. Whether it has a lease now."""
        state = self._state
        if state.leases[task].of(worker) is not None:
            return True
        group = state.present(worker)
        if group is None or not state.active or state.decided(task) or self._is_full(worker):
            return False
        if state.evidence.reveal_of(task, worker) is not None and state.counts(task, worker):
            return False
        if not state.grows_back and state.gathered_at() > self._ctx.now:
            return False
        committed = worker in state.committed(task)
        known = state.present_groups() if present is None else present
        # What the widths were before a restart is not known, so for a while entitlement is not asked for.
        slack = limits.SEATS * 2 if state.grows_back else 1
        free = committed and not state.leases[task].barred(worker, self._ctx.now)
        if not free and not self._may_have(task, worker, known, 0, slack):
            return False
        self._lease(task, worker, group)
        commit = state.evidence.commit_of(task, worker)
        if commit is not None and (task, worker) in state.unleased:
            # It came before this seat knew of the lease.
            del state.unleased[task, worker]
            state.save(commit.statement)
        return True

    def standing(self, worker: PeerId, task: int, stage: str = "running") -> Standing:
        """How a worker's task stands here."""
        state = self._state
        if state.decided(task):
            return "decided"
        if state.closed or worker in state.job.faults():
            return "closed"
        commit = state.evidence.commit_of(task, worker)
        leased = state.leases[task].of(worker) is not None
        known = "running"
        if commit is not None and (state.counts(task, worker) or not leased):
            known = "revealed" if state.evidence.reveal_of(task, worker) is not None else "committed"
        if _ORDER.index(stage) > _ORDER.index(known) and (leased or commit is not None):
            return "unknown"
        if commit is None:
            return "held" if leased else "lost"
        frozen = state.evidence.frozen(task)
        if known == "committed" and frozen is not None and any(e.worker == worker for e in frozen.entries):
            return "frozen"
        return "held"

    def on_release(self, worker: PeerId, message: messages.Release) -> None:
        """A worker gives tasks back. What it has committed stays."""
        state = self._state
        held = [t for t in dict.fromkeys(message.tasks) if t in state.evidence.tasks and state.leases[t].of(worker)]
        state.claims.declined(worker, [task for task in held if self._runs(task, worker)])
        for task in held:
            table = state.leases[task]
            if message.unable:
                table = leases.bar(table, worker, self._ctx.now)
                state.note(task, worker, -1, message.reason)
            if worker not in state.committed(task):
                table = leases.release(table, worker)
            self._put(task, table)

    # --- what ends -------------------------------------------------------------------------------------------------
    def lost(self, worker: PeerId) -> bool:
        """A worker's link is gone: its tasks are open for others at once. Whether it had anything here."""
        state = self._state
        claimed = state.claims.drop(worker)
        tasks = state.leases.tasks_of(worker)
        for task in tasks:
            self._put(task, leases.lose(state.leases[task], worker))
        if claimed:
            state.presence_changed()
        return claimed or bool(tasks)

    def expire(self, task: int) -> None:
        """A lease of the task may have run out."""
        state = self._state
        wall_ms = state.job.spec.limits.wall_ms
        table, over = leases.expire(state.leases[task], self._ctx.now, wall_ms, state.committed(task))
        if over:
            self._put(task, table)
            for lease in over:
                state.ctx.trace("lease_expired", job=state.job.job, task=task, worker=lease.worker)
        self._watch(task)

    def ended(self, task: int, worker: PeerId) -> None:
        """A worker's result is here, or not waited for any more."""
        table = self._state.leases[task]
        if table.of(worker) is not None:
            self._put(task, leases.release(table, worker))

    def committed(self, task: int, worker: PeerId) -> None:
        """How long it took."""
        lease = self._state.leases[task].of(worker)
        # Its worker has room again.
        self._state.assignable = True
        if lease is not None:
            self._state.pace.ended(lease.group, self._ctx.now - lease.granted)

    def help_late(self) -> None:
        """When nothing else is left to do, a task whose worker is late gets one more, and later another: the end must
        not wait for it. Before any has ended here their time is guessed, or who holds all of them had them for as long
        as they may run."""
        state, now = self._state, self._ctx.now
        if state.open:
            return
        soonest: Millis | None = None
        for task in state.leases:
            helped = state.task(task).extra
            since = self._late_since(task, helped)
            if since is None or helped >= limits.LATE_MAX or state.decided(task):
                continue
            if since > now:
                soonest = since if soonest is None else min(soonest, since)
                continue
            state.task(task).extra = helped + 1
            state.mark(task)
            state.ctx.trace("task_late", job=state.job.job, task=task)
        if soonest is not None:
            state.wake(("late", 0), soonest)

    def _late_since(self, task: int, helped: int) -> Millis | None:
        state, now = self._state, self._ctx.now
        table, committed = state.leases[task], state.evidence.commits(task)
        took_ms = {one.worker: state.pace.of(one.group) for one in table.firm if one.worker not in committed}
        opened = state.wanting.get(task)
        results = 0 if opened is None else opened.wanted - len(state.committed(task))
        if leases.is_held_up(table, took_ms, results, state.typical_ms, now):
            return now
        return leases.late_since(table, committed, state.usual_ms, helped)

    def clear(self, task: int) -> None:
        """The task is decided: nobody has it any more."""
        state = self._state
        state.leases.put(task, replace(state.leases[task], leases=()))
