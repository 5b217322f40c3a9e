"""Decisions on many tasks to as few bodies as fit: pure (docs/protocol.md, Freeze, Verdict)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import JobId, PeerId, StatementId, key_of_peer_id
from nexapod.protocol.rules.agreement import Accepted, Failed
from nexapod.protocol.steward.shard.judging import RoundOf
from nexapod.protocol.types import Group
from nexapod.protocol.wire.bodies import Freeze, FreezeItem, Verdict, VerdictItem
from nexapod.protocol.wire.text import clean

BODY_BYTES_MAX: Final = limits.ENVELOPE_BYTES_MAX - 8 * 1024
"""Room for a panel's signatures."""
PLACES_MAX: Final = 1024
"""Workers, or commits, of one freeze."""


@dataclass(frozen=True, slots=True)
class Pronounced:
    """One task's judgement, and the freeze that it is about."""

    judgement: Accepted | Failed
    freeze: StatementId
    missing: tuple[int, ...]


# --- freezes -------------------------------------------------------------------------------------------------------
def freezes(job: JobId, shard: int, epoch: int, rounds: dict[int, RoundOf]) -> list[Freeze]:
    """In each body a worker counts in one group."""
    return [_freeze(job, shard, epoch, {task: rounds[task] for task in tasks}) for tasks in _fitting(rounds)]


def _fitting(rounds: dict[int, RoundOf]) -> list[list[int]]:
    batches: list[list[int]] = []
    workers: dict[PeerId, Group] = {}
    commits: set[StatementId] = set()
    size = 0
    for task in sorted(rounds):
        entries = rounds[task].entries
        clash = any(workers.get(entry.worker, entry.group) != entry.group for entry in entries)
        cost = 12 + sum(_cost(entry.worker in workers, entry.commit in commits, entry.group) for entry in entries)
        full = size + cost > BODY_BYTES_MAX or len(workers) + len(entries) > PLACES_MAX
        if not batches or clash or full or len(commits) + len(entries) > PLACES_MAX:
            batches.append([])
            workers, commits, size = {}, set(), 256
            cost = 12 + sum(_cost(False, False, entry.group) for entry in entries)
        batches[-1].append(task)
        size += cost
        workers |= {entry.worker: entry.group for entry in entries}
        commits |= {entry.commit for entry in entries}
    return batches


def _cost(worker_there: bool, commit_there: bool, group: Group) -> int:
    """Bytes, at most, that one entry adds."""
    return 7 + (0 if worker_there else 40 + len(group.encode())) + (0 if commit_there else 34)


def _freeze(job: JobId, shard: int, epoch: int, rounds: dict[int, RoundOf]) -> Freeze:
    entries = [entry for written in rounds.values() for entry in written.entries]
    group_of = {entry.worker: entry.group for entry in entries}
    workers = sorted(group_of, key=key_of_peer_id)
    commits = sorted({entry.commit for entry in entries})
    worker_place = {worker: place for place, worker in enumerate(workers)}
    commit_place = {commit: place for place, commit in enumerate(commits)}
    items = tuple(
        FreezeItem(
            task,
            written.round,
            tuple((worker_place[entry.worker], commit_place[entry.commit]) for entry in written.entries),
        )
        for task, written in sorted(rounds.items())
    )
    return Freeze(job, shard, epoch, tuple((worker, group_of[worker]) for worker in workers), tuple(commits), items)


# --- verdicts ------------------------------------------------------------------------------------------------------
def verdicts(job: JobId, shard: int, epoch: int, pronounced: dict[int, Pronounced]) -> list[Verdict]:
    """As few bodies as fit."""
    bodies = []
    for tasks in _cut(sorted(pronounced), [_verdict_cost(pronounced[task]) for task in sorted(pronounced)]):
        bodies.append(_verdict(job, shard, epoch, {task: pronounced[task] for task in tasks}))
    return bodies


def _verdict_cost(one: Pronounced) -> int:
    reason = len(one.judgement.reason.encode()) if isinstance(one.judgement, Failed) else 0
    return 64 + 5 * len(one.judgement.pairs) + 2 * len(one.missing) + reason


def _cut(tasks: Sequence[int], costs: Iterable[int]) -> list[list[int]]:
    batches: list[list[int]] = []
    size = 0
    for task, cost in zip(tasks, costs, strict=True):
        if not batches or size + cost > BODY_BYTES_MAX:
            batches.append([])
            size = 256
        batches[-1].append(task)
        size += cost
    return batches


def _verdict(job: JobId, shard: int, epoch: int, pronounced: dict[int, Pronounced]) -> Verdict:
    named = sorted({one.freeze for one in pronounced.values()})
    items = tuple(_verdict_item(task, one, named.index(one.freeze)) for task, one in sorted(pronounced.items()))
    return Verdict(job, shard, epoch, tuple(named), items)


def _verdict_item(task: int, one: Pronounced, freeze: int) -> VerdictItem:
    match one.judgement:
        case Accepted(place, pairs):
            return VerdictItem(task, freeze, "accepted", place, pairs, one.missing, "")
        case Failed(reason, pairs):
            return VerdictItem(task, freeze, "failed", 0, pairs, one.missing, clean(reason, limits.REASON_MAX))
