"""Folds what seats push about a submission into decided tasks (docs/protocol.md, 7).

A shard costs memory when there is evidence of it, and until all its tasks are decided and their outputs are here. Then
the evidence lies in records of its own (records.EVIDENCE), from which a certificate is written shard by shard; what
stays is how each task ended, packed (results.py). Without `archive`, a way to read these records, the evidence stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.notices import ResultStored, TaskDecided
from nexapod.protocol.primitives import File, Millis, PeerId, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.submitter import records, results
from nexapod.protocol.submitter.decisions import Decided, Known, Open, Revealed, ShardDecisions, Wrong
from nexapod.protocol.submitter.failing import Failing
from nexapod.protocol.submitter.fetching import Fetching, output_owner
from nexapod.protocol.submitter.results import Result
from nexapod.protocol.submitter.seating import Moved
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement

if TYPE_CHECKING:
    from nexapod.protocol.evidence import ShardEvidence
    from nexapod.protocol.job import JobState

Archive: TypeAlias = Callable[[int], Iterable[bytes]]
"""A shard to the values of its EVIDENCE records, in any order."""
_PENDING_LOOKED_AT = 4
_ORDER = ("freeze", "commit", "checkpoint", "reveal", "verdict")
"""The kinds of a shard's evidence, in the order in which ShardEvidence takes them."""


