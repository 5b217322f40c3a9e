"""The gate of a job: who is admitted, by what chance, and what liars among its seats can do about it."""

from __future__ import annotations

import pytest
from bus import LATENCY_MS, Bus, Host
from kit import JobKit, by_key, make_kit, signed

from nexapod.protocol import limits
from nexapod.protocol.calling import CALL_ALL, first_call, groups_wanted
from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Digest, PeerId
from nexapod.protocol.rules import beacon as beacon_rules
from nexapod.protocol.steward.gate.bids import Bids
from nexapod.protocol.steward.gate.gate import Gate
from nexapod.protocol.steward.gate.pledges import GATE_RECORD, Pledges
from nexapod.protocol.steward.gate.rounds import void_after
from nexapod.protocol.wire.bodies import Admission, Beacon, Placed
from nexapod.protocol.wire.messages import Bid, Deliver, Message, Object, Value
from nexapod.protocol.wire.statements import Statement, decode, value_commitment
from nexapod.sim.keys import HashSigner, verify


def make_gate(ctx: Context, job: JobState) -> Gate:
    return Gate(ctx, job, lambda: 10)


def gate_bus(kit: JobKit, seats: list[HashSigner] | None = None) -> Bus:
    """The seats with their gates, and the workers without machines; everybody knows who holds the job."""
    bus = Bus(kit)
    for seat in kit.seats() if seats is None else seats:
        bus.host(seat, make_gate)
    for one in (kit.submitter, *kit.workers):
        if one.peer not in bus.hosts:
            bus.host(one)
    placed = [
        signed(Placed(kit.job, bus[seat].machine.pledges.commitment), seat)
        for seat in kit.seats()
        if bus.hosts.get(seat.peer) is not None and bus[seat].machine is not None
    ]
    bus.everybody_knows(*placed)
    return bus


def bid(bus: Bus, worker: HashSigner, *seats: HashSigner) -> None:
    for seat in seats or bus.kit.seats():
        bus.say(worker, seat, Bid(bus.kit.job))


def admitted(host: Host) -> list[PeerId]:
    return [peer for pair in host.job.admissions() for peer, _ in pair[0].body.workers]


def beacons(host: Host) -> list[Statement]:
    return [beacon for _, beacon in host.job.admissions()]


# --- admission -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seats", [1, 2, 3])
def test_workers_that_bid_are_admitted_with_a_beacon_of_all_seats(seats: int) -> None:
    kit = make_kit(members=seats)
    bus = gate_bus(kit)
    for worker in kit.workers:
        bid(bus, worker)
    bus.run(1_000)
    for host in (*map(bus.__getitem__, kit.seats()), bus[kit.submitter], bus[kit.workers[0]]):
        assert admitted(host) == by_key(worker.peer for worker in kit.workers)
        [beacon] = beacons(host)
        assert {peer for peer, _ in beacon.body.values} == {seat.peer for seat in kit.seats()}
    assert not any(host.penalties for host in bus.hosts.values())


def test_a_round_takes_a_few_round_trips_once_bids_were_gathered() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    began = bus.now
    bid(bus, kit.workers[0])
    bus.run_until(lambda: bool(admitted(bus[kit.workers[0]])), 2_000)
    assert bus.now - began <= limits.GATHER_MS + 8 * LATENCY_MS


def test_a_round_takes_a_bounded_number_of_messages() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    bid(bus, kit.workers[0])
    bus.run(10_000)
    assert bus.sent <= 45


def test_the_beacon_fits_the_commitments_that_the_admission_lists() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    bid(bus, kit.workers[0])
    bus.run(1_000)
    [(admission, beacon)] = bus[kit.submitter].job.admissions()
    committed = dict(admission.body.commitments)
    assert all(beacon_rules.fits(value, committed[peer]) for peer, value in beacon.body.values)


