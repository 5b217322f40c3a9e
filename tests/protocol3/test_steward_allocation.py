"""Who is given which tasks, when, and what seats say of it."""

from __future__ import annotations

from nexapod.protocol.v3 import limits
from nexapod.protocol.v3.wire.messages import Claim, Grant, Lease, LeaseItem, Status
from tests.protocol3.steward_world import Worker, World


def granted(worker: Worker) -> set[int]:
    return {task for message in worker.heard if isinstance(message, Grant) for task in message.tasks}


def test_who_comes_first_waits_for_others_before_anything_is_given() -> None:
    world = World(3, workers=3, tasks=12)
    first, second, third = world.workers
    first.claim()
    world.run(limits.ASSIGN_FIRST_MS - 10)
    second.claim()
    world.run(limits.ASSIGN_FIRST_MS - 10)
    third.claim()
    assert not granted(first)
    world.run(limits.ASSIGN_FIRST_MS + 10)
    assert granted(first)
    assert granted(second)
    assert granted(third)


def test_nobody_can_put_the_first_assignment_off_by_coming_late() -> None:
    world = World(3, workers=12, tasks=12)
    began = world.now
    for worker in world.workers:
        worker.claim()
        world.run(limits.ASSIGN_FIRST_MS - 50)
        if world.now > began + limits.ASSIGN_FIRST_MAX_MS:
            break
    assert granted(world.workers[0])


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
    world.run(limits.ASSIGN_FIRST_MAX_MS)
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
