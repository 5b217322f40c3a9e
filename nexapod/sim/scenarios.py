"""Named kinds of worlds. Each makes a whole plan from a seed; `mixed` lets the seed choose what goes wrong.

The fault model of a world: of the operator groups that may work on a job, fewer are dishonest than its `agree`; of any
shard's seats fewer than a quorum are. What lies outside is in the scenarios named for it, which measure instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis
from nexapod.sim.checkers import Violation
from nexapod.sim.plan import (
    ClockJump,
    Clog,
    Crash,
    DiskFault,
    JobPlan,
    Network,
    Order,
    Partition,
    Pause,
    PeerPlan,
    Plan,
)
from nexapod.sim.rng import Rng
from nexapod.sim.seated import FAMILY, seated
from nexapod.sim.world import NodeFactory, World

WRONG: Final = ("wrong", "copycat")
"""Liars that claim wrong results."""
HARMLESS: Final = ("silent", "hoarder", "late", "withholder", "equivocator", "poisoner", "squatter", "namesake")
SEATS: Final = (
    "mute-seat",
    "lying-seat",
    "two-faced-seat",
    "beacon-withholder",
    "beacon-aborter",
    "inventor",
    "usurper",
    "walker",
)
FLOODS: Final = (
    "garbage",
    "replayer",
    "profile-flood",
    "job-flood",
    "relay",
    "filler",
    "leech",
    "newcomer",
    "namer",
    "stopper",
    "suppressor",
    "talker",
)
UPKEEP: Final = ("Hello", "Sample", "Probe", "Alive", "Announce", "Sync")
FAULTS_FROM_MS: Final = 500
FEW_TASKS: Final = 10
SMALL_MAX: Final = 40
"""Tasks of a job that is not large."""


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
    message_bytes: int
    runs: int
    virtual_ms: Millis
    lag_ms: Millis
    """From healing, or the last submission, to the last job's settlement."""
    crashes: int
    digest: str
    by_kind: tuple[tuple[str, int], ...]
    traces: tuple[tuple[str, int], ...]
    notices: tuple[tuple[str, int], ...]
    honest_penalties: tuple[tuple[str, int], ...]
    excused: tuple[str, ...] = ()
    """Jobs that are not finished since the stewards that their submitter knew cannot be a quorum of honest seats."""

    @property
    def messages_per_task(self) -> float:
        """Direct messages about jobs; what peers tell each other of themselves is not counted."""
        upkeep = sum(count for kind, count in self.by_kind if kind in UPKEEP)
        return (self.messages - upkeep) / self.tasks if self.tasks else 0.0

    @property
    def replay(self) -> str:
        """The one command that shows this world again."""
        return f"nexapod sim --seeds {self.seed}:{self.seed + 1} --scenario {self.scenario}"


# --- pieces ----------------------------------------------------------------------------------------------------------
def _peers(rng: Rng, count: int) -> list[PeerPlan]:
    return [PeerPlan(speed=rng.between(500, 2000), slots=rng.between(1, 3)) for _ in range(count)]


def _addresses(rng: Rng, peers: list[PeerPlan]) -> list[PeerPlan]:
    """Public ones, v4 and v6, some of them in one block."""
    found = []
    for index, peer in enumerate(peers):
        block = index if rng.chance(700) else rng.below(max(1, index))
        if rng.chance(300):
            addr = f"/ip6/2001:db8:{block:x}::{index:x}/tcp/4001"
        else:
            addr = f"/ip4/{30 + block % 60}.{block // 60 % 250}.{block % 250}.{index % 250}/tcp/4001"
        found.append(replace(peer, addr=addr))
    return found


def _job(rng: Rng, count: int) -> JobPlan:
    tasks = rng.pick((1, 3, 10, 25, 40)) if rng.chance(900) else rng.pick((300, 600))
    agree = rng.pick((1, 2, 2, 2, 3, 5)) if count >= 7 else rng.pick((1, 2))
    agree = min(agree, max(1, count - 2))
    task_ms = rng.pick((50, 400, 1_500, 6_000)) if tasks <= SMALL_MAX else rng.pick((20, 200))
    special = [t for t in range(min(tasks, 4)) if rng.chance(120)]
    failing = tuple(t for t in special if rng.chance(500))
    return JobPlan(
        rng.below(count),
        rng.between(1_000, 8_000),
        tasks,
        task_ms,
        agree=agree,
        max_replicas=min(16, agree + rng.between(3, 5)),
        wall_ms=rng.pick((20_000, 120_000, 3_600_000)),
        failing=failing,
        nondeterministic=tuple(t for t in special if t not in failing),
        checkpoints=task_ms >= 1_500 and rng.chance(500),
    )


