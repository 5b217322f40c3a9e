"""Whose fault it is that a task could not be run here, and who rests for it. Knows no messages.

A machine cannot look into a job. What it can tell: a job that has run here before and now does not is this machine's
trouble; one that never has, or that asks for another machine itself, is the job's, and is charged to the job and to its
author. So no job, and no author with many jobs, can keep a machine from other work.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from nexapod.protocol.primitives import JobId, Millis, PeerId, TaskId
from nexapod.protocol.runs import EXIT_TRY_ELSEWHERE, RunResult
from nexapod.protocol.tables import TableReport

ROW_MAX: Final = 5
"""After so many failures in a row, with no result between them, whoever is at fault rests."""
AUTHOR_ROW_MAX: Final = 15
"""As ROW_MAX, of all the jobs of one author together."""
REST_MS: Final = 60_000
START_TRIES_MAX: Final = 2
"""A task that so often did not even start here has failed, as far as this machine can tell: trying again for ever would
say nothing to anybody."""
TRIES_MAX: Final = 5
"""As START_TRIES_MAX, of one that started."""
AUTHORS_MAX: Final = 256


Fault: TypeAlias = Literal["machine", "job"]


@dataclass(frozen=True, slots=True)
class TryElsewhere:
    """Give the task back: others go first for a while."""

    fault: Fault


@dataclass(frozen=True, slots=True)
class ItFailed:
    """It cannot be run: that is its result."""

    reason: str


Blame: TypeAlias = TryElsewhere | ItFailed


@dataclass(slots=True)
class _Row:
    """Failures since the last result, and until when their author or job rests for them."""

    failures: int = 0
    rest_until: Millis = 0

    def fail(self, most: int, now: Millis) -> None:
        self.failures += 1
        if self.failures >= most:
            self.failures, self.rest_until = 0, now + REST_MS


@dataclass(slots=True)
class _JobRecord:
    row: _Row = field(default_factory=_Row)
    ran: bool = False
    tries: dict[int, int] = field(default_factory=dict)
    unstartable: bool = False
    """A task of it was given up as one that does not start."""


class Health:
    """What has gone wrong here of late."""

    def __init__(self) -> None:
        self._jobs: dict[JobId, _JobRecord] = {}
        self._authors: OrderedDict[PeerId, _Row] = OrderedDict()
        self._machine: list[PeerId] = []
        self.machine_rests_until: Millis = 0
        self._last_rest_until: Millis = 0
        """Of all jobs and authors: mostly none rests, and whoever goes through all jobs need not ask for each."""

    def succeeded(self, job: JobId, author: PeerId) -> None:
        """A task has ended with a result, whatever it is."""
        record = self._jobs.setdefault(job, _JobRecord())
        record.ran, record.row.failures = True, 0
        self._machine = []
        if author in self._authors:
            self._authors[author].failures = 0

    def failed(self, task: TaskId, author: PeerId, result: RunResult, now: Millis, *, alone: bool) -> Blame:
        """A task could not be run. `alone`: no other submitter has work for this machine."""
        record = self._jobs.setdefault(task.job, _JobRecord())
        if record.ran and result.exit != EXIT_TRY_ELSEWHERE:
            self._charge_machine(author, now, alone)
            return TryElsewhere("machine")
        return self._charge_job(record, task, author, result, now)

    def inputs_missing(self, job: JobId, now: Millis) -> None:
        """Nobody gave the inputs of a job for long."""
        self._jobs.setdefault(job, _JobRecord()).row.rest_until = now + REST_MS
        self._last_rest_until = now + REST_MS

    def table(self) -> TableReport:
        return TableReport("authors whose tasks failed here", len(self._authors), AUTHORS_MAX)

    def any_rests(self, now: Millis) -> bool:
        """Whether any job or author may rest now."""
        return self._last_rest_until > now

    def rests_until(self, job: JobId, author: PeerId) -> Millis:
        """When a job may be worked on again; in the past: now."""
        record, row = self._jobs.get(job), self._authors.get(author)
        return max(record.row.rest_until if record else 0, row.rest_until if row else 0)

    def forget_job(self, job: JobId) -> None:
        """The job is over. Its author's record stays."""
        self._jobs.pop(job, None)

    def _charge_machine(self, author: PeerId, now: Millis, alone: bool) -> None:
        self._machine.append(author)
        # One author's jobs alone do not stop the machine for others, however well they once ran.
        if len(self._machine) >= ROW_MAX and (alone or len(set(self._machine)) > 1):
            self._machine, self.machine_rests_until = [], now + REST_MS
        del self._machine[:-ROW_MAX]

    def _charge_job(self, record: _JobRecord, task: TaskId, author: PeerId, result: RunResult, now: Millis) -> Blame:
        row = self._author(author)
        record.row.fail(ROW_MAX, now)
        row.fail(AUTHOR_ROW_MAX, now)
        self._last_rest_until = max(self._last_rest_until, record.row.rest_until, row.rest_until)
        tries = record.tries[task.index] = record.tries.get(task.index, 0) + 1
        starts = result.usage.wall_ms > 0 or result.exit == EXIT_TRY_ELSEWHERE
        if tries < (TRIES_MAX if starts else START_TRIES_MAX) and (starts or not record.unstartable):
            return TryElsewhere("job")
        record.unstartable = record.unstartable or not starts
        del record.tries[task.index]
        return ItFailed(f"it could not be run: {result.reason or f'exit status {result.exit}'}")

    def _author(self, author: PeerId) -> _Row:
        row = self._authors.setdefault(author, _Row())
        self._authors.move_to_end(author)
        if len(self._authors) > AUTHORS_MAX:
            self._authors.popitem(last=False)
        return row
