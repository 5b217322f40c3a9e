"""Worlds that once broke a rule, each with what it showed. Whoever finds another adds its seed here."""

from __future__ import annotations

import pytest

from nexapod.sim.v3.scenarios import run_seed

REGRESSIONS: dict[tuple[str, int], str] = {
    ("liars", 32): "seats that work never counted their own results where a group is a block of addresses",
    ("liars", 30): "results that came after a task had failed by idleness were neither frozen nor given up",
}


@pytest.mark.parametrize(("scenario", "seed"), sorted(REGRESSIONS))
def test_world_keeps_the_rules(scenario: str, seed: int) -> None:
    result = run_seed(scenario, seed)
    assert result.violations == (), f"{REGRESSIONS[scenario, seed]}: {result.replay}"
