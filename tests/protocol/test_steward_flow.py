"""A shard from claims to verdicts, at one, two and three seats."""

from __future__ import annotations

import pytest

from nexapod.protocol import limits
from tests.protocol.steward_world import World


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


def test_workers_that_wait_for_one_anothers_results_are_given_more_to_run() -> None:
    """Of 160 tasks each wants four of five workers: whoever counted what they have committed would find all full."""
    world = World(3, workers=5, tasks=160, agree=4, max_replicas=5, room=limits.CLAIM_TASKS_MAX, took_ms=300)
    world.claim_all()
    assert world.run(120_000, world.decided)
