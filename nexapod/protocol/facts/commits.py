"""What workers have committed to and shown of one task (docs/protocol.md, Commit, freeze, reveal)."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import Digest, JobId, PeerId, StatementId, key_of_peer_id
from nexapod.protocol.types import Group, JobSpec
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.bodies import Commit, CommitItem, Reveal, RevealItem
from nexapod.protocol.wire.statements import Statement


@dataclass(frozen=True, slots=True)
class CommitFact:
    """One task of a commit. `direct`: this node saw it on the worker's own link."""

    statement: Statement
    item: CommitItem
    direct: bool


@dataclass(frozen=True, slots=True)
class RevealFact:
    """One task of a reveal, and its output root."""

    statement: Statement
    item: RevealItem
    root: Digest


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two different commits of one worker to one task: the proof of a fault."""

    first: Statement
    second: Statement


_Variants: TypeAlias = dict[StatementId, CommitFact]


@dataclass(slots=True)
class Commits:
    """The commits to one task and what was shown of them, by worker.

    Of one worker that is every one that a freeze names; if there is none, the first that came.
    """

    of: dict[PeerId, _Variants] = field(default_factory=dict)
    reveals: dict[tuple[PeerId, StatementId], RevealFact] = field(default_factory=dict)
    """By worker and commit."""

    def get(self, worker: PeerId, commit: StatementId) -> CommitFact | None:
        return self.of.get(worker, {}).get(commit)

    def first(self, worker: PeerId) -> CommitFact | None:
        return next(iter(self.of.get(worker, {}).values()), None)

    def put(self, fact: CommitFact) -> None:
        self.of.setdefault(fact.statement.author, {})[fact.statement.id] = fact

    def seen_directly(self, fact: CommitFact) -> None:
        self.of[fact.statement.author][fact.statement.id] = replace(fact, direct=True)

    def drop(self, worker: PeerId, but: Container[StatementId] = ()) -> list[Statement]:
        """Forget a worker's commits (but these) and what was shown of them; the statements of what went."""
        own = self.of.get(worker, {})
        gone = [id for id in own if id not in but]
        dropped = [own.pop(id).statement for id in gone]
        shown = [self.reveals.pop((worker, id)) for id in gone if (worker, id) in self.reveals]
        if not own:
            self.of.pop(worker, None)
        return [*dropped, *(fact.statement for fact in shown)]


def check_commit(body: Commit, tasks: range) -> None:
    """Raises PeerError when it cannot be a commit to tasks of this shard."""
    named = [item.task for item in body.items]
    if len(set(named)) != len(named) or not all(task in tasks for task in named):
        raise PeerError("bad-commit", "it names tasks that the shard does not have, or one twice")


def check_reveal(body: Reveal, tasks: range, spec: JobSpec) -> None:
    """Raises PeerError when it cannot be a reveal of tasks of this shard."""
    named = [item.task for item in body.items]
    if len(set(named)) != len(named) or not all(task in tasks for task in named):
        raise PeerError("bad-reveal", "it names tasks that the shard does not have, or one twice")
    for item in body.items:
        paths = [file.path for file in item.outputs]
        if len(set(paths)) != len(paths):
            raise PeerError("bad-reveal", "two outputs have the same path", penalty=30)
        if item.outputs and item.outcome != "ok":
            raise PeerError("bad-reveal", "a result that did not end well has no outputs", penalty=30)
        if sum(file.blob.size for file in item.outputs) > spec.limits.output:
            raise PeerError("bad-reveal", "its outputs are larger than the job allows", penalty=50)


def opened(job: JobId, worker: PeerId, item: RevealItem, commit: CommitItem) -> Digest:
    """The output root that a reveal shows. Raises PeerError when it is not what the commit sealed."""
    root = statements.output_root(item.outcome, item.exit, item.outputs)
    if commit.sealed != statements.commitment(job, item.task, worker, item.salt, root, item.resumed):
        raise PeerError("bad-reveal", "it is not what the worker committed to", penalty=50)
    return root


def surplus(
    groups: Mapping[PeerId, Group], draw: tuple[Group, ...], others: Collection[PeerId] = ()
) -> tuple[PeerId, ...]:
    """Which workers' commits have no room: at most COMMITS_PER_GROUP_MAX of a group, by key, and COMMITS_PER_TASK_MAX
    in all, by the draw. Nobody chooses its place in it. `others` are kept whatever they are."""
    places = {group: place for place, group in enumerate(draw)}
    counted = sorted((worker for worker in groups if worker not in others), key=key_of_peer_id)
    of_group: dict[Group, int] = {}
    kept: list[PeerId] = []
    gone: list[PeerId] = []
    for worker in counted:
        of_group[groups[worker]] = of_group.get(groups[worker], 0) + 1
        (kept if of_group[groups[worker]] <= limits.COMMITS_PER_GROUP_MAX else gone).append(worker)
    kept.sort(key=lambda worker: (places.get(groups[worker], len(places)), groups[worker], key_of_peer_id(worker)))
    return (*gone, *kept[limits.COMMITS_PER_TASK_MAX :])