def test_rounds_follow_one_another_with_new_values() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    for worker in kit.workers:
        bid(bus, worker)
        bus.run(1_000)
    seat = bus[kit.seats()[2]]
    assert len(admitted(seat)) == len(kit.workers)
    assert [admission.body.round for admission, _ in seat.job.admissions()] == [1, 2, 3, 4, 5]
    shown = [value for beacon in beacons(seat) for _, value in beacon.body.values]
    assert len(set(shown)) == len(shown) == 15


def rounds_of_an_old_and_a_young_one(kit: JobKit) -> list[int]:
    bus = gate_bus(kit)
    old, young = kit.workers[:2]
    bus.groups = dict(kit.groups)
    bus.met[young.peer] = bus.now + 1
    bid(bus, young)
    bid(bus, old)
    bus.run(1_500)
    rounds = {peer: a.body.round for a, _ in bus[kit.submitter].job.admissions() for peer, _ in a.body.workers}
    return [rounds[old.peer], rounds[young.peer]]


def test_a_peer_met_after_the_job_waits_one_round_more_among_strangers() -> None:
    named = {0: "198.51.100.0/24", 1: "203.0.113.0/24"}
    assert rounds_of_an_old_and_a_young_one(make_kit(grouping="network", groups=named)) == [1, 2]


def test_a_peer_met_after_the_job_does_not_wait_where_its_owner_vouches_for_it() -> None:
    assert rounds_of_an_old_and_a_young_one(make_kit()) == [1, 1]


def test_a_worker_that_has_missed_its_admission_is_told_when_it_bids_again() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    worker = kit.workers[0]
    bus.lost = lambda sender, to, message: to == worker.peer
    bid(bus, worker)
    bus.run(1_000)
    assert not admitted(bus[worker])
    bus.lost = lambda sender, to, message: False
    bid(bus, worker, kit.seats()[1])
    bus.run(100)
    assert admitted(bus[worker]) == [worker.peer]


def test_a_worker_without_an_address_that_counts_is_not_admitted() -> None:
    kit = make_kit(grouping="network", groups={0: "198.51.100.0/24"})
    bus = gate_bus(kit)
    seen, unseen = kit.workers[:2]
    bus.groups = {seen.peer: "198.51.100.0/24", unseen.peer: None}  # type: ignore[dict-item]
    bid(bus, seen)
    bid(bus, unseen)
    bus.run(2_000)
    assert admitted(bus[kit.submitter]) == [seen.peer]


def test_nothing_is_proposed_before_the_job_is_workable() -> None:
    kit = make_kit()
    bus = Bus(kit)
    for seat in kit.seats():
        bus.host(seat, make_gate)
    bus.host(kit.workers[0])
    bid(bus, kit.workers[0])
    bus.run(1_000)
    assert not any(admitted(host) for host in bus.hosts.values())


# --- seats that are away -------------------------------------------------------------------------------------------
def test_a_seat_that_is_not_linked_is_not_waited_for_as_leader() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    bus.kill(kit.seats()[0])
    bid(bus, kit.workers[0])
    bus.run_until(lambda: bool(admitted(bus[kit.workers[0]])), limits.VALUE_MS + 1_000)


def test_a_mute_leader_is_passed_over() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    bus[kit.seats()[0]].mute = True
    bid(bus, kit.workers[0])
    bus.run_until(
        lambda: bool(admitted(bus[kit.workers[0]])), 2 * limits.LEADER_MUTE_MS + limits.VALUE_MS + limits.ROUND_MS
    )


def test_a_worker_that_the_leader_does_not_see_is_admitted_by_the_others() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    worker = kit.workers[0]
    bid(bus, worker, *kit.seats()[1:])
    bus.run_until(lambda: bool(admitted(bus[worker])), 2 * limits.LEADER_MUTE_MS + 1_000)


