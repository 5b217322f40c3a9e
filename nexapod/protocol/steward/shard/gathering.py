"""How long a seat waits before it first gives out anything of its shard (docs/protocol.md, section 5, Entitlement).

Who is early is present alone, and every task would be its own. So a seat waits until no further group has come for as
long as an attacker with one seat of the gate could keep the others from being admitted. On a network of one's own,
whose owner vouches for its members, it waits for nobody.
"""

from __future__ import annotations

from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis
from nexapod.protocol.types import Grouping

WAITS: Final[dict[Grouping, tuple[Millis, Millis]]] = {
    "peer": (0, 0),
    "network": (limits.GATHER_QUIET_MS, limits.GATHER_MOST_MS),
}
"""By the job's rule of groups: since somebody new came last, and since the first came."""


class Gathering:
    """Begins when it is first asked, and is over once and for all."""

    def __init__(self, grouping: Grouping) -> None:
        self._quiet_ms, self._most_ms = WAITS[grouping]
        self._first: Millis | None = None
        self._latest: Millis = 0
        self._known = 0
        self._is_over = False

    def over_at(self, now: Millis, known: int) -> Millis:
        """When it is over unless somebody new comes. `known`: how many groups are admitted, and workers present."""
        if self._first is None:
            self._first = self._latest = now
            self._known = known
        over_at = self._over_at(self._first)
        if self._is_over or over_at <= now:
            self._is_over = True
            return over_at
        if known > self._known:
            self._latest, self._known = now, known
        return self._over_at(self._first)

    def _over_at(self, first: Millis) -> Millis:
        return min(self._latest + self._quiet_ms, first + self._most_ms)
