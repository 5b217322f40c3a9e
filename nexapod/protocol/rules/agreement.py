"""Shown results to a judgement: pure arithmetic (docs/protocol.md, Judging).

Results stand in the order of the freeze, which is that of the draw. Agreement is symmetric, and need not be transitive.
Fewer than `agree` lying groups never have a result accepted that no honest one agrees with: an acceptable result has
the support of `agree` groups, so of an honest one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import Digest, Millis, PeerId
from nexapod.protocol.types import Group, Validate

Pairs: TypeAlias = tuple[tuple[int, int], ...]
"""Places of counted results that agree: (i, j) with i < j, sorted."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One entry of a freeze, as a judge sees it."""

    worker: PeerId
    group: Group
    outcome: str | None
    """None: not revealed."""
    exit: int
    root: Digest | None


Agrees: TypeAlias = Callable[[Shown, Shown], bool]
"""A job's rule of comparison, of two `ok` results: symmetric."""


def exact(one: Shown, other: Shown) -> bool:
    """The same bytes."""
    return one.root == other.root


@dataclass(frozen=True, slots=True)
class Accepted:
    """Enough agree. `representative`: the place of the result that stands for the task."""

    representative: int
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Failed:
    """It comes to nothing: `reason` says why, in words."""

    reason: str
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Undecided:
    """`wanted`: groups, in all, that the next freeze should have. As many as now: results are still to be shown."""

    wanted: int


Judgement: TypeAlias = Accepted | Failed | Undecided


def judge(
    shown: Sequence[Shown],
    rule: Validate,
    agrees: Agrees,
    *,
    withheld: Collection[int] = (),
    idle_ms: Millis = 0,
) -> Judgement:
    """What a freeze's entries come to.

    `withheld`: places whose results are no longer waited for, and do not count even if they are here. `idle_ms`: for
    how long there has been no admissible claim to the task. A result that is awaited holds up everything but an
    acceptance; so whoever repeats one leaves out the places that its author had not seen.
    """
    counted = one_a_group(shown, withheld)
    pairs = _pairs(shown, counted, agrees)
    support = _support(shown, counted, pairs)
    acceptable = [place for place in counted if support[place] >= rule.agree]
    if acceptable and _all_agree(acceptable, pairs):
        return Accepted(acceptable[0], pairs)
    groups = len({entry.group for entry in shown})
    if _awaited(shown, withheld):
        return Undecided(groups)
    results = [shown[place] for place in counted]
    reason = _failure(results, rule, bool(acceptable), max(support.values(), default=0), groups, idle_ms)
    if reason is not None:
        return Failed(reason, pairs)
    missing = max(1, rule.agree - max(support.values(), default=0))
    return Undecided(min(limits.FREEZE_ENTRIES_MAX, groups + min(missing, rule.max_replicas - len(counted))))


def one_a_group(shown: Sequence[Shown], withheld: Collection[int] = ()) -> list[int]:
    """The places that count, in order: of each group the first result that is here."""
    first: dict[Group, int] = {}
    for place, entry in enumerate(shown):
        if entry.outcome is not None and place not in withheld:
            first.setdefault(entry.group, place)
    return list(first.values())[: limits.COUNTED_MAX]


def _awaited(shown: Sequence[Shown], withheld: Collection[int]) -> bool:
    return any(entry.outcome is None and place not in withheld for place, entry in enumerate(shown))


def _pairs(shown: Sequence[Shown], counted: Sequence[int], agrees: Agrees) -> Pairs:
    ended = [place for place in counted if shown[place].outcome == "ok"]
    return tuple((i, j) for i, j in combinations(ended, 2) if agrees(shown[i], shown[j]))


def _support(shown: Sequence[Shown], counted: Sequence[int], pairs: Pairs) -> dict[int, int]:
    """How many counted `ok` results agree with each of them, itself included; none with one that is not `ok`."""
    support = {place: int(shown[place].outcome == "ok") for place in counted}
    for i, j in pairs:
        support[i] += 1
        support[j] += 1
    return support


def _all_agree(places: Sequence[int], pairs: Pairs) -> bool:
    agreed = frozenset(pairs)
    return all(pair in agreed for pair in combinations(places, 2))


def _failure(
    results: Sequence[Shown], rule: Validate, contested: bool, best: int, groups: int, idle_ms: Millis
) -> str | None:
    """Why it has failed; None: it may still succeed."""
    told = _told(results, rule, contested, best)
    if len(results) >= rule.max_replicas:
        return told
    if groups >= limits.FREEZE_ENTRIES_MAX:
        return f"{told}; {groups - len(results)} groups gave no result"
    if idle_ms >= limits.NO_BID_MS and _failed_alike(results) >= rule.agree:
        return f"{told}; no other peer would run it"
    if idle_ms >= limits.DIFFER_MS and len(results) >= rule.agree:
        return f"{told}; no other peer would run it"
    return None


def _failed_alike(results: Sequence[Shown]) -> int:
    ends = Counter((result.outcome, result.exit) for result in results if result.outcome != "ok")
    return max(ends.values(), default=0)


def _told(results: Sequence[Shown], rule: Validate, contested: bool, best: int) -> str:
    ended = sorted({result.outcome or "" for result in results if result.outcome != "ok"})
    bad = sum(1 for result in results if result.outcome != "ok")
    ends = f", {bad} of them {' or '.join(ended)}" if bad else ""
    counted = f"{len(results)} {'result' if len(results) == 1 else 'results'}{ends}"
    if contested:
        return f"{counted}: two that at least {rule.agree} agree with contradict each other"
    return f"{counted}: at most {best} agree where {rule.agree} must"
