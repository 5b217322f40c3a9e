"""Small worlds in which one liar, or a gang, sits where its attack matters: a seat, the panel, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.rules import seats
from nexapod.sim.liars.base import Liar
from nexapod.sim.plan import JobPlan, PeerPlan, Plan
from nexapod.sim.world import World

Place: TypeAlias = Literal["leader", "seat", "member", "stranger"]
PEERS = 8
SUBMIT_AT: Millis = 2_000
ACCEPTED_BY: Millis = SUBMIT_AT + 200
SEED = 2
STEP_MS: Millis = 500


def plan_of(job: JobPlan, *, peers: int = PEERS, seed: int = SEED) -> Plan:
    return Plan("directed", seed, tuple(PeerPlan() for _ in range(peers)), (job,), settle_within_ms=300_000)


def job_of(*, tasks: int = 12, task_ms: Millis = 400, **more: object) -> JobPlan:
    return JobPlan(0, SUBMIT_AT, tasks, task_ms, **more)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Places:
    """Machines by where the job's own panel puts them; the submitter is none of them."""

    seats: tuple[int, ...]
    """The leader first."""
    members: tuple[int, ...]
    """Without a seat."""
    strangers: tuple[int, ...]

    def of(self, place: Place) -> int:
        match place:
            case "leader":
                return self.seats[0]
            case "seat":
                return self.seats[1]
            case "member":
                return self.members[0]
            case "stranger":
                return self.strangers[0]


@cache
def _places(plan: Plan) -> Places | None:
    world = World(plan)
    world.run_until(ACCEPTED_BY)
    job = world.jobs[0].id
    node = world.machines[0].node
    report = None if job is None or node is None else node.job_report(job)
    if report is None or job is None:
        return None
    index = [world.by_peer[peer].index for peer in seats.first_holders(job, 0, report.panel)]
    members = [world.by_peer[peer].index for peer in report.panel]
    rest = [i for i in range(len(plan.peers)) if i not in members and i != 0]
    found = Places(tuple(index), tuple(i for i in members if i not in index), tuple(rest))
    whole = len(index) == 3 and 0 not in index and found.members and len(found.strangers) >= 2
    return found if whole else None


def base(job: JobPlan | None = None, *, peers: int = PEERS) -> tuple[Plan, Places]:
    """A world without liars in which there is somebody at every place."""
    for seed in range(SEED, SEED + 40):
        plan = plan_of(job or job_of(), peers=peers, seed=seed)
        places = _places(plan)
        if places is not None:
            return plan, places
    raise AssertionError("no world has somebody at every place")


def with_liars(plan: Plan, kind: str, at: Sequence[int], **changed: object) -> Plan:
    """`changed`: of their plans."""
    peers = list(plan.peers)
    for index in at:
        peers[index] = replace(peers[index], liar=kind, gang=1, **changed)  # type: ignore[arg-type]
    return replace(plan, peers=tuple(peers))


def world_of(kind: str, *places: Place, job: JobPlan | None = None, peers: int = PEERS) -> World:
    """A world in which the peers at these places lie; a gang, if there are several."""
    plan, found = base(job, peers=peers)
    return World(with_liars(plan, kind, [found.of(place) for place in places]))


def liars_of(world: World) -> list[Liar]:
    return [machine.liar for machine in world.machines if machine.liar is not None]


def settle(world: World, within_ms: Millis = 120_000) -> Millis:
    """Run until the job is over: how long it took. The world's checkers have nothing against it."""
    job = world.jobs[0]
    while not job.over and world.now < SUBMIT_AT + within_ms and not world.checkers.hopeless:
        world.run_until(world.now + STEP_MS)
    world.checkers.at_end()
    assert world.checkers.violations == []
    assert job.settled_at is not None
    return job.settled_at - SUBMIT_AT


def settled_honestly(job: JobPlan | None = None) -> Millis:
    """How long the same world takes without liars."""
    plan, _ = base(job)
    return settle(World(plan))


def peer_of(world: World, index: int) -> PeerId:
    return world.machines[index].peer
