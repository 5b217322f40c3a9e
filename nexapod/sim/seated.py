"""Small worlds in which who sits where is known before they begin, so that a fault or a liar strikes where it matters.

Of the worlds of a seed's family the first is taken whose seats the submitter has none of, with members and strangers
beside them. A world costs a third of a second, and has one or two troubles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis
from nexapod.protocol.rules import seats
from nexapod.sim.plan import ClockJump, Clog, Crash, JobPlan, Network, Partition, Pause, PeerPlan, Plan
from nexapod.sim.rng import Rng
from nexapod.sim.world import World

PEERS: Final = 8
SUBMIT_AT: Final[Millis] = 2_000
ACCEPTED_BY: Final[Millis] = SUBMIT_AT + 200
GREEDY_SLOTS: Final = 48
FAMILY: Final = 40
WORK_FROM: Final[Millis] = SUBMIT_AT + 300
SETTLE_MS: Final[Millis] = 150_000
SEAT_LIARS: Final = (
    *("mute-seat", "lying-seat", "two-faced-seat", "beacon-withholder", "beacon-aborter", "inventor"),
    *("hasty-seat", "hasty-seat", "stubborn-seat"),
)
HASTE: Final = 20_000
"""By how many thousandths the clock of a hasty seat runs too fast."""
WORKER_LIARS: Final = ("wrong", "copycat", "equivocator", "withholder", "silent", "squatter", "filler", "hoarder")
MANGLED: Final = 250
"""How often a peer that lies is one that says anything wrong, in thousandths."""
ABANDONED: Final = 50
"""Worlds that a caretaker has to finish, likewise."""
CARETAKER_MS: Final[Millis] = 120_000
"""There."""
CALM: Final = 120
"""Worlds in which nothing goes wrong, in thousandths."""
PROBED: Final = 350
"""... and one that asks for what is only just wrong."""


@dataclass(frozen=True, slots=True)
class Places:
    """Machines by where the job's own panel puts them; the submitter, machine 0, is none of them."""

    seats: tuple[int, ...]
    """The leader first."""
    members: tuple[int, ...]
    """Without a seat."""
    strangers: tuple[int, ...]


@lru_cache(maxsize=64)
def places_of(plan: Plan) -> Places | None:
    """Who will sit where; None: not somebody at every place."""
    world = World(plan)
    world.run_until(ACCEPTED_BY)
    job = world.jobs[0].id
    if job is None:
        return None
    panel = world.jobs[0].panel
    index = [world.by_peer[peer].index for peer in seats.first_holders(job, 0, panel)]
    members = [world.by_peer[peer].index for peer in panel]
    rest = [i for i in range(len(plan.peers)) if i not in members and i != 0]
    found = Places(tuple(index), tuple(i for i in members if i not in index), tuple(rest))
    whole = len(index) == 3 and 0 not in index and found.members and len(found.strangers) >= 2
    return found if whole else None


def seated(seed: int) -> Plan:
    """One or two troubles at known places."""
    rng = Rng(seed).fork("seated")
    job = _job(rng)
    for number in range(FAMILY):
        peers = tuple(PeerPlan(speed=rng.between(700, 1500)) for _ in range(PEERS))
        plan = Plan("seated", seed * FAMILY + number, peers, (job,), settle_within_ms=SETTLE_MS)
        at = places_of(plan)
        if at is not None:
            return replace(_troubled(rng, plan, at), seed=plan.seed)
    raise AssertionError("no world has somebody at every place")


def _job(rng: Rng) -> JobPlan:
    tasks = rng.pick((2, 3, 5))
    agree = rng.pick((1, 2, 2, 3))
    special = rng.below(6)
    # More than there are workers: then it takes patience to say that a task has failed.
    more = 14 if special < 2 and rng.chance(400) else rng.between(1, 2)
    return JobPlan(
        0,
        SUBMIT_AT,
        tasks,
        rng.pick((100, 400, 1_500)),
        agree=agree,
        max_replicas=min(limits.REPLICAS_MAX, agree + more),
        failing=(0,) if special == 0 else (),
        nondeterministic=(0,) if special == 1 else (),
        checkpoints=rng.chance(200),
    )


