"""What a freeze says, and whether a quorum of a shard's seats could honestly have said it (docs/protocol.md, 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from nexapod.protocol.errors import PeerError
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Digest, JobId, PeerId, StatementId, key_of_peer_id
from nexapod.protocol.rules import lottery
from nexapod.protocol.types import Group
from nexapod.protocol.wire.bodies import Freeze, FreezeItem
from nexapod.protocol.wire.statements import Statement


@dataclass(frozen=True, slots=True)
class Entry:
    """A commit that is judged, whose it is, and the group in which it counts."""

    worker: PeerId
    group: Group
    commit: StatementId


@dataclass(frozen=True, slots=True)
class Frozen:
    """One task of a freeze. The entries are in the order of the draw."""

    statement: Statement
    item: FreezeItem
    round: int
    entries: tuple[Entry, ...]


def frozen_of(statement: Statement, task: int) -> Frozen | None:
    """What a freeze that was checked says of a task; None: nothing."""
    freeze: Freeze = statement.body
    item = next((item for item in freeze.items if item.task == task), None)
    if item is None:
        return None
    return Frozen(statement, item, item.round, entries_of(freeze, item))


def entries_of(freeze: Freeze, item: FreezeItem) -> tuple[Entry, ...]:
    """The entries of one task of a freeze that was checked."""
    return tuple(Entry(*freeze.workers[worker], freeze.commits[commit]) for worker, commit in item.entries)


def check_freeze(body: Freeze, tasks: range) -> None:
    """Raises PeerError when its form is not that of a freeze of tasks of this shard."""
    keys = [key_of_peer_id(worker) for worker, _ in body.workers]
    named = [item.task for item in body.items]
    if not _rises(keys) or not _rises(body.commits) or not _rises(named):
        raise PeerError("bad-freeze", "its workers, commits or tasks are not sorted, each once", penalty=30)
    if not all(task in tasks for task in named):
        raise PeerError("bad-freeze", "it names tasks that the shard does not have", penalty=30)
    for item in body.items:
        _check_item(body, item)


def _check_item(body: Freeze, item: FreezeItem) -> None:
    if any(worker >= len(body.workers) or commit >= len(body.commits) for worker, commit in item.entries):
        raise PeerError("bad-freeze", "an entry lies outside its lists", penalty=30)
    if len({worker for worker, _ in item.entries}) != len(item.entries):
        raise PeerError("bad-freeze", "it names two commits of one worker to one task", penalty=30)


def _rises(values: Sequence[bytes] | Sequence[int]) -> bool:
    return all(one < other for one, other in pairwise(values))  # type: ignore[operator]


# --- what it takes for granted --------------------------------------------------------------------------------------
def fits(job: JobState, body: Freeze) -> bool:
    """Whether its groups and its order are those of the admissions that are known here.

    False may mean that a round of admission has not arrived yet, so it proves nothing against whoever signed it.
    """
    groups = dict(body.workers)
    known = all(_may_count_as(job, worker, group) for worker, group in groups.items())
    return known and all(_in_draw_order(job, body, item) for item in body.items)


def _may_count_as(job: JobState, worker: PeerId, group: Group) -> bool:
    """Its own group; or, as it went on from another's checkpoint, a smaller name that some other worker has."""
    own = job.groups_seen(worker)
    return group in own or (bool(own) and group < min(own) and bool(job.values(group)))


def _in_draw_order(job: JobState, body: Freeze, item: FreezeItem) -> bool:
    """By the tickets of the groups that admitted the workers, then by key. Groups outside the roster stand last, by
    name."""
    workers = [body.workers[place][0] for place, _ in item.entries]
    drawn = _drawn(job, body.shard, item.task, workers)
    outside = workers[drawn:]
    if not outside:
        return True
    roster = frozenset(job.lottery.roster(body.shard))
    places = [(job.groups_seen(worker)[0], key_of_peer_id(worker)) for worker in outside]
    return not any(group in roster for group, _ in places) and _rises_pairs(places)


def _rises_pairs(places: list[tuple[Group, bytes]]) -> bool:
    return all(one < other for one, other in pairwise(places))


def _drawn(job: JobState, shard: int, task: int, workers: Iterable[PeerId]) -> int:
    """How many of the first workers stand in the order of the draw.

    A group that two epochs' gates admitted has a ticket by each, and seats may have known only one of them: so it may
    stand at any of its tickets.
    """
    last: tuple[bytes, Group, bytes] | None = None
    many = 0
    for worker in workers:
        later = [place for place in _places(job, shard, task, worker) if last is None or place > last]
        if not later:
            return many
        last = min(later)
        many += 1
    return many


def _places(job: JobState, shard: int, task: int, worker: PeerId) -> list[tuple[bytes, Group, bytes]]:
    tasks = job.spec.shard_tasks(shard)
    key = key_of_peer_id(worker)
    return [
        (lottery.ticket_at(_tickets(value, job.job, shard, group, len(tasks)), task - tasks.start), group, key)
        for group in job.groups_seen(worker)
        for value in job.values(group)
    ]


@lru_cache(maxsize=4096)
def _tickets(value: Digest, job: JobId, shard: int, group: Group, tasks: int) -> bytes:
    return lottery.tickets(value, job, shard, group, tasks)


# --- which of several counts ----------------------------------------------------------------------------------------
def latest(frozen: Iterable[Frozen]) -> Frozen | None:
    """The one of the highest round; of several, that with the smallest id."""
    return min(frozen, key=lambda one: (-one.round, one.statement.id), default=None)


Holds = Callable[[int, PeerId, StatementId], bool]
"""(task, worker, commit) -> whether that commit is here, is the worker's, and has the task."""


def all_here(body: Freeze, holds: Holds) -> bool:
    """Whether every commit that it names is here."""
    return all(holds(item.task, entry.worker, entry.commit) for item in body.items for entry in entries_of(body, item))
