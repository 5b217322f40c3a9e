"""Reveals to a judgement: pure arithmetic (docs/protocol.md, Acceptance).

A result is accepted when results from at least `agree` operator groups agree with it, counted from its own view, and
no other result has as many. Independent of the order in which reveals arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nexapod.protocol.compare import exact
from nexapod.protocol.types import Digest, PeerId, RunOutcome, StatementId, Validate


@dataclass(frozen=True, slots=True)
class Result:
    """One reveal, as a judge sees it."""

    reveal: StatementId
    worker: PeerId
    group: str
    outcome: RunOutcome
    root: Digest


@dataclass(frozen=True, slots=True)
class Accepted:
    """Enough agree."""

    root: Digest
    agreeing: tuple[Result, ...]
    dissenting: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """No agreement, and no replica left to ask for."""

    results: tuple[Result, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """`wanted`: how many results from different groups there should be in all, to go on."""

    wanted: int


Judgement: TypeAlias = Accepted | Failed | Undecided
Agree: TypeAlias = Callable[[Digest, Digest], bool]


def judge(results: Sequence[Result], rule: Validate, agree: Agree = exact) -> Judgement:
    """What these results come to, under this rule."""
    counted = one_a_group(results)
    supports = sorted(
        ((_support(result, counted, agree), result) for result in counted if result.outcome == "ok"),
        key=lambda item: (-item[0], item[1].root, item[1].reveal),
    )
    best = supports[0][0] if supports else 0
    if best >= rule.agree:
        winner = supports[0][1]
        rivals = [r for support, r in supports if support == best and not agree(winner.root, r.root)]
        if not rivals:
            return _accepted(winner, results, agree)
        if len(counted) < rule.max_replicas:
            return Undecided(len(counted) + 1)
        return Failed(tuple(counted), f"{len(counted)} replicas, and two results with {best} votes each")
    if len(counted) >= rule.max_replicas:
        return Failed(tuple(counted), _why_failed(counted, best, rule))
    missing = rule.agree - best
    return Undecided(max(rule.agree, min(rule.max_replicas, len(counted) + missing)))


def one_a_group(results: Sequence[Result]) -> list[Result]:
    """An operator group has one vote: its smallest reveal id, so that every judge picks the same."""
    chosen: dict[str, Result] = {}
    for result in sorted(results, key=lambda r: r.reveal):
        chosen.setdefault(result.group, result)
    return list(chosen.values())


def majority(stewards: int) -> int:
    """How many of so many stewards are a majority."""
    return stewards // 2 + 1


def _support(result: Result, counted: Sequence[Result], agree: Agree) -> int:
    return sum(1 for other in counted if other.outcome == "ok" and agree(result.root, other.root))


def _accepted(winner: Result, results: Sequence[Result], agree: Agree) -> Accepted:
    ordered = sorted(results, key=lambda r: r.reveal)
    agreeing = tuple(r for r in ordered if r.outcome == "ok" and agree(winner.root, r.root))
    dissenting = tuple(r for r in ordered if r not in agreeing)
    return Accepted(winner.root, agreeing, dissenting)


def _why_failed(counted: Sequence[Result], best: int, rule: Validate) -> str:
    ended = sorted({r.outcome for r in counted if r.outcome != "ok"})
    bad = sum(1 for r in counted if r.outcome != "ok")
    failed = f", {bad} of them ended {' or '.join(ended)}" if bad else ""
    return f"{len(counted)} replicas{failed}; at most {best} agree where {rule.agree} must"
