#!/usr/bin/env python3
"""Scores reprof's tables against the known structures: Q3, the share of residues that are labelled right.

    python score.py RESULTS...       tables, or folders that hold record.reprof files

Exit 0: all chains are there. Exit 1: some are missing. Exit 2: something is no table of a known chain.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRUTH = HERE.parent / "secondary-structure" / "truth.dssp.tsv"
TABLE_NAME = "record.reprof"
FIRST_COLUMNS = ["No", "AA", "PHEL"]
LABELS = "HEL"


class TableError(Exception):
    """Not a prediction by reprof, or of no known chain. The message says where."""


@dataclass(frozen=True)
class Chain:
    """A chain of known structure, one letter a residue."""

    name: str
    sequence: str
    truth: str


@dataclass(frozen=True)
class Score:
    """How one chain was predicted."""

    name: str
    residues: int
    right: int

    @property
    def q3(self) -> float:
        return self.right / self.residues


def parse_table(text: str) -> tuple[str, str]:
    """The residues and their labels. Raises TableError."""
    rows = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    if not rows or rows[0][:3] != FIRST_COLUMNS:
        raise TableError("not the table that reprof writes: its header is missing")
    for number, row in enumerate(rows[1:], start=1):
        if row[0] != str(number) or len(row) != len(rows[0]) or len(row[1]) != 1 or row[2] not in tuple(LABELS):
            raise TableError(f"residue {number}: not a row of a prediction")
    return "".join(row[1] for row in rows[1:]), "".join(row[2] for row in rows[1:])


def load_chains(truth: Path = TRUTH) -> list[Chain]:
    """The chains of known structure."""
    with truth.open(encoding="utf-8", newline="") as file:
        return [Chain(row["name"], row["sequence"], row["dssp3"]) for row in csv.DictReader(file, delimiter="\t")]


def score_tables(tables: Mapping[str, str], chains: Iterable[Chain]) -> list[Score]:
    """The score of each table (name -> text), matched to its chain. Raises TableError, naming the table."""
    by_sequence = {chain.sequence: chain for chain in chains}
    scores = []
    for name, text in tables.items():
        try:
            residues, labels = parse_table(text)
        except TableError as error:
            raise TableError(f"{name}: {error}") from None
        chain = by_sequence.get(residues)
        if chain is None:
            raise TableError(f"{name}: its residues are none of the chains of known structure")
        right = sum(label == known for label, known in zip(labels, chain.truth, strict=True))
        scores.append(Score(chain.name, len(residues), right))
    return scores


def overall_q3(scores: Iterable[Score]) -> float:
    """Q3 over all residues of all chains: long chains weigh more."""
    listed = list(scores)
    return sum(item.right for item in listed) / sum(item.residues for item in listed)


def find_tables(paths: Iterable[Path]) -> dict[str, str]:
    """Name -> text of the files given, and of each record.reprof below the folders given. Raises OSError."""
    found = [file for path in paths for file in (sorted(path.rglob(TABLE_NAME)) if path.is_dir() else [path])]
    return {str(path): path.read_text("utf-8") for path in found}


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(description="Score reprof's predictions.")
    parser.add_argument("results", nargs="+", type=Path, help=f"tables, or folders that hold {TABLE_NAME} files")
    options = parser.parse_args(arguments)
    chains = load_chains()
    try:
        scores = score_tables(find_tables(options.results), chains)
    except (TableError, OSError, UnicodeDecodeError) as error:
        print(f"score.py: {error}", file=sys.stderr)
        return 2
    print(f"{'chain':<12}{'residues':>9}{'Q3':>8}")
    for item in scores:
        print(f"{item.name:<12}{item.residues:>9}{item.q3:>8.4f}")
    if scores:
        print(f"{'all':<12}{sum(item.residues for item in scores):>9}{overall_q3(scores):>8.4f}")
    missing = sorted({chain.name for chain in chains} - {item.name for item in scores})
    if missing:
        print(f"no prediction of {len(missing)}: {', '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
