"""What happened, for those who look on: notices of the core become streams, and like traces counters and log events.

Nothing acts on a trace. A watcher that reads too slowly loses notices, and is told how many.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import structlog
import trio

from nexapod.protocol.events import Trace
from nexapod.protocol.notices import Notice

log = structlog.get_logger()

WATCHERS_MAX = 64
WATCHER_NOTICES_MAX = 512
_QUIET = frozenset(
    {
        *("lease_granted", "claim_sent", "tasks_released", "results_revealed", "task_over"),
        *("task_viewed", "task_logged", "result_stored"),
    }
)
"""What would fill a log: shown at the level debug."""


class TooManyWatchers(Exception):
    """So many watch already."""


@dataclass(frozen=True, slots=True)
class Lagged:
    """So many notices were not told to a watcher that is too slow."""

    lost: int


Told: TypeAlias = Notice | Lagged


def plain(value: object) -> Any:
    """A trace's fact as JSON has it: bytes as hex, tuples as lists."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value


class Watcher:
    """One reader's queue."""

    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[Told](WATCHER_NOTICES_MAX)
        self.lost = 0

    def put(self, notice: Notice) -> None:
        try:
            if self.lost:
                self.send.send_nowait(Lagged(self.lost))
                self.lost = 0
            self.send.send_nowait(notice)
        except trio.WouldBlock:
            self.lost += 1


class Hub:
    """Fans notices out."""

    def __init__(self) -> None:
        self.traces: Counter[str] = Counter()
        self.notices: Counter[str] = Counter()
        self._watchers: list[Watcher] = []

    def trace(self, trace: Trace) -> None:
        """Something for the log."""
        self.traces[trace.name] += 1
        _log(trace.name, trace.facts)

    def notice(self, notice: Notice) -> None:
        """Something for the log, and for those who watch."""
        name = name_of(notice)
        self.notices[name] += 1
        _log(name, {each.name: getattr(notice, each.name) for each in fields(notice)})
        for watcher in self._watchers:
            watcher.put(notice)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Told]]:
        """Every notice from now on."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise TooManyWatchers
        watcher = Watcher()
        self._watchers.append(watcher)
        try:
            yield watcher.receive
        finally:
            self._watchers.remove(watcher)


def name_of(notice: Notice) -> str:
    """A notice's kind as logs and metrics name it: JobSettled is job_settled."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(notice).__name__).lower()


def _log(name: str, facts: Mapping[str, object]) -> None:
    shown = {key: plain(value) for key, value in facts.items()}
    (log.debug if name in _QUIET else log.info)(name, **shown)
