"""What a job's own statements come to: its panel, its seats, its workers, its end."""

from __future__ import annotations

from dataclasses import replace

import kit
import pytest
from kit import JobKit, make_kit, signed

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import StatementId
from nexapod.protocol.rules import seats
from nexapod.protocol.wire import bodies, statements
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner, verify

STRANGER = HashSigner(7, "stranger")


def spare(made: JobKit, shard: int = 0) -> list[HashSigner]:
    """Members without a seat, in the shard's order."""
    order = seats.order(made.job, shard, [member.peer for member in made.members])
    return [made.signer(peer) for peer in order[limits.SEATS :]]


def refused(state: JobState, statement: Statement) -> str:
    with pytest.raises(PeerError) as caught:
        state.add(statement)
    return caught.value.rule


# --- the job itself -----------------------------------------------------------------------------------------------
def test_a_job_begins_with_its_own_panel_and_seats() -> None:
    made = make_kit(members=5)
    state = made.state()
    assert set(state.members()) == {member.peer for member in made.members}
    assert state.seats(0).holders == tuple(seat.peer for seat in made.seats())
    assert state.gate() == state.seats(0)
    assert (state.panel_epoch, state.closed, state.workable) == (0, False, False)
    assert state.add(made.job_statement) == "known"
    assert state.statements() == [made.job_statement]


def test_a_member_is_dialled_where_its_offer_says() -> None:
    made = make_kit()
    assert made.state().addrs(made.members[0].peer)[0].startswith("/ip4/10.0.0.1/tcp/")
    assert made.state().addrs(STRANGER.peer) == ()


@pytest.mark.parametrize(
    "panel",
    [
        (),
        (kit.offer(STRANGER, network="other").envelope,),
        (kit.offer(STRANGER, seq=1).envelope, kit.offer(STRANGER, seq=2).envelope),
        (signed(bodies.Cancel(kit.make_kit().job, ""), STRANGER).envelope,),
        (b"junk",),
    ],
)
def test_a_panel_is_made_of_offers_to_its_network_each_once(panel: tuple[bytes, ...]) -> None:
    made = make_kit()
    job = signed(replace(made.spec, panel=panel), made.submitter)
    with pytest.raises(PeerError):
        JobState(job, verify)


def test_a_job_is_made_of_a_job() -> None:
    with pytest.raises(PeerError, match="not-a-job"):
        JobState(kit.offer(STRANGER), verify)


def test_statements_of_another_job_or_of_no_job_are_refused() -> None:
    state = make_kit().state()
    other = make_kit(seed=2)
    assert refused(state, other.job_statement) == "other-job"
    assert refused(state, other.cancel()) == "other-job"
    assert refused(state, kit.offer(STRANGER)) == "other-job"


def test_a_shards_statements_are_not_the_jobs() -> None:
    made = make_kit()
    assert refused(made.state(), made.commit(made.workers[0], kit.Result(0))) == "not-of-a-job"


# --- placing ------------------------------------------------------------------------------------------------------
def test_a_job_is_workable_when_two_members_hold_it() -> None:
    made = make_kit(members=5)
    state = made.state()
    workable = []
    for member in made.members[:2]:
        assert state.add(made.placed(member)) == "new"
        workable.append(state.workable)
    assert workable == [False, True]
    assert state.add(made.placed(made.members[1])) == "known"


def test_one_of_one_is_enough() -> None:
    made = make_kit(members=1)
    assert made.state(made.placed(made.members[0])).workable


def test_a_strangers_word_that_it_holds_the_job_counts_for_nothing() -> None:
    made = make_kit()
    state = made.state()
    assert state.add(made.placed(STRANGER)) == "orphan"
    assert not state.placed()


def test_of_two_different_words_of_one_member_the_same_one_stands_everywhere() -> None:
    made = make_kit()
    one, other = made.placed(made.members[0], b"a" * 32), made.placed(made.members[0], b"b" * 32)
    assert made.state(one, other).placed() == made.state(other, one).placed()
    assert not made.state(one, other).workable


