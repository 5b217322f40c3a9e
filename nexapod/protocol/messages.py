"""Direct messages between two peers: what is said, never what is believed (docs/protocol.md, Messages).

A link already proves who speaks, so messages are not signed; what must be believed travels in them as statements.
Every message is idempotent: losing, repeating or reordering any of them costs time only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from nexapod.protocol import codec, limits
from nexapod.protocol.codec import DIGEST, PEER, U32, U63, Check, array, binary, choice, integer, pair
from nexapod.protocol.errors import PeerError
from nexapod.protocol.types import Digest, JobId, PeerId, StatementId


@dataclass(frozen=True, slots=True)
class Sync:
    """The active jobs and the profiles that I know: tell me what I miss, and ask for what you miss."""

    jobs: tuple[JobId, ...]
    profiles: tuple[tuple[PeerId, int], ...]
    """(peer, newest seq)."""


@dataclass(frozen=True, slots=True)
class Want:
    """Send me these statements, and the newest profiles of these peers."""

    statements: tuple[StatementId, ...]
    profiles: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """Statements, each before those that answer it."""

    envelopes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """A steward's answer to a bid: which tasks the bidder may start once a majority of stewards says so."""

    job: JobId
    shard: int
    bid: StatementId
    granted: tuple[int, ...]
    checkpoints: tuple[bytes, ...] = ()
    """Envelopes: what workers before it have kept of these tasks. Gone on from when a majority shows the same."""


@dataclass(frozen=True, slots=True)
class Release:
    """A worker gives leases back."""

    job: JobId
    shard: int
    tasks: tuple[int, ...]
    unable: bool
    """It could not run them: it is not given them again for a while, each time for twice as long."""


Stage: TypeAlias = Literal["running", "committed", "revealed"]


@dataclass(frozen=True, slots=True)
class Held:
    """One task as its worker has it. `progress` in thousandths."""

    task: int
    stage: Stage
    bid: StatementId
    progress: int


@dataclass(frozen=True, slots=True)
class Renew:
    """A worker keeps its leases alive, and asks how its results stand."""

    job: JobId
    shard: int
    held: tuple[Held, ...]