def _base(scenario: str, seed: int, least: int = 3, *, light: bool = True) -> Plan:
    """`light`: with less work than the seed alone would have."""
    rng = Rng(seed).fork(scenario, "base")
    count = rng.between(least, least + 12)
    if light and Rng(seed).fork(scenario, "peers").chance(900):
        count = least + (count - least) // 2
    peers = _peers(rng, count)
    jobs = tuple(_job(rng, count) for _ in range(1 + rng.chance(300) + rng.chance(200)))
    network = Network()
    if count >= 8 and rng.chance(300):
        peers = _addresses(rng, peers)
        network = Network(grouping="network")
        jobs = tuple(replace(job, agree=min(2, job.agree)) for job in jobs)
    plan = Plan(scenario, seed, tuple(peers), jobs, network)
    return _lighter(plan) if light else plan


def _lighter(plan: Plan) -> Plan:
    """The same world with less work in it. Most jobs have a quarter of their tasks; a large job, and one world in five
    without any, has shards of a few tasks, and as many shards as with those of 256. The scenario `large` has real
    ones."""
    rng = Rng(plan.seed).fork(plan.scenario, "lighter")
    jobs = plan.jobs if rng.chance(30) else tuple(replace(job, tasks=_fewer(job.tasks)) for job in plan.jobs)
    large = any(job.tasks > SMALL_MAX for job in jobs)
    if not large and rng.chance(800):
        return replace(plan, jobs=jobs)
    size = rng.pick((5, 8, 16) if large else (2, 3, 7))
    jobs = tuple(replace(job, tasks=_in_shards_of(size, job.tasks)) for job in jobs)
    return replace(plan, jobs=jobs, shard_tasks=size)


def _fewer(tasks: int) -> int:
    return tasks if tasks <= FEW_TASKS or tasks > SMALL_MAX else tasks // 4


def _in_shards_of(size: int, tasks: int) -> int:
    return tasks if tasks <= SMALL_MAX else tasks * size // limits.SHARD_TASKS