# --- the end ------------------------------------------------------------------------------------------------------
def test_only_the_submitter_cancels_and_it_or_its_delegate_settles() -> None:
    delegate = HashSigner(7, "delegate")
    made = make_kit(delegate=delegate.peer)
    assert refused(made.state(), made.cancel(signer=delegate)) == "not-the-submitter"
    assert refused(made.state(), made.settlement(4, signer=made.members[0])) == "not-the-submitter"
    assert made.state(made.settlement(3, 1, signer=delegate)).closed
    assert made.state(made.cancel()).closed


def test_a_settlement_accounts_for_every_task() -> None:
    made = make_kit(tasks=4)
    assert refused(made.state(), made.settlement(3)) == "bad-settlement"


def test_a_settlement_stands_before_a_cancellation_in_any_order() -> None:
    made = make_kit()
    ends = [made.cancel("a"), made.settlement(4), made.cancel("b"), made.settlement(4, evidence=b"e" * 32)]
    forwards, backwards = made.state(*ends), made.state(*reversed(ends))
    assert forwards.closing == backwards.closing
    assert forwards.closing is not None
    assert forwards.closing.kind == "settlement"


# --- succession ---------------------------------------------------------------------------------------------------
def test_a_quorum_of_the_seats_names_the_next() -> None:
    made = make_kit(members=5)
    state = made.state()
    one, two, three = made.seats()
    holders = [one, two, spare(made)[0]]
    assert state.add(made.succession(holders, [one])) == "proposal"
    assert state.add(made.succession(holders, [one])) == "known"
    assert state.seats(0).epoch == 0
    assert state.add(made.succession(holders, [two])) == "new"
    assert state.seats(0).holders == tuple(holder.peer for holder in holders)
    assert state.seats_at(0, 0) == made.state().seats(0)
    assert state.seats_at(0, 2) is None
    assert three.peer not in state.seats(0).holders


def test_proposals_gather_the_signatures_of_those_who_may_sign_alone() -> None:
    made = make_kit(members=5)
    state = made.state()
    holders = [made.seats()[0], spare(made)[0]]
    crowd = [HashSigner(9, "crowd", i) for i in range(40)]
    proposal = made.succession(holders, [made.seats()[0], *crowd])
    state.add(proposal)
    kept = state.get(proposal.id)
    assert kept is not None
    assert kept.signers == (made.seats()[0].peer,)
    state.add(made.succession(holders, [made.seats()[1], *crowd]))
    assert len(state.statements()[-1].signers) == 2


def test_strangers_and_single_seats_change_no_seats() -> None:
    made = make_kit(members=5)
    state = made.state()
    mine = [made.seats()[0], spare(made)[0]]
    assert state.add(made.succession(mine, [STRANGER])) == "orphan"
    assert state.add(made.succession(mine, [made.seats()[0], spare(made)[0]])) == "proposal"
    assert state.add(made.succession(mine, [STRANGER], "submitter")) == "orphan"
    assert state.add(made.succession(mine, spare(made), "panel")) == "proposal"
    assert state.seats(0).epoch == 0


def test_holders_are_members() -> None:
    made = make_kit(members=5)
    state = made.state()
    assert state.add(made.succession([STRANGER], [STRANGER], "caretaker")) == "orphan"
    assert state.add(made.succession([STRANGER], [made.submitter], "submitter")) == "orphan"
    assert state.get(made.succession([STRANGER], [STRANGER], "caretaker").id) is None


def test_of_several_to_one_epoch_the_higher_authority_then_the_smaller_id_counts() -> None:
    made = make_kit(members=5)
    one, two, _ = made.seats()
    by_seats = made.succession([one, two], [one, two])
    by_panel = made.succession([one, spare(made)[0]], made.members[:3], "panel")
    by_submitter = made.succession([two], [made.submitter], "submitter")
    caretaker = made.succession([spare(made)[1]], [spare(made)[1]], "caretaker")
    after = made.succession([one], [one, two], epoch=2, previous=by_seats.id)
    for order in ([by_seats, by_panel, by_submitter, caretaker], [caretaker, by_submitter, by_panel, by_seats]):
        assert made.state(*order).seats(0).id == by_submitter.id
    late = made.state(by_seats, after, by_panel)
    assert late.seats(0).id == by_panel.id
    assert late.add(after) == "orphan"


