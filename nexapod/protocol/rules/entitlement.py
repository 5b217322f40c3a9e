"""Which groups may have a task now (docs/protocol.md, Entitlement): pure.

A task is its first groups' own, by the draw. So that fast groups do not wait for slow ones, a group may also take tasks
beyond its own, but never much more than the groups have on average: two colluders who answer at once are given both
places of a task hardly more often than chance alone would have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis

_REACH: Final = 4
"""Groups in a task's draw that it may go to, for each that it wants: far enough for everyone who is fast to find some,
near enough that even a seat that lies cannot give it to whom it likes."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a group has had of a shard, beside what all had.

    A task counts when it is leased, whatever becomes of it: who gives tasks back to choose among them has had them.
    """

    leases: int
    """Tasks of this shard that the group was given."""
    beyond: int
    """Those among them that were not its own when it was given them."""
    all_leases: int
    """What the groups present were given, together."""
    groups: int
    """How many are present, this one included."""

    def may_exceed(self, width: int) -> bool:
        """Whether it may have a task beyond its own: with less than one and a half times the mean, and less than
        two thirds of the mean beyond its own. Both double with the width. Once it has grown the mean is one at least:
        who is present may have been given nothing of what a seat still knows of."""
        most = max(self.all_leases, self.groups if width else 0) << width
        return 2 * self.leases * self.groups < 3 * most and 3 * self.beyond * self.groups < 2 * most


def is_own(rank: int, wanted: int) -> bool:
    """Whether a task is a group's own: it is among the first present (its rank counts from 1)."""
    return rank <= wanted


def reach(wanted: int, width: int, *, shown: bool = False) -> int:
    """How many of the groups present may have a task at all, in the order of its draw.

    `shown`: results of it were to be shown already, and did not agree or were withheld. Somebody may lie, so chance
    alone chooses who comes next: who waits for such tasks would decide most of those that it has a result of.
    """
    return min(limits.ROSTER_MAX, wanted * (1 if shown else _REACH) << width)


def entitled(rank: int, wanted: int, width: int, share: Share, *, shown: bool = False) -> bool:
    """Whether a group of this rank (from 1) among those present may have a task that wants so many groups."""
    return is_own(rank, wanted) or (rank <= reach(wanted, width, shown=shown) and share.may_exceed(width))


def widening_due(present_groups: int, idle_groups: int, since_ms: Millis, typical_ms: Millis) -> bool:
    """Whether the width of a shard's open tasks grows by one.

    `idle_groups`: those present that have room, and nothing open that they are entitled to. `since_ms`: since the last
    widening, or since one could first be due. `typical_ms`: what a task of the shard takes; 0: none is known.
    """
    return many_idle(present_groups, idle_groups) and since_ms >= patience_ms(typical_ms)


def many_idle(present_groups: int, idle_groups: int) -> bool:
    """Whether so many have nothing to do that more should be let in."""
    return present_groups > 0 and 2 * idle_groups >= present_groups


def patience_ms(typical_ms: Millis) -> Millis:
    """How long they wait before each widening."""
    return min(max(typical_ms // 2, limits.PATIENCE_MIN_MS), limits.PATIENCE_MAX_MS)
