"""What happens in one simulated world, decided before it begins: peers, links, jobs, faults, liars. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis
from nexapod.protocol.types import Grouping

LiarKind: TypeAlias = str
"""A name in liars.KINDS."""


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """One machine. `speed`: thousandths of the nominal speed; `drift`: of its clock, in thousandths."""

    speed: int = 1000
    slots: int = 2
    steward: bool = True
    """Whether it offers to be a steward."""
    drift: int = 0
    addr: str = ""
    """Its multiaddr as others see it; "" gives it one of its own in a private range."""
    liar: LiarKind | None = None
    gang: int = 0
    """Liars of one gang know each other."""
    joins_at: Millis = 0
    works: bool = True


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job: who submits it when. `task_ms` is nominal."""

    submitter: int
    at: Millis
    tasks: int
    task_ms: Millis
    agree: int = 2
    max_replicas: int = 5
    wall_ms: Millis = 120_000
    failing: tuple[int, ...] = ()
    """Tasks that end with an error everywhere."""
    nondeterministic: tuple[int, ...] = ()
    """Tasks whose result is another on each machine."""
    checkpoints: bool = False
    """Whether a task keeps something half-way, from which another worker can go on."""
    input_missing: bool = False
    """Whether it names an input that nobody has: nothing of it may ever be granted."""
    unfit: bool = False
    """Whether a task needs more memory than any machine has: such a job is placed, and nobody works on it."""
    vanishes: Literal["no", "for-a-while", "for-good"] = "no"
    """Whether the submitter goes once its job is placed."""
    cancelled_at: Millis | None = None
    ratified: bool = False
    """Whether its user accepts what caretakers have decided, when asked."""


@dataclass(frozen=True, slots=True)
class Crash:
    """A peer dies between two effects. `down_ms` None: it never comes back."""

    at: Millis
    peer: int
    down_ms: Millis | None


@dataclass(frozen=True, slots=True)
class Pause:
    """A machine stands still (it sleeps): nothing happens on it, nothing is lost; its links break meanwhile."""

    at: Millis
    peer: int
    for_ms: Millis


@dataclass(frozen=True, slots=True)
class DiskFault:
    """Until `until` a machine's disk takes `slow_ms` for each commit, or none at all (`slow_ms` 0: it is full)."""

    at: Millis
    until: Millis
    peer: int
    slow_ms: Millis


@dataclass(frozen=True, slots=True)
class ClockJump:
    """A machine's monotonic clock jumps ahead, as after a suspend that it counts."""

    at: Millis
    peer: int
    by_ms: Millis


@dataclass(frozen=True, slots=True)
class Order:
    """What a machine's owner says to it."""

    at: Millis
    peer: int
    what: Literal["drain", "pause", "resume"]


@dataclass(frozen=True, slots=True)
class Partition:
    """From `at` to `until` peers speak only to those on the same side. `sides` names the others of side 1."""

    at: Millis
    until: Millis
    sides: frozenset[int]


@dataclass(frozen=True, slots=True)
class Clog:
    """One direction between two peers loses everything, unnoticed."""

    at: Millis
    until: Millis
    sender: int
    receiver: int


@dataclass(frozen=True, slots=True)
class Network:
    """How messages travel. Chances in thousandths, times in milliseconds."""

    grouping: Grouping = "peer"
    latency_ms: tuple[Millis, Millis] = (1, 20)
    loss: int = 0
    duplication: int = 0
    straggling: int = 0
    """How many messages take up to `straggle_ms` longer, and so overtake and are overtaken."""
    straggle_ms: Millis = 3_000
    degree: int = 0
    """Links that each peer keeps; 0 = to everybody."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole world."""

    scenario: str
    seed: int
    peers: tuple[PeerPlan, ...]
    jobs: tuple[JobPlan, ...]
    network: Network = field(default_factory=Network)
    crashes: tuple[Crash, ...] = ()
    pauses: tuple[Pause, ...] = ()
    disk_faults: tuple[DiskFault, ...] = ()
    clock_jumps: tuple[ClockJump, ...] = ()
    orders: tuple[Order, ...] = ()
    partitions: tuple[Partition, ...] = ()
    clogs: tuple[Clog, ...] = ()
    heal_at: Millis = 0
    """From then on no fault happens any more, and loss ends."""
    shard_tasks: int = limits.SHARD_TASKS
    """Tasks of a shard: fewer than really, so that a small world has several."""
    caretaker_ms: Millis = limits.CARETAKER_MS
    """After how long without any quorum a caretaker takes a shard: less than really, so that a world comes to it."""
    settle_within_ms: Millis = 600_000
    """How long after healing, and after the last submission, every job must be complete."""
    features: tuple[str, ...] = ()
