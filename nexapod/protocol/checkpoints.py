"""What a steward keeps of tasks that still run, so that another worker can go on (docs/protocol.md, Checkpoints).

For each task the checkpoints of a few workers: of each the newest that is wholly here, and one that is on its way.
Knows no leases: its steward says whose checkpoint may be given to whom. Nothing is judged by a checkpoint; a result
that went on from one says so, and is no independent vote.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nexapod.protocol import limits
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.errors import PeerError
from nexapod.protocol.quorum import majority
from nexapod.protocol.statements import Statement
from nexapod.protocol.types import BlobRef, JobId, JobSpec, Millis, Part, PeerId, StatementId

CHECKPOINT_ROLE = "checkpoint"
VOUCHED_MAX = 2 * limits.SHARD_TASKS


@dataclass(slots=True)
class _OfWorker:
    """One worker's checkpoints of one task."""

    ready: Statement | None = None
    coming: Statement | None = None
    missing: set[BlobRef] = field(default_factory=set)
    """What `coming` waits for."""
    at: Millis = 0
    """When the newest was taken in."""
    handed: PeerId | None = None
    """Who was given `ready`, last."""

    def kept(self) -> Iterator[Statement]:
        for statement in (self.ready, self.coming):
            if statement is not None:
                yield statement


class Checkpoints:
    """Those of one shard, at one steward."""

    def __init__(self, ctx: Context, job: JobId, spec: JobSpec) -> None:
        self._ctx = ctx
        self._job = job
        self._spec = spec
        self._of_task: dict[int, dict[PeerId, _OfWorker]] = {}
        self._vouched: OrderedDict[StatementId, set[PeerId]] = OrderedDict()
        """Which stewards have passed on a checkpoint that is not taken in yet."""

    # --- taking in -------------------------------------------------------------------------------------------------
    def add(self, statement: Statement) -> None:
        """A worker that holds the task says what it keeps. Raises PeerError when the job does not allow it."""
        body = statement.body
        if self._spec.run.checkpoint != "shared":
            raise PeerError("bad-checkpoint", "the job does not share checkpoints")
        if sum(file.blob.size for file in body.files) > self._spec.limits.disk:
            raise PeerError("bad-checkpoint", "it is larger than the job allows", penalty=50)
        of_task = self._of_task.setdefault(body.task, {})
        old = of_task.get(statement.author, _OfWorker(at=-limits.CHECKPOINT_MIN_MS))
        newest = max((kept.body.seq for kept in old.kept()), default=-1)
        # A worker that keeps too much too often is not held to account: the next one will do.
        if body.seq <= newest or self._ctx.now < old.at + limits.CHECKPOINT_MIN_MS or not self._room(statement):
            return
        of_task[statement.author] = old
        old.coming, old.at = statement, self._ctx.now
        refs = {file.blob for file in body.files}
        old.missing = {ref for ref in refs if not self._ctx.has(Part.whole(ref))}
        for ref in sorted(refs):
            if ref in old.missing:
                self._ctx.fetch(Part.whole(ref), self._owner(body.task), [statement.author])
            else:
                self._ctx.hold(ref, self._owner(body.task))
        if not old.missing:
            self._arrived(body.task, old)

    def relayed(self, statement: Statement, steward: PeerId) -> None:
        """Another steward passes one on, since this node is new to the shard. It is taken in when two have: one could
        make it up, for a worker of its own that never held the task. Raises PeerError."""
        vouchers = self._vouched.setdefault(statement.id, set())
        vouchers.add(steward)
        while len(self._vouched) > VOUCHED_MAX:
            self._vouched.popitem(last=False)
        if len(vouchers) >= majority(limits.STEWARDS):
            self._vouched.pop(statement.id, None)
            self.add(statement)

    def ready(self) -> list[Statement]:
        """All that could be given out: what a new steward should have too."""
        return [o.ready for of_task in self._of_task.values() for o in of_task.values() if o.ready is not None]

    def restore(self, statement: Statement) -> None:
        """One that a former process of this node had saved, and so held."""
        task = statement.body.task
        of_worker = self._of_task.setdefault(task, {}).setdefault(statement.author, _OfWorker())
        if of_worker.ready is None or of_worker.ready.body.seq < statement.body.seq:
            of_worker.ready = statement
        for file in statement.body.files:
            self._ctx.hold(file.blob, self._owner(task))

    def _room(self, statement: Statement) -> bool:
        """A new worker's checkpoint pushes out one that is not as far, and that nobody has gone on from."""
        of_task = self._of_task[statement.body.task]
        if statement.author in of_task or len(of_task) < limits.CHECKPOINTS_PER_TASK_MAX:
            return True
        spare = [
            (max((k.body.progress for k in o.kept()), default=-1), w) for w, o in of_task.items() if o.handed is None
        ]
        if not spare or min(spare)[0] >= statement.body.progress:
            return False
        self._remove(statement.body.task, min(spare)[1])
        return True

    def blob_ready(self, part: Part) -> None:
        for task, of_worker in self._waiting(part):
            of_worker.missing.discard(part.blob)
            if not of_worker.missing:
                self._arrived(task, of_worker)

    def blob_failed(self, part: Part) -> None:
        """The one on its way is lost; the one before it stays."""
        for task, of_worker in self._waiting(part):
            of_worker.coming = None
            of_worker.missing = set()
            self._tidy(task)

    def _waiting(self, part: Part) -> list[tuple[int, _OfWorker]]:
        if not part.is_whole:
            return []
        found = [(task, o) for task, of_task in self._of_task.items() for o in of_task.values()]
        return [(task, o) for task, o in found if part.blob in o.missing]

    def _arrived(self, task: int, of_worker: _OfWorker) -> None:
        if of_worker.ready is not None:
            self._ctx.forget(of_worker.ready.id)
        of_worker.ready, of_worker.coming, of_worker.handed = of_worker.coming, None, None
        assert of_worker.ready is not None
        self._ctx.save(of_worker.ready)
        self._ctx.trace("checkpoint", job=self._job, task=task, worker=of_worker.ready.author)
        self._tidy(task)

    # --- giving out --------------------------------------------------------------------------------------------------
    def give(self, task: int, worker: PeerId, is_gone: Callable[[PeerId], bool]) -> Statement | None:
        """What `worker` may go on from: of those whose worker is gone, and that nobody has gone on from, the one that
        is furthest. Stewards that hold the same ones choose alike."""
        free = [
            o
            for author, o in self._of_task.get(task, {}).items()
            if o.ready is not None
            and (author == worker or is_gone(author))
            and (o.handed in (None, worker) or is_gone(o.handed))
        ]
        if not free:
            return None
        best = min(free, key=_furthest_first)
        best.handed = worker
        return best.ready

    def handed(self, task: int) -> list[tuple[PeerId, PeerId]]:
        """(whose checkpoint it was, who was given it)."""
        return [(author, o.handed) for author, o in self._of_task.get(task, {}).items() if o.handed is not None]

    # --- letting go --------------------------------------------------------------------------------------------------
    def drop(self, task: int) -> None:
        """The task needs none any more."""
        for worker in list(self._of_task.get(task, {})):
            self._remove(task, worker)
        self._of_task.pop(task, None)

    def drop_all(self) -> None:
        for task in list(self._of_task):
            self.drop(task)

    def _remove(self, task: int, worker: PeerId) -> None:
        of_worker = self._of_task[task].pop(worker)
        if of_worker.ready is not None:
            self._ctx.forget(of_worker.ready.id)
        self._release(task, of_worker.kept())

    def _tidy(self, task: int) -> None:
        """Let go of what none of the task's checkpoints names."""
        self._ctx.let_go_all(self._owner(task), but=self._named(task))

    def _release(self, task: int, statements: Iterator[Statement]) -> None:
        named = self._named(task)
        for ref in sorted({f.blob for s in statements for f in s.body.files} - named):
            self._ctx.let_go(ref, self._owner(task))

    def _named(self, task: int) -> set[BlobRef]:
        kept = [s for o in self._of_task.get(task, {}).values() for s in o.kept()]
        return {file.blob for s in kept for file in s.body.files}

    def _owner(self, task: int) -> Owner:
        return (CHECKPOINT_ROLE, self._job, task)

    @property
    def size(self) -> int:
        """How many workers' checkpoints are kept, of all tasks: for checkers."""
        return sum(len(of_task) for of_task in self._of_task.values())


def _furthest_first(of_worker: _OfWorker) -> tuple[int, bytes]:
    assert of_worker.ready is not None
    return -of_worker.ready.body.progress, of_worker.ready.id
