#!/usr/bin/env python3
"""Scores predictions: Q3 against the structures, and equality with the labels of the original PyTorch program.

Q3 is the share of residues whose state (helix H, strand E, rest L) is predicted as DSSP assigns it from the
coordinates. A table is matched to its chain by the residues it lists, so it does not matter how files are named.

    python score.py RESULTS...      files, or folders that are searched for prediction.tsv

Exit: 0 = every chain is there and labelled as the reference; 1 = not; 2 = a table could not be read.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRUTH = HERE / "truth.dssp.tsv"
REFERENCE = HERE / "reference.predictdssp.json"
TABLE_NAME = "prediction.tsv"
COLUMNS = ["index", "residue", "label", "p_H", "p_E", "p_L", "known"]
CLASSES = "HEL"


class TableError(Exception):
    """A prediction table is not one. The message says where."""


@dataclass(frozen=True)
class Prediction:
    """One table: a character a residue."""

    residues: str
    labels: str
    probabilities: tuple[tuple[float, float, float], ...]
    known: tuple[bool, ...]
    """False for residues outside the 20, of which the network was told nothing."""


@dataclass(frozen=True)
class Chain:
    """A chain of known structure."""

    name: str
    sequence: str
    truth: str
    reference: str


@dataclass(frozen=True)
class Score:
    """How one chain was predicted."""

    name: str
    residues: int
    right: int
    unlike_reference: int
    """Residues labelled otherwise than by the reference: 0 is what the example promises."""

    @property
    def q3(self) -> float:
        return self.right / self.residues


def parse_table(text: str) -> Prediction:
    """A prediction table. Raises TableError."""
    lines = text.split("\n")
    if lines[0].split("\t") != COLUMNS or lines[-1] != "":
        raise TableError("line 1: not the header of a prediction, or the last line has no end")
    rows = [_row(number, line) for number, line in enumerate(lines[1:-1], start=1)]
    if not rows:
        raise TableError("no residue")
    return Prediction(
        residues="".join(row[0] for row in rows),
        labels="".join(row[1] for row in rows),
        probabilities=tuple(row[2] for row in rows),
        known=tuple(row[3] for row in rows),
    )


def _row(number: int, line: str) -> tuple[str, str, tuple[float, float, float], bool]:
    match line.split("\t"):
        case [index, residue, label, helix, strand, rest, ("0" | "1") as known] if (
            index == str(number) and len(residue) == 1 and len(label) == 1 and label in CLASSES
        ):
            try:
                return residue, label, (float(helix), float(strand), float(rest)), known == "1"
            except ValueError as error:
                raise TableError(f"residue {number}: {error}") from error
        case _:
            raise TableError(f"residue {number}: not a row of a prediction: {line!r}")


def load_chains(truth: Path = TRUTH, reference: Path = REFERENCE) -> list[Chain]:
    """The chains of known structure, in the order of chains.fasta."""
    labels: dict[str, str] = json.loads(reference.read_text("utf-8"))
    with truth.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [Chain(row["name"], row["sequence"], row["dssp3"], labels[row["name"]]) for row in rows]


def score(chain: Chain, prediction: Prediction) -> Score:
    """One chain's score. Raises TableError when the prediction is of another sequence."""
    if prediction.residues != chain.sequence:
        raise TableError(f"not a prediction of {chain.name}")
    return Score(
        name=chain.name,
        residues=len(chain.sequence),
        right=_same(prediction.labels, chain.truth),
        unlike_reference=len(chain.sequence) - _same(prediction.labels, chain.reference),
    )


def _same(a: str, b: str) -> int:
    return sum(x == y for x, y in zip(a, b, strict=True))


def overall_q3(scores: Iterable[Score]) -> float:
    """Q3 over all residues of all chains: long chains weigh more."""
    listed = list(scores)
    return sum(item.right for item in listed) / sum(item.residues for item in listed)


def score_tables(tables: Mapping[str, str], chains: Iterable[Chain]) -> list[Score]:
    """The score of each table (name -> text), matched to its chain. Raises TableError, naming the table."""
    by_sequence = {chain.sequence: chain for chain in chains}
    return [_score_table(name, text, by_sequence) for name, text in tables.items()]


def _score_table(name: str, text: str, by_sequence: Mapping[str, Chain]) -> Score:
    try:
        prediction = parse_table(text)
    except TableError as error:
        raise TableError(f"{name}: {error}") from error
    chain = by_sequence.get(prediction.residues)
    if chain is None:
        raise TableError(f"{name}: its residues are none of the chains of known structure")
    return score(chain, prediction)


def find_tables(paths: Iterable[Path]) -> dict[str, str]:
    """Name -> text of the files given, and of each prediction.tsv below the folders given. Raises OSError."""
    found: list[Path] = []
    for path in paths:
        found += sorted(path.rglob(TABLE_NAME)) if path.is_dir() else [path]
    return {str(path): path.read_text("utf-8") for path in found}


def report(scores: list[Score], chains: list[Chain]) -> str:
    """What the command prints."""
    lines = [f"{'chain':<12}{'residues':>9}{'Q3':>8}  unlike the reference"]
    lines += [f"{item.name:<12}{item.residues:>9}{item.q3:>8.4f}  {item.unlike_reference}" for item in scores]
    missing = sorted({chain.name for chain in chains} - {item.name for item in scores})
    if scores:
        residues, unlike = sum(item.residues for item in scores), sum(item.unlike_reference for item in scores)
        lines.append(f"{'all':<12}{residues:>9}{overall_q3(scores):>8.4f}  {unlike}")
    if missing:
        lines.append(f"no prediction of {len(missing)}: {', '.join(missing)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(description="Score secondary structure predictions.")
    parser.add_argument("results", nargs="+", type=Path, help=f"tables, or folders that hold {TABLE_NAME} files")
    options = parser.parse_args(arguments)
    chains = load_chains()
    try:
        scores = score_tables(find_tables(options.results), chains)
    except (TableError, OSError, UnicodeDecodeError) as error:
        print(f"score.py: {error}", file=sys.stderr)
        return 2
    print(report(scores, chains))
    complete = {item.name for item in scores} == {chain.name for chain in chains}
    return 0 if complete and not any(item.unlike_reference for item in scores) else 1


if __name__ == "__main__":
    sys.exit(main())
