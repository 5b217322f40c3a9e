"""Checkpoints that are shared: who is handed one, and what its result counts for then."""

from __future__ import annotations

from dataclasses import replace

from nexapod.protocol.wire import statements
from nexapod.protocol.wire.messages import Grant
from nexapod.sim.keys import verify
from tests.protocol.kit import Result, make_kit, signed
from tests.protocol.steward_world import Worker, World


def sharing_world() -> World:
    kit = make_kit(3, 4, tasks=1)
    spec = replace(kit.spec, run=replace(kit.spec.run, checkpoint="shared"))
    kit.job_statement = signed(spec, kit.submitter)
    return World(kit=kit, took_ms=20_000)


def handed(worker: Worker) -> list[statements.Statement]:
    grants = [message for message in worker.heard if isinstance(message, Grant)]
    return [statements.decode(envelope, verify) for grant in grants for envelope in grant.checkpoints]


def test_the_checkpoint_of_a_worker_that_is_gone_is_handed_to_the_next() -> None:
    world = sharing_world()
    world.claim_all()
    world.run(3_000)
    gone = next(worker for worker in world.workers if worker.running)
    checkpoint = world.kit.checkpoint(gone.signer, 0)
    gone.deliver(checkpoint)
    world.run(3_000)
    world.leave(gone.peer)
    world.run(3_000)
    successor = next(worker for worker in world.workers if handed(worker))
    assert {one.id for one in handed(successor)} == {checkpoint.id}
    successor.result = lambda task: Result(task, resumed=checkpoint.id)
    assert world.run(60_000, world.decided)
    decision = world.seat(0).evidence.verdict(0)
    assert decision is not None
    assert all(entry.group == entry.worker for entry in decision.frozen.entries)
    assert not any(seat.errors for seat in world.seats.values())


def test_two_results_that_rest_on_one_checkpoint_are_not_enough_whatever_a_seat_has_seen_handed_out() -> None:
    world = sharing_world()
    kit = world.kit
    world.claim_all()
    world.run(3_000)
    author = next(worker for worker in world.workers if worker.running)
    checkpoint = kit.checkpoint(author.signer, 0)
    author.deliver(checkpoint)
    world.run(3_000)
    for worker in world.workers:
        worker.result = lambda task: Result(task, resumed=checkpoint.id)
    author.result = Result
    independent = kit.in_draw(kit.workers, 0)[-1]
    next(w for w in world.workers if w.signer is independent).result = Result
    late = world.holders()[2]
    world.restart(late)
    assert world.run(120_000, world.decided)
    for peer in world.holders():
        evidence = world.seats[peer].evidence
        decision = evidence.verdict(0)
        assert decision is not None
        shown = evidence.shown(0)
        places = {place for pair in decision.item.pairs for place in pair}
        assert len({shown[place].group for place in places}) >= kit.spec.validate.agree
    assert not any(seat.errors for seat in world.seats.values())


def test_nobody_keeps_checkpoints_of_a_task_that_is_decided() -> None:
    world = sharing_world()
    world.claim_all()
    world.run(3_000)
    for worker in world.workers:
        if worker.running:
            worker.deliver(world.kit.checkpoint(worker.signer, 0))
    world.run(1_000)
    assert any(kind == "steward.checkpoint" for kind, _ in world.seat(0).records)
    assert world.run(60_000, world.decided)
    assert not any(kind == "steward.checkpoint" for seat in world.seats.values() for kind, _ in seat.records)


def test_a_checkpoint_of_a_job_that_shares_none_is_an_error() -> None:
    world = World(3, tasks=1, took_ms=20_000)
    world.claim_all()
    world.run(3_000)
    holder = next(worker for worker in world.workers if worker.running)
    holder.deliver(world.kit.checkpoint(holder.signer, 0))
    world.run(100)
    assert [error.partition(":")[0] for error in world.seat(0).errors] == ["bad-checkpoint"]
