"""nexapod.protocol.steward: leases, evidence, reveals and judgement, one shard and one steward at a time.

Peers 0, 1 and 2 are the stewards (this is 0), 3 to 6 the workers, 9 the submitter.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from protocol_kit import (
    MODULE,
    ZERO,
    Replica,
    context,
    decode,
    drain,
    job,
    make,
    pid,
    profile,
    replica,
    said,
    traced,
    verdict,
)

from nexapod.protocol import limits, steward
from nexapod.protocol.context import STATEMENT_RECORD, Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Drop, Fetch, Publish, Save
from nexapod.protocol.messages import (
    Collect,
    Grant,
    Have,
    Held,
    Offer,
    Placed,
    Query,
    Release,
    Renew,
    Status,
    Summary,
    TaskStatus,
    View,
)
from nexapod.protocol.statements import Bid, Fault, Statement, Verdict
from nexapod.protocol.steward import NO_ROOT, Steward, in_order
from nexapod.protocol.types import JobId, Limits, Part, StatementId, Validate, blob_of

RESULT = blob_of(b"result")


class Desk:
    """A steward that has begun and holds its inputs."""

    def __init__(self, of: Statement | None = None, *, inputs: bool = True, ctx: Context | None = None) -> None:
        self.job = of or job()
        self.id = JobId(self.job.id)
        self.ctx = ctx or context()
        self.steward = Steward(self.ctx, self.job, 0)
        self.steward.reconsider()
        if inputs:
            self.ctx.store_has(Part.whole(MODULE))
            self.steward.blob_ready(Part.whole(MODULE))
            drain(self.ctx)
            self.ctx.to_self.clear()

    def replica(self, worker: int, content: bytes | None = b"result", **more: object) -> Replica:
        return replica(self.job, worker, content=content, **more)  # type: ignore[arg-type]

    def add(self, statement: Statement, sender: int | None = None) -> None:
        self.steward.add(statement, statement.author if sender is None else pid(sender))

    def bid(self, *replicas: Replica) -> None:
        for one in replicas:
            self.add(one.bid)

    def commit(self, *replicas: Replica) -> None:
        self.bid(*replicas)
        for one in replicas:
            self.add(one.commit)

    def reveal(self, *replicas: Replica) -> None:
        self.commit(*replicas)
        for one in replicas:
            self.add(one.reveal)

    def renew(self, one: Replica, stage: str = "running", progress: int = 0) -> TaskStatus:
        drain(self.ctx)
        held = Held(one.commit.body.task, stage, one.bid.id, progress)  # type: ignore[arg-type]
        self.steward.on_renew(pid(one.worker), Renew(self.id, 0, (held,)))
        [status] = [m for m in said(self.ctx, one.worker) if isinstance(m, Status)]
        return status.tasks[0]

    def at(self, now: int) -> None:
        self.ctx.now = now
        self.steward.tick()

    def blob(self, *, ready: bool) -> None:
        if ready:
            self.ctx.store_has(Part.whole(RESULT))
            self.steward.blob_ready(Part.whole(RESULT))
        else:
            self.steward.blob_failed(Part.whole(RESULT))

    @property
    def mine(self) -> Verdict | None:
        found = self.steward.state.file(0).verdicts.get(pid(0))
        return found.body if found else None


def _status(desk: Desk, worker: int) -> list[TaskStatus]:
    return [task for m in said(desk.ctx, worker) if isinstance(m, Status) for task in m.tasks]


# --- inputs --------------------------------------------------------------------------------------------------------
def test_a_steward_fetches_the_inputs_from_the_submitter_first_and_says_when_it_has_them() -> None:
    desk = Desk(inputs=False)
    [fetch] = [e for e in drain(desk.ctx) if isinstance(e, Fetch)]
    assert (fetch.part.blob, fetch.sources[0], set(fetch.sources[1:])) == (MODULE, pid(9), {pid(1), pid(2)})
    desk.steward.submitter_up()
    assert said(desk.ctx) == []
    desk.steward.blob_ready(Part.whole(MODULE))
    assert said(desk.ctx, 9) == [Placed(desk.id, 0)]
    desk.steward.submitter_up()
    assert said(desk.ctx, 9) == [Placed(desk.id, 0)]


def test_inputs_that_nobody_gave_are_asked_for_again() -> None:
    desk = Desk(inputs=False)
    drain(desk.ctx)
    desk.steward.blob_failed(Part.whole(MODULE))
    desk.at(limits.FETCH_RETRY_MS - 1)
    assert not [e for e in drain(desk.ctx) if isinstance(e, Fetch)]
    assert desk.steward.deadline == limits.FETCH_RETRY_MS
    desk.at(limits.FETCH_RETRY_MS)
    assert [e.part.blob for e in drain(desk.ctx) if isinstance(e, Fetch)] == [MODULE]


# --- claims --------------------------------------------------------------------------------------------------------
def test_as_many_workers_as_must_agree_are_granted_a_task_and_saved() -> None:
    desk = Desk()
    a, b, c = (desk.replica(n) for n in (3, 4, 5))
    desk.add(a.bid)
    saved = [e.record.key for e in desk.ctx.effects if isinstance(e, Save)]
    assert saved == [a.bid.id]
    assert said(desk.ctx, 3) == [Grant(desk.id, 0, a.bid.id, (0,))]
    desk.bid(b, c)
    grants = {m.bid: m.granted for m in said(desk.ctx) if isinstance(m, Grant)}
    assert grants == {b.bid.id: (0,), c.bid.id: ()}


@pytest.mark.parametrize("nearest", [True, False])
def test_who_is_granted_nothing_is_shown_what_is_open_by_the_nearest_steward(nearest: bool) -> None:
    desk = Desk(job(tasks=2))
    others = tuple(p for p in desk.steward.stewards if p != desk.ctx.me)
    desk.steward.stewards = (desk.ctx.me, *others) if nearest else (*others, desk.ctx.me)
    desk.bid(*(desk.replica(n) for n in (3, 4)))
    drain(desk.ctx)
    desk.bid(desk.replica(5))
    views = [m for m in said(desk.ctx, 5) if isinstance(m, View)]
    assert [(v.open, [t.task for t in v.active]) for v in views] == ([((1,), [0])] if nearest else [])


def test_a_bid_that_comes_twice_is_one() -> None:
    desk = Desk()
    a = desk.replica(3)
    desk.bid(a)
    drain(desk.ctx)
    desk.bid(a)
    assert said(desk.ctx) == []


def test_one_operator_group_gets_one_lease_of_a_task() -> None:
    desk = Desk()
    for worker in (3, 4):
        desk.ctx.directory.peer_up(pid(worker), f"/ip4/8.8.8.{worker}/tcp/1")
    desk.bid(desk.replica(3), desk.replica(4))
    assert [m.granted for m in said(desk.ctx) if isinstance(m, Grant)] == [(0,), ()]


def test_a_hoarder_gets_a_bounded_number_of_leases() -> None:
    desk = Desk(job(tasks=128))
    for first in range(0, 128, 32):
        desk.add(make(Bid(desk.id, 0, tuple(range(first, first + 32)), 0, StatementId(ZERO), first), 3))
    granted = [t for m in said(desk.ctx) if isinstance(m, Grant) for t in m.granted]
    assert len(granted) == limits.LEASES_PER_PEER_MAX


def test_a_lease_that_is_not_renewed_ends_reopens_the_task_and_whoever_waits_hears() -> None:
    desk = Desk()
    desk.bid(desk.replica(3), desk.replica(4))
    desk.ctx.now = limits.LEASE_TTL_MS - limits.POLL_MS
    desk.steward.on_query(pid(5), Query(desk.id, 0))
    assert [m.open for m in said(desk.ctx, 5) if isinstance(m, View)] == [()]
    desk.at(limits.LEASE_TTL_MS - 1)
    assert not traced(drain(desk.ctx), "lease_expired")
    desk.at(limits.LEASE_TTL_MS)
    assert len(traced(desk.ctx.effects, "lease_expired")) == 2
    assert {m.open for m in said(desk.ctx, 5) if isinstance(m, View)} == {(0,)}


def test_those_who_wait_are_bounded_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward, "INTEREST_MAX", 1)
    desk = Desk()
    desk.bid(desk.replica(3), desk.replica(4))
    for worker in (5, 6):
        desk.steward.on_query(pid(worker), Query(desk.id, 0))
    drain(desk.ctx)
    desk.steward.on_release(pid(3), Release(desk.id, 0, (0,), False))
    assert [m.open for m in said(desk.ctx, 5)] == [(0,)]  # type: ignore[union-attr]
    assert said(desk.ctx, 6) == []


def test_a_lease_given_back_reopens_the_task_but_not_yet_to_who_could_not_run_it() -> None:
    desk = Desk()
    a = desk.replica(3)
    desk.bid(a, desk.replica(4))
    desk.steward.on_release(pid(3), Release(desk.id, 0, (0, 77), True))
    assert desk.steward.view().open == (0,)
    drain(desk.ctx)
    desk.bid(desk.replica(3, nonce=2))
    assert [m.granted for m in said(desk.ctx) if isinstance(m, Grant)] == [()]
    drain(desk.ctx)
    desk.ctx.now += 2 * limits.LEASE_TTL_MS
    desk.bid(desk.replica(3, nonce=3))
    assert [m.granted for m in said(desk.ctx) if isinstance(m, Grant)] == [(0,)]


def test_a_commit_cannot_be_given_back() -> None:
    desk = Desk()
    desk.commit(desk.replica(3))
    desk.steward.on_release(pid(3), Release(desk.id, 0, (0,), False))
    assert pid(3) in desk.steward.desks[0].leases


def test_a_worker_whose_link_broke_keeps_its_leases_for_a_short_while_only() -> None:
    desk = Desk(job(tasks=2))
    a = desk.replica(3)
    desk.bid(a)
    desk.steward.worker_lost(pid(3))
    desk.steward.worker_lost(pid(5))
    desk.at(limits.LOST_LINK_MS - 1)
    assert desk.renew(a).standing == "held"
    desk.at(limits.LOST_LINK_MS)
    assert pid(3) in desk.steward.desks[0].leases
    desk.steward.worker_lost(pid(3))
    desk.at(2 * limits.LOST_LINK_MS)
    assert desk.steward.desks[0].leases == {}


def test_one_that_renews_for_longer_than_a_task_may_take_makes_room_for_others() -> None:
    wall = 10_000
    desk = Desk(job(limits=Limits(wall_ms=wall)))
    a = desk.replica(3)
    desk.bid(a)
    for now in range(0, wall + 2 * limits.LEASE_TTL_MS, limits.RENEW_MS):
        desk.at(now)
        assert desk.renew(a).standing == "held"
    desk.at(wall + 2 * limits.LEASE_TTL_MS)
    desk.at(wall + 3 * limits.LEASE_TTL_MS)
    assert desk.steward.desks[0].leases == {}
    assert desk.renew(a).standing == "lost"
    desk.bid(desk.replica(3, nonce=2))
    assert [m.granted for m in said(desk.ctx, 3) if isinstance(m, Grant)] == [()]


# --- renewals ------------------------------------------------------------------------------------------------------
def test_a_renewal_keeps_the_lease_and_shows_progress() -> None:
    desk = Desk()
    a = desk.replica(3)
    desk.bid(a)
    desk.ctx.now = 50_000
    assert desk.renew(a, progress=300).standing == "held"
    desk.at(limits.LEASE_TTL_MS + 1)
    [active] = desk.steward.view().active
    assert (active.workers, active.progress, active.committed) == ((pid(3),), 300, False)
    assert desk.renew(a, progress=100).standing == "held"
    assert desk.steward.view().active[0].progress == 300


def test_a_renewal_of_what_is_not_known_asks_for_the_statements() -> None:
    desk = Desk()
    a = desk.replica(3)
    assert desk.renew(a).standing == "unknown"
    desk.bid(a)
    assert desk.renew(a, "committed").standing == "unknown"
    desk.add(a.commit)
    assert desk.renew(a, "revealed").standing == "unknown"
    assert desk.renew(a, "committed").standing == "held"


def test_an_expired_lease_is_taken_up_again_only_while_its_place_is_free() -> None:
    desk = Desk()
    a, b, c, d = (desk.replica(n) for n in (3, 4, 5, 6))
    desk.bid(a, b)
    desk.at(limits.LEASE_TTL_MS)
    assert desk.renew(a).standing == "held"
    desk.bid(c)
    assert desk.renew(b).standing == "lost"
    assert desk.renew(d).standing == "unknown"


def test_a_renewal_of_a_task_that_the_job_does_not_have_is_passed_over() -> None:
    desk = Desk()
    desk.steward.on_renew(pid(3), Renew(desk.id, 0, (Held(200, "running", StatementId(ZERO), 0),)))
    assert said(desk.ctx, 3) == []


# --- commits and reveals -------------------------------------------------------------------------------------------
def test_a_commit_whose_bid_is_missing_is_asked_for() -> None:
    desk = Desk()
    desk.add(desk.replica(3).commit)
    assert [t.standing for t in _status(desk, 3)] == ["unknown"]
    desk.add(desk.replica(3).commit, sender=1)
    assert said(desk.ctx) == []


def test_reveals_are_asked_for_once_enough_groups_have_committed() -> None:
    desk = Desk()
    a, b = desk.replica(3), desk.replica(4)
    desk.commit(a)
    assert [t.standing for t in _status(desk, 3)] == ["held"]
    desk.bid(b)
    drain(desk.ctx)
    desk.add(b.commit)
    messages = [(m.tasks[0].standing, m.tasks[0].envelopes) for m in said(desk.ctx) if isinstance(m, Status)]
    assert ("reveal", (b.commit.envelope,)) in messages
    assert ("reveal", (a.commit.envelope,)) in messages


def test_one_who_must_agree_with_nobody_may_show_at_once() -> None:
    desk = Desk(job(validate=Validate(agree=1, max_replicas=1)))
    desk.commit(desk.replica(3))
    assert [t.standing for t in _status(desk, 3)][-1] == "reveal"


def test_two_peers_of_one_group_do_not_open_the_reveals() -> None:
    desk = Desk()
    for worker in (3, 4):
        desk.ctx.directory.peer_up(pid(worker), f"/ip4/8.8.8.{worker}/tcp/1")
    desk.commit(desk.replica(3), desk.replica(4))
    assert "reveal" not in [t.standing for m in said(desk.ctx) if isinstance(m, Status) for t in m.tasks]


def test_a_commit_without_a_lease_after_results_were_shown_may_be_a_copy_and_is_not_taken() -> None:
    desk = Desk()
    a, b, copy = desk.replica(3), desk.replica(4), desk.replica(5)
    desk.commit(a, b)
    desk.add(a.reveal)
    desk.bid(copy)
    drain(desk.ctx)
    desk.add(copy.commit)
    assert [t.standing for t in _status(desk, 5)] == ["lost"]
    assert pid(5) not in desk.steward.state.file(0).commits


def test_a_late_commit_that_another_steward_took_is_taken_from_it() -> None:
    desk = Desk()
    a, b, late = desk.replica(3), desk.replica(4), desk.replica(5)
    desk.commit(a, b)
    desk.add(a.reveal)
    desk.add(late.bid, sender=1)
    desk.add(late.commit, sender=1)
    assert pid(5) in desk.steward.state.file(0).commits


def test_a_late_commit_with_a_lease_is_taken() -> None:
    desk = Desk(job(validate=Validate(agree=2, max_replicas=3)))
    a, b, third = desk.replica(3, b"one"), desk.replica(4, b"two"), desk.replica(5)
    desk.reveal(a, b)
    desk.commit(third)
    assert pid(5) in desk.steward.state.file(0).commits
    assert [t.standing for t in _status(desk, 5)][-1] == "reveal"


def test_a_commit_before_any_result_needs_no_lease() -> None:
    desk = Desk()
    desk.commit(desk.replica(3), desk.replica(4), desk.replica(5))
    assert len(desk.steward.state.file(0).commits) == 3


def test_two_commits_of_one_worker_prove_a_fault() -> None:
    desk = Desk()
    a, again = desk.replica(3), desk.replica(3, b"changed")
    desk.commit(a)
    drain(desk.ctx)
    desk.add(again.commit)
    effects = drain(desk.ctx)
    [published] = [e for e in effects if isinstance(e, Publish)]
    fault = decode(published.data)
    assert isinstance(fault.body, Fault)
    assert (published.topic, fault.body.peer, fault.author) == ("job", pid(3), pid(0))
    assert fault.id in [e.record.key for e in effects if isinstance(e, Save)]
    assert pid(3) not in desk.steward.desks[0].leases
    assert desk.renew(a, "committed").standing == "closed"
    desk.add(again.commit)
    assert not [e for e in drain(desk.ctx) if isinstance(e, Publish)]


def test_a_worker_that_renews_but_does_not_show_its_result_loses_its_place() -> None:
    desk = Desk()
    a, b = desk.replica(3), desk.replica(4)
    desk.commit(a, b)
    desk.add(a.reveal)
    desk.ctx.now = 30_000
    assert desk.renew(b, "committed").standing == "reveal"
    desk.at(limits.REVEAL_TTL_MS)
    assert len(traced(desk.ctx.effects, "reveal_missing")) == 1
    assert desk.steward.view().open == (0,)


# --- judgement -----------------------------------------------------------------------------------------------------
def test_agreeing_results_are_judged_once_their_output_is_here() -> None:
    desk = Desk()
    a, b = desk.replica(3), desk.replica(4)
    desk.reveal(a, b)
    assert desk.mine is None
    fetched = [e for e in drain(desk.ctx) if isinstance(e, Fetch)]
    assert [(e.part.blob, set(e.sources)) for e in fetched] == [(RESULT, {pid(n) for n in (1, 2, 3, 4)})]
    desk.blob(ready=True)
    assert desk.mine is not None
    assert (desk.mine.outcome, desk.mine.root) == ("accepted", a.root)
    assert {v.worker: v.agreed for v in desk.mine.votes} == {pid(3): True, pid(4): True}
    effects = drain(desk.ctx)
    own = desk.steward.state.file(0).verdicts[pid(0)]
    assert own.id in [e.record.key for e in effects if isinstance(e, Save)]
    assert desk.steward.desks[0].settled is None


def test_a_verdict_goes_to_the_other_stewards_and_the_submitter() -> None:
    desk = Desk()
    desk.ctx.store_has(Part.whole(RESULT))
    desk.reveal(desk.replica(3))
    desk.commit(desk.replica(4))
    drain(desk.ctx)
    desk.add(desk.replica(4).reveal)
    own = desk.steward.state.file(0).verdicts[pid(0)]
    effects = list(desk.ctx.effects)
    for peer in (1, 2, 9):
        desk.ctx.effects = list(effects)
        offered = [e for m in said(desk.ctx, peer) if isinstance(m, Offer) for e in m.envelopes]
        assert own.envelope in offered


def test_a_majority_of_stewards_settles_and_the_workers_are_told() -> None:
    desk = Desk()
    desk.ctx.store_has(Part.whole(RESULT))
    a, b = desk.replica(3), desk.replica(4)
    desk.reveal(a, b)
    drain(desk.ctx)
    desk.add(verdict(desk.job, 1, [a, b]))
    assert traced(desk.ctx.effects, "settled")
    statuses = [m.tasks[0] for m in said(desk.ctx) if isinstance(m, Status)]
    assert {s.standing for s in statuses} == {"settled"}
    assert all(len(s.envelopes) == 2 for s in statuses)
    assert desk.renew(a, "revealed").standing == "settled"
    assert desk.steward.finished
    assert desk.steward.view().settled == (0,)


def test_others_settle_a_task_that_this_steward_could_not_judge() -> None:
    desk = Desk()
    a, b = desk.replica(3), desk.replica(4)
    desk.reveal(a, b)
    for other in (1, 2):
        desk.add(verdict(desk.job, other, [a, b]))
    assert desk.steward.desks[0].settled is not None
    assert desk.mine is None


def test_disagreement_asks_for_one_more_and_then_fails_with_reasons() -> None:
    desk = Desk(job(validate=Validate(agree=2, max_replicas=3)))
    desk.reveal(desk.replica(3, b"one"), desk.replica(4, b"two"))
    assert desk.steward.view().open == (0,)
    desk.reveal(desk.replica(5, b"three"))
    assert desk.mine is not None
    assert (desk.mine.outcome, desk.mine.root) == ("failed", NO_ROOT)
    assert desk.mine.reason == "3 replicas; at most 1 agree where 2 must"


def test_a_task_does_not_fail_while_a_replica_is_out() -> None:
    desk = Desk(job(validate=Validate(agree=2, max_replicas=3)))
    out = desk.replica(6)
    desk.commit(out)
    desk.reveal(desk.replica(3, b"one"), desk.replica(4, b"two"), desk.replica(5, b"three"))
    assert desk.mine is None
    desk.at(limits.LEASE_TTL_MS)
    assert desk.mine is not None
    assert desk.mine.outcome == "failed"


def test_a_worker_at_fault_does_not_hold_up_a_failure_whatever_it_renews_or_sends() -> None:
    desk = Desk(job(validate=Validate(agree=2, max_replicas=3)))
    a, again, third = desk.replica(6), desk.replica(6, b"changed", nonce=2), desk.replica(6, b"once more", nonce=3)
    desk.commit(a)
    desk.add(again.bid)
    desk.add(again.commit)
    assert desk.renew(a, "committed").standing == "closed"
    desk.add(third.bid)
    desk.add(third.commit)
    assert desk.steward.desks[0].leases == {}
    desk.reveal(desk.replica(3, b"one"), desk.replica(4, b"two"), desk.replica(5, b"three"))
    assert desk.mine is not None
    assert desk.mine.outcome == "failed"


def test_a_fault_that_is_known_before_its_commits_leaves_no_lease_not_even_after_a_restart() -> None:
    desk = Desk()
    a, again = desk.replica(3), desk.replica(3, b"changed", nonce=2)
    first, second = sorted((a.commit, again.commit), key=lambda s: s.id)
    fault = make(Fault(desk.id, 0, pid(3), first.envelope, second.envelope), 1)
    desk.add(fault, sender=1)
    desk.commit(a)
    assert desk.steward.desks[0].leases == {}
    restarted = Desk(desk.job)
    restarted.steward.restore(3, [a.bid, fault])
    assert restarted.steward.desks[0].leases == {}


def test_a_later_verdict_replaces_an_earlier_one_only_when_it_says_something_else_on_more() -> None:
    desk = Desk(job(validate=Validate(agree=2, max_replicas=3)))
    desk.reveal(desk.replica(3, b"one"), desk.replica(4, b"two"), desk.replica(5, b"three"))
    first = desk.mine
    desk.ctx.store_has(Part.whole(blob_of(b"one")))
    desk.add(desk.replica(6, b"one").bid, sender=1)
    desk.add(desk.replica(6, b"one").commit, sender=1)
    desk.add(desk.replica(6, b"one").reveal, sender=1)
    assert first is not None
    assert first.outcome == "failed"
    assert desk.mine is not None
    assert (desk.mine.outcome, len(desk.mine.votes)) == ("accepted", 4)


def test_results_whose_outputs_nobody_shows_do_not_count() -> None:
    desk = Desk(job(validate=Validate(agree=2, max_replicas=5)))
    desk.reveal(desk.replica(3), desk.replica(4))
    now = 0
    for failure in range(steward.WITHHELD_AFTER):
        desk.blob(ready=False)
        now += limits.FETCH_RETRY_MS << failure
        desk.at(now)
    assert traced(desk.ctx.effects, "outputs_withheld")
    assert desk.mine is None
    assert desk.steward.view().open == (0,)
    desk.reveal(desk.replica(5, b"real"), desk.replica(6, b"real"))
    desk.ctx.store_has(Part.whole(blob_of(b"real")))
    desk.steward.blob_ready(Part.whole(blob_of(b"real")))
    assert desk.mine is not None
    assert {v.worker for v in desk.mine.votes} == {pid(5), pid(6)}


# --- membership ----------------------------------------------------------------------------------------------------
def test_a_peer_that_is_not_one_of_the_k_grants_and_judges_nothing() -> None:
    desk = Desk(ctx=context(serving=(1, 2, 7), others=(0, 3, 4)))
    a, b = desk.replica(3), desk.replica(4)
    desk.ctx.store_has(Part.whole(RESULT))
    for statement in in_order([*a.all, *b.all]):
        desk.add(statement, sender=1)
    assert not desk.steward.active
    assert desk.mine is None
    assert not [m for m in said(desk.ctx) if isinstance(m, Grant)]
    assert desk.renew(a, "revealed").standing == "held"


def test_a_steward_that_becomes_one_takes_the_inputs_and_judges_what_is_there() -> None:
    ctx = context(serving=(1, 2, 7), others=(0, 3, 4))
    desk = Desk(ctx=ctx)
    ctx.store_has(Part.whole(RESULT))
    for statement in in_order([*desk.replica(3).all, *desk.replica(4).all]):
        desk.add(statement, sender=1)
    drain(ctx)
    ctx.directory.learn(make(profile(seq=2), 0), 0)
    ctx.directory.unreachable(pid(7), 0)
    desk.steward.reconsider()
    effects = drain(ctx)
    assert traced(effects, "steward_began")
    assert MODULE in [e.part.blob for e in effects if isinstance(e, Fetch)]
    assert desk.mine is not None


def test_one_that_wakes_up_alone_does_not_judge_alone() -> None:
    desk = Desk()
    record = [e for e in desk.ctx.effects if isinstance(e, Save)]
    assert record == []
    for other in (1, 2):
        desk.ctx.directory.unreachable(pid(other), 0)
    desk.steward.reconsider()
    desk.ctx.store_has(Part.whole(RESULT))
    desk.reveal(desk.replica(3), desk.replica(4))
    assert desk.mine is not None
    assert desk.mine.stewards == (pid(0),)
    assert desk.steward.size == 3
    assert desk.steward.desks[0].settled is None


def test_the_largest_number_of_stewards_survives_a_restart() -> None:
    desk = Desk(inputs=False)
    [record] = [e.record for e in drain(desk.ctx) if isinstance(e, Save)]
    assert (record.kind, record.key, record.value) == ("shard", bytes(desk.id) + bytes(4), b"\x03")
    alone = context(serving=(0,))
    again = Steward(alone, desk.job, 0)
    again.restore(3, [])
    again.reconsider()
    assert (again.size, again.active) == (3, True)


def test_a_verdict_of_a_peer_that_is_far_from_the_shard_is_not_kept() -> None:
    serving = range(20, 40)
    ctx = context(me=0, serving=(0, *serving))
    desk = Desk(ctx=ctx)
    near = [n for n in serving if ctx.may_judge(pid(n), desk.id, 0)]
    far = next(n for n in serving if n not in near)
    a, b = desk.replica(3), desk.replica(4)
    desk.add(verdict(desk.job, far, [a, b]))
    assert desk.steward.state.file(0).verdicts == {}
    desk.add(verdict(desk.job, near[0], [a, b]))
    assert list(desk.steward.state.file(0).verdicts) == [pid(near[0])]


# --- restart -------------------------------------------------------------------------------------------------------
def test_a_restarted_steward_leases_anew_what_was_granted_and_asks_again_for_reveals() -> None:
    desk = Desk(job(tasks=2))
    a, b, waiting = desk.replica(3), desk.replica(4), replica(desk.job, 5, task=1)
    again = Steward(desk.ctx, desk.job, 0)
    again.restore(3, [waiting.bid, b.commit, a.commit, b.bid, a.bid])
    again.reconsider()
    drain(desk.ctx)
    assert set(again.desks[0].leases) == {pid(3), pid(4)}
    assert set(again.desks[1].leases) == {pid(5)}
    assert set(again.desks[0].asked) == {pid(3), pid(4)}


def test_what_a_steward_saves_is_what_a_restart_needs() -> None:
    desk = Desk()
    desk.ctx.store_has(Part.whole(RESULT))
    a, b = desk.replica(3), desk.replica(4)
    desk.reveal(a, b)
    desk.add(verdict(desk.job, 1, [a, b]))
    saved = {
        e.record.key: e.record.value
        for e in drain(desk.ctx)
        if isinstance(e, Save) and e.record.kind == STATEMENT_RECORD and e.record.value
    }
    again = Steward(desk.ctx, desk.job, 0)
    again.restore(3, [decode(value) for value in saved.values()])
    assert again.state.summary() == desk.steward.state.summary()
    assert again.finished


# --- the same statements everywhere --------------------------------------------------------------------------------
def test_stewards_compare_what_they_hold_and_give_each_other_what_is_missing() -> None:
    one, other = Desk(), Desk(ctx=context(me=1))
    a, b = one.replica(3), one.replica(4)
    one.reveal(a)
    other.commit(b)
    drain(other.ctx)
    one.at(limits.STEWARD_SYNC_MS)
    [summary] = [m for m in said(one.ctx, 1) if isinstance(m, Summary)]
    other.steward.on_summary(pid(0), summary)
    [have] = [m for m in said(other.ctx, 0) if isinstance(m, Have)]
    one.steward.on_have(pid(1), have)
    answers = said(one.ctx, 1)
    [offer] = [m for m in answers if isinstance(m, Offer)]
    for envelope in offer.envelopes:
        other.add(decode(envelope), sender=0)
    [asked] = [m for m in answers if isinstance(m, Have)]
    assert (have.answer, asked.answer) == (True, False)
    drain(other.ctx)
    other.steward.on_have(pid(0), asked)
    [back] = [m for m in said(other.ctx, 0) if isinstance(m, Offer)]
    for envelope in back.envelopes:
        one.add(decode(envelope), sender=1)
    assert one.steward.state.summary() == other.steward.state.summary()


def test_a_steward_that_has_handed_over_falls_silent() -> None:
    desk = Desk()
    desk.ctx.store_has(Part.whole(RESULT))
    a, b = desk.replica(3), desk.replica(4)
    desk.reveal(a, b)
    desk.add(verdict(desk.job, 1, [a, b]))
    drain(desk.ctx)
    desk.at(limits.STEWARD_SYNC_MS)
    assert len([m for m in said(desk.ctx, 1) if isinstance(m, Summary)]) == 1
    count, digest = desk.steward.state.summary()
    desk.steward.on_summary(pid(1), Summary(desk.id, 0, count, digest))
    desk.steward.on_summary(pid(1), Summary(desk.id, 0, count, digest))
    assert len([m for m in said(desk.ctx, 1) if isinstance(m, Summary)]) == 1
    desk.at(2 * limits.STEWARD_SYNC_MS)
    effects = list(desk.ctx.effects)
    assert said(desk.ctx, 1) == []
    desk.ctx.effects = effects
    assert len([m for m in said(desk.ctx, 2) if isinstance(m, Summary)]) == 1


def test_results_that_are_not_judged_yet_are_shown_to_those_that_judge_only() -> None:
    ctx = context(me=0, serving=(0, 1, 2, 20, 21, 22, 23))
    desk = Desk(job(), ctx=ctx)
    desk.steward.active = True
    far = next(n for n in (1, 2, 20, 21, 22, 23) if not ctx.may_judge(pid(n), desk.id, 0))
    near = next(n for n in (1, 2, 20, 21, 22, 23) if n != far)
    for statement in desk.replica(3).all:
        desk.add(statement, sender=near)
    drain(ctx)
    desk.steward.on_have(pid(far), Have(desk.id, 0, (), False))
    assert said(ctx) == []
    desk.steward.on_have(pid(near), Have(desk.id, 0, (), False))
    assert [len(m.envelopes) for m in said(ctx, near) if isinstance(m, Offer)] == [3]


def test_a_reveal_whose_commit_came_too_late_is_not_asked_about_for_ever() -> None:
    desk = Desk()
    a, b, late = desk.replica(3), desk.replica(4), desk.replica(5)
    desk.commit(a, b)
    desk.add(a.reveal)
    drain(desk.ctx)
    desk.add(late.reveal)
    assert [t.standing for t in _status(desk, 5)] == ["lost"]


def test_a_verdict_whose_workers_contradict_themselves_since_no_longer_settles() -> None:
    desk = Desk(job(validate=Validate(agree=2, max_replicas=3)))
    desk.ctx.store_has(Part.whole(RESULT))
    a, b = desk.replica(3), desk.replica(4)
    desk.reveal(a, b)
    desk.add(verdict(desk.job, 1, [a, b]))
    assert desk.steward.finished
    desk.add(desk.replica(3, b"changed").commit)
    assert traced(desk.ctx.effects, "unsettled")
    assert desk.steward.view().open == (0,)


def test_the_submitter_collects_the_evidence_of_decided_tasks() -> None:
    desk = Desk(job(tasks=2))
    desk.ctx.store_has(Part.whole(RESULT))
    a, b = desk.replica(3), desk.replica(4)
    desk.reveal(a, b)
    desk.add(verdict(desk.job, 1, [a, b]))
    drain(desk.ctx)
    desk.steward.on_collect(pid(9), Collect(desk.id, 0, ()))
    offer, view = said(desk.ctx, 9)
    assert isinstance(offer, Offer)
    assert [decode(e).kind for e in offer.envelopes] == ["bid"] * 2 + ["commit"] * 2 + ["reveal"] * 2 + ["verdict"] * 2
    assert isinstance(view, View)
    desk.steward.on_collect(pid(9), Collect(desk.id, 0, (0,)))
    assert [type(m) for m in said(desk.ctx, 9)] == [View]
    desk.steward.on_collect(pid(5), Collect(desk.id, 0, ()))
    assert [type(m) for m in said(desk.ctx, 5)] == [View]


def test_a_closed_job_grants_nothing_and_stops_its_workers() -> None:
    desk = Desk()
    a = desk.replica(3)
    desk.bid(a)
    drain(desk.ctx)
    desk.steward.close()
    assert [t.standing for t in _status(desk, 3)] == ["closed"]
    desk.bid(desk.replica(4))
    assert said(desk.ctx) == []
    assert desk.renew(a).standing == "closed"
    assert desk.steward.view().open == ()


def test_outputs_are_held_until_the_steward_lets_go() -> None:
    desk = Desk()
    desk.ctx.store_has(Part.whole(RESULT))
    desk.reveal(desk.replica(3), desk.replica(4))
    assert RESULT in desk.ctx.held()
    drain(desk.ctx)
    desk.ctx.let_go_all(desk.steward.owner)
    assert {e.ref for e in drain(desk.ctx) if isinstance(e, Drop)} == {RESULT, MODULE}


# --- what a hostile peer can do today (see docs/protocol.md, Known weaknesses) ---------------------------------------
def test_a_renewal_of_one_task_many_times_over_does_not_break_the_steward() -> None:
    desk = Desk()
    desk.ctx.store_has(Part.whole(RESULT))
    a, b = desk.replica(3), desk.replica(4)
    desk.reveal(a, b)
    for other in (1, 2):
        desk.add(verdict(desk.job, other, [a, b]))
    held = Held(0, "running", a.bid.id, 0)
    with suppress(PeerError):
        desk.steward.on_renew(pid(3), Renew(desk.id, 0, (held,) * 256))


def test_one_bidder_cannot_keep_all_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexapod.protocol.shard.STATEMENTS_PER_SHARD_MAX", 8)
    desk = Desk()
    for nonce in range(8):
        with suppress(PeerError):
            desk.bid(desk.replica(3, nonce=nonce))
    desk.steward.on_release(pid(3), Release(desk.id, 0, (0,), False))
    drain(desk.ctx)
    desk.bid(desk.replica(4))
    assert [m.granted for m in said(desk.ctx, 4) if isinstance(m, Grant)] == [(0,)]


def test_a_result_larger_than_the_job_allows_is_not_taken() -> None:
    desk = Desk(job(limits=Limits(output=3)))
    desk.commit(desk.replica(3), desk.replica(4))
    for worker in (3, 4):
        with suppress(PeerError):
            desk.add(desk.replica(worker).reveal)
    assert not [e for e in drain(desk.ctx) if isinstance(e, Fetch) and e.part.blob == RESULT]
