"""Messages lost, seats restarted, links cut, in any order: once that ends, every task is decided, and alike."""

from __future__ import annotations

import random

import pytest

from nexapod.protocol.steward.shard.signed import round_of
from nexapod.protocol.wire import fields, statements
from nexapod.sim.keys import verify
from tests.protocol.kit import OTHER_OUTPUT, Result
from tests.protocol.steward_world import World


def disturb(world: World, chance: random.Random) -> None:
    """One thing goes wrong, or right again."""
    peers = [*world.seats, *(worker.peer for worker in world.workers)]
    match chance.randrange(5):
        case 0:
            world.restart(chance.choice(list(world.seats)))
        case 1:
            world.cut.add(frozenset(chance.sample(peers, 2)))
        case 2:
            world.cut.clear()
        case 3:
            lost = chance.random() / 2
            world.drops = lambda sender, to, message: chance.random() < lost
        case 4:
            world.drops = lambda sender, to, message: False


@pytest.mark.parametrize("seed", range(6))
def test_every_task_is_decided_once_the_network_heals(seed: int) -> None:
    chance = random.Random(seed)
    seats = 1 + seed % 3
    world = World(seats, workers=4, tasks=5, room=2, took_ms=700)
    world.workers[0].result = lambda task: Result(task, files=OTHER_OUTPUT)
    world.claim_all()
    for _ in range(12):
        world.run(chance.randrange(3_000))
        disturb(world, chance)
    world.cut.clear()
    world.drops = lambda sender, to, message: False
    assert world.run(600_000, world.decided), [world.outcomes(seat) for seat in world.seats.values()]
    right = Result(0).root
    for seat in world.seats.values():
        assert [seat.evidence.verdict(task).root for task in range(5)] == [right] * 5  # type: ignore[union-attr]
        assert not seat.errors, seat.errors
    assert_no_seat_contradicts_itself(world)


def assert_no_seat_contradicts_itself(world: World) -> None:
    """Of all that it ever saved with its signature no two freezes of a round differ."""
    for peer, seat in world.seats.items():
        signed: dict[tuple[int, int], object] = {}
        for (kind, _), value in sorted(seat.records.items()):
            if kind != "steward.evidence":
                continue
            statement = statements.decode(fields.unpack(value, 1 << 20)[2], verify)
            if statement.kind != "freeze" or peer not in statement.signers:
                continue
            for item in statement.body.items:
                written = round_of(statement.body, item)
                assert signed.setdefault((item.task, item.round), written) == written
