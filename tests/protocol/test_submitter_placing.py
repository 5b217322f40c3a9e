"""A submitter's job finds its stewards, and others for those that refuse or say nothing."""

from __future__ import annotations

from dataclasses import replace

import kit
import pytest
from kit import JobKit
from submitter_bench import Bench, make_context

from nexapod.protocol import limits
from nexapod.protocol.calling import first_call, groups_wanted
from nexapod.protocol.errors import LocalError, PeerError
from nexapod.protocol.events import Drop, Save, Submit
from nexapod.protocol.job import JobState
from nexapod.protocol.notices import JobAccepted, JobPlaced, JobRefused, JobSettled
from nexapod.protocol.records import Record
from nexapod.protocol.rules.panel import Candidate
from nexapod.protocol.submitter.preparing import prepare
from nexapod.protocol.wire.bodies import Renewal, Succession
from nexapod.protocol.wire.messages import Ready, Refused
from nexapod.sim.keys import HashSigner, verify


# --- preparing -------------------------------------------------------------------------------------------------------
def candidate(signer: HashSigner, place: int = 1) -> Candidate:
    addr = f"/ip4/10.{place}.0.1/tcp/9000"
    return Candidate(kit.offer(signer, addrs=(addr,)), addr, 60_000)


def test_alone_a_submitter_is_its_own_panel_and_says_so() -> None:
    me = HashSigner(1, "me")
    ctx, _ = make_context(me)
    statement = prepare(ctx, Submit(kit.job_spec([])), [candidate(me)])
    assert JobState(statement, verify).members() == (me.peer,)
    saved = [e.record for e in ctx.effects if isinstance(e, Save)]
    assert Record("job", statement.id + statement.id, statement.envelope) in saved
    accepted = [e for e in ctx.effects if isinstance(e, JobAccepted)]
    assert accepted[0].panel == (me.peer,)
    assert accepted[0].rests_on


@pytest.mark.parametrize("others", [1, 2, 3, 6])
def test_a_panel_of_whoever_is_there(others: int) -> None:
    me = HashSigner(1, "me")
    ctx, _ = make_context(me)
    crowd = [HashSigner(1, "other", n) for n in range(others)]
    statement = prepare(ctx, Submit(kit.job_spec([])), [candidate(s, n) for n, s in enumerate([me, *crowd])])
    members = set(JobState(statement, verify).members())
    expected = {s.peer for s in crowd} | ({me.peer} if others < 3 else set())
    assert members == expected


def test_a_job_of_many_words_is_given_fewer_stewards_rather_than_refused() -> None:
    ctx, _ = make_context(HashSigner(1, "me"))
    addrs = (f"/dns4/{'a' * 240}/tcp/1",) * 3
    crowd = [
        Candidate(kit.offer(HashSigner(1, "other", n), addrs=addrs), f"/ip4/10.{n}.0.1/tcp/9000", 60_000)
        for n in range(40)
    ]
    spec = kit.job_spec([])
    wordy = replace(spec, run=replace(spec.run, command=("x" * 4_000,) * 14))
    statement = prepare(ctx, Submit(wordy, accept_unknown=True), crowd)
    assert 1 < len(statement.body.panel) < 12
    assert len(statement.envelope) <= limits.ENVELOPE_BYTES_MAX


def test_a_job_for_nobody_says_what_to_do() -> None:
    ctx, _ = make_context(HashSigner(1, "me"))
    with pytest.raises(LocalError):
        prepare(ctx, Submit(kit.job_spec([])), [])
    assert not ctx.effects


def test_a_job_of_another_network_is_refused_at_home() -> None:
    me = HashSigner(1, "me")
    ctx, _ = make_context(me, network="elsewhere")
    with pytest.raises(LocalError, match="elsewhere"):
        prepare(ctx, Submit(kit.job_spec([])), [candidate(me)])


