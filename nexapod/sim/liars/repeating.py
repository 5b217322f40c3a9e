"""The base of liars that do something to others every so often, about jobs that they have heard of."""

from __future__ import annotations

from typing import Final

from nexapod.protocol.events import Effect, Event, Received
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import JobId, Millis, PeerId
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner
from nexapod.sim.liars.base import Liar
from nexapod.sim.liars.envelopes import statements_of

EVERY_MS: Final = 250
LINKS_MAX: Final = 12
JOBS_MAX: Final = 16


class Repeating(Liar):
    """Does something to whoever it has a link to, every so often."""

    every_ms: Millis = EVERY_MS

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        self._at: Millis = 0
        self._count = 0
        self.jobs: dict[JobId, Statement] = {}
        """What it has heard of, by the job's statement."""

    def hears(self, node: Node, event: Event, now: Millis) -> list[Effect]:
        self._learn(event)
        if now < self._at:
            return []
        self._at = now + self.every_ms
        self._count += 1
        return self.attacked(self.attack(node))

    def _learn(self, event: Event) -> None:
        """Look at what comes in."""
        for statement in statements_of(event.frame) if isinstance(event, Received) else ():
            if statement.kind == "job" and len(self.jobs) < JOBS_MAX:
                self.jobs[JobId(statement.id)] = statement

    def attack(self, node: Node) -> list[Effect]:
        return []

    def linked(self, node: Node) -> list[PeerId]:
        return [link.peer for link in node.report().links[:LINKS_MAX]]

    def invented(self, number: int) -> HashSigner:
        return HashSigner(self.rng.fork("invented", number).next(), "invented")
