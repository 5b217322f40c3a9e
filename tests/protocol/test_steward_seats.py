"""What happens to a shard when its seats change, and how seats keep alike."""

from __future__ import annotations

from nexapod.protocol.steward.shard.steward import Steward
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.messages import Collect, Decided, Deliver, Lease, LeaseItem, Message, Reconcile
from tests.protocol.kit import Result
from tests.protocol.steward_world import World


def replace_seat(world: World, place: int, *, shard: int = 0) -> None:
    """The seat at this place leaves, and the spare member takes over, by the others' word."""
    kit = world.kit
    holders = list(world.holders())
    staying = [peer for peer in holders if peer != holders[place]]
    spare = next(member.peer for member in kit.members if member.peer not in holders)
    world.leave(holders[place])
    signers = [kit.signer(peer) for peer in staying]
    succession = kit.succession([kit.signer(peer) for peer in (*staying, spare)], signers)
    world.tell_all(succession)


def test_what_was_decided_is_adopted_by_the_next_epoch() -> None:
    world = World(3, spare=1, workers=3)
    world.claim_all()
    assert world.run(20_000, world.decided)
    replace_seat(world, 0)
    assert not world.seat(0).job.adopted(0)
    assert world.run(60_000, world.decided)
    assert world.seat(0).job.adopted(0)
    assert all(seat.job.group(world.workers[0].peer) for seat in world.seats.values() if seat.ctx.me in world.holders())


def test_whoever_collects_what_was_adopted_is_told_by_what_it_counts() -> None:
    world = World(3, spare=1, workers=3)
    world.claim_all()
    assert world.run(20_000, world.decided)
    replace_seat(world, 0)
    assert world.run(60_000, world.decided)
    # What the submitter was told when the seats adopted it is lost.
    world.collected.clear()
    world.send(world.kit.submitter.peer, world.holders()[0], Collect(world.kit.job, 0, 0))
    world.flush()
    kinds = [statement.kind for statement in world.collected]
    assert kinds.index("adoption") < kinds.index("verdict")
    world.collected.clear()
    world.run(10_000)
    assert "adoption" not in [statement.kind for statement in world.collected]


def test_seats_that_all_leave_hand_on_what_they_have_decided_when_they_are_back() -> None:
    world = World(2, spare=2, workers=3)
    kit, old = world.kit, world.holders()
    world.claim_all()
    assert world.run(20_000, world.decided)
    for peer in old:
        world.leave(peer)
    new = [member for member in kit.members if member.peer not in old]
    world.tell_all(kit.succession(new, [kit.submitter], "submitter"))
    world.run(2_000)
    assert not world.seat(0).evidence.decided
    world.come_back(old[0])
    assert world.run(2_000, world.decided)
    assert world.seat(0).job.adopted(0)


def test_results_that_only_former_seats_saw_are_counted_when_their_workers_say_them_again() -> None:
    world = World(3, spare=3, workers=2, tasks=1)
    kit, old = world.kit, world.holders()
    world.claim_all()
    assert world.run(20_000, world.decided)
    evidence = [one for one in world.seat(0).evidence.statements_of([0]) if one.kind in ("commit", "reveal")]
    for peer in old:
        world.leave(peer)
    new = [member for member in kit.members if member.peer not in old]
    world.tell_all(kit.succession(new, [kit.submitter], "submitter"))
    for statement in sorted(evidence, key=lambda one: one.kind):
        for member in new:
            seat = world.seats[member.peer]
            world.call(seat, lambda s=seat, one=statement: s.steward.on_statement(one, old[0]))  # type: ignore[misc]
    assert not world.seat(0).evidence.decided
    assert world.run(120_000, world.decided)


def test_a_seat_that_comes_back_adopts_what_was_decided_without_it() -> None:
    world = World(2, workers=3)
    kit = world.kit
    staying, away = (kit.signer(peer) for peer in world.holders())
    world.leave(away.peer)
    alone = kit.succession([staying], [kit.submitter], "submitter")
    world.tell_all(alone)
    world.claim_all()
    assert world.run(20_000, world.decided)
    world.come_back(away.peer)
    world.tell_all(kit.succession([staying, away], [staying], epoch=2, previous=alone.id))
    assert world.run(30_000, world.decided)
    assert world.seats[away.peer].job.adopted(0)


def test_seats_keep_alike_what_they_have_adopted() -> None:
    world = World(3, spare=1, workers=3)
    world.claim_all()
    assert world.run(20_000, world.decided)
    late = world.holders()[2]
    world.drops = lambda sender, to, message: to == late and sender != late and _brings_adoption(message)
    replace_seat(world, 0)
    world.run(20_000)
    assert not world.seats[late].job.adopted(0)
    world.drops = lambda sender, to, message: False
    assert world.run(60_000, lambda: bool(world.seats[late].job.adopted(0)))


def _brings_adoption(message: Message) -> bool:
    if not isinstance(message, Deliver):
        return False
    return any(statements.read(envelope).kind == "adoption" for envelope in message.envelopes)


def test_a_lease_of_before_is_not_granted_again_by_seats_that_have_not_adopted_who_admitted_its_worker() -> None:
    world = World(3, spare=1, workers=3, took_ms=30_000)
    world.claim_all()
    world.run(1_000)
    late = world.seats[world.holders()[2]]
    [worker, *_] = [one.peer for one in world.workers if late.steward._state.leases.tasks_of(one.peer)]
    items = tuple(LeaseItem(task, worker, None) for task in late.steward._state.leases.tasks_of(worker))
    world.drops = lambda sender, to, message: _brings_adoption(message)
    replace_seat(world, 0)
    world.run(100)
    assert late.steward._state.leases.tasks_of(worker)
    assert late.steward._state.admitted(worker) is None
    other, epoch = world.holders()[0], late.job.seats(0).epoch
    world.call(late, lambda: late.steward.on_message(other, Lease(world.kit.job, 0, epoch, items)))
    world.drops = lambda sender, to, message: False
    assert world.run(120_000, world.decided)


