"""What the check of a certificate found, as values and in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

from nexapod.protocol.primitives import Digest, File, JobId, PeerId
from nexapod.protocol.types import Group, JobSpec

_INPUTS_SHOWN: Final = 10
_YEAR_9999_MS: Final = 253_402_300_799_000


@dataclass(frozen=True, slots=True)
class Pins:
    """What the verifier brings along: whose word it asked for, whom it knows, and whether that must suffice.

    `strict`: a submitter must be named here, and every verdict must have the signature of a member that is known.
    """

    submitter: PeerId | None = None
    known: Collection[PeerId] = ()
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Replica:
    """One worker's part in a task. `outcome` None: its result was never shown."""

    worker: PeerId
    group: Group
    outcome: str | None
    exit: int = 0
    root: Digest | None = None
    used: tuple[int, int, int] = (0, 0, 0)
    """Running, processor and GPU time in milliseconds, by the worker's own account."""
    executor: str = ""
    hardware: str = ""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What the certificate says of one task. `outputs`: of the representative, when it is accepted."""

    index: int
    outcome: Literal["accepted", "failed"]
    reason: str
    root: Digest | None
    outputs: tuple[File, ...]
    replicas: tuple[Replica, ...]
    judges: tuple[PeerId, ...]
    """Who signed its verdict."""


@dataclass(frozen=True, slots=True)
class Used:
    """What the results that were shown used, added up; wall-clock and processor times in milliseconds."""

    results: int = 0
    wall_ms: int = 0
    cpu_ms: int = 0
    gpu_ms: int = 0


Named = tuple[tuple[str, int], ...]
"""Names, and how many results each has; the most frequent first."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found. Every field but `problems` is what the file says: true only when `ok`."""

    problems: tuple[str, ...]
    problems_more: int = 0
    """Problems that were found and not kept."""
    pins: Pins = field(default_factory=Pins)
    job: JobId | None = None
    spec: JobSpec | None = None
    submitter: PeerId | None = None
    settled_by: PeerId | None = None
    panel: tuple[PeerId, ...] = ()
    """The members when the job was settled."""
    renewals: int = 0
    caretaker_shards: tuple[int, ...] = ()
    """Shards whose seats were taken by caretakers; the settlement ratifies that."""
    accepted: int = 0
    failed: int = 0
    failures: tuple[tuple[int, str], ...] = ()
    """The first failed tasks, and why."""
    workers: int = 0
    groups: int = 0
    """Those whose results were judged."""
    known_judges: int = 0
    """Tasks whose verdict is signed by a member that the verifier knows."""
    executors: Named = ()
    hardware: Named = ()
    used: Used = field(default_factory=Used)
    faults: tuple[PeerId, ...] = ()
    """Who is proven to have signed two things of which one may be signed."""
    statements: int = 0
    size: int = 0
    """Bytes of the file that were read."""

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def known_members(self) -> tuple[PeerId, ...]:
        """The members of the panel that the verifier knows."""
        return tuple(peer for peer in self.panel if peer in self.pins.known)


# --- in words ------------------------------------------------------------------------------------------------------
def lines(report: Report) -> Iterator[str]:
    """The report for people: first whose word it is, last what is wrong. No line holds a line break of the file's."""
    if report.submitter is not None and report.spec is not None:
        yield _whose_word(report, report.submitter)
        yield _panel(report)
        yield from _computed(report, report.spec)
        yield from _decided(report, report.spec)
        yield from _by_whom(report)
    yield from _verdict(report)


def _whose_word(report: Report, submitter: PeerId) -> str:
    pinned = report.pins.submitter
    if pinned is None:
        return f"Nobody was named as the submitter: this is only what {submitter} says."
    if pinned != submitter:
        return f"This is the word of {submitter}, and not of {pinned}, who was named as the submitter."
    return f"This is the word of {submitter}, who was named as the submitter."


