"""The quorum rule against a dumb second version, the fold in any order, timers against a list, certificates."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import JOB, SIGNERS, SPEC, bid, commit, reveal, verdict

from nexapod.protocol import certificate
from nexapod.protocol.errors import PeerError
from nexapod.protocol.limits import REPLICAS_MAX
from nexapod.protocol.quorum import Accepted, Failed, Result, Undecided, judge
from nexapod.protocol.shard import ShardState
from nexapod.protocol.statements import Statement, output_root
from nexapod.protocol.timers import Timers
from nexapod.protocol.types import Digest, File, StatementId, Validate, blob_of
from nexapod.sim.keys import verify
from nexapod.sim.scenarios import quiet
from nexapod.sim.world import World

quick = settings(max_examples=250, deadline=None)


# --- quorum ----------------------------------------------------------------------------------------------------------
def dumb(results: list[Result], rule: Validate) -> tuple[str, object]:
    """The same rule, told another way: for `exact`, agreement is having the same root."""
    by_group: dict[str, list[Result]] = {}
    for result in results:
        by_group.setdefault(result.group, []).append(result)
    voters = [sorted(found, key=lambda r: r.reveal)[0] for found in by_group.values()]
    votes = Counter(r.root for r in voters if r.outcome == "ok")
    top = max(votes.values(), default=0)
    leaders = [root for root, count in votes.items() if count == top]
    room = len(voters) < rule.max_replicas
    if top >= rule.agree and len(leaders) == 1:
        return "accepted", leaders[0]
    if top >= rule.agree:
        return ("undecided", len(voters) + 1) if room else ("failed", None)
    if not room:
        return "failed", None
    return "undecided", max(rule.agree, min(rule.max_replicas, len(voters) + rule.agree - top))


def told(judgement: object) -> tuple[str, object]:
    match judgement:
        case Accepted(root):
            return "accepted", root
        case Failed():
            return "failed", None
        case Undecided(wanted):
            return "undecided", wanted
    raise AssertionError(judgement)


results = st.lists(
    st.builds(
        lambda n, group, outcome, root: Result(
            StatementId(bytes([n]) * 32), SIGNERS[0].peer, f"group-{group}", outcome, Digest(bytes([root]) * 32)
        ),
        st.integers(0, 255),
        st.integers(0, 6),
        st.sampled_from(("ok", "ok", "ok", "failed", "wall-limit")),
        st.integers(0, 3),
    ),
    max_size=9,
    unique_by=lambda r: r.reveal,
)
rules = st.integers(1, REPLICAS_MAX // 3).flatmap(
    lambda agree: st.integers(agree, 7).map(lambda most: Validate(agree=agree, max_replicas=most))
)


@quick
@given(results, rules, st.randoms(use_true_random=False))
def test_the_judge_says_what_a_dumb_one_says_in_any_order(found: list[Result], rule: Validate, order: object) -> None:
    expected = dumb(found, rule)
    assert told(judge(found, rule)) == expected
    order.shuffle(found)  # type: ignore[attr-defined]
    assert told(judge(found, rule)) == expected


@quick
@given(results, rules)
def test_what_is_undecided_wants_a_result_more_and_never_more_than_allowed(found: list[Result], rule: Validate) -> None:
    judgement = judge(found, rule)
    if isinstance(judgement, Undecided):
        assert len({r.group for r in found}) < judgement.wanted <= rule.max_replicas
    if isinstance(judgement, Accepted):
        assert len({r.group for r in judgement.agreeing}) >= rule.agree


# --- the fold --------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def history() -> tuple[Statement, ...]:
    """Three workers on one task, one of which contradicts itself; two stewards, one of which judges twice."""
    found: list[Statement] = []
    shown: list[Statement] = []
    right, wrong = ((File("o", blob_of(text)),) for text in (b"right", b"wrong"))
    for who, files, salt in ((1, right, b"1"), (2, right, b"2"), (3, wrong, b"3"), (3, right, b"4")):
        asked = bid(who, (0, 1), nonce=salt[0])
        sealed = commit(who, 0, asked, output_root("ok", 0, files), salt * 32)
        open_ = reveal(who, 0, sealed, files, salt * 32)
        shown.append(open_)
        found += [asked, sealed, open_]
    root = output_root("ok", 0, right)
    found += [verdict(1, 0, root, shown[:2]), verdict(1, 0, root, shown[:3]), verdict(2, 0, root, shown[:2])]
    return tuple(found)


def folded(order: list[Statement]) -> ShardState:
    """Offered again and again, as peers do, until nothing changes."""
    state = ShardState(JOB, SPEC, 0)
    before = None
    while before != state.summary():
        before = state.summary()
        for statement in order:
            state.add(statement)
    return state


@quick
@given(st.permutations(history()))
def test_the_order_of_arrival_does_not_matter(order: list[Statement]) -> None:
    one, other = folded(list(history())), folded(order)
    assert one.summary() == other.summary()
    decided = one.decided(0, 3), other.decided(0, 3)
    assert decided[0] is not None
    assert decided[0] == decided[1]


@quick
@given(st.permutations(history()), st.integers(1, 10))
def test_every_statement_kept_follows_what_it_answers(order: list[Statement], most: int) -> None:
    """Whatever arrived so far, the evidence of a task folds into the same again without an orphan."""
    state = ShardState(JOB, SPEC, 0)
    for statement in order[:most]:
        state.add(statement)
    again = ShardState(JOB, SPEC, 0)
    assert all(again.add(statement) == "new" for statement in {s.id: s for s in state.evidence(0)}.values())


# --- certificates ----------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)
def a_certificate() -> bytes:
    world = World(quiet(5, peers=5, tasks=3))
    world.run()
    node = world.boxes[0].node
    assert node is not None
    data = node.submissions[world.jobs[0].id].certificate()
    assert data is not None
    return data


def test_a_certificate_is_accepted_as_it_is() -> None:
    report = certificate.check(a_certificate(), verify)
    assert report.problems == ()
    assert [task.outcome for task in report.tasks] == ["accepted"] * 3


@quick
@given(st.integers(0, 10**7), st.integers(1, 255))
def test_a_certificate_with_any_byte_changed_is_refused(at: int, change: int) -> None:
    data = bytearray(a_certificate())
    data[at % len(data)] ^= change
    assert not certificate.check(bytes(data), verify).ok


@quick
@given(st.integers(0, 10**7))
def test_a_certificate_cut_short_is_refused(length: int) -> None:
    data = a_certificate()
    assert not certificate.check(data[: length % len(data)], verify).ok


@quick
@given(st.binary(max_size=200))
def test_any_bytes_make_a_report(data: bytes) -> None:
    for candidate in (data, certificate.MAGIC + data):
        assert not certificate.check(candidate, verify).ok


# --- timers ----------------------------------------------------------------------------------------------------------
@quick
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 20) | st.none())
        | st.tuples(st.just("pop"), st.integers(0, 20)),
        max_size=60,
    )
)
def test_timers_do_what_a_list_does(steps: list[tuple[str, int | None]]) -> None:
    timers = Timers()
    dumb_timers: list[tuple[int, int, str]] = []
    for number, (name, when) in enumerate(steps):
        if name == "pop":
            assert when is not None
            due = sorted(item for item in dumb_timers if item[0] <= when)
            assert timers.pop_due(when) == (due[0][2] if due else None)
            dumb_timers = [item for item in dumb_timers if not due or item != due[0]]
        else:
            timers.set(name, when)
            if (when, name) not in [(w, n) for w, _, n in dumb_timers]:
                dumb_timers = [item for item in dumb_timers if item[2] != name]
                dumb_timers += [(when, number, name)] if when is not None else []
        assert timers.next == min((w for w, _, _ in dumb_timers), default=None)
        assert all((name in timers) == any(n == name for _, _, n in dumb_timers) for name in "abcd")


def test_a_peer_error_is_what_a_lie_about_votes_is() -> None:
    """The fold refuses an acceptance with too few votes, whoever signed it."""
    state = ShardState(JOB, SPEC, 0)
    lone = history()[2]
    with pytest.raises(PeerError, match="bad-verdict"):
        state.add(verdict(1, 0, lone.body.root, [lone]))
