"""How many tasks a gang of eager workers decides: a tenth of the peers, whole nodes in whole worlds.

Of a task that a gang has both first places of, nobody learns that it lied. Where it has one, results differ, and
the draw alone says who comes next.
"""

from __future__ import annotations

from math import comb

import pytest

from nexapod.protocol.primitives import PeerId, TaskId
from nexapod.sim.scenarios import colluders
from nexapod.sim.truth import is_right
from nexapod.sim.world import World

SEEDS = range(3)


def decided_by(world: World, gang: set[PeerId]) -> tuple[int, int]:
    """Tasks whose accepted result is the gang's: where nobody else had a place, and all."""
    (job,) = world.jobs
    submitter = world.machines[job.plan.submitter].node
    assert job.id is not None
    assert submitter is not None
    alone = both = 0
    for task in range(job.plan.tasks):
        report = submitter.task_report(job.id, task)
        assert report is not None
        if not is_right(job.draft, TaskId(job.id, task), report.outputs):
            both += 1
            alone += {replica.worker for replica in report.replicas if replica.root is not None} <= gang
    return alone, both


def chance_of_two_among_the_first_three(gang: int, peers: int) -> float:
    return (comb(gang, 2) * (peers - gang) + comb(gang, 3)) / comb(peers, 3)


@pytest.mark.slow
@pytest.mark.long
def test_a_tenth_of_the_peers_has_both_places_of_at_most_two_percent() -> None:
    places = wrong = tasks = 0
    for seed in SEEDS:
        world = World(colluders(seed))
        gang = {machine.peer for machine in world.machines if not machine.honest}
        world.checkers.violations_max = 1_000
        world.run()
        alone, both = decided_by(world, gang)
        places, wrong = places + alone, wrong + both
        tasks += world.jobs[0].plan.tasks
    print(f"both places {places / tasks:.4f}, decided {wrong / tasks:.4f}")
    assert places / tasks <= 0.02
    chance = chance_of_two_among_the_first_three(len(gang), len(world.machines))
    assert wrong / tasks <= 1.5 * chance, "results that differ are decided by who is drawn next"