def test_lost_messages_cost_time_only() -> None:
    kit = make_kit(workers=2)
    bus = gate_bus(kit)
    heard: dict[tuple[PeerId, PeerId, type], int] = {}

    def lose_the_first_two(sender: PeerId, to: PeerId, message: Message) -> bool:
        if isinstance(message, Bid):
            return False
        key = (sender, to, type(message))
        heard[key] = heard.get(key, 0) + 1
        return heard[key] <= 2

    bus.lost = lose_the_first_two
    bid(bus, kit.workers[0])
    bus.run(15_000)
    assert admitted(bus[kit.seats()[1]]) == [kit.workers[0].peer]


def test_a_seat_started_again_goes_on_with_what_it_had_pledged() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    bid(bus, kit.workers[0])
    bus.run(1_000)
    seat = kit.seats()[1]
    kept = bus[seat].records[(GATE_RECORD, bytes(kit.job))]
    commitment = bus[seat].machine.pledges.commitment

    def again(ctx: Context, job: JobState) -> Gate:
        pledges = Pledges(ctx, job.job)
        pledges.restore(kept)
        return Gate(ctx, job, lambda: 10, pledges=pledges)

    bus.host(seat, again)
    assert bus[seat].machine.pledges.commitment == commitment
    bus.host(kit.seats()[0], lambda ctx, job: _restored(bus, kit.seats()[0], ctx, job))
    bid(bus, kit.workers[1])
    bus.run(4_000)
    _, beacon = bus[kit.submitter].job.admissions()[1]
    assert len(beacon.body.values) == 3, "a leader that had forgotten the others' commitments was told"


def _restored(bus: Bus, seat: HashSigner, ctx: Context, job: JobState) -> Gate:
    pledges = Pledges(ctx, job.job)
    pledges.restore(bus[seat].records[(GATE_RECORD, bytes(job.job))])
    return Gate(ctx, job, lambda: 10, pledges=pledges)


# --- liars ---------------------------------------------------------------------------------------------------------
def test_a_withholder_is_left_out_and_its_values_are_void_for_the_epoch() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    withholder = kit.seats()[2]
    bus.lost = lambda sender, to, message: sender == withholder.peer and isinstance(message, Value)
    for worker in kit.workers[:2]:
        bid(bus, worker)
        bus.run(3_000)
    first, second = bus[kit.submitter].job.admissions()
    honest = {seat.peer for seat in kit.seats()[:2]}
    assert {peer for peer, _ in first[1].body.values} == honest
    assert set(dict(second[0].body.commitments)) == honest, "it is not asked again in this epoch"


def test_a_withholding_leader_delays_a_round_and_chooses_once() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    leader = kit.seats()[0]

    def withholds(sender: PeerId, to: PeerId, message: Message) -> bool:
        kinds = [decode(e, verify).kind for e in message.envelopes] if isinstance(message, Deliver) else []
        return sender == leader.peer and (isinstance(message, Value) or "beacon" in kinds)

    bus.lost = withholds
    bid(bus, kit.workers[0])
    bus.run(5_000)
    seat = bus[kit.seats()[1]]
    [(_, beacon)] = seat.job.admissions()
    assert leader.peer not in dict(beacon.body.values)
    bus.lost = lambda sender, to, message: False
    bid(bus, kit.workers[1])
    bus.run(5_000)
    [_, (second, _)] = seat.job.admissions()
    assert leader.peer not in dict(second.body.commitments), "it is not asked again in this epoch"


def test_invented_workers_are_objected_to_and_never_admitted() -> None:
    """A leader names workers that only it claims to have heard of: the others do not know them."""
    kit = make_kit()
    seats = kit.seats()
    bus = gate_bus(kit)
    bus[seats[0]].on_message = lambda sender, message: True
    invented = HashSigner(9, "invented")
    pledge = {seat.peer: bus[seat].machine.pledges.commitment for seat in seats[1:]}
    listed = ((invented.peer, invented.peer),)
    proposal = signed(Admission(kit.job, 0, 1, listed, beacon_rules.ordered(pledge)), seats[0])
    for seat in seats[1:]:
        bus.say(seats[0], seat, Deliver((proposal.envelope,)))
    bus.run(3_000)
    objections = [m for _, m in bus[seats[0]].received if isinstance(m, Object)]
    assert [m.workers for m in objections] == [(invented.peer,)] * 2
    assert not any(admitted(host) for host in bus.hosts.values())


