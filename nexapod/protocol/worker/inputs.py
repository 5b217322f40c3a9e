"""The inputs of the jobs whose tasks were granted here: fetched ahead, tried again, pinned until the job is over.

Of a split file the driver fetches a task's own piece: where it lies is written in the split's index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.primitives import JobId, Millis, Part
from nexapod.protocol.timers import Timers
from nexapod.protocol.types import JobSpec
from nexapod.protocol.worker.prospects import Prospect

FAILURES_MAX: Final = 5
"""After so many attempts in a row that brought nothing, a job's tasks are given back."""


def parts_of(spec: JobSpec) -> tuple[Part, ...]:
    """What every task of a job needs, without repetition."""
    named = [spec.run.module, spec.params, *spec.run.image_blobs, *(file.blob for file in spec.inputs)]
    return tuple(dict.fromkeys(Part.whole(ref) for ref in named if ref is not None))


def owner_of(job: JobId) -> Owner:
    return ("worker", job, 0)


@dataclass(slots=True)
class _Wanted:
    prospect: Prospect
    shard: int
    parts: tuple[Part, ...]
    failures: int = 0


class Inputs:
    """Bounded by the jobs that tasks are held of."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._wanted: dict[JobId, _Wanted] = {}
        self._retries = Timers()

    @property
    def deadline(self) -> Millis | None:
        return self._retries.next

    def tick(self) -> None:
        while (due := self._retries.pop_due(self._ctx.now)) is not None:
            for wanted in [w for w in self._wanted.values() if w.prospect.job == due]:
                self._fetch(wanted)

    def want(self, prospect: Prospect, shard: int) -> None:
        """A task of this shard was granted: bring what it needs, if that has not begun."""
        if prospect.job not in self._wanted:
            wanted = self._wanted[prospect.job] = _Wanted(prospect, shard, parts_of(prospect.spec))
            self._fetch(wanted)

    def are_here(self, prospect: Prospect) -> bool:
        """Whether a task of the job may begin."""
        wanted = self._wanted.get(prospect.job)
        return wanted is not None and not self._missing(wanted)

    def ready(self, part: Part) -> bool:
        """A blob has come. Whether a task may have waited for it."""
        awaited = [wanted for wanted in self._wanted.values() if part in wanted.parts]
        for wanted in awaited:
            wanted.failures = 0
        return bool(awaited)

    def failed(self, part: Part) -> list[JobId]:
        """No source gave it. It is tried again; of the jobs returned it has been for too long."""
        hopeless = []
        for job, wanted in self._wanted.items():
            if part in wanted.parts and job not in self._retries:
                wanted.failures += 1
                wait_ms = min(limits.FETCH_RETRY_MS << min(wanted.failures - 1, 8), limits.FETCH_RETRY_MAX_MS)
                self._retries.set(job, self._ctx.now + wait_ms)
                if wanted.failures >= FAILURES_MAX:
                    hopeless.append(job)
        return hopeless

    def forget_job(self, job: JobId) -> None:
        """The job is over, or left alone."""
        if self._wanted.pop(job, None) is not None:
            self._retries.set(job, None)
            self._ctx.unpin_owner(owner_of(job))

    def _missing(self, wanted: _Wanted) -> list[Part]:
        return [part for part in wanted.parts if not self._ctx.has(part)]

    def _fetch(self, wanted: _Wanted) -> None:
        for part in wanted.parts:
            self._ctx.pin(part.blob, owner_of(wanted.prospect.job))
        sources = wanted.prospect.sources(wanted.shard)
        for part in self._missing(wanted):
            self._ctx.fetch(part, owner_of(wanted.prospect.job), sources)
