"""What a node holds and does grows with what happens there, not with the size of the jobs that it knows."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType

from bus import Bus
from kit import JobKit, make_kit

from nexapod.protocol import limits
from nexapod.protocol.job import JobState
from nexapod.protocol.rules.succession import Seats
from nexapod.protocol.steward.shard import telling
from nexapod.protocol.steward.shard.steward import Steward
from nexapod.protocol.steward.stewardship import Stewardship
from nexapod.protocol.submitter.placing import Placing
from nexapod.protocol.submitter.seating import Moved
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.messages import Claim, Collect, Deliver, Inspect, Reconcile
from nexapod.protocol.wire.reconcile import opening
from nexapod.sim.keys import verify
from tests.protocol.steward_world import World

IDLE_SEAT_BYTES_MAX = 24 * 1024
"""Of the machine of one seat before anybody has spoken of its tasks."""


class Watching(JobState):
    """Notes which shards' seats are asked for."""

    def __init__(self, kit: JobKit, looked_at: list[int]) -> None:
        super().__init__(kit.job_statement, verify)
        self.looked_at = looked_at

    def seats(self, shard: int) -> Seats:
        self.looked_at.append(shard)
        return super().seats(shard)


def big_kit(shards: int) -> JobKit:
    return make_kit(tasks=shards * limits.SHARD_TASKS)


def held_by(action: Callable[[], object]) -> tuple[int, object]:
    """Bytes that are there because of what this has made, and that."""
    tracemalloc.start()
    try:
        made = action()
        return tracemalloc.get_traced_memory()[0], made
    finally:
        tracemalloc.stop()


def calls(action: Callable[[], object]) -> int:
    """How many functions it calls: its work, on any machine."""
    made = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal made
        made += event == "call"

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return made


# --- seats ---------------------------------------------------------------------------------------------------------
def test_a_seat_costs_little_before_anybody_speaks_of_its_tasks() -> None:
    shards = 32
    kit = big_kit(shards)
    host = Bus(kit).host(kit.seats()[0])
    other = kit.seats()[1].peer

    def idle_seats() -> list[Steward]:
        stewards = [Steward(host.ctx, host.job, shard, lambda: True) for shard in range(shards)]
        for shard, steward in enumerate(stewards):
            steward.on_message(kit.submitter.peer, Collect(kit.job, shard, 0))
            steward.on_message(other, Reconcile(kit.job, shard, b"", opening([])))
            steward.on_message(other, Inspect(kit.job, shard, (shard * limits.SHARD_TASKS,)))
            host.ctx.effects.clear()
        return stewards

    idle_seats()  # what is shared is made once
    size, _ = held_by(idle_seats)
    assert size < shards * IDLE_SEAT_BYTES_MAX


def test_a_seat_that_nobody_has_claimed_from_yet_counts_all_its_places_as_open() -> None:
    kit = big_kit(2)
    host = Bus(kit).host(kit.seats(1)[0])
    steward = Steward(host.ctx, host.job, 1, lambda: True)
    wanted = limits.SHARD_TASKS * kit.spec.validate.agree
    assert steward.open_places == wanted
    steward.on_message(kit.workers[0].peer, Claim(kit.job, 1, 1, 1, (), (), 0))
    assert steward.open_places == wanted


def test_workers_that_are_admitted_make_no_member_look_at_all_shards_again() -> None:
    shards = 4 * limits.SCAN_SHARDS
    kit = big_kit(shards)
    host = Bus(kit).host(kit.seats()[0])
    looked_at: list[int] = []

    job = Watching(kit, looked_at)
    stewardship = Stewardship(host.ctx, job, lambda state: "")

    def settle() -> int:
        looked_at.clear()
        for _ in range(20):
            host.ctx.now += limits.STEP_MS
            stewardship.tick()
        return len(set(looked_at))

    assert settle() == shards
    for statement in kit.round():
        assert job.add(statement) == "new"
    stewardship.job_changed()
    assert settle() < 4
    holders = kit.seats(shards - 1)
    moved = kit.succession(holders[:1], [kit.submitter], "submitter", shard=shards - 1)
    assert job.add(moved) == "new"
    stewardship.job_changed()
    assert settle() == shards


# --- the submitter -------------------------------------------------------------------------------------------------
def test_members_that_say_shard_by_shard_that_they_are_ready_cost_as_much_for_each() -> None:
    def readies(shards: int) -> int:
        kit = big_kit(shards)
        host = Bus(kit).host(kit.submitter)
        placing = Placing(host.ctx, host.job)
        for shard in range(shards):
            placing.moved(Moved(None, host.job.seats(shard)))
        said = [(seat.peer, shard) for shard in range(shards) for seat in kit.seats(shard)]

        def say() -> None:
            for peer, shard in said:
                placing.on_ready(peer, shard)

        made = calls(say)
        assert placing.placed
        assert not placing.delivered
        return made

    assert readies(400) < 5 * readies(100)


