"""Named kinds of worlds. Each makes a whole plan from a seed; `mixed` lets the seed choose what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from nexapod.protocol.types import Millis
from nexapod.sim.checkers import Violation
from nexapod.sim.plan import Clog, Crash, JobPlan, LiarKind, Network, Partition, Pause, PeerPlan, Plan
from nexapod.sim.rng import Rng
from nexapod.sim.world import NodeFactory, World

HARMLESS: Final[tuple[LiarKind, ...]] = (
    "silent",
    "hoarder",
    "equivocator",
    "late",
    "replayer",
    "garbage",
    "steward",
    "poisoner",
)
"""Liars that claim no wrong result themselves."""
UPKEEP: Final = ("Sync", "Want", "Profile")
FAULTS_FROM_MS = 500


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one world: plain values."""

    seed: int
    scenario: str
    features: tuple[str, ...]
    violations: tuple[Violation, ...]
    peers: int
    tasks: int
    settled: int
    failed: int
    events: int
    messages: int
    virtual_ms: Millis
    lag_ms: Millis
    """From healing, or the last submission, to the last job's completion."""
    crashes: int
    digest: str
    by_kind: tuple[tuple[str, int], ...]
    traces: tuple[tuple[str, int], ...]
    honest_penalties: tuple[tuple[str, int], ...]

    @property
    def messages_per_task(self) -> float:
        """Direct messages about jobs; what peers tell each other of themselves is not counted."""
        upkeep = sum(count for kind, count in self.by_kind if kind in UPKEEP)
        return (self.messages - upkeep) / self.tasks if self.tasks else 0.0

    @property
    def replay(self) -> str:
        """The one command that shows this world again."""
        return f"nexapod sim --seeds {self.seed}:{self.seed + 1} --scenario {self.scenario}"


def _peers(rng: Rng, count: int) -> list[PeerPlan]:
    return [PeerPlan(speed=rng.between(500, 2000), slots=rng.between(1, 3)) for _ in range(count)]


def quiet(seed: int, peers: int = 20, tasks: int = 60) -> Plan:
    """Nothing goes wrong: what a task costs."""
    rng = Rng(seed).fork("quiet")
    network = Network(degree=12 if peers > 50 else 0)
    return Plan("quiet", seed, tuple(_peers(rng, peers)), (JobPlan(0, 3_000, tasks, 1_000),), network)


def lossy(seed: int) -> Plan:
    """Messages are lost, repeated, overtaken."""
    plan = _base("lossy", seed)
    rng = Rng(seed).fork("lossy/more")
    return replace(plan, network=_bad_network(rng), heal_at=90_000)


def churn(seed: int) -> Plan:
    """Peers crash and come back; some never do."""
    plan = _base("churn", seed, least=8)
    rng = Rng(seed).fork("churn/more")
    crashes = _crashes(rng, plan, rng.between(4, 20), 90_000) + _departures(rng, plan)
    return replace(plan, crashes=tuple(crashes), heal_at=120_000)


def partition(seed: int) -> Plan:
    """The network falls apart in two, and single directions are blocked."""
    plan = _base("partition", seed, least=6)
    rng = Rng(seed).fork("partition/more")
    return replace(plan, partitions=_partitions(rng, plan), clogs=_clogs(rng, plan), heal_at=120_000)


def restart_everyone(seed: int) -> Plan:
    """A power cut: all crash within a moment, and come back."""
    plan = _base("restart-everyone", seed)
    rng = Rng(seed).fork("restart/more")
    at = rng.between(3_500, 12_000)
    crashes = [
        Crash(at + rng.between(0, 200), i, rng.between(500, 20_000)) for i in rng.shuffled(range(len(plan.peers)))
    ]
    return replace(plan, crashes=tuple(crashes), heal_at=60_000)


def liars(seed: int) -> Plan:
    """Some peers break the rules."""
    plan = _base("liars", seed, least=7)
    rng = Rng(seed).fork("liars/more")
    return replace(_with_liars(rng, plan), heal_at=10_000)


def big(seed: int, peers: int = 500, tasks: int = 2_000) -> Plan:
    """Many peers and many tasks."""
    rng = Rng(seed).fork("big")
    network = Network(degree=12)
    return Plan("big", seed, tuple(_peers(rng, peers)), (JobPlan(0, 10_000, tasks, 2_000),), network)