def _panel(report: Report) -> str:
    members, known = len(report.panel), len(report.known_members)
    chosen = f"The submitter chose the panel of {_count(members, 'member')} that judged"
    if report.renewals:
        chosen += f" (renewed {_count(report.renewals, 'time')} since)"
    if not report.pins.known:
        return f"{chosen}; none was named as known, so that they are different people is the submitter's word."
    signed = f"{report.known_judges} of {report.accepted + report.failed} verdicts are signed by one of those"
    return f"{chosen}; {known} of them {'is' if known == 1 else 'are'} known here, and {signed}."


def _computed(report: Report, spec: JobSpec) -> Iterator[str]:
    yield f"Job {_hex(report.job)} {_quoted(spec.name)} of network {_quoted(spec.network)}, stamped {_time(spec.stamp)}"
    if spec.run.module is not None:
        yield f"  module: {spec.run.module}"
    if spec.run.image is not None:
        yield f"  image: {_quoted(spec.run.image)}"
    yield f"  command: {' '.join(map(_quoted, spec.run.command)) or 'its own'}"
    for name, value in spec.run.env:
        yield f"  environment: {_quoted(f'{name}={value}')}"
    if spec.params is not None:
        yield f"  parameters: {spec.params}"
    if spec.split is not None:
        yield f"  pieces of: {spec.split.blob} at {_quoted(spec.split.path)}, cut by {spec.split.index}"
    for file in spec.inputs[:_INPUTS_SHOWN]:
        yield f"  input: {file.blob} at {_quoted(file.path)}"
    if len(spec.inputs) > _INPUTS_SHOWN:
        yield f"  and {_count(len(spec.inputs) - _INPUTS_SHOWN, 'more input')}"


def _decided(report: Report, spec: JobSpec) -> Iterator[str]:
    rule = spec.validate
    yield (
        f"Tasks: {spec.tasks}; {report.accepted} accepted, {report.failed} failed"
        f" ({rule.mode} agreement of {_count(rule.agree, 'group')}, of at most {rule.max_replicas})"
    )
    for task, reason in report.failures:
        yield f"  task {task} failed: {_quoted(reason)}"
    if report.settled_by not in (None, report.submitter):
        yield f"Settled by {report.settled_by}, whom the submitter had made its delegate"
    if report.caretaker_shards:
        shards = ", ".join(map(str, report.caretaker_shards))
        yield f"Caretakers decided without a quorum, and the submitter has ratified it: shards {shards}"


def _by_whom(report: Report) -> Iterator[str]:
    used = report.used
    yield f"Computed by {_count(report.workers, 'worker')} in {_count(report.groups, 'operator group')}"
    yield (
        f"  {_count(used.results, 'result')}: {_hours(used.wall_ms)} of running, {_hours(used.cpu_ms)} of processor"
        f" and {_hours(used.gpu_ms)} of GPU time, by the workers' own account"
    )
    for what, named in (("executor", report.executors), ("hardware", report.hardware)):
        for name, results in named:
            yield f"  {what}: {_quoted(name)} ({_count(results, 'result')})"
    for peer in report.faults:
        yield f"Proven to have signed contradictions: {peer}"


def _verdict(report: Report) -> Iterator[str]:
    total = len(report.problems) + report.problems_more
    if not total:
        yield f"All {report.statements} statements hold."
        return
    yield f"DOES NOT HOLD: {_count(total, 'problem')}"
    yield from (f"  {problem}" for problem in report.problems)
    if report.problems_more:
        yield f"  and {_count(report.problems_more, 'more problem')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _quoted(text: str) -> str:
    """Text of the file, so that it can neither begin a line nor end its own quotation."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t") + "'"


def _hex(id: JobId | None) -> str:
    return "" if id is None else id.hex()


def _time(stamp_ms: int) -> str:
    if stamp_ms > _YEAR_9999_MS:
        return f"{stamp_ms} ms"
    return datetime.fromtimestamp(stamp_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _hours(ms: int) -> str:
    seconds = ms // 1000
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} h"
