"""What happened, for those who watch: traces of the core become counters, log events and streams.

A watcher that reads too slowly loses the oldest events and is told how many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from nexapod.protocol.events import Trace

log = structlog.get_logger()

WATCHERS_MAX = 64
WATCHER_EVENTS_MAX = 512
_QUIET = frozenset({"granted", "view", "bid", "profile", "redirected", "result_here", "lease_lost"})
"""Traces that would fill a log: shown at the level debug."""


class TooManyWatchers(Exception):
    """So many watch already."""


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
        self.send, self.receive = trio.open_memory_channel[tuple[str, dict[str, Any]]](WATCHER_EVENTS_MAX)
        self.lost = 0

    def put(self, name: str, facts: dict[str, Any]) -> None:
        try:
            if self.lost:
                self.send.send_nowait(("lagged", {"lost": self.lost}))
                self.lost = 0
            self.send.send_nowait((name, facts))
        except trio.WouldBlock:
            self.lost += 1


class Hub:
    """Fans traces out."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._watchers: list[Watcher] = []

    def trace(self, trace: Trace) -> None:
        self.counts[trace.name] += 1
        facts = {key: plain(value) for key, value in trace.facts.items()}
        (log.debug if trace.name in _QUIET else log.info)(trace.name, **facts)
        for watcher in self._watchers:
            watcher.put(trace.name, facts)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        """Every trace from now on, as (name, facts)."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise TooManyWatchers
        watcher = Watcher()
        self._watchers.append(watcher)
        try:
            yield watcher.receive
        finally:
            self._watchers.remove(watcher)
