"""Directed worlds: one thing goes wrong in each, and the name says what must come of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from worlds import plan, run, stewards, traces, with_liars

from nexapod.sim.plan import Clog, Crash, Network, Partition, Pause, PeerPlan
from nexapod.sim.scenarios import quiet, result_of, simulate
from nexapod.sim.world import World


def test_a_job_settles_on_a_quiet_network() -> None:
    result = run(plan())
    assert (result.settled, result.failed) == (12, 0)
    assert traces(result)["run"] == 24, "no task ran more often than its two replicas"


def test_a_task_that_fails_everywhere_fails_and_the_others_settle() -> None:
    result = run(plan(failing=(3, 5)))
    assert (result.settled, result.failed) == (10, 2)


def test_two_wrong_results_cost_replicas_only() -> None:
    result = run(with_liars(plan(peers=9), p3="wrong", p5="wrong"))
    assert result.settled == 12
    assert traces(result)["run"] > 24, "the liars were caught by further replicas"


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_copycat_cannot_settle_a_wrong_result(seed: int) -> None:
    base = with_liars(plan(peers=7, tasks=20, seed=seed), p3="wrong", p5=PeerPlan(liar="copycat", serves=False))
    assert run(base).settled == 20


def test_a_copycat_that_is_a_steward_cannot_settle_junk() -> None:
    base = plan(peers=7, tasks=20)
    kept = [i for i in stewards(base) if i != 0]
    assert run(with_liars(base, **{f"p{kept[0]}": "copycat"})).settled == 20  # type: ignore[arg-type]


def test_sybils_in_one_operator_group_have_one_vote() -> None:
    sybils = {f"p{i}": PeerPlan(liar="sybil", addr=f"/ip4/93.184.216.{i}/tcp/4001", serves=False) for i in (3, 4, 5)}
    assert run(with_liars(plan(peers=10, tasks=20), **sybils)).settled == 20


def test_a_silent_worker_costs_time_only() -> None:
    assert run(with_liars(plan(), p4="silent")).settled == 12


def test_a_hoarder_holds_up_a_job_only_so_long() -> None:
    result = run(with_liars(plan(wall_ms=30_000), p4="hoarder"))
    assert result.settled == 12
    assert result.lag_ms < 300_000


def test_an_equivocator_is_proven_at_fault_and_nobody_else() -> None:
    result = run(with_liars(plan(tasks=20), p4="equivocator"))
    assert result.settled == 20
    assert traces(result)["fault_proven"] >= 1


def test_late_results_neither_block_nor_spoil_a_task() -> None:
    assert run(with_liars(plan(), p4="late")).settled == 12


def test_replayed_and_damaged_frames_change_nothing() -> None:
    assert run(with_liars(plan(peers=9), p3="replayer", p6="garbage")).settled == 12


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_lying_steward_decides_nothing(seed: int) -> None:
    base = plan(seed=seed)
    liar = next(i for i in stewards(base) if i != 0)
    assert run(with_liars(base, **{f"p{liar}": "steward"})).settled == 12  # type: ignore[arg-type]


def test_the_job_settles_when_the_submitter_vanishes_for_good() -> None:
    result = run(replace(plan(vanishes="for-good"), settle_within_ms=120_000))
    assert traces(result)["settled"] >= 2 * 12, "a majority of the stewards settled every task"


def test_a_submitter_that_comes_back_collects() -> None:
    result = run(plan(vanishes="for-a-while"))
    assert result.settled == 12
    assert result.crashes == 1


def test_all_three_stewards_crash_and_restart() -> None:
    base = plan(tasks=20)
    crashes = tuple(Crash(3_500 + 50 * n, i, 4_000) for n, i in enumerate(stewards(base)))
    result = run(replace(base, crashes=crashes, heal_at=10_000))
    assert (result.settled, result.crashes) == (20, 3)


def test_two_of_three_stewards_never_come_back() -> None:
    base = plan(tasks=20)
    gone = [i for i in stewards(base) if i != 0][:2]
    crashes = tuple(Crash(4_000, i, None) for i in gone)
    assert run(replace(base, crashes=crashes, heal_at=5_000)).settled == 20


def test_all_stewards_but_the_submitter_never_come_back() -> None:
    base = plan(peers=10, tasks=20)
    crashes = tuple(Crash(4_000, i, None) for i in stewards(base) if i != 0)
    assert run(replace(base, crashes=crashes, heal_at=5_000)).settled == 20


def test_everybody_crashes_at_once_and_every_day_again() -> None:
    base = plan(tasks=20)
    crashes = tuple(Crash(at + 7 * i, i, 1_000 + 300 * i) for at in (3_500, 12_000, 21_000) for i in range(8))
    assert run(replace(base, crashes=crashes, heal_at=30_000)).settled == 20


def test_a_partition_heals_and_one_verdict_stands() -> None:
    base = plan(peers=10, tasks=20)
    halves = frozenset(stewards(base)[:2]) | {1, 2}
    cut = Partition(3_000, 43_000, halves)
    assert run(replace(base, partitions=(cut,), heal_at=45_000)).settled == 20


def test_a_steward_that_cannot_be_heard_does_not_stop_the_job() -> None:
    base = plan()
    deaf = next(i for i in stewards(base) if i != 0)
    clogs = tuple(Clog(1_500, 60_000, deaf, i) for i in range(8) if i != deaf)
    result = run(replace(base, clogs=clogs, heal_at=0))
    assert result.lag_ms < 40_000, "the other two are a majority"


def test_a_machine_that_sleeps_loses_its_lease_and_nothing_else() -> None:
    base = replace(plan(task_ms=5_000), pauses=tuple(Pause(5_000, i, 90_000) for i in (3, 4)))
    assert run(base).settled == 12


def test_clocks_that_run_at_different_speeds_do_not_matter() -> None:
    base = plan()
    peers = tuple(replace(p, drift=(-50, 0, 50)[i % 3]) for i, p in enumerate(base.peers))
    assert run(replace(base, peers=peers)).settled == 12


def test_a_fifth_of_all_messages_may_be_lost() -> None:
    network = Network(loss=200, duplication=200, straggling=200, gossip_loss=500)
    assert run(replace(plan(tasks=20), network=network, heal_at=600_000)).settled == 20


def test_a_latecomer_hears_of_the_job_and_works() -> None:
    """Three peers cannot reach agreement of four; the fourth and fifth come a minute later."""
    base = plan(peers=5, tasks=3, agree=4)
    peers = tuple(replace(p, joins_at=60_000 if i >= 3 else 0) for i, p in enumerate(base.peers))
    result = run(replace(base, peers=peers))
    assert result.settled == 3
    assert result.virtual_ms > 60_000


def test_the_cost_of_a_task_does_not_grow_with_the_network() -> None:
    small, large = (simulate(quiet(1, peers=peers, tasks=2 * peers)) for peers in (20, 160))
    assert not small.violations
    assert not large.violations
    assert small.messages_per_task < 70
    assert large.messages_per_task < 1.4 * small.messages_per_task


def test_after_the_last_result_the_network_is_nearly_silent() -> None:
    world = World(plan())
    world.run()
    job = world.jobs[0]
    assert job.complete_at is not None
    before = world.stats.sent
    world.run_until(world.now + 60_000)
    upkeep = 8 * 8 * 3
    assert world.stats.sent - before < upkeep, "profiles and comparisons of what is known, and nothing of the job"


# --- checkpoints ---------------------------------------------------------------------------------------------------
def _continued(world: World) -> list[list[int]]:
    """For each result that went on from others' checkpoints: the indices of those others."""
    return [
        [world.by_peer[peer].index for peer in reveal.body.continued]
        for box in world.boxes
        if box.node is not None
        for submission in box.node.submissions.values()
        for state in submission.states
        for file in state.files.values()
        for reveal in file.reveals.values()
        if reveal.body.continued
    ]


def test_tasks_of_a_peer_that_is_gone_go_on_where_it_had_got_to() -> None:
    base = plan(task_ms=30_000, checkpoints=True)
    # The peer that goes is a steward too: the one that takes its place learns what may be gone on from.
    gone = stewards(base)[0] or stewards(base)[1]
    world = World(replace(base, crashes=(Crash(24_000, gone, None),), heal_at=30_000))
    world.run()
    assert not world.checkers.violations
    assert [gone] in _continued(world)


@pytest.mark.parametrize("seed", range(1, 5))
def test_poisoned_checkpoints_waste_work_and_settle_nothing(seed: int) -> None:
    base = plan(peers=9, tasks=20, task_ms=20_000, seed=seed, checkpoints=True, max_replicas=8)
    world = World(with_liars(base, p3="poisoner", p5="poisoner"))
    world.run()
    result = result_of(world)
    assert not result.violations
    assert result.settled == 20
    assert {index for whose in _continued(world) for index in whose} & {3, 5}, "somebody did go on from one"