def test_one_objector_cannot_keep_a_worker_out() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    liar = kit.seats()[1]

    def objects(sender: PeerId, message: Message) -> bool:
        if isinstance(message, Deliver):
            for statement in (decode(envelope, verify) for envelope in message.envelopes):
                if statement.kind == "admission":
                    names = tuple(worker for worker, _ in statement.body.workers)
                    bus.say(liar, kit.seats()[0], Object(kit.job, 0, statement.id, (), names))
        return True

    bus[liar].on_message = objects
    bid(bus, kit.workers[0])
    bus.run(5_000)
    assert admitted(bus[kit.submitter]) == [kit.workers[0].peer]


def test_workers_that_one_seat_each_does_not_see_are_admitted_apart() -> None:
    kit = make_kit()
    bus = gate_bus(kit)
    leader, second, third = kit.seats()
    bid(bus, kit.workers[0], leader, second)
    bid(bus, kit.workers[1], leader, third)
    bus.run(8_000)
    assert sorted(admitted(bus[kit.submitter])) == sorted(w.peer for w in kit.workers[:2])


def test_a_leader_that_equivocates_is_proven_at_fault_and_gains_no_second_beacon() -> None:
    kit = make_kit()
    leader, second, third = kit.seats()
    bus = gate_bus(kit)
    liar = bus[leader]
    for worker in kit.workers[:2]:
        bid(bus, worker, second, third)
    bus.run(50)
    pledge = {seat.peer: bus[seat].machine.pledges.commitment for seat in kit.seats()}
    liar.on_message = lambda sender, message: True
    for seat, worker in ((second, kit.workers[0]), (third, kit.workers[1])):
        body = Admission(kit.job, 0, 1, ((worker.peer, worker.peer),), beacon_rules.ordered(pledge))
        bus.say(leader, seat, Deliver((signed(body, leader).envelope,)))
    bus.run(10_000)
    for seat in (second, third):
        assert leader.peer in bus[seat].job.faults()
        rounds = bus[seat].job.admissions()
        assert [a.body.round for a, _ in rounds].count(1) == 1
        assert sorted(admitted(bus[seat])) == sorted(w.peer for w in kit.workers[:2])
    assert beacons(bus[second]) == beacons(bus[third])


def test_a_beacon_that_leaves_out_a_shown_value_is_not_signed() -> None:
    kit = make_kit()
    leader, second, third = kit.seats()
    bus = gate_bus(kit)
    bid(bus, kit.workers[0], second, third)
    bus.run(50)
    pledges = {seat.peer: bus[seat].machine.pledges for seat in kit.seats()}
    committed = {peer: one.commitment for peer, one in pledges.items()}
    bus[leader].on_message = lambda sender, message: True
    body = Admission(kit.job, 0, 1, ((kit.workers[0].peer, kit.workers[0].peer),), beacon_rules.ordered(committed))
    admission = signed(body, leader)
    mine = pledges[leader.peer]
    assert mine._next is not None
    value = mine._next
    for seat in (second, third):
        bus.say(leader, seat, Deliver((admission.envelope,)))
    bus.run(60)
    lone = signed(Beacon(kit.job, 0, 1, admission.id, ((leader.peer, value),)), leader)
    for seat in (second, third):
        bus.say(leader, seat, Deliver((lone.envelope,)))
    bus.run(5_000)
    [beacon] = beacons(bus[second])
    assert {second.peer, third.peer} <= set(dict(beacon.body.values))


