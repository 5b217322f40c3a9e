"""Small worlds for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace

from nexapod.protocol.tickets import shard_key
from nexapod.protocol.types import kad_key
from nexapod.sim.plan import JobPlan, LiarKind, PeerPlan, Plan
from nexapod.sim.scenarios import Result, result_of
from nexapod.sim.world import World


def plan(peers: int = 8, tasks: int = 12, seed: int = 1, task_ms: int = 800, **job: object) -> Plan:
    """`peers` equal machines, one job by the first of them, and nothing that goes wrong."""
    one = JobPlan(0, 2_000, tasks, task_ms, **job)  # type: ignore[arg-type]
    return Plan("directed", seed, tuple(PeerPlan() for _ in range(peers)), (one,))


def with_liars(base: Plan, **kinds: LiarKind | PeerPlan) -> Plan:
    """p3="wrong": the peer of index 3 lies so."""
    peers = list(base.peers)
    for name, kind in kinds.items():
        index = int(name[1:])
        peers[index] = kind if isinstance(kind, PeerPlan) else replace(peers[index], liar=kind)
    return replace(base, peers=tuple(peers))


def stewards(base: Plan) -> list[int]:
    """The indices of the three peers that will keep the first shard of the first job."""
    world = World(base)
    key = shard_key(world.jobs[0].id, 0)
    serving = [box for box in world.boxes if box.plan.serves]
    return [box.index for box in sorted(serving, key=lambda b: kad_key(b.peer) ^ key)[:3]]


def run(base: Plan) -> Result:
    """Run it, and insist that no rule was broken."""
    world = World(base)
    world.run()
    result = result_of(world)
    assert not result.violations, result.violations
    return result


def traces(result: Result) -> dict[str, int]:
    return dict(result.traces)
