"""Worlds by seed: those that once showed a bug, golden traces, fresh ones, and that a seed decides everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import golden
import pytest

from nexapod.cli.sim_command import parse_seeds, run_all, summary
from nexapod.sim.scenarios import SCENARIOS, run_seed

FRESH_FOR_S = 6
REGRESSIONS = {
    ("churn", 0): "a steward and worker in one peer asked itself for a refused commit without end",
    ("restart-everyone", 14): "a worker committed again, after a restart, to a task that it had finished",
    ("restart-everyone", 22): "the same",
    ("restart-everyone", 54): "tasks are stopped before others start",
    ("partition", 22): "an output that the submitter got as a worker was waited for without end",
    ("mixed", 57): "the same",
    ("lossy", 795487074): "a failure was never signed when the last replica that was out was given back",
    ("liars", 0): "a silent worker was given its lease back for ever",
    ("liars", 1): "a hoarder renewed for ever",
    ("liars", 21): "a certificate counted only the votes of one verdict",
    ("liars", 38): "a copycat had whole shards sent to it for a question",
    ("mixed", 5): "a reveal outlived its commit, which an equivocator's smaller one had replaced",
    ("mixed", 7): "a certificate counted only the votes of one verdict",
    ("liars", 77): "a copycat asked so often that the simulator stood still",
    ("mixed", 9): "a lease that came with a commit",
    ("restart-everyone", 900100008): "a settlement that was saved, but not told before the crash, went unseen",
    ("mixed", 795649114): "an equivocator's second commit, shown to the submitter alone, hid what had been judged",
    ("mixed", 795647427): "a checkpoint that never arrived had no progress to compare",
    ("mixed", 795663323): "a submitter that woke up alone took one steward's word for a failure",
    ("liars", 5000623): "an equivocator renewed its lease, and a failure waited for its result without end",
    ("liars", 795647403): "a copycat that was a steward copied the junk of another copycat",
}


@pytest.mark.parametrize(("scenario", "seed"), REGRESSIONS)
def test_a_world_that_once_showed_a_bug(scenario: str, seed: int) -> None:
    result = run_seed(scenario, seed)
    assert not result.violations, f"{result.replay}\n{result.violations}"


def test_the_golden_traces_are_as_they_were() -> None:
    expected = json.loads(golden.FILE.read_text(encoding="utf-8"))
    assert golden.digests() == expected, "if this change is meant: .venv/bin/python tests/sim/golden.py"


def test_fresh_seeds() -> None:
    """As many new worlds as fit into the time; a failure names the command that replays it."""
    names = [name for name in SCENARIOS if name not in ("big", "quiet")]
    start = int(time.time()) % 1_000_000_000
    until = time.monotonic() + FRESH_FOR_S
    count = 0
    while time.monotonic() < until:
        scenario = names[count % len(names)]
        result = run_seed(scenario, start + count)
        assert not result.violations, f"{result.replay}\n{result.violations}"
        count += 1
    assert count > 0


def test_a_seed_decides_everything_whatever_the_hash_seed() -> None:
    code = "from nexapod.sim.scenarios import run_seed; print(*[run_seed('mixed', s).digest for s in (4, 6, 9)])"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for hash_seed in ("1", "4711")
    }
    assert len(found) == 1


def test_different_seeds_are_different_worlds() -> None:
    assert run_seed("mixed", 1).digest != run_seed("mixed", 2).digest


def test_seeds_are_read_as_a_half_open_range() -> None:
    assert parse_seeds("3:5") == range(3, 5)
    assert parse_seeds("7") == range(7, 8)
    for bad in ("", "5:3", "a:b", "-1:4", "3:"):
        with pytest.raises(ValueError, match=r".*"):
            parse_seeds(bad)


def test_processes_change_nothing() -> None:
    alone = {r.seed: r.digest for r in run_all("mixed", range(2), 1)}
    spread = list(run_all("mixed", range(2), 2))
    assert {r.seed: r.digest for r in spread} == alone
    found = summary("mixed", spread, 1.0)
    assert found["seeds"] == 2
    assert found["violations"] == []
    assert found["settled"] == found["tasks"]