class Deciding:
    """The tasks of one submission, by shard."""

    def __init__(
        self,
        ctx: Context,
        job: JobState,
        make_evidence: Callable[[JobState, int], ShardEvidence],
        distrust: Callable[[PeerId, str], None],
        archive: Archive | None = None,
    ) -> None:
        self.ctx = ctx
        self.job = job
        self.accepted = 0
        self.failed = 0
        self.whole_max = limits.WHOLE_SHARDS_MAX
        """Finished shards whose evidence stays in memory."""
        self.finished: dict[int, int] = {}
        """Shards that are decided and here, in the order in which they became so; the epoch in which they are."""
        self.fetching = Fetching(ctx, job.job, self._stored)
        self.failing = Failing(ctx, job.job)
        self._make = make_evidence
        self._distrust = distrust
        self._archive = archive
        self._live: dict[int, ShardDecisions] = {}
        self._packed: dict[int, bytes] = {}
        self._whole: dict[int, None] = {}
        """Finished shards whose evidence is in memory, those finished first first."""
        self._pending: dict[int, None] = {}
        """Shards with a verdict that does not count yet: another succession, admission or adoption may be missing."""
        self._pending_left = 0
        self._pending_at: Millis = ctx.now
        self._disputes = 0
        self._settled: dict[int, bytes] = {}

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        pending = self._pending_at if self._pending_left else None
        return min((at for at in (self.fetching.deadline, pending) if at is not None), default=None)

    def tick(self) -> None:
        self.fetching.tick()
        if self._pending_left and self._pending_at <= self.ctx.now:
            self._pending_at = self.ctx.now + limits.BATCH_MS
            self._look_at_pending()

    def _look_at_pending(self) -> None:
        for shard in list(islice(self._pending, min(self._pending_left, _PENDING_LOOKED_AT))):
            self._pending_left -= 1
            del self._pending[shard]
            if shard in self._packed and not self.job.adopted(shard):
                self._pending[shard] = None
            else:
                self._evaluate(shard, list(self.open_shard(shard).waiting))

    def job_changed(self) -> None:
        """What did not count may count now."""
        self._pending_left = len(self._pending)

    # --- evidence --------------------------------------------------------------------------------------------------
    def add(self, statement: Statement) -> str:
        """Fold in a shard's statement: what ShardEvidence.add says of it. Raises PeerError when it cannot be true."""
        shard = shard_of(statement)
        if self.finished.get(shard) == self.job.seats(shard).epoch:
            # What anybody says of a task after it was decided changes nothing: its evidence stays as it was judged.
            return "known"
        added = self.open_shard(shard).evidence.add(statement)
        self.failing.on_statement(statement)
        tasks = touched(statement)
        if added == "known" and all(task in self._live[shard].counting for task in tasks):
            # Told again, and nothing hangs on it.
            return added
        if statement.kind == "verdict":
            self._live[shard].waiting.update(dict.fromkeys(tasks))
        self._evaluate(shard, tasks)
        return added if isinstance(added, str) else "contradiction"

    def moved(self, moved: Moved) -> None:
        """The seats of a shard are others: nothing counts there but what they adopt."""
        shard = moved.now.shard
        if self.finished.get(shard) == moved.now.epoch or not self.has_evidence(shard):
            return
        if shard in self._packed and not self.job.adopted(shard):
            self._shelved_moved(moved)
            return
        decisions = self.open_shard(shard)
        decisions.waiting.update(dict.fromkeys(decisions.results))
        self._evaluate(shard, list(decisions.waiting))
        if decisions.waiting:
            self._supply(moved, decisions)

    def _shelved_moved(self, moved: Moved) -> None:
        """Its evidence stays on disk until its new seats have adopted something: whoever left may have had a thousand
        shards."""
        shard = moved.now.shard
        self.finished.pop(shard, None)
        self._pending[shard] = None
        self._supply(moved, self._read(shard))

    def _supply(self, moved: Moved, decisions: ShardDecisions) -> None:
        """Those who have just got a seat can adopt only what they hold."""
        found = decisions.adoptable()
        before = moved.now.holders if moved.before is None else moved.before.holders
        for peer in moved.now.holders:
            if peer not in before and found:
                self.ctx.deliver(peer, found, self.job.addrs(peer))

    def supply_lacking(self, peer: PeerId, shard: int, decided: int) -> None:
        """A seat says that it has decided fewer tasks than were decided here: what former seats judged is lost there,
        and it can adopt only what it holds."""
        live = self._live.get(shard)
        if live is not None and live.waiting and decided < len(live.results):
            self.ctx.deliver(peer, live.adoptable(), self.job.addrs(peer))

    def kept(self, shard: int, id: StatementId) -> Statement | None:
        """A statement of a shard's evidence, if it is in memory."""
        return self._live[shard].evidence.get(id) if shard in self._live else None

    def has_evidence(self, shard: int) -> bool:
        """Whether anything of it is here."""
        return shard in self._live or shard in self._packed

    def decided_in(self, shard: int) -> int:
        """Tasks of a shard that are decided and count."""
        if shard in self._packed:
            return len(self.job.spec.shard_tasks(shard)) if shard in self.finished else 0
        return len(self._live[shard].counting) if shard in self._live else 0

    # --- reading ---------------------------------------------------------------------------------------------------
    def result(self, task: int) -> Result | None:
        """How a task ended; None: it has not."""
        shard = task // limits.SHARD_TASKS
        if shard in self._packed:
            return results.unpack(self._packed[shard])[1][task % limits.SHARD_TASKS]
        return self._live[shard].results.get(task) if shard in self._live else None

    def outputs(self, task: int) -> tuple[File, ...]:
        """The accepted output files of a task; none before it is decided, or when it failed."""
        result = self.result(task)
        return () if result is None else result.outputs

    def revealed(self, task: int) -> tuple[Revealed, ...]:
        """Every result of a task that was shown here: for people, of one whose results disagree."""
        shard = task // limits.SHARD_TASKS
        return self.look(shard).revealed(task) if self.has_evidence(shard) else ()

    def look(self, shard: int) -> ShardDecisions:
        """A shard's evidence, read from disk if it is there; nothing of it is kept."""
        return self._live[shard] if shard in self._live else self._read(shard)

    def evidence(self) -> Iterator[ShardEvidence]:
        """That of every shard in turn: of those on disk, one at a time is in memory."""
        for shard in range(self.job.spec.shards):
            yield self.look(shard).evidence

    def keep(self, shard: int) -> list[StatementId]:
        """The ids of all evidence of a shard, which is on disk from now on."""
        decisions = self.look(shard)
        found = decisions.evidence.statements_of(decisions.evidence.tasks)
        self._save(shard, decisions, found)
        return [statement.id for statement in found]

    def open_shard(self, shard: int) -> ShardDecisions:
        """A shard's evidence, from now on in memory."""
        if shard not in self._live:
            self._live[shard] = self._read(shard)
            self._packed.pop(shard, None)
        return self._live[shard]

    @property
    def in_memory(self) -> int:
        """Shards whose evidence is."""
        return len(self._live)

    def _read(self, shard: int) -> ShardDecisions:
        decisions = ShardDecisions(self._make(self.job, shard))
        if shard not in self._packed or self._archive is None:
            return decisions
        _fold(decisions, self._archive(shard), self._settled.get(shard))
        for task, result in zip(decisions.evidence.tasks, results.unpack(self._packed[shard])[1], strict=True):
            decisions.results[task] = result
            decisions.stored[task] = None
            (decisions.counting if shard in self.finished else decisions.waiting)[task] = None
        return decisions

    # --- deciding --------------------------------------------------------------------------------------------------
    def _evaluate(self, shard: int, tasks: Iterable[int]) -> None:
        decisions = self._live[shard]
        decided = []
        for task in tasks:
            if self._judge(decisions, task):
                decided.append(task)
        self._save(shard, decisions, decisions.evidence.statements_of(decided))
        if decisions.waiting:
            self._pending[shard] = None
        else:
            self._pending.pop(shard, None)
        self._check_finished(shard)

    def _save(self, shard: int, decisions: ShardDecisions, evidence: Iterable[Statement]) -> None:
        for statement in evidence:
            if statement.id not in decisions.saved:
                decisions.saved[statement.id] = None
                key = records.evidence_key(self.job.job, shard, statement.id)
                self.ctx.save(Record(records.EVIDENCE, key, statement.envelope))

    def _judge(self, decisions: ShardDecisions, task: int) -> bool:
        """Whether what its decision rests on is to be saved."""
        before = decisions.results.get(task)
        match decisions.evaluate(task):
            case Open():
                return False
            case Known():
                return True
            case Wrong(error, signers):
                self.ctx.trace("verdict_refused", job=self.job.job, task=task, error=error)
                for peer in signers:
                    self._distrust(peer, f"it signed a wrong verdict on task {task}: {error}")
                return False
            case Decided(result, signers):
                self._tally(before, -1)
                self._tally(result, 1)
                self.ctx.notify(TaskDecided(self.job.job, task, result.outcome, result.reason))
                self._bring(decisions, task, result, signers)
                return True
            case other:
                assert_never(other)

    def _tally(self, result: Result | None, by: int) -> None:
        if result is not None:
            self.accepted += by if result.accepted else 0
            self.failed += 0 if result.accepted else by

    def _bring(self, decisions: ShardDecisions, task: int, result: Result, signers: tuple[PeerId, ...]) -> None:
        shard = task // limits.SHARD_TASKS
        self.fetching.forget(task)
        if result.accepted:
            refs = [file.blob for file in result.outputs]
            self.fetching.want(task, shard, refs, decisions.sources(task, signers))
            return
        decisions.stored[task] = None
        disputed = decisions.disputed(task)
        if disputed and self._disputes < limits.DISPUTES_MAX:
            self._disputes += 1
            for one in disputed:
                self.fetching.want_disputed(shard, [file.blob for file in one.outputs], [one.worker, *signers])

    def _stored(self, task: int) -> None:
        shard = task // limits.SHARD_TASKS
        self._live[shard].stored[task] = None
        self.ctx.notify(ResultStored(self.job.job, task))
        self._check_finished(shard)

    # --- finished shards -------------------------------------------------------------------------------------------
    def _check_finished(self, shard: int) -> None:
        if shard not in self._live:
            # The last output that it waited for was here already: it is on disk by now.
            return
        if not self._live[shard].finished:
            self.finished.pop(shard, None)
            self._whole.pop(shard, None)
            return
        epoch = self.job.seats(shard).epoch
        self._whole[shard] = None
        if self.finished.get(shard) == epoch:
            return
        self.finished[shard] = epoch
        value = self._pack(shard)
        self.ctx.save(Record(records.SHARD, records.shard_key(self.job.job, shard), value))
        self._shelve()

    def _pack(self, shard: int) -> bytes:
        decisions = self._live[shard]
        in_order = (decisions.results[task] for task in decisions.evidence.tasks)
        return results.pack(self.finished[shard], in_order)

    def _shelve(self) -> None:
        """The evidence of what was finished first leaves memory."""
        if self._archive is None:
            return
        while len(self._whole) > self.whole_max:
            shard = next(iter(self._whole))
            self._packed[shard] = self._pack(shard)
            del self._whole[shard], self._live[shard]

    def unpin(self) -> None:
        """Nobody will ask for the outputs any more."""
        self.fetching.unpin_disputed()
        for shard in sorted({*self._live, *self._packed}):
            for result in self._results(shard):
                for file in result.outputs:
                    self.ctx.unpin(file.blob, output_owner(self.job.job, shard))

    def _results(self, shard: int) -> list[Result]:
        live = self._live.get(shard)
        return results.unpack(self._packed[shard])[1] if live is None else list(live.results.values())

    # --- restart ---------------------------------------------------------------------------------------------------
    def restore(
        self, shards: Mapping[int, bytes], evidence: Mapping[int, list[bytes]], settled: Mapping[int, bytes]
    ) -> None:
        """What a former process had saved: the values of the SHARD and, without an archive, EVIDENCE records, by shard.

        `settled`: the ids of each shard's evidence that a settlement signs, if there is one: of what is on disk nothing
        else counts then.
        """
        self._settled = dict(settled)
        for shard in sorted(shards):
            self._restore_finished(shard, shards[shard])
        for shard in range(self.job.spec.shards):
            kept = () if shard in self._packed else self._kept(shard, evidence)
            if kept:
                decisions = self.open_shard(shard)
                _fold(decisions, kept, self._settled.get(shard))
                self._evaluate(shard, decisions.evidence.tasks)

    def _kept(self, shard: int, evidence: Mapping[int, list[bytes]]) -> list[bytes]:
        return evidence.get(shard, []) if self._archive is None else list(self._archive(shard))

    def _restore_finished(self, shard: int, value: bytes) -> None:
        """It was all here, and pinned. Its evidence is read when it is needed; if that cannot be, now."""
        try:
            epoch, ended = results.unpack(value)
        except PeerError:
            return
        for result in ended:
            for file in result.outputs:
                self.ctx.pin(file.blob, output_owner(self.job.job, shard))
        if self._archive is not None and len(ended) == len(self.job.spec.shard_tasks(shard)):
            self._packed[shard] = value
            self.finished[shard] = epoch
            for result in ended:
                self._tally(result, 1)


