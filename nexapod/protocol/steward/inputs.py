"""The inputs that a node holds for the shards of one job that it has a seat of (docs/protocol.md, Placing).

Each part is fetched once for all shards that need it, and asked for again, ever more rarely, until it is here. Of a
split file they are the shards' parts only, so that a large file is spread over its stewards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nexapod.protocol import limits
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Millis, Part, PeerId

INPUTS_ROLE = "inputs"


class Inputs:
    """Those of one job. `sources(shard)`: who may have them, the best first."""

    def __init__(self, ctx: Context, job: JobState, sources: Callable[[int], Iterable[PeerId]]) -> None:
        self._ctx = ctx
        self._job = job
        self._sources = sources
        self._waiting: dict[Part, set[int]] = {}
        """Parts that are not here, and the shards that need them."""
        self._missing: dict[int, int] = {}
        """By shard that is to be held: how many of its parts are not here."""
        self._failed: set[Part] = set()
        self._retry_at: Millis | None = None
        self._pause_ms: Millis = limits.FETCH_RETRY_MS

    @property
    def deadline(self) -> Millis | None:
        return self._retry_at

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is here."""
        return not self._waiting

    def shards(self) -> list[int]:
        """Those that are to be held."""
        return sorted(self._missing)

    def holds(self, shard: int) -> bool:
        """Whether the shard is to be held."""
        return shard in self._missing

    def has(self, shard: int) -> bool:
        """Whether all inputs of a shard are here."""
        return self._missing.get(shard) == 0

    def take(self, shard: int) -> bool:
        """Hold a shard's inputs from now on. True: they are all here already."""
        if shard in self._missing:
            return self.has(shard)
        parts = self._job.spec.shard_parts(shard)
        lacking = [part for part in parts if not self._ctx.has(part)]
        self._missing[shard] = len(lacking)
        for part in parts:
            self._ctx.pin(part.blob, self._owner(shard))
        for part in lacking:
            self._wait(part, shard)
        return not lacking

    def drop(self, shard: int) -> None:
        """This node does not hold the shard any more."""
        if self._missing.pop(shard, None) is None:
            return
        for part in self._job.spec.shard_parts(shard):
            waiting = self._waiting.get(part)
            if waiting is not None:
                waiting.discard(shard)
                if not waiting:
                    del self._waiting[part]
                    self._failed.discard(part)
        self._ctx.unpin_owner(self._owner(shard))

    def close(self) -> None:
        for shard in self.shards():
            self.drop(shard)
        self._retry_at = None

    def ready(self, part: Part) -> list[int]:
        """A part is here. Returns the shards that have all of theirs now."""
        self._failed.discard(part)
        shards = sorted(self._waiting.pop(part, ()))
        for shard in shards:
            self._missing[shard] -= 1
        if shards:
            self._pause_ms = limits.FETCH_RETRY_MS
        return [shard for shard in shards if self._missing[shard] == 0]

    def failed(self, part: Part) -> None:
        """No source gave it."""
        if part in self._waiting:
            self._failed.add(part)
            self._retry_at = self._retry_at or self._ctx.now + self._pause_ms

    def retry_now(self) -> None:
        """A source has come back."""
        if self._failed:
            self._retry_at = self._ctx.now

    def tick(self) -> None:
        if self._retry_at is None or self._retry_at > self._ctx.now:
            return
        self._retry_at = None
        self._pause_ms = min(2 * self._pause_ms, limits.FETCH_RETRY_MAX_MS)
        failed, self._failed = sorted(self._failed), set()
        for part in failed:
            self._fetch(part, min(self._waiting[part]))

    def _wait(self, part: Part, shard: int) -> None:
        waiting = self._waiting.setdefault(part, set())
        waiting.add(shard)
        if len(waiting) == 1:
            self._fetch(part, shard)

    def _fetch(self, part: Part, shard: int) -> None:
        self._ctx.fetch(part, self._owner(shard), self._sources(shard))

    def _owner(self, shard: int) -> Owner:
        return INPUTS_ROLE, self._job.job, shard
