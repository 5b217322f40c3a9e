"""The command `nexapod demo`: asks demo_mesh to do it, and shows it to a person or prints it as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nexapod.cli.demo_mesh import Options, run_demo

SHOWN_WIDTH = 80
RESULTS = "Results (w1 is worker-1)"


def demo(
    peers: Annotated[
        int, typer.Option(min=3, max=32, help="How many workers to start, besides one bootstrap peer.")
    ] = 5,
    fasta: Annotated[Path | None, typer.Option(help="Another FASTA file to predict.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Its known structure, as the example's truth.dssp.tsv.")] = None,
    executor: Annotated[Literal["wasm", "docker"], typer.Option(help="The sandbox to run the tasks in.")] = "wasm",
    no_kill: Annotated[bool, typer.Option("--no-kill", help="Do not kill a worker in the middle.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep results and logs in this new folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON, and nothing else.")] = False,
) -> None:
    """A mesh of separate daemons on this machine does a real job, loses a peer in the middle, and proves its result."""
    options = Options(peers, fasta, truth, executor, not no_kill, output)
    if as_json:
        figures = run_demo(options, lambda _: None, lambda _: None)
        typer.echo(json.dumps(figures, indent=2))
        return
    _demo_for_people(options)


def _demo_for_people(options: Options) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=False) as progress:
        decided = progress.add_task("tasks decided", total=None, start=False)
        working = progress.add_task("tasks under way", total=None, start=False)

        def say(text: str) -> None:
            progress.console.print(text, markup=False)

        def show(view: dict[str, Any]) -> None:
            progress.start_task(decided)
            progress.start_task(working)
            progress.update(decided, total=view["tasks"], completed=view["accepted"] + view["failed"])
            progress.update(working, total=view["tasks"], completed=view["running"])

        figures = run_demo(options, say, show)
        progress.update(working, visible=False)
    _report(console, figures)


def _report(console: Any, figures: dict[str, Any]) -> None:
    from rich.table import Table

    names = figures["names"]
    if figures["scores"]:
        table = Table("chain", "residues", "Q3", "computed by", "judged by", title=RESULTS)
        for row in figures["scores"]:
            chain = row["chain"]
            computed = " ".join(_mark(names, replica) for replica in figures["replicas"][chain])
            judged = " ".join(_short(names, judge) for judge in figures["judges"][chain])
            table.add_row(chain, str(row["length"]), f"{row['q3']:.3f}", computed, judged)
    else:
        table = Table("record", "residues", "computed by", "judged by", title=RESULTS)
        for chain, labels in figures["predictions"].items():
            computed = " ".join(_mark(names, replica) for replica in figures["replicas"][chain])
            judged = " ".join(_short(names, judge) for judge in figures["judges"][chain])
            table.add_row(chain, str(len(labels)), computed, judged)
    console.print(table)
    _sample(console, figures)
    cores = figures["cores"]
    ideal = figures["task_s"] / min(cores, max(1, figures["peers"] - 1))
    console.print(
        f"{figures['accepted']} of {figures['tasks']} tasks accepted, {figures['failed']} failed"
        + (f", Q3 {figures['q3']:.4f} over all residues" if figures["q3"] is not None else "")
    )
    console.print(
        f"wall time {figures['wall_s']:.1f} s; the tasks themselves took {figures['task_s']:.2f} s in all,"
        f" {ideal:.2f} s on {cores} cores: the mesh's own share is {figures['wall_s'] - ideal:.1f} s"
    )
    console.print(f"results and logs: {figures['folder']}", soft_wrap=True)
    console.print(f"certificate: {figures['certificate']}", soft_wrap=True)
    submitter = _short(names, figures["submitter"])
    console.print(f"verified offline, as the word of {submitter}: {'yes' if figures['verified'] else 'NO'}")


def _mark(names: dict[str, str], replica: dict[str, Any]) -> str:
    name = _short(names, replica["peer"])
    return name if replica["agrees"] else f"({name}: {replica['outcome']}, not counted)"


def _short(names: dict[str, str], peer: str) -> str:
    return names.get(peer, peer[-6:]).replace("worker-", "w")


def _sample(console: Any, figures: dict[str, Any]) -> None:
    """One prediction against the truth."""
    truth = figures.get("truth") or {}
    both = [name for name in figures["predictions"] if name in truth]
    if not both:
        return
    name = min(both, key=lambda chain: len(truth[chain]))
    predicted, known = figures["predictions"][name], truth[name]
    same = "".join("|" if a == b else " " for a, b in zip(predicted, known, strict=True))
    console.print(f"{name}, predicted against known structure (H helix, E strand, L neither):")
    for at in range(0, len(known), SHOWN_WIDTH):
        for title, line in (("predicted", predicted), ("", same), ("known", known)):
            console.print(f"  {title:<10}{line[at : at + SHOWN_WIDTH]}", markup=False)
