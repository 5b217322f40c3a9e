"""Which operator groups may have which tasks (docs/protocol.md, Beacon and draw).

A group's tickets come of the value of the round that admitted it first, and never change: a newcomer takes its places
in the draws and moves nobody else's. All of it is computed when asked for, and kept.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import Digest, JobId, PeerId, StatementId, key_of_peer_id
from nexapod.protocol.rules import beacon as beacons
from nexapod.protocol.tables import TableReport
from nexapod.protocol.types import Group, JobSpec
from nexapod.protocol.wire.statements import Statement

TICKET_BYTES: Final = 8
RoundKey: TypeAlias = tuple[int, int, StatementId]
"""(epoch, round, id of the admission): of two admissions of a group the smaller one fixes its tickets."""


def roster_hash(value: Digest, job: JobId, shard: int, group: Group) -> int:
    """Where a group stands among those that want tasks of a shard: the smallest are drawn among."""
    named = value + job + shard.to_bytes(4, "big") + group.encode()
    return int.from_bytes(hashlib.sha256(b"nexapod/roster\0" + named).digest()[:8], "big")


def tickets(value: Digest, job: JobId, shard: int, group: Group, tasks: int) -> bytes:
    """A group's ticket for each task of a shard in turn, TICKET_BYTES each: the smallest comes first."""
    named = value + job + shard.to_bytes(4, "big") + group.encode()
    return hashlib.shake_128(b"nexapod/draw\0" + named).digest(TICKET_BYTES * tasks)


def ticket_at(tickets: bytes, place: int) -> bytes:
    """That for the task at this place of its shard."""
    return tickets[TICKET_BYTES * place : TICKET_BYTES * (place + 1)]


def turn(job: JobId, worker: PeerId) -> int:
    """When a worker is asked to bid, 0 to 65535: the first who are called are not the same for every job."""
    return int.from_bytes(hashlib.sha256(b"nexapod/turn\0" + job + key_of_peer_id(worker)).digest()[:2], "big")


@dataclass(slots=True)
class _ShardDraw:
    """One shard's roster; of the groups in it their tickets, and of the tasks drawn so far the draws, once somebody
    has asked for a draw: most ask only who is in the roster. `seen`: how many of the groups it knows."""

    roster: list[tuple[int, Group]] = field(default_factory=list)
    tickets: dict[Group, bytes] = field(default_factory=dict)
    orders: dict[int, tuple[Group, ...]] = field(default_factory=dict)
    names: tuple[Group, ...] = ()
    seen: int = 0

    def drawn(self, place: int) -> tuple[Group, ...]:
        """The groups by their tickets for the task at this place, then by name. All of them have tickets."""
        order = self.orders.get(place)
        if order is None:
            placed = sorted((ticket_at(self.tickets[group], place), group) for group in self.names)
            order = tuple(group for _, group in placed)
            self.orders[place] = order
        return order


