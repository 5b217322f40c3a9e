"""`nexapod sim`: many deterministic worlds, each decided by its seed, over all cores. Exit 1 when a rule was broken.

Knows how to spread seeds over processes and how to print; what happens in a world is nexapod.sim's business.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Annotated

import typer

from nexapod.sim.scenarios import SCENARIOS, Result, run_seed


def parse_seeds(text: str) -> range:
    """`A:B` is the seeds from A up to but not including B; `A` is one. Raises ValueError on anything else."""
    first, colon, last = text.partition(":")
    seeds = range(int(first), int(last)) if colon else range(int(first), int(first) + 1)
    if not seeds or seeds.start < 0:
        raise ValueError("no seeds")
    return seeds


def run_all(scenario: str, seeds: range, processes: int) -> Iterator[Result]:
    """One result a seed, as they come."""
    if processes <= 1 or len(seeds) == 1:
        yield from (run_seed(scenario, seed) for seed in seeds)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(processes, len(seeds)), mp_context=context) as pool:
        for done in as_completed([pool.submit(run_seed, scenario, seed) for seed in seeds]):
            yield done.result()


def summary(scenario: str, results: list[Result], wall_s: float) -> dict[str, object]:
    """All runs in one object: what --json prints."""
    tasks = sum(r.tasks for r in results)
    return {
        "scenario": scenario,
        "seeds": len(results),
        "violations": [
            {"seed": r.seed, "scenario": r.scenario, "invariant": v.invariant, "detail": v.detail, "at_ms": v.at}
            for r in results
            for v in r.violations
        ],
        "settled": sum(r.settled for r in results),
        "failed": sum(r.failed for r in results),
        "tasks": tasks,
        "crashes": sum(r.crashes for r in results),
        "events": sum(r.events for r in results),
        "messages": sum(r.messages for r in results),
        "messages_per_task": round(sum(r.messages_per_task * r.tasks for r in results) / max(1, tasks), 1),
        "virtual_s": sum(r.virtual_ms for r in results) // 1000,
        "longest_settling_s": max((r.lag_ms for r in results), default=0) / 1000,
        "wall_s": round(wall_s, 1),
    }


def sim(
    seeds: Annotated[str, typer.Option(help="Which seeds: A:B (B excluded), or one.")] = "0:50",
    scenario: Annotated[str, typer.Option(help=f"One of: {', '.join(SCENARIOS)}.")] = "mixed",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes; 0 = one a core.", min=0)] = 0,
    trace: Annotated[bool, typer.Option("--trace", help="Print all that happens in the first seed's world.")] = False,
) -> None:
    """Run the whole mesh in a simulator, with faults and liars, and check that every promise holds."""
    try:
        chosen = parse_seeds(seeds)
    except ValueError:
        raise typer.BadParameter(f"{seeds!r} names no seeds: say 0:300, or 17", param_hint="--seeds") from None
    if scenario not in SCENARIOS:
        known = ", ".join(SCENARIOS)
        raise typer.BadParameter(f"{scenario!r} is none of {known}", param_hint="--scenario")
    began = time.monotonic()
    if trace:
        results: list[Result] = [run_seed(scenario, chosen.start, typer.echo)]
    else:
        results = []
        for result in run_all(scenario, chosen, jobs or os.cpu_count() or 1):
            results.append(result)
            if result.violations and not as_json:
                _report(result)
    results.sort(key=lambda r: r.seed)
    found = summary(scenario, results, time.monotonic() - began)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print_summary(found, results)
    raise typer.Exit(1 if any(r.violations for r in results) else 0)


def _report(result: Result) -> None:
    for violation in result.violations:
        typer.echo(f"{violation.invariant} at {violation.at} ms: {violation.detail}")
    features = f" ({', '.join(result.features)})" if result.features else ""
    typer.echo(f"  replay{features}: {result.replay} --trace")


def _print_summary(found: dict[str, object], results: list[Result]) -> None:
    broken = sum(1 for r in results if r.violations)
    typer.echo(
        f"{found['scenario']}: {found['seeds']} seeds, {broken} with violations;"
        f" {found['settled']} of {found['tasks']} tasks settled, {found['failed']} failed as they should;"
        f" {found['messages_per_task']} messages a task, {found['crashes']} crashes,"
        f" {found['virtual_s']} virtual seconds in {found['wall_s']} s"
    )