# --- placing ---------------------------------------------------------------------------------------------------------
def test_members_with_a_seat_get_the_job_and_the_others_do_not() -> None:
    bench = Bench(members=8)
    bench.run()
    seats = bench.made.seats()
    for member in bench.made.members:
        assert len(bench.delivered(member, "job")) == (member in seats)


def test_a_job_is_placed_once_enough_seats_of_every_shard_hold_it() -> None:
    bench = Bench(members=5, tasks=600)
    bench.run(1_000)
    needed = {seat.peer: seat for shard in range(3) for seat in bench.made.seats(shard)}
    for seat in needed.values():
        assert not bench.of(JobPlaced) or bench.submission.placing.placed
        bench.hear(seat, bench.made.placed(seat))
    assert bench.submission.placing.placed
    assert bench.submission.report().shards_placed == 3
    bench.place_all()
    bench.run(1_000)
    assert len(bench.of(JobPlaced)) <= 1


def test_placing_is_told_once_and_remembered() -> None:
    bench = Bench()
    bench.run()
    bench.place_all()
    assert len(bench.of(JobPlaced)) == 1
    again = Bench(bench.made, records=bench.records, known=bench.job.statements())
    again.run(1_000)
    assert again.submission.placing.placed
    assert not again.of(JobPlaced)


def test_a_job_is_delivered_again_ever_less_often() -> None:
    bench = Bench()
    bench.run(7_500)
    seat = bench.made.seats()[0]
    # At once, and after 1, 3 and 7 seconds.
    assert len(bench.delivered(seat, "job")) == 4


def test_a_link_to_a_member_is_the_time_to_deliver() -> None:
    bench = Bench(linked=False)
    bench.run(7_500)
    seat = bench.made.seats()[0]
    before = len(bench.delivered(seat, "job"))
    bench.link_up(seat)
    assert len(bench.delivered(seat, "job")) == before + 1


def test_a_workable_job_is_announced_and_its_gate_has_the_proof() -> None:
    bench = Bench()
    bench.run()
    one, two, three = bench.made.seats()
    bench.hear(one, bench.made.placed(one))
    assert not bench.announced
    bench.hear(two, bench.made.placed(two))
    assert [card.job for message in bench.announced for card in message.cards] == [bench.made.job]
    assert {s.author for s in bench.delivered(three, "placed")} == {one.peer, two.peer}
    bench.hear(three, bench.made.placed(three))
    assert len(bench.announced) == 1


def test_the_first_call_asks_all_where_few_are_there_and_some_where_many_are() -> None:
    assert first_call(groups_wanted(4, 1), 3) == 1 << 16
    assert first_call(groups_wanted(1000, 4), 10_000) == (1 << 16) * 256 // 10_000
    assert first_call(groups_wanted(1, 1), 10_000_000) == 1


def test_inputs_are_kept_until_the_job_is_over() -> None:
    bench = Bench()
    assert bench.made.spec.run.module in bench.ctx.pinned()
    bench.submission.cancel("enough")
    bench.drain()
    assert bench.job.closed
    assert [drop.ref for drop in bench.of(Drop)] == [bench.made.spec.run.module]
    for member in bench.made.members:
        assert bench.delivered(member, "cancel")


# --- replacing -------------------------------------------------------------------------------------------------------
def last_succession(bench: Bench) -> Succession:
    made = [s for s in bench.job.statements() if s.kind == "succession"]
    body: Succession = made[-1].body
    return body


def test_a_seat_that_refuses_is_replaced_and_leaves_the_panel() -> None:
    newcomer = HashSigner(1, "newcomer")
    bench = Bench(members=4, candidates=lambda: [candidate(newcomer)])
    bench.peers.up.append(newcomer.peer)
    bench.run()
    seat = bench.made.seats()[1]
    bench.hear(seat, Refused(bench.made.job, "no room"))
    bench.run(limits.COLLECT_MS * 3)
    assert seat.peer not in bench.job.seats(0).holders
    assert len(bench.job.seats(0).holders) == 3
    renewal = next(s for s in bench.job.statements() if s.kind == "renewal")
    body: Renewal = renewal.body
    assert body.removed == (seat.peer,)
    assert newcomer.peer in bench.job.members()
    assert bench.submission.report().refused == ((seat.peer, "no room"),)


