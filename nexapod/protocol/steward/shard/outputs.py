"""The outputs of accepted results: fetched before a seat signs, and kept for the submitter (docs/protocol.md, 6).

What nobody gives, tried a few times, counts as withheld: its task is judged without those results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.primitives import BlobRef, JobId, Millis, Part, PeerId

OUTPUT_ROLE: Final = "output"
WITHHELD_AFTER: Final = 3
"""So many failed fetches of an accepted output, and its results count as withheld."""


@dataclass(slots=True)
class _Wanted:
    refs: tuple[BlobRef, ...]
    sources: tuple[PeerId, ...]
    missing: dict[BlobRef, None] = field(default_factory=dict)
    failures: int = 0
    retry: Millis | None = None


class Outputs:
    """Those of one shard, by task."""

    def __init__(self, ctx: Context, job: JobId, shard: int) -> None:
        self._ctx = ctx
        self._owner: Owner = (OUTPUT_ROLE, job, shard)
        self._users: dict[BlobRef, dict[int, None]] = {}
        """Which tasks have an output: equal results of many tasks are one blob."""
        self._tasks: dict[int, _Wanted] = {}
        self._waiting: dict[BlobRef, dict[int, None]] = {}

    def gather(self, task: int, refs: Sequence[BlobRef], sources: Sequence[PeerId]) -> bool:
        """Bring a task's outputs here. Whether they are; None is asked for twice."""
        named = tuple(dict.fromkeys(refs))
        wanted = self._tasks.get(task)
        if wanted is None or wanted.refs != named:
            self.drop(task)
            wanted = self._tasks[task] = _Wanted(named, tuple(sources), dict.fromkeys(named))
            for ref in named:
                self._users.setdefault(ref, {})[task] = None
            self._fetch(task, wanted)
        wanted.sources = tuple(sources)
        return not wanted.missing

    def here(self, task: int, refs: Sequence[BlobRef]) -> bool:
        """Whether these were gathered for the task, all of them."""
        wanted = self._tasks.get(task)
        return not refs or (wanted is not None and wanted.refs == tuple(dict.fromkeys(refs)) and not wanted.missing)

    def _fetch(self, task: int, wanted: _Wanted) -> None:
        wanted.retry = None
        for ref in list(wanted.missing):
            if self._ctx.has(Part.whole(ref)):
                self._ctx.pin(ref, self._owner)
                del wanted.missing[ref]
                continue
            self._waiting.setdefault(ref, {})[task] = None
            self._ctx.fetch(Part.whole(ref), self._owner, wanted.sources)

    def ready(self, part: Part) -> tuple[int, ...]:
        """A blob has come. The tasks whose outputs are all here now."""
        complete = []
        for task in self._waited_for(part):
            wanted = self._tasks[task]
            wanted.missing.pop(part.blob, None)
            if not wanted.missing:
                complete.append(task)
        return tuple(complete)

    def failed(self, part: Part) -> tuple[int, ...]:
        """Nobody gave it. The tasks for which that was once too often."""
        given_up = []
        for task in self._waited_for(part):
            wanted = self._tasks[task]
            if wanted.retry is None:
                wanted.failures += 1
                pause = limits.FETCH_RETRY_MS << min(wanted.failures - 1, 6)
                wanted.retry = self._ctx.now + min(pause, limits.FETCH_RETRY_MAX_MS)
                if wanted.failures == WITHHELD_AFTER:
                    given_up.append(task)
        return tuple(given_up)

    def _waited_for(self, part: Part) -> list[int]:
        tasks = self._waiting.pop(part.blob, {}) if part.is_whole else {}
        return [task for task in tasks if task in self._tasks and part.blob in self._tasks[task].missing]

    def tick(self, now: Millis) -> None:
        for task, wanted in self._tasks.items():
            if wanted.retry is not None and wanted.retry <= now:
                self._fetch(task, wanted)

    @property
    def next_at(self) -> Millis | None:
        return min((w.retry for w in self._tasks.values() if w.retry is not None), default=None)

    def drop(self, task: int) -> None:
        """The task needs none of its outputs any more."""
        wanted = self._tasks.pop(task, None)
        for ref in wanted.refs if wanted is not None else ():
            self._waiting.get(ref, {}).pop(task, None)
            users = self._users[ref]
            del users[task]
            if not users:
                del self._users[ref]
                self._ctx.unpin(ref, self._owner)

    def drop_all(self) -> None:
        for task in list(self._tasks):
            self.drop(task)
        self._waiting.clear()
