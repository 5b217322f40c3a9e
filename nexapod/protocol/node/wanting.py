"""Asks for the bodies of announced jobs, one peer at a time.

A card comes over most links within a moment: whoever sent it first is asked for the job, the others are remembered and
asked in turn if it does not come. So a peer that announces and never gives holds nothing up for long, and a job crosses
few links twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nexapod.protocol import limits
from nexapod.protocol.primitives import JobId, Millis, PeerId
from nexapod.protocol.timers import Timers
from nexapod.protocol.wire.messages import Card


@dataclass(slots=True)
class Wanted:
    """A job that was asked for. `card`: the first that came, and `source` who sent it."""

    card: Card
    source: PeerId
    asked: PeerId | None = None
    others: dict[PeerId, None] = field(default_factory=dict)
    """Who else has announced it since."""


class Wanting:
    """The jobs that are wanted; the oldest make room."""

    def __init__(self) -> None:
        self._wanted: dict[JobId, Wanted] = {}
        self._timers = Timers()

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def deadline(self) -> Millis | None:
        """When another peer is to be asked."""
        return self._timers.next

    def announced(self, card: Card, peer: PeerId, now: Millis) -> bool:
        """A peer has the job. Whether it is to be asked now: nobody was lately."""
        wanted = self._wanted.get(card.job)
        if wanted is not None and card.job in self._timers:
            if peer != wanted.asked and len(wanted.others) < limits.SOURCES_MAX:
                wanted.others[peer] = None
            return False
        self._wanted.pop(card.job, None)
        self._wanted[card.job] = Wanted(card, peer, peer)
        self._timers.set(card.job, now + limits.RETRY_MIN_MS)
        if len(self._wanted) > limits.CARDS_MAX:
            self.forget(next(iter(self._wanted)))
        return True

    def due(self, now: Millis) -> list[tuple[PeerId, JobId]]:
        """Whom to ask for what, as others have not given it."""
        found: list[tuple[PeerId, JobId]] = []
        while isinstance(name := self._timers.pop_due(now), bytes):
            job = JobId(name)
            wanted = self._wanted[job]
            if wanted.others:
                wanted.asked = next(iter(wanted.others))
                del wanted.others[wanted.asked]
                found.append((wanted.asked, job))
                self._timers.set(job, now + limits.RETRY_MIN_MS)
        return found

    def came(self, job: JobId) -> Wanted | None:
        """It is here, and workable."""
        return self.forget(job)

    def forget(self, job: JobId) -> Wanted | None:
        self._timers.set(job, None)
        return self._wanted.pop(job, None)
