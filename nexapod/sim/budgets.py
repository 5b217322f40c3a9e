"""What one trouble may cost at most: how much later a job settles, tasks that run again, messages.

Found in a thousand worlds, by those with that trouble alone, with a half on top. What costs more has forgotten to do
something in time, and only a long stop or another's help came to its aid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nexapod.protocol.primitives import Millis

if TYPE_CHECKING:
    from nexapod.sim.world import World


@dataclass(frozen=True, slots=True)
class Budget:
    """`settled_ms`: after submission, or after the network has healed. `runs`: beyond those that must agree."""

    settled_ms: Millis
    runs: int
    messages: int


BUDGETS: Final = {
    "greedy-worker": Budget(13_000, 2, 2_500),
    "lossy-network": Budget(24_000, 4, 1_800),
    "sleeping-seat": Budget(30_000, 5, 1_400),
    "parted-seats": Budget(46_000, 20, 2_600),
    "restarts": Budget(38_000, 20, 1_500),
    "lost-seats": Budget(68_000, 11, 2_500),
    "unheard-leader": Budget(45_000, 3, 1_100),
    "deaf-seats": Budget(72_000, 15, 2_000),
}
PATIENT: Final = 8
"""A job that may have more replicas than there are workers takes patience, and is not looked at."""


def check(world: World) -> None:
    """At its end."""
    features = world.plan.features
    budget = BUDGETS.get(features[0]) if len(features) == 1 else None
    if budget is None or any(job.plan.max_replicas > PATIENT for job in world.jobs):
        return
    needed = sum(
        job.plan.agree * job.plan.tasks + (job.plan.max_replicas - job.plan.agree) * len(job.plan.failing)
        + (job.plan.max_replicas - job.plan.agree) * len(job.plan.nondeterministic)
        for job in world.jobs
    )  # fmt: skip
    begun = max([world.plan.heal_at, *(job.plan.at for job in world.jobs)])
    settled = max((job.settled_at or 0 for job in world.jobs), default=0) - begun
    for what, spent, most in (
        ("ms to settle", settled, budget.settled_ms),
        ("runs too many", world.stats.runs - needed, budget.runs),
        ("messages", world.stats.sent, budget.messages),
    ):
        if spent > most:
            world.checkers.violated("over-budget", f"{features[0]}: {spent} {what}, at most {most} expected")
