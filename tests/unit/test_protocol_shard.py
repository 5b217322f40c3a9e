"""nexapod.protocol.shard: the fold of a shard's statements."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from protocol_kit import Replica, job, make, pid, replica, verdict

from nexapod.protocol import shard
from nexapod.protocol.errors import PeerError
from nexapod.protocol.shard import Contradiction, ShardState, shard_of
from nexapod.protocol.statements import Cancel, Fault, Reveal, Statement
from nexapod.protocol.types import JobId, PeerId, Usage, Validate

JOB = job(tasks=300)
A, B, C = replica(JOB, 3), replica(JOB, 4), replica(JOB, 5, content=b"other")


def _state(*statements: Statement, of: Statement = JOB) -> ShardState:
    state = ShardState(JobId(of.id), of.body, 0)
    for statement in statements:
        state.add(statement)
    return state


def _fault(one: Replica, other: Replica, by: int = 0) -> Statement:
    first, second = sorted((one.commit, other.commit), key=lambda s: s.id)
    return make(Fault(JobId(JOB.id), 0, pid(one.worker), first.envelope, second.envelope), by)


def _rule(state: ShardState, statement: Statement) -> str:
    with pytest.raises(PeerError) as caught:
        state.add(statement)
    return caught.value.rule


def _by_peer(peer: PeerId) -> str:
    return peer


def test_a_statement_waits_for_what_it_answers() -> None:
    state = _state()
    assert [state.add(s) for s in (A.reveal, A.commit, A.bid)] == ["orphan", "orphan", "new"]
    assert [state.add(s) for s in (A.reveal, A.commit, A.reveal)] == ["orphan", "new", "new"]
    assert [state.add(s) for s in A.all] == ["known"] * 3


def test_statements_that_cannot_be_true_of_the_job_are_refused() -> None:
    state = _state(A.bid, B.bid, B.commit)
    assert _rule(state, make(Cancel(JobId(JOB.id), ""), 9)) == "not-of-a-shard"
    assert _rule(_state(of=job(tasks=2)), replica(JOB, 3, task=2).bid) == "no-such-task"
    assert _rule(state, replica(JOB, 3, task=256).bid) == "no-such-task"
    assert _rule(state, replica(JOB, 3, task=256).commit) == "no-such-task"
    other_bid = make(type(A.commit.body)(JobId(JOB.id), 0, B.bid.id, A.commit.body.sealed), 3)
    assert _rule(state, other_bid) == "bad-commit"
    other_task = make(type(A.commit.body)(JobId(JOB.id), 1, A.bid.id, A.commit.body.sealed), 3)
    assert _rule(state, other_task) == "bad-commit"
    body = B.reveal.body
    resalted = Reveal(body.job, 0, B.commit.id, b"\1" * 32, body.root, "ok", 0, body.outputs, Usage(), "wasm", "", "")
    assert _rule(state, make(resalted, 4)) == "bad-reveal"
    assert _rule(state, verdict(JOB, 0, [A])) == "bad-verdict"


def test_two_commits_of_one_worker_contradict_each_other_in_either_order() -> None:
    again = replica(JOB, 3, content=b"changed my mind")
    pair = Contradiction(*sorted((A.commit, again.commit), key=lambda s: s.id))
    for first, second in ((A, again), (again, A)):
        state = _state(A.bid, first.commit)
        assert state.add(second.commit) == pair
        assert state.file(0).commits[pid(3)] == pair.first


def test_results_of_a_worker_with_a_fault_do_not_count() -> None:
    again = replica(JOB, 3, content=b"changed my mind")
    state = _state(*A.all, *B.all)
    assert len(state.results(0, _by_peer)) == 2
    assert state.add(_fault(A, again)) == "new"
    assert [r.worker for r in state.results(0, _by_peer)] == [pid(4)]
    assert state.results(7, _by_peer) == []


def test_a_verdict_is_superseded_by_a_later_one_on_more_votes() -> None:
    two = verdict(JOB, 0, [A, B])
    three = verdict(JOB, 0, [A, B], others=[C])
    rival = verdict(JOB, 0, [A, B], stewards=(0, 1))
    first, second = sorted((two, rival), key=lambda s: s.id)
    for order in itertools.permutations((two, three, rival)):
        assert _state(*order).file(0).verdicts[pid(0)] == three
    for order in ((first, second), (second, first)):
        assert _state(*order).file(0).verdicts[pid(0)] == first


def test_a_majority_of_the_listed_stewards_decides() -> None:
    state = _state(*A.all, *B.all)
    assert state.decided(0, 3) is None
    state.add(verdict(JOB, 0, [A, B]))
    assert state.decided(0, 1) is None
    assert state.decided(9, 1) is None
    state.add(verdict(JOB, 1, [A, B]))
    found = state.decided(0, 3)
    assert found is not None
    assert (found.outcome, found.root) == ("accepted", A.root)


def test_whoever_has_seen_more_stewards_than_are_listed_needs_a_majority_of_those() -> None:
    alone = verdict(JOB, 0, [A, B], stewards=(0,))
    state = _state(*A.all, *B.all, alone)
    assert state.decided(0, 1) is not None
    assert state.decided(0, 3) is None


def test_a_verdict_that_the_results_do_not_bear_out_decides_nothing() -> None:
    state = _state(*A.all, verdict(JOB, 0, [A, B]), verdict(JOB, 1, [A, B]))
    assert state.decided(0, 3) is None
    for statement in B.all:
        state.add(statement)
    assert state.decided(0, 3) is not None


THREE = job(validate=Validate(agree=2, max_replicas=3))
APART = [replica(THREE, n, content=b"%d" % n) for n in (3, 4, 5)]


def test_a_failure_is_borne_out_by_results_that_come_to_nothing() -> None:
    failed = [verdict(THREE, s, [], others=APART, outcome="failed") for s in (0, 1)]
    state = _state(*APART[0].all, *APART[1].all, *failed, of=THREE)
    assert state.decided(0, 3) is None, "the third replica's result is not known here"
    for statement in APART[2].all:
        state.add(statement)
    found = state.decided(0, 3)
    assert found is not None
    assert found.outcome == "failed"


def test_results_that_agree_bear_out_no_failure_however_often_it_names_them() -> None:
    same = [replica(THREE, n) for n in (3, 4, 5)]
    failed = [verdict(THREE, s, [], others=same, outcome="failed") for s in (0, 1)]
    assert _state(*(s for r in same for s in r.all), *failed, of=THREE).decided(0, 3) is None
    body = failed[0].body
    split = tuple(replace(body.votes[0], group=f"g{n}") for n in range(3))
    with pytest.raises(PeerError, match="bad-verdict"):
        _state(*APART[0].all, make(replace(body, votes=split), 0), of=THREE)


def test_a_worker_at_fault_has_had_its_turn_and_bears_out_a_failure() -> None:
    again = replica(THREE, 3, content=b"changed")
    first, second = sorted((APART[0].commit, again.commit), key=lambda s: s.id)
    fault = make(Fault(JobId(THREE.id), 0, pid(3), first.envelope, second.envelope), 0)
    failed = [verdict(THREE, s, [], others=APART, outcome="failed") for s in (0, 1)]
    state = _state(*APART[1].all, *APART[2].all, fault, *failed, of=THREE)
    assert state.decided(0, 3) is not None


def test_nobody_gives_up_before_every_replica_was_tried() -> None:
    with pytest.raises(PeerError, match="every replica"):
        _state(verdict(THREE, 0, [], others=APART[:2], outcome="failed"), of=THREE)


def test_of_two_settled_by_a_partition_the_smallest_verdict_id_is_kept_everywhere() -> None:
    d = replica(JOB, 6, content=b"other")
    left = [verdict(JOB, s, [A, B], stewards=(0, 1)) for s in (0, 1)]
    right = [verdict(JOB, s, [C, d], stewards=(2, 7)) for s in (2, 7)]
    smallest = min((*left, *right), key=lambda s: s.id)
    everything = [*A.all, *B.all, *C.all, *d.all]
    for order in ((*left, *right), (*right, *left)):
        assert _state(*everything, *order).decided(0, 2) == smallest.body


def test_the_order_of_arrival_does_not_matter() -> None:
    statements = [*A.all, *B.all, *C.all, verdict(JOB, 0, [A, B]), verdict(JOB, 1, [A, B], others=[C])]
    summaries = set()
    for turn in range(len(statements)):
        order = statements[turn:] + statements[:turn]
        state = _state(*order, *order, *order)
        summaries.add(state.summary())
    assert len(summaries) == 1


def test_the_summary_changes_with_what_is_kept_and_counts_answered_bids_only() -> None:
    state = _state(A.bid, B.bid)
    empty = state.summary()
    assert empty[0] == 0
    state.add(A.commit)
    assert state.summary()[0] == 2
    assert state.summary() is state.summary()
    state.add(A.reveal)
    assert state.summary()[0] == 3


def test_evidence_is_in_order_and_only_of_its_task() -> None:
    other = replica(JOB, 3, task=1)
    judged = verdict(JOB, 0, [A, B])
    state = _state(*other.all, *A.all, *B.all, judged)
    kinds = [s.kind for s in state.evidence(0)]
    assert kinds == ["bid", "bid", "commit", "commit", "reveal", "reveal", "verdict"]
    assert state.evidence(17) == []


def test_a_flood_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "REPLICAS_MAX", 1)
    many = [replica(JOB, n) for n in range(20, 26)]
    state = _state(*(r.bid for r in many))
    assert [state.add(r.commit) for r in many] == ["new"] * 4 + ["known"] * 2
    monkeypatch.setattr(shard, "STATEMENTS_PER_SHARD_MAX", 5)
    state = _state()
    assert [state.add(r.bid) for r in many[:5]] == ["new"] * 5
    assert [state.add(many[0].commit), state.add(many[0].reveal)] == ["new", "new"]
    assert state.add(many[5].bid) == "new", "the oldest bid that no commit names makes room"
    assert set(state.bids) == {r.bid.id for r in many} - {many[1].bid.id}


def test_a_table_full_of_answered_bids_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "STATEMENTS_PER_SHARD_MAX", 2)
    one, two, three = (replica(JOB, n) for n in (20, 21, 22))
    state = _state(one.bid, one.commit, two.bid, two.commit)
    assert state.add(three.bid) == "orphan"


def test_the_total_is_bounded_over_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [replica(JOB, 3, task=n) for n in range(4)]
    state = _state(*(r.bid for r in some))
    monkeypatch.setattr(shard, "STATEMENTS_PER_SHARD_MAX", 3)
    assert [state.add(r.commit) for r in some] == ["new"] * 3 + ["known"]


def test_statements_name_their_shard() -> None:
    late = replica(JOB, 3, task=299)
    assert [shard_of(s) for s in late.all] == [1, 1, 1]
    assert shard_of(verdict(JOB, 0, [A, B])) == 0


def test_an_equivocators_reveal_leaves_with_the_commit_that_it_answers() -> None:
    one, other = sorted((A, replica(JOB, 3, content=b"changed")), key=lambda r: r.commit.id)
    revealed_first = _state(other.bid, other.commit, other.reveal, one.commit)
    revealed_last = _state(other.bid, other.commit, one.commit, other.reveal)
    assert revealed_first.summary() == revealed_last.summary()