def test_a_small_panel_grows_once_its_job_lasts_and_its_submitter_knows_more_peers() -> None:
    known: list[Candidate] = []
    bench = Bench(members=4, candidates=lambda: known)
    bench.run()
    bench.place_all()
    fresh = [HashSigner(1, "fresh", n) for n in range(20)]
    bench.peers.up += [one.peer for one in fresh]
    known[:] = [candidate(fresh[0])]
    bench.run(limits.MEMBER_GONE_MIN_MS + limits.COLLECT_MS)
    assert len(bench.job.members()) == 4, "one more is not worth a renewal"
    known[:] = [candidate(one, n) for n, one in enumerate(fresh)]
    bench.run(limits.COLLECT_MS)
    assert len(bench.job.members()) == limits.PANEL_USUAL
    assert set(bench.job.members()) > {one.peer for one in bench.made.members}
    bench.run(2 * limits.SUBMITTER_SUCCESSION_MS)
    assert bench.job.panel_epoch == 1


def test_a_seat_by_succession_holds_a_shard_when_it_says_ready() -> None:
    bench = Bench(members=4)
    bench.run()
    one, two, three = bench.made.seats()
    bench.hear(one, bench.made.placed(one))
    bench.hear(two, Refused(bench.made.job, "no"))
    bench.hear(three, Refused(bench.made.job, "no"))
    bench.run(limits.COLLECT_MS * 3)
    other = next(peer for peer in bench.job.seats(0).holders if peer != one.peer)
    assert not bench.submission.placing.placed
    bench.hear(other, Ready(bench.made.job, 0))
    assert bench.of(JobPlaced)


def test_a_mute_seat_is_replaced_not_waited_for() -> None:
    bench = Bench(members=4)
    bench.run()
    mute, *others = bench.made.seats()
    for seat in others[:1]:
        bench.hear(seat, bench.made.placed(seat))
    bench.run(limits.SEAT_GONE_MS + 2 * limits.COLLECT_MS)
    assert mute.peer not in bench.job.seats(0).holders


def test_seats_that_can_help_themselves_are_left_to_do_so() -> None:
    bench = Bench(members=6)
    bench.run()
    bench.place_all()
    gone = bench.made.seats()[0]
    bench.link_down(gone)
    bench.run(60_000)
    assert bench.job.seats(0).epoch == 0


def test_a_shard_that_has_lost_its_quorum_gets_new_seats_at_most_once_a_minute() -> None:
    bench = Bench(members=7)
    bench.run()
    bench.place_all()
    one, two, _ = bench.made.seats()
    bench.link_down(one, two)
    bench.run(limits.SEAT_GONE_MS - limits.COLLECT_MS)
    assert bench.job.seats(0).epoch == 0
    bench.run(3 * limits.COLLECT_MS)
    now = bench.job.seats(0)
    assert now.epoch == 1
    assert not {one.peer, two.peer} & set(now.holders)
    assert len(now.holders) == 3
    assert last_succession(bench).authority == "submitter"
    bench.link_down(*(bench.made.signer(peer) for peer in now.holders[:2]))
    bench.run(limits.SUBMITTER_SUCCESSION_MS - 6 * limits.COLLECT_MS)
    assert bench.job.seats(0).epoch == 1
    bench.run(limits.SUBMITTER_SUCCESSION_MS)
    assert bench.job.seats(0).epoch == 2


def test_a_node_that_is_cut_off_changes_nothing() -> None:
    bench = Bench(members=5)
    bench.run()
    bench.place_all()
    bench.link_down(*bench.made.members)
    bench.run(600_000)
    assert bench.job.seats(0).epoch == 0


