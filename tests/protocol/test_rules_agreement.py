"""Judging against a dumb second version, over all orders, subsets, liars (docs/protocol.md, Judging)."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexapod.protocol import limits
from nexapod.protocol.primitives import Digest, PeerId
from nexapod.protocol.rules.agreement import (
    Accepted,
    Agrees,
    Failed,
    Judgement,
    Shown,
    Undecided,
    exact,
    judge,
    one_a_group,
)
from nexapod.protocol.types import Validate

TRUE = 100


def root(value: int) -> Digest:
    return Digest(value.to_bytes(32, "big"))


def near(one: Shown, other: Shown) -> bool:
    """Within 5: symmetric, not transitive."""
    assert one.root is not None
    assert other.root is not None
    return abs(int.from_bytes(one.root, "big") - int.from_bytes(other.root, "big")) <= 5


def entry(name: int, group: int, value: int | None, outcome: str = "ok", status: int = 0) -> Shown:
    """A result; `value` None: it was not revealed."""
    worker = PeerId(f"w{name}")
    if value is None:
        return Shown(worker, f"g{group}", None, 0, None)
    return Shown(worker, f"g{group}", outcome, status, root(value))


def results(*values: int | None) -> list[Shown]:
    """One a group."""
    return [entry(i, i, value) for i, value in enumerate(values)]


# --- a dumb second version, from the words of the specification ------------------------------------------------------
def dumb(shown: list[Shown], rule: Validate, agrees: Agrees, withheld: set[int], idle_ms: int) -> Judgement:
    counted: list[int] = []
    for i, one in enumerate(shown):
        taken = False
        for j in counted:
            taken = taken or shown[j].group == one.group
        if one.outcome is not None and i not in withheld and not taken and len(counted) < 32:
            counted.append(i)
    table = {
        i: [
            j
            for j in counted
            if shown[i].outcome == shown[j].outcome == "ok" and (i == j or agrees(shown[i], shown[j]))
        ]
        for i in counted
    }
    good = [i for i in counted if len(table[i]) >= rule.agree]
    pairs = tuple(sorted((i, j) for i in counted for j in table[i] if i < j))
    if good and not [1 for i in good for j in good if j not in table[i]]:
        return Accepted(min(good), pairs)
    groups = len({one.group for one in shown})
    if [1 for i, one in enumerate(shown) if one.outcome is None and i not in withheld]:
        return Undecided(groups)
    ends: dict[tuple[str | None, int], int] = {}
    for i in counted:
        if shown[i].outcome != "ok":
            ends[shown[i].outcome, shown[i].exit] = ends.get((shown[i].outcome, shown[i].exit), 0) + 1
    alike = max([0, *ends.values()]) >= rule.agree
    over = len(counted) >= rule.max_replicas or groups >= 64
    over = over or (alike and idle_ms >= 20_000) or (len(counted) >= rule.agree and idle_ms >= 60_000)
    if over:
        return Failed("", pairs)
    best = max([0, *(len(row) for row in table.values())])
    more = max(rule.agree - best, 1)
    while len(counted) + more > rule.max_replicas:
        more -= 1
    return Undecided(min(groups + more, 64))


def same(one: Judgement, other: Judgement) -> bool:
    if isinstance(one, Failed) and isinstance(other, Failed):
        return one.pairs == other.pairs
    return one == other


rules = st.integers(1, 4).flatmap(
    lambda agree: st.builds(Validate, agree=st.just(agree), max_replicas=st.integers(agree, 8))
)
values = st.one_of(st.none(), st.integers(90, 110))
outcomes = st.sampled_from(["ok", "ok", "ok", "failed", "wall-limit"])
shown_lists = st.lists(
    st.builds(entry, st.integers(0, 9), st.integers(0, 6), values, outcomes, st.integers(0, 1)), max_size=9
)
comparisons = st.sampled_from([exact, near])


@settings(max_examples=80, deadline=None)
@given(shown_lists, rules, comparisons, st.sets(st.integers(0, 8)), st.sampled_from([0, 19_999, 20_000, 60_000]))
def test_it_judges_as_the_words_say(
    shown: list[Shown], rule: Validate, agrees: Agrees, withheld: set[int], idle_ms: int
) -> None:
    judged = judge(shown, rule, agrees, withheld=withheld, idle_ms=idle_ms)
    assert same(judged, dumb(shown, rule, agrees, withheld, idle_ms))
    if isinstance(judged, Undecided):
        assert judged.wanted <= limits.FREEZE_ENTRIES_MAX


@st.composite
def lying_minorities(draw: st.DrawFn) -> tuple[list[Shown], Validate, bool]:
    """Fewer than `agree` lying groups, each with any number of workers, among honest ones, in any order."""
    rule, exactly = draw(rules), draw(st.booleans())
    liars = draw(st.integers(0, rule.agree - 1))
    honest = st.just(TRUE) if exactly else st.integers(TRUE - 2, TRUE + 2)
    shown = [entry(i, i, draw(st.one_of(st.none(), honest))) for i in range(draw(st.integers(0, 5)))]
    for liar in range(liars):
        for worker in range(draw(st.integers(1, 3))):
            shown.append(entry(50 + 9 * liar + worker, 50 + liar, draw(values), draw(outcomes)))
    return draw(st.permutations(shown)), rule, exactly


@settings(max_examples=80, deadline=None)
@given(lying_minorities(), st.data())
def test_fewer_than_agree_liars_have_nothing_accepted_that_no_honest_result_agrees_with(
    case: tuple[list[Shown], Validate, bool], data: st.DataObject
) -> None:
    shown, rule, exactly = case
    agrees = exact if exactly else near
    some = data.draw(st.permutations(shown))[: data.draw(st.integers(0, len(shown)))]
    for part in (shown, some):
        withheld = data.draw(st.sets(st.integers(0, max(0, len(part) - 1))))
        judged = judge(part, rule, agrees, withheld=withheld, idle_ms=data.draw(st.sampled_from([0, 60_000])))
        if isinstance(judged, Accepted):
            chosen = part[judged.representative].root
            assert chosen is not None
            off = abs(int.from_bytes(chosen, "big") - TRUE)
            assert off == 0 if exactly else off <= 2 + 5


def test_enough_honest_results_are_accepted_whatever_a_minority_says_in_every_order() -> None:
    rule = Validate(agree=2, max_replicas=4)
    for order in permutations(results(TRUE, TRUE, 7)):
        judged = judge(order, rule, exact)
        assert isinstance(judged, Accepted)
        assert order[judged.representative].root == root(TRUE)


def test_agreement_that_is_not_transitive_is_contested() -> None:
    rule = Validate(agree=2, max_replicas=4)
    assert judge(results(100, 105, 110), rule, near) == Undecided(4)
    assert isinstance(judge(results(100, 105, 110, 200), rule, near), Failed)
    accepted = judge(results(100, 104, 105), rule, near)
    assert accepted == Accepted(0, ((0, 1), (0, 2), (1, 2)))


def test_the_first_of_a_group_counts_even_if_its_second_would_agree() -> None:
    shown = [entry(1, 1, 7), entry(2, 1, TRUE), entry(3, 2, TRUE)]
    assert one_a_group(shown) == [0, 2]
    assert judge(shown, Validate(agree=2, max_replicas=5), exact) == Undecided(3)
    assert judge(shown, Validate(agree=2, max_replicas=5), exact, withheld=[0]) == Accepted(1, ((1, 2),))


def test_what_is_awaited_holds_up_everything_but_an_acceptance() -> None:
    rule = Validate(agree=2, max_replicas=3)
    assert judge(results(TRUE, None), rule, exact) == Undecided(2)
    assert judge(results(TRUE, 7, None), rule, exact, idle_ms=1 << 40) == Undecided(3)
    assert isinstance(judge(results(TRUE, None, TRUE), rule, exact), Accepted)
    assert judge(results(TRUE, None), rule, exact, withheld=[1]) == Undecided(3)


@pytest.mark.parametrize(("idle_ms", "fails"), [(0, False), (limits.NO_BID_MS, True)])
def test_equal_failures_end_a_task_when_nobody_else_would_run_it(idle_ms: int, fails: bool) -> None:
    shown = [entry(1, 1, 0, "failed", 2), entry(2, 2, 0, "failed", 2)]
    judged = judge(shown, Validate(agree=2, max_replicas=5), exact, idle_ms=idle_ms)
    assert isinstance(judged, Failed) == fails
    if isinstance(judged, Failed):
        assert judged.reason == "2 results, 2 of them failed: at most 0 agree where 2 must; no other peer would run it"


def test_a_freeze_full_of_withheld_results_fails() -> None:
    full = results(*[None] * limits.FREEZE_ENTRIES_MAX)
    judged = judge(full, Validate(agree=2, max_replicas=5), exact, withheld=range(len(full)))
    assert isinstance(judged, Failed)
    assert "64 groups gave no result" in judged.reason
    assert len(one_a_group(results(*[1] * 64))) == limits.COUNTED_MAX
