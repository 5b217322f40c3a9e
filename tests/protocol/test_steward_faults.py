"""What happens to a shard when seats and workers fail, lie, or come back."""

from __future__ import annotations

import pytest

from nexapod.protocol import limits
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.wire.messages import Deliver, Grant, Lease, LeaseItem, Message, Release, Renew, Status
from tests.protocol.kit import OTHER_OUTPUT, Result
from tests.protocol.steward_world import World


def test_the_next_seat_leads_when_the_leader_is_away() -> None:
    world = World(3)
    world.leave(world.holders()[0])
    world.claim_all()
    assert world.run(10_000, world.decided)


def test_a_leader_that_says_nothing_is_passed_over() -> None:
    world = World(3)
    mute = world.holders()[0]
    world.drops = lambda sender, to, message: sender == mute
    world.claim_all()
    assert world.run(30_000, lambda: world.decided(seats=2))


def test_a_leader_without_the_workers_is_passed_over() -> None:
    world = World(3)
    leader = world.holders()[0]
    world.cut |= {frozenset((leader, worker.peer)) for worker in world.workers}
    world.claim_all()
    assert world.run(30_000, world.decided)


def test_a_worker_cut_off_from_one_seat_still_counts() -> None:
    world = World(3, workers=2)
    world.cut.add(frozenset((world.holders()[1], world.workers[0].peer)))
    world.claim_all()
    assert world.run(30_000, world.decided)


def test_two_seats_that_see_different_workers_do_not_freeze() -> None:
    world = World(2, workers=2)
    world.cut.add(frozenset((world.holders()[0], world.workers[0].peer)))
    world.claim_all()
    assert not world.run(60_000, lambda: world.decided(tasks=1))
    world.cut.clear()
    assert world.run(120_000, world.decided)


def test_commits_that_one_of_two_seats_has_not_seen_are_left_out() -> None:
    world = World(2, workers=3, tasks=1)
    world.claim_all()
    world.run(500)
    unseen = next(worker for worker in world.workers if worker.running)
    world.cut.add(frozenset((world.holders()[1], unseen.peer)))
    assert world.run(60_000, world.decided)


def test_the_tasks_of_a_worker_that_leaves_are_open_at_once() -> None:
    world = World(3, workers=3, agree=2, tasks=2, room=1, took_ms=5_000)
    world.claim_all()
    world.run(1_000)
    gone = next(worker for worker in world.workers if worker.running)
    spare = next(worker for worker in world.workers if not worker.done and worker is not gone)
    world.leave(gone.peer)
    world.claim_all()
    assert world.run(60_000, world.decided)
    assert spare.done


def test_a_worker_comes_back_with_its_result() -> None:
    world = World(3, workers=2, tasks=1, took_ms=5_000)
    world.claim_all()
    world.run(1_000)
    worker = world.workers[0]
    world.leave(worker.peer)
    world.run(1_000)
    world.come_back(worker.peer)
    worker.renew()
    assert world.run(20_000, world.decided)


def test_a_withheld_result_is_replaced_by_another_groups() -> None:
    world = World(3, workers=3, tasks=1)
    world.workers[0].reveals = False
    world.workers[1].reveals = False
    world.claim_all()
    assert not world.run(15_000, world.decided)
    world.workers[1].reveals = True
    assert world.run(120_000, world.decided)


def test_results_that_differ_bring_a_third_group() -> None:
    world = World(3, workers=4, tasks=3)
    world.workers[0].result = lambda task: Result(task, files=OTHER_OUTPUT)
    world.claim_all()
    assert world.run(60_000, world.decided)
    assert world.outcomes(world.seat(0)) == ["accepted"] * 3
    roots = {world.seat(0).evidence.verdict(task).root for task in range(3)}  # type: ignore[union-attr]
    assert roots == {Result(0).root}


def test_a_task_fails_when_nobody_else_would_run_it() -> None:
    world = World(3, workers=2, tasks=1)
    for worker in world.workers:
        worker.result = lambda task: Result(task, outcome="failed", exit=3, reason="no such file")
    world.claim_all()
    world.collect()
    assert world.run(60_000, world.decided)
    assert world.outcomes(world.seat(0)) == ["failed"]
    (view,) = world.seat(0).steward.views([0])
    assert view.state == "failed"
    assert {(exit_status, reason) for _, exit_status, reason in view.notes} == {(3, "no such file")}


@pytest.mark.parametrize("max_replicas", [2, 5])
def test_a_worker_that_never_ends_holds_no_failure_up_for_as_long_as_a_task_may_run(max_replicas: int) -> None:
    world = World(3, workers=3, tasks=1, max_replicas=max_replicas)
    assert world.kit.spec.limits.wall_ms > 1_000_000
    first, second, silent = sorted(world.workers, key=lambda worker: world.kit.place(worker.signer, 0), reverse=True)
    for worker in (first, second):
        worker.result = lambda task: Result(task, outcome="failed", exit=3)
    silent.result = lambda task: None
    world.claim_all()
    assert world.run(200_000, world.decided)
    assert world.outcomes(world.seat(0)) == ["failed"]