def _bad_network(rng: Rng, network: Network) -> Network:
    return replace(
        network,
        latency_ms=(1, rng.pick((5, 50, 200))),
        loss=rng.between(0, 200),
        duplication=rng.between(0, 100),
        straggling=rng.between(0, 200),
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


def _with_liars(rng: Rng, plan: Plan, kinds: tuple[str, ...] | None = None) -> Plan:
    """A few liars that are no submitters, within the fault model."""
    submitters = {job.submitter for job in plan.jobs}
    places = rng.shuffled([i for i in range(len(plan.peers)) if i not in submitters])
    agree = min(job.agree for job in plan.jobs)
    chosen = list(kinds) if kinds is not None else [_kind(rng, agree) for _ in range(rng.between(1, 3))]
    # One seat that lies at most, or two could be a quorum; fewer who claim wrong results than must agree.
    seats = [kind for kind in chosen if kind in SEATS][:1]
    wrong = [kind for kind in chosen if kind in WRONG][: max(0, agree - 1)]
    others = [kind for kind in chosen if kind not in SEATS and kind not in WRONG]
    chosen = [*seats, *wrong, *others][: max(1, len(places) - agree - 1)]
    peers = list(plan.peers)
    for place, kind in zip(places, chosen, strict=False):
        peers[place] = replace(peers[place], liar=kind)
    return replace(plan, peers=tuple(peers), features=(*plan.features, *chosen))


def _kind(rng: Rng, agree: int) -> str:
    families = (HARMLESS, SEATS, FLOODS, WRONG if agree > 1 else HARMLESS)
    return rng.pick(rng.pick(families))


# --- scenarios -------------------------------------------------------------------------------------------------------
def quiet(seed: int, peers: int = 20, tasks: int = 60) -> Plan:
    """Nothing goes wrong: what a task costs."""
    rng = Rng(seed).fork("quiet")
    network = Network(degree=12 if peers > 50 else 0)
    return Plan("quiet", seed, tuple(_peers(rng, peers)), (JobPlan(0, 3_000, tasks, 1_000),), network)


def one(seed: int) -> Plan:
    """A machine alone: submitter, steward and worker in one."""
    plan = _base("one", seed)
    jobs = tuple(replace(job, submitter=0, agree=1, max_replicas=2) for job in plan.jobs[:1])
    return replace(plan, peers=plan.peers[:1], jobs=jobs, network=Network())


def few(seed: int) -> Plan:
    """Two or three machines."""
    plan = _base("few", seed)
    count = 2 + seed % 2
    jobs = tuple(
        replace(job, submitter=job.submitter % count, agree=min(job.agree, 2), max_replicas=4) for job in plan.jobs[:1]
    )
    return replace(plan, peers=plan.peers[:count], jobs=jobs, network=Network())


def lossy(seed: int, *, light: bool = True) -> Plan:
    """Messages are lost, repeated, overtaken."""
    plan = _base("lossy", seed, light=light)
    rng = Rng(seed).fork("lossy/more")
    return replace(plan, network=_bad_network(rng, plan.network), heal_at=90_000)


def churn(seed: int) -> Plan:
    """Peers crash and come back; some never do."""
    plan = _base("churn", seed, least=8)
    rng = Rng(seed).fork("churn/more")
    crashes = _crashes(rng, plan, rng.between(4, 20), 90_000) + _departures(rng, plan)
    return replace(plan, crashes=tuple(crashes), heal_at=120_000)


def partition(seed: int, *, light: bool = True) -> Plan:
    """The network falls apart in two, and single directions are blocked."""
    plan = _base("partition", seed, least=6, light=light)
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


def sleepers(seed: int) -> Plan:
    """Machines sleep and wake, clocks jump, disks are slow or full."""
    plan = _base("sleepers", seed, least=4)
    rng = Rng(seed).fork("sleepers/more")
    return replace(_with_machine_faults(rng, plan), heal_at=120_000)


def _with_machine_faults(rng: Rng, plan: Plan) -> Plan:
    count = len(plan.peers)
    pauses = tuple(Pause(rng.between(2_000, 60_000), rng.below(count), rng.between(500, 40_000)) for _ in range(4))
    jumps = tuple(ClockJump(rng.between(2_000, 90_000), rng.below(count), rng.between(1_000, 90_000)) for _ in range(2))
    disks = []
    for _ in range(2):
        at = rng.between(1_000, 60_000)
        until = at + rng.between(1_000, 30_000)
        disks.append(DiskFault(at, until, rng.below(count), rng.pick((0, 20, 200, 1_000))))
    return replace(plan, pauses=pauses, clock_jumps=jumps, disk_faults=tuple(disks))


def liars(seed: int) -> Plan:
    """Some peers break the rules."""
    plan = _base("liars", seed, least=7)
    rng = Rng(seed).fork("liars/more")
    return replace(_with_liars(rng, plan), heal_at=10_000)


def colluders(seed: int, peers: int = 40, share: int = 100, tasks: int = 256) -> Plan:
    """A tenth of the peers, each in a block of addresses of its own, are one gang of eager workers: how many tasks do
    they get both replicas of?"""
    rng = Rng(seed).fork("colluders")
    count = max(2, peers * share // 1000)
    places = rng.shuffled(range(1, peers))[:count]
    chosen = [replace(p, liar="colluder", gang=1) if i in places else p for i, p in enumerate(_peers(rng, peers))]
    apart = [replace(p, addr=f"/ip4/{30 + i // 250}.{i % 250}.0.1/tcp/4001") for i, p in enumerate(chosen)]
    network = Network(grouping="network")
    return Plan("colluders", seed, tuple(apart), (JobPlan(0, 3_000, tasks, 1_000),), network)


def big(seed: int, peers: int = 500, tasks: int = 2_000) -> Plan:
    """Many peers and many tasks."""
    rng = Rng(seed).fork("big")
    return Plan("big", seed, tuple(_peers(rng, peers)), (JobPlan(0, 10_000, tasks, 2_000),), Network(degree=12))


def large(seed: int) -> Plan:
    """Shards of 256 tasks, two or three of them, in a network that loses messages while machines crash."""
    plan = _base("large", seed, least=6)
    rng = Rng(seed).fork("large/more")
    jobs = (replace(plan.jobs[0], tasks=rng.pick((300, 600)), task_ms=rng.pick((20, 200)), checkpoints=False),)
    plan = replace(plan, jobs=jobs, shard_tasks=limits.SHARD_TASKS, network=_bad_network(rng, plan.network))
    return replace(plan, crashes=tuple(_crashes(rng, plan, rng.between(1, 6), 60_000)), heal_at=90_000)


def million(seed: int, tasks: int = limits.TASKS_MAX, peers: int = 20) -> Plan:
    """One job of a million tasks that nobody works on, so that what it costs is to place and to know it; a small job
    in the same mesh is worked on meanwhile."""
    rng = Rng(seed).fork("million")
    jobs = (JobPlan(0, 3_000, tasks, 1_000, unfit=True), JobPlan(1, 4_000, 40, 1_000))
    return Plan("million", seed, tuple(_peers(rng, peers)), jobs)


def crowd(seed: int, peers: int = 300, jobs: int = 4) -> Plan:
    """Very many peers, each with a few links, and two tasks for each of them: what a task costs must not depend on how
    many they are."""
    rng = Rng(seed).fork("crowd")
    planned = tuple(JobPlan(rng.below(peers), 10_000 + 500 * i, 2 * peers // jobs, 2_000) for i in range(jobs))
    return Plan("crowd", seed, tuple(_peers(rng, peers)), planned, Network(degree=12))


def uneven(seed: int, peers: int = 100, tasks: int = 500, sigma: float = 0.7, churn: int = 50) -> Plan:
    """Machines whose speeds are spread log-normally, and of every thousand `churn` that die while they work."""
    rng = Rng(seed).fork("uneven")
    machines = [PeerPlan(speed=max(50, round(1_000 * _log_normal(rng, sigma))), slots=1) for _ in range(peers)]
    job = JobPlan(0, 10_000, tasks, 10_000)
    plan = Plan("uneven", seed, tuple(machines), (job,), Network(degree=12 if peers > 50 else 0))
    span_ms = round(ideal_ms(plan))
    dying = rng.shuffled(range(1, peers))[: peers * churn // 1_000]
    crashes = tuple(Crash(job.at + rng.between(1_000, 1_000 + span_ms), peer, None) for peer in dying)
    return replace(plan, crashes=crashes)


def ideal_ms(plan: Plan) -> float:
    """How long the first job would take if all machines worked on it all the time."""
    job = plan.jobs[0]
    return job.tasks * job.agree * job.task_ms * 1_000 / sum(peer.speed * peer.slots for peer in plan.peers)


def _log_normal(rng: Rng, sigma: float) -> float:
    """Box and Muller's way, from two numbers of the seed's."""
    one, other = (rng.between(1, 999_999) / 1_000_000 for _ in range(2))
    return math.exp(sigma * math.sqrt(-2 * math.log(one)) * math.cos(2 * math.pi * other))


def mixed(seed: int, *, light: bool = True) -> Plan:
    """Each feature is on or off as the seed says."""
    plan = _base("mixed", seed, least=Rng(seed).fork("mixed/least").between(2, 9), light=light)
    rng = Rng(seed).fork("mixed/more")
    features: list[str] = []
    heal_at = 10_000

    def on(name: str, permille: int = 300) -> bool:
        if rng.chance(permille):
            features.append(name)
            return True
        return False

    if on("loss"):
        plan, heal_at = replace(plan, network=_bad_network(rng, plan.network)), 90_000
    if on("crashes"):
        plan, heal_at = replace(plan, crashes=tuple(_crashes(rng, plan, rng.between(1, 12), 80_000))), 120_000
    if on("departures", 200) and len(plan.peers) >= 8:
        plan, heal_at = replace(plan, crashes=(*plan.crashes, *_departures(rng, plan))), 120_000
    if on("partitions", 250):
        plan, heal_at = replace(plan, partitions=_partitions(rng, plan)), 120_000
    if on("clogs", 250):
        plan, heal_at = replace(plan, clogs=_clogs(rng, plan)), 120_000
    if on("sleepers", 250):
        plan, heal_at = _with_machine_faults(rng, plan), 120_000
    if on("drift"):
        plan = replace(plan, peers=tuple(replace(p, drift=rng.between(-30, 30)) for p in plan.peers))
    if on("few-stewards") and len(plan.peers) >= 8:
        plan = replace(
            plan, peers=tuple(replace(p, steward=i < 5 or rng.chance(500)) for i, p in enumerate(plan.peers))
        )
    if on("latecomers", 250):
        late = {i: rng.between(2_000, 40_000) for i in range(3, len(plan.peers)) if rng.chance(300)}
        plan = replace(plan, peers=tuple(replace(p, joins_at=late.get(i, 0)) for i, p in enumerate(plan.peers)))
        heal_at = max(heal_at, 60_000)
    if on("orders", 200):
        plan = replace(plan, orders=_orders(rng, plan))
        heal_at = max(heal_at, 60_000)
    if on("cancelled", 100):
        plan = replace(plan, jobs=(replace(plan.jobs[0], cancelled_at=rng.between(4_000, 20_000)), *plan.jobs[1:]))
    if on("missing-input", 100):
        plan = replace(plan, jobs=(replace(plan.jobs[0], input_missing=True), *plan.jobs[1:]))
    if len(plan.peers) >= 7 and on("liars", 400):
        plan = _with_liars(rng, plan)
    if on("vanishing-submitter", 200):
        how: Literal["for-good", "for-a-while"] = (
            "for-good" if rng.chance(400) and "departures" not in features else "for-a-while"
        )
        plan = replace(plan, jobs=(replace(plan.jobs[0], vanishes=how), *plan.jobs[1:]))
        heal_at = max(heal_at, 60_000)
    if on("sparse", 250) and len(plan.peers) >= 8:
        plan = replace(plan, network=replace(plan.network, degree=4))
    return replace(plan, heal_at=heal_at, features=(*features, *plan.features))


def _orders(rng: Rng, plan: Plan) -> tuple[Order, ...]:
    """Owners pause for a while, and one machine drains."""
    found = []
    for _ in range(2):
        peer, at = rng.below(len(plan.peers)), rng.between(2_000, 30_000)
        found += [Order(at, peer, "pause"), Order(at + rng.between(1_000, 25_000), peer, "resume")]
    if len(plan.peers) >= 8:
        found.append(Order(rng.between(2_000, 40_000), rng.below(len(plan.peers)), "drain"))
    return tuple(found)


SCENARIOS: Final[dict[str, Callable[[int], Plan]]] = {
    "mixed": mixed,
    "quiet": quiet,
    "one": one,
    "few": few,
    "lossy": lossy,
    "churn": churn,
    "partition": partition,
    "restart-everyone": restart_everyone,
    "sleepers": sleepers,
    "liars": liars,
    "seated": seated,
    "colluders": colluders,
    "big": big,
    "large": large,
    "million": million,
    "crowd": crowd,
    "uneven": uneven,
}


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
    """What came of a world."""
    plan, stats = world.plan, world.stats
    ready = max([plan.heal_at, *(job.plan.at for job in world.jobs)])
    ends = [job.settled_at for job in world.jobs if job.settled_at is not None]
    decided = world.checkers.decided
    return Result(
        seed=plan.seed // FAMILY if plan.scenario == "seated" else plan.seed,
        scenario=plan.scenario,
        features=plan.features,
        violations=tuple(world.checkers.violations),
        peers=len(plan.peers),
        tasks=sum(job.plan.tasks for job in world.jobs),
        settled=sum(1 for outcome in decided.values() if outcome == "accepted"),
        failed=sum(1 for outcome in decided.values() if outcome == "failed"),
        events=stats.events,
        messages=stats.sent,
        message_bytes=stats.sent_bytes,
        runs=stats.runs,
        virtual_ms=world.now,
        lag_ms=max(0, max(ends, default=0) - ready),
        crashes=stats.crashes,
        digest=world.digest,
        by_kind=tuple(sorted(stats.by_kind.items())),
        traces=tuple(sorted(stats.traces.items())),
        notices=tuple(sorted(stats.notices.items())),
        honest_penalties=tuple(sorted(stats.honest_penalties.items())),
        excused=tuple(world.checkers.excused),
    )
