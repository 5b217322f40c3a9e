"""A shard from claims to verdicts, at one, two and three seats."""

from __future__ import annotations

import pytest

from tests.protocol3.steward_world import World


@pytest.mark.parametrize("seats", [1, 2, 3])
def test_all_tasks_are_accepted(seats: int) -> None:
    world = World(seats)
    world.claim_all()
    assert world.run(60_000, world.decided)
    for peer in world.holders():
        assert world.outcomes(world.seats[peer]) == ["accepted"] * 4
        assert world.seats[peer].errors == []


def test_of_one_worker_and_one_seat_a_job_of_one_result_is_done() -> None:
    world = World(1, workers=1, agree=1, tasks=3)
    world.claim_all()
    assert world.run(10_000, world.decided)
    assert world.now < 3_000
