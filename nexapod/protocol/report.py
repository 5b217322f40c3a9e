"""How things stand on a node: frozen values for the API, metrics and checkers, which never reach into machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from nexapod.protocol.notices import TaskFailing
from nexapod.protocol.primitives import Digest, File, JobId, Millis, PeerId, StatementId, TaskId
from nexapod.protocol.tables import TableReport
from nexapod.protocol.types import Group, JobSpec, Profile, Usage

JobStanding: TypeAlias = Literal["open", "settled", "cancelled"]
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
    lately: bool
    """It is linked, or was within the last half hour."""
    profile: Profile | None


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """One task that this worker holds. `state`: the name of a state of worker/attempt.py, in lower case."""

    task: TaskId
    state: str
    progress: int
    """In thousandths."""


@dataclass(frozen=True, slots=True)
class SubmissionReport:
    """How a job of this node's user stands."""

    job: JobId
    rests_on: str
    tasks: int
    accepted: int
    failed: int
    running: int
    """Tasks with a lease, as the seats last said."""
    shards: int
    shards_placed: int
    shards_finished: int
    """All decided, and every accepted output here."""
    placed: bool
    holders: tuple[PeerId, ...]
    """Members that hold the inputs of their shards."""
    held_least: tuple[int, int]
    """Of the shard that the fewest seats hold: how many do, and how many are needed."""
    refused: tuple[tuple[PeerId, str], ...]
    """Members that will not be stewards of it, and why."""
    unanswered: tuple[PeerId, ...]
    """Members that have said nothing so far."""
    unratified: tuple[int, ...]
    """Shards that caretakers have held, and whose user has not accepted that."""
    problems: tuple[str, ...]
    """Why its certificate could not be signed."""
    failing: TaskFailing | None
    """The first result that did not end well, with what has become known of it since."""


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
class SeatsReport:
    """Who holds a shard of a job."""

    shard: int
    epoch: int
    holders: tuple[PeerId, ...]


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
    submission: SubmissionReport | None
    """Of this node's own user's jobs."""
    spec: JobSpec
    works: bool
    """Whether this node would work on it now."""
    seats: tuple[SeatsReport, ...]
    """Of the first shards."""


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One worker's result of a task, or its way there."""

    worker: PeerId
    outcome: str
    """running, committed, or how it ended once it was shown."""
    exit: int | None = None
    """None: not shown."""
    reason: str = ""
    log: str = ""
    """The head and the tail of what it printed; of one that runs, what its worker last said (AskTask)."""
    root: Digest | None = None
    outputs: tuple[File, ...] = ()
    resumed: StatementId | None = None
    """The checkpoint that it went on from."""
    usage: Usage | None = None
    hardware: str = ""
    agrees: bool | None = None
    """With the accepted result; None: nothing is decided."""
    group: Group = ""
    """In which it counts; "" as long as it is not judged."""


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
    reason: str = ""
    """Failed: why."""
    root: Digest | None = None
    """Of the accepted result."""
    replicas: tuple[ReplicaReport, ...] = ()
    """By worker: those that have committed, then those that run."""
    judges: tuple[PeerId, ...] = ()
    """The seats that signed the verdict that counts."""


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
    attempts: tuple[AttemptReport, ...]
    """Tasks that this node works on."""
    profile: Profile | None = None
    """This machine's; None: it has not been looked at yet."""
    draining: bool = False
    paused: bool = False
    steward_shards: int = 0
    """Shards that this node runs a steward of."""
    tables: tuple[TableReport, ...] = ()
    """How full the bounded tables are, by name: of those that there is one of for each job, shard or task the fullest.
    Of very many jobs or shards some are looked at, and others at another time."""
