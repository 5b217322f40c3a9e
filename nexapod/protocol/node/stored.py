"""Which records the machines of each job have in the store, so that none outlives what it was kept for.

The machines save as they go, thousands of records for a large job; when the job is over nobody could tell them from
others' without this list.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TypeAlias

from nexapod.protocol.events import Effect, Save
from nexapod.protocol.node.recovery import MACHINES, machine_of
from nexapod.protocol.primitives import JobId
from nexapod.protocol.records import Record

Name: TypeAlias = tuple[str, bytes]


class Stored:
    """By job: the kind and key of each record of its machines."""

    def __init__(self, archived: Container[str] = ()) -> None:
        self._archived = archived
        """Kinds that can be found again without this list."""
        self._names: dict[JobId, dict[Name, None]] = {}
        self._over: dict[JobId, bool] = {}

    def note(self, record: Record) -> None:
        """A record that is saved, deleted, or was there when the process began."""
        if machine_of(record) not in MACHINES or len(record.key) < 32 or record.kind in self._archived:
            return
        job = JobId(record.key[:32])
        if record.value is not None:
            self._names.setdefault(job, {})[record.kind, record.key] = None
        elif job in self._names:
            self._names[job].pop((record.kind, record.key), None)

    def job_over(self, job: JobId, *, submission: bool) -> None:
        """Nothing of the job's machines is kept from now on. `submission`: but what its submission keeps."""
        self._over[job] = submission

    def follow(self, effects: Iterable[Effect]) -> list[Save]:
        """The saves of one call, in their order. Returns the deletions that follow from what is over."""
        for effect in effects:
            if isinstance(effect, Save):
                self.note(effect.record)
        over, self._over = self._over, {}
        return [Save(record) for job, submission in over.items() for record in self._drop(job, submission=submission)]

    def _drop(self, job: JobId, *, submission: bool) -> list[Record]:
        names = self._names.pop(job, {})
        kept = {name: None for name in names if submission and name[0].startswith("submission")}
        if kept:
            self._names[job] = kept
        return [Record(kind, key, None) for kind, key in names if (kind, key) not in kept]
