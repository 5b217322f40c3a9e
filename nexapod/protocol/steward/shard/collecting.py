"""The evidence of what a shard has decided, for the submitter: when it asks, and whenever there is more.

Decided evidence is pushed at once after a pause, else gathered (docs/protocol.md, Collect, Decided). The first
results that do not end well go to the submitter before any verdict, so that its user hears of them early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.wire.messages import Collect, Decided
from nexapod.protocol.wire.statements import Statement

FAILURES_TOLD_MAX: Final = 4
"""Failing results of one shard that the submitter is told of before their verdict."""


class Collecting:
    """One seat's telling the job's owners. `running`: how many tasks have a lease."""

    def __init__(
        self, ctx: Context, job: JobState, shard: int, evidence: ShardEvidence, running: Callable[[], int]
    ) -> None:
        self._ctx = ctx
        self._job = job
        self._shard = shard
        self._evidence = evidence
        self._running = running
        self._changed: dict[int, int] = {}
        """Task -> the version at which it was decided, as last told."""
        self._version = 0
        self._told: dict[PeerId, int] = {}
        """Who asked to be told of more, and up to which version it was."""
        self._sent: dict[PeerId, set[StatementId]] = {}
        self._next: Millis = 0
        self._failures: list[tuple[StatementId, StatementId]] = []

    def decided(self, task: int) -> None:
        """A task was decided, or decided anew."""
        self._version += 1
        self._changed.pop(task, None)
        self._changed[task] = self._version

    def failing(self, commit: Statement, reveal: Statement) -> None:
        """A result did not end well: say so to the submitter before the verdict, if it is there."""
        pair = (commit.id, reveal.id)
        submitter = self._job.submitter
        if len(self._failures) >= FAILURES_TOLD_MAX or pair in self._failures or not self._ctx.peers.linked(submitter):
            return
        self._failures.append(pair)
        self._ctx.deliver(submitter, [commit, reveal])

    def on_collect(self, peer: PeerId, message: Collect) -> None:
        """Evidence of a whole shard is much to send for a question: only those who settle the job get it."""
        if peer not in self._job.owners:
            return
        since = message.since if message.since <= self._version else 0
        if since != self._told.get(peer):
            self._sent.pop(peer, None)
        self._told[peer] = since
        self._push(peer)

    def _push(self, peer: PeerId) -> None:
        since = self._told[peer]
        tasks = sorted(task for task, version in self._changed.items() if version > since)
        sent = self._sent.setdefault(peer, set())
        # Those of earlier epochs count by what the present seats have adopted: the owner may have missed that.
        adoptions = [one for one in self._job.about(self._shard) if one.kind == "adoption"] if tasks else []
        evidence = self._evidence.statements_of(tasks)
        fresh = [statement for statement in (*adoptions, *evidence) if statement.id not in sent]
        sent.update(statement.id for statement in fresh)
        self._ctx.deliver(peer, fresh)
        self._told[peer] = self._version
        self._ctx.send(peer, self._decided())

    def _decided(self) -> Decided:
        return Decided(self._job.job, self._shard, self._version, self._evidence.decided, self._running())

    def _behind(self) -> Sequence[PeerId]:
        return [peer for peer, version in self._told.items() if version < self._version]

    def tick(self, now: Millis) -> None:
        """Push what has gathered, if it is time."""
        behind = self._behind()
        if behind and self._next <= now:
            self._next = now + limits.BATCH_MS
            for peer in behind:
                self._push(peer)

    @property
    def next_at(self) -> Millis | None:
        return self._next if self._behind() else None

    def gone(self, peer: PeerId) -> None:
        """It asks again when it is back."""
        self._told.pop(peer, None)
        self._sent.pop(peer, None)
