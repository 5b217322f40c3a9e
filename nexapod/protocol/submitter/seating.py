"""Finds which shards of a submission have had their seats changed, a few shards at a time.

A job's word that something has changed does not say where; looking through thousands of shards each time would cost
more than the change. The first round through them makes known to the other parts which seats there are at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nexapod.protocol import limits

if TYPE_CHECKING:
    from nexapod.protocol.job import JobState
    from nexapod.protocol.rules.succession import Seats


@dataclass(frozen=True, slots=True)
class Moved:
    """The seats of a shard are not what they were. `before` is None when they are looked at for the first time."""

    before: Seats | None
    now: Seats


class Seating:
    """The seats of every shard as last seen."""

    def __init__(self, job: JobState) -> None:
        self.job = job
        self._seen: list[Seats | None] = [None] * job.spec.shards
        self._cursor = 0
        self._left = job.spec.shards
        self.seen = 0
        """Shards that have been looked at at all."""

    @property
    def unfinished(self) -> bool:
        """Whether shards are left to look at."""
        return self._left > 0

    def job_changed(self) -> None:
        """Look at every shard once more."""
        self._left = len(self._seen)

    def sweep(self) -> Iterator[Moved]:
        """What has changed in the next few shards."""
        for _ in range(min(self._left, limits.SHARDS_SWEPT)):
            shard = self._cursor
            self._cursor = (shard + 1) % len(self._seen)
            self._left -= 1
            moved = self.look(shard)
            if moved is not None:
                yield moved

    def look(self, shard: int) -> Moved | None:
        """What has changed in this one."""
        before, now = self._seen[shard], self.job.seats(shard)
        if before is not None and before.id == now.id:
            return None
        self.seen += before is None
        self._seen[shard] = now
        return Moved(before, now)