def test_a_succession_follows_one_that_is_known() -> None:
    made = make_kit(members=5)
    one, two, _ = made.seats()
    first = made.succession([one, two], [one, two])
    second = made.succession([one], [one, two], epoch=2, previous=first.id)
    state = made.state()
    assert state.add(second) == "orphan"
    assert [state.add(s) for s in (first, second)] == ["new", "new"]
    wrong = made.succession([one], [one, two], epoch=7, previous=first.id)
    assert refused(made.state(first), wrong) == "bad-succession"
    assert refused(made.state(first), replace_shard(made, 9)) == "bad-succession"


def replace_shard(made: JobKit, shard: int) -> Statement:
    return made.succession(made.seats()[:1], made.seats()[:2], shard=shard)


def test_caretakers_are_told_of_for_ratification() -> None:
    made = make_kit(members=5)
    last = spare(made)[0]
    care = made.succession([last], [last], "caretaker")
    assert made.state(care).caretakers() == [care]


def test_two_successions_to_one_epoch_are_rivals_and_prove_no_fault() -> None:
    made = make_kit(members=5)
    one, two, three = made.seats()
    first, second = made.succession([one, two], [one, two]), made.succession([one, three], [one, three])
    state = made.state(first)
    assert state.rivals(second) == [first]
    fault = signed(bodies.Fault(made.job, one.peer, first.envelope, second.envelope), made.members[0])
    assert refused(state, fault) == "bad-fault"


def test_two_admissions_of_one_round_signed_by_one_seat_prove_its_fault() -> None:
    made = make_kit()
    one, two, three = made.seats()
    first = made.admission(made.workers[:1], [one, two])
    second = made.admission(made.workers[1:2], [one, three])
    state = made.state(first)
    fault = signed(bodies.Fault(made.job, one.peer, first.envelope, second.envelope), made.members[0])
    innocent = signed(bodies.Fault(made.job, two.peer, first.envelope, second.envelope), made.members[0])
    assert state.add(fault) == "new"
    assert set(state.faults()) == {one.peer}
    assert refused(state, innocent) == "bad-fault"


def test_faults_of_peers_that_the_job_has_nothing_to_do_with_are_not_kept() -> None:
    made = make_kit()
    first, second = (made.commit(STRANGER, kit.Result(0, files)) for files in (kit.OUTPUT, kit.OTHER_OUTPUT))
    fault = signed(bodies.Fault(made.job, STRANGER.peer, first.envelope, second.envelope), STRANGER)
    assert made.state().add(fault) == "orphan"


def test_an_admitted_workers_contradiction_is_a_fault() -> None:
    made = make_kit()
    worker = made.workers[0]
    first, second = (made.commit(worker, kit.Result(0, files)) for files in (kit.OUTPUT, kit.OTHER_OUTPUT))
    fault = signed(bodies.Fault(made.job, worker.peer, first.envelope, second.envelope), made.members[0])
    same = signed(bodies.Fault(made.job, worker.peer, first.envelope, first.envelope), made.members[0])
    state = made.state(*made.round())
    assert refused(state, same) == "bad-fault"
    assert state.add(fault) == "new"
    assert state.statements()[-1] == fault


def test_a_seat_signs_one_freeze_of_a_task_and_round_and_one_admission_of_a_round() -> None:
    made = make_kit()
    one, two, _ = made.seats()
    state = made.state(*made.round())
    commits = [made.commit(worker, kit.Result(0), kit.Result(1)) for worker in made.workers[:3]]
    first = made.freeze({0: commits[:2]}, [one])
    cases = [
        (first, made.freeze({0: commits[1:]}, [one]), "new"),
        (first, made.freeze({0: commits[:2], 1: commits[:2]}, [one]), "bad-fault"),
        (first, made.freeze({0: commits}, [one], round=2), "bad-fault"),
        (first, made.freeze({0: commits[1:]}, [one], epoch=1), "bad-fault"),
        (made.admission(made.workers[:1]), made.admission(made.workers[1:]), "new"),
        (made.admission(made.workers[:1]), made.admission(made.workers[1:], round=2), "bad-fault"),
        (made.admission(), made.beacon(made.admission()), "bad-fault"),
    ]
    for number, (a, b, expected) in enumerate(cases):
        accused = one if number < 5 else two
        fault = signed(bodies.Fault(made.job, accused.peer, a.envelope, b.envelope), made.members[number % 3])
        found = made.state(*made.round()).add(fault) if expected == "new" else refused(state, fault)
        assert found == expected, number


