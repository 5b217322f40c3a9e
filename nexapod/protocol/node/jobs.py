"""The jobs that a node knows: those that are open, those that have ended, and how long each is kept.

Bounds the table, for all jobs and for each author, and keeps what counts of each in the store. A job that others may
not work on yet (docs/protocol.md, Placing) and that this node has no part in is not kept: it is only held while one
message is read. Retention counts the time during which this node ran, since no clock of a machine that was off can be
relied on. Sends nothing and runs no machine: lifecycle.py does.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.node.recovery import AGE_RECORD, ENDED_RECORD, JOB_RECORD
from nexapod.protocol.primitives import JobId, Millis, PeerId, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.tables import TableReport, longest
from nexapod.protocol.wire.statements import Statement


@dataclass(slots=True)
class Known:
    """An open job. `since`: when it was first known here; earlier processes count for as long as they ran."""

    state: JobState
    since: Millis
    source: PeerId
    """The link that it came on."""
    engaged: bool = False
    """This node has a part in it beyond passing it on: it makes no room for another."""
    saved: dict[StatementId, None] = field(default_factory=dict)
    orphans: dict[StatementId, tuple[Statement, PeerId]] = field(default_factory=dict)
    """Statements that answer something unknown, and who sent them; the oldest make room."""

    @property
    def until(self) -> Millis:
        return self.since + self.state.spec.retention_ms


class Jobs:
    """The table. What it keeps in the store it keeps by itself."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._open: dict[JobId, Known] = {}
        self._ids: list[StatementId] = []
        """Of the open jobs that are kept, sorted: the set that peers compare."""
        self._by_author: dict[PeerId, dict[JobId, None]] = {}
        self._held: dict[JobId, Known] = {}
        """Jobs of the message that is being read, which are not kept yet."""
        self._archive: dict[JobId, Known] = {}
        """Jobs of this node's user that have ended, until their time is up."""
        self._ended: dict[JobId, bytes] = {}
        """In the order in which they ended: the envelope of the closing statement, or nothing."""
        self._ended_count = 0

    # --- reading ---------------------------------------------------------------------------------------------------
    def get(self, job: JobId) -> Known | None:
        """An open job."""
        return self._open.get(job) or self._held.get(job)

    def has_ended(self, job: JobId) -> bool:
        return job in self._ended

    def closing(self, job: JobId) -> bytes:
        """The envelope of the statement that ended it; nothing when it was not ended by one."""
        return self._ended.get(job, b"")

    def open(self) -> Iterator[tuple[JobId, Known]]:
        """In a fixed order: that of their ids."""
        return ((JobId(id), self._open[JobId(id)]) for id in self._ids)

    def ids(self) -> list[StatementId]:
        """The open jobs' ids, sorted. Not to be changed."""
        return self._ids

    def __len__(self) -> int:
        return len(self._open)

    def tables(self) -> tuple[TableReport, ...]:
        others = (jobs for author, jobs in self._by_author.items() if author != self._ctx.me)
        return (
            TableReport("open jobs", len(self._open), limits.JOBS_MAX),
            TableReport("open jobs of an author", longest(others), limits.JOBS_PER_AUTHOR_MAX),
            TableReport("own jobs that have ended", len(self._archive), limits.JOBS_MAX),
            TableReport("ended jobs", len(self._ended), limits.JOBS_MAX),
        )

    # --- beginning -------------------------------------------------------------------------------------------------
    def hold(self, state: JobState, source: PeerId, age: Millis = 0) -> Known:
        """A job that may be worth keeping: `keep` or `release` follows."""
        known = self._held[state.job] = Known(state, self._ctx.now - age, source)
        return known

    def release(self, job: JobId) -> None:
        """It is not worth keeping after all."""
        self._held.pop(job, None)

    def held(self) -> list[JobId]:
        return list(self._held)

    def keep(self, job: JobId, *, engaged: bool) -> JobId | None:
        """Keep a job that was held, and all that counts of it. Returns the job that makes room, to be dropped first.

        Raises KeyError for one that is not held. `room` tells beforehand whether there is any.
        """
        known = self._held.pop(job)
        known.engaged = engaged
        leaving = self._displaced(known.state.submitter) if len(self._open) >= limits.JOBS_MAX else None
        self._open[job] = known
        insort(self._ids, StatementId(job))
        self._by_author.setdefault(known.state.submitter, {})[job] = None
        return leaving

    def room(self, author: PeerId) -> bool:
        """Whether one more job of this author may be kept."""
        if author == self._ctx.me and len(self._archive) + len(self._by_author.get(author, ())) >= limits.JOBS_MAX:
            return False
        if author != self._ctx.me and len(self._by_author.get(author, ())) >= limits.JOBS_PER_AUTHOR_MAX:
            return False
        return len(self._open) < limits.JOBS_MAX or self._displaced(author) is not None

    def _displaced(self, author: PeerId) -> JobId | None:
        """Who makes room in a full table: the oldest idle job of the author that has most, if that is not this one."""
        most = max(self._by_author, key=lambda name: (len(self._by_author[name]), name))
        if most == author:
            return None
        return next((job for job in self._by_author[most] if not self._open[job].engaged), None)

    # --- what counts -----------------------------------------------------------------------------------------------
    def save(self, known: Known, statement: Statement) -> None:
        """A statement of the job counts: it outlives this process."""
        known.saved[statement.id] = None
        self._ctx.save(Record(JOB_RECORD, known.state.job + statement.id, statement.envelope))

    def save_all(self, known: Known) -> None:
        """Everything that counts of a job that is kept from now on."""
        for statement in known.state.statements():
            self.save(known, statement)

    def restored(self, known: Known, statement: Statement) -> None:
        """It is in the store already."""
        known.saved[statement.id] = None

    def set_orphan(self, known: Known, statement: Statement, sender: PeerId) -> None:
        """Keep a statement that came before what it answers."""
        known.orphans.pop(statement.id, None)
        known.orphans[statement.id] = (statement, sender)
        while len(known.orphans) > limits.PENDING_MAX:
            del known.orphans[next(iter(known.orphans))]

    # --- ending ----------------------------------------------------------------------------------------------------
    def drop(self, job: JobId) -> Known | None:
        """It is not known here any more, and may be learned again."""
        if job not in self._open:
            return None
        known = self._forget_open(job)
        self._unsave(known)
        return known

    def _forget_open(self, job: JobId) -> Known:
        known = self._open.pop(job)
        del self._ids[bisect_left(self._ids, StatementId(job))]
        others = self._by_author[known.state.submitter]
        del others[job]
        if not others:
            del self._by_author[known.state.submitter]
        return known

    def _unsave(self, known: Known) -> None:
        job = known.state.job
        for id in known.saved:
            self._ctx.save(Record(JOB_RECORD, job + id, None))
        self._ctx.save(Record(AGE_RECORD, bytes(job), None))

    def archive(self, job: JobId, closing: bytes) -> None:
        """A job of this node's user is over: what counts of it stays in the store until its time is up."""
        self._archive[job] = self._forget_open(job)
        self._mark_ended(job, closing)

    def archived(self, job: JobId) -> Known | None:
        return self._archive.get(job)

    def restore_archived(self, job: JobId) -> Known:
        """A job that was held had been archived by a former process."""
        known = self._archive[job] = self._held.pop(job)
        return known

    def expire(self, job: JobId) -> None:
        """The time of an archived job is up."""
        known = self._archive.pop(job, None)
        if known is not None:
            self._unsave(known)

    def end(self, job: JobId, closing: bytes) -> Known | None:
        """It is over, by a closing statement or because its time is up (nothing): it is never taken up again."""
        known = self.drop(job)
        self._mark_ended(job, closing)
        return known

    def _mark_ended(self, job: JobId, closing: bytes) -> None:
        self._remember_ended(job, closing, self._ended_count + 1)
        self._ctx.save(Record(ENDED_RECORD, bytes(job), self._ended_count.to_bytes(8, "big") + closing))

    def restore_ended(self, job: JobId, closing: bytes, order: int) -> None:
        """A former process saw it end. `order` rises with each."""
        self._remember_ended(job, closing, order)

    def _remember_ended(self, job: JobId, closing: bytes, order: int) -> None:
        if len(self._ended) >= limits.JOBS_MAX and job not in self._ended:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            self._ctx.save(Record(ENDED_RECORD, bytes(oldest), None))
        self._ended_count = max(self._ended_count, order)
        self._ended[job] = closing

    # --- time ------------------------------------------------------------------------------------------------------
    def save_ages(self) -> None:
        """What passes until the next time is lost with a restart."""
        for job, known in self.open():
            age = self._ctx.now - known.since
            self._ctx.save(Record(AGE_RECORD, bytes(job), age.to_bytes(8, "big")))
