"""One shard's statements, folded: who bid, committed, revealed and judged what (docs/protocol.md, Shard).

Stewards, the submitter and the certificate checker use the same fold. The order in which statements arrive does not
matter: where two exclude each other, the same one is kept everywhere. Knows nothing of leases, clocks or peers' views.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from nexapod.protocol.errors import PeerError
from nexapod.protocol.limits import BIDS_PER_PEER_MAX, REPLICAS_MAX, SHARD_TASKS, STATEMENTS_PER_SHARD_MAX
from nexapod.protocol.quorum import Failed, Result, judge, majority
from nexapod.protocol.statements import Bid, Commit, Fault, Reveal, Statement, Verdict, commitment
from nexapod.protocol.types import Digest, JobId, JobSpec, PeerId, StatementId


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two different commits of one worker for one task: the proof of a fault."""

    first: Statement
    second: Statement


Added: TypeAlias = Literal["new", "known", "orphan"] | Contradiction
"""`orphan`: what it answers has not arrived; offer it again after that."""


@dataclass(slots=True)
class TaskFile:
    """What is known of one task, by author."""

    commits: dict[PeerId, Statement] = field(default_factory=dict)
    reveals: dict[PeerId, Statement] = field(default_factory=dict)
    verdicts: dict[PeerId, Statement] = field(default_factory=dict)
    faults: dict[PeerId, Statement] = field(default_factory=dict)

    def statements(self) -> Iterator[Statement]:
        for table in (self.commits, self.reveals, self.verdicts, self.faults):
            yield from table.values()


