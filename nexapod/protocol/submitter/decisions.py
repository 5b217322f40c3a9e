"""What one shard's evidence decides, repeated here: nothing is believed because a quorum signed it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import File, PeerId, StatementId
from nexapod.protocol.submitter.results import Result
from nexapod.protocol.wire.statements import Statement

if TYPE_CHECKING:
    from nexapod.protocol.evidence import Decision, ShardEvidence


@dataclass(frozen=True, slots=True)
class Open:
    """No verdict on the task counts here, or not all that one rests on has come."""


@dataclass(frozen=True, slots=True)
class Known:
    """It is decided as it was before."""


@dataclass(frozen=True, slots=True)
class Decided:
    """It is decided, or otherwise than before."""

    result: Result
    signers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Wrong:
    """A verdict that counts is not what its evidence, which is all here, comes to: those who signed it lie."""

    error: str
    signers: tuple[PeerId, ...]


Evaluation: TypeAlias = Open | Known | Decided | Wrong


@dataclass(frozen=True, slots=True)
class Revealed:
    """One result that a worker has shown, for people who compare them."""

    worker: PeerId
    outcome: str
    exit: int
    reason: str
    outputs: tuple[File, ...]


class ShardDecisions:
    """The decided tasks of one shard, and the evidence that they rest on."""

    def __init__(self, evidence: ShardEvidence) -> None:
        self.evidence = evidence
        self.results: dict[int, Result] = {}
        self.counting: dict[int, None] = {}
        """Tasks whose result counts by the present seats."""
        self.waiting: dict[int, None] = {}
        """Tasks on which there is a verdict that does not count, or not yet."""
        self.stored: dict[int, None] = {}
        """Tasks of whose accepted outputs nothing is missing here."""
        self.saved: dict[StatementId, None] = {}
        """Evidence that is on disk."""

    @property
    def finished(self) -> bool:
        """Every task is decided, by a verdict that counts, and every accepted output is here."""
        return len(self.counting) == len(self.evidence.tasks) == len(self.stored)

    def evaluate(self, task: int) -> Evaluation:
        """Judge the task again from the evidence; keeps what it comes to."""
        decision = self.evidence.verdict(task)
        self.counting.pop(task, None)
        if decision is None:
            return Open()
        error = self.evidence.error_in(decision.item, decision.statement.body)
        if error is not None and not self._complete(task, decision):
            return Open()
        self.waiting.pop(task, None)
        if error is not None:
            return Wrong(error, decision.statement.signers)
        self.counting[task] = None
        result = self._result(task, decision)
        if self.results.get(task) == result:
            return Known()
        self.results[task] = result
        self.stored.pop(task, None)
        return Decided(result, decision.statement.signers)

    def adoptable(self) -> list[Statement]:
        """What seats that are new to the shard need to hold before they can adopt what was decided."""
        evidence = self.evidence
        earlier = [statement for id in evidence.adoptable() if (statement := evidence.get(id)) is not None]
        freezes = [statement for statement in earlier if statement.kind == "freeze"]
        verdicts = [statement for statement in earlier if statement.kind == "verdict"]
        return [*freezes, *evidence.statements_of(self.results), *verdicts]

    def revealed(self, task: int) -> tuple[Revealed, ...]:
        """The results of a task that were shown, in the order of the draw."""
        found = []
        for shown in self.evidence.shown(task):
            fact = self.evidence.reveal_of(task, shown.worker)
            if fact is not None:
                item = fact.item
                found.append(Revealed(shown.worker, item.outcome, item.exit, item.reason, item.outputs))
        return tuple(found)

    def disputed(self, task: int) -> tuple[Revealed, ...]:
        """The results of a failed task that ended well and differ; none if they do not."""
        results = [(shown.root, shown.worker) for shown in self.evidence.shown(task) if shown.outcome == "ok"]
        if len({root for root, _ in results}) < 2:
            return ()
        workers = [worker for _, worker in results]
        return tuple(one for one in self.revealed(task) if one.worker in workers)[: limits.COUNTED_MAX]

    def sources(self, task: int, signers: Iterable[PeerId]) -> tuple[PeerId, ...]:
        """Who has the accepted outputs: the judges, then the workers of that result."""
        root = self.results[task].root
        workers = [shown.worker for shown in self.evidence.shown(task) if shown.root == root]
        return tuple(dict.fromkeys((*sorted(signers), *workers)))

    def _result(self, task: int, decision: Decision) -> Result:
        if decision.outcome == "accepted":
            return Result("accepted", "", decision.root, tuple(self.evidence.outputs(task)))
        return Result("failed", decision.reason, None, ())

    def _complete(self, task: int, decision: Decision) -> bool:
        """Whether everything that its authors may have judged by is here: only then an error is theirs."""
        frozen = self.evidence.frozen(task)
        if frozen is None or frozen.statement.id != decision.statement.body.freezes[decision.item.freeze]:
            return False
        missing = decision.item.missing
        return all(
            shown.outcome is not None or place in missing for place, shown in enumerate(self.evidence.shown(task))
        )
