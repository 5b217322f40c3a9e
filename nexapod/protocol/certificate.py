"""A job's certificate: everything that proves its results, in one file that needs no network (docs/protocol.md).

    "NEXAPOD-CERTIFICATE-1\\n" + msgpack([envelope, ...]) + sha2-256 of all that precedes it

The first statement is the job, the last its settlement, and between them the bids, commits, reveals, verdicts and
faults of its tasks, each before those that answer it. The settlement signs the set of all the others, so nothing can be
added or left out; checking repeats all of the arithmetic that stewards and submitter did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nexapod.protocol import codec
from nexapod.protocol.errors import PeerError
from nexapod.protocol.limits import SHARD_TASKS
from nexapod.protocol.quorum import Accepted, Result, judge
from nexapod.protocol.shard import Contradiction, ShardState, TaskFile, shard_of
from nexapod.protocol.statements import Settlement, Statement, Verdict, Verify, decode
from nexapod.protocol.types import Digest, File, JobId, JobSpec, PeerId

MAGIC = b"NEXAPOD-CERTIFICATE-1\n"
CERTIFICATE_BYTES_MAX = 1 << 30
PROBLEMS_MAX = 50


@dataclass(frozen=True, slots=True)
class Replica:
    """One worker's part in a task."""

    worker: PeerId
    outcome: str
    exit: int
    root: Digest
    agreed: bool
    wall_ms: int
    cpu_ms: int
    hardware: str


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What the certificate says of one task."""

    index: int
    outcome: str
    root: Digest
    outputs: tuple[File, ...]
    replicas: tuple[Replica, ...]
    judges: tuple[PeerId, ...]
    """The stewards that signed this verdict."""
    stewards: int
    """How many stewards the task had."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found. `ok` only when `problems` is empty."""

    problems: tuple[str, ...]
    job: JobId | None = None
    spec: JobSpec | None = None
    submitter: PeerId | None = None
    statements: int = 0
    tasks: tuple[TaskReport, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


def evidence_digest(statements: Iterable[Statement]) -> Digest:
    """What a settlement signs: sha2-256 over the sorted ids of every other statement of the certificate."""
    return Digest(hashlib.sha256(b"".join(sorted({s.id for s in statements}))).digest())


def build(job: Statement, evidence: Sequence[Statement], settlement: Statement) -> bytes:
    """The bytes of a certificate. `evidence` in order; repetitions are left out."""
    unique = list({s.id: s for s in [job, *evidence, settlement]}.values())
    content = MAGIC + codec.pack([s.envelope for s in unique])
    return content + hashlib.sha256(content).digest()


def check(data: bytes, verify: Verify) -> Report:
    """Check a certificate from its bytes alone. Total: any bytes give a Report."""
    try:
        envelopes = _open(data)
    except PeerError as error:
        return Report((error.detail,))
    problems = (
        [] if hashlib.sha256(data[:-32]).digest() == data[-32:] else ["the file is damaged: its checksum differs"]
    )
    statements = _decode_all(envelopes, verify, problems)
    if not statements or statements[0].kind != "job" or statements[-1].kind != "settlement":
        problems.append("it does not begin with a job and end with the job's settlement")
        return Report(tuple(problems[:PROBLEMS_MAX]))
    return _check_job(statements, problems)


def _open(data: bytes) -> list[bytes]:
    if not data.startswith(MAGIC):
        raise PeerError("bad-certificate", "this is not a NEXAPod certificate (its first line is not that of one)")
    raw = None
    if len(data) >= len(MAGIC) + 33:
        try:
            raw = codec.unpack(data[len(MAGIC) : -32], CERTIFICATE_BYTES_MAX)
        except PeerError:
            raw = None
    if type(raw) is not list or not raw or not all(type(item) is bytes for item in raw):
        raise PeerError("bad-certificate", "the file is damaged or cut short: its list of statements cannot be read")
    if codec.pack(raw) != data[len(MAGIC) : -32]:
        raise PeerError("bad-certificate", "the file is damaged: its list of statements is not written as it must be")
    return raw


def _decode_all(envelopes: list[bytes], verify: Verify, problems: list[str]) -> list[Statement]:
    statements = []
    for number, envelope in enumerate(envelopes, start=1):
        try:
            statements.append(decode(envelope, verify))
        except PeerError as error:
            problems.append(f"statement {number} of {len(envelopes)} is not valid: {error}")
    return statements


def _check_job(statements: list[Statement], problems: list[str]) -> Report:
    job, settlement = statements[0], statements[-1]
    evidence = statements[1:-1]
    spec: JobSpec = job.body
    body: Settlement = settlement.body
    if bytes(body.job) != bytes(job.id) or settlement.author != job.author:
        problems.append("the settlement is not that of this job's submitter")
    if evidence_digest(statements[:-1]) != body.evidence or len({s.id for s in statements}) != len(statements):
        problems.append("statements were added or left out: they are not those that the submitter signed for")
    states = _fold(job, evidence, problems)
    tasks = []
    for task in range(spec.tasks):
        report = _check_task(states[task // SHARD_TASKS], task, problems)
        if report is not None:
            tasks.append(report)
    settled = sum(1 for t in tasks if t.outcome == "accepted")
    if (settled, len(tasks) - settled) != (body.settled, body.failed):
        problems.append(
            f"the settlement counts {body.settled} settled and {body.failed} failed tasks;"
            f" the evidence shows {settled} and {len(tasks) - settled}"
        )
    return Report(tuple(problems[:PROBLEMS_MAX]), JobId(job.id), spec, job.author, len(statements), tuple(tasks))


def _fold(job: Statement, evidence: list[Statement], problems: list[str]) -> list[ShardState]:
    spec: JobSpec = job.body
    states = [ShardState(JobId(job.id), spec, shard) for shard in range(spec.shards)]
    for statement in evidence:
        name = f"{statement.kind} {statement.id.hex()[:12]}"
        if statement.kind in ("profile", "job", "cancel", "settlement") or statement.body.job != job.id:
            problems.append(f"{name} does not belong to this job")
            continue
        shard = shard_of(statement)
        if not 0 <= shard < len(states):
            problems.append(f"{name} is about a task that the job does not have")
            continue
        try:
            added = states[shard].add(statement)
        except PeerError as error:
            problems.append(f"{name}: {error}")
            continue
        if added == "orphan":
            problems.append(f"{name} answers a statement that is not in the certificate")
        elif isinstance(added, Contradiction):
            problems.append(f"{name}: its worker committed twice to one task")
    return states


def _check_task(state: ShardState, task: int, problems: list[str]) -> TaskReport | None:
    file = state.file(task)
    verdict = state.decided(task, state.listed(task))
    if verdict is None:
        problems.append(f"task {task}: no majority of its stewards signed the same verdict, borne out by results")
        return None
    groups = _groups(file, verdict)
    results = state.results(task, lambda worker: groups.get(worker, worker))
    judges = tuple(sorted(a for a, s in file.verdicts.items() if s.body.result == verdict.result))
    if verdict.outcome == "accepted" and not _agreed(results, verdict, state.spec):
        problems.append(f"task {task}: fewer than {state.spec.validate.agree} operator groups agree on its result")
    shown = sorted((w, s.body) for w, s in file.reveals.items() if s.body.root == verdict.root)
    return TaskReport(
        task,
        verdict.outcome,
        verdict.root,
        shown[0][1].outputs if shown else (),
        tuple(
            Replica(
                worker,
                s.body.outcome,
                s.body.exit,
                s.body.root,
                s.body.root == verdict.root and verdict.outcome == "accepted",
                s.body.usage.wall_ms,
                s.body.usage.cpu_ms,
                s.body.hardware,
            )
            for worker, s in sorted(file.reveals.items())
        ),
        judges,
        max(len(s.body.stewards) for s in file.verdicts.values()),
    )


def _groups(file: TaskFile, verdict: Verdict) -> dict[PeerId, str]:
    """The operator group of each worker, as the judges of this verdict saw it. Each may have counted other reveals."""
    groups: dict[PeerId, str] = {}
    for statement in sorted(file.verdicts.values(), key=lambda s: s.id):
        if statement.body.result == verdict.result:
            for vote in statement.body.votes:
                groups.setdefault(vote.worker, vote.group)
    return groups


def _agreed(results: list[Result], verdict: Verdict, spec: JobSpec) -> bool:
    """Repeat the arithmetic on the agreeing results alone: those that came later cannot undo a settled task."""
    judgement = judge([r for r in results if r.root == verdict.root], spec.validate)
    return isinstance(judgement, Accepted) and judgement.root == verdict.root