def test_a_value_is_shown_for_one_admission_of_a_round_only() -> None:
    kit = make_kit()
    bus = Bus(kit)
    host = bus.host(kit.seats()[0])
    pledges = Pledges(host.ctx, kit.job)
    one, other = (kit.admission([worker]).id for worker in kit.workers[:2])
    committed = pledges.commitment
    shown = pledges.show(0, 1, one, committed)
    assert shown is not None
    assert value_commitment(shown.value) == committed
    assert pledges.show(0, 1, one, committed) == shown
    assert pledges.show(0, 1, other, committed) is None
    assert pledges.show(0, 1, other, pledges.commitment) is None
    assert pledges.show(0, 2, other, Digest(bytes(32))) is None


def test_a_seat_signs_one_admission_a_round_also_after_a_crash() -> None:
    kit = make_kit()
    host = Bus(kit).host(kit.seats()[0])
    pledges = Pledges(host.ctx, kit.job)
    one, other = (kit.admission([worker]).id for worker in kit.workers[:2])
    pledges.sign_admission(0, 3, one)
    pledges.sign_beacon(one, other)
    record = host.ctx.effects[-1].record  # type: ignore[union-attr]
    again = Pledges(host.ctx, kit.job)
    again.restore(record.value)
    assert again.may_sign_admission(0, 3, one)
    assert not again.may_sign_admission(0, 3, other)
    assert not again.may_sign_admission(0, 2, other)
    assert again.may_sign_admission(0, 4, other)
    assert again.may_sign_admission(1, 1, other)
    assert again.may_sign_beacon(one, other)
    assert not again.may_sign_beacon(one, one)


# --- pure parts ----------------------------------------------------------------------------------------------------
def test_values_begin_anew_when_too_few_seats_could_make_a_beacon() -> None:
    holders = tuple(PeerId(name) for name in "abc")
    void = void_after((), holders[:1], holders)
    assert void == {"a"}
    assert void_after(void, holders[1:2], holders) == frozenset()
    assert void_after((), holders[:1], holders[:1]) == frozenset()


def test_a_full_table_of_bids_makes_room_for_other_groups() -> None:
    bids = Bids()
    for i in range(limits.BIDS_MAX):
        bids.enter(PeerId(f"flood{i:05}"), "flood", 0, i)
    bids.enter(PeerId("more"), "flood", 0, 9_999)
    bids.enter(PeerId("honest"), "other", 0, 9_999)
    assert len(bids) == limits.BIDS_MAX
    assert bids.group(PeerId("more"), 0) is None
    assert bids.group(PeerId("honest"), 0) == "other"


def test_one_of_each_group_goes_first_into_a_round() -> None:
    bids = Bids()
    crew = [HashSigner(3, i).peer for i in range(limits.ADMISSION_MAX + 10)]
    for peer in crew[:-1]:
        bids.enter(peer, "flood", 0, 0)
    bids.enter(crew[-1], "other", 0, 5)
    batch = bids.batch(10, 0, 1, lambda worker, group: True)
    assert len(batch) == limits.ADMISSION_MAX
    assert (crew[-1], "other") in batch


def test_the_call_grows_until_enough_groups_are_there() -> None:
    assert groups_wanted(10, 1) == 20
    assert groups_wanted(1_000, 2) == 128
    assert first_call(20, 15) == CALL_ALL
    assert first_call(20, 2_000) == CALL_ALL // 100
    kit = make_kit()
    bus = Bus(kit)
    for seat in kit.seats():
        bus.host(seat, lambda ctx, job: Gate(ctx, job, lambda: 10_000))
    leader = bus[kit.seats()[0]]
    bus.everybody_knows(*(kit.placed(seat) for seat in kit.seats()))
    bus.run(20_000)
    asked = [card.call for card in leader.cards]
    assert asked == sorted(asked)
    assert len(asked) >= 3
    assert asked[1] == 2 * asked[0]
    assert [card.seq for card in leader.cards] == list(range(1, len(asked) + 1))
    assert not any(bus[seat].cards for seat in kit.seats()[1:])
