"""Who went on from whose checkpoint, as the seats handed it out (docs/protocol-3.md, section 5, freeze).

Workers that did are one group: the smallest name of theirs. Saved, since a freeze after a restart must say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from nexapod.protocol.types import PeerId
from nexapod.protocol.v3.types import Group

HANDED_MAX: Final = 64
"""Checkpoints of one task that are handed out, in all."""


class Lineage:
    """Of one shard: task -> (worker -> whose checkpoints it was handed)."""

    def __init__(self) -> None:
        self._handed: dict[int, dict[PeerId, PeerId]] = {}

    def may_hand(self, task: int, worker: PeerId) -> bool:
        """A worker goes on from one only: a second would hide the first."""
        handed = self._handed.get(task, {})
        return worker not in handed and len(handed) < HANDED_MAX

    def hand(self, task: int, worker: PeerId, author: PeerId) -> bool:
        """A worker is handed another's checkpoint. Whether that is new; one's own makes no difference."""
        handed = self._handed.setdefault(task, {})
        if worker == author or worker in handed or len(handed) >= HANDED_MAX:
            return False
        handed[worker] = author
        return True

    def source(self, task: int, worker: PeerId) -> PeerId | None:
        """Whose checkpoint it was handed."""
        return self._handed.get(task, {}).get(worker)

    def groups(
        self, task: int, group_of: Mapping[PeerId, Group], admitted: Callable[[PeerId], Group | None]
    ) -> dict[PeerId, Group]:
        """The group in which each of these workers counts."""
        handed = self._handed.get(task)
        if not handed:
            return dict(group_of)
        return {worker: self._smallest(handed, worker, group, admitted) for worker, group in group_of.items()}

    @staticmethod
    def _smallest(
        handed: Mapping[PeerId, PeerId], worker: PeerId, own: Group, admitted: Callable[[PeerId], Group | None]
    ) -> Group:
        """Everybody who is joined to it by handing out, in either direction."""
        joined, todo = {worker}, [worker]
        while todo:
            one = todo.pop()
            near = [handed[one]] if one in handed else []
            near += [taker for taker, author in handed.items() if author == one]
            for other in near:
                if other not in joined:
                    joined.add(other)
                    todo.append(other)
        names = [admitted(peer) for peer in sorted(joined) if peer != worker]
        return min([own, *(name for name in names if name is not None)])

    def workers(self, task: int) -> tuple[tuple[PeerId, PeerId], ...]:
        """(worker, whose checkpoint), by worker."""
        return tuple(sorted(self._handed.get(task, {}).items()))
