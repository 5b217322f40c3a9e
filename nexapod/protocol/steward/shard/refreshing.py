"""One task looked at anew: what its evidence and leases come to (docs/protocol.md, sections 5 and 6).

Reads the state of the shard, asks judging.py, and writes down what follows: places, freezes, judgements, timers.
"""

from __future__ import annotations

from typing import assert_never

from nexapod.protocol import limits
from nexapod.protocol.evidence import Frozen
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.rules.agreement import Accepted, Failed, Undecided
from nexapod.protocol.steward.shard import judging, leases
from nexapod.protocol.steward.shard.assigning import OpenTask
from nexapod.protocol.steward.shard.batching import Pronounced
from nexapod.protocol.steward.shard.judging import Decidable, Facts, Freezable, FreezeEntry, Gather, RoundOf, Waiting
from nexapod.protocol.steward.shard.leases import Lease
from nexapod.protocol.steward.shard.outputs import Outputs
from nexapod.protocol.steward.shard.signed import SKIPPED_MAX
from nexapod.protocol.steward.shard.state import ShardState
from nexapod.protocol.types import Group

assert SKIPPED_MAX < limits.ROUNDS_MAX


def refresh(state: ShardState, outputs: Outputs, task: int) -> None:
    """Bring what is noted of a task up to date."""
    state.freezable.pop(task, None)
    state.decidable.pop(task, None)
    was_open = state.open.pop(task, None)
    state.wanting.pop(task, None)
    if state.closed or state.ctx.me not in state.seats.holders:
        return
    decision = state.evidence.verdict(task)
    if decision is not None:
        gather(state, outputs, task)
        return
    frozen = state.evidence.frozen(task)
    _note_freeze(state, task, frozen)
    _judge(state, task, frozen)
    facts = facts_of(state, outputs, task, frozen)
    match judging.decide(facts):
        case Freezable(written):
            state.freezable[task] = written
        case Decidable(judgement, missing):
            assert frozen is not None
            state.decidable[task] = Pronounced(judgement, frozen.statement.id, missing)
        case Gather():
            if gather(state, outputs, task):
                state.mark(task)
        case Waiting():
            pass
        case never:
            assert_never(never)
    _open(state, task, facts)
    if state.open.get(task) != was_open:
        state.assignable = True


def written(frozen: Frozen | None) -> RoundOf | None:
    """A freeze that counts, as this package compares them."""
    if frozen is None:
        return None
    return RoundOf(frozen.round, tuple(FreezeEntry(e.worker, e.group, e.commit) for e in frozen.entries))


def _note_freeze(state: ShardState, task: int, frozen: Frozen | None) -> None:
    """Results are waited for from when their freeze counts here; those frozen before were waited for already."""
    soft = state.task(task)
    if frozen is None or frozen.round == soft.frozen_round:
        return
    soft.frozen_round, soft.frozen_at = frozen.round, state.ctx.now
    soft.contested = False
    soft.doubted.clear()
    state.wake(("task", task), state.ctx.now + limits.REVEAL_TTL_MS)


def _judge(state: ShardState, task: int, frozen: Frozen | None) -> None:
    soft = state.task(task)
    if frozen is None:
        soft.judgement = None
        return
    for entry in frozen.entries:
        if state.evidence.reveal_of(task, entry.worker) is not None:
            soft.late.pop(entry.worker, None)
        elif soft.frozen_at + limits.REVEAL_TTL_MS <= state.ctx.now and entry.worker not in soft.late:
            soft.late[entry.worker] = None
            state.ctx.trace("result_withheld", job=state.job.job, task=task, worker=entry.worker)
    soft.judgement = state.evidence.judge(task, soft.withheld, _idle_ms(state, task))


def _idle_ms(state: ShardState, task: int) -> Millis:
    since = state.task(task).idle_since
    return 0 if since is None else state.ctx.now - since


