"""Checks a certificate from its bytes alone, reading them once (docs/protocol.md, 8).

What is about the whole job stays in memory, the evidence of one shard at a time: a certificate of a million tasks takes
no more of it than one of a few. Any bytes give a report. It takes nobody's word but that signatures hold: the seats
of every epoch, admissions, freezes and judgements are worked out again by the rules that every peer uses.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Container
from typing import Final, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.certificate.build import EvidenceDigest
from nexapod.protocol.certificate.framing import Damaged, FileReader, Read
from nexapod.protocol.certificate.report import Pins, Report, TaskReport
from nexapod.protocol.certificate.shards import admitted, task_reports
from nexapod.protocol.certificate.tally import Problems, Tally
from nexapod.protocol.errors import PeerError
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import StatementId
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.bodies import Settlement
from nexapod.protocol.wire.statements import Kind, Statement, Verify

OnTask: TypeAlias = Callable[[TaskReport], None]
JOB_KINDS: Final[frozenset[Kind]] = frozenset(
    ("placed", "renewal", "succession", "admission", "beacon", "adoption", "fault")
)
SHARD_KINDS: Final[frozenset[Kind]] = frozenset(("checkpoint", "commit", "freeze", "reveal", "verdict"))
JOB_STATEMENTS_MAX: Final = 1 << 18
"""More statements about the whole job are not read: successions and adoptions of every shard, admissions of all."""
SHARD_STATEMENTS_MAX: Final = 1 << 16
"""... nor about one shard: REPLICAS_MAX commits and reveals of each task, alone, and as many rounds."""


def check(
    read: Read,
    verify: Verify,
    pins: Pins | None = None,
    on_task: OnTask | None = None,
) -> Report:
    """Read a certificate to its end. `read` as a file's; what it raises is raised. `on_task`: told of each task that is
    decided, ascending, before it is known whether the rest of the file holds."""
    given = pins or Pins()
    checker = Checker(verify, Pins(given.submitter, frozenset(given.known), given.strict), on_task)
    file = FileReader(read)
    try:
        for envelope in file.envelopes():
            checker.take(envelope)
    except Damaged as damage:
        checker.problems.add(str(damage))
    else:
        checker.finish()
    return checker.report(file.size)


def check_bytes(data: bytes, verify: Verify, pins: Pins | None = None, on_task: OnTask | None = None) -> Report:
    """The same, of bytes that are in memory."""
    return check(io.BytesIO(data).read, verify, pins, on_task)


class Checker:
    """One pass over the statements of a file. The order is part of the format: job, job-level, shards, settlement."""

    def __init__(self, verify: Verify, pins: Pins, on_task: OnTask | None) -> None:
        self.problems = Problems()
        self._verify = verify
        self._pins = pins
        self._on_task = on_task
        self._tally = Tally(pins)
        self._digest = EvidenceDigest()
        self._ids: set[StatementId] = set()
        """Of the part that is being read."""
        self._statements = 0
        self._job: JobState | None = None
        self._shard: ShardEvidence | None = None
        self._next_shard = 0
        self._settlement: Statement | None = None

    # --- what is read ----------------------------------------------------------------------------------------------
    def take(self, envelope: bytes) -> None:
        """The next statement of the file."""
        self._statements += 1
        try:
            statement = statements.decode(envelope, self._verify)
        except PeerError as error:
            self.problems.add(f"statement {self._statements} is not valid: {error}")
            return
        if self._settlement is not None:
            self.problems.add(f"{_named(statement)} follows the settlement, which is the last")
        elif self._job is None:
            self._begin(statement)
        else:
            self._take_of(self._job, statement)

    def _begin(self, statement: Statement) -> None:
        if statement.kind != "job":
            self.problems.add(f"{_named(statement)} is not preceded by its job, which is the first")
            return
        try:
            self._job = JobState(statement, self._verify)
        except PeerError as error:
            self.problems.add(f"the job is not valid: {error}")
        else:
            self._ids.add(statement.id)

    def _take_of(self, job: JobState, statement: Statement) -> None:
        if statement.kind != "job" and getattr(statement.body, "job", None) != job.job:
            self.problems.add(f"{_named(statement)} does not belong to this job")
        elif statement.kind == "settlement":
            self._settlement = statement
        elif statement.kind in JOB_KINDS:
            self._take_job_level(job, statement)
        elif statement.kind in SHARD_KINDS:
            self._take_shard_level(job, statement)
        else:
            self.problems.add(f"{_named(statement)} has no place in a certificate")

    def _take_job_level(self, job: JobState, statement: Statement) -> None:
        if self._shard is not None:
            self.problems.add(f"{_named(statement)} stands after the evidence of a shard")
        elif self._is_one_more(statement, JOB_STATEMENTS_MAX):
            # One of an earlier epoch counts only once its adoption, which follows it, is here.
            self._add(statement, job.add, ("new", "proposal"))

    def _take_shard_level(self, job: JobState, statement: Statement) -> None:
        shard = _shard_of(statement)
        current = self._next_shard - 1
        if shard >= job.spec.shards or shard < current:
            self.problems.add(f"{_named(statement)} is about shard {shard}, and does not stand there")
            return
        if shard > current:
            self._open_shard(job, shard)
        assert self._shard is not None
        if self._is_one_more(statement, SHARD_STATEMENTS_MAX):
            self._add(statement, self._shard.add, ("new",))

    def _is_one_more(self, statement: Statement, most: int) -> bool:
        if statement.id in self._ids:
            self.problems.add(f"{_named(statement)} stands there twice")
            return False
        if len(self._ids) >= most:
            self.problems.add(f"{_named(statement)} is one of more than {most} statements of one part")
            return False
        self._ids.add(statement.id)
        return True

    def _add(self, statement: Statement, add: Callable[[Statement], object], fine: Container[object]) -> None:
        try:
            added = add(statement)
        except PeerError as error:
            self.problems.add(f"{_named(statement)}: {error}")
            return
        if added not in fine:
            self.problems.add(f"{_named(statement)} {_REFUSED.get(added, 'contradicts another of its author')}")

    # --- one part after another ------------------------------------------------------------------------------------
    def _open_shard(self, job: JobState, shard: int) -> None:
        """Begin to read a shard; those before it are at their end, with what there is of them."""
        while self._next_shard <= shard:
            self._close_part(job)
            self._shard = ShardEvidence(job, self._next_shard)
            self._next_shard += 1

    def _close_part(self, job: JobState) -> None:
        self._digest.add_part(self._ids)
        if self._shard is not None and self._ids:
            self._judge(job, self._shard)
        elif self._shard is not None:
            self.problems.add(f"shard {self._next_shard - 1}: the certificate holds no evidence of its tasks")
        else:
            self._check_counting(job)
        self._ids = set()

    def _check_counting(self, job: JobState) -> None:
        """Nothing about the whole job is here that does not count in the end."""
        counting = {statement.id for statement in job.statements()}
        for id in sorted(self._ids - counting):
            self.problems.add(f"statement {id.hex()[:12]} about the job does not count: {_REFUSED['proposal']}")

    def _judge(self, job: JobState, shard: ShardEvidence) -> None:
        for task in task_reports(job, shard, self.problems.add):
            self._tally.add(task, admitted(job, task))
            if self._on_task is not None:
                self._on_task(task)

    # --- the end ---------------------------------------------------------------------------------------------------
    def finish(self) -> None:
        """Close the last part, and compare everything with what the settlement says."""
        if self._job is None:
            self.problems.add("the file holds no job")
            return
        self._open_shard(self._job, self._job.spec.shards - 1)
        self._close_part(self._job)
        self._check_job(self._job)
        self._check_pins(self._job)

    def _check_job(self, job: JobState) -> None:
        if not job.workable:
            self.problems.add("too few members of the panel have signed that they hold the job")
        if self._settlement is None:
            self.problems.add("the job's settlement is missing")
            return
        body: Settlement = self._settlement.body
        if self._settlement.author not in (job.submitter, job.spec.delegate):
            self.problems.add("the settlement is not signed by the job's submitter or its delegate")
        if body.evidence != self._digest.digest():
            self.problems.add("statements were added or left out: they are not those that the settlement signs for")
        found = (self._tally.accepted, self._tally.failed)
        if found != (body.settled, body.failed):
            self.problems.add(
                f"the settlement counts {body.settled} accepted and {body.failed} failed tasks;"
                f" the evidence shows {found[0]} and {found[1]}"
            )
        for statement in job.caretakers():
            if statement.id not in body.ratified:
                self.problems.add(f"{_named(statement)} is by caretakers, and the settlement does not ratify it")

    def _check_pins(self, job: JobState) -> None:
        pins = self._pins
        if pins.submitter not in (None, job.submitter):
            self.problems.add(f"the job was submitted by {job.submitter}, not by {pins.submitter}")
        if pins.strict and pins.submitter is None:
            self.problems.add("nobody was named as the submitter, and the check is strict")
        strangers = self._tally.accepted + self._tally.failed - self._tally.known_judges
        if pins.strict and strangers:
            self.problems.add(f"of {strangers} verdicts no signer is known, and the check is strict")

    def report(self, size: int) -> Report:
        """What was found. Of a file that cannot be read to its end, only what precedes that is in it."""
        job, tally = self._job, self._tally
        if job is None:
            return Report(tuple(self.problems.kept), self.problems.more, self._pins, size=size)
        return Report(
            tuple(self.problems.kept),
            self.problems.more,
            self._pins,
            job.job,
            job.spec,
            job.submitter,
            None if self._settlement is None else self._settlement.author,
            tuple(job.members()),
            job.panel_epoch,
            tuple(sorted({statement.body.shard for statement in job.caretakers()})),
            tally.accepted,
            tally.failed,
            tuple(tally.failures),
            len(tally.workers),
            len(tally.groups),
            tally.known_judges,
            tally.executors.named(),
            tally.hardware.named(),
            tally.usage(),
            tuple(sorted(job.faults())),
            self._statements,
            size,
        )


_REFUSED: Final[dict[object, str]] = {
    "known": "adds nothing to what precedes it",
    "orphan": "answers a statement that does not precede it",
    "proposal": "it has too few signatures of those who may sign it, and is not adopted",
}


def _named(statement: Statement) -> str:
    return f"{statement.kind} {statement.id.hex()[:12]}"


def _shard_of(statement: Statement) -> int:
    if statement.kind == "checkpoint":
        return int(statement.body.task) // limits.SHARD_TASKS
    return int(statement.body.shard)
