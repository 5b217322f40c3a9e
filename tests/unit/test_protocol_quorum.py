"""nexapod.protocol.quorum: what results come to, in small cases that can be checked by hand."""

from __future__ import annotations

import itertools
from typing import Any

from protocol_kit import pid

from nexapod.protocol.quorum import Accepted, Failed, Result, Undecided, judge, majority, one_a_group
from nexapod.protocol.types import Digest, StatementId, Validate

RULE = Validate(agree=2, max_replicas=3)


def _result(number: int, root: str, *, group: str = "", outcome: Any = "ok") -> Result:
    name = StatementId(bytes([number]) * 32)
    return Result(name, pid(number), group or pid(number), outcome, Digest(root.encode() * 32))


A, B, C = _result(1, "a"), _result(2, "a"), _result(3, "b")


def test_nothing_yet_wants_as_many_as_must_agree() -> None:
    assert judge([], RULE) == Undecided(2)
    assert judge([A], RULE) == Undecided(2)


def test_enough_that_agree_are_accepted_with_the_others_named() -> None:
    assert judge([A, B, C], RULE) == Accepted(A.root, (A, B), (C,))
    assert judge([A], Validate(agree=1, max_replicas=1)) == Accepted(A.root, (A,), ())


def test_disagreement_asks_for_one_more_and_then_fails() -> None:
    assert judge([A, C], RULE) == Undecided(3)
    d = _result(4, "d")
    failed = judge([A, C, d], RULE)
    assert failed == Failed((A, C, d), "3 replicas; at most 1 agree where 2 must")


def test_the_order_of_arrival_does_not_matter() -> None:
    for some in ([A, B, C], [A, C, _result(4, "d")], [A, B, C, _result(4, "b")]):
        judgements = {repr(judge(list(order), RULE)).count("Result(") for order in itertools.permutations(some)}
        assert len(judgements) == 1
        accepted = [judge(list(order), RULE) for order in itertools.permutations(some)]
        assert len({getattr(j, "root", None) for j in accepted}) == 1


def test_an_operator_group_has_one_vote() -> None:
    one, two = _result(1, "a", group="g"), _result(2, "a", group="g")
    assert one_a_group([two, one]) == [one]
    assert judge([one, two], RULE) == Undecided(2)
    assert isinstance(judge([one, two, _result(3, "a")], RULE), Accepted)


def test_results_that_did_not_end_well_support_nothing() -> None:
    bad = [_result(n, "a", outcome="failed") for n in (1, 2, 3)]
    assert judge(bad[:2], RULE) == Undecided(3)
    failed = judge([*bad[:2], _result(3, "a", outcome="wall-limit")], RULE)
    assert isinstance(failed, Failed)
    assert failed.reason == "3 replicas, 3 of them ended failed or wall-limit; at most 0 agree where 2 must"
    accepted = judge([bad[0], _result(4, "a"), _result(5, "a")], RULE)
    assert isinstance(accepted, Accepted)
    assert accepted.dissenting == (bad[0],)


def test_two_camps_of_equal_size_ask_for_one_more_and_then_fail() -> None:
    rule = Validate(agree=2, max_replicas=5)
    camps = [A, B, _result(3, "b"), _result(4, "b")]
    assert judge(camps, rule) == Undecided(5)
    assert isinstance(judge([*camps, _result(5, "b")], rule), Accepted)
    failed = judge([*camps, _result(5, "c")], rule)
    assert isinstance(failed, Failed)
    assert failed.reason == "5 replicas, and two results with 2 votes each"


def test_agreement_is_counted_from_each_results_own_view() -> None:
    """Not transitive: a middle result agrees with both ends, which do not agree with each other."""
    low, middle, high = (
        Result(StatementId(bytes([n]) * 32), pid(n), pid(n), "ok", Digest(bytes([n]) * 32)) for n in (1, 2, 3)
    )
    near = lambda one, other: abs(one[0] - other[0]) <= 1  # noqa: E731
    found = judge([low, middle, high], Validate(agree=3, max_replicas=3), near)
    assert found == Accepted(middle.root, (low, middle, high), ())


def test_a_majority_is_more_than_half() -> None:
    assert [majority(n) for n in range(6)] == [1, 1, 2, 2, 3, 3]
