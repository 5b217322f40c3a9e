"""How long a small job takes on a network of one's own, where nobody is waited for (docs/protocol.md, section 5)."""

from __future__ import annotations

import statistics

import pytest

from nexapod.protocol.primitives import Millis
from nexapod.sim.plan import JobPlan, Network, PeerPlan, Plan
from nexapod.sim.world import World

TASK_MS: Millis = 10


def settled_after(peers: int, seed: int) -> Millis:
    """One trivial task, from `Submit` to its settlement. Each of its three fetches takes up to 60 ms here."""
    jobs = (JobPlan(0, 5_000, 1, TASK_MS),)
    plan = Plan("latency", seed, tuple(PeerPlan() for _ in range(peers)), jobs, Network(latency_ms=(1, 1)))
    world = World(plan)
    world.run_until(7_000)
    (job,) = world.jobs
    assert job.settled_at is not None
    assert job.submitted_at is not None
    return job.settled_at - job.submitted_at


@pytest.mark.parametrize("peers", [3, 5, 10])
def test_one_trivial_task_is_settled_within_three_tenths_of_a_second(peers: int) -> None:
    assert statistics.median(settled_after(peers, seed) for seed in range(5)) <= 300