# --- renewal ------------------------------------------------------------------------------------------------------
def test_a_majority_of_the_panel_renews_it() -> None:
    made = make_kit(members=6)
    new = HashSigner(8, "new")
    renewal = made.renewal(made.members[:1], [new], made.members[2:5])
    state = made.state()
    assert state.add(renewal) == "proposal"
    assert state.add(kit.only(renewal, made.members[5])) == "new"
    assert state.members() == (*(m.peer for m in made.members[1:]), new.peer)
    assert (state.panel_epoch, state.panel_id) == (1, renewal.id)
    assert state.was_member(made.members[0].peer)
    assert state.addrs(new.peer) != ()


def test_at_most_a_third_leaves_by_the_panels_word_and_strangers_renew_nothing() -> None:
    made = make_kit(members=6)
    new = [HashSigner(8, "new", i) for i in range(3)]
    state = made.state()
    assert refused(state, made.renewal(made.members[:3], new, made.members)) == "bad-renewal"
    assert refused(state, made.renewal([], new, new)) == "foreign-signature"
    assert refused(state, made.renewal([], new, [made.members[0]], "submitter")) == "foreign-signature"
    assert state.add(made.renewal(made.members[:3], new, [made.submitter], "submitter")) == "new"


def test_a_renewal_adds_offers_that_hold() -> None:
    made = make_kit(members=3)
    good = made.renewal([], [HashSigner(8, "new")], [made.submitter], "submitter")
    broken = signed(replace(good.body, added=(made.cancel().envelope,)), made.submitter)
    assert refused(made.state(), broken) == "bad-panel"


def test_members_by_a_renewal_may_hold_seats_and_say_that_they_hold_the_job() -> None:
    made = make_kit(members=3)
    new = HashSigner(8, "new")
    renewal = made.renewal([], [new], [made.submitter], "submitter")
    one, two, _ = made.seats()
    succession = made.succession([one, new], [one, two])
    state = made.state()
    assert state.add(succession) == "orphan"
    assert state.add(made.placed(new)) == "orphan"
    assert state.add(renewal) == "new"
    assert [state.add(s) for s in (succession, made.placed(new))] == ["new", "new"]


def test_what_rests_on_a_renewal_goes_with_it() -> None:
    made = make_kit(members=3)
    new, other = HashSigner(8, "new"), HashSigner(8, "other")
    by_panel = made.renewal([], [new], made.members)
    by_submitter = made.renewal([], [other], [made.submitter], "submitter")
    succession = made.succession([made.seats()[0], new], made.seats()[:2])
    state = made.state(by_panel, succession)
    assert state.seats(0).epoch == 1
    assert state.add(by_submitter) == "new"
    assert state.seats(0).epoch == 0
    assert other.peer in state.members()
    assert new.peer not in state.members()
    assert state.add(by_panel) == "known"


# --- admission ----------------------------------------------------------------------------------------------------
def test_workers_are_admitted_by_an_admission_and_its_beacon_with_a_quorum_each() -> None:
    made = make_kit()
    worker = made.workers[0].peer
    admission, beacon = made.round()
    state = made.state()
    assert state.add(beacon) == "orphan"
    assert state.add(kit.only(admission, made.seats()[0])) == "proposal"
    assert state.add(beacon) == "new"
    assert state.group(worker) is None
    assert state.add(kit.only(admission, made.seats()[1])) == "new"
    assert state.group(worker) == worker
    assert state.admissions() == [(state.get(admission.id), state.get(beacon.id))]
    assert state.counts(admission)
    assert not state.counts(kit.only(admission, made.seats()[0]))


def test_no_crowd_of_members_or_strangers_admits_anybody() -> None:
    made = make_kit(members=9)
    crowd = [HashSigner(9, "crowd", i) for i in range(9)]
    state = made.state()
    assert refused(state, made.admission(signers=crowd)) == "foreign-signature"
    assert state.add(made.admission(signers=spare(made))) == "orphan"
    assert state.add(made.admission(signers=[made.seats()[0], *spare(made), *crowd])) == "proposal"
    assert state.admissions() == []


