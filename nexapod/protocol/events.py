"""What goes into a node and what comes out of it: the whole interface between the core and its drivers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nexapod.protocol.records import Record
from nexapod.protocol.types import BlobRef, Digest, File, JobId, JobSpec, Part, PeerId, Profile, RunResult, TaskId

Topic: TypeAlias = Literal["profile", "job"]


# --- events --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has come, or may have."""


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A link to a peer exists; `addr` is its remote multiaddr ("" when unknown)."""

    peer: PeerId
    addr: str


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The last link to a peer is gone."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A peer could not be dialled: what was queued for it is lost."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Received:
    """A frame of the control channel."""

    peer: PeerId
    frame: bytes


@dataclass(frozen=True, slots=True)
class Gossiped:
    """A gossip message, from whoever published it: each peer on its way has admitted it (Node.admit)."""

    peer: PeerId
    topic: Topic
    data: bytes


@dataclass(frozen=True, slots=True)
class ProfileChanged:
    """This machine's profile: at start, and whenever it is something else. The node sets `seq`."""

    profile: Profile


@dataclass(frozen=True, slots=True)
class Submit:
    """The user injects a job, whose blobs are all in the store."""

    spec: JobSpec


@dataclass(frozen=True, slots=True)
class CancelJob:
    """The user ends a job of its own."""

    job: JobId
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new tasks; finish those that run."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """How a running task stands: its progress in thousandths, and the head and the tail of what it has printed."""

    task: TaskId
    progress: int
    log: str = ""


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """What a running task keeps in /checkpoint has changed; its files are in the blob store.

    `continued`: it went on from the checkpoint that `Run` named.
    """

    task: TaskId
    files: tuple[File, ...]
    continued: bool


@dataclass(frozen=True, slots=True)
class AskLog:
    """The user wants to see what a running task of its own job prints; workers' answers are in Submission.logs."""

    job: JobId
    task: int


@dataclass(frozen=True, slots=True)
class Pause:
    """The owner of this machine wants it for itself: take nothing new. Running tasks are frozen by the driver."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Vacated:
    """A running task takes no more of the machine: its program has ended, and Finished follows once what it left has
    been looked at. Another may begin meanwhile."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class Finished:
    """A task that `Run` started has ended; its output files are in the blob store."""

    task: TaskId
    result: RunResult


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """A peer broke a rule of an adapter's own protocol (blobs, links)."""

    peer: PeerId
    rule: str
    penalty: int


@dataclass(frozen=True, slots=True)
class BlobReady:
    """What `Fetch` asked for is in the store."""

    part: Part


@dataclass(frozen=True, slots=True)
class BlobFailed:
    """No source gave it."""

    part: Part


Event: TypeAlias = (
    Tick
    | PeerUp
    | PeerDown
    | Unreachable
    | Received
    | Gossiped
    | ProfileChanged
    | Submit
    | CancelJob
    | Drain
    | Progressed
    | Checkpointed
    | AskLog
    | Pause
    | Vacated
    | Finished
    | Misbehaved
    | BlobReady
    | BlobFailed
)


# --- effects -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Save:
    """Commit this, together with the call's other saves, before any other effect of the call runs."""

    record: Record


@dataclass(frozen=True, slots=True)
class Send:
    """A frame for a peer; `addrs` are where it said it can be dialled."""

    peer: PeerId
    frame: bytes
    addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """A statement for everybody."""

    topic: Topic
    data: bytes


@dataclass(frozen=True, slots=True)
class Run:
    """Execute a task: fetch what it needs from `sources`, run it, say Vacated, put its outputs into the store, and say
    Finished."""

    task: TaskId
    spec: JobSpec
    seed: Digest
    sources: tuple[PeerId, ...]
    checkpoint: tuple[File, ...] = ()
    """What another worker had kept of it: put there before it begins, unless something is there already."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End a running task: nobody needs it. No Finished follows."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring part of a blob into the store and keep it; say BlobReady or BlobFailed. Ready at once when it is there."""

    part: Part
    sources: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing of this node needs any part of the blob any more."""

    ref: BlobRef


@dataclass(frozen=True, slots=True)
class Penalise:
    """A peer broke a rule; `ban` when it has done so once too often and should be disconnected."""

    peer: PeerId
    rule: str
    ban: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """Something happened that a person, a metric or a test may want to know."""

    name: str
    facts: Mapping[str, object]


Effect: TypeAlias = Save | Send | Publish | Run | Stop | Fetch | Drop | Penalise | Trace