def test_the_submitter_hears_of_the_first_failure_before_any_verdict() -> None:
    world = World(3, workers=2, tasks=1)
    for worker in world.workers:
        worker.result = lambda task: Result(task, outcome="failed", exit=3)
    world.claim_all()
    world.run(5_000)
    assert {one.kind for one in world.collected} == {"commit", "reveal"}
    assert not world.decided()


def test_a_seat_restarted_from_what_it_saved_goes_on() -> None:
    world = World(2, workers=2, tasks=2, took_ms=3_000)
    world.claim_all()
    world.run(1_000)
    for peer in world.holders():
        world.restart(peer)
    world.claim_all()
    assert world.run(30_000, world.decided)
    again = world.restart(world.holders()[0])
    assert again.evidence.decided == 2


def test_a_seat_never_signs_two_freezes_of_a_round_across_a_crash() -> None:
    world = World(2, workers=3, tasks=1, agree=2)
    leader, other = world.holders()
    world.drops = lambda sender, to, message: sender == leader and to == other and isinstance(message, Deliver)
    world.claim_all()
    world.run(1_500)
    before = set(world.seats[leader].records)
    world.restart(leader)
    world.drops = lambda sender, to, message: False
    world.claim_all()
    assert world.run(60_000, world.decided)
    assert before <= set(world.seats[leader].records)


def test_a_lease_that_is_only_claimed_by_renewing_is_not_given_to_a_stranger() -> None:
    world = World(3, workers=2)
    stranger = PeerId("12D3KooWStranger")
    seat = world.seat(0)
    world.call(seat, lambda: seat.steward.on_message(stranger, Renew(world.kit.job, 0, ())))
    assert seat.steward.leased == 0


def test_a_task_given_back_as_impossible_goes_to_others() -> None:
    world = World(3, workers=3, tasks=1)
    refusing = world.workers[0]
    refusing.result = lambda task: None
    world.claim_all()
    world.run(100)
    if refusing.granted:
        refusing.running.clear()
        refusing.granted.clear()
        refusing.to_seats(Release(world.kit.job, 0, (0,), True, "no GPU"))
    assert world.run(30_000, world.decided)


def test_outputs_that_nobody_gives_count_as_withheld() -> None:
    world = World(3, workers=4, tasks=1)
    for seat in world.seats.values():
        seat.blobs = lambda ref: False
    world.claim_all()
    assert not world.run(10_000, world.decided)
    world.run(30_000)
    assert any(name == "outputs_withheld" for name, _ in world.seat(0).traces)
    for seat in world.seats.values():
        seat.blobs = lambda ref: True
    assert world.run(300_000, world.decided)


def test_a_lost_answer_to_a_proposal_is_given_again() -> None:
    world = World(2, workers=2, tasks=1)
    leader, other = world.holders()
    lost: list[Message] = []

    def drop_first(sender: PeerId, to: PeerId, message: Message) -> bool:
        if sender == other and to == leader and isinstance(message, Deliver) and not lost:
            lost.append(message)
            return True
        return False

    world.drops = drop_first
    world.claim_all()
    assert world.run(20_000, world.decided)
    assert lost


def test_a_worker_that_missed_the_freeze_hears_of_it_when_it_renews() -> None:
    world = World(3, workers=2, tasks=1)
    deaf = world.workers[0].peer
    world.drops = lambda sender, to, message: to == deaf and isinstance(message, Deliver)
    world.claim_all()
    world.run(5_000)
    assert not world.decided()
    world.drops = lambda sender, to, message: False
    world.workers[0].renew()
    assert world.run(5_000, world.decided)
    assert any(isinstance(message, Status) for message in world.workers[0].heard)


def test_nobody_is_granted_a_task_of_its_own_group_twice() -> None:
    world = World(3, workers=3, tasks=4)
    world.claim_all()
    assert world.run(20_000, world.decided)
    for worker in world.workers:
        grants = [m for m in world.workers[0].heard if isinstance(m, Grant)]
        assert len(grants) <= 3 * 4, worker.peer


def test_one_lease_message_gives_a_worker_no_more_than_it_may_have() -> None:
    world = World(2, workers=3, tasks=100, room=64)
    worker, seat = world.workers[0].peer, world.seat(1)
    items = tuple(LeaseItem(task, worker, None) for task in range(100))
    world.send(world.holders()[0], seat.ctx.me, Lease(world.kit.job, 0, 0, items))
    world.flush()
    assert 0 < seat.steward.leased <= limits.CLAIM_TASKS_MAX


def test_commits_of_a_worker_seen_in_another_group_do_not_count() -> None:
    world = World(3, workers=2, tasks=1)
    world.seen_groups[world.workers[0].peer] = "elsewhere"
    world.claim_all()
    assert not world.run(30_000, lambda: world.decided(seats=1))
    assert all(seat.steward.leased <= 1 for seat in world.seats.values())


def test_a_bounded_number_of_messages_a_task() -> None:
    world = World(3, workers=4, tasks=16, room=4)
    world.claim_all()
    assert world.run(60_000, world.decided)
    said = sum(world.counted.values())
    assert said / 16 < 30, world.counted
    assert limits.BATCH_MS