def test_an_admission_names_groups_by_the_jobs_rule_sorted_by_key() -> None:
    made = make_kit()
    renamed = {made.workers[0].peer: "10.0.0.0/24"}
    assert refused(made.state(), made.admission(groups=renamed)) == "bad-admission"
    network = make_kit(grouping="network", groups={i: f"10.0.{i}.0/24" for i in range(5)})
    assert network.state(*network.round()).group(network.workers[1].peer) == "10.0.1.0/24"
    for wrong in ("10.0.0.0/16", "127.0.0.0/24", "10.0.0.1/24", network.workers[0].peer, "2001:db8::/64"):
        assert refused(network.state(), network.admission(groups={network.workers[0].peer: wrong})) == "bad-admission"
    admission = made.admission()
    backwards = signed(replace(admission.body, workers=admission.body.workers[::-1]), *made.quorum())
    assert refused(made.state(), backwards) == "bad-admission"


def test_a_beacon_is_of_its_round_and_of_seats() -> None:
    made = make_kit()
    admission = made.admission()
    state = made.state(admission)
    other = signed(replace(made.beacon(admission).body, round=2), *made.quorum())
    assert refused(state, other) == "bad-beacon"
    assert refused(state, made.beacon(admission, values={STRANGER.peer: b"v" * 32})) == "bad-beacon"


def test_of_two_beacons_the_same_one_counts_everywhere() -> None:
    made = make_kit()
    admission = made.admission()
    seats = [seat.peer for seat in made.seats()[:2]]
    one, other = (made.beacon(admission, values={seat: kit.value_of(seat)}) for seat in seats)
    forwards, backwards = made.state(admission, one, other), made.state(admission, other, one)
    assert forwards.admissions() == backwards.admissions()
    assert forwards.lottery.draw(0) == backwards.lottery.draw(0)


# --- epochs and adoption ------------------------------------------------------------------------------------------
def test_nothing_of_an_earlier_epoch_counts_unless_the_present_seats_adopt_it() -> None:
    made = make_kit(members=5)
    admission, beacon = made.round()
    one, two, _ = made.seats()
    new = [one, spare(made)[0], spare(made)[1]]
    state = made.state(admission, beacon, made.succession(new, [one, two]))
    worker = made.workers[0].peer
    assert state.group(worker) is None
    assert state.groups_seen(worker) == (worker,)
    assert state.adoptable_admissions() == sorted([admission.id, beacon.id])
    adoption = made.adoption([admission, beacon], new[:1])
    assert state.add(adoption) == "proposal"
    assert state.group(worker) is None
    assert state.add(kit.only(adoption, new[1])) == "new"
    assert state.group(worker) == worker
    assert state.adopted(0) == {admission.id, beacon.id}
    assert made.state(*state.statements()[1:]).statements() == state.statements()


def test_seats_that_have_left_put_nothing_into_the_past() -> None:
    made = make_kit(members=6)
    old = made.seats()
    new = spare(made)
    state = made.state(made.succession(new, old))
    back_dated = made.admission(signers=old)
    assert state.add(back_dated) == "proposal"
    state.add(made.beacon(back_dated, signers=old))
    assert state.admissions() == []
    assert state.add(made.adoption([back_dated], old)) == "orphan"
    assert state.adopted(0) == frozenset()
    assert not state.counts(back_dated)


def test_statements_of_an_epoch_that_is_not_known_are_orphans() -> None:
    made = make_kit(members=5)
    state = made.state()
    assert state.add(made.admission(epoch=3)) == "orphan"
    assert state.add(made.adoption([made.admission()], made.seats(), epoch=1)) == "orphan"


def test_an_adoption_is_sorted() -> None:
    made = make_kit()
    state = made.state(made.succession(made.seats()[:1], made.seats()))
    ids = (StatementId(b"b" * 32), StatementId(b"a" * 32))
    assert refused(state, signed(bodies.Adoption(made.job, 0, 1, ids), made.seats()[0])) == "bad-adoption"
    assert refused(state, signed(bodies.Adoption(made.job, 9, 1, ids), made.seats()[0])) == "no-such-shard"


