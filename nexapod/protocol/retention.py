"""How long a node has known its jobs, and which it has forgotten: kept across restarts, so that each ends one day.

Counts the time during which this node ran: no clock of a machine that was off can be relied on. Bookkeeping without
timers or messages: node.py says when a job's time is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.records import Record
from nexapod.protocol.types import JobId, Millis

AGE_RECORD = "age"
FORGOTTEN_RECORD = "forgotten"
AGE_SAVE_MS = 600_000


class Retention:
    """Ages and endings of jobs. `records`: what a former process of this node had saved."""

    def __init__(self, ctx: Context, records: Iterable[Record]) -> None:
        self._ctx = ctx
        self._ages: dict[JobId, Millis] = {}
        self._forgotten: set[JobId] = set()
        """Another peer that heard of them later must not bring them back."""
        for record in records:
            if record.kind == AGE_RECORD and record.value is not None:
                self._ages[JobId(record.key)] = int.from_bytes(record.value, "big")
            elif record.kind == FORGOTTEN_RECORD and record.value is not None:
                self._forgotten.add(JobId(record.key))

    def is_over(self, job: JobId) -> bool:
        return job in self._forgotten

    def age(self, job: JobId) -> Millis:
        """For how long earlier processes of this node have known it."""
        return self._ages.pop(job, 0)

    def save(self, since: Mapping[JobId, Millis]) -> None:
        """`since`: when each job was first heard of. What passes until the next time is lost with a restart."""
        for job, when in since.items():
            self._ctx.save_record(Record(AGE_RECORD, bytes(job), (self._ctx.now - when).to_bytes(8, "big")))

    def end(self, job: JobId) -> None:
        """Its time is over: it is not to be taken up again."""
        self._ctx.save_record(Record(AGE_RECORD, bytes(job), None))
        if len(self._forgotten) >= limits.JOBS_MAX:
            for old in sorted(self._forgotten):
                self._ctx.save_record(Record(FORGOTTEN_RECORD, bytes(old), None))
            self._forgotten.clear()
        self._forgotten.add(job)
        self._ctx.save_record(Record(FORGOTTEN_RECORD, bytes(job), b""))
