"""Do jobs of weeks live through volunteers that leave for good? In the simulator, with real nodes.

    python benchmarks/leaving.py --half-life 1 --days 6

So many machines are there at any time; when one leaves, another that nobody knew joins within the hour. Each job has a
submitter of its own, which goes a minute after it has submitted it and comes back when it should long be done. Said
are which jobs settled, which came to caretakers, and how many members of each panel were there, day by day. Slow: a
day of 16 machines takes about two minutes of processor time. Exits with 1 if a job was not settled.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Final

from nexapod.protocol.primitives import Millis
from nexapod.sim.plan import Crash, JobPlan, PeerPlan, Plan
from nexapod.sim.rng import Rng
from nexapod.sim.world import World

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
SUBMITTED_MS: Final = 600_000
"""By then a submitter has met the machines that are there."""
PLACED_MS: Final = SUBMITTED_MS + 60_000
"""Every submitter leaves then."""
REPLACED_MS: Final = (60_000, HOUR_MS)
"""How long after one has left the next one joins."""
TASK_MS: Final = 8 * HOUR_MS
AFTERWARDS_MS: Final = 2 * DAY_MS
"""What a submitter that is back is given to settle."""


def leaving(seed: int, half_life_ms: Millis, span_ms: Millis, present: int, jobs: int, working: int) -> Plan:
    """`present` machines with lives of that half-life, `working` of which run tasks; and somewhat less work than they
    could do in the span."""
    rng = Rng(seed).fork("leaving", half_life_ms)
    submitters = [PeerPlan(slots=1, steward=False, works=False) for _ in range(jobs)]
    lives = [(p, *life) for p in range(present) for life in _lives(rng.fork("place", p), half_life_ms, span_ms)]
    peers = (*submitters, *(PeerPlan(slots=1, joins_at=since, works=p < working) for p, since, _ in lives))
    crashes = [Crash(PLACED_MS, i, span_ms - PLACED_MS) for i in range(jobs)]
    crashes += [Crash(until, jobs + i, None) for i, (_, _, until) in enumerate(lives) if until < span_ms]
    tasks = max(1, working * span_ms * 6 // (10 * TASK_MS * 2 * jobs))
    planned = [
        JobPlan(i, SUBMITTED_MS + 1_000 * i, tasks, TASK_MS, wall_ms=7 * DAY_MS, checkpoints=True) for i in range(jobs)
    ]
    return Plan(
        "leaving",
        seed,
        peers,
        tuple(planned),
        crashes=tuple(crashes),
        heal_at=span_ms,
        settle_within_ms=AFTERWARDS_MS,
    )


def _lives(rng: Rng, half_life_ms: Millis, span_ms: Millis) -> list[tuple[Millis, Millis]]:
    """(joins, leaves) of those that are at one place one after another."""
    found = []
    at = 0
    while at < span_ms:
        life = max(1, round(-math.log2(rng.between(1, 999_999) / 1_000_000) * half_life_ms))
        found.append((at, at + life))
        at += life + rng.between(*REPLACED_MS)
    return found


def panels(world: World) -> str:
    """Of each job how many of the members that the panel's own members know are there."""
    said = []
    for job in world.jobs:
        known: set[tuple[str, ...]] = set()
        for machine in world.machines:
            report = machine.node.job_report(job.id) if machine.node is not None and job.id is not None else None
            if report is not None and machine.peer in report.panel:
                known.add(report.panel)
        there = [sum(world.by_peer[peer].node is not None for peer in panel) for panel in known]  # type: ignore[index]
        said.append(f"{max(there, default=0)} of {max(map(len, known), default=0)}")
    return ", ".join(said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half-life", type=float, default=1, metavar="DAYS")
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--present", type=int, default=16, help="machines at any time")
    parser.add_argument("--working", type=int, default=4, help="those of them that run tasks")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    told = parser.parse_args()
    span_ms = round(told.days * DAY_MS)
    plan = leaving(told.seed, round(told.half_life * DAY_MS), span_ms, told.present, told.jobs, told.working)
    helped: dict[str, None] = {}

    def tell(line: str) -> None:
        if "caretaking_begun" in line:
            helped[line.split("job=")[1].split()[0]] = None

    world = World(plan, tell=tell)
    for half_day in range(1, math.ceil((span_ms + AFTERWARDS_MS) / (DAY_MS // 2)) + 1):
        world.run_until(min(half_day * DAY_MS // 2, span_ms + AFTERWARDS_MS))
        print(f"day {half_day / 2:.1f}: members there: {panels(world)}", flush=True)
        if all(job.over for job in world.jobs):
            break
    settled = sum(job.settled_at is not None for job in world.jobs)
    print(f"{settled} of {len(world.jobs)} jobs settled; {len(helped)} came to caretakers")
    return 0 if settled == len(world.jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