# --- the draw ------------------------------------------------------------------------------------------------------
def admitted_kit(shards: int, workers: int) -> tuple[JobKit, JobState]:
    kit = make_kit(tasks=shards * limits.SHARD_TASKS, workers=workers)
    return kit, kit.state(*kit.round())


def test_a_worker_that_asks_in_which_rosters_it_is_draws_no_tickets() -> None:
    shards = 64
    _, job = admitted_kit(shards, limits.ROSTER_MAX)
    size, _ = held_by(lambda: [job.lottery.roster(shard) for shard in range(shards)])
    assert size < shards * limits.ROSTER_MAX * 192


def test_the_draws_of_all_tasks_of_a_shard_take_little_room() -> None:
    _, job = admitted_kit(1, limits.ROSTER_MAX)
    size, draws = held_by(lambda: [job.lottery.draw(task) for task in range(limits.SHARD_TASKS)])
    assert size < limits.SHARD_TASKS * limits.ROSTER_MAX * 22
    assert len(set(draws)) == limits.SHARD_TASKS  # type: ignore[call-overload]


# --- admissions ----------------------------------------------------------------------------------------------------
def test_a_round_of_admission_takes_little_room_in_each_of_its_workers() -> None:
    kit = make_kit(workers=limits.ADMISSION_MAX)
    round = kit.round()
    workers = 4
    size, _ = held_by(lambda: [kit.state(*round) for _ in range(workers)])
    assert size < workers * limits.ADMISSION_MAX * 320


def test_a_statement_that_comes_again_is_the_same_while_a_copy_with_other_signatures_is_kept() -> None:
    kit = make_kit()
    first, second = kit.quorum()
    admission = kit.admission()
    ours = statements.keep_signers(statements.decode(admission.envelope, verify), [first.peer])
    gc.collect()
    theirs = statements.decode(statements.keep_signers(admission, [second.peer]).envelope, verify)
    again = statements.decode(admission.envelope, verify)
    assert ours.body is theirs.body is again.body
    assert set(statements.merge(ours, theirs).signers) == {first.peer, second.peer}


# --- claims --------------------------------------------------------------------------------------------------------
def test_a_claim_stands_while_what_was_granted_on_it_is_committed() -> None:
    world = World(3, workers=2, tasks=12, room=2)
    for worker in world.workers:
        worker.claim()
        worker.claim = lambda: None  # type: ignore[method-assign]
    assert world.run(20_000, world.decided)
    assert world.counted["Claim"] == 2 * 3


def test_no_more_than_its_room_is_granted_on_a_claim_and_nothing_on_one_without_room() -> None:
    world = World(3, workers=3, tasks=40, room=3)
    most = dict.fromkeys([worker.peer for worker in world.workers], 0)

    def look() -> bool:
        for worker in world.workers:
            most[worker.peer] = max(most[worker.peer], len(worker.running))
        return world.decided()

    idle, *others = world.workers
    for worker in others:
        worker.claim()
        worker.claim = lambda: None  # type: ignore[method-assign]
    idle.room = 0
    idle.claim()
    assert world.run(60_000, look)
    assert list(most.values()) == [0, 3, 3]


# --- what seats tell workers ---------------------------------------------------------------------------------------
def test_verdicts_go_with_the_freezes_that_follow_and_the_last_ones_soon() -> None:
    world = World(3, workers=2, tasks=24, room=2, took_ms=200)
    world.claim_all()
    assert world.run(30_000, world.decided)
    decided_at = world.now
    told = [
        [statements.decode(envelope, verify) for envelope in message.envelopes]
        for worker in world.workers
        for message in worker.heard
        if isinstance(message, Deliver)
    ]
    alone = sum({one.kind for one in some} == {"verdict"} for some in told)
    along = sum({one.kind for one in some} == {"freeze", "verdict"} for some in told)
    assert along > alone
    world.run(telling.HELD_MS + 1)
    assert world.now <= decided_at + telling.HELD_MS + 1
    for worker in world.workers:
        messages = [message for message in worker.heard if isinstance(message, Deliver)]
        heard = [statements.decode(envelope, verify) for message in messages for envelope in message.envelopes]
        judged = {item.task for one in heard if one.kind == "verdict" for item in one.body.items}
        assert judged == set(range(24))