def test_what_the_last_epoch_adopted_may_be_adopted_again() -> None:
    made = make_kit(members=5)
    admission, beacon = made.round()
    one, two, _ = made.seats()
    first = made.succession([one, two], [one, two])
    state = made.state(admission, beacon, first, made.adoption([admission, beacon], [one, two]))
    second = made.succession([two, one], [one, two], epoch=2, previous=first.id)
    assert state.add(second) == "new"
    assert state.admissions() == []
    assert state.adoptable_admissions() == sorted([admission.id, beacon.id])


# --- floods -------------------------------------------------------------------------------------------------------
def test_a_seats_flood_of_proposals_pushes_out_its_own_alone() -> None:
    made = make_kit(members=5, workers=limits.PROPOSALS_PER_SIGNER_MAX * 2)
    liar, honest, _ = made.seats()
    state = made.state()
    kept = made.admission(made.workers[:1], signers=[honest, liar])
    kept = kit.only(kept, honest)
    state.add(kept)
    flood = [made.admission([worker], signers=[liar], round=9) for worker in made.workers]
    assert {state.add(statement) for statement in flood} == {"proposal"}
    assert state.get(kept.id) is not None
    assert sum(state.get(statement.id) is not None for statement in flood) == limits.PROPOSALS_PER_SIGNER_MAX
    assert state.add(kit.only(kept, liar)) == "new"


def test_a_members_flood_of_caretakers_is_one_line() -> None:
    made = make_kit(members=5)
    liar = spare(made)[0]
    state = made.state()
    previous = None
    for epoch in range(1, 20):
        care = made.succession([liar], [liar], "caretaker", epoch=epoch, previous=previous)
        assert state.add(care) == "new"
        previous = care.id
    one, two, three = made.seats()
    assert state.add(made.succession([one, two, three], [one, two])) == "new"
    assert state.seats(0).epoch == 1
    assert len(state.statements()) == 3


def test_a_caretaker_that_was_overruled_takes_the_shard_no_more() -> None:
    made = make_kit(members=5)
    liar, other = spare(made)
    one, two, three = made.seats()
    care = made.succession([liar], [liar], "caretaker")
    back = made.succession([one, two, three], [one, two])
    again = made.succession([liar], [liar], "caretaker", epoch=2, previous=back.id)
    together = made.succession([other, liar], [other, liar], "caretaker", epoch=2, previous=back.id)
    honest = made.succession([other], [other], "caretaker", epoch=2, previous=back.id)
    for order in ((care, back, again), (again, back, care, again), (back, again, care), (back, care, together)):
        state = made.state()
        for statement in order:
            state.add(statement)
        assert state.seats(0).id == back.id, [s.id[:2] for s in order]
        assert care in state.statements()
        assert state.add(honest) == "new"
    # Whom only the submitter has replaced was not wrong.
    state = made.state(care, made.succession([one], [made.submitter], "submitter"))
    assert state.overruled(0) == []


def test_an_epoch_has_a_bound() -> None:
    made = make_kit()
    far = made.succession(made.seats(), made.seats(), epoch=limits.EPOCHS_MAX + 1)
    assert refused(made.state(), far) == "bad-succession"


def test_the_version_rises_with_what_counts_alone() -> None:
    made = make_kit()
    state = made.state()
    admission, beacon = made.round()
    versions = [state.version]
    for statement in (kit.only(admission, made.seats()[0]), admission, admission, beacon):
        state.add(statement)
        versions.append(state.version)
    assert versions == [0, 0, 1, 1, 2]


def test_statements_come_in_an_order_in_which_they_are_taken() -> None:
    made = make_kit(members=6)
    one, two, _ = made.seats()
    new = HashSigner(8, "new")
    admission, beacon = made.round()
    folded = [
        *(made.placed(member) for member in made.members[:3]),
        made.renewal([], [new], [made.submitter], "submitter"),
        admission,
        beacon,
        made.succession([one, new], [one, two]),
        made.adoption([admission, beacon], [one, new]),
        made.settlement(4),
    ]
    state = made.state(*folded)
    again = made.state()
    listed = state.statements()
    assert [again.add(statement) for statement in listed[1:]].count("orphan") == 0
    assert again.statements() == listed
    assert len(listed) == len(folded) + 1
    assert all(state.get(statement.id) == statement for statement in listed)
    assert statements.decode(listed[0].envelope, verify) == listed[0]
