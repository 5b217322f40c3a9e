"""nexapod.protocol.worker.worker: from a job heard of to a verdict, one worker at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kit import Result, make_kit, signed
from worker_bench import EVERYBODY, Bench, a_profile, ok, state_of, unable

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Drop, Fetch, Run, Save, Send, Stop, Trace
from nexapod.protocol.notices import WorkRefused
from nexapod.protocol.primitives import File, JobId, Part, TaskId, blob_of
from nexapod.protocol.records import Record
from nexapod.protocol.rules.lottery import turn
from nexapod.protocol.rules.matching import Policy
from nexapod.protocol.types import Usage
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.messages import AskLog, Bid, Claim, Deliver, Gone, Grant, Release, Renew, TaskLog
from nexapod.protocol.worker import claiming, granting, handover, inputs
from nexapod.protocol.worker.health import REST_MS, ROW_MAX
from nexapod.protocol.worker.worker import RELEASED_MS
from nexapod.sim.keys import HashSigner


# --- bidding -------------------------------------------------------------------------------------------------------
def test_a_worker_bids_at_the_gate_until_it_is_admitted_and_then_claims() -> None:
    bench = Bench(admitted=False)
    assert all(bench.said(seat) == [Bid(bench.job)] for seat in bench.seats)
    bench.take()
    bench.later(limits.BID_RENEW_MS - 100)
    assert bench.sent == []
    bench.later(200)
    assert bench.said(bench.seats[1]) == [Bid(bench.job)]
    bench.take()
    bench.change(*bench.kit.round())
    bench.later(100)
    assert [type(m) for m in bench.said(bench.seats[0])] == [Claim]
    bench.take()
    bench.later(2 * limits.BID_TTL_MS)
    assert bench.said(bench.seats[0], Bid) == []


def test_a_worker_whose_turn_has_not_come_waits_for_a_larger_call() -> None:
    bench = Bench(admitted=False, call=0)
    own = turn(bench.job, bench.me.peer)
    bench.worker.job_known(bench.state, own)
    bench.later(limits.BID_RENEW_MS)
    assert bench.sent == []
    bench.worker.job_known(bench.state, own + 1)
    bench.worker.job_known(bench.state, 0)
    bench.later(100)
    assert bench.said(bench.seats[0]) == [Bid(bench.job)]


def test_a_new_gate_is_bid_at_soon() -> None:
    bench = Bench(make_kit(members=4), admitted=False)
    bench.take()
    old = bench.seats
    new = next(member for member in bench.kit.members if member not in old)
    bench.change(bench.kit.succession([old[0], old[1], new], old[:2]))
    bench.later(100)
    assert bench.said(new) == [Bid(bench.job)]


def test_a_gate_whose_link_is_back_is_bid_at_again() -> None:
    bench = Bench(admitted=False)
    bench.take()
    bench.worker.peer_up(bench.seats[0].peer)
    bench.later(100)
    assert bench.said(bench.seats[0]) == [Bid(bench.job)]


def test_a_worker_bids_again_when_a_seat_of_the_gate_is_lost() -> None:
    """It may have been admitted by the round that this seat was about to tell of: the others answer with it."""
    bench = Bench(admitted=False)
    bench.take()
    bench.worker.peer_down(bench.seats[0].peer)
    bench.later(100)
    assert bench.said(bench.seats[1]) == [Bid(bench.job)]
    bench.take()
    bench.worker.peer_down(HashSigner(9, "somebody").peer)
    bench.later(100)
    assert bench.sent == []


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(work=False), "this peer does not work (started with --no-work)"),
        (Policy(submitters=frozenset()), "its submitter is not among those that this peer works for"),
    ],
)
def test_the_owners_policy_is_kept(policy: Policy, reason: str) -> None:
    bench = Bench(policy=policy, admitted=False)
    bench.later(100_000)
    assert bench.sent == []
    assert bench.worker.decide(bench.state).reason == reason


def test_a_worker_says_why_it_does_nothing() -> None:
    bench = Bench(call=-1)
    assert bench.worker.decide(bench.state).reason.startswith("this peer's hardware")
    bench.start()
    assert bench.worker.decide(bench.state).ok
    bench.worker.pause(True)
    assert bench.worker.decide(bench.state).reason.startswith("this peer is paused")
    bench.worker.drain()
    assert bench.worker.decide(bench.state).reason.startswith("this peer is draining")


# --- claiming ------------------------------------------------------------------------------------------------------
def _claims(bench: Bench, seat: int = 0) -> list[Claim]:
    return [m for m in bench.said(bench.seats[seat], Claim) if isinstance(m, Claim)]


def test_room_is_claimed_of_all_seats_and_said_again_only_to_keep_it() -> None:
    bench = Bench(slots=2)
    for seat in range(3):
        [claim] = _claims(bench, seat)
        assert (claim.room, claim.holding, claim.done, claim.expected_ms) == (2, (), (), 0)
    first = claim.seq
    bench.take()
    bench.later(limits.BID_RENEW_MS)
    [again] = _claims(bench)
    assert (again.room, again.seq) == (2, first + 1)


def test_what_seats_can_count_themselves_is_not_claimed_again() -> None:
    bench = Bench()
    bench.take()
    bench.grant(0)
    bench.finish(0)
    bench.later(limits.BATCH_MS)
    assert _claims(bench) == [], "the commit gave them the room back"
    bench.grant(1)
    bench.later(8_000)
    assert _claims(bench) == [], "there is no room to keep"


def test_a_seat_whose_link_is_back_hears_the_claim_again() -> None:
    bench = Bench()
    bench.take()
    bench.worker.peer_up(bench.kit.submitter.peer)
    bench.later(100)
    assert _claims(bench) == []
    bench.worker.peer_up(bench.seats[2].peer)
    bench.later(100)
    assert len(_claims(bench, 2)) == 1


def test_short_tasks_are_asked_for_ahead() -> None:
    bench = Bench(tasks=200)
    bench.grant(0)
    bench.finish(0, result=ok(wall_ms=100))
    bench.take()
    bench.later(limits.BATCH_MS)
    assert [(c.room, c.expected_ms, c.done) for c in _claims(bench)] == [(15, 100, (0,))]


def test_a_long_task_is_followed_up_shortly_before_it_should_end() -> None:
    bench = Bench()
    bench.grant(0)
    bench.finish(0, result=ok(wall_ms=60_000))
    bench.grant(1)
    begun = bench.ctx.now
    bench.at(begun + 58_000)
    bench.take()
    bench.at(begun + 58_700)
    assert [(c.room, c.holding) for c in _claims(bench)] == [(1, (1,))]


def test_numbers_of_claims_rise_across_restarts() -> None:
    bench = Bench()
    [claim] = _claims(bench)
    again = bench.restarted()
    again.start()
    again.later(100)
    [later] = _claims(again)
    assert later.seq > claim.seq


def test_submitters_take_turns() -> None:
    bench = Bench(slots=1)
    other = make_kit(seed=2, tasks=4)
    other.workers[0] = bench.me
    bench.grant(0)
    bench.finish(0, result=ok(wall_ms=100))
    bench.grant(1)
    bench.worker.job_known(state_of(other), EVERYBODY)
    bench.take()
    bench.later(300)
    claimed = {c.job: c.room for peer, c in bench.sent if isinstance(c, Claim)}
    assert other.job in claimed, "a submitter that has nothing here yet comes first"


def test_a_claim_that_brings_nothing_stands_while_its_room_is_offered_elsewhere() -> None:
    bench = Bench(tasks=512)
    first = {m.shard for peer, m in bench.sent if isinstance(m, Claim)}
    assert len(first) == 1
    bench.take()
    bench.later(claiming.PATIENCE_MS + 100)
    claims = [m for peer, m in bench.sent if isinstance(m, Claim)]
    assert {m.shard for m in claims} == {0, 1} - first
    bench.take()
    bench.later(limits.BID_TTL_MS)
    assert {(m.shard, m.room) for peer, m in bench.sent if isinstance(m, Claim)} == {(0, 1), (1, 1)}


def test_never_more_claims_stand_than_the_limit() -> None:
    bench = Bench(tasks=256 * 40)
    for _ in range(60):
        bench.later(claiming.PATIENCE_MS)
        assert len(bench.worker._asking.claiming) <= claiming.STANDING_MAX
    shards = {m.shard for peer, m in bench.sent if isinstance(m, Claim)}
    assert len(shards) == 40, "the oldest make room for others"


# --- grants --------------------------------------------------------------------------------------------------------
def test_nothing_runs_before_a_quorum_of_the_seats_grants_it() -> None:
    bench = Bench()
    bench.grant(0, seats=[bench.seats[0], bench.seats[0]])
    bench.grant(0, seats=[bench.kit.submitter, bench.kit.workers[1]])
    assert bench.states() == {0: "claimed"}
    bench.hear(bench.seats[1], Grant(bench.job, 0, 1, (0,), ()))
    assert bench.states() == {0: "claimed"}, "a grant of another epoch"
    bench.grant(0, seats=[bench.seats[2]])
    [run] = [e for e in bench.take() if isinstance(e, Run)]
    assert run.task == bench.task()
    assert set(run.sources) == {m.peer for m in (*bench.kit.members, bench.kit.submitter)}


def test_a_grant_without_a_quorum_is_given_back_and_claimed_again() -> None:
    bench = Bench()
    bench.grant(0, seats=bench.seats[:1])
    bench.take()
    bench.later(granting.QUORUM_MS)
    assert bench.states() == {}
    assert bench.said(bench.seats[0], Release) == [Release(bench.job, 0, (0,), False, "")]
    bench.later(limits.BID_RENEW_MS)
    assert _claims(bench)[-1].room == 1
    bench.grant(0)
    assert bench.states() == {0: "running"}


def test_where_grants_lacked_a_quorum_more_is_waited_for() -> None:
    bench = Bench()
    waited = []
    for task in (0, 1, 2):
        bench.grant(task, seats=bench.seats[:1])
        since = bench.ctx.now
        while bench.states():
            bench.later(100)
        waited.append(bench.ctx.now - since)
        bench.later(100)
    assert waited == [granting.QUORUM_MS << n for n in range(3)]
    bench.grant(3)
    bench.grant(0, seats=bench.seats[:1])
    bench.later(granting.QUORUM_MS)
    assert bench.states() == {3: "running"}


def test_a_task_that_was_not_asked_for_is_refused() -> None:
    bench = Bench()
    bench.worker.drain()
    bench.later(100)
    bench.take()
    bench.grant(0, seats=bench.seats[:1])
    assert bench.states() == {}
    assert bench.said(bench.seats[0]) == [Release(bench.job, 0, (0,), False, "")]
    assert bench.said(bench.seats[1]) == []


def test_a_task_for_which_there_is_no_room_is_given_back_at_once() -> None:
    bench = Bench()
    for seat in bench.seats[:2]:
        bench.hear(seat, Grant(bench.job, 0, 0, (0, 1), ()))
    assert bench.states() == {0: "running"}
    assert bench.said(bench.seats[2], Release) == [Release(bench.job, 0, (1,), False, "")]


def test_tasks_of_no_shard_or_unknown_jobs_are_passed_over() -> None:
    bench = Bench(tasks=2)
    bench.take()
    bench.grant(2, 200)
    bench.hear(bench.seats[0], Grant(bench.job, 7, 0, (0,), ()))
    bench.hear(bench.seats[0], Grant(JobId(bytes(32)), 0, 0, (0,), ()))
    assert bench.states() == {}
    assert bench.sent == []


def test_grants_of_seats_that_left_do_not_count() -> None:
    bench = Bench(make_kit(members=5))
    bench.grant(0, seats=bench.seats[:1])
    new = [member for member in bench.kit.members if member not in bench.seats]
    bench.change(bench.kit.succession([*new, bench.seats[2]], bench.seats[:2]))
    bench.hear(new[0], Grant(bench.job, 0, 1, (0,), ()))
    assert bench.states() == {0: "claimed"}
    bench.hear(new[1], Grant(bench.job, 0, 1, (0,), ()))
    assert bench.states() == {0: "running"}


# --- inputs and slots ----------------------------------------------------------------------------------------------
def test_nothing_runs_before_its_inputs_are_here() -> None:
    bench = Bench(bare=True)
    bench.grant(0)
    assert bench.states() == {0: "granted"}
    [fetch] = [e for e in bench.take() if isinstance(e, Fetch)]
    assert fetch.part == Part.whole(bench.kit.spec.run.module)  # type: ignore[arg-type]
    bench.arrive(fetch.part)
    assert bench.begun() == [0]


def test_a_job_whose_inputs_nobody_gives_is_left_alone_and_its_tasks_given_back() -> None:
    bench = Bench(bare=True)
    bench.grant(0)
    [part] = inputs.parts_of(bench.kit.spec)
    for _ in range(inputs.FAILURES_MAX):
        bench.worker.blob_failed(part)
        bench.settle()
        bench.later(limits.FETCH_RETRY_MAX_MS // 2)
        bench.grant(0) if not bench.states() else None
    releases = [m for m in bench.said(bench.seats[0], Release) if isinstance(m, Release)]
    assert [m.unable for m in releases][:1] == [True]
    assert "inputs" in releases[0].reason
    notices = [e for e in bench.effects if isinstance(e, WorkRefused)]
    assert [(n.task, n.fault) for n in notices] == [(0, "job")]


def _two(slots: int = 1) -> Bench:
    """A worker that holds five short tasks, one of which runs."""
    bench = Bench(tasks=20, slots=slots)
    bench.grant(0)
    bench.finish(0, result=ok(wall_ms=200))
    bench.take()
    bench.grant(1, 2, 3, 4, 5)
    assert bench.begun() == [1, 2][:slots]
    return bench


def test_a_task_that_has_left_its_slot_lets_the_next_begin_and_finishes_as_ever() -> None:
    bench = _two()
    bench.worker.vacated(bench.task(1))
    assert bench.begun() == [2]
    bench.worker.vacated(bench.task(2))
    assert bench.begun() == [], "no more are on their way out than there are slots"
    bench.finish(1)
    assert bench.begun() == [], "its slot was given away before"
    bench.finish(2)
    assert bench.begun() == [3]
    for other in (TaskId(bench.job, 99), bench.task(5)):
        bench.worker.vacated(other)
    assert bench.begun() == []


def test_the_next_task_begins_when_one_ends() -> None:
    bench = _two(slots=2)
    bench.finish(2)
    assert bench.begun() == [3]


# --- commit --------------------------------------------------------------------------------------------------------
def _order(bench: Bench) -> list[type]:
    return [type(e) for e in bench.take() if isinstance(e, (Save, Send))]


def test_the_commit_is_saved_before_it_is_spoken_of() -> None:
    bench = Bench()
    bench.grant(0)
    bench.take()
    bench.finish(0)
    assert _order(bench)[:5] == [Save, Save, Send, Send, Send]
    bench.show(bench.freeze())
    assert _order(bench)[:5] == [Save, Save, Send, Send, Send]


def test_the_first_commit_goes_at_once_and_what_ends_soon_after_goes_together() -> None:
    bench = _two(slots=2)
    bench.later(limits.BATCH_MS)
    bench.take()
    now = bench.ctx.now
    for task in (1, 2, 3, 4):
        bench.finish(task)
    bench.later(limits.BATCH_MS - 1)
    assert [[i.task for i in s.body.items] for s in bench.delivered(bench.seats[0])] == [[1]]
    bench.at(now + limits.BATCH_MS)
    assert [[i.task for i in s.body.items] for s in bench.delivered(bench.seats[2])] == [[1], [2, 3, 4]]
    bench.show(bench.freeze(1))
    bench.show(bench.freeze(2, 3))
    bench.show(bench.freeze(4))
    bench.later(limits.BATCH_MS)
    shown = [[i.task for i in s.body.items] for s in bench.delivered(bench.seats[0]) if s.kind == "reveal"]
    assert shown == [[1], [2, 3, 4]]


def test_a_commit_is_repeated_to_the_silent_ever_more_rarely() -> None:
    bench = Bench()
    bench.grant(0)
    bench.finish(0, result=ok(2_000))
    bench.status(bench.seats[0], "held")
    bench.take()
    expected_ms = bench.worker._prospects[bench.kit.job].expected_ms
    first_ms = limits.RETRY_MIN_MS + handover.PARTNER_FACTOR * expected_ms
    bench.later(first_ms - 1)
    assert bench.kinds(bench.seats[1]) == [], "others have time for theirs"
    bench.later(1)
    assert (bench.kinds(bench.seats[0]), bench.kinds(bench.seats[1])) == ([], ["commit"])
    bench.take()
    bench.later(2 * first_ms - 1)
    assert bench.kinds(bench.seats[1]) == []
    bench.later(1)
    assert bench.kinds(bench.seats[1]) == ["commit"]
    for seat in bench.seats:
        bench.status(seat, "held")
    bench.take()
    bench.later(limits.LEASE_TTL_MS)
    assert bench.kinds(bench.seats[1]) == []


@pytest.mark.parametrize("standing", ["unknown", "lost"])
def test_a_seat_that_lacks_statements_is_given_them_but_once_a_second(standing: str) -> None:
    bench = Bench()
    bench.revealed()
    for seat in bench.seats:
        bench.status(seat, "held")
    bench.later(limits.RETRY_MIN_MS)
    bench.take()
    for _ in range(3):
        bench.status(bench.seats[1], standing)
    assert bench.kinds(bench.seats[1]) == ["commit", "reveal"]
    assert bench.kinds(bench.seats[0]) == []


def test_a_lost_lease_ends_nothing_that_runs_and_gives_up_what_waits() -> None:
    bench = _two()
    for seat in bench.seats[:2]:
        bench.status(seat, "lost", 1, 2)
    assert bench.states()[1] == "running"
    assert 2 not in bench.states()
    assert [e.name for e in bench.effects if isinstance(e, Trace)].count("lease_lost") == 4


# --- reveal --------------------------------------------------------------------------------------------------------
def test_a_result_is_shown_only_at_a_freeze_that_counts_with_its_commit_and_enough_groups() -> None:
    bench = Bench()
    bench.committed()
    bench.take()
    seats, others = bench.seats, bench.kit.workers[1:]
    stranger = HashSigner(9, "stranger")
    alone = bench.kit.freeze({0: [bench.commit_of()]})
    without = bench.kit.freeze({0: [bench.kit.commit(w, Result(0)) for w in others[:2]]})
    forged = bench.kit.freeze({0: [bench.kit.commit(bench.me, Result(0)), bench.kit.commit(others[0], Result(0))]})
    one_group = bench.kit.freeze(
        {0: [bench.commit_of(), bench.kit.commit(others[0], Result(0))]},
        groups=dict.fromkeys((bench.me.peer, others[0].peer), "one"),
    )
    for freeze in (alone, without, forged, one_group, bench.freeze(signers=[seats[0]])):
        bench.show(freeze)
    bench.show(bench.freeze(signers=[stranger, bench.kit.submitter, bench.kit.workers[2]]))
    bench.later(limits.BATCH_MS)
    assert bench.states() == {0: "committed"}
    bench.show(bench.freeze(signers=[seats[2]]))
    assert bench.states() == {0: "revealed"}, "the signatures came one by one"
    for seat in seats:
        assert bench.kinds(seat) == ["reveal"]
    assert {peer for peer, m in bench.sent if isinstance(m, Deliver)} == {seat.peer for seat in seats}


def test_a_freeze_that_names_places_that_are_not_there_breaks_the_rules() -> None:
    bench = Bench()
    bench.committed()
    good = bench.freeze()
    body = replace(good.body, items=(replace(good.body.items[0], entries=((0, 9),)),))
    with pytest.raises(PeerError, match="bad-freeze"):
        bench.show(signed(body, *bench.kit.quorum()))


def test_nothing_is_shown_before_the_hardware_is_known() -> None:
    bench = Bench()
    bench.committed()
    freeze = bench.freeze()
    again = bench.restarted()
    again.show(freeze)
    assert again.states() == {0: "committed"}
    again.start()
    again.later(limits.BATCH_MS)
    assert again.states() == {0: "revealed"}


def test_seats_that_signed_the_freeze_are_not_told_the_commit_again() -> None:
    bench = Bench()
    freeze = bench.revealed()
    signers = [seat for seat in bench.seats if seat.peer in freeze.signers]
    assert len(signers) == 2
    bench.take()
    bench.later(limits.RENEW_MS)
    assert {kind for seat in signers for kind in bench.kinds(seat)} == {"reveal"}
    assert set(bench.kinds(bench.seats[2])) == {"commit", "reveal"}


def test_a_result_takes_the_next_commit_along() -> None:
    bench = Bench(slots=2)
    bench.committed(0)
    bench.grant(1)
    bench.finish(1)
    bench.take()
    bench.show(bench.freeze(0))
    for seat in bench.seats:
        [said] = bench.said(seat, Deliver)
        assert isinstance(said, Deliver)
        assert [statements.read(envelope).kind for envelope in said.envelopes] == ["commit", "reveal"]


def test_a_seat_that_has_not_heard_the_reveal_is_told_again() -> None:
    bench = Bench()
    bench.revealed()
    bench.take()
    bench.status(bench.seats[2], "frozen")
    assert bench.kinds(bench.seats[2]) == []
    bench.later(limits.RETRY_MIN_MS)
    bench.take()
    bench.later(limits.RETRY_MIN_MS - 1)
    bench.status(bench.seats[2], "frozen")
    assert bench.kinds(bench.seats[2]) == ["reveal"] or bench.kinds(bench.seats[2]) == ["commit", "reveal"]


def test_new_seats_are_offered_the_commit_and_shown_the_result_only_when_they_have_adopted_the_freeze() -> None:
    bench = Bench(make_kit(members=5))
    freeze = bench.revealed()
    old = bench.seats
    new = [member for member in bench.kit.members if member not in old]
    bench.later(limits.RETRY_MIN_MS)
    bench.take()
    succession = bench.kit.succession([*new, old[2]], old[:2])
    bench.change(succession)
    assert bench.kinds(new[0]) == ["commit"]
    bench.later(limits.RETRY_MIN_MS + 10)
    assert [m.held[0].stage for m in bench.said(new[0], Renew) if isinstance(m, Renew)] == ["revealed"]
    bench.status(new[0], "unknown")
    assert "reveal" not in bench.kinds(new[0])
    bench.take()
    bench.change(bench.kit.adoption([freeze], new))
    bench.later(4 * limits.RETRY_MIN_MS)
    assert "reveal" in bench.kinds(new[0])
    assert bench.said(old[0], Deliver) == []


# --- ends ----------------------------------------------------------------------------------------------------------
def test_a_verdict_that_counts_ends_an_attempt_and_its_outputs_stay_until_the_job_is_over() -> None:
    bench = Bench()
    freeze = bench.revealed()
    bench.take()
    bench.show(bench.verdict(freeze, signers=bench.seats[:1]))
    assert bench.states() == {0: "revealed"}
    bench.show(bench.verdict(freeze, signers=bench.seats[1:2]))
    assert bench.states() == {}
    assert not [e for e in bench.take() if isinstance(e, Drop)]
    kept = ["worker-attempt", "worker-seq", "worker-statement"]
    assert [kind for kind, _ in sorted(bench.saved)] == kept, "its commit can be said again"
    bench.worker.job_over(bench.job)
    dropped = [e.ref for e in bench.take() if isinstance(e, Drop)]
    assert blob_of(b"right") in dropped
    assert [kind for kind, _ in bench.saved] == ["worker-seq"]
    assert bench.worker.deadline is None or bench.worker.report() == ()


def test_what_is_decided_is_said_again_to_seats_that_lack_it_and_ends_again_when_they_adopt_it() -> None:
    bench = Bench(make_kit(members=4))
    freeze = bench.revealed()
    verdict = bench.verdict(freeze)
    bench.show(verdict)
    assert bench.states() == {}
    bench.take()
    old = bench.seats
    new = [member for member in bench.kit.members if member not in old]
    bench.change(bench.kit.succession([*new, old[0], old[1]], old[:2]))
    assert bench.states() == {0: "committed"}
    again = bench.restarted()
    assert again.states() == {0: "committed"}
    bench.later(limits.RETRY_MIN_MS)
    held = [message.held[0].stage for message in bench.said(new[0], Renew)]
    assert held == ["committed"], "it asks first"
    assert bench.kinds(new[0]) == []
    bench.status(new[0], "unknown", 0)
    assert bench.kinds(new[0]) == ["commit"]
    bench.change(bench.kit.adoption([freeze, verdict], [*new, old[0]]))
    bench.show(verdict)
    assert bench.states() == {}


def test_a_running_task_that_others_decided_is_stopped_and_frees_its_slot() -> None:
    bench = _two()
    rivals = bench.kit.workers[1:3]
    freeze = bench.kit.freeze({1: [bench.kit.commit(w, Result(1)) for w in rivals]})
    bench.show(bench.verdict(freeze, 1))
    assert [e.task.index for e in bench.effects if isinstance(e, Stop)] == [1]
    assert bench.begun() == [2]


def test_a_verdict_that_does_not_count_ends_nothing() -> None:
    bench = Bench()
    freeze = bench.revealed()
    bench.show(bench.verdict(freeze, signers=[bench.kit.submitter, bench.kit.workers[1]]))
    bench.show(bench.verdict(freeze, signers=bench.seats[:1]))
    bench.show(bench.verdict(freeze, signers=bench.seats[:1]))
    bench.status(bench.seats[0], "decided")
    assert bench.states() == {0: "revealed"}


def test_a_task_that_two_seats_call_closed_is_over() -> None:
    bench = Bench()
    bench.committed()
    bench.status(bench.seats[0], "closed")
    bench.status(bench.seats[0], "closed")
    bench.status(bench.kit.submitter, "closed")
    assert bench.states() == {0: "committed"}
    bench.hear(bench.seats[1], Gone(bench.job, True))
    assert bench.states() == {}
    assert bench.worker.attempts.over((bench.job, 0)) == {0}


def test_a_seat_that_does_not_know_the_job_is_told_of_it() -> None:
    bench = Bench()
    bench.take()
    for _ in range(2):
        bench.hear(bench.seats[0], Gone(bench.job, False))
    bench.hear(bench.kit.workers[1], Gone(bench.job, False))
    assert bench.kinds(bench.seats[0])[0] == "job"
    assert len(bench.said(bench.seats[0], Deliver)) == 1
    assert bench.said(bench.kit.workers[1]) == []


def test_a_job_that_is_over_is_left_behind() -> None:
    bench = Bench()
    bench.grant(0)
    bench.take()
    bench.worker.job_over(bench.job)
    effects = bench.take()
    assert [e.task for e in effects if isinstance(e, Stop)] == [bench.task()]
    assert [e.ref for e in effects if isinstance(e, Drop)] == [bench.kit.spec.run.module]
    bench.grant(0)
    bench.status(bench.seats[0], "unknown")
    bench.finish(0)
    bench.worker.job_over(bench.job)
    assert bench.worker.report() == ()


def test_a_task_once_committed_is_never_tried_again_not_even_by_a_restarted_process() -> None:
    bench = Bench()
    freeze = bench.revealed()
    bench.show(bench.verdict(freeze))
    for one in (bench, bench.restarted()):
        one.start()
        one.later(limits.BID_RENEW_MS)
        one.grant(0)
        assert one.states() == {}
        assert _claims(one)[-1].done == (0,)
        assert blob_of(b"right") in one.ctx.pinned()


# --- what runs -----------------------------------------------------------------------------------------------------
def test_leases_are_renewed_with_progress() -> None:
    bench = _two()
    bench.worker.progressed(bench.task(1), 5_000, "half")
    bench.worker.progressed(TaskId(bench.job, 99), 1, "")
    bench.later(limits.RENEW_MS)
    [renew] = [m for m in bench.said(bench.seats[1], Renew) if isinstance(m, Renew)]
    assert [(h.task, h.stage, h.progress) for h in renew.held][:3] == [
        (0, "committed", 1000),
        (1, "running", 1000),
        (2, "running", 0),
    ]


def test_a_seat_whose_link_is_back_is_told_soon() -> None:
    bench = Bench()
    bench.grant(0)
    bench.take()
    bench.worker.peer_up(bench.kit.submitter.peer)
    bench.later(limits.RETRY_MIN_MS)
    assert bench.said(bench.seats[1], Renew) == []
    bench.worker.peer_up(bench.seats[1].peer)
    bench.later(limits.RETRY_MIN_MS)
    assert len(bench.said(bench.seats[1], Renew)) == 1


def test_only_the_submitter_is_told_what_a_task_prints() -> None:
    bench = Bench()
    bench.grant(0)
    bench.worker.progressed(bench.task(), 10, "a\x1bline")
    for peer in (bench.kit.submitter, bench.seats[0]):
        bench.hear(peer, AskLog(bench.job, 0))
    assert bench.said(bench.kit.submitter) == [TaskLog(bench.job, 0, "a?line")]
    assert bench.said(bench.seats[0], TaskLog) == []


def test_a_pause_gives_back_what_has_not_begun_and_keeps_what_runs() -> None:
    bench = _two()
    bench.worker.pause(True)
    bench.settle()
    assert [m.tasks for m in bench.said(bench.seats[0], Release) if isinstance(m, Release)] == [(2, 3, 4, 5)]
    assert bench.states() == {0: "committed", 1: "running"}
    bench.finish(1)
    bench.take()
    bench.later(limits.BID_TTL_MS)
    assert [c for c in _claims(bench) if c.room] == []
    bench.worker.pause(False)
    bench.later(100)
    assert _claims(bench)[-1].room > 0


# --- failures ------------------------------------------------------------------------------------------------------
def test_a_task_that_this_machine_cannot_run_is_given_back_for_a_while() -> None:
    bench = Bench(tasks=2)
    bench.grant(0)
    bench.take()
    bench.finish(0, result=unable())
    effects = list(bench.effects)
    assert bench.said(bench.seats[0])[0] == Release(bench.job, 0, (0,), True, "no disk")
    assert [e for e in effects if isinstance(e, WorkRefused)] == [WorkRefused(bench.job, 0, "job", "no disk")]
    assert not [e for e in effects if isinstance(e, Stop)]
    assert [kind for kind, _ in bench.saved] == ["worker-seq"]
    bench.later(limits.BID_RENEW_MS)
    assert _claims(bench)[-1].done == (0,)
    bench.grant(0)
    assert bench.states() == {}
    bench.take()
    bench.later(RELEASED_MS)
    assert _claims(bench)[-1].done == ()


def test_a_task_that_does_not_start_twice_ends_as_a_failure_that_is_shown_like_any_result() -> None:
    bench = Bench(tasks=1)
    bench.grant(0)
    bench.finish(0, result=unable(reason="the module does not compile"))
    bench.later(RELEASED_MS + 100)
    bench.grant(0)
    bench.finish(0, result=unable(reason="the module does not compile"))
    assert bench.states() == {0: "committed"}
    bench.show(bench.freeze())
    [reveal] = [s for s in bench.delivered(bench.seats[0]) if s.kind == "reveal"]
    [item] = reveal.body.items
    assert (item.outcome, item.exit, item.outputs) == ("failed", 1, ())
    assert item.reason == "it could not be run: the module does not compile"
    assert len([e for e in bench.effects if isinstance(e, WorkRefused)]) == 2


def test_a_job_that_fails_again_and_again_rests_and_the_machine_works_for_others() -> None:
    bench = Bench(tasks=20)
    for task in range(ROW_MAX):
        bench.grant(task)
        bench.finish(task, result=unable(75))
        bench.later(limits.BATCH_MS)
    assert "could not be run here" in bench.worker.decide(bench.state).reason
    bench.grant(9)
    assert bench.states() == {}
    other = make_kit(seed=2)
    other.workers[0] = bench.me
    state = state_of(other)
    assert bench.worker.decide(state).ok
    bench.take()
    bench.worker.job_known(state, EVERYBODY)
    bench.later(100)
    assert [m.job for peer, m in bench.sent if isinstance(m, Claim)] == [other.job] * 3
    bench.take()
    bench.worker.job_over(other.job)
    bench.later(REST_MS)
    assert _claims(bench)[-1].room == 1


# --- checkpoints ---------------------------------------------------------------------------------------------------
def test_a_task_is_resumed_from_what_a_quorum_handed_out_and_says_so() -> None:
    bench = Bench()
    kept = bench.kit.checkpoint(bench.kit.workers[1], 0)
    bench.grant(0, checkpoints=[kept.envelope])
    [run] = [e for e in bench.take() if isinstance(e, Run)]
    assert run.checkpoint == kept.body.files
    assert kept.author in run.sources
    bench.finish(0, result=replace(ok(), continued=True))
    bench.show(bench.freeze())
    [reveal] = [s for s in bench.delivered(bench.seats[0]) if s.kind == "reveal"]
    assert reveal.body.items[0].resumed == kept.id


def test_a_checkpoint_of_one_seat_alone_is_not_resumed() -> None:
    bench = Bench()
    kept = bench.kit.checkpoint(bench.kit.workers[1], 0)
    bench.grant(0, seats=bench.seats[:1], checkpoints=[kept.envelope])
    bench.grant(0, seats=bench.seats[1:2])
    assert bench.states() == {0: "claimed"}, "the third may have it too"
    bench.later(granting.QUORUM_MS)
    [run] = [e for e in bench.take() if isinstance(e, Run)]
    assert run.checkpoint == ()


def test_what_is_no_checkpoint_of_the_task_breaks_the_rules() -> None:
    bench = Bench()
    for wrong in (bench.kit.checkpoint(bench.me, 1), bench.kit.commit(bench.me, Result(0))):
        with pytest.raises(PeerError, match="bad-checkpoint"):
            bench.grant(0, checkpoints=[wrong.envelope])


def test_checkpoints_are_stated_to_the_seats_and_not_too_often() -> None:
    bench = Bench()
    bench.grant(0)
    bench.take()
    files = [(File("b", blob_of(b"%d" % n)), File("a", blob_of(b"same"))) for n in range(3)]
    bench.worker.checkpointed(bench.task(), files[0], False)
    bench.worker.checkpointed(bench.task(), files[1], False)
    bench.worker.checkpointed(bench.task(), files[2], False)
    [first] = bench.delivered(bench.seats[0])
    assert (first.kind, first.body.seq, [f.path for f in first.body.files]) == ("checkpoint", 1, ["a", "b"])
    bench.later(limits.CHECKPOINT_MIN_MS)
    assert bench.delivered(bench.seats[0])[-1].body.seq == 2
    assert {ref for ref in bench.ctx.pinned() if ref in {f.blob for fs in files for f in fs}} == {
        blob_of(b"2"),
        blob_of(b"same"),
    }
    again = bench.restarted()
    again.start()
    again.worker.checkpointed(again.task(), files[0], False)
    again.settle()
    assert again.delivered(again.seats[0])[-1].body.seq == 3
    again.finish(0)
    assert blob_of(b"same") not in again.ctx.pinned()


# --- restart -------------------------------------------------------------------------------------------------------
def test_a_committed_attempt_is_offered_again_after_a_restart() -> None:
    bench = Bench()
    commit = bench.committed()
    again = bench.restarted()
    again.later(1)
    assert again.states() == {0: "committed"}
    assert again.delivered(again.seats[0]) == [commit]
    assert blob_of(b"right") in again.ctx.pinned()


def test_a_revealed_attempt_is_shown_after_a_restart_when_a_seat_shows_the_freeze() -> None:
    bench = Bench()
    freeze = bench.revealed()
    again = bench.restarted()
    again.start()
    again.later(1)
    assert again.kinds(again.seats[0]) == ["commit"]
    again.later(limits.RETRY_MIN_MS)
    assert len(again.said(again.seats[0], Renew)) == 1
    again.take()
    again.show(freeze)
    again.status(again.seats[0], "frozen")
    assert "reveal" in again.kinds(again.seats[0])
    assert again.commit_of() == bench.commit_of()


def test_a_task_that_ran_when_the_process_ended_runs_again_even_in_a_pause() -> None:
    bench = Bench()
    bench.grant(0)
    again = bench.restarted()
    again.worker.pause(True)
    again.start()
    assert again.begun() == [0], "its sandbox may be there: the driver freezes it"
    again.later(limits.RETRY_MIN_MS)
    assert [m.held[0].stage for m in again.said(again.seats[0], Renew) if isinstance(m, Renew)] == ["running"]


@pytest.mark.parametrize("how", ["no slots", "drained"])
def test_a_machine_that_works_no_more_gives_back_what_a_former_process_ran(how: str) -> None:
    bench = Bench()
    bench.grant(0)
    again = bench.restarted()
    if how == "drained":
        again.worker.drain()
    else:
        again.worker.profile_changed(a_profile(slots=0))
    again.settle()
    assert again.said(again.seats[0], Release) == [Release(again.job, 0, (0,), False, "")]
    assert again.states() == {}
    assert [kind for kind, _ in again.saved] == ["worker-seq"]


def test_attempts_of_a_forgotten_job_and_what_they_stated_are_deleted() -> None:
    bench = Bench()
    bench.revealed()
    again = bench.restarted(known=False)
    assert again.worker.report() == ()
    assert [kind for kind, _ in again.saved] == ["worker-seq"]


def test_a_record_that_cannot_be_read_bars_its_task_for_good() -> None:
    bench = Bench()
    bench.committed()
    for key, record in list(bench.saved.items()):
        if key[0] == "worker-statement":
            bench.saved[key] = Record(record.kind, record.key, b"junk")
    again = bench.restarted()
    assert again.worker.attempts.over((again.job, 0)) == {0}


def test_usage_that_is_no_number_of_ours_is_not_stated() -> None:
    bench = Bench()
    bench.grant(0)
    bench.finish(0, result=replace(ok(), usage=Usage(-1, 1, 1 << 70, 0)))
    bench.show(bench.freeze())
    [reveal] = [s for s in bench.delivered(bench.seats[0]) if s.kind == "reveal"]
    assert reveal.body.items[0].usage.cpu_ms == 0
