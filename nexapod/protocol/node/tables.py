"""How full the bounded tables of a node are: its own, and of the jobs that it knows the fullest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.node.admission import Ledger
from nexapod.protocol.node.directory import Directory
from nexapod.protocol.node.hosting import Hosting
from nexapod.protocol.node.jobs import Jobs, Known
from nexapod.protocol.node.learning import Learning
from nexapod.protocol.primitives import JobId
from nexapod.protocol.tables import TableReport, fullest, in_turn

JOBS_LOOKED_AT: Final = 16
SHARDS_LOOKED_AT: Final = 8
"""Of one job. A node may have thousands of both, and reports are asked for often: others are looked at next time."""
TURN_MS: Final = 100


class Tables:
    """What a report says of tables. `effects`: how many of them the last call had; `to_self`: messages left to read."""

    def __init__(
        self, ctx: Context, directory: Directory, jobs: Jobs, ledger: Ledger, learning: Learning, hosting: Hosting
    ) -> None:
        self._ctx = ctx
        self._directory = directory
        self._jobs = jobs
        self._ledger = ledger
        self._learning = learning
        self._hosting = hosting
        self.effects = 0

    def report(self, to_self_max: int) -> tuple[TableReport, ...]:
        """By name."""
        turn = self._ctx.now // TURN_MS
        ids = in_turn(self._jobs.ids(), JOBS_LOOKED_AT, turn)
        found = ((JobId(id), self._jobs.get(JobId(id))) for id in ids)
        of_jobs = (self._of_job(job, known, turn) for job, known in found if known is not None)
        return fullest([self._of_node(to_self_max), *of_jobs])

    def _of_node(self, to_self_max: int) -> Iterator[TableReport]:
        hosting = self._hosting
        yield from self._directory.tables()
        yield from self._jobs.tables()
        yield from self._ledger.tables()
        yield from self._learning.tables()
        yield from hosting.worker.tables()
        yield TableReport("stewardships", hosting.served, limits.STEWARDSHIPS_MAX)
        yield TableReport("effects of a call", self.effects, limits.EFFECTS_MAX)
        yield TableReport("messages to itself", len(self._ctx.to_self), to_self_max)

    def _of_job(self, job: JobId, known: Known, turn: int) -> Iterator[TableReport]:
        yield TableReport("statements that came too early", len(known.orphans), limits.PENDING_MAX)
        yield from known.state.tables()
        stewardship, submission = self._hosting.stewardships.get(job), self._hosting.submissions.get(job)
        if stewardship is not None:
            yield from stewardship.tables(SHARDS_LOOKED_AT, turn)
        if submission is not None:
            yield from submission.tables()
