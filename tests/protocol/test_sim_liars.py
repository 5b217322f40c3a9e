"""Every liar of the simulator attacks where it matters, and honest peers' work is only slowed down by it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nexapod.protocol.primitives import Millis
from nexapod.sim.liars import KINDS
from nexapod.sim.liars.seats import BeaconAborter
from nexapod.sim.liars.workers import Copycat
from nexapod.sim.plan import JobPlan, Network, PeerPlan, Plan
from nexapod.sim.scenarios import simulate
from nexapod.sim.world import World
from tests.protocol.liar_worlds import Place, base, job_of, liars_of, settle, with_liars, world_of

LONG = ("poisoner", "namesake")
"""They matter only where there are checkpoints, which tasks leave after ten seconds."""
AT: dict[str, Place] = {
    "mute-seat": "leader",
    "lying-seat": "leader",
    "hasty-seat": "leader",
    "stubborn-seat": "leader",
    "two-faced-seat": "leader",
    "beacon-withholder": "leader",
    "beacon-aborter": "leader",
    "inventor": "leader",
    "copycat": "leader",
    "usurper": "member",
    "walker": "member",
    "hoarder": "seat",
    "filler": "seat",
    "poisoner": "leader",
    "namesake": "leader",
    "mangler": "seat",
    "prober": "leader",
}
"""Where; the others are strangers to the panel."""
SLOWER_MAX: dict[str, Millis] = {
    "late": 20_000,
    "silent": 20_000,
    "hoarder": 20_000,
    "squatter": 20_000,
    "mute-seat": 20_000,
    "stubborn-seat": 20_000,
    "lying-seat": 20_000,
    "withholder": 50_000,
    "equivocator": 60_000,
    "filler": 40_000,
    "prober": 30_000,
    "poisoner": 120_000,
    "namesake": 120_000,
}
"""The longest that twelve tasks of 0.4 s take: two honest timeouts, or three, where somebody withholds something."""


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_liar_attacks_and_the_job_settles(kind: str) -> None:
    job = job_of(task_ms=12_000, checkpoints=True, tasks=16) if kind in LONG else job_of()
    world = world_of(kind, AT.get(kind, "stranger"), job=job)
    took = settle(world)
    (liar,) = liars_of(world)
    assert took <= SLOWER_MAX.get(kind, 10_000)
    if isinstance(liar, Copycat):
        assert liar.copied > 0
    elif isinstance(liar, BeaconAborter):
        assert liar.shown + liar.attacks > 0
    else:
        assert liar.attacks > 0


def test_a_leech_without_a_part_in_anything_is_not_answered_at_length() -> None:
    plan, places = base()
    world = World(with_liars(plan, "leech", places.strangers[:1], steward=False, works=False))
    settle(world)
    assert liars_of(world)[0].attacks > 0


def test_two_seats_of_one_gang_that_lie_about_judgements_only_delay() -> None:
    """A quorum of the seats can hold a shard up. What it signs settles nothing that its evidence does not come to."""
    world = world_of("lying-seat", "leader", "seat")
    world.run_until(60_000)
    assert sum(liar.attacks for liar in liars_of(world)) > 0
    wrong = [v for v in world.checkers.violations if v.invariant in ("wrong-output", "wrong-outcome", "certificate")]
    assert wrong == []


def test_seats_that_work_count_their_own_results_where_a_group_is_a_block() -> None:
    """No seat sees an address of its own: of two that work neither would count its own, and no quorum both."""
    plan, places = base()
    peers = tuple(
        replace(peer, addr=f"/ip4/{30 + i}.8.{i}.1/tcp/4001", works=i in places.seats)
        for i, peer in enumerate(plan.peers)
    )
    world = World(replace(plan, peers=peers, network=replace(plan.network, grouping="network")))
    settle(world)


def test_a_leader_that_keeps_proposing_what_nobody_can_sign_is_passed_over() -> None:
    """Its clock is fast, so that the next such proposal is there before the time for which a mute one is waited for."""
    plan, places = base()
    world = World(with_liars(plan, "stubborn-seat", places.seats[:1], drift=20_000))
    assert settle(world) <= 20_000


def test_two_seats_go_on_though_each_has_proposed_the_round_and_the_objections_are_lost() -> None:
    speeds = [1186, 709, 901, 945, 1089, 1066, 901, 1279]
    peers = tuple(PeerPlan(speed=speed, liar="usurper" if i == 5 else None) for i, speed in enumerate(speeds))
    network = Network(loss=201, duplication=50, straggling=100)
    job = JobPlan(0, 2_000, 3, 400, max_replicas=4)
    plan = Plan("seated", 3600, peers, (job,), network, heal_at=25_000, settle_within_ms=150_000)
    assert not simulate(plan).violations
