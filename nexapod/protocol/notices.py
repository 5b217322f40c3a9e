"""What a node tells its driver that others act on: typed, one class a fact. API, metrics and checkers stand on these.

A notice says that something has become so; report.py says how things stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from nexapod.protocol.primitives import JobId, PeerId


@dataclass(frozen=True, slots=True)
class JobAccepted:
    """A job of this node's user is signed and on disk. `rests_on`: what its result will rest on, in words."""

    job: JobId
    panel: tuple[PeerId, ...]
    rests_on: str


@dataclass(frozen=True, slots=True)
class JobRefused:
    """A job of this node's user could not be placed at all; it has ended."""

    job: JobId
    reason: str


@dataclass(frozen=True, slots=True)
class JobPlaced:
    """Every shard of a job of this node's user has two seats that hold it: its submitter may leave."""

    job: JobId
    holders: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class TaskDecided:
    """The seats have judged a task of a job submitted here, and this node has checked it: provisional."""

    job: JobId
    task: int
    outcome: Literal["accepted", "failed"]
    reason: str


@dataclass(frozen=True, slots=True)
class TaskFailing:
    """A result of a task of a job submitted here did not end well: the first news of what may be wrong."""

    job: JobId
    task: int
    worker: PeerId
    exit: int
    reason: str
    outcome: str = "failed"
    log: str = ""
    """The head and the tail of what it printed, if the worker has shown its result."""


@dataclass(frozen=True, slots=True)
class ResultStored:
    """The accepted outputs of a task of a job submitted here are in the store."""

    job: JobId
    task: int


@dataclass(frozen=True, slots=True)
class RatificationNeeded:
    """Caretakers have decided tasks of a job submitted here: it settles only when its user accepts that."""

    job: JobId
    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class JobSettled:
    """A job submitted here is complete and its settlement signed."""

    job: JobId
    settled: int
    failed: int


@dataclass(frozen=True, slots=True)
class JobLearned:
    """A job of another peer is known here."""

    job: JobId
    submitter: PeerId


@dataclass(frozen=True, slots=True)
class JobClosed:
    """A job is over here: settled, cancelled, or its retention has ended."""

    job: JobId
    how: Literal["settled", "cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class TaskLogged:
    """A worker answered what a task prints (AskTask)."""

    job: JobId
    task: int
    worker: PeerId
    log: str


@dataclass(frozen=True, slots=True)
class TaskViewed:
    """A seat answered how a task of a job submitted here stands (AskTask, AskShard), and that is news: its own word."""

    job: JobId
    task: int
    standing: Literal["open", "running", "committed", "frozen", "accepted", "failed"]
    progress: int
    """In thousandths."""
    workers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class FaultProven:
    """A peer has signed two things of which it may sign one."""

    job: JobId
    peer: PeerId


@dataclass(frozen=True, slots=True)
class WorkRefused:
    """A task could not be run here, and was given back: whose fault it was, and why."""

    job: JobId
    task: int
    fault: Literal["machine", "job"]
    reason: str


Notice: TypeAlias = (
    JobAccepted
    | JobRefused
    | JobPlaced
    | TaskDecided
    | TaskFailing
    | ResultStored
    | RatificationNeeded
    | JobSettled
    | JobLearned
    | JobClosed
    | TaskLogged
    | TaskViewed
    | FaultProven
    | WorkRefused
)
