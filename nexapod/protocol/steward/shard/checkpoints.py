"""What a seat keeps of tasks that still run, so that another worker can go on (docs/protocol.md, section 5).

For each task the checkpoints of a few workers: of each the newest that is wholly here, and one that is on its way.
Knows no leases: its steward says whose checkpoint may be given to whom. Nothing is judged by a checkpoint.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import BlobRef, JobId, Millis, Part, PeerId, StatementId
from nexapod.protocol.tables import TableReport, longest
from nexapod.protocol.types import JobSpec
from nexapod.protocol.wire.statements import Statement

CHECKPOINT_ROLE: Final = "checkpoint"
VOUCHED_MAX: Final = 2 * limits.SHARD_TASKS


@dataclass(slots=True)
class _OfWorker:
    """One worker's checkpoints of one task."""

    ready: Statement | None = None
    coming: Statement | None = None
    missing: set[BlobRef] = field(default_factory=set)
    """What `coming` waits for."""
    at: Millis = 0
    """When the newest was taken in."""
    ready_at: Millis = 0
    handed: PeerId | None = None
    """Who was given `ready`, last."""

    def kept(self) -> Iterator[Statement]:
        for statement in (self.ready, self.coming):
            if statement is not None:
                yield statement


class Checkpoints:
    """Those of one shard, at one seat. `keep`: save a checkpoint, or forget it (by its id)."""

    def __init__(
        self,
        ctx: Context,
        job: JobId,
        spec: JobSpec,
        shard: int,
        keep: Callable[[StatementId, Statement | None], None],
    ) -> None:
        self._ctx = ctx
        self._job = job
        self._spec = spec
        self._keep = keep
        self._owner: Owner = (CHECKPOINT_ROLE, job, shard)
        self._uses: Counter[BlobRef] = Counter()
        """How many of the checkpoints kept name a blob."""
        self._of_task: dict[int, dict[PeerId, _OfWorker]] = {}
        self._coming: dict[BlobRef, dict[tuple[int, PeerId], None]] = {}
        self._vouched: OrderedDict[StatementId, set[PeerId]] = OrderedDict()
        """Which seats have passed on a checkpoint that is not taken in yet."""

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
        superseded, old.coming, old.at = old.coming, statement, self._ctx.now
        self._use(statement)
        if superseded is not None:
            self._unuse(superseded)
        refs = {file.blob for file in body.files}
        old.missing = {ref for ref in refs if not self._ctx.has(Part.whole(ref))}
        for ref in sorted(refs):
            if ref in old.missing:
                self._coming.setdefault(ref, {})[body.task, statement.author] = None
                self._ctx.fetch(Part.whole(ref), self._owner, [statement.author])
            else:
                self._ctx.pin(ref, self._owner)
        if not old.missing:
            self._arrived(body.task, old)

    def relayed(self, statement: Statement, seat: PeerId, needed: int) -> None:
        """Another seat passes one on, since this node is new to the shard. It is taken in when `needed` have: one could
        make it up, for a worker of its own that never held the task. Raises PeerError."""
        vouchers = self._vouched.setdefault(statement.id, set())
        vouchers.add(seat)
        while len(self._vouched) > VOUCHED_MAX:
            self._vouched.popitem(last=False)
        if len(vouchers) >= needed:
            self._vouched.pop(statement.id, None)
            self.add(statement)

    def tables(self) -> tuple[TableReport, ...]:
        workers = longest(self._of_task.values())
        return (
            TableReport("checkpoints vouched for", len(self._vouched), VOUCHED_MAX),
            TableReport("checkpoints to hand on of a task", workers, limits.CHECKPOINTS_PER_TASK_MAX),
        )

    def ready(self) -> list[Statement]:
        """All that could be given out: what a new seat should have too."""
        return [o.ready for of_task in self._of_task.values() for o in of_task.values() if o.ready is not None]

    def restore(self, statement: Statement) -> None:
        """One that a former process of this node had saved, and so held."""
        task = statement.body.task
        of_worker = self._of_task.setdefault(task, {}).setdefault(statement.author, _OfWorker())
        if of_worker.ready is not None and of_worker.ready.body.seq >= statement.body.seq:
            return
        self._use(statement)
        for file in statement.body.files:
            self._ctx.pin(file.blob, self._owner)
        if of_worker.ready is not None:
            self._unuse(of_worker.ready)
        of_worker.ready = statement

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
        for _, of_worker in self._waiting(part):
            if of_worker.coming is not None:
                self._unuse(of_worker.coming)
            of_worker.coming = None
            of_worker.missing = set()

    def _waiting(self, part: Part) -> list[tuple[int, _OfWorker]]:
        names = self._coming.pop(part.blob, {}) if part.is_whole else {}
        found = [(task, self._of_task.get(task, {}).get(worker)) for task, worker in names]
        return [(task, o) for task, o in found if o is not None and part.blob in o.missing]

    def _arrived(self, task: int, of_worker: _OfWorker) -> None:
        if of_worker.ready is not None:
            self._keep(of_worker.ready.id, None)
            self._unuse(of_worker.ready)
        of_worker.ready, of_worker.coming, of_worker.handed = of_worker.coming, None, None
        of_worker.ready_at = self._ctx.now
        assert of_worker.ready is not None
        self._keep(of_worker.ready.id, of_worker.ready)
        self._ctx.trace("checkpoint_stored", job=self._job, task=task, worker=of_worker.ready.author)

    # --- giving out ------------------------------------------------------------------------------------------------
    def give(self, task: int, worker: PeerId, is_gone: Callable[[PeerId], bool]) -> Statement | None:
        """What `worker` may go on from: of those whose worker is gone, and that nobody has gone on from, the one that
        is furthest; none that came only now, since the other seats must have it too."""
        free = [
            o
            for author, o in self._of_task.get(task, {}).items()
            if o.ready is not None
            and o.ready_at + limits.COSIGN_MS <= self._ctx.now
            and (author == worker or is_gone(author))
            and (o.handed in (None, worker) or is_gone(o.handed))
        ]
        return min(free, key=_furthest_first).ready if free else None

    def find(self, task: int, id: StatementId) -> Statement | None:
        """One that is here to be handed out, by its name."""
        found = [o.ready for o in self._of_task.get(task, {}).values()]
        return next((one for one in found if one is not None and one.id == id), None)

    def note_handed(self, statement: Statement, worker: PeerId) -> None:
        """It was given to a worker."""
        of_worker = self._of_task.get(statement.body.task, {}).get(statement.author)
        if of_worker is not None and of_worker.ready is not None and of_worker.ready.id == statement.id:
            of_worker.handed = worker

    # --- letting go ------------------------------------------------------------------------------------------------
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
            self._keep(of_worker.ready.id, None)
        for ref in of_worker.missing:
            self._coming.get(ref, {}).pop((task, worker), None)
        for statement in of_worker.kept():
            self._unuse(statement)

    def _use(self, statement: Statement) -> None:
        self._uses.update({file.blob for file in statement.body.files})

    def _unuse(self, statement: Statement) -> None:
        """Let go of what no other checkpoint names."""
        for ref in sorted({file.blob for file in statement.body.files}):
            self._uses[ref] -= 1
            if self._uses[ref] <= 0:
                del self._uses[ref]
                self._ctx.unpin(ref, self._owner)

    @property
    def size(self) -> int:
        """How many workers' checkpoints are kept, of all tasks: for checkers."""
        return sum(len(of_task) for of_task in self._of_task.values())


def _furthest_first(of_worker: _OfWorker) -> tuple[int, bytes]:
    assert of_worker.ready is not None
    return -of_worker.ready.body.progress, of_worker.ready.id
