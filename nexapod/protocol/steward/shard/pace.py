"""How long the tasks of a shard take, as one seat sees it (docs/protocol.md, section 5, Entitlement): pure.

The median of the groups, each counted once: a few that answer at once do not make all others late, which would let them
into the places of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis
from nexapod.protocol.tables import TableReport
from nexapod.protocol.types import Group

GROUPS_MAX: Final = 4 * limits.ROSTER_MAX


class Pace:
    """Bounded by GROUPS_MAX: the group that ended nothing for longest is forgotten."""

    def __init__(self) -> None:
        self._took: dict[Group, Millis] = {}

    def __contains__(self, group: Group) -> bool:
        """Whether it has ended a task."""
        return group in self._took

    def __bool__(self) -> bool:
        """Whether any has."""
        return bool(self._took)

    def of(self, group: Group) -> Millis:
        """What tasks take a group; 0: it has ended none."""
        return self._took.get(group, 0)

    def ended(self, group: Group, took_ms: Millis) -> None:
        """A group has ended a task so long after it was given it: its last count most."""
        old = self._took.pop(group, took_ms)
        self._took[group] = max(1, (3 * old + took_ms) // 4)
        if len(self._took) > GROUPS_MAX:
            del self._took[next(iter(self._took))]

    def typical(self, running: Mapping[Group, Millis]) -> Millis:
        """What a task takes; 0: nobody has ended one. `running`: for how long those run their first that ended none."""
        if not self._took:
            return 0
        times = sorted([*self._took.values(), *(ms for group, ms in running.items() if group not in self._took)])
        return times[(len(times) - 1) // 2]

    def tables(self) -> tuple[TableReport, ...]:
        return (TableReport("groups whose pace is known", len(self._took), GROUPS_MAX),)
