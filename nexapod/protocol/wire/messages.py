"""Direct messages between two peers: what is said, never what is believed (docs/protocol.md, Messages).

A link already proves who speaks, so messages are not signed; what must be believed travels in them as statements.
Every message is idempotent: losing, repeating or reordering any of them costs time only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import Digest, ExecutorName, JobId, Millis, PeerId, StatementId
from nexapod.protocol.wire import fields
from nexapod.protocol.wire.fields import (
    BOOL,
    DIGEST,
    ENVELOPE,
    PEER,
    SHARD,
    TASK,
    U16,
    U32,
    U63,
    Extensions,
    Raw,
    array,
    binary,
    choice,
    integer,
    optional,
    record,
    several,
    text,
)

_TASKS = array(TASK, 0, limits.SHARD_TASKS)
_PROGRESS = integer(0, 1000)
_EPOCH = integer(0, 2**31 - 1)
_MANY = limits.MESSAGE_STATEMENTS_MAX
_REASON = text(limits.REASON_MAX)


# --- between any peers ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Hello:
    """The first thing said on a link: who I am, and what I would do for others."""

    minor: Annotated[int, integer(0, 255), "the newest minor version spoken"]
    profile: Annotated[bytes | None, optional(ENVELOPE), "my `profile`, if the machine has been looked at"]
    offer: Annotated[bytes | None, optional(ENVELOPE), "my `offer`, if I would be a steward"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Deliver:
    """Statements, each after those that it answers."""

    envelopes: Annotated[tuple[bytes, ...], array(ENVELOPE, 0, _MANY), ""]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Want:
    """Send me these: jobs (with what makes them workable) or other statements that you told me of."""

    ids: Annotated[tuple[StatementId, ...], array(DIGEST, 0, _MANY), "each once"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Card:
    """A job in a few words: what decides whether its body is worth asking for."""

    job: Annotated[JobId, DIGEST, ""]
    submitter: Annotated[PeerId, PEER, ""]
    size: Annotated[int, integer(1, limits.ENVELOPE_BYTES_MAX), "bytes of its envelope"]
    executor: Annotated[ExecutorName, choice("wasm", "docker"), ""]
    memory: Annotated[int, U63, "bytes that a task needs"]
    gpus: Annotated[int, integer(0, limits.GPUS_MAX), "GPUs that a task needs"]
    gate: Annotated[tuple[PeerId, ...], array(PEER, 1, limits.SEATS), "who admits workers"]
    call: Annotated[int, integer(0, 1 << 16), "workers whose turn (3.3) is below it are asked to bid"]
    seq: Annotated[int, U32, "rises with each announcement: a larger one is passed on again"]


@dataclass(frozen=True, slots=True)
class Announce:
    """Jobs that are open: passed on, once each, by whoever has checked them."""

    cards: Annotated[tuple[Card, ...], array(record(Card), 0, 64), ""]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Range:
    """The statements of a set whose ids lie from the last range's end to before `end`."""

    end: Annotated[bytes, binary(0, 32), "exclusive, a prefix; empty: to the very end"]
    count: Annotated[int, U32, ""]
    digest: Annotated[Digest, DIGEST, "H over the sorted ids"]
    ids: Annotated[tuple[StatementId, ...] | None, optional(array(DIGEST, 0, 64)), "all of them, when they are few"]


