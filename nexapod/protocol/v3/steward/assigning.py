"""Open tasks and standing claims to leases: pure (docs/protocol-3.md, section 5, Entitlement).

Each task is offered to the first groups of its draw that are present, as many as its width lets in. So whoever is fast
runs out of tasks that are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nexapod.protocol.types import PeerId
from nexapod.protocol.v3 import limits
from nexapod.protocol.v3.types import Group


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
    """Results of it may have been shown: nobody is let in beyond the places."""

    def room(self, slack: int) -> int:
        """Places, and as many again as groups are wanted where another seat may count differently."""
        return self.places if self.shown else self.places + self.wanted * ((1 << slack) - 1)

    @property
    def entitled(self) -> int:
        """How many of the groups present may have it."""
        return min(limits.ROSTER_MAX, self.wanted << self.width)


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


@dataclass(frozen=True, slots=True)
class Assigned:
    """`items`: (task, worker), in order. `idle`: groups with room left and nothing that they could take. `unfilled`:
    tasks that still have a place."""

    items: tuple[tuple[int, PeerId], ...]
    idle: frozenset[Group]
    unfilled: tuple[int, ...]


def assign(opened: Sequence[OpenTask], rooms: Sequence[Room], first: First) -> Assigned:
    """Tasks that somebody has already come first: the end of a task must not wait for the beginning of another."""
    free = {room.worker: room.room for room in rooms if room.room > 0}
    by_group: dict[Group, list[Room]] = {}
    for room in rooms:
        by_group.setdefault(room.group, []).append(room)
    items: list[tuple[int, PeerId]] = []
    unfilled: list[int] = []
    for task in sorted(opened, key=lambda task: (not task.taken, task.task)):
        chosen = _workers_for(task, by_group, free, first) if free else []
        for worker in chosen:
            free[worker] -= 1
            if free[worker] == 0:
                del free[worker]
        items += [(task.task, worker) for worker in chosen]
        if len(chosen) < task.places:
            unfilled.append(task.task)
    idle = frozenset(room.group for room in rooms if room.worker in free)
    return Assigned(tuple(items), idle, tuple(unfilled))


def _workers_for(
    task: OpenTask, by_group: dict[Group, list[Room]], free: dict[PeerId, int], first: First
) -> list[PeerId]:
    """Of each entitled group the worker with the most room, until no place is left."""
    chosen: list[PeerId] = []
    for group in first(task.task, task.entitled):
        if len(chosen) >= task.places:
            break
        fit = [room.worker for room in by_group.get(group, ()) if room.worker in free and room.may_have(task)]
        if fit:
            chosen.append(min(fit, key=lambda worker: (-free[worker], worker)))
    return chosen


def may_widen(task: OpenTask) -> bool:
    """Whether a larger width would let anybody else in."""
    return task.places > 0 and task.wanted << task.width < limits.ROSTER_MAX
