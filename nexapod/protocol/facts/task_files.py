"""What workers have said about the tasks of one shard: their commits, what they showed of them, their checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts.checkpoints import Checkpoints
from nexapod.protocol.facts.commits import (
    CommitFact,
    Commits,
    RevealFact,
    check_commit,
    check_reveal,
    opened,
    surplus,
)
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import PeerId, StatementId
from nexapod.protocol.tables import TableReport, longest
from nexapod.protocol.wire.bodies import Checkpoint, Commit, CommitItem, Reveal, RevealItem
from nexapod.protocol.wire.statements import Statement


@dataclass(slots=True)
class TaskFile:
    """What is known of one task. Freezes and verdicts are those that a quorum of their epoch signed, or that were
    adopted."""

    commits: Commits = field(default_factory=Commits)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    freezes: list[StatementId] = field(default_factory=list)
    verdicts: list[StatementId] = field(default_factory=list)
    named: dict[PeerId, set[StatementId]] = field(default_factory=dict)
    """Commits that those freezes name."""


@dataclass(frozen=True, slots=True)
class Folded:
    """What became of a worker's statement."""

    changed: bool
    orphan: bool = False
    """What a part of it answers may still come."""
    contradicts: Statement | None = None


ORPHAN = Folded(False, orphan=True)