def test_work_goes_on_across_a_change_of_seats() -> None:
    world = World(3, spare=1, workers=3, tasks=6, room=2, took_ms=2_000)
    world.claim_all()
    world.run(3_000)
    replace_seat(world, 1)
    assert world.run(120_000, world.decided)


def test_a_frozen_task_is_finished_by_the_next_epoch() -> None:
    world = World(3, spare=1, workers=2, tasks=1)
    for worker in world.workers:
        worker.reveals = False
    world.claim_all()
    world.run(3_000)
    assert world.seat(0).evidence.frozen(0) is not None
    replace_seat(world, 0)
    world.run(2_000)
    for worker in world.workers:
        worker.reveals = True
        worker.renew()
    assert world.run(60_000, world.decided)


def test_a_former_seat_neither_proposes_nor_grants() -> None:
    world = World(3, spare=1, workers=3)
    former = world.seats[world.holders()[0]]
    replace_seat(world, 0)
    world.away.clear()
    world.claim_all()
    assert world.run(60_000, world.decided)
    assert former.steward.leased == 0


def test_a_seat_that_was_away_catches_up() -> None:
    world = World(3, workers=3)
    absent = world.holders()[2]
    world.leave(absent)
    world.claim_all()
    assert world.run(20_000, lambda: world.decided(seats=2))
    world.come_back(absent)
    assert world.run(10_000, world.decided)
    world.run(120_000)
    assert len({tuple(world.seats[peer].evidence.ids()) for peer in world.holders()}) == 1


def test_seats_that_are_alike_fall_silent() -> None:
    world = World(3, workers=3)
    world.claim_all()
    assert world.run(20_000, world.decided)
    world.run(60_000)
    before = world.counted.get("Reconcile", 0)
    world.run(60_000)
    assert world.counted.get("Reconcile", 0) - before <= 2


def test_ranges_of_a_stranger_are_not_answered() -> None:
    world = World(3, workers=2)
    world.claim_all()
    world.run(20_000, world.decided)
    seat = world.seat(0)
    before = dict(world.counted)
    message = Reconcile(world.kit.job, 0, b"", ())
    world.call(seat, lambda: seat.steward.on_message(world.workers[0].peer, message))
    assert world.counted == before


def test_the_submitter_is_sent_all_evidence_and_then_what_is_new() -> None:
    world = World(3, workers=3, tasks=8, room=2)
    world.send(world.kit.submitter.peer, world.holders()[0], Collect(world.kit.job, 0, 0))
    world.claim_all()
    assert world.run(60_000, world.decided)
    world.run(1_000)
    said = world.last_decided
    assert said is not None
    assert said.decided == 8
    evidence = world.start(world.kit.members[0]).evidence
    for statement in world.collected:
        evidence.add(statement)
    assert evidence.decided == 8
    ids = [statement.id for statement in world.collected]
    assert len(ids) == len(set(ids))


def test_a_version_of_before_a_restart_brings_everything() -> None:
    world = World(3, workers=3)
    world.claim_all()
    assert world.run(20_000, world.decided)
    peer = world.holders()[0]
    world.restart(peer)
    world.send(world.kit.submitter.peer, peer, Collect(world.kit.job, 0, 1_000))
    world.flush()
    assert {one.kind for one in world.collected} == {"commit", "freeze", "reveal", "verdict"}


def test_nobody_but_the_submitter_collects() -> None:
    world = World(3, workers=3)
    world.claim_all()
    assert world.run(20_000, world.decided)
    world.send(world.workers[0].peer, world.holders()[0], Collect(world.kit.job, 0, 0))
    world.flush()
    assert not any(isinstance(message, Decided) for message in world.workers[0].heard)


def test_two_results_of_one_worker_for_a_task_are_a_fault() -> None:
    world = World(3, workers=3, tasks=1, took_ms=500)
    liar = world.workers[0]
    liar.room = 1
    world.claim_all()
    world.run(100)
    other = world.kit.commit(liar.signer, Result(0, exit=1, outcome="failed"))
    world.run(450)
    if liar.running:
        liar.deliver(other)
        world.run(1_000)
        assert liar.peer in world.seat(0).job.faults()
    assert world.run(60_000, world.decided)


def test_messages_cost_nothing_when_repeated() -> None:
    world = World(3, workers=3)
    twice: list[Message] = []

    def again(sender: object, to: object, message: Message) -> bool:
        if isinstance(message, Deliver) and message not in twice and len(twice) < 200:
            twice.append(message)
            world.queue.append((sender, to, message))  # type: ignore[arg-type]
        return False

    world.drops = again
    world.claim_all()
    assert world.run(20_000, world.decided)


def test_a_closed_job_stops_its_workers() -> None:
    world = World(3, workers=2, took_ms=10_000)
    world.claim_all()
    world.run(1_000)
    world.tell_all(world.kit.cancel())
    world.flush()
    steward: Steward = world.seat(0).steward
    assert steward.deadline is None
    assert any(type(message).__name__ == "Status" for message in world.workers[0].heard)
