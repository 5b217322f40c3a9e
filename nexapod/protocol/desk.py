"""What a steward remembers of one task beyond its statements: leases, who was asked to show, who let it down.

All of it may be lost in a crash, and grows back. Decides nothing: steward.py does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nexapod.protocol import limits
from nexapod.protocol.quorum import Judgement
from nexapod.protocol.statements import Verdict
from nexapod.protocol.types import Millis, PeerId


@dataclass(slots=True)
class Lease:
    """A worker's right to a task, from the grant until its result is revealed."""

    expires: Millis
    granted: Millis
    progress: int = 0


@dataclass(slots=True)
class Lapse:
    """A worker that held a task too long, or did not show its result: others go first, each time for twice as long."""

    until: Millis
    span: Millis


@dataclass(slots=True)
class Desk:
    """One task at one steward."""

    leases: dict[PeerId, Lease] = field(default_factory=dict)
    asked: dict[PeerId, Millis] = field(default_factory=dict)
    """Workers asked to reveal, and until when they may."""
    lapses: dict[PeerId, Lapse] = field(default_factory=dict)
    """Workers that held the task and let it down, or could not run it."""
    wanted: int = 0
    """Results wanted in all, by the judgement so far; 0 = decided."""
    extra: int = 0
    """Leases beyond those, because a worker is late."""
    judgement: Judgement | None = None
    withheld: set[PeerId] = field(default_factory=set)
    fetch_failures: int = 0
    retry: Millis | None = None
    settled: Verdict | None = None

    @property
    def places(self) -> int:
        """How many groups may have the task; none once it is decided."""
        return self.wanted + self.extra if self.wanted else 0

    def lapse(self, worker: PeerId, now: Millis) -> None:
        """It let the task down."""
        old = self.lapses.get(worker)
        if old is None and len(self.lapses) >= limits.PENDING_MAX:
            self.lapses.clear()
        span = 2 * old.span if old is not None else 2 * limits.LEASE_TTL_MS
        self.lapses[worker] = Lapse(now + span, span)

    def lapsed(self, worker: PeerId, now: Millis) -> bool:
        """Whether others go first."""
        lapse = self.lapses.get(worker)
        return lapse is not None and lapse.until > now

    def clear(self) -> None:
        """Nobody has the task any more."""
        self.leases.clear()
        self.asked.clear()
