"""A world in which nothing goes wrong: nobody lies, nothing breaks, all machines are about as fast. What happens there
is known beforehand, so whatever is done beyond it, or late, is done for no reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, TaskId
from nexapod.sim.plan import PeerPlan, Plan

if TYPE_CHECKING:
    from nexapod.sim.world import Job, World

SLOTS: Final = PeerPlan().slots
NEVER: Final = ("Release", "Renew", "Refused", "garbage")
"""Nobody gives a short task back, asks how it stands, or will not do what it has offered."""
OBJECTIONS_MAX: Final = 2
"""A bid may reach one seat of the gate before another."""
VALUES_MAX: Final = 24
"""Of the few rounds in which all are admitted: each seat tells the others, and says it again once."""
SETTLED_WITHIN_MS: Final[Millis] = 3_000
"""Beside the tasks themselves, one after another on each machine."""
PATIENCE_MS: Final[Millis] = limits.DIFFER_MS + 10_000
"""Where a task could have more replicas than there are workers, it fails only once nobody else has come for so long."""
MESSAGES: Final = 480
MESSAGES_A_RUN: Final = 20


def is_calm(plan: Plan) -> bool:
    faults = (plan.crashes, plan.pauses, plan.disk_faults, plan.clock_jumps, plan.orders, plan.partitions, plan.clogs)
    network = plan.network
    quiet = not any(faults) and not (network.loss or network.duplication or network.straggling)
    honest = all(peer.liar is None and not peer.drift and peer.slots == SLOTS for peer in plan.peers)
    return plan.scenario == "seated" and quiet and honest


def check(world: World) -> None:
    """At its end."""
    for job in world.jobs:
        if job.settled_at is not None:
            _runs(world, job)
            _in_time(world, job)
    _messages(world)


def _runs(world: World, job: Job) -> None:
    """Each task is leased to as many workers as must agree; more only if their results cannot."""
    plan = job.plan
    odd = {*plan.failing, *plan.nondeterministic}
    for task in range(plan.tasks):
        assert job.id is not None
        leased = len(world.conduct.leased(TaskId(job.id, task)))
        most = plan.max_replicas if task in odd else plan.agree
        if not plan.agree <= leased <= most:
            _violated(world, f"{leased} workers have task {task}, for which {plan.agree} must agree")


def _in_time(world: World, job: Job) -> None:
    plan = job.plan
    rounds = plan.max_replicas if plan.failing or plan.nondeterministic else 1 + plan.tasks * plan.agree // 8
    allowed = SETTLED_WITHIN_MS + 2 * rounds * plan.task_ms
    if plan.max_replicas > len(world.plan.peers):
        allowed += PATIENCE_MS
    assert job.settled_at is not None
    if job.settled_at - plan.at > allowed:
        _violated(world, f"{job.draft.name} takes {job.settled_at - plan.at} ms, at most {allowed} expected")


def _messages(world: World) -> None:
    stats = world.stats
    patient = any(job.plan.max_replicas > len(world.plan.peers) for job in world.jobs)
    for kind in NEVER:
        if kind == "Renew" and patient:
            continue
        if stats.by_kind.get(kind, 0):
            _violated(world, f"{stats.by_kind[kind]} times {kind}")
    for kind, most in (("Object", OBJECTIONS_MAX), ("Value", VALUES_MAX)):
        if stats.by_kind.get(kind, 0) > most:
            _violated(world, f"{stats.by_kind[kind]} times {kind}, at most {most} expected")
    if stats.honest_penalties:
        _violated(world, f"penalties: {stats.honest_penalties}")
    allowed = MESSAGES + MESSAGES_A_RUN * stats.runs + (MESSAGES if patient else 0)
    if stats.sent > allowed:
        _violated(world, f"{stats.sent} messages, at most {allowed} expected")
    for job in world.jobs:
        if job.id is not None and not world.conduct.is_plain(job.id):
            _violated(world, "somebody would replace a seat")


def _violated(world: World, what: str) -> None:
    world.checkers.violated("no-reason", what)