class TaskFiles:
    """Of each task that was heard of its file. Only admitted workers have anything in it."""

    def __init__(self, job: JobState, tasks: range) -> None:
        self._job = job
        self._tasks = tasks
        self.known: dict[int, TaskFile] = {}
        self.uses: dict[StatementId, tuple[Statement, int]] = {}
        """Commits and reveals, and how many facts stand on each."""
        self._checkpointed: dict[StatementId, int] = {}
        """The checkpoints that are here, and their tasks."""

    def of(self, task: int) -> TaskFile:
        file = self.known.get(task)
        if file is None:
            file = self.known[task] = TaskFile()
        return file

    def tables(self) -> tuple[TableReport, ...]:
        """Of what there is for each task, the fullest."""
        files = self.known.values()
        unnamed = max((len(file.commits.of.keys() - file.named.keys()) for file in files), default=0)
        newest = longest(file.checkpoints.newest for file in files)
        lineage = longest(file.checkpoints.lineage for file in files)
        return (
            TableReport("commits to a task that no freeze names", unnamed, limits.COMMITS_PER_TASK_MAX),
            TableReport("checkpoints of a task", newest, limits.CHECKPOINTS_PER_TASK_MAX),
            TableReport("lineage of a task", lineage, limits.LINEAGE_MAX),
        )

    def holds(self, task: int, worker: PeerId, commit: StatementId) -> bool:
        """Whether a commit is here, is the worker's, and has the task."""
        file = self.known.get(task)
        return file is not None and file.commits.get(worker, commit) is not None

    # --- commits ---------------------------------------------------------------------------------------------------
    def add_commit(self, statement: Statement, body: Commit, direct: bool) -> Folded:
        check_commit(body, self._tasks)
        if not self._job.groups_seen(statement.author):
            return ORPHAN
        folded = [self._fold_commit(statement, item, direct) for item in body.items]
        contradicted = next((other for _, other in folded if other is not None), None)
        return Folded(any(changed for changed, _ in folded), contradicts=contradicted)

    def _fold_commit(self, statement: Statement, item: CommitItem, direct: bool) -> tuple[bool, Statement | None]:
        """Whether it changed anything, and the commit that it contradicts."""
        file, worker = self.of(item.task), statement.author
        known = file.commits.get(worker, statement.id)
        if known is not None:
            if direct and not known.direct:
                file.commits.seen_directly(known)
            return direct and not known.direct, None
        first = file.commits.first(worker)
        is_named = statement.id in file.named.get(worker, ())
        kept = is_named or (first is None and worker not in self._job.faults())
        if kept:
            kept = self._keep_commit(file, item.task, CommitFact(statement, item, direct))
        excludes = first is not None and first.item.sealed != item.sealed
        return kept, first.statement if first is not None and excludes else None

    def _keep_commit(self, file: TaskFile, task: int, fact: CommitFact) -> bool:
        worker = fact.statement.author
        file.commits.put(fact)
        self._use(fact.statement)
        self._prefer_named(file, worker)
        if len(file.commits.of) > limits.COMMITS_PER_GROUP_MAX:
            groups = {peer: next(iter(self._job.groups_seen(peer)), "") for peer in file.commits.of}
            for other in surplus(groups, self._job.lottery.draw(task), file.named):
                self._drop(file, other)
        return worker in file.commits.of

    def name(self, task: int, worker: PeerId, commit: StatementId) -> None:
        """A freeze names this commit: of the worker's it is the one that is kept."""
        file = self.of(task)
        file.named.setdefault(worker, set()).add(commit)
        self._prefer_named(file, worker)

    def _prefer_named(self, file: TaskFile, worker: PeerId) -> None:
        """Once a commit is here that a freeze names, others of the worker are of no use."""
        named = file.named.get(worker, ())
        if any(id in named for id in file.commits.of.get(worker, ())):
            self._drop(file, worker)

    def bar_faulty(self) -> None:
        """Forget commits of workers at fault, but those that a freeze names."""
        for file in self.known.values():
            for worker in [worker for worker in file.commits.of if worker in self._job.faults()]:
                self._drop(file, worker)

    def _drop(self, file: TaskFile, worker: PeerId) -> None:
        for statement in file.commits.drop(worker, file.named.get(worker, ())):
            self._unuse(statement)

    # --- reveals ---------------------------------------------------------------------------------------------------
    def add_reveal(self, statement: Statement, body: Reveal) -> Folded:
        check_reveal(body, self._tasks, self._job.spec)
        worker = statement.author
        found = [(item, self.of(item.task).commits.get(worker, item.commit)) for item in body.items]
        opening = [
            RevealFact(statement, item, opened(self._job.job, worker, item, commit.item))
            for item, commit in found
            if commit is not None
        ]
        folded = [self._fold_reveal(fact) for fact in opening]
        awaited = any(commit is None and self._may_come(item, worker) for item, commit in found)
        return Folded(any(folded), orphan=awaited)

    def _may_come(self, item: RevealItem, worker: PeerId) -> bool:
        """Whether the commit that a reveal names may still come: another of the worker's is not here instead."""
        file = self.of(item.task)
        return file.commits.first(worker) is None or item.commit in file.named.get(worker, ())

    def _fold_reveal(self, fact: RevealFact) -> bool:
        """Of several that show the same, the one with the smallest id is kept, everywhere."""
        file = self.of(fact.item.task)
        key = fact.statement.author, fact.item.commit
        old = file.commits.reveals.get(key)
        if old is not None and old.statement.id <= fact.statement.id:
            return False
        if old is not None:
            self._unuse(old.statement)
        file.commits.reveals[key] = fact
        self._use(fact.statement)
        if fact.item.resumed is not None:
            file.checkpoints.want(fact.item.resumed)
        return True

    # --- checkpoints -----------------------------------------------------------------------------------------------
    def add_checkpoint(self, statement: Statement, body: Checkpoint) -> Folded:
        if body.task not in self._tasks:
            raise PeerError("bad-checkpoint", "the shard has no such task")
        if self._job.spec.run.checkpoint != "shared":
            raise PeerError("bad-checkpoint", "the job shares none")
        if not self._job.groups_seen(statement.author):
            return ORPHAN
        checkpoints = self.of(body.task).checkpoints
        standing = self._standing(body.task, {*checkpoints.newest, statement.author})
        before = checkpoints.all()
        changed = checkpoints.add(statement, standing)
        if changed:
            for gone in before:
                del self._checkpointed[gone.id]
            self._checkpointed |= {kept.id: body.task for kept in checkpoints.all()}
        return Folded(changed)

    def want(self, checkpoint: Statement) -> bool:
        """Keep a checkpoint that somebody is to go on from. Whether that is new."""
        checkpoints = self.of(checkpoint.body.task).checkpoints
        if checkpoint.id in checkpoints.rested_on:
            return False
        checkpoints.want(checkpoint.id)
        self.add_checkpoint(checkpoint, checkpoint.body)
        return checkpoint.id in checkpoints.rested_on

    def _standing(self, task: int, authors: Iterable[PeerId]) -> dict[PeerId, int]:
        """Where each stands in the draw of a task."""
        places = {group: place for place, group in enumerate(self._job.lottery.draw(task))}
        return {peer: places.get(self._job.group(peer) or "", len(places)) for peer in authors}

    # --- what is here ----------------------------------------------------------------------------------------------
    def evidence(self, task: int, worker: PeerId, commit: StatementId) -> list[Statement]:
        """A worker's commit and its reveal, if they are here, and the commits that this shows besides."""
        own = self.of(task).commits
        fact, reveal = own.get(worker, commit), own.reveals.get((worker, commit))
        found = [] if fact is None else [fact.statement]
        if reveal is None:
            return found
        shown = {(item.commit, item.task) for item in reveal.statement.body.items if item.commit != commit}
        besides = [id for id, shown_task in sorted(shown) if self.holds(shown_task, worker, id)]
        return [*found, *(self.uses[id][0] for id in dict.fromkeys(besides)), reveal.statement]

    def get(self, id: StatementId) -> Statement | None:
        used = self.uses.get(id)
        if used is not None:
            return used[0]
        task = self._checkpointed.get(id)
        return None if task is None else self.known[task].checkpoints.get(id)

    def ids(self) -> list[StatementId]:
        return [*self.uses, *self._checkpointed]

    def _use(self, statement: Statement) -> None:
        _, uses = self.uses.get(statement.id, (statement, 0))
        self.uses[statement.id] = statement, uses + 1

    def _unuse(self, statement: Statement) -> None:
        _, uses = self.uses.pop(statement.id)
        if uses > 1:
            self.uses[statement.id] = statement, uses - 1
