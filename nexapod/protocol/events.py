"""What goes into a node and what comes out of it: the whole interface between the core and its drivers.

Effects that other parts of a daemon act on are typed here and in notices.py; a Trace is diagnosis only, and nothing may
act on its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from nexapod.protocol.notices import Notice
from nexapod.protocol.primitives import BlobRef, Digest, File, JobId, Part, PeerId, TaskId
from nexapod.protocol.records import Record
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import JobSpec, Offer, Profile


# --- events --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has come, or may have."""


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A link to a peer exists. `addr`: its remote multiaddr, "" when unknown; `dialled`: by this node."""

    peer: PeerId
    addr: str
    dialled: bool = True


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
class ProfileChanged:
    """This machine's profile: at start, and whenever it is something else. The node sets `seq`."""

    profile: Profile


@dataclass(frozen=True, slots=True)
class OfferChanged:
    """What this machine would do as a steward; None: it would not be one. The node sets `seq`."""

    offer: Offer | None


@dataclass(frozen=True, slots=True)
class Submit:
    """The user injects a job, whose blobs are all in the store. The node chooses the panel: `spec.panel` is empty.

    `friends` are pinned into the panel; `accept_unknown` allows one all known from one source.
    """

    spec: JobSpec
    friends: tuple[PeerId, ...] = ()
    accept_unknown: bool = False


@dataclass(frozen=True, slots=True)
class CancelJob:
    """The user ends a job of its own."""

    job: JobId
    reason: str


@dataclass(frozen=True, slots=True)
class RatifyJob:
    """The user accepts what caretakers decided while no quorum was there."""

    job: JobId


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new tasks; finish those that run."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The owner of this machine wants it for itself: take nothing new. Running tasks are frozen by the driver."""

    paused: bool


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
    continued: bool = False


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
class AskTask:
    """The user looks at a task of a job of its own: ask its seats and workers how it stands and what it prints."""

    job: JobId
    task: int


@dataclass(frozen=True, slots=True)
class AskShard:
    """The user looks at a job of its own: ask a seat how the tasks of one shard stand (TaskViewed follows)."""

    job: JobId
    shard: int


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
    | ProfileChanged
    | OfferChanged
    | Submit
    | CancelJob
    | RatifyJob
    | Drain
    | Pause
    | Progressed
    | Checkpointed
    | Vacated
    | Finished
    | AskTask
    | AskShard
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
    """A frame for a peer; `addrs` are where it said it can be dialled when there is no link to it."""

    peer: PeerId
    frame: bytes
    addrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Execute a task: fetch what it needs from `sources`, run it, say Vacated, put its outputs into the store, and say
    Finished. Its inputs were fetched before (Fetch), unless they are named by the task's piece of a split alone."""

    task: TaskId
    spec: JobSpec
    seed: Digest
    sources: tuple[PeerId, ...]
    checkpoint: tuple[File, ...] = ()


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
    """A peer broke a rule. `ban_ms` > 0: refuse it, inbound and outbound, for so long, across restarts."""

    peer: PeerId
    rule: str
    ban_ms: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Diagnosis: something happened that a person or a log may want to know. Nothing acts on it."""

    name: str
    facts: Mapping[str, object]


Effect: TypeAlias = Save | Send | Run | Stop | Fetch | Drop | Penalise | Notice | Trace
