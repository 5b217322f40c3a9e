"""What a verdict says of one task, and whether that follows from its freeze and the reveals (docs/protocol.md, 6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts.freezes import Entry, Frozen, entries_of
from nexapod.protocol.primitives import Digest, PeerId, StatementId
from nexapod.protocol.rules.agreement import Accepted, Agrees, Failed, Shown, judge
from nexapod.protocol.types import Validate
from nexapod.protocol.wire.bodies import Verdict, VerdictItem
from nexapod.protocol.wire.statements import Statement

FOREVER_MS: Final = 2 * max(limits.DIFFER_MS, limits.NO_BID_MS)
"""How long a task was open without a claim is the seats' word: whoever repeats a judgement takes it for long enough."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict that counts on one task."""

    statement: Statement
    item: VerdictItem
    frozen: Frozen
    """What it judged."""
    outcome: Literal["accepted", "failed"]
    worker: PeerId | None
    """Whose result stands for the task; None: it has failed."""
    root: Digest | None
    """Of that result; None: it has failed, or the reveal is not here."""
    reason: str


def check_verdict(
    body: Verdict, tasks: range, agree: int, freeze_of: Callable[[StatementId], Statement | None]
) -> bool:
    """Whether all freezes that it names are here. Raises PeerError when its form is wrong, or by its own word too few
    agree."""
    named = [item.task for item in body.items]
    if not _rises(named) or list(body.freezes) != sorted(set(body.freezes)):
        raise PeerError("bad-verdict", "its tasks or freezes are not sorted, each once", penalty=30)
    if not all(task in tasks for task in named) or any(item.freeze >= len(body.freezes) for item in body.items):
        raise PeerError("bad-verdict", "it names a task or a freeze that is not there", penalty=30)
    judged = [freeze for id in body.freezes if (freeze := freeze_of(id)) is not None]
    if len(judged) < len(body.freezes):
        return False
    items = [{item.task: item for item in freeze.body.items} for freeze in judged]
    for item in body.items:
        frozen = items[item.freeze].get(item.task)
        entries = None if frozen is None else entries_of(judged[item.freeze].body, frozen)
        _check_item(item, entries, agree)
    return True


def _check_item(item: VerdictItem, entries: Sequence[Entry] | None, agree: int) -> None:
    if entries is None:
        raise PeerError("bad-verdict", "the freeze that it names is not about its task", penalty=30)
    places = [item.representative, *item.missing, *(place for pair in item.pairs for place in pair)]
    if any(place >= len(entries) for place in places):
        raise PeerError("bad-verdict", "it names a result that the freeze does not have", penalty=30)
    if any(i >= j for i, j in item.pairs) or not _rises(item.pairs) or not _rises(item.missing):
        raise PeerError("bad-verdict", "its pairs or what is missing are not sorted, each once", penalty=30)
    if item.outcome == "accepted":
        _check_accepted(item, entries, agree)


def _check_accepted(item: VerdictItem, entries: Sequence[Entry], agree: int) -> None:
    supporters = _supporters(item)
    if supporters & frozenset(item.missing):
        raise PeerError("bad-verdict", "it counts a result that it says was withheld", penalty=30)
    if len({entries[place].group for place in supporters}) < agree:
        raise PeerError("bad-verdict", "it accepts a result that too few groups agree with", penalty=50)


def _supporters(item: VerdictItem) -> frozenset[int]:
    """The representative, and those that agree with it."""
    own = item.representative
    return frozenset((own, *(place for pair in item.pairs if own in pair for place in pair)))


def _rises(values: Sequence[int] | Sequence[tuple[int, int]]) -> bool:
    return all(one < other for one, other in pairwise(values))  # type: ignore[operator]


# --- repeating the judgement ----------------------------------------------------------------------------------------
def error_in(
    item: VerdictItem,
    views: Sequence[Sequence[Shown]],
    rule: Validate,
    agrees: Agrees,
) -> str | None:
    """Why a verdict on one task does not follow from what was shown; None: it does.

    `views`: the entries of its freeze in the groups that it names, and then with those that share a checkpoint in one
    group. That such a checkpoint becomes known later undoes no acceptance: so the freeze's word is enough for one.
    """
    match item.outcome:
        case "accepted":
            return _error_in_accepted(item, views[0], rule, agrees)
        case "failed":
            errors = [_error_in_failed(item, shown, rule, agrees) for shown in views]
            return None if None in errors else errors[0]


def _error_in_accepted(item: VerdictItem, shown: Sequence[Shown], rule: Validate, agrees: Agrees) -> str | None:
    """Only what it counts is looked at: a result that was shown after it changes nothing."""
    counted = frozenset((item.representative, *(place for pair in item.pairs for place in pair)))
    if any(shown[place].outcome is None for place in counted):
        return "a result that it counts is not shown"
    others = [place for place in range(len(shown)) if place not in counted]
    match judge(_without(shown, others), rule, agrees, withheld=others):
        case Accepted(representative, pairs):
            if representative != item.representative:
                return "another result comes first in the order of the draw"
            return None if pairs == item.pairs else "other results agree than it says"
        case _:
            return f"fewer than {rule.agree} groups agree, or two results contradict each other"


def _error_in_failed(item: VerdictItem, shown: Sequence[Shown], rule: Validate, agrees: Agrees) -> str | None:
    if any(entry.outcome is None and place not in item.missing for place, entry in enumerate(shown)):
        return "a result that it counts is not shown"
    known = _without(shown, item.missing)
    match judge(known, rule, agrees, withheld=item.missing, idle_ms=FOREVER_MS):
        case Failed(_, pairs):
            return None if pairs == item.pairs else "other results agree than it says"
        case Accepted():
            return "a result is acceptable"
        case _:
            return "more groups would have been tried"


def _without(shown: Sequence[Shown], places: Collection[int]) -> list[Shown]:
    gone = frozenset(places)
    return [
        replace(entry, outcome=None, exit=0, root=None) if place in gone else entry for place, entry in enumerate(shown)
    ]
