"""Range-based reconciliation terminates, converges, and costs what differs."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import Digest, StatementId
from nexapod.protocol.wire import messages, reconcile
from nexapod.protocol.wire.messages import Range, Reconcile

NO_DIGEST = Digest(bytes(32))


def named(numbers: Iterable[int]) -> list[StatementId]:
    return sorted(StatementId(hashlib.sha256(b"%d" % number).digest()) for number in set(numbers))


def ids_like(numbers: Iterable[int]) -> list[StatementId]:
    """Ids that share long prefixes, as ground ones would."""
    return sorted(StatementId(bytes(28) + number.to_bytes(4, "big")) for number in set(numbers))


class Exchange:
    """Two sides that talk until neither has anything to answer."""

    def __init__(self, one: list[StatementId], other: list[StatementId], bytes_max: int | None = None) -> None:
        self.sets = [one, other]
        self.learned: list[set[StatementId]] = [set(), set()]
        self.messages = 0
        self.bytes = 0
        self.answers_beyond = 0
        start, ranges, turn = b"", reconcile.opening(one), 1
        while ranges:
            question = messages.encode(Reconcile(None, 0, start, ranges))
            assert len(question) <= limits.FRAME_BYTES_MAX
            self.messages += 1
            self.bytes += len(question)
            assert self.messages < 10_000
            read = messages.decode(question)
            assert isinstance(read, Reconcile)
            limit = reconcile.ANSWER_BYTES_MAX if bytes_max is None else bytes_max
            step = reconcile.answer(self.sets[turn], read.start, read.ranges, limit)
            self.learned[1 - turn] |= set(step.give)
            self.learned[turn] |= set(step.want)
            answer = messages.encode(Reconcile(None, 0, step.start, step.ranges))
            allowed = max(limits.ANSWER_FREE_BYTES, limits.ANSWER_FACTOR_MAX * len(question))
            self.answers_beyond += len(answer) > allowed
            start, ranges, turn = step.start, step.ranges, 1 - turn

    def check(self) -> None:
        one, other = map(set, self.sets)
        assert self.learned[0] == other - one
        assert self.learned[1] == one - other


def replicate(one: set[StatementId], other: set[StatementId]) -> int:
    """Two sides that give each other what is asked for as they talk. How many messages it took."""
    sets = [one, other]
    start, ranges, turn, messages_sent = b"", reconcile.opening(sorted(one)), 1, 0
    while ranges:
        messages_sent += 1
        assert messages_sent < 1_000
        step = reconcile.answer(sorted(sets[turn]), start, ranges, ask=True)
        sets[1 - turn] |= set(step.give)
        start, ranges, turn = step.start, step.ranges, 1 - turn
    return messages_sent


small = st.sets(st.integers(0, 400), max_size=300)


@settings(max_examples=60, deadline=None)
@given(small, small, st.booleans())
def test_any_two_sets_converge_and_the_exchange_ends(one: set[int], other: set[int], ground: bool) -> None:
    name = ids_like if ground else named
    Exchange(name(one), name(other)).check()


@settings(max_examples=40, deadline=None)
@given(small, small, st.integers(0, 3_000))
def test_they_converge_whatever_an_answer_may_cost(one: set[int], other: set[int], bytes_max: int) -> None:
    Exchange(named(one), named(other), bytes_max).check()


@settings(max_examples=60, deadline=None)
@given(small, small, st.booleans())
def test_sides_that_ask_in_their_answers_have_the_union_in_the_end(
    one: set[int], other: set[int], ground: bool
) -> None:
    name = ids_like if ground else named
    left, right = set(name(one)), set(name(other))
    replicate(left, right)
    assert left == right == set(name(one | other))


@settings(max_examples=40, deadline=None)
@given(small, small)
def test_asking_of_a_side_that_keeps_nothing_ends_too(one: set[int], other: set[int]) -> None:
    sets = [named(one), named(other)]
    start, ranges, turn, turns = b"", reconcile.opening(sets[0]), 1, 0
    while ranges:
        turns += 1
        assert turns < 1_000
        step = reconcile.answer(sets[turn], start, ranges, ask=True)
        start, ranges, turn = step.start, step.ranges, 1 - turn


def test_large_sets_become_one() -> None:
    everything = named(range(3_000))
    for missing_one, missing_other in ((0, 0), (1, 0), (0, 1), (7, 5), (3_000, 0), (0, 3_000), (1_500, 20)):
        one, other = set(everything[missing_one:]), set(everything[: 3_000 - missing_other])
        sent = replicate(one, other)
        assert one == other == set(everything[missing_one:]) | set(everything[: 3_000 - missing_other])
        assert sent == 1 or missing_one or missing_other


def test_equal_sets_cost_one_small_message() -> None:
    ids = named(range(10_000))
    exchange = Exchange(ids, ids)
    assert (exchange.messages, exchange.bytes < 100) == (1, True)


@pytest.mark.parametrize("differences", [1, 10, 100])
def test_bytes_grow_with_the_differences_not_with_the_set(differences: int) -> None:
    rng = random.Random(differences)
    everything = range(10_000)
    lost = set(rng.sample(everything, differences))
    exchange = Exchange(named(everything), named(n for n in everything if n not in lost))
    exchange.check()
    assert exchange.bytes < 2_000 + 3_500 * differences
    assert exchange.bytes < 400_000, "less than all ids"


def test_one_that_has_nothing_is_told_at_once() -> None:
    everything = named(range(5_000))
    for one, other in (([], everything), (everything, [])):
        exchange = Exchange(list(one), list(other))
        exchange.check()
        assert exchange.messages <= 3


@pytest.mark.parametrize("sizes", [(3_000, 0), (3_000, 3_000), (40, 3_000)])
def test_no_answer_is_out_of_proportion(sizes: tuple[int, int]) -> None:
    one, other = named(range(sizes[0])), named(range(10_000, 10_000 + sizes[1]))
    exchange = Exchange(one, other)
    exchange.check()
    assert exchange.answers_beyond == 0


def test_a_bounded_answer_fits_its_bound() -> None:
    mine = named(range(5_000))
    cuts = [bytes([place * 4]) for place in range(1, 64)] + [b""]
    step = reconcile.answer(mine, b"", [Range(cut, 9, NO_DIGEST, None) for cut in cuts], 4_096)
    assert len(step.ranges) <= reconcile.RANGES_MAX
    assert len(messages.encode(Reconcile(None, 0, step.start, step.ranges))) <= 4_096


@pytest.mark.parametrize(
    "ranges",
    [
        (Range(b"\x05", 1, NO_DIGEST, None), Range(b"\x04", 1, NO_DIGEST, None)),
        (Range(b"", 1, NO_DIGEST, None), Range(b"\x04", 1, NO_DIGEST, None)),
        (Range(b"\x01", 1, NO_DIGEST, (StatementId(b"\xff" * 32),)),),
        (Range(b"", 2, NO_DIGEST, (StatementId(b"\xff" * 32), StatementId(bytes(32)))),),
        (Range(b"", 2, NO_DIGEST, (StatementId(bytes(32)), StatementId(bytes(32)))),),
    ],
)
def test_ranges_that_make_no_sense_are_refused(ranges: tuple[Range, ...]) -> None:
    with pytest.raises(PeerError, match="bad-ranges"):
        reconcile.answer(named(range(10)), b"", ranges)


def test_a_boundary_separates_what_it_lies_between() -> None:
    ids = named(range(1_000))
    for low, high in pairwise(ids):
        edge = reconcile.between(low, high)
        assert low < edge <= high
