"""One shard's tasks, folded from statements: what was committed, frozen, shown and judged.

Stewards, the submitter and the certificate checker use the same fold. Knows nothing of leases, clocks or links; what
counts of it depends on the seats and on the admissions in its JobState, which may change under it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeAlias

from nexapod.protocol import facts, limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts import freezes, verdicts
from nexapod.protocol.facts.checkpoints import joined
from nexapod.protocol.facts.commits import CommitFact, Contradiction, RevealFact
from nexapod.protocol.facts.cosigned import CosignedTable
from nexapod.protocol.facts.freezes import Entry, Frozen
from nexapod.protocol.facts.task_files import Folded, TaskFile, TaskFiles
from nexapod.protocol.facts.verdicts import Decision
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import File, Millis, PeerId, StatementId, key_of_peer_id
from nexapod.protocol.rules import agreement
from nexapod.protocol.rules.agreement import Judgement, Shown
from nexapod.protocol.tables import TableReport
from nexapod.protocol.types import Group
from nexapod.protocol.wire.bodies import Checkpoint, Commit, Freeze, Reveal, Verdict, VerdictItem
from nexapod.protocol.wire.statements import Statement

Added: TypeAlias = facts.Added | Contradiction

__all__ = [
    "Added",
    "CommitFact",
    "Contradiction",
    "Decision",
    "Entry",
    "Frozen",
    "RevealFact",
    "ShardEvidence",
]


class ShardEvidence:
    """The statements of one shard of one job."""

    def __init__(self, job: JobState, shard: int) -> None:
        self._job = job
        self.shard = shard
        self.tasks = job.spec.shard_tasks(shard)
        self._files = TaskFiles(job, self.tasks)
        self._freezes = CosignedTable(job.tenures(shard))
        self._verdicts = CosignedTable(job.tenures(shard))
        self._waiting: set[StatementId] = set()
        """Proposals whose commits were not all here when they were offered last."""
        self._version = 0
        self._seen = job.version
        self._faults_seen = len(job.faults())
        self._tenure = self._tenure_now()
        self._frozen: dict[int, Frozen | None] = {}
        self._decisions: dict[int, Decision | None] = {}
        self._commits: dict[int, dict[PeerId, CommitFact]] = {}
        self._results: dict[int, tuple[Shown, ...]] = {}
        """What the last four say is worked out when it is asked for, and anew after what could change it."""
        self._ids: tuple[int, list[StatementId]] = (-1, [])

    # --- kept up to date with the job ------------------------------------------------------------------------------
    @property
    def version(self) -> int:
        """Rises with everything that is new, and when the job's changes make something count or no longer count."""
        self._follow_job()
        return self._version

    def _tenure_now(self) -> tuple[StatementId, frozenset[StatementId]]:
        return self._job.seats(self.shard).id, self._job.adopted(self.shard)

    def _follow_job(self) -> None:
        if self._seen == self._job.version:
            return
        self._seen = self._job.version
        # A worker's group, and so whether results are joined, follows from the admissions.
        self._results.clear()
        now = self._tenure_now()
        if now != self._tenure:
            self._tenure = now
            self._review()
        if len(self._job.faults()) != self._faults_seen:
            self._faults_seen = len(self._job.faults())
            self._files.bar_faulty()
            self._commits.clear()
            self._version += 1

    def _review(self) -> None:
        self._freezes.review()
        self._verdicts.review()
        self._forget_all()
        for file in self._files.known.values():
            file.freezes.clear()
            file.verdicts.clear()
            file.named.clear()
        for freeze in self._freezes.founded.values():
            self._note_freeze(freeze)
        for verdict in self._verdicts.founded.values():
            self._note_verdict(verdict)
        self._version += 1

    def _forget(self, task: int) -> None:
        """Something of the task is new: what was worked out may be wrong."""
        self._frozen.pop(task, None)
        self._decisions.pop(task, None)
        self._commits.pop(task, None)
        self._results.pop(task, None)

    def _forget_all(self) -> None:
        for known in (self._frozen, self._decisions, self._commits, self._results):
            known.clear()

    def tables(self) -> Iterator[TableReport]:
        """How full its bounded tables are; of what there is for each task, the fullest."""
        yield TableReport("freezes of a shard", len(self._freezes.founded), limits.FOUNDED_PER_SHARD_MAX)
        yield TableReport("verdicts of a shard", len(self._verdicts.founded), limits.FOUNDED_PER_SHARD_MAX)
        yield self._freezes.proposals_table("freezes of a signer that do not count")
        yield self._verdicts.proposals_table("verdicts of a signer that do not count")
        yield from self._files.tables()

    # --- the fold --------------------------------------------------------------------------------------------------
    def add(self, statement: Statement, *, direct: bool = False) -> Added:
        """Fold a statement of this shard in. `direct`: it came on its author's own link.

        A commit that contradicts another is kept only if a freeze names it, then in the other's place: offer again what
        a freeze names and is not here. An orphan's other tasks are folded. Raises PeerError when it cannot be true of
        this job.
        """
        self._follow_job()
        body = statement.body
        if getattr(body, "job", None) != self._job.job:
            raise PeerError("other-job", statement.kind)
        if isinstance(body, (Commit, Reveal, Freeze, Verdict)) and body.shard != self.shard:
            raise PeerError("other-shard", statement.kind)
        added = self._add(statement, direct)
        self._version += added in ("new", "proposal")
        return added

    def _add(self, statement: Statement, direct: bool) -> Added:
        match statement.body:
            case Commit() as body:
                for commit_item in body.items:
                    self._commits.pop(commit_item.task, None)
                return self._told(statement, self._files.add_commit(statement, body, direct))
            case Reveal() as body:
                for item in body.items:
                    self._decisions.pop(item.task, None)
                    self._results.pop(item.task, None)
                return self._told(statement, self._files.add_reveal(statement, body))
            case Checkpoint() as body:
                self._results.pop(body.task, None)
                return self._told(statement, self._files.add_checkpoint(statement, body))
            case Freeze() as body:
                return self._add_freeze(statement, body)
            case Verdict() as body:
                return self._add_verdict(statement, body)
            case _:
                raise PeerError("not-of-a-shard", statement.kind)

    def _told(self, statement: Statement, folded: Folded) -> Added:
        """What to say of a worker's statement."""
        if folded.contradicts is not None:
            self._version += folded.changed
            return Contradiction(*sorted((folded.contradicts, statement), key=lambda one: one.id))
        if folded.orphan:
            self._version += folded.changed
            return "orphan"
        return "new" if folded.changed else "known"

    # --- freezes and verdicts --------------------------------------------------------------------------------------
    def _add_freeze(self, statement: Statement, body: Freeze) -> Added:
        was_founded = statement.id in self._freezes.founded
        if not was_founded:
            freezes.check_freeze(body, self.tasks)
        merged = self._freezes.offered(statement)
        if merged is None or not (was_founded or freezes.fits(self._job, body)):
            return "orphan"
        added = self._freezes.keep(merged)
        if statement.id in self._freezes.founded:
            # A quorum's word stands whether its commits are here or not; they are taken when they come.
            self._waiting.discard(statement.id)
            if not was_founded:
                self._note_freeze(merged)
                self._bound(self._freezes)
            return added
        return self._add_proposal(statement.id, body, added)

    def _add_proposal(self, id: StatementId, body: Freeze, added: facts.Added) -> Added:
        """Its signatures gather while its commits are on their way."""
        if not freezes.all_here(body, self._files.holds):
            self._waiting = {other for other in self._waiting if self._freezes.get(other) is not None} | {id}
            return "orphan"
        if id not in self._waiting:
            return added
        self._waiting.discard(id)
        return "proposal"

    def _note_freeze(self, statement: Statement) -> None:
        freeze: Freeze = statement.body
        for item in freeze.items:
            self._files.of(item.task).freezes.append(statement.id)
            self._forget(item.task)
            for entry in freezes.entries_of(freeze, item):
                self._files.name(item.task, entry.worker, entry.commit)

    def _add_verdict(self, statement: Statement, body: Verdict) -> Added:
        was_founded = statement.id in self._verdicts.founded
        agree = self._job.spec.validate.agree
        if not was_founded and not verdicts.check_verdict(body, self.tasks, agree, self._freezes.get):
            return "orphan"
        merged = self._verdicts.offered(statement)
        if merged is None:
            return "orphan"
        added = self._verdicts.keep(merged)
        if added != "known" and statement.id in self._verdicts.founded:
            self._note_verdict(merged)
            self._bound(self._verdicts)
        return added

    def _note_verdict(self, statement: Statement) -> None:
        for item in statement.body.items:
            self._files.of(item.task).verdicts.append(statement.id)
            self._forget(item.task)

    def _bound(self, table: CosignedTable) -> None:
        """Only a quorum of seats can fill it: what does not count goes first, then the older epochs."""
        if len(table.founded) > limits.FOUNDED_PER_SHARD_MAX:
            founded = table.founded.values()
            last = max(founded, key=lambda one: (not table.counts(one), -one.body.epoch, one.id))
            table.drop(last.id)
            for file in self._files.known.values():
                file.freezes = [id for id in file.freezes if id != last.id]
                file.verdicts = [id for id in file.verdicts if id != last.id]
            self._forget_all()

    # --- what is known of one task ---------------------------------------------------------------------------------
    def commit_of(self, task: int, worker: PeerId) -> CommitFact | None:
        """The commit of a worker: the one that the freeze names; else the first that came, unless the worker is proven
        to have signed another."""
        return self.commits(task).get(worker)

    def commits(self, task: int) -> Mapping[PeerId, CommitFact]:
        """Of each worker its commit, by key."""
        self._follow_job()
        found = self._commits.get(task)
        if found is not None:
            return found
        file = self._files.known.get(task)
        if file is None:
            return {}
        found = self._commits[task] = self._commits_of(task, file)
        return found

    def _commits_of(self, task: int, file: TaskFile) -> dict[PeerId, CommitFact]:
        decision = self.verdict(task)
        frozen = self.frozen(task) if decision is None else decision.frozen
        named = {} if frozen is None else {entry.worker: entry.commit for entry in frozen.entries}
        faulty = self._job.faults()
        found: dict[PeerId, CommitFact] = {}
        for worker in sorted(file.commits.of, key=key_of_peer_id):
            if worker in named:
                fact = file.commits.get(worker, named[worker])
            else:
                fact = None if worker in faulty else file.commits.first(worker)
            if fact is not None:
                found[worker] = fact
        return found

    def frozen(self, task: int) -> Frozen | None:
        """What the freeze with the highest round that counts says of a task."""
        self._follow_job()
        if task not in self._frozen:
            self._frozen[task] = freezes.latest(self._counting_freezes(task))
        return self._frozen[task]

    def _counting_freezes(self, task: int) -> Iterator[Frozen]:
        file = self._files.known.get(task)
        for id in () if file is None else file.freezes:
            statement = self._freezes.founded[id]
            found = freezes.frozen_of(statement, task) if self._freezes.counts(statement) else None
            if found is not None:
                yield found

    def reveal_of(self, task: int, worker: PeerId) -> RevealFact | None:
        """What a worker has shown of its commit."""
        commit = self.commit_of(task, worker)
        return None if commit is None else self._files.of(task).commits.reveals.get((worker, commit.statement.id))

    def shown(self, task: int) -> tuple[Shown, ...]:
        """What the entries of `frozen(task)` have shown, in its order; results that share a checkpoint in one group."""
        self._follow_job()
        found = self._results.get(task)
        if found is None:
            frozen = self.frozen(task)
            if frozen is None:
                return ()
            found = self._results[task] = self._joined(task, frozen, self._shown(task, frozen))
        return found

    def _shown(self, task: int, frozen: Frozen) -> tuple[Shown, ...]:
        """In the groups that the freeze names."""
        reveals = self._files.of(task).commits.reveals
        return tuple(_shown(entry, reveals.get((entry.worker, entry.commit))) for entry in frozen.entries)

    def _joined(self, task: int, frozen: Frozen, shown: tuple[Shown, ...]) -> tuple[Shown, ...]:
        file = self._files.of(task)
        reveals = [file.commits.reveals.get((entry.worker, entry.commit)) for entry in frozen.entries]
        rests_on = [self._rests_on(file, entry, reveal) for entry, reveal in zip(frozen.entries, reveals, strict=True)]
        return joined(shown, rests_on)

    def _rests_on(self, file: TaskFile, entry: Entry, reveal: RevealFact | None) -> frozenset[Group]:
        if reveal is None or reveal.item.resumed is None:
            return frozenset()
        authors = file.checkpoints.ancestors(reveal.item.resumed)
        return frozenset(self._job.group(author) or author for author in authors if author != entry.worker)

    def rests_on(self, task: int, worker: PeerId) -> frozenset[PeerId]:
        """Whose checkpoints a worker's result rests on, as far as it was shown."""
        reveal = self.reveal_of(task, worker)
        if reveal is None or reveal.item.resumed is None:
            return frozenset()
        return self._files.of(task).checkpoints.ancestors(reveal.item.resumed)

    def want(self, checkpoint: Statement) -> bool:
        """Keep a checkpoint, since a result may come to rest on it. Whether that is new."""
        self._results.pop(checkpoint.body.task, None)
        wanted = self._files.want(checkpoint)
        self._version += wanted
        return wanted

    def judge(self, task: int, withheld: Collection[PeerId], idle_ms: Millis) -> Judgement:
        """What the frozen results come to. `withheld`: workers that are not waited for any more, and whose results do
        not count even if they are here. `idle_ms`: for how long there was no admissible claim."""
        shown = self.shown(task)
        places = [place for place, entry in enumerate(shown) if entry.worker in withheld]
        rule = self._job.spec.validate
        if not shown:
            return agreement.Undecided(rule.agree)
        return agreement.judge(shown, rule, agreement.exact, withheld=places, idle_ms=idle_ms)

    # --- verdicts --------------------------------------------------------------------------------------------------
    def verdict(self, task: int) -> Decision | None:
        """The verdict on a task that counts; of several, the one with the smallest id."""
        self._follow_job()
        if task not in self._decisions:
            found = min(self._counting_verdicts(task), key=lambda one: one[0].id, default=None)
            self._decisions[task] = None if found is None else self._decision(task, *found)
        return self._decisions[task]

    def _counting_verdicts(self, task: int) -> Iterator[tuple[Statement, VerdictItem, Frozen]]:
        file = self._files.known.get(task)
        for id in () if file is None else file.verdicts:
            statement = self._verdicts.founded[id]
            item = next(item for item in statement.body.items if item.task == task)
            frozen = self._judged(statement, item)
            if frozen is not None and self._verdicts.counts(statement):
                yield statement, item, frozen

    def _judged(self, statement: Statement, item: VerdictItem) -> Frozen | None:
        """What a verdict judged; None when its freeze does not count. Seats that adopt a verdict adopt its freezes."""
        freeze = self._freezes.founded.get(statement.body.freezes[item.freeze])
        adopted = statement.id in self._job.adopted(self.shard)
        if freeze is None or not (adopted or self._freezes.counts(freeze)):
            return None
        return freezes.frozen_of(freeze, item.task)

    def _decision(self, task: int, statement: Statement, item: VerdictItem, frozen: Frozen) -> Decision:
        if item.outcome == "failed":
            return Decision(statement, item, frozen, "failed", None, None, item.reason)
        entry = frozen.entries[item.representative]
        reveal = self._files.of(task).commits.reveals.get((entry.worker, entry.commit))
        root = None if reveal is None else reveal.root
        return Decision(statement, item, frozen, "accepted", entry.worker, root, item.reason)

    def error_in(self, item: VerdictItem, verdict: Verdict, *, joined: bool = False) -> str | None:
        """Why one task of a verdict is not what its freeze and the reveals here come to; None: it is.

        `joined`: as whoever is to sign it asks, who lets results that share a checkpoint count as one.
        """
        self._follow_job()
        if item.task not in self.tasks or item.freeze >= len(verdict.freezes):
            return "it names a task or a freeze that is not there"
        freeze = self._freezes.founded.get(verdict.freezes[item.freeze])
        frozen = None if freeze is None else freezes.frozen_of(freeze, item.task)
        if frozen is None:
            return "the freeze that it judges does not count, or is not about the task"
        places = [item.representative, *item.missing, *(place for pair in item.pairs for place in pair)]
        if any(place >= len(frozen.entries) for place in places):
            return "it names a result that the freeze does not have"
        shown = self._shown(item.task, frozen)
        whole = self._joined(item.task, frozen, shown)
        views = (whole, whole) if joined else (shown, whole)
        return verdicts.error_in(item, views, self._job.spec.validate, agreement.exact)

    @property
    def decided(self) -> int:
        """How many tasks have a verdict that counts."""
        return sum(1 for task in self._files.known if self.verdict(task) is not None)

    def outputs(self, task: int) -> tuple[File, ...]:
        """The files of the accepted result; none when there is none, or its reveal is not here."""
        decision = self.verdict(task)
        if decision is None or decision.outcome != "accepted":
            return ()
        entry = decision.frozen.entries[decision.item.representative]
        reveal = self._files.of(task).commits.reveals.get((entry.worker, entry.commit))
        return () if reveal is None else reveal.item.outputs

    # --- what is here ----------------------------------------------------------------------------------------------
    def proposals(self) -> list[Statement]:
        """Freezes, then verdicts, that too few seats have signed so far."""
        return [*self._freezes.proposals(), *self._verdicts.proposals()]

    def adoptable(self) -> list[StatementId]:
        """Freezes and verdicts of earlier epochs that the present seats' adoption should name, if its signers find
        them valid: what counted, and each verdict's freezes. Section 4.1."""
        self._follow_job()
        since, adopted = self._job.adopted_last(self.shard)
        present = self._job.seats(self.shard).epoch
        return sorted(
            statement.id
            for table in (self._freezes, self._verdicts)
            for statement in table.founded.values()
            if since <= statement.body.epoch < present or statement.id in adopted
        )

    def statements_of(self, tasks: Iterable[int]) -> list[Statement]:
        """The evidence of these tasks, each statement once, in an order in which `add` takes it.

        Of a decided task: what its verdict rests on. Of another: its commits, the freeze that counts, and reveals.
        """
        found = [list(self._evidence(task)) for task in tasks if task in self._files.known]
        parts = ([s for part in found for s in part if s.kind == kind] for kind in _ORDER)
        return list({statement.id: statement for part in parts for statement in part}.values())

    def _evidence(self, task: int) -> Iterator[Statement]:
        decision = self.verdict(task)
        frozen = self.frozen(task) if decision is None else decision.frozen
        file = self._files.of(task)
        yield from file.checkpoints.rested_on.values()
        if decision is not None:
            yield decision.statement
        else:
            yield from (fact.statement for fact in self.commits(task).values())
        if frozen is None:
            return
        yield frozen.statement
        for entry in frozen.entries:
            yield from self._files.evidence(task, entry.worker, entry.commit)

    def ids(self) -> list[StatementId]:
        """Everything that all seats should hold alike, sorted: proposals are not."""
        version = self.version
        if self._ids[0] != version:
            founded = (*self._freezes.founded, *self._verdicts.founded)
            self._ids = version, sorted({*self._files.ids(), *founded})
        return self._ids[1]

    def get(self, id: StatementId) -> Statement | None:
        """A statement that is here, proposals with their signatures so far included."""
        return self._files.get(id) or self._freezes.get(id) or self._verdicts.get(id)


_ORDER = ("freeze", "commit", "checkpoint", "reveal", "verdict")
"""Freezes first: a quorum's stands without its commits, and says which of two contradicting ones is kept."""


def _shown(entry: Entry, reveal: RevealFact | None) -> Shown:
    if reveal is None:
        return Shown(entry.worker, entry.group, None, 0, None)
    return Shown(entry.worker, entry.group, reveal.item.outcome, reveal.item.exit, reveal.root)
