"""How things stand on a node: frozen values for the API, metrics and checkers, which never reach into machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from nexapod.protocol.types import File, JobId, Millis, PeerId
from nexapod.protocol.v3.types import Profile

JobStanding: TypeAlias = Literal["open", "settled", "cancelled", "expired"]
TaskStanding: TypeAlias = Literal["open", "running", "committed", "frozen", "accepted", "failed"]


@dataclass(frozen=True, slots=True)
class PeerReport:
    """A peer as this node sees it. Times are durations up to now."""

    peer: PeerId
    linked: bool
    dialled: bool
    """This node has got through to it."""
    addr: str
    """Of its link, or "" without one."""
    group: str | None
    """Its operator group by the rule of this network."""
    seen_up_ms: Millis
    gone_ms: Millis | None
    """How long it has been away; None: it is linked."""
    introducer: PeerId | None
    offers: bool
    """It would be a steward."""
    profile: Profile | None


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A shard of which this node keeps a seat."""

    shard: int
    epoch: int
    holders: tuple[PeerId, ...]
    decided: int
    leased: int
    open_places: int


@dataclass(frozen=True, slots=True)
class JobReport:
    """A job as this node knows it."""

    job: JobId
    name: str
    submitter: PeerId
    tasks: int
    standing: JobStanding
    age_ms: Millis
    workable: bool
    panel: tuple[PeerId, ...]
    placed: tuple[PeerId, ...]
    """Members that have signed `placed`."""
    groups: int
    """Operator groups that are admitted."""
    shards: tuple[ShardReport, ...]
    work: str
    """Whether this node works for it, and why, in words."""
    submission: object | None
    """Of this node's own user's jobs: the submission's report."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task as this node knows it. None of its parts rests on another peer's word alone."""

    job: JobId
    task: int
    standing: TaskStanding
    progress: int
    """In thousandths, of the worker that is furthest."""
    workers: tuple[PeerId, ...]
    notes: tuple[tuple[PeerId, int, str], ...]
    """Results that did not end well: worker, exit status, reason."""
    outputs: tuple[File, ...]
    """Of a job submitted here: the accepted files, once this node has checked the judgement."""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """The node as a whole."""

    peer: PeerId
    network: str
    links: tuple[PeerReport, ...]
    peers_known: int
    jobs: tuple[JobId, ...]
    """Open, by id."""
    submissions: tuple[JobId, ...]
    """Of this node's user, whether open or over."""
    stewardships: tuple[JobId, ...]
    attempts: tuple[object, ...]
    """Tasks that this node works on: the worker's reports."""