@dataclass(frozen=True, slots=True)
class Reconcile:
    """My set by ranges: whoever differs answers with finer ranges, or with what is missing.

    The set of all open and lately closed jobs (`job` nil), or of one shard's statements.
    """

    job: Annotated[JobId | None, optional(DIGEST), "nil: the set of jobs"]
    shard: Annotated[int, SHARD, "0 when `job` is nil"]
    start: Annotated[bytes, binary(0, 32), "where the first range begins"]
    ranges: Annotated[tuple[Range, ...], array(record(Range), 0, 64), "ascending"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """Some peers that I know: their profiles and offers."""

    envelopes: Annotated[tuple[bytes, ...], array(ENVELOPE, 0, 2 * limits.SAMPLE_MAX), ""]
    answer: Annotated[bool, BOOL, "send me some of yours"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """Are you there? And can you reach this one?"""

    nonce: Annotated[int, U63, ""]
    about: Annotated[PeerId | None, optional(PEER), "nil: you yourself"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Alive:
    """The answer to a probe."""

    nonce: Annotated[int, U63, ""]
    reached: Annotated[bool, BOOL, "whether the one asked about answered"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Gone:
    """This job is not here, or over: its closing statement precedes this if there is one."""

    job: Annotated[JobId, DIGEST, ""]
    known: Annotated[bool, BOOL, "false: send me the job if you want an answer"]
    ext: Extensions = ()


# --- submitter and panel -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Refused:
    """A panel member will not be a steward of this job after all."""

    job: Annotated[JobId, DIGEST, ""]
    reason: Annotated[str, _REASON, "in words"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """A seat holds the inputs of a shard."""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Collect:
    """The submitter asks for the evidence of what was decided after `since`, and to be told of more."""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    since: Annotated[int, U32, "the seat's `version` of the last Decided that came; 0: everything"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Decided:
    """Follows the evidence (Deliver) of what a shard decided: how far it is now."""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    version: Annotated[int, U32, "rises whenever the seat has more to tell"]
    decided: Annotated[int, U16, "tasks accepted or failed"]
    running: Annotated[int, U16, "tasks with a lease"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Inspect:
    """For people: how do these tasks stand?"""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    tasks: Annotated[tuple[int, ...], _TASKS, "none: the whole shard"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task as a seat has it, for people."""

    task: Annotated[int, TASK, ""]
    state: Annotated[
        Literal["open", "running", "committed", "frozen", "accepted", "failed"],
        choice("open", "running", "committed", "frozen", "accepted", "failed"),
        "",
    ]
    progress: Annotated[int, _PROGRESS, "of the worker that is furthest"]
    workers: Annotated[tuple[PeerId, ...], array(PEER, 0, 8), "who holds it"]
    notes: Annotated[
        tuple[tuple[PeerId, int, str], ...],
        array(several(PEER, integer(-(2**31), 2**31 - 1), _REASON), 0, 8),
        "results that did not end well: worker, exit status, reason",
    ]


@dataclass(frozen=True, slots=True)
class View:
    """The answer to Inspect."""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    tasks: Annotated[tuple[TaskView, ...], array(record(TaskView), 0, limits.SHARD_TASKS), ""]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class AskLog:
    """The submitter wants to see what a running task prints."""

    job: Annotated[JobId, DIGEST, ""]
    task: Annotated[int, TASK, ""]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class TaskLog:
    """The head and the tail of what a running task has printed so far: for people, nothing rests on it."""

    job: Annotated[JobId, DIGEST, ""]
    task: Annotated[int, TASK, ""]
    log: Annotated[str, text(limits.LOG_TAIL_MAX), ""]
    ext: Extensions = ()


# --- worker and seats ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Bid:
    """A worker asks the gate to be admitted to a job. It stands for BID_TTL_MS."""

    job: Annotated[JobId, DIGEST, ""]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """An admitted worker has room for so many more tasks of a shard. It stands for BID_TTL_MS; the newest counts."""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    seq: Annotated[int, U32, "rises with each of the worker's for the shard"]
    room: Annotated[
        int,
        integer(0, limits.CLAIM_TASKS_MAX),
        "tasks, beside those in `holding`; 0: nothing more, whatever is committed",
    ]
    holding: Annotated[tuple[int, ...], _TASKS, "tasks that it holds, or is about to"]
    done: Annotated[tuple[int, ...], _TASKS, "tasks that it must not have again"]
    expected_ms: Annotated[Millis, U63, "what it expects one to take; 0: it has run none yet"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class LeaseItem:
    """One task for one worker, and the checkpoint that it is handed."""

    task: Annotated[int, TASK, ""]
    worker: Annotated[PeerId, PEER, ""]
    checkpoint: Annotated[StatementId | None, optional(DIGEST), ""]


@dataclass(frozen=True, slots=True)
class Lease:
    """The leading seat tells the others who is to have which tasks."""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    epoch: Annotated[int, _EPOCH, ""]
    items: Annotated[tuple[LeaseItem, ...], array(record(LeaseItem), 0, 1024), ""]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """A seat's word that a worker has these tasks. It begins one when two seats have said so (of one: that one)."""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    epoch: Annotated[int, _EPOCH, ""]
    tasks: Annotated[tuple[int, ...], _TASKS, ""]
    checkpoints: Annotated[tuple[bytes, ...], array(ENVELOPE, 0, 64), "to go on from, of these tasks"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Release:
    """A worker gives leases back."""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    tasks: Annotated[tuple[int, ...], _TASKS, ""]
    unable: Annotated[bool, BOOL, "it could not run them: others go first for a while"]
    reason: Annotated[str, _REASON, "why, for people"]
    ext: Extensions = ()


Stage: TypeAlias = Literal["running", "committed", "revealed"]


@dataclass(frozen=True, slots=True)
class Held:
    """One task as its worker has it."""

    task: Annotated[int, TASK, ""]
    stage: Annotated[Stage, choice("running", "committed", "revealed"), ""]
    progress: Annotated[int, _PROGRESS, "in thousandths"]


@dataclass(frozen=True, slots=True)
class Renew:
    """A worker keeps its leases, and asks how its results stand."""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    held: Annotated[tuple[Held, ...], array(record(Held), 0, limits.SHARD_TASKS), ""]
    ext: Extensions = ()


Standing: TypeAlias = Literal["lost", "unknown", "held", "frozen", "decided", "closed"]


@dataclass(frozen=True, slots=True)
class Status:
    """How a worker's tasks stand at a seat.

    `lost`: no lease, and no commit is here. `unknown`: send me your statements again. `frozen`: reveal (the freeze
    precedes this). `decided`: over (the verdict precedes it). `closed`: the worker is barred, or the job over.
    """

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    tasks: Annotated[
        tuple[tuple[int, Standing], ...],
        array(several(TASK, choice("lost", "unknown", "held", "frozen", "decided", "closed")), 0, limits.SHARD_TASKS),
        "",
    ]
    ext: Extensions = ()


# --- between seats -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Object:
    """A seat cannot sign a proposal (a cosigned statement that it was sent): propose again without these."""

    job: Annotated[JobId, DIGEST, ""]
    shard: Annotated[int, SHARD, ""]
    proposal: Annotated[StatementId, DIGEST, ""]
    tasks: Annotated[tuple[int, ...], _TASKS, "freeze, verdict: those that it cannot sign"]
    workers: Annotated[
        tuple[PeerId, ...], array(PEER, 0, limits.ADMISSION_MAX), "admission, freeze: those it cannot vouch for"
    ]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A seat of the gate shows its value of a round, whose admission has two signatures, and binds itself to the
    next."""

    job: Annotated[JobId, DIGEST, ""]
    epoch: Annotated[int, _EPOCH, "of the gate"]
    round: Annotated[int, U32, ""]
    author: Annotated[PeerId, PEER, "whose value; may be passed on"]
    value: Annotated[bytes, binary(32), ""]
    following: Annotated[Digest, DIGEST, "the commitment to its next value"]
    ext: Extensions = ()


Message: TypeAlias = (
    Hello
    | Deliver
    | Want
    | Announce
    | Reconcile
    | Sample
    | Probe
    | Alive
    | Gone
    | Refused
    | Ready
    | Collect
    | Decided
    | Inspect
    | View
    | AskLog
    | TaskLog
    | Bid
    | Claim
    | Lease
    | Grant
    | Release
    | Renew
    | Status
    | Object
    | Value
)

CLASSES: Final[tuple[type, ...]] = Message.__args__
"""By code: the place is what is on the wire."""
KINDS: Final = tuple(cls.__name__ for cls in CLASSES)
SCHEMAS: Final = tuple(record(cls) for cls in CLASSES)
_CODE_OF: Final = {cls: code for code, cls in enumerate(CLASSES)}


def encode(message: Message) -> bytes:
    """One frame. A message over the frame limit is our own mistake and asserts."""
    code = _CODE_OF[type(message)]
    frame = fields.pack([code, SCHEMAS[code].encode(message)])
    assert len(frame) <= limits.FRAME_BYTES_MAX, f"a {type(message).__name__} of {len(frame)} bytes"
    return frame


def decode(frame: bytes) -> Message:
    """Any bytes to a Message, or PeerError."""
    return fields.unpacked(frame, limits.FRAME_BYTES_MAX, _message)


def _message(raw: Raw) -> Message:
    if type(raw) is not list or len(raw) != 2:
        raise PeerError("bad-message", "not a list of two")
    code, parts = raw
    if type(code) is not int or not 0 <= code < len(SCHEMAS):
        raise PeerError("unknown-message", penalty=1)
    message: Message = SCHEMAS[code].decode(parts)
    return message


def deliveries(envelopes: Iterable[bytes]) -> list[Deliver]:
    """Envelopes packed into as few messages as the frame limit allows, in their order."""
    batches: list[list[bytes]] = []
    size = 0
    for envelope in envelopes:
        if not batches or size + len(envelope) > limits.DELIVER_BYTES_MAX or len(batches[-1]) == _MANY:
            batches.append([])
            size = 0
        batches[-1].append(envelope)
        size += len(envelope) + 5
    return [Deliver(tuple(batch)) for batch in batches]
