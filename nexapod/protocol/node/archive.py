"""Reads back what this node has saved, for machines that do not keep all of it in memory.

The driver reads what is on disk; what the present call saves is not there yet, and is laid over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from nexapod.protocol.context import Context
from nexapod.protocol.events import Save
from nexapod.protocol.primitives import JobId
from nexapod.protocol.records import Record
from nexapod.protocol.submitter import records

ReadRecords: TypeAlias = Callable[[str, bytes], list[Record]]
"""(kind, the beginning of the keys) to the records on disk, sorted by key: all that earlier calls have saved."""
ARCHIVED: Final = frozenset((records.EVIDENCE,))
"""Kinds that need not be among the records that a node starts from, where it can read them back."""


class Archive:
    """The records of one node's own jobs."""

    def __init__(self, ctx: Context, read: ReadRecords) -> None:
        self._ctx = ctx
        self._read = read

    def records(self, kind: str, prefix: bytes) -> list[Record]:
        """Sorted by key."""
        found = {record.key: record for record in self._read(kind, prefix)}
        for effect in self._ctx.effects:
            if isinstance(effect, Save) and effect.record.kind == kind and effect.record.key.startswith(prefix):
                found[effect.record.key] = effect.record
        return [found[key] for key in sorted(found) if found[key].value is not None]

    def evidence(self, job: JobId, shard: int) -> list[bytes]:
        """The envelopes of a submission's evidence of a shard."""
        kept = self.records(records.EVIDENCE, records.shard_key(job, shard))
        return [record.value for record in kept if record.value is not None]