def _troubled(rng: Rng, plan: Plan, at: Places) -> Plan:
    names = rng.shuffled((*TROUBLES, "lying-seat", "probing-leader"))[: rng.between(1, 2)]
    if "left-alone" in names:
        # Nobody could finish what another trouble had held up.
        names = ["left-alone"]
    if rng.chance(CALM):
        names = []
    if rng.chance(ABANDONED):
        return replace(_abandoned(rng, plan, at), features=("abandoned",))
    for name in names:
        plan = TROUBLES[name](rng, plan, at)
    return replace(plan, features=(*names, *(peer.liar for peer in plan.peers if peer.liar is not None)))


def _with(plan: Plan, index: int, kind: str) -> Plan:
    """At most one seat that lies, and fewer who may claim wrong results than must agree."""
    if any(peer.liar is not None for peer in plan.peers):
        return plan
    peers = list(plan.peers)
    drawn = Rng(plan.seed).fork("mangles").below(1_000)
    kind = "mangler" if drawn < MANGLED else "prober" if drawn < MANGLED + PROBED else kind
    peers[index] = replace(peers[index], liar=kind, drift=HASTE if kind == "hasty-seat" else 0)
    return replace(plan, peers=tuple(peers))


def _lying_seat(rng: Rng, plan: Plan, at: Places) -> Plan:
    return plan if plan.crashes else _with(plan, rng.pick(at.seats[:2]), rng.pick(SEAT_LIARS))


def _probing_leader(rng: Rng, plan: Plan, at: Places) -> Plan:
    if _has_liar(plan) or plan.crashes:
        return plan
    peers = list(plan.peers)
    peers[at.seats[0]] = replace(peers[at.seats[0]], liar="prober")
    return replace(plan, peers=tuple(peers))


def _lying_worker(rng: Rng, plan: Plan, at: Places) -> Plan:
    kind = rng.pick(WORKER_LIARS if plan.jobs[0].agree > 1 else WORKER_LIARS[2:])
    return _with(plan, rng.pick(at.strangers), kind)


def _usurping_member(rng: Rng, plan: Plan, at: Places) -> Plan:
    return _with(plan, at.members[0], rng.pick(("usurper", "walker")))


def _has_liar(plan: Plan) -> bool:
    return any(peer.liar is not None for peer in plan.peers)


def _lost_seats(rng: Rng, plan: Plan, at: Places) -> Plan:
    """One or two go for good."""
    lost = at.seats[: rng.between(1, 2)] if not _has_liar(plan) else at.seats[2:]
    when = rng.between(SUBMIT_AT + 200, SUBMIT_AT + 4_000)
    return replace(plan, crashes=(*plan.crashes, *(Crash(when, seat, None) for seat in lost)))


def _restarts(rng: Rng, plan: Plan, at: Places) -> Plan:
    """Seats, and the workers among them, come back with what they had saved."""
    found = [
        Crash(rng.between(SUBMIT_AT, SUBMIT_AT + 4_000), index, rng.between(200, 3_000))
        for index in (*at.seats, *at.strangers)
        if rng.chance(600)
    ]
    return replace(plan, crashes=(*plan.crashes, *found))


def _left_alone(rng: Rng, plan: Plan, at: Places) -> Plan:
    """All is decided while the submitter is away; then two seats, and all who could repeat it, go for good."""
    if _has_liar(plan) or plan.crashes or plan.jobs[0].agree > 2 or len(at.strangers) < 2:
        return plan
    workers = (*at.strangers, *at.members[1:])
    peers = tuple(replace(peer, works=i in workers) for i, peer in enumerate(plan.peers))
    gone = tuple(Crash(12_000, i, None) for i in (*at.seats[:2], *at.strangers))
    return replace(plan, peers=peers, jobs=(replace(plan.jobs[0], vanishes="for-a-while"),), crashes=gone)


def _others(at: Places) -> tuple[int, ...]:
    return (0, *at.members, *at.strangers)


