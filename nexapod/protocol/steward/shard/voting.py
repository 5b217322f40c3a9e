"""Freezes, verdicts and adoptions at one seat: proposed when it leads, signed or objected to when others propose
(docs/protocol.md, sections 4.1, 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.rules.agreement import Accepted, Failed
from nexapod.protocol.steward.shard import batching, judging
from nexapod.protocol.steward.shard.adopting import Adopting
from nexapod.protocol.steward.shard.cosigning import (
    WAITING_MAX,
    Answer,
    Objection,
    Sign,
    Undecided,
    Wait,
    Waiting,
    answer,
)
from nexapod.protocol.steward.shard.judging import FreezeEntry, RoundOf
from nexapod.protocol.steward.shard.leading import Leading
from nexapod.protocol.steward.shard.outputs import Outputs
from nexapod.protocol.steward.shard.proposing import PROPOSALS_MAX, Ended, Gathering, Proposals, Subject
from nexapod.protocol.steward.shard.refreshing import gathered, written
from nexapod.protocol.steward.shard.signed import round_of
from nexapod.protocol.steward.shard.state import ShardState
from nexapod.protocol.tables import TableReport
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.bodies import Adoption, Freeze, Verdict, VerdictItem
from nexapod.protocol.wire.messages import Object
from nexapod.protocol.wire.statements import Statement

SLACK_MS: Final = 2 * limits.COSIGN_MS
"""By how much two seats' clocks of the same thing may differ."""