def mixed(seed: int) -> Plan:
    """Each feature is on or off as the seed says."""
    plan = _base("mixed", seed, least=Rng(seed).fork("mixed/least").between(4, 9))
    rng = Rng(seed).fork("mixed/more")
    features: list[str] = []
    heal_at = 10_000

    def on(name: str, permille: int = 400) -> bool:
        if rng.chance(permille):
            features.append(name)
            return True
        return False

    if on("loss"):
        plan, heal_at = replace(plan, network=_bad_network(rng)), 90_000
    if on("crashes"):
        plan, heal_at = replace(plan, crashes=tuple(_crashes(rng, plan, rng.between(1, 12), 80_000))), 120_000
    if on("departures", 200) and len(plan.peers) >= 8:
        plan = replace(plan, crashes=(*plan.crashes, *_departures(rng, plan)))
        heal_at = 120_000
    if on("partitions", 300):
        plan, heal_at = replace(plan, partitions=_partitions(rng, plan)), 120_000
    if on("clogs", 300):
        plan, heal_at = replace(plan, clogs=_clogs(rng, plan)), 120_000
    if on("pauses", 300):
        pauses = [
            Pause(rng.between(2_000, 60_000), rng.below(len(plan.peers)), rng.between(500, 40_000)) for _ in range(4)
        ]
        plan, heal_at = replace(plan, pauses=tuple(pauses)), 120_000
    if on("drift"):
        plan = replace(plan, peers=tuple(replace(p, drift=rng.between(-30, 30)) for p in plan.peers))
    if on("behind-nat", 300) and len(plan.peers) >= 8:
        plan = replace(plan, peers=tuple(replace(p, serves=i < 5 or rng.chance(500)) for i, p in enumerate(plan.peers)))
    if on("latecomers", 300):
        late = {i: rng.between(2_000, 40_000) for i in range(3, len(plan.peers)) if rng.chance(300)}
        plan = replace(plan, peers=tuple(replace(p, joins_at=late.get(i, 0)) for i, p in enumerate(plan.peers)))
        heal_at = max(heal_at, 60_000)
    if len(plan.peers) >= 7 and on("liars", 350):
        plan = _with_liars(rng, plan)
    if on("vanishing-submitter", 250):
        how: Literal["for-good", "for-a-while"] = (
            "for-good" if rng.chance(400) and "departures" not in features else "for-a-while"
        )
        plan = replace(plan, jobs=(replace(plan.jobs[0], vanishes=how), *plan.jobs[1:]))
        heal_at = max(heal_at, 60_000)
    if on("sparse", 300) and len(plan.peers) >= 8:
        plan = replace(plan, network=replace(plan.network, degree=4))
    return replace(plan, heal_at=heal_at, features=tuple(features))


SCENARIOS: Final[dict[str, Callable[[int], Plan]]] = {
    "mixed": mixed,
    "quiet": quiet,
    "lossy": lossy,
    "churn": churn,
    "partition": partition,
    "restart-everyone": restart_everyone,
    "liars": liars,
    "big": big,
}


# --- pieces ----------------------------------------------------------------------------------------------------------
def _base(scenario: str, seed: int, least: int = 4) -> Plan:
    rng = Rng(seed).fork(scenario, "base")
    count = rng.between(least, least + 12)
    peers = _peers(rng, count)
    jobs = []
    for _ in range(1 + rng.chance(300) + rng.chance(200)):
        tasks = rng.pick((1, 3, 10, 25, 40))
        failing = (rng.below(tasks),) if count >= 8 and rng.chance(200) else ()
        task_ms = rng.pick((50, 400, 1_500, 6_000))
        replicas = rng.between(3, 5)
        jobs.append(
            JobPlan(
                rng.below(count),
                rng.between(1_000, 8_000),
                tasks,
                task_ms,
                max_replicas=replicas,
                failing=failing,
                checkpoints=task_ms >= 1_500 and rng.chance(500),
            )
        )
    return Plan(scenario, seed, tuple(peers), tuple(jobs))


def _bad_network(rng: Rng) -> Network:
    return Network(
        latency_ms=(1, rng.pick((5, 50, 200))),
        loss=rng.between(0, 200),
        duplication=rng.between(0, 100),
        straggling=rng.between(0, 200),
        gossip_loss=rng.between(0, 500),
    )


