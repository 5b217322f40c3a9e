"""What a check counts as it reads, within bounds whatever the file says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from nexapod.protocol.certificate.report import Named, Pins, TaskReport, Used
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.types import Group

PROBLEMS_MAX: Final = 50
FAILURES_MAX: Final = 20
NAMES_MAX: Final = 64
"""Executors, and kinds of hardware, that are counted by name."""
OTHERS: Final = "others"


@dataclass(slots=True)
class Problems:
    """The first of them in words, the rest as a number."""

    kept: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, problem: str) -> None:
        if len(self.kept) < PROBLEMS_MAX:
            self.kept.append(problem)
        else:
            self.more += 1


class Names:
    """How often each name occurs: so many names, and the others together."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        self._counts[name if name in self._counts or len(self._counts) < NAMES_MAX else OTHERS] += 1

    def named(self) -> Named:
        return tuple(sorted(self._counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(slots=True)
class Tally:
    """Tasks that are decided, and what it took. Only admitted workers are counted: they are bounded by the job."""

    pins: Pins
    accepted: int = 0
    failed: int = 0
    known_judges: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    workers: set[PeerId] = field(default_factory=set)
    groups: set[Group] = field(default_factory=set)
    executors: Names = field(default_factory=Names)
    hardware: Names = field(default_factory=Names)
    used: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    def add(self, task: TaskReport, admitted: frozenset[PeerId]) -> None:
        """A task that is decided; `admitted`: those of its workers that the gate has admitted."""
        self.accepted += task.outcome == "accepted"
        self.failed += task.outcome == "failed"
        self.known_judges += any(judge in self.pins.known for judge in task.judges)
        if task.outcome == "failed" and len(self.failures) < FAILURES_MAX:
            self.failures.append((task.index, task.reason))
        for replica in task.replicas:
            if replica.worker in admitted:
                self.workers.add(replica.worker)
                self.groups.add(replica.group)
            if replica.outcome is not None:
                self.executors.add(replica.executor)
                self.hardware.add(replica.hardware)
                self.used = [sum(pair) for pair in zip(self.used, (1, *replica.used), strict=True)]

    def usage(self) -> Used:
        return Used(*self.used)
