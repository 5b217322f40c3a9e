"""Workers told what the seats have signed: freezes, which ask them to reveal, and verdicts, which release them.

The seat that proposed it tells them when it counts; the others only if it seems to have failed to
(docs/protocol.md, section 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.steward.shard.state import ShardState
from nexapod.protocol.wire.messages import Standing, Status
from nexapod.protocol.wire.statements import Statement

HELD_MS: Final = 3 * limits.BATCH_MS
"""For how long a verdict waits for a freeze that goes to the same worker."""
assert HELD_MS < limits.LEADER_MUTE_MS, "another seat tells workers that seem not to know"


class Telling:
    """One seat's telling the workers of its shard."""

    def __init__(self, state: ShardState) -> None:
        self._state = state
        self._ctx = state.ctx
        self._later: dict[StatementId, tuple[Millis, tuple[PeerId, ...]]] = {}
        """Freezes of other seats, and whom to ask when."""
        self._held: dict[PeerId, dict[StatementId, Statement]] = {}
        """Verdicts that these workers have not been told yet: nobody waits for one."""

    def counts(self, statement: Statement, *, mine: bool) -> None:
        """A freeze or verdict counts here."""
        workers = self._concerned(statement)
        if mine and statement.kind == "verdict":
            self._hold(statement, workers)
        elif mine:
            self._tell(statement, workers)
        elif workers:
            when = self._ctx.now + limits.LEADER_MUTE_MS
            if len(self._later) >= limits.PENDING_MAX:
                del self._later[next(iter(self._later))]
            self._later[statement.id] = (when, workers)
            self._wake()

    def _concerned(self, statement: Statement) -> tuple[PeerId, ...]:
        if statement.kind == "freeze":
            return tuple(worker for worker, _ in statement.body.workers)
        return self.workers(item.task for item in statement.body.items if item.task in self._state.evidence.tasks)

    def workers(self, tasks: Iterable[int]) -> tuple[PeerId, ...]:
        """Whoever has a lease, or has committed without having shown, of these tasks."""
        found: dict[PeerId, None] = {}
        for task in tasks:
            found |= dict.fromkeys(lease.worker for lease in self._state.leases[task].leases)
            found |= dict.fromkeys(self._state.evidence.commits(task))
        return tuple(sorted(found))

    def _tell(self, statement: Statement, workers: Iterable[PeerId]) -> None:
        for worker in workers:
            held = self._held.pop(worker, {})
            if self._ctx.peers.linked(worker):
                self._ctx.deliver(worker, [*held.values(), statement])

    def _hold(self, verdict: Statement, workers: Iterable[PeerId]) -> None:
        """It goes with the next freeze, or soon."""
        for worker in workers:
            self._held.setdefault(worker, {})[verdict.id] = verdict
        name = ("verdicts", 0)
        if self._held and name not in self._state.timers:
            self._state.timers.set(name, self._ctx.now + HELD_MS)

    def tell_held(self) -> None:
        """No freeze has come that would have taken them along."""
        held, self._held = self._held, {}
        for worker, verdicts in held.items():
            if self._ctx.peers.linked(worker) and not self._state.closed:
                self._ctx.deliver(worker, verdicts.values())

    def tell_late(self) -> None:
        """Results are still not here: the seat that asked for them may be gone."""
        for id, (when, workers) in list(self._later.items()):
            if when > self._ctx.now:
                continue
            del self._later[id]
            statement = self._state.evidence.get(id)
            if statement is not None and not self._state.closed:
                self._tell(statement, [w for w in workers if self._waits(statement, w)])
        self._wake()

    def _waits(self, statement: Statement, worker: PeerId) -> bool:
        """Whether a worker seems not to know: a verdict says nothing back, so only results are told by."""
        evidence = self._state.evidence
        if statement.kind == "verdict":
            return any(self._state.leases[item.task].of(worker) is not None for item in statement.body.items)
        tasks = [item.task for item in statement.body.items if item.task in evidence.tasks]
        undecided = [task for task in tasks if not self._state.decided(task)]
        return any(
            evidence.commit_of(task, worker) is not None and evidence.reveal_of(task, worker) is None
            for task in undecided
        )

    def _wake(self) -> None:
        first = min((when for when, _ in self._later.values()), default=None)
        self._state.timers.set(("tell", 0), first)

    def prove(self, worker: PeerId, answers: Sequence[tuple[int, Standing]]) -> None:
        """The freezes and verdicts that a status speaks of, each once."""
        found: dict[StatementId, Statement] = {}
        for task, standing in answers:
            proof = self._proof(task, standing)
            if proof is not None:
                found[proof.id] = proof
        if found:
            self._ctx.deliver(worker, (*self._adoptions(found), *found.values()))

    def _adoptions(self, proofs: Mapping[StatementId, Statement]) -> list[Statement]:
        """By which those of earlier epochs count: a worker may have missed them."""
        state = self._state
        epoch = state.seats.epoch
        if all(proof.body.epoch == epoch for proof in proofs.values()):
            return []
        counting = [s for s in state.job.statements() if s.kind == "adoption" and s.body.shard == state.shard]
        return [adoption for adoption in counting if not proofs.keys().isdisjoint(adoption.body.statements)]

    def _proof(self, task: int, standing: Standing) -> Statement | None:
        if standing == "frozen":
            frozen = self._state.evidence.frozen(task)
            return None if frozen is None else frozen.statement
        decision = self._state.evidence.verdict(task) if standing == "decided" else None
        return None if decision is None else decision.statement

    def closed(self) -> None:
        """The job is over: whoever holds a task stops."""
        state = self._state
        for worker in state.leases.workers():
            tasks: tuple[tuple[int, Standing], ...] = tuple((task, "closed") for task in state.leases.tasks_of(worker))
            self._ctx.send(worker, Status(state.job.job, state.shard, tasks))