def _crashes(rng: Rng, plan: Plan, count: int, until: Millis) -> list[Crash]:
    return [
        Crash(rng.between(FAULTS_FROM_MS, until), rng.below(len(plan.peers)), rng.between(100, 30_000))
        for _ in range(count)
    ]


def _departures(rng: Rng, plan: Plan) -> list[Crash]:
    """Up to a quarter of the peers go for good, one after another; no submitter does."""
    submitters = {job.submitter for job in plan.jobs}
    staying = [i for i in range(len(plan.peers)) if i not in submitters]
    leaving = rng.shuffled(staying)[: len(plan.peers) // 4]
    return [Crash(rng.between(5_000, 80_000), i, None) for i in leaving]


def _partitions(rng: Rng, plan: Plan) -> tuple[Partition, ...]:
    found = []
    at = rng.between(1_000, 15_000)
    for _ in range(rng.between(1, 2)):
        until = at + rng.between(3_000, 45_000)
        found.append(Partition(at, until, frozenset(i for i in range(len(plan.peers)) if rng.chance(400))))
        at = until + rng.between(1_000, 10_000)
    return tuple(found)


def _clogs(rng: Rng, plan: Plan) -> tuple[Clog, ...]:
    found = []
    for _ in range(rng.between(1, 2 * len(plan.peers))):
        at = rng.between(1_000, 60_000)
        found.append(Clog(at, at + rng.between(1_000, 40_000), rng.below(len(plan.peers)), rng.below(len(plan.peers))))
    return tuple(found)


def _with_liars(rng: Rng, plan: Plan) -> Plan:
    """One to three liars that are no submitters, within the fault model of agree = 2 (see liars.py)."""
    submitters = {job.submitter for job in plan.jobs}
    places = rng.shuffled([i for i in range(len(plan.peers)) if i not in submitters])
    most = min(job.max_replicas - job.agree for job in plan.jobs)
    count = min(len(places), rng.between(1, 3), max(1, most))
    kinds: list[LiarKind] = []
    for _ in range(count):
        kind: LiarKind = rng.pick((*HARMLESS, "wrong", "wrong", "copycat"))
        if kind == "steward" and "steward" in kinds:
            kind = "garbage"
        kinds.append(kind)
    peers = list(plan.peers)
    # A copycat claims junk as long as it has nothing to copy: another one is a liar that claims something wrong.
    copied = "wrong" in kinds or kinds.count("copycat") > 1
    for place, kind in zip(places, kinds, strict=False):
        peers[place] = replace(peers[place], liar=kind, serves=kind != "copycat" or not copied)
    return replace(plan, peers=tuple(peers), features=(*plan.features, *kinds))


# --- running ---------------------------------------------------------------------------------------------------------
def simulate(plan: Plan, *, factory: NodeFactory | None = None, tell: Callable[[str], None] | None = None) -> Result:
    """Run one world to its end."""
    world = World(plan, tell=tell) if factory is None else World(plan, factory=factory, tell=tell)
    world.run()
    return result_of(world)


def run_seed(scenario: str, seed: int, tell: Callable[[str], None] | None = None) -> Result:
    """Run the world of one seed."""
    return simulate(SCENARIOS[scenario](seed), tell=tell)


def result_of(world: World) -> Result:
    plan, stats = world.plan, world.stats
    settled = failed = 0
    for job in world.jobs:
        node = world.boxes[job.plan.submitter].node
        submission = node.submissions.get(job.id) if node is not None else None
        if submission is not None:
            outcomes = [v.outcome for v in submission.decided.values()]
            settled += outcomes.count("accepted")
            failed += outcomes.count("failed")
    ready = max([plan.heal_at, *(job.plan.at for job in world.jobs)])
    ends = [job.complete_at for job in world.jobs if job.complete_at is not None]
    return Result(
        seed=plan.seed,
        scenario=plan.scenario,
        features=plan.features,
        violations=tuple(world.checkers.violations),
        peers=len(plan.peers),
        tasks=sum(job.plan.tasks for job in world.jobs),
        settled=settled,
        failed=failed,
        events=stats.events,
        messages=stats.sent,
        virtual_ms=world.now,
        lag_ms=max(0, max(ends, default=0) - ready),
        crashes=stats.crashes,
        digest=world.digest,
        by_kind=tuple(sorted(stats.by_kind.items())),
        traces=tuple(sorted(stats.traces.items())),
        honest_penalties=tuple(sorted(stats.honest_penalties.items())),
    )
