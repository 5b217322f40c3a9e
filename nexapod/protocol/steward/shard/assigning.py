"""Open tasks and standing claims to leases: pure (docs/protocol.md, section 5, Entitlement).

Each group takes its own tasks first, then those in whose draw it stands first, as long as its share allows. The group
that was given least chooses first, one task at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.rules import entitlement
from nexapod.protocol.steward.shard.ledger import Account
from nexapod.protocol.types import Group

WIDTH_MAX = 10
"""From then on every group of a roster may have every task, whatever it was given."""
assert 3 * limits.ROSTER_MAX < 2 << WIDTH_MAX


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task that wants more groups."""

    task: int
    wanted: int
    """Groups in all."""
    places: int
    """Of these, how many nobody has; less than none, if more have it."""
    width: int
    taken: frozenset[Group]
    """Groups that have it, or had: none of theirs may have it again."""
    refused: frozenset[PeerId]
    """Workers that may not have it: barred, or at fault."""
    shown: bool = False
    """Results of it may have been shown: nobody is let in beyond the places, nor, at first, beyond the draw."""

    def room(self, slack: int) -> int:
        """Places, and as many again as groups are wanted where another seat may count differently."""
        return self.places if self.shown else self.places + self.wanted * ((1 << slack) - 1)

    @property
    def reach(self) -> int:
        """How many of the groups present may have it at all."""
        return entitlement.reach(self.wanted, self.width, shown=self.shown)


@dataclass(frozen=True, slots=True)
class Room:
    """What a worker that is present could still take."""

    worker: PeerId
    group: Group
    room: int
    done: frozenset[int]

    def may_have(self, task: OpenTask) -> bool:
        return self.group not in task.taken and self.worker not in task.refused and task.task not in self.done


First: TypeAlias = Callable[[int, int], tuple[Group, ...]]
"""(task, count) -> the first groups present in the task's draw."""
_Offer: TypeAlias = tuple[bool, bool, int, int, OpenTask]
"""(not its own, its own and nobody has it yet, rank, task): the smallest is given first. The end of a task does not
wait for the beginning of another; of those beyond one's own this would be a choice of partners."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """`items`: (task, worker), in order. `idle`: groups with room left and nothing that they could take. `unfilled`:
    tasks that still have a place."""

    items: tuple[tuple[int, PeerId], ...]
    idle: frozenset[Group]
    unfilled: tuple[int, ...]
    own: int = 0
    """How many of `items`, the first, are their groups' own tasks."""


def assign(opened: Sequence[OpenTask], rooms: Sequence[Room], first: First, account: Account) -> Assigned:
    """`account`: what the groups present were given so far; it is brought up to date."""
    by_group: dict[Group, list[Room]] = {}
    for room in rooms:
        if room.room > 0:
            by_group.setdefault(room.group, []).append(room)
    items = _Dealing(opened, by_group, first, account).deal() if by_group else _Dealt((), {}, 0)
    given = {room.worker: room.room for room in rooms if room.room > 0}
    for _, worker in items.items:
        given[worker] -= 1
    idle = frozenset(room.group for room in rooms if given.get(room.worker, 0) > 0)
    unfilled = tuple(task.task for task in opened if items.taken.get(task.task, 0) < task.places)
    return Assigned(items.items, idle, unfilled, items.own)


@dataclass(frozen=True, slots=True)
class _Dealt:
    """`taken`: how many places of a task were given."""

    items: tuple[tuple[int, PeerId], ...]
    taken: dict[int, int]
    own: int


class _Dealing:
    """One assignment."""

    def __init__(
        self, opened: Sequence[OpenTask], by_group: dict[Group, list[Room]], first: First, account: Account
    ) -> None:
        self._rooms = by_group
        self._free = {room.worker: room.room for rooms in by_group.values() for room in rooms}
        self._account = account
        self._taken: dict[int, int] = {}
        self._offers: dict[Group, list[_Offer]] = {group: [] for group in by_group}
        for task in opened:
            for rank, group in enumerate(first(task.task, task.reach), 1):
                if group in by_group and group not in task.taken:
                    beyond = not entitlement.is_own(rank, task.wanted)
                    fresh = not beyond and not task.taken
                    self._offers[group].append((beyond, fresh, rank, task.task, task))
        for offers in self._offers.values():
            offers.sort(key=lambda offer: offer[:4], reverse=True)

    def deal(self) -> _Dealt:
        """Own tasks of all groups before those beyond, so that nobody's own are given away while it has room."""
        own = self._round(beyond=False)
        return _Dealt((*own, *self._round(beyond=True)), self._taken, len(own))

    def _round(self, *, beyond: bool) -> list[tuple[int, PeerId]]:
        queue = [(self._account.leases(group), group) for group in self._offers]
        heapq.heapify(queue)
        items: list[tuple[int, PeerId]] = []
        while queue:
            _, group = heapq.heappop(queue)
            chosen = self._choose(group, beyond)
            if chosen is not None:
                task, worker = chosen
                self._free[worker] -= 1
                self._taken[task] = self._taken.get(task, 0) + 1
                self._account.given(group, own=not beyond)
                items.append((task, worker))
                heapq.heappush(queue, (self._account.leases(group), group))
        return items

    def _choose(self, group: Group, beyond: bool) -> tuple[int, PeerId] | None:
        """The next task that a group may have, and which of its workers: the one with the most room."""
        offers, share = self._offers[group], self._account.share(group)
        free = [room for room in self._rooms[group] if self._free[room.worker] > 0]
        kept: list[_Offer] = []
        found = None
        while free and offers and offers[-1][0] <= beyond and found is None:
            offer = offers.pop()
            task = offer[4]
            if self._taken.get(task.task, 0) >= task.places:
                continue
            fit = [room.worker for room in free if room.may_have(task)]
            if fit and (not beyond or share.may_exceed(task.width)):
                found = task.task, min(fit, key=lambda worker: (-self._free[worker], worker))
            elif beyond and fit:
                # Another task may be wider.
                kept.append(offer)
        offers += reversed(kept)
        return found


def may_widen(task: OpenTask) -> bool:
    """Whether a larger width could let anybody else in."""
    return task.places > 0 and task.width < WIDTH_MAX