def _unheard_leader(rng: Rng, plan: Plan, at: Places) -> Plan:
    """Only the other seats hear the leader, and what it has to tell others must come from them."""
    since = rng.between(SUBMIT_AT + 200, SUBMIT_AT + 1_500)
    clogs = tuple(Clog(since, since + 40_000, at.seats[0], i) for i in _others(at))
    return replace(plan, clogs=(*plan.clogs, *clogs))


def _deaf_seats(rng: Rng, plan: Plan, at: Places) -> Plan:
    """One or two seats hear no worker: what they know comes to them by way of others."""
    since, deaf = WORK_FROM + rng.below(600), at.seats[: rng.between(1, 2)]
    if rng.chance(500):
        deaf = at.seats[1:]
    clogs = tuple(Clog(since, since + 30_000, i, seat) for i in _others(at) for seat in deaf)
    return replace(plan, clogs=(*plan.clogs, *clogs))


def _parted_seats(rng: Rng, plan: Plan, at: Places) -> Plan:
    """For a while one seat is on the other side of a cut, with some of the rest."""
    since = rng.between(SUBMIT_AT + 200, SUBMIT_AT + 2_500)
    sides = frozenset((rng.pick(at.seats), *(i for i in _others(at) if rng.chance(400))))
    return replace(plan, partitions=(Partition(since, since + rng.between(3_000, 25_000), sides),))


def _loss(rng: Rng, plan: Plan, at: Places) -> Plan:
    network = Network(loss=rng.between(50, 250), duplication=50, straggling=100)
    return replace(plan, network=network, heal_at=25_000)


def _sleeping_seat(rng: Rng, plan: Plan, at: Places) -> Plan:
    when, seat = rng.between(SUBMIT_AT + 200, SUBMIT_AT + 2_500), rng.pick(at.seats)
    pauses = (Pause(when, seat, rng.between(500, 20_000)),)
    return replace(plan, pauses=pauses, clock_jumps=(ClockJump(when, rng.pick(at.seats), rng.between(1_000, 40_000)),))


def _greedy_worker(rng: Rng, plan: Plan, at: Places) -> Plan:
    """One has room for everything, and is quick; the others have as little as ever."""
    peers = list(plan.peers)
    peers[at.strangers[0]] = replace(peers[at.strangers[0]], slots=GREEDY_SLOTS, speed=4_000)
    job = replace(plan.jobs[0], tasks=rng.pick((16, 24)), task_ms=rng.pick((400, 1_500)))
    return replace(plan, peers=tuple(peers), jobs=(job,))


def _abandoned(rng: Rng, plan: Plan, at: Places) -> Plan:
    """So many of the panel go for good, two seats among them, that neither seats nor panel can decide anything, and the
    submitter is away: after long enough the first that is left takes care of the job, and its user accepts that."""
    panel = (*at.seats, *at.members)
    gone = (*at.seats[:2], *at.members[: max(0, len(panel) // 2 - 1)])
    when = rng.between(SUBMIT_AT + 200, SUBMIT_AT + 1_500)
    jobs = (replace(plan.jobs[0], ratified=True),)
    away = Crash(when, 0, CARETAKER_MS + rng.between(40_000, 100_000))
    crashes = (away, *(Crash(when + rng.below(500), index, None) for index in gone))
    within = SETTLE_MS + 2 * CARETAKER_MS
    return replace(plan, jobs=jobs, crashes=crashes, caretaker_ms=CARETAKER_MS, settle_within_ms=within)


Trouble = Callable[[Rng, Plan, Places], Plan]
TROUBLES: Final[dict[str, Trouble]] = {
    "lying-seat": _lying_seat,
    "probing-leader": _probing_leader,
    "lying-worker": _lying_worker,
    "usurping-member": _usurping_member,
    "lost-seats": _lost_seats,
    "restarts": _restarts,
    "left-alone": _left_alone,
    "unheard-leader": _unheard_leader,
    "deaf-seats": _deaf_seats,
    "parted-seats": _parted_seats,
    "lossy-network": _loss,
    "sleeping-seat": _sleeping_seat,
    "greedy-worker": _greedy_worker,
}
