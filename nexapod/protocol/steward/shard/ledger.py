"""What each group was given of one shard, as one seat counts it (docs/protocol.md, section 5, Entitlement).

A lease counts when it is given and is never taken back, whatever becomes of it. Lost in a crash; it grows back with the
leases that are renewed, and until then the width makes up for it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.rules.entitlement import Share
from nexapod.protocol.tables import TableReport
from nexapod.protocol.types import Group

GROUPS_MAX: Final = 4 * limits.ROSTER_MAX
"""Groups that are counted: those of the present roster, and some that others have displaced from it."""


@dataclass(slots=True)
class Given:
    """How many tasks, and how many of them beyond the group's own."""

    leases: int = 0
    beyond: int = 0


class Account:
    """The ledger of the groups present, for one assignment: it can be written on without the ledger changing."""

    def __init__(self, given: dict[Group, Given]) -> None:
        self._given = given
        self._all = sum(one.leases for one in given.values())

    def leases(self, group: Group) -> int:
        return self._given[group].leases

    def given(self, group: Group, *, own: bool) -> None:
        one = self._given[group]
        one.leases += 1
        one.beyond += not own
        self._all += 1

    def share(self, group: Group) -> Share:
        one = self._given[group]
        return Share(one.leases, one.beyond, self._all, len(self._given))


class Ledger:
    """Bounded by GROUPS_MAX: of more groups those that were given least are forgotten."""

    def __init__(self) -> None:
        self._given: dict[Group, Given] = {}
        self._had: dict[PeerId, int] = {}
        """The tasks that each worker was given, a bit each from the shard's first on."""

    def given(self, group: Group, worker: PeerId, place: int, *, own: bool) -> None:
        """A worker is given the task at a place of the shard."""
        one = self._given.setdefault(group, Given())
        one.leases += 1
        one.beyond += not own
        self._had[worker] = self._had.pop(worker, 0) | 1 << place
        if len(self._given) > GROUPS_MAX:
            del self._given[min(self._given, key=lambda group: (self._given[group].leases, group))]
        if len(self._had) > limits.CLAIMS_MAX:
            # The one that was given nothing for longest.
            del self._had[next(iter(self._had))]

    def had(self, worker: PeerId, place: int) -> bool:
        """Whether a worker was given that task."""
        return bool(self._had.get(worker, 0) >> place & 1)

    def account(self, present: Collection[Group]) -> Account:
        """What the groups present were given."""
        none = Given()
        found = {group: self._given.get(group, none) for group in sorted(present)}
        return Account({group: Given(one.leases, one.beyond) for group, one in found.items()})

    def tables(self) -> tuple[TableReport, ...]:
        return (
            TableReport("groups given tasks of a shard", len(self._given), GROUPS_MAX),
            TableReport("workers given tasks of a shard", len(self._had), limits.CLAIMS_MAX),
        )
