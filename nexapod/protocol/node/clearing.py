"""Deletes what submissions have left on disk that nobody will ask about any more, a shard at a time.

A large job has more records than one call should delete. Which jobs are being cleared is on disk too, so that a crash
leaves nothing behind.
"""

from __future__ import annotations

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.node.archive import Archive
from nexapod.protocol.primitives import JobId, Millis
from nexapod.protocol.records import Record
from nexapod.protocol.submitter import records


class Clearing:
    """The jobs that are being cleared, one after the other."""

    def __init__(self, ctx: Context, archive: Archive) -> None:
        self._ctx = ctx
        self._archive = archive
        self._left: dict[JobId, int] = {}
        """By job: shards that may still have records."""
        self._at: Millis = ctx.now

    @property
    def deadline(self) -> Millis | None:
        return self._at if self._left else None

    def begin(self, job: JobId, shards: int) -> None:
        """Nothing of this job is needed from now on."""
        self._left[job] = shards
        self._ctx.save(Record(records.CLEARED, bytes(job), shards.to_bytes(4, "big")))

    def restore(self, record: Record) -> None:
        """A former process had begun."""
        self._left[JobId(record.key[:32])] = int.from_bytes(record.value or b"", "big")

    def tick(self) -> None:
        """Clear one shard, if it is time."""
        if not self._left or self._ctx.now < self._at:
            return
        self._at = self._ctx.now + limits.CLEAR_MS
        job = next(iter(self._left))
        self._left[job] -= 1
        for record in self._archive.records(records.EVIDENCE, records.shard_key(job, max(0, self._left[job]))):
            self._ctx.save(Record(record.kind, record.key, None))
        if self._left[job] <= 0:
            del self._left[job]
            self._ctx.save(Record(records.CLEARED, bytes(job), None))
