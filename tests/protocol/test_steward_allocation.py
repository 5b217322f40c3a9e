"""Who is given which tasks, when, and what seats say of it."""

from __future__ import annotations

from nexapod.protocol import limits
from nexapod.protocol.steward.shard.gathering import Gathering
from nexapod.protocol.wire.messages import Claim, Deliver, Grant, Held, Lease, LeaseItem, Renew, Status
from tests.protocol.kit import Result, make_kit
from tests.protocol.steward_world import Worker, World


def granted(worker: Worker) -> set[int]:
    return {task for message in worker.heard if isinstance(message, Grant) for task in message.tasks}


def among_strangers(workers: int, tasks: int = 12) -> World:
    groups = {number: f"198.51.{number}.0/24" for number in range(workers)}
    kit = make_kit(3, workers, tasks=tasks, grouping="network", groups=groups)
    world = World(3, kit=kit, took_ms=60_000)
    world.seen_groups = dict(world.kit.groups)
    return world


def test_who_comes_first_waits_for_others_before_anything_is_given() -> None:
    world = among_strangers(3)
    first, second, third = world.workers
    first.claim()
    world.run(limits.GATHER_QUIET_MS - 10)
    second.claim()
    world.run(2_000)
    third.claim()
    world.run(20)
    assert not granted(first)
    world.run(limits.GATHER_MOST_MS)
    assert granted(first)
    assert granted(second)
    assert granted(third)


def test_nobody_can_put_the_first_assignment_off_by_coming_late() -> None:
    world = among_strangers(12)
    began = world.now
    for worker in world.workers:
        worker.claim()
        world.run(limits.GATHER_QUIET_MS - 1_000)
        if world.now > began + limits.GATHER_MOST_MS:
            break
    assert granted(world.workers[0])


def test_a_group_that_was_just_admitted_is_waited_for() -> None:
    """The seats of a shard hear of admissions before the workers admitted can have claimed."""
    gathering = Gathering("network")
    over_at = gathering.over_at(1_000, 1)
    assert over_at == 1_000 + limits.GATHER_QUIET_MS
    assert gathering.over_at(2_000, 1) == over_at
    assert gathering.over_at(over_at - 1, 2) == over_at - 1 + limits.GATHER_QUIET_MS
    assert gathering.over_at(over_at, 5) == 1_000 + limits.GATHER_MOST_MS
    over = 1_000 + limits.GATHER_MOST_MS
    assert gathering.over_at(over, 6) <= over, "once over it stays over"
    assert gathering.over_at(over + 1, 60) <= over


def test_a_gate_seat_that_is_mute_and_withholds_its_value_keeps_nobody_out_until_then() -> None:
    assert limits.GATHER_QUIET_MS >= limits.LEADER_MUTE_MS + limits.VALUE_MS
    assert limits.GATHER_QUIET_MS > limits.GATHER_MS + 2 * limits.ROUND_MS, "those who are new wait a round"


def test_on_a_network_of_ones_own_nobody_waits_for_others() -> None:
    world = World(3, workers=3, tasks=12)
    world.workers[0].claim()
    world.run(50)
    assert granted(world.workers[0])


def test_a_lease_that_comes_early_is_granted_when_others_could_have_come() -> None:
    """Else a leader could give its friends everything while they are alone."""
    world = among_strangers(6, tasks=24)
    friend, *others = world.workers
    leader, other = world.holders()[:2]
    items = tuple(LeaseItem(task, friend.peer, None) for task in range(24))
    epoch = world.seats[other].job.seats(0).epoch
    world.drops = lambda sender, to, message: isinstance(message, Lease)
    friend.claim()
    world.flush()
    seat = world.seats[other]
    world.call(seat, lambda: seat.steward.on_message(leader, Lease(world.kit.job, 0, epoch, items)))
    assert seat.steward.leased == 0
    for worker in others:
        worker.claim()
    world.run(limits.GATHER_MOST_MS)
    lottery = seat.job.lottery
    own = {task for task in range(24) if world.kit.groups[friend.peer] in lottery.first(task, lambda group: True, 2)}
    had = set(seat.steward._state.leases.tasks_of(friend.peer))
    assert own <= had
    assert len(had - own) <= 2, "what is let pass beyond its own counts within one message too"


def test_nobody_has_a_lease_of_a_new_shard_by_saying_so() -> None:
    """Leases grow back at seats that were started again, or took over: nobody had any of a new shard."""
    world = among_strangers(6, tasks=4)
    worker = world.workers[0]
    worker.to_seats(Renew(world.kit.job, 0, tuple(Held(task, "running", 1) for task in range(4))))
    commit = world.kit.commit(worker.signer, *(Result(task) for task in range(4)))
    worker.to_seats(Deliver((commit.envelope,)))
    world.flush()
    assert all(seat.steward.leased == 0 for seat in world.seats.values())
    assert not world.seat(0).evidence.commits(0)


def test_leases_grow_back_at_a_seat_that_was_started_again() -> None:
    world = World(3, workers=2, took_ms=30_000)
    world.claim_all()
    world.run(5_000)
    peer = world.holders()[2]
    assert world.seats[peer].steward.leased == 4
    world.restart(peer)
    assert world.seats[peer].steward.leased == 0
    world.claim_all()
    world.run(100)
    assert world.seats[peer].steward.leased == 4


def test_a_lease_of_many_tasks_fills_no_table_beyond_its_bound() -> None:
    world = World(3, workers=1, tasks=100, agree=1, room=100)
    worker = world.workers[0]
    leader, other = world.holders()[:2]
    items = tuple(LeaseItem(task, worker.peer, None) for task in range(100))
    world.send(leader, other, Lease(world.kit.job, 0, world.seats[other].job.seats(0).epoch, items))
    world.flush()
    assert world.seats[other].steward.leased == limits.CLAIM_TASKS_MAX
    assert all(table.size <= table.most for table in world.seats[other].steward.tables())


def test_tasks_that_a_worker_was_never_given_it_cannot_call_done() -> None:
    """Else it would choose its tasks by declining all others."""
    world = World(3, workers=2, tasks=4, agree=1)
    worker = world.workers[0]
    worker.to_seats(Claim(world.kit.job, 0, 1, 4, (), (0, 1, 2), 0))
    world.run(1_000)
    assert granted(worker) == {0, 1, 2, 3}


def test_a_claim_in_a_shard_that_is_decided_is_answered_by_every_seat() -> None:
    world = World(3)
    world.claim_all()
    assert world.run(60_000, world.decided)
    worker = world.workers[0]
    worker.heard.clear()
    worker.claim()
    world.flush()
    told = [message for message in worker.heard if isinstance(message, Status)]
    assert len(told) == 3
    assert all(message.tasks == tuple((task, "decided") for task in range(4)) for message in told)


def test_workers_that_answer_at_once_make_nobody_else_late() -> None:
    """A late task gets one more worker: it would be the one that has ended its own."""
    world = World(3, workers=10, tasks=10, room=4, took_ms=40_000)
    for eager in world.workers[:2]:
        eager.took_ms = 10
    world.claim_all()
    world.run(30_000)
    assert not [name for seat in world.seats.values() for name, _ in seat.traces if name == "task_late"]
    assert world.run(120_000, world.decided)