def facts_of(state: ShardState, outputs: Outputs, task: int, frozen: Frozen | None) -> Facts:
    """What judging needs to know of a task that is not decided."""
    soft = state.task(task)
    before = written(frozen)
    entries = entries_now(state, task, before)
    stuck_at = state.signed.stuck_at(task)
    if stuck_at is not None and stuck_at > state.ctx.now:
        state.wake(("stuck", task), stuck_at)
    frozen_workers = frozenset(entry.worker for entry in before.entries) if before is not None else frozenset()
    withheld = frozenset(soft.withheld)
    return Facts(
        agree=state.job.spec.validate.agree,
        frozen=before,
        judgement=soft.judgement,
        entries=entries,
        signed=state.signed.freeze(task),
        stuck=stuck_at is not None and stuck_at <= state.ctx.now,
        contested=soft.contested,
        running=any(lease.worker not in frozen_workers for lease in _awaited(state, task)),
        outputs_here=isinstance(soft.judgement, Accepted) and gathered(state, outputs, task),
        withheld=()
        if before is None
        else tuple(place for place, entry in enumerate(before.entries) if entry.worker in withheld),
    )


# --- commits -------------------------------------------------------------------------------------------------------
def entries_now(state: ShardState, task: int, before: RoundOf | None) -> tuple[FreezeEntry, ...]:
    """What a freeze would list: what is frozen, and of each further group its first commit in the order of the draw."""
    kept = before.entries if before is not None else ()
    fresh = _fresh(state, task, kept)
    if not kept and not fresh:
        return ()
    place_of = {group: place for place, group in enumerate(state.job.lottery.draw(task))}
    admitted = {entry.worker: state.admitted(entry.worker) or entry.group for entry in (*kept, *fresh)}
    taken = {entry.group for entry in kept}
    chosen: list[FreezeEntry] = list(kept)
    for entry in judging.in_draw_order(fresh, place_of, admitted):
        if entry.group not in taken and len(chosen) < limits.FREEZE_ENTRIES_MAX:
            taken.add(entry.group)
            chosen.append(entry)
    return judging.in_draw_order(chosen, place_of, admitted)


def _fresh(state: ShardState, task: int, kept: tuple[FreezeEntry, ...]) -> list[FreezeEntry]:
    """Commits that count here, of workers that could show their results now."""
    known = {entry.worker for entry in kept}
    commits = state.evidence.commits(task)
    groups: dict[PeerId, Group] = {}
    for worker in state.committed(task):
        group = None if worker in known or state.is_doubted(task, worker) else state.present(worker)
        if group is not None:
            groups[worker] = group
    return [FreezeEntry(worker, group, commits[worker].statement.id) for worker, group in groups.items()]


# --- places --------------------------------------------------------------------------------------------------------
def _open(state: ShardState, task: int, facts: Facts) -> None:
    soft, table = state.task(task), state.leases[task]
    has_failed = isinstance(facts.judgement, Failed)
    # What has failed for want of workers goes on when one comes, until the verdict counts: seats see that differently.
    judgement = state.evidence.judge(task, soft.withheld, 0) if has_failed else facts.judgement
    wanted = judging.wanted(facts.agree, judgement)
    if wanted == 0:
        return
    having = _groups_of(state, task, facts)
    having |= {
        lease.group
        for lease in table.firm
        if lease.worker not in soft.late and not state.is_doubted(task, lease.worker)
    }
    places = wanted + soft.extra - len(having)
    now = state.ctx.now
    bars = {worker: bar.until for worker, bar in table.bars if bar.until > now}
    shown = facts.frozen is not None
    one = OpenTask(task, wanted, places, soft.width, taken(state, task, facts), frozenset(bars), shown)
    state.wanting[task] = one
    awaited = facts.frozen is not None and judgement == Undecided(len(facts.frozen.groups))
    if places <= 0 and not awaited:
        # While results are awaited nobody is called for: a time without a claim goes on, but none begins.
        soft.idle_since = None
    elif places > 0 and facts.frozen is not None and isinstance(judgement, Undecided):
        _note_idle(state, one)
    if has_failed and soft.idle_since is None:
        state.mark(task)
    if has_failed or places <= 0:
        return
    state.open[task] = one
    if bars:
        state.wake(("bar", task), min(bars.values()))


def _groups_of(state: ShardState, task: int, facts: Facts) -> set[Group]:
    """Those that a freeze would count: of what was shown and rests on one checkpoint only one."""
    shown = {one.worker: one.group for one in state.evidence.shown(task)}
    return {shown.get(entry.worker, entry.group) for entry in facts.entries}


