"""Worlds that once broke a rule, each with what it showed. Whoever finds another adds its seed here.

They are the worlds of these seeds with all the work that was in them when they were found.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nexapod.sim.plan import Plan
from nexapod.sim.scenarios import lossy, mixed, partition, run_seed, simulate

REGRESSIONS: dict[tuple[str, int], str] = {
    ("lossy", 6): "a Lease, or a worker that came back, gave one worker more tasks of a shard than it may have",
    ("lossy", 42): "what one seat took for failed it never let a worker have that came later, while the other waited",
    ("partition", 7): "seats that lacked a succession kept the one that followed it, and asked nobody for the first",
    ("mixed", 49): "seats compared evidence, but never what they had adopted or whom the gate had admitted",
    ("mixed", 2): "a submitter that is no member of the panel was not given the admissions that it had missed",
    ("mixed", 10): "a member that had missed two successions was taken for a seat by others, and never asked",
    ("mixed", 12): "the same submitter, in a network that only loses messages",
    ("mixed", 986): "a worker that never ends held a failure up for as long as a task may run",
}


LIGHT: dict[tuple[str, int], str] = {
    ("mixed", 23): "a seat refused a frozen commit because the seat that handed it on was its worker, and had no lease",
    ("mixed", 10): "a seat did not save a freeze that it signed, when a commit that it names had made room for another",
}
"""With less work in them, as `nexapod sim` has them."""
FULL: dict[str, Callable[..., Plan]] = {"lossy": lossy, "mixed": mixed, "partition": partition}


@pytest.mark.parametrize(("scenario", "seed"), sorted(REGRESSIONS))
def test_world_keeps_the_rules(scenario: str, seed: int) -> None:
    result = simulate(FULL[scenario](seed, light=False))
    assert result.violations == (), f"{REGRESSIONS[scenario, seed]}: {scenario}({seed}, light=False)"


@pytest.mark.parametrize(("scenario", "seed"), sorted(LIGHT))
def test_light_world_keeps_the_rules(scenario: str, seed: int) -> None:
    result = run_seed(scenario, seed)
    assert result.violations == (), f"{LIGHT[scenario, seed]}: {result.replay}"
