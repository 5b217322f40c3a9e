"""The inputs that a steward holds for a shard's tasks: asked for again and again until all are there.

Of a split file they are the shard's part only, so that a large file is spread over its stewards.
"""

from __future__ import annotations

from nexapod.protocol import limits
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.messages import Placed
from nexapod.protocol.statements import Statement
from nexapod.protocol.types import JobId, JobSpec, Millis, Part, PeerId


class Inputs:
    """Those of one shard, at one steward, which tells the submitter once it holds them all."""

    def __init__(self, ctx: Context, statement: Statement, shard: int, owner: Owner) -> None:
        self.missing: set[Part] = set()
        self.retry_at: Millis | None = None
        self._ctx = ctx
        self._statement = statement
        self._shard = shard
        self._owner = owner
        self._taken = False

    @property
    def placed(self) -> bool:
        """They are all here."""
        return self._taken and not self.missing

    def take(self, stewards: tuple[PeerId, ...]) -> None:
        """Bring them here: the submitter has them, and so may the other stewards."""
        spec: JobSpec = self._statement.body
        self._taken = True
        self.missing = set(spec.shard_parts(self._shard))
        self.fetch(stewards)
        if not self.missing:
            self.say_placed()

    def fetch(self, stewards: tuple[PeerId, ...]) -> None:
        self.retry_at = None
        for part in sorted(self.missing):
            self._ctx.fetch(part, self._owner, [self._statement.author, *stewards])

    def ready(self, part: Part) -> None:
        if part in self.missing:
            self.missing.discard(part)
            if not self.missing:
                self.say_placed()

    def failed(self, part: Part) -> None:
        if part in self.missing:
            self.retry_at = self._ctx.now + limits.FETCH_RETRY_MS

    def say_placed(self) -> None:
        self._ctx.send(self._statement.author, Placed(JobId(self._statement.id), self._shard))