class ShardState:
    """The statements of one shard of one job."""

    def __init__(self, job: JobId, spec: JobSpec, shard: int) -> None:
        self.job = job
        self.spec = spec
        self.shard = shard
        self.tasks = spec.shard_tasks(shard)
        self.bids: dict[StatementId, Statement] = {}
        self._bids_of_author: dict[PeerId, list[StatementId]] = {}
        self._answered: set[StatementId] = set()
        """Bids that a commit names."""
        self.files: dict[int, TaskFile] = {}
        self._count = 0
        self._summary: tuple[int, Digest] | None = None

    def file(self, task: int) -> TaskFile:
        """The file of a task of this shard."""
        assert task in self.tasks
        return self.files.setdefault(task, TaskFile())

    # --- the fold --------------------------------------------------------------------------------------------------
    def add(self, statement: Statement) -> Added:
        """Fold one statement in. Raises PeerError when it cannot be true of this job."""
        match statement.body:
            case Bid() as bid:
                return self._add_bid(statement, bid)
            case Commit() as commit:
                self._check_task(commit.task)
                return self._add_commit(statement, commit)
            case Reveal() as reveal:
                self._check_task(reveal.task)
                return self._add_reveal(statement, reveal)
            case Verdict() as verdict:
                self._check_task(verdict.task)
                return self._add_verdict(statement, verdict)
            case Fault() as fault:
                self._check_task(fault.task)
                return self._keep(self.file(fault.task).faults, fault.peer, statement, smaller_id)
            case _:
                raise PeerError("not-of-a-shard", statement.kind)

    def _check_task(self, task: int) -> None:
        if task not in self.tasks:
            raise PeerError("no-such-task", "the job has no such task in this shard")

    def _add_bid(self, statement: Statement, bid: Bid) -> Added:
        if bid.shard != self.shard or not all(task in self.tasks for task in bid.tasks):
            raise PeerError("no-such-task", "the bid names tasks that the job does not have")
        if statement.id in self.bids:
            return "known"
        own = self._bids_of_author.setdefault(statement.author, [])
        if len(own) >= BIDS_PER_PEER_MAX or len(self.bids) >= STATEMENTS_PER_SHARD_MAX:
            # One peer's bids push out its own, and in a full table the oldest: those that no commit has answered.
            spare = next((i for i in (own if len(own) >= BIDS_PER_PEER_MAX else self.bids) if self._is_spare(i)), None)
            if spare is None:
                return "orphan"
            self._bids_of_author[self.bids.pop(spare).author].remove(spare)
        own.append(statement.id)
        self.bids[statement.id] = statement
        return "new"

    def _is_spare(self, bid: StatementId) -> bool:
        return bid not in self._answered

    def _add_commit(self, statement: Statement, commit: Commit) -> Added:
        bid = self.bids.get(commit.bid)
        if bid is None:
            return "orphan"
        if bid.author != statement.author or commit.task not in bid.body.tasks:
            raise PeerError("bad-commit", "the bid is not this worker's, or not for this task", penalty=30)
        self._answered.add(commit.bid)
        file = self.file(commit.task)
        old = file.commits.get(statement.author)
        if old is not None and old.id != statement.id:
            if self._keep(file.commits, statement.author, statement, smaller_id) == "new":
                # What answered the other commit would be an orphan now, had it arrived in another order.
                self._count -= file.reveals.pop(statement.author, None) is not None
            return Contradiction(*sorted((old, statement), key=lambda s: s.id))
        return self._keep(file.commits, statement.author, statement, smaller_id)

    def prefer(self, commit: Statement) -> None:
        """Of two commits of one worker, take this one, and wait for what answers it. For who judges nothing itself."""
        file = self.file(commit.body.task)
        file.commits[commit.author] = commit
        self._count -= file.reveals.pop(commit.author, None) is not None
        self._summary = None

    def _add_reveal(self, statement: Statement, reveal: Reveal) -> Added:
        file = self.file(reveal.task)
        commit = file.commits.get(statement.author)
        if commit is None or commit.id != reveal.commit:
            return "orphan"
        sealed = commitment(self.job, reveal.task, statement.author, reveal.salt, reveal.root)
        if commit.body.sealed != sealed:
            raise PeerError("bad-reveal", "it is not what the worker committed to", penalty=50)
        if sum(file.blob.size for file in reveal.outputs) > self.spec.limits.output:
            raise PeerError("bad-reveal", "its outputs are larger than the job allows", penalty=50)
        return self._keep(file.reveals, statement.author, statement, smaller_id)

    def _add_verdict(self, statement: Statement, verdict: Verdict) -> Added:
        agreed = {vote.group for vote in verdict.votes if vote.agreed}
        if verdict.outcome == "accepted" and len(agreed) < self.spec.validate.agree:
            raise PeerError("bad-verdict", "it accepts a result with too few votes", penalty=50)
        if verdict.outcome == "failed" and len({v.worker for v in verdict.votes}) < self.spec.validate.max_replicas:
            raise PeerError("bad-verdict", "it gives up before every replica was tried", penalty=50)
        return self._keep(self.file(verdict.task).verdicts, statement.author, statement, later_verdict)

    def _keep(
        self,
        table: dict[PeerId, Statement],
        author: PeerId,
        statement: Statement,
        better: Callable[[Statement, Statement], bool],
    ) -> Added:
        old = table.get(author)
        if old is not None and not better(statement, old):
            return "known"
        # Sixteen replicas and a handful of stewards are what a task can have; the rest is somebody's flood.
        if old is None and (len(table) >= 4 * REPLICAS_MAX or self._count >= STATEMENTS_PER_SHARD_MAX):
            return "known"
        self._count += old is None
        table[author] = statement
        self._summary = None
        return "new"

    # --- what it says ----------------------------------------------------------------------------------------------
    def results(self, task: int, group_of: Callable[[PeerId], str]) -> list[Result]:
        """The reveals of a task that may be counted: those of workers without a fault on it."""
        file = self.files.get(task)
        if file is None:
            return []
        groups = lineages(file.reveals, group_of)
        return [
            Result(s.id, worker, groups[worker], s.body.outcome, s.body.root)
            for worker, s in file.reveals.items()
            if worker not in file.faults
        ]

    def supported(self, task: int, verdict: Verdict) -> bool:
        """Whether the reveals that are known here bear out a verdict, whatever its author claims of them."""
        file = self.file(task)
        if verdict.outcome == "failed":
            return self._fails(file, verdict)
        own = lineages(file.reveals, lambda worker: worker)
        agreeing = {
            own[worker]
            for worker, s in file.reveals.items()
            if s.body.root == verdict.root and s.body.outcome == "ok" and worker not in file.faults
        }
        return len(agreeing) >= self.spec.validate.agree

    def _fails(self, file: TaskFile, verdict: Verdict) -> bool:
        """Whether the results that a verdict counted come to nothing, each worker's once, in the groups that it saw.

        A worker that was proven at fault since has had its turn, and gave nothing that counts.
        """
        counted = []
        for worker, vote in {vote.worker: vote for vote in verdict.votes}.items():
            shown = file.reveals.get(worker)
            if worker in file.faults:
                counted.append(Result(vote.reveal, worker, vote.group, "failed", Digest(bytes(32))))
            elif shown is not None:
                counted.append(Result(vote.reveal, worker, vote.group, shown.body.outcome, shown.body.root))
        return isinstance(judge(counted, self.spec.validate), Failed)

    def listed(self, task: int) -> int:
        """The most stewards that any verdict on a task lists: one that lists itself alone decides nothing."""
        file = self.files.get(task)
        return max((len(s.body.stewards) for s in file.verdicts.values()), default=0) if file is not None else 0

    def decided(self, task: int, stewards: int) -> Verdict | None:
        """The judgement that a majority of the stewards has signed, if there is one.

        `stewards` is how many there are by the caller's own view; a verdict that lists more raises the majority. Should
        a partition have let two be settled, the one whose smallest verdict id is smallest is kept, everywhere.
        """
        file = self.files.get(task)
        if file is None or not file.verdicts:
            return None
        tally: dict[tuple[str, Digest], list[Statement]] = {}
        for statement in file.verdicts.values():
            tally.setdefault(statement.body.result, []).append(statement)
        settled = [
            min(signed, key=lambda s: s.id)
            for signed in tally.values()
            if len(signed) >= majority(max(stewards, *(len(s.body.stewards) for s in signed)))
            and any(self.supported(task, s.body) for s in signed)
        ]
        if not settled:
            return None
        verdict: Verdict = min(settled, key=lambda s: s.id).body
        return verdict

    def evidence(self, task: int) -> list[Statement]:
        """The statements of one task, each before those that answer it."""
        file = self.files.get(task)
        if file is None:
            return []
        return [*self._bids_of(file), *file.statements()]

    def statements(self) -> list[Statement]:
        """What stewards keep alike: every commit, reveal, verdict and fault, and the bids that were answered."""
        found: dict[StatementId, Statement] = {}
        for file in self.files.values():
            for statement in (*self._bids_of(file), *file.statements()):
                found[statement.id] = statement
        return list(found.values())

    def summary(self) -> tuple[int, Digest]:
        """How many statements, and a digest over their sorted ids."""
        if self._summary is None:
            ids = sorted(s.id for s in self.statements())
            self._summary = (len(ids), Digest(hashlib.sha256(b"".join(ids)).digest()))
        return self._summary

    def _bids_of(self, file: TaskFile) -> list[Statement]:
        # A contradicted commit may name a bid that this node never saw: then there is nothing to show.
        return [self.bids[c.body.bid] for c in file.commits.values() if c.body.bid in self.bids]