def with_submitter(others: int) -> JobKit:
    """A job whose submitter is a steward of its own."""
    made = kit.make_kit(others, tasks=1)
    panel = [made.submitter, *made.members]
    statement = kit.signed(kit.job_spec(panel, tasks=1), made.submitter)
    return JobKit(made.submitter, panel, made.workers, statement, {}, {})


def test_a_submitter_that_is_alone_on_its_panel_places_with_itself() -> None:
    bench = Bench(with_submitter(0))
    bench.run()
    bench.hear(bench.ctx.me, bench.made.placed(bench.made.submitter))
    assert bench.of(JobPlaced) == [JobPlaced(bench.made.job, (bench.ctx.me,))]
    bench.admit()
    bench.decide([0])
    bench.give_outputs()
    bench.run(100)
    assert bench.of(JobSettled)


def test_a_submitter_left_alone_goes_on_after_a_minute_and_takes_the_others_back() -> None:
    bench = Bench(with_submitter(2))
    bench.run()
    bench.place_all()
    others = bench.made.members[1:]
    bench.link_down(*others)
    bench.run(50_000)
    assert bench.job.seats(0).epoch == 0
    bench.run(20_000)
    assert bench.job.seats(0).holders == (bench.ctx.me,)
    bench.link_up(*others)
    bench.run(limits.SUBMITTER_SUCCESSION_MS + 2 * limits.COLLECT_MS)
    assert set(bench.job.seats(0).holders) == {member.peer for member in bench.made.members}


def test_a_submitter_does_not_prove_itself_at_fault() -> None:
    bench = Bench(with_submitter(3))
    bench.run()
    bench.place_all()
    me = bench.made.submitter
    others = bench.made.members[1:]
    bench.hear(me, bench.made.succession([me], [me], "panel"))
    bench.link_down(*others[1:])
    bench.run(50_000)
    assert bench.job.seats(0).epoch == 0


def test_both_successors_of_a_shard_are_told_and_so_are_those_who_leave() -> None:
    bench = Bench(members=4)
    bench.run()
    seat = bench.made.seats()[0]
    bench.hear(seat, Refused(bench.made.job, "no"))
    bench.run(limits.COLLECT_MS * 2)
    for peer in {seat.peer, *bench.job.seats(0).holders}:
        assert bench.delivered(peer, "succession")


def test_a_job_that_everybody_refuses_ends_and_says_why() -> None:
    bench = Bench()
    bench.run()
    for member in bench.made.members:
        bench.hear(member, Refused(bench.made.job, "no GPU here"))
    assert bench.of(JobRefused) == [JobRefused(bench.made.job, "no GPU here")]
    assert bench.job.closed
    assert bench.submission.deadline is None


def test_a_stranger_cannot_refuse_for_others() -> None:
    bench = Bench()
    bench.hear(bench.made.workers[0], Refused(bench.made.job, "no"))
    assert not bench.submission.report().refused


def test_a_shard_that_the_job_does_not_have_is_the_speakers_mistake() -> None:
    bench = Bench()
    with pytest.raises(PeerError):
        bench.hear(bench.made.members[0], Ready(bench.made.job, 7))


def test_thousands_of_shards_are_placed_a_few_at_a_time() -> None:
    bench = Bench(members=16, tasks=300 * limits.SHARD_TASKS)
    bench.run()
    assert bench.submission.placing.shards_placed == 0
    bench.run(2_000)
    bench.place_all()
    assert bench.submission.placing.placed
    refusing = bench.made.members[0]
    bench.hear(refusing, Refused(bench.made.job, "full"))
    bench.run(limits.COLLECT_MS)
    epochs = [bench.job.seats(shard).epoch for shard in range(300)]
    assert sum(epochs) <= limits.SUCCESSIONS_MAX
    bench.run(60_000)
    assert all(refusing.peer not in bench.job.seats(shard).holders for shard in range(300))