def taken(state: ShardState, task: int, facts: Facts) -> frozenset[Group]:
    """Groups that have the task or had it, as far as this seat vouches for it: none of theirs may have it again."""
    groups = {entry.group for entry in facts.entries} | {lease.group for lease in state.leases[task].leases}
    workers = {lease.worker for lease in state.leases[task].leases} | set(state.committed(task))
    workers |= {author for worker in workers for author in state.evidence.rests_on(task, worker)}
    return frozenset(groups | {group for group in map(state.admitted, sorted(workers)) if group is not None})


def _note_idle(state: ShardState, opened: OpenTask) -> None:
    """How long nobody has been there who could still run it."""
    task = opened.task
    soft = state.task(task)
    running = [lease for lease in _awaited(state, task) if _uncommitted(state, task, lease.worker)]
    if any(lease.worker not in soft.late for lease in running) or has_admissible_claim(state, opened):
        soft.idle_since = None
    else:
        if soft.idle_since is None:
            soft.idle_since = state.ctx.now
        for after in (limits.NO_BID_MS, limits.DIFFER_MS):
            if soft.idle_since + after > state.ctx.now:
                state.wake(("idle", task), soft.idle_since + after)
                break


def _awaited(state: ShardState, task: int) -> list[Lease]:
    """Those whose workers are linked, and may still end it: not one that takes far longer than the others did, or one
    that keeps the task and never ends it would hold its failure up for as long as a task may run."""
    firm = state.leases[task].firm
    running = {
        one.worker: leases.hopeless_at(one, state.usual_ms) for one in firm if _uncommitted(state, task, one.worker)
    }
    later = [when for when in running.values() if when > state.ctx.now]
    if later:
        state.wake(("slow", task), min(later))
    return [one for one in firm if running.get(one.worker, state.ctx.now + 1) > state.ctx.now]


def _uncommitted(state: ShardState, task: int, worker: PeerId) -> bool:
    return state.evidence.commit_of(task, worker) is None


def has_admissible_claim(state: ShardState, opened: OpenTask) -> bool:
    """Whether a worker is there that could be given the task, now or when it has room again. One that has neither room
    nor a task of this shard does not count: it could hold a failure up for ever."""
    for worker, group in state.claimants().items():
        claim = state.claims.get(worker)
        if claim is None or (claim.room == 0 and not state.leases.tasks_of(worker)):
            continue
        if group in opened.taken or worker in opened.refused or opened.task in claim.done:
            continue
        return True
    return False


# --- outputs -------------------------------------------------------------------------------------------------------
def gather(state: ShardState, outputs: Outputs, task: int) -> bool:
    """Bring the outputs of what is, or is to be, accepted here. Whether they are."""
    found = _accepted(state, task)
    if found is None:
        outputs.drop(task)
        return True
    worker, alike = found
    reveal = state.evidence.reveal_of(task, worker)
    if reveal is None:
        return False
    refs = [file.blob for file in reveal.item.outputs]
    return outputs.gather(task, refs, (worker, *alike, *state.seats.holders))


def gathered(state: ShardState, outputs: Outputs, task: int) -> bool:
    """Whether the outputs of what is to be accepted are here."""
    found = _accepted(state, task)
    reveal = state.evidence.reveal_of(task, found[0]) if found is not None else None
    return reveal is not None and outputs.here(task, [file.blob for file in reveal.item.outputs])


def _accepted(state: ShardState, task: int) -> tuple[PeerId, tuple[PeerId, ...]] | None:
    """Whose result stands for the task, and who has the same files."""
    decision = state.evidence.verdict(task)
    if decision is not None:
        if decision.outcome != "accepted" or decision.worker is None:
            return None
        return decision.worker, alike(state, task, decision.worker)
    judgement, frozen = state.task(task).judgement, state.evidence.frozen(task)
    if not isinstance(judgement, Accepted) or frozen is None:
        return None
    worker = frozen.entries[judgement.representative].worker
    return worker, alike(state, task, worker)


def alike(state: ShardState, task: int, worker: PeerId) -> tuple[PeerId, ...]:
    """Others that have shown the very same files."""
    shown = state.evidence.shown(task)
    root = next((one.root for one in shown if one.worker == worker), None)
    return tuple(one.worker for one in shown if one.root == root and one.worker != worker)
