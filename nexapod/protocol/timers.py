"""Deadlines by name: a heap with lazy deletion. Later settings of a name replace earlier ones."""

from __future__ import annotations

import heapq
from collections.abc import Hashable

from nexapod.protocol.primitives import Millis


def earliest(*times: Millis | None) -> Millis | None:
    """The first of these that there is. Asked for after every event, by every machine: a loop is the cheapest."""
    first: Millis | None = None
    for when in times:
        if when is not None and (first is None or when < first):
            first = when
    return first


class Timers:
    """When which of the node's machines wants to be ticked."""

    def __init__(self) -> None:
        self._when: dict[Hashable, tuple[Millis, int]] = {}
        self._heap: list[tuple[Millis, int, Hashable]] = []
        self._order = 0

    def set(self, name: Hashable, when: Millis | None) -> None:
        """`None` removes the name."""
        current = self._when.get(name)
        if when is None:
            self._when.pop(name, None)
        elif current is None or current[0] != when:
            self._order += 1
            self._when[name] = (when, self._order)
            heapq.heappush(self._heap, (when, self._order, name))

    def __contains__(self, name: Hashable) -> bool:
        return name in self._when

    @property
    def next(self) -> Millis | None:
        self._prune()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: Millis) -> Hashable | None:
        """One name whose time has come, removed; in order of time, then of setting."""
        self._prune()
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, name = heapq.heappop(self._heap)
        del self._when[name]
        return name

    def _prune(self) -> None:
        while self._heap:
            when, order, name = self._heap[0]
            if self._when.get(name) == (when, order):
                return
            heapq.heappop(self._heap)