class Lottery:
    """The admitted workers of one job, and the draw of its tasks."""

    def __init__(self, job: JobId, spec: JobSpec) -> None:
        self.version = 0
        """Rises with every admission that changes something."""
        self._job = job
        self._spec = spec
        self._workers: dict[PeerId, tuple[RoundKey, Group]] = {}
        self._values: dict[Group, tuple[RoundKey, Digest]] = {}
        self._joined: list[Group] = []
        """Groups in the order in which they became known."""
        self._draws: OrderedDict[int, _ShardDraw] = OrderedDict()
        self._drawn = 0
        """Places in all their rosters, and one for each of them."""
        self._shards_of: dict[Group, tuple[int, ...]] = {}

    # --- who is in it ----------------------------------------------------------------------------------------------
    def admit(self, admission: Statement, beacon: Statement) -> None:
        """Fold a round in, in any order of rounds. Both count, and the beacon is the admission's."""
        key = admission.body.epoch, admission.body.round, admission.id
        drawn = key, beacons.value(beacon.body)
        entered = [self._enter(group, drawn) for _, group in admission.body.workers]
        admitted = [self._admit(worker, group, key) for worker, group in admission.body.workers]
        self.version += any(entered) or any(admitted)

    def _admit(self, worker: PeerId, group: Group, key: RoundKey) -> bool:
        known = self._workers.get(worker)
        if (known is not None and known[0] <= key) or (known is None and len(self._workers) >= limits.WORKERS_MAX):
            return False
        self._workers[worker] = key, group
        return True

    def _enter(self, group: Group, drawn: tuple[RoundKey, Digest]) -> bool:
        known = self._values.get(group)
        if (known is not None and known[0] <= drawn[0]) or (known is None and len(self._values) >= limits.WORKERS_MAX):
            return False
        if known is None:
            self._joined.append(group)
        else:
            # An earlier round came later: rare, so everything is drawn again.
            self._draws.clear()
            self._drawn = 0
        self._values[group] = drawn
        self._shards_of.pop(group, None)
        return True

    def tables(self) -> tuple[TableReport, ...]:
        return (
            TableReport("workers admitted", len(self._workers), limits.WORKERS_MAX),
            TableReport("places in rosters", self._drawn, limits.DRAWN_MAX),
        )

    def group(self, worker: PeerId) -> Group | None:
        """The group in which a worker was admitted; None: it was not."""
        known = self._workers.get(worker)
        return None if known is None else known[1]

    def groups(self) -> int:
        """How many groups are admitted."""
        return len(self._values)

    def workers(self) -> int:
        """How many workers are admitted."""
        return len(self._workers)

    # --- the draw --------------------------------------------------------------------------------------------------
    def roster(self, shard: int) -> tuple[Group, ...]:
        """The groups that a shard's tasks are drawn among, by roster hash, then name."""
        return self._draw(shard).names

    def draw(self, task: int) -> tuple[Group, ...]:
        """The shard's roster in the order of the task's tickets, then of the names."""
        shard, place = divmod(task, limits.SHARD_TASKS)
        state = self._draw(shard)
        if len(state.tickets) < len(state.names):
            self._give_tickets(shard, state)
        return state.drawn(place)

    def rank(self, task: int, group: Group, present: Callable[[Group], bool]) -> int | None:
        """A group's place, from 1, among those present, itself counted; None: it is not in the roster."""
        order = self.draw(task)
        if group not in order:
            return None
        return 1 + sum(1 for other in order[: order.index(group)] if present(other))

    def first(self, task: int, present: Callable[[Group], bool], count: int) -> tuple[Group, ...]:
        """The first `count` groups present in a task's draw."""
        found: list[Group] = []
        for group in self.draw(task):
            if len(found) >= count:
                break
            if present(group):
                found.append(group)
        return tuple(found)

    def shards_for(self, worker: PeerId) -> tuple[int, ...]:
        """All shards in the order in which a worker claims in them: first those that its roster hash puts it first in.
        None, before it is admitted."""
        group = self.group(worker)
        if group is None:
            return ()
        if group not in self._shards_of:
            value = self._values[group][1]
            hashes = [(roster_hash(value, self._job, shard, group), shard) for shard in range(self._spec.shards)]
            # One is kept: a worker asks for itself alone.
            self._shards_of = {group: tuple(shard for _, shard in sorted(hashes))}
        return self._shards_of[group]

    # --- kept up to date -------------------------------------------------------------------------------------------
    def _draw(self, shard: int) -> _ShardDraw:
        state = self._draws.get(shard)
        if state is None:
            state = self._draws[shard] = _ShardDraw()
            self._drawn += 1
        if state.seen < len(self._joined):
            before = len(state.roster)
            self._update(shard, state)
            self._drawn += len(state.roster) - before
        self._draws.move_to_end(shard)
        while self._drawn > limits.DRAWN_MAX:
            _, oldest = self._draws.popitem(last=False)
            self._drawn -= len(oldest.roster) + 1
        return state

    def _update(self, shard: int, state: _ShardDraw) -> None:
        newcomers = self._joined[state.seen :]
        state.seen = len(self._joined)
        hashed = [(roster_hash(self._values[group][1], self._job, shard, group), group) for group in newcomers]
        for entry in heapq.nsmallest(limits.ROSTER_MAX, hashed):
            insort(state.roster, entry)
        del state.roster[limits.ROSTER_MAX :]
        names = tuple(group for _, group in state.roster)
        if names != state.names:
            state.names = names
            state.tickets = {group: own for group in names if (own := state.tickets.get(group)) is not None}
            state.orders.clear()

    def _give_tickets(self, shard: int, state: _ShardDraw) -> None:
        tasks = len(self._spec.shard_tasks(shard))
        for group in state.names:
            if group not in state.tickets:
                state.tickets[group] = tickets(self._values[group][1], self._job, shard, group, tasks)