Standing: TypeAlias = Literal["lost", "unknown", "held", "reveal", "settled", "closed"]
"""A task as a steward sees it for one worker: no lease; statements missing here; all well; show your result;
settled (verdicts attached); closed without a verdict (job cancelled, or not its to do)."""


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """`envelopes`: for `reveal` the other commits, for `settled` the verdicts."""

    task: int
    standing: Standing
    envelopes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """A steward tells a worker how its tasks stand."""

    job: JobId
    shard: int
    tasks: tuple[TaskStatus, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """What is open in this shard?"""

    job: JobId
    shard: int


@dataclass(frozen=True, slots=True)
class ActiveTask:
    """A task somebody works on."""

    task: int
    committed: bool
    progress: int
    workers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A shard as one steward has it."""

    job: JobId
    shard: int
    open: tuple[int, ...]
    """Tasks that want another worker."""
    active: tuple[ActiveTask, ...]
    settled: tuple[int, ...]
    failed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Redirect:
    """I know K live peers closer to this shard than I am: ask them. (Their profiles precede this in an Offer.)"""

    job: JobId
    shard: int
    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """The statements of a shard that I hold, in one digest."""

    job: JobId
    shard: int
    count: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Have:
    """The statements of a shard that I hold, by the first 8 bytes of their ids. `answer` asks for the same back."""

    job: JobId
    shard: int
    ids: tuple[bytes, ...]
    answer: bool


@dataclass(frozen=True, slots=True)
class Collect:
    """The submitter asks for the evidence of every decided task but these."""

    job: JobId
    shard: int
    have: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """A steward holds the job and all its inputs: the submitter may go."""

    job: JobId
    shard: int


@dataclass(frozen=True, slots=True)
class AskLog:
    """The submitter wants to see what a running task prints."""

    job: JobId
    task: int


@dataclass(frozen=True, slots=True)
class TaskLog:
    """The head and the tail of what a running task has printed so far: for people, nothing rests on it."""

    job: JobId
    task: int
    log: str


Message: TypeAlias = (
    Sync
    | Want
    | Offer
    | Grant
    | Release
    | Renew
    | Status
    | Query
    | View
    | Redirect
    | Summary
    | Have
    | Collect
    | Placed
    | AskLog
    | TaskLog
)

_SHARD = integer(0, limits.TASKS_MAX // limits.SHARD_TASKS)
_TASK = integer(0, limits.TASKS_MAX - 1)
_TASKS = array(_TASK, 0, limits.SHARD_TASKS)
_PROGRESS = integer(0, 1000)
_ENVELOPE = binary(1, limits.ENVELOPE_BYTES_MAX)
_MANY = limits.MESSAGE_STATEMENTS_MAX
_HELD = codec.record(Held, task=_TASK, stage=choice("running", "committed", "revealed"), bid=DIGEST, progress=_PROGRESS)
_STATUS = codec.record(
    TaskStatus,
    task=_TASK,
    standing=choice("lost", "unknown", "held", "reveal", "settled", "closed"),
    envelopes=array(_ENVELOPE, 0, limits.REPLICAS_MAX * 2),
)
_ACTIVE = codec.record(
    ActiveTask,
    task=_TASK,
    committed=codec.BOOL,
    progress=_PROGRESS,
    workers=array(PEER, 0, limits.REPLICAS_MAX * 2),
)
_FIELDS: Final[list[tuple[type, dict[str, Check[Any]]]]] = [
    (Sync, {"jobs": array(DIGEST, 0, _MANY), "profiles": array(pair(PEER, U63), 0, _MANY)}),
    (Want, {"statements": array(DIGEST, 0, _MANY), "profiles": array(PEER, 0, _MANY)}),
    (Offer, {"envelopes": array(_ENVELOPE, 0, _MANY)}),
    (
        Grant,
        {
            "job": DIGEST,
            "shard": _SHARD,
            "bid": DIGEST,
            "granted": _TASKS,
            "checkpoints": array(_ENVELOPE, 0, limits.BID_TASKS_MAX),
        },
    ),
    (Release, {"job": DIGEST, "shard": _SHARD, "tasks": _TASKS, "unable": codec.BOOL}),
    (Renew, {"job": DIGEST, "shard": _SHARD, "held": array(_HELD, 0, limits.SHARD_TASKS)}),
    (Status, {"job": DIGEST, "shard": _SHARD, "tasks": array(_STATUS, 0, limits.SHARD_TASKS)}),
    (Query, {"job": DIGEST, "shard": _SHARD}),
    (
        View,
        {
            "job": DIGEST,
            "shard": _SHARD,
            "open": _TASKS,
            "active": array(_ACTIVE, 0, limits.SHARD_TASKS),
            "settled": _TASKS,
            "failed": _TASKS,
        },
    ),
    (Redirect, {"job": DIGEST, "shard": _SHARD, "peers": array(PEER, 0, limits.STEWARDS)}),
    (Summary, {"job": DIGEST, "shard": _SHARD, "count": U32, "digest": DIGEST}),
    (
        Have,
        {
            "job": DIGEST,
            "shard": _SHARD,
            "ids": array(binary(8), 0, limits.STATEMENTS_PER_SHARD_MAX),
            "answer": codec.BOOL,
        },
    ),
    (Collect, {"job": DIGEST, "shard": _SHARD, "have": _TASKS}),
    (Placed, {"job": DIGEST, "shard": _SHARD}),
    (AskLog, {"job": DIGEST, "task": _TASK}),
    (TaskLog, {"job": DIGEST, "task": _TASK, "log": codec.text(limits.LOG_TAIL_MAX)}),
]
_CODES: Final = {code: (kind, codec.record(kind, **fields)) for code, (kind, fields) in enumerate(_FIELDS)}
_CODE_OF: Final = {kind: (code, schema) for code, (kind, schema) in _CODES.items()}
KINDS: Final = tuple(kind.__name__ for kind, _ in _FIELDS)
"""By code: what a driver may count by without decoding."""


def encode(message: Message) -> bytes:
    """One frame. A message over the frame limit is our own mistake and asserts."""
    code, schema = _CODE_OF[type(message)]
    frame = codec.pack([code, schema.encode(message)])
    assert len(frame) <= limits.FRAME_BYTES_MAX, f"a {type(message).__name__} of {len(frame)} bytes"
    return frame


def decode(frame: bytes) -> Message:
    """Any bytes to a Message, or PeerError."""
    raw = codec.unpack(frame, limits.FRAME_BYTES_MAX)
    if type(raw) is not list or len(raw) != 2:
        raise PeerError("bad-message", "not a list of two")
    code, fields = raw
    known = _CODES.get(code) if type(code) is int else None
    if known is None:
        raise PeerError("unknown-message", penalty=1)
    message: Message = known[1].decode(fields)
    return message


def statuses(job: JobId, shard: int, tasks: list[TaskStatus]) -> list[Status]:
    """Statuses packed into as few messages as the frame limit allows, in their order."""
    batches: list[Status] = []
    batch: list[TaskStatus] = []
    size = 0
    for task in tasks:
        weight = 16 + sum(len(envelope) + 5 for envelope in task.envelopes)
        if batch and (size + weight > limits.OFFER_BYTES_MAX or len(batch) == limits.SHARD_TASKS):
            batches.append(Status(job, shard, tuple(batch)))
            batch, size = [], 0
        batch.append(task)
        size += weight
    if batch:
        batches.append(Status(job, shard, tuple(batch)))
    return batches


def offers(envelopes: list[bytes]) -> list[Offer]:
    """Statements packed into as few offers as the frame limit allows, in their order."""
    batches: list[Offer] = []
    batch: list[bytes] = []
    size = 0
    for envelope in envelopes:
        if batch and (size + len(envelope) > limits.OFFER_BYTES_MAX or len(batch) == _MANY):
            batches.append(Offer(tuple(batch)))
            batch, size = [], 0
        batch.append(envelope)
        size += len(envelope) + 5
    if batch:
        batches.append(Offer(tuple(batch)))
    return batches
