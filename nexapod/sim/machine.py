"""A simulated machine: what survives a crash of its daemon, and the process that runs on it, if one does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import BlobRef, Millis, PeerId, TaskId
from nexapod.protocol.records import Record
from nexapod.sim.keys import HashSigner
from nexapod.sim.liars.base import Liar
from nexapod.sim.plan import Crash, PeerPlan
from nexapod.sim.rng import Rng

REMOVED_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Kept:
    """What lies in a task's checkpoint folder on one machine."""

    blob: BlobRef
    continued: bool
    """Whether it rests on what another worker had kept."""


@dataclass(slots=True)
class Machine:
    """One of them."""

    index: int
    plan: PeerPlan
    signer: HashSigner
    rng: Rng
    addr: str
    latency_ms: Millis
    liar: Liar | None = None
    disk: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    removed: deque[bytes] = field(default_factory=lambda: deque(maxlen=REMOVED_MAX))
    """What lay there until lately: a call may save something and be done with it."""
    blobs: set[BlobRef] = field(default_factory=set)
    node: Node | None = None
    boot: int = 0
    clock_base: Millis = 0
    clock_since: Millis = 0
    asleep_until: Millis = 0
    disk_full_until: Millis = 0
    disk_slow_until: Millis = 0
    disk_slow_ms: Millis = 0
    busy_until: Millis = 0
    """A commit to a slow or full disk holds up everything after it."""
    tick_at: Millis | None = None
    running: dict[TaskId, int] = field(default_factory=dict)
    vacated: set[TaskId] = field(default_factory=set)
    """Those of them whose programs have ended."""
    kept: dict[TaskId, Kept] = field(default_factory=dict)
    run_number: int = 0
    banned: dict[PeerId, Millis] = field(default_factory=dict)
    doomed: Crash | None = None
    gone: bool = False
    paused: bool = False
    draining: bool = False
    """What its owner has said to the process that runs now."""
    side: int = 0
    waiting: deque[Callable[[], None]] = field(default_factory=deque)

    def read(self, kind: str, prefix: bytes) -> list[Record]:
        """What lies on the disk."""
        found = sorted(key for of_kind, key in self.disk if of_kind == kind and key.startswith(prefix))
        return [Record(kind, key, self.disk[kind, key]) for key in found]

    @property
    def peer(self) -> PeerId:
        return self.signer.peer

    @property
    def honest(self) -> bool:
        return self.plan.liar is None

    def local(self, now: Millis) -> Millis:
        """What this machine's monotonic clock shows."""
        return self.clock_base + (now - self.clock_since) * (1000 + self.plan.drift) // 1000

    def when(self, local: Millis) -> Millis:
        """When this machine's clock will show so much, or a little later."""
        return self.clock_since + -(-(local - self.clock_base) * 1000 // (1000 + self.plan.drift))