def lineages(reveals: Mapping[PeerId, Statement], group_of: Callable[[PeerId], str]) -> dict[PeerId, str]:
    """The group in which each result has its vote.

    A result that went on from another worker's checkpoint is only as independent of it as two results of one operator:
    all that build, directly or not, on something in common are one group, named by the smallest name among theirs.
    """
    names = {worker: {group_of(p) for p in (worker, *s.body.continued)} for worker, s in reveals.items()}
    if all(len(of_one) == 1 for of_one in names.values()):
        return {worker: next(iter(of_one)) for worker, of_one in names.items()}
    clusters: list[set[str]] = []
    for worker in sorted(names):
        touching = [cluster for cluster in clusters if cluster & names[worker]]
        clusters = [cluster for cluster in clusters if cluster not in touching]
        clusters.append(names[worker].union(*touching))
    return {worker: min(next(c for c in clusters if of_one <= c)) for worker, of_one in names.items()}


def shard_of(statement: Statement) -> int:
    """The shard that a statement about tasks belongs to."""
    body = statement.body
    return body.shard if isinstance(body, Bid) else body.task // SHARD_TASKS


def smaller_id(new: Statement, old: Statement) -> bool:
    """Which of two that exclude each other is kept: the same one everywhere."""
    return new.id < old.id


def later_verdict(new: Statement, old: Statement) -> bool:
    """A steward's later verdict rests on more reveals; between two on equally many, the smaller id is kept."""
    return (len(new.body.votes), old.id) > (len(old.body.votes), new.id)
