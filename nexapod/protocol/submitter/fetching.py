"""Brings the outputs of decided tasks here, a bounded number at a time (docs/protocol.md, 7).

What was accepted is asked for until somebody gives it; what was not accepted, and is only kept for people to compare, a
few times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nexapod.protocol import limits
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.primitives import BlobRef, JobId, Millis, Part, PeerId
from nexapod.protocol.timers import Timers


@dataclass(slots=True)
class _Wanted:
    """An output that is not here."""

    owner: Owner
    sources: tuple[PeerId, ...]
    tasks: dict[int, None] = field(default_factory=dict)
    """Accepted tasks that wait for it; none: it is wanted for a dispute alone."""
    failures: int = 0

    @property
    def given_up(self) -> bool:
        return not self.tasks and self.failures >= limits.DISPUTE_TRIES

    @property
    def pause_ms(self) -> Millis:
        return min(limits.FETCH_RETRY_MS << min(self.failures - 1, 16), limits.FETCH_RETRY_MAX_MS)


class Fetching:
    """The outputs of one submission that are on their way. `stored(task)` is called when all of a task's are here."""

    def __init__(self, ctx: Context, job: JobId, stored: Callable[[int], None]) -> None:
        self.ctx = ctx
        self.job = job
        self._stored = stored
        self._wanted: dict[BlobRef, _Wanted] = {}
        self._queue: deque[BlobRef] = deque()
        self._fetched: dict[BlobRef, None] = {}
        """Those that the driver is asked for now."""
        self._missing: dict[int, int] = {}
        """By task: how many of its outputs are not here."""
        self._disputed: dict[BlobRef, Owner] = {}
        """Outputs that were not accepted and are pinned for people; at most those of DISPUTES_MAX tasks."""
        self._retries = Timers()

    @property
    def deadline(self) -> Millis | None:
        return self._retries.next

    @property
    def idle(self) -> bool:
        """Whether nothing is waited for."""
        return not self._wanted

    @property
    def in_flight(self) -> int:
        """At most FETCHES_MAX."""
        return len(self._fetched)

    def want(self, task: int, shard: int, refs: Iterable[BlobRef], sources: Iterable[PeerId]) -> None:
        """The outputs of an accepted task."""
        if task in self._missing:
            return
        listed = tuple(sources)
        missing = [ref for ref in dict.fromkeys(refs) if self._need(ref, shard, listed)]
        if not missing:
            self._stored(task)
            return
        self._missing[task] = len(missing)
        for ref in missing:
            self._wanted[ref].tasks[task] = None
        self._start()

    def want_disputed(self, shard: int, refs: Iterable[BlobRef], sources: Iterable[PeerId]) -> None:
        """Outputs that nothing rests on: for people who want to see how results differ."""
        listed = tuple(sources)
        for ref in dict.fromkeys(refs):
            self._disputed.setdefault(ref, output_owner(self.job, shard))
            self._need(ref, shard, listed)
        self._start()

    def unpin_disputed(self) -> None:
        """Nobody will compare results any more."""
        for ref, owner in self._disputed.items():
            self.ctx.unpin(ref, owner)
        self._disputed.clear()

    def forget(self, task: int) -> None:
        """Another result has been accepted in place of the one whose outputs were wanted."""
        if self._missing.pop(task, None) is not None:
            for wanted in self._wanted.values():
                wanted.tasks.pop(task, None)

    def tick(self) -> None:
        while (ref := self._retries.pop_due(self.ctx.now)) is not None:
            if isinstance(ref, BlobRef) and ref in self._wanted:
                self._queue.append(ref)
        self._start()

    def blob_ready(self, part: Part) -> None:
        wanted = self._wanted.pop(part.blob, None) if part.is_whole else None
        if wanted is None:
            return
        self._fetched.pop(part.blob, None)
        self._retries.set(part.blob, None)
        for task in wanted.tasks:
            self._missing[task] -= 1
            if not self._missing[task]:
                del self._missing[task]
                self._stored(task)
        self._start()

    def blob_failed(self, part: Part) -> None:
        wanted = self._wanted.get(part.blob)
        if wanted is None or not part.is_whole or part.blob not in self._fetched:
            return
        del self._fetched[part.blob]
        wanted.failures += 1
        # The next attempt begins with another source: the first may be one that never answers.
        wanted.sources = (*wanted.sources[1:], *wanted.sources[:1])
        if wanted.given_up:
            del self._wanted[part.blob]
            self.ctx.unpin(part.blob, wanted.owner)
            self.ctx.trace("disputed_output_lost", job=self.job, blob=str(part.blob))
        else:
            self._retries.set(part.blob, self.ctx.now + wanted.pause_ms)
        self._start()

    def _need(self, ref: BlobRef, shard: int, sources: tuple[PeerId, ...]) -> bool:
        """Pins it. Whether it is still to be brought here."""
        owner = output_owner(self.job, shard)
        self.ctx.pin(ref, owner)
        if self.ctx.has(Part.whole(ref)):
            return False
        known = self._wanted.get(ref)
        if known is None:
            self._wanted[ref] = _Wanted(owner, tuple(dict.fromkeys(sources)))
            self._queue.append(ref)
        else:
            known.sources = tuple(dict.fromkeys((*known.sources, *sources)))[: limits.SIGNATURES_MAX]
        return True

    def _start(self) -> None:
        while self._queue and len(self._fetched) < limits.FETCHES_MAX:
            ref = self._queue.popleft()
            wanted = self._wanted.get(ref)
            if wanted is not None and ref not in self._fetched:
                self._fetched[ref] = None
                self.ctx.fetch(Part.whole(ref), wanted.owner, wanted.sources)


def input_owner(job: JobId) -> Owner:
    """On whose behalf the inputs of a job are kept until it is over."""
    return ("submission", job, 0)


def output_owner(job: JobId, shard: int) -> Owner:
    """On whose behalf the outputs of a shard are kept until the job is forgotten."""
    return ("submission", job, shard + 1)