class Voting:
    """Those of one shard. `fold`: add a statement to what is known, save it, and do what follows from it."""

    def __init__(
        self, state: ShardState, outputs: Outputs, leading: Leading, fold: Callable[[Statement], None]
    ) -> None:
        self._state = state
        self._ctx = state.ctx
        self._outputs = outputs
        self._leading = leading
        self._fold = fold
        self._proposals = Proposals(self._propose_to)
        self._undecided = Undecided()
        self._freezing = Gathering()
        self._judging = Gathering()
        self._adoptions: dict[StatementId, Statement] = {}
        """Proposals of adoption in this epoch, with the signatures so far."""
        self._refused: dict[tuple[str, int], None] = {}
        """What others proposed last of these tasks this seat has objected to: (kind, task)."""
        self.adopting = Adopting(state)

    def tables(self) -> tuple[TableReport, ...]:
        return (
            TableReport("own proposals of a shard", len(self._proposals), PROPOSALS_MAX),
            TableReport("proposals waiting to be signed", len(self._undecided), WAITING_MAX),
            TableReport("adoptions proposed", len(self._adoptions), limits.PENDING_MAX),
            TableReport("proposals of others objected to", len(self._refused), 3 * limits.SHARD_TASKS),
        )

    def _propose_to(self, peer: PeerId, statement: Statement) -> None:
        self._ctx.deliver(peer, [statement], self._state.job.addrs(peer))

    # --- proposing -------------------------------------------------------------------------------------------------
    def due(self) -> dict[Subject, list[list[int]]]:
        """What could be proposed now, and is not."""
        now, free = self._ctx.now, self._proposals.free
        freezable = [task for task in self._state.freezable if not self.adopting.waits(task, now)]
        decidable = [task for task in self._state.decidable if not self.adopting.waits(task, now)]
        return {"freeze": free("freeze", freezable, now), "verdict": free("verdict", decidable, now)}

    def undone(self) -> list[tuple[str, int]]:
        """The same, for a seat that watches its leader: what waits here for this seat's own signature is not left
        undone, unless what came before it was nothing that could be signed. A leader that proposes only such things
        would never be passed over."""
        waiting = {(one.statement.kind, task) for one in self._undecided.all() for task in _tasks(one.statement)}
        names = [(kind, task) for kind, groups in self.due().items() for tasks in groups for task in tasks]
        names += [("adoption", 0)] if self.adopting.wanted() else []
        return [name for name in names if name not in waiting or name in self._refused]

    def lead(self) -> None:
        """Propose what is ready."""
        now, due = self._ctx.now, self.due()
        self._adopt()
        if due["freeze"]:
            if self._freezing.due(now):
                self._freezing.went(now)
                self._freeze(due["freeze"])
            else:
                self._state.wake(("batch", 0), self._freezing.next_at)
        if due["verdict"]:
            if self._judging.due(now):
                self._judging.went(now)
                self._pronounce(due["verdict"])
            else:
                self._state.wake(("batch", 1), self._judging.next_at)

    def _freeze(self, groups: Iterable[Sequence[int]]) -> None:
        state = self._state
        for tasks in groups:
            rounds = {task: state.freezable[task] for task in tasks}
            for body in batching.freezes(state.job.job, state.shard, state.seats.epoch, rounds):
                state.signed.note(body, self._ctx.now)
                self._propose(self._ctx.sign(body))

    def _pronounce(self, groups: Iterable[Sequence[int]]) -> None:
        state = self._state
        for tasks in groups:
            pronounced = {task: state.decidable[task] for task in tasks}
            for body in batching.verdicts(state.job.job, state.shard, state.seats.epoch, pronounced):
                self._propose(self._ctx.sign(body))

    def _adopt(self) -> None:
        wanted = self.adopting.wanted()
        tasks = {task for about in wanted.values() for task in about} | ({-1} if () in wanted.values() else set())
        for free in self._proposals.free("adoption", tasks, self._ctx.now):
            some = {id: about for id, about in wanted.items() if set(about or (-1,)) & set(free)}
            for body, about in self.adopting.bodies(some):
                self._propose(self._ctx.sign(body), about or (-1,))

    def _propose(self, statement: Statement, tasks: Sequence[int] | None = None) -> None:
        """Save, then send. Of one seat it counts at once."""
        self._proposals.add(statement, _tasks(statement) if tasks is None else tasks, (), self._ctx.now)
        self._fold(statement)
        if not self._state.job.counts(statement):
            for peer in self._state.others:
                self._propose_to(peer, statement)

    def on_object(self, peer: PeerId, message: Object) -> None:
        """Another seat will not sign something of this one's."""
        ended = self._proposals.object(peer, message, self._state.seats.holders, self._ctx.now)
        if ended is not None:
            self._state.mark(*(task for task in message.tasks if task in self._state.evidence.tasks))
            if ended.subject == "freeze":
                self._leave_out(ended)
        self._leading.spoke(peer)

    def _leave_out(self, ended: Ended) -> None:
        """What another seat has not seen it would not sign the next time either: others' results do as well."""
        until = self._ctx.now + limits.REVEAL_TTL_MS
        for task in ended.refused:
            if task in self._state.evidence.tasks:
                soft = self._state.task(task)
                soft.contested = True
                soft.doubted |= dict.fromkeys(ended.doubted, until)
                if ended.doubted:
                    self._state.wake(("doubt", task), until)

    def counted(self, statement: Statement) -> bool:
        """It counts now. Whether this seat had proposed it."""
        self._undecided.remove(statement.id)
        for name in _names(statement):
            self._refused.pop(name, None)
        return self._proposals.counted(statement.id)

    def merged(self, statement: Statement) -> None:
        """A proposal of this seat's has another signature."""
        self._proposals.merged(statement)

    # --- signing ---------------------------------------------------------------------------------------------------
    def on_proposal(self, statement: Statement, proposer: PeerId) -> None:
        """Another seat's proposal, not counting yet."""
        state = self._state
        if proposer not in state.others or not state.active:
            return
        if not any(name in self._refused for name in _names(statement)):
            self._leading.spoke(proposer)
        if self._ctx.me in statement.signers:
            return
        self._consider(self._undecided.add(statement, proposer, self._ctx.now))

    def reconsider(self) -> None:
        """Something new is known."""
        for waiting in self._undecided.all():
            self._consider(waiting)

    def _consider(self, waiting: Waiting) -> None:
        statement = waiting.statement
        if statement.body.epoch != self._state.seats.epoch:
            self._undecided.remove(statement.id)
            return
        match answer(self._answers(statement), waiting.arrived, self._ctx.now):
            case Wait(until):
                self._state.wake(("cosign", 0), min(until, self._undecided.next_at or until))
            case Objection(tasks):
                self._undecided.remove(statement.id)
                self._refused |= {name: None for name in _names(statement) if name[1] in tasks}
                named = tuple(task for task in tasks if task >= 0)
                unseen = self._unseen(statement.body, named) if statement.kind == "freeze" else ()
                message = Object(self._state.job.job, self._state.shard, statement.id, named, unseen)
                self._ctx.send(waiting.proposer, message)
                self._ctx.trace("proposal_refused", job=self._state.job.job, kind=statement.kind, tasks=named)
            case Sign():
                self._undecided.remove(statement.id)
                for name in _names(statement):
                    self._refused.pop(name, None)
                self._sign(statement, waiting.proposer)

    def _sign(self, statement: Statement, proposer: PeerId) -> None:
        if statement.kind == "freeze":
            self._state.signed.note(statement.body, self._ctx.now)
        signed = self._ctx.cosign(statement)
        self._fold(signed)
        self._propose_to(proposer, signed)

    def _answers(self, statement: Statement) -> Mapping[int, Answer]:
        match statement.body:
            case Freeze() as freeze:
                return {
                    item.task: self._freeze_answer(freeze, item.task, round_of(freeze, item)) for item in freeze.items
                }
            case Verdict() as verdict:
                return {item.task: self._verdict_answer(verdict, item) for item in verdict.items}
            case Adoption() as adoption:
                return self._adoption_answers(adoption)
        raise AssertionError(statement.kind)

    def adoption(self, id: StatementId) -> Statement | None:
        return self._adoptions.get(id)

    def adopted(self) -> None:
        """More is adopted: what was proposed and counts by now is asked for no more."""
        for statement in list(self._adoptions.values()):
            if self._state.job.adopted(self._state.shard).issuperset(statement.body.statements):
                self.counted(statement)

    def merge_adoption(self, statement: Statement) -> Statement:
        """With the signatures of the present seats that are known."""
        own = statements.keep_signers(statement, self._state.seats.holders)
        known = self._adoptions.get(statement.id)
        whole = own if known is None else statements.merge(known, own)
        if known is None and len(self._adoptions) >= limits.PENDING_MAX:
            del self._adoptions[next(iter(self._adoptions))]
        self._adoptions[statement.id] = whole
        self._proposals.merged(whole)
        return whole

    # --- is it right -----------------------------------------------------------------------------------------------
    def _freeze_answer(self, body: Freeze, task: int, proposed: RoundOf | None) -> Answer:
        state, now = self._state, self._ctx.now
        if proposed is None or task not in state.evidence.tasks or state.decided(task):
            return "refuse"
        frozen = written(state.evidence.frozen(task))
        if frozen is not None and proposed.round <= frozen.round:
            return "sign" if proposed == frozen else "refuse"
        if not state.signed.may_freeze(task, proposed, frozen.round if frozen is not None else 0, now):
            stuck_at = state.signed.stuck_at(task)
            return "wait" if stuck_at is not None and stuck_at <= now + limits.COSIGN_MS else "refuse"
        if self.adopting.waits(task, now):
            return "wait"
        if frozen is not None and not set(frozen.entries) <= set(proposed.entries):
            return "refuse"
        return self._entries_answer(task, proposed, frozen)

    def _unseen(self, body: Freeze, tasks: Collection[int]) -> tuple[PeerId, ...]:
        """Workers whose commits to these tasks this seat does not vouch for."""
        rounds = [(item.task, round_of(body, item)) for item in body.items if item.task in tasks]
        workers = {
            entry.worker
            for task, one in rounds
            for entry in (() if one is None or task not in self._state.evidence.tasks else one.entries)
            if not self._vouches(task, entry)
        }
        return tuple(sorted(workers)[: limits.ADMISSION_MAX])

    def _vouches(self, task: int, entry: FreezeEntry) -> bool:
        commit = self._state.evidence.commit_of(task, entry.worker)
        same = commit is not None and commit.statement.id == entry.commit
        return same and self._state.counts(task, entry.worker) and self._state.admitted(entry.worker) == entry.group

    def _entries_answer(self, task: int, proposed: RoundOf, frozen: RoundOf | None) -> Answer:
        """Each commit seen here, in the groups and the order that this seat would write; and enough of them."""
        state = self._state
        known = frozenset(frozen.entries) if frozen is not None else frozenset()
        fresh = [entry for entry in proposed.entries if entry not in known]
        if not all(self._vouches(task, entry) for entry in fresh):
            return "wait"
        place_of = {group: place for place, group in enumerate(state.job.lottery.draw(task))}
        group_of = {entry.worker: state.admitted(entry.worker) or entry.group for entry in proposed.entries}
        ordered = judging.in_draw_order(proposed.entries, place_of, group_of) == proposed.entries
        # How many a further round should have depends on who was idle for how long, which seats see differently; a task
        # that seems to have failed may still have one, of those that have committed since.
        enough = len(proposed.groups) >= state.job.spec.validate.agree
        accepted = isinstance(state.task(task).judgement, Accepted)
        further = frozen is None or (not accepted and len(proposed.groups) > len(frozen.groups))
        return "sign" if ordered and enough and further else "wait"

    def _verdict_answer(self, body: Verdict, item: VerdictItem) -> Answer:
        state, task = self._state, item.task
        if task not in state.evidence.tasks or item.freeze >= len(body.freezes) or state.decided(task):
            return "refuse"
        frozen = state.evidence.frozen(task)
        named = state.evidence.get(body.freezes[item.freeze])
        if frozen is None or named is None or not state.job.counts(named):
            return "wait"
        rounds = [round_of(named.body, one) for one in named.body.items if one.task == task]
        if rounds != [written(frozen)]:
            return "wait"
        if state.evidence.error_in(item, body, joined=True) is not None or not self._missing(task, item):
            return "wait"
        if item.outcome == "failed":
            return "sign" if self._fails(task) else "wait"
        return "sign" if gathered(state, self._outputs, task) else "wait"

    def _missing(self, task: int, item: VerdictItem) -> bool:
        """Whether what the verdict leaves out is missing here too."""
        state, soft = self._state, self._state.task(item.task)
        frozen = state.evidence.frozen(task)
        assert frozen is not None
        for place in item.missing:
            if place >= len(frozen.entries):
                return False
            worker = frozen.entries[place].worker
            late = soft.frozen_at + limits.REVEAL_TTL_MS - SLACK_MS <= self._ctx.now
            unseen = state.evidence.reveal_of(task, worker) is None
            if worker not in soft.withheld and not (unseen and late):
                return False
        return True

    def _fails(self, task: int) -> bool:
        """Whether this seat comes to the same, but for a moment's difference."""
        state, soft = self._state, self._state.task(task)
        since = soft.idle_since
        idle_ms: Millis = 0 if since is None else self._ctx.now - since + SLACK_MS
        return isinstance(state.evidence.judge(task, soft.withheld, idle_ms), Failed)

    def _adoption_answers(self, body: Adoption) -> dict[int, Answer]:
        """By task; under -1 what is about no task, or is not here."""
        answers: dict[int, Answer] = {-1: "sign"}
        for id in body.statements:
            one = self.adopting.may_adopt(id)
            statement = self._state.evidence.get(id)
            about = (-1,) if statement is None else _tasks(statement) or (-1,)
            for task in about:
                answers[task] = _worse(answers.get(task, "sign"), one)
        return answers

    # --- time ------------------------------------------------------------------------------------------------------
    def tick(self) -> None:
        for peer in self._proposals.tick(self._state.seats.holders, self._ctx.now):
            if peer != self._ctx.me:
                self._leading.passed_over(peer, self._ctx.now)

    def next_at(self) -> Millis | None:
        return self._proposals.next_at(self._ctx.now)

    def nudge(self, task: int) -> None:
        self._proposals.nudge(task)

    def epoch_changed(self, was_holder: bool) -> None:
        """Nothing that was proposed before counts any more."""
        self._proposals.clear()
        self._undecided.clear()
        self._refused.clear()
        self._adoptions.clear()
        self._leading.keep(self._state.seats.holders)
        self.adopting.epoch_changed(was_holder, self._ctx.now)


def _tasks(statement: Statement) -> tuple[int, ...]:
    items = getattr(statement.body, "items", ())
    return tuple(item.task for item in items)


def _names(statement: Statement) -> list[tuple[str, int]]:
    """Its tasks, as what a leader should do is named."""
    return [(statement.kind, task) for task in _tasks(statement)] if statement.kind != "adoption" else [("adoption", 0)]


def _worse(one: Answer, other: Answer) -> Answer:
    order: tuple[Answer, ...] = ("sign", "wait", "refuse")
    return max(one, other, key=order.index)