def _fold(decisions: ShardDecisions, envelopes: Iterable[bytes], settled: bytes | None) -> None:
    """Evidence from this node's own disk, whose signatures were checked when it came. What is damaged is left out, and
    what is not in `settled` (ids, if any)."""
    wanted = None if settled is None else records.ids(settled)
    found: list[Statement] = []
    for envelope in envelopes:
        try:
            statement = statements.decode(envelope, lambda peer, data, signature: True)
        except PeerError:
            continue
        if wanted is None or statement.id in wanted:
            found.append(statement)
    for statement in sorted(found, key=lambda s: (_ORDER.index(s.kind) if s.kind in _ORDER else -1, _round(s), s.id)):
        try:
            decisions.evidence.add(statement)
        except PeerError:
            continue
        decisions.saved[statement.id] = None


def _round(statement: Statement) -> int:
    return min(item.round for item in statement.body.items) if statement.kind == "freeze" else 0


def shard_of(statement: Statement) -> int:
    """Which shard a statement is evidence of."""
    body: Any = statement.body
    return int(body.task) // limits.SHARD_TASKS if statement.kind == "checkpoint" else int(body.shard)


def touched(statement: Statement) -> list[int]:
    """The tasks that it may decide. A commit decides none."""
    return [item.task for item in statement.body.items] if statement.kind in ("freeze", "reveal", "verdict") else []
