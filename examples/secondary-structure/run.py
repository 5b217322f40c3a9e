#!/usr/bin/env python3
"""Runs the module by hand, with no mesh: each record of a FASTA file as one task would, under wasmtime.

    python run.py OUT [--fasta chains.fasta] [--weights weights.bin]

Writes OUT/<record name>/prediction.tsv. Needs the `wasmtime` package, which NEXAPod itself depends on. A real task
runs in the executor's sandbox, with limits on time and memory; here there is only a bound on the instructions.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import wasmtime

HERE = Path(__file__).resolve().parent
MODULE = HERE / "secondary_structure.wasm"
FUEL = 100_000_000_000
"""Wasm instructions: several times what the longest sequence allowed needs."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: int
    stderr: str


class Runner:
    """The compiled module, for as many runs as wanted."""

    def __init__(self, module: Path = MODULE) -> None:
        config = wasmtime.Config()
        config.consume_fuel = True
        self._engine = wasmtime.Engine(config)
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        self._module = wasmtime.Module.from_file(self._engine, str(module))

    def run(
        self,
        folders: Mapping[str, Path],
        *,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Outcome:
        """One run that sees only `folders` (path inside -> folder here). Raises wasmtime.Trap when out of fuel."""
        with tempfile.NamedTemporaryFile() as stderr:
            wasi = wasmtime.WasiConfig()
            wasi.argv = ["predict", *arguments]
            wasi.env = list((env or {}).items())
            wasi.stderr_file = stderr.name
            for inside, outside in folders.items():
                wasi.preopen_dir(str(outside), inside)
            store = wasmtime.Store(self._engine)
            store.set_fuel(FUEL)
            store.set_wasi(wasi)
            status = self._start(store)
            store.close()
            return Outcome(status, Path(stderr.name).read_text("utf-8", errors="replace"))

    def _start(self, store: wasmtime.Store) -> int:
        start = self._linker.instantiate(store, self._module).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        try:
            start(store)
        except wasmtime.ExitTrap as exit_:
            return int(exit_.code)
        return 0

    def predict(self, record: str, weights: bytes) -> tuple[Outcome, str | None]:
        """One FASTA record as a task sees it; the table, or None when there is none."""
        with tempfile.TemporaryDirectory() as scratch:
            inputs, outputs = Path(scratch, "input"), Path(scratch, "output")
            inputs.mkdir()
            outputs.mkdir()
            (inputs / "record.fasta").write_bytes(record.encode("utf-8"))
            (inputs / "weights.bin").write_bytes(weights)
            outcome = self.run({"/input": inputs, "/output": outputs})
            table = outputs / "prediction.tsv"
            return outcome, table.read_text("utf-8") if table.exists() else None


def records(fasta: str) -> Iterator[tuple[str, str]]:
    """Name and text of each record."""
    for record in re.split(r"^>", fasta, flags=re.MULTILINE)[1:]:
        yield record.split(maxsplit=1)[0], f">{record}"


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(description="Predict each record of a FASTA file, with no mesh.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--fasta", type=Path, default=HERE / "chains.fasta")
    parser.add_argument("--weights", type=Path, default=HERE / "weights.bin", help="made by weights.py")
    options = parser.parse_args(arguments)
    try:
        runner, weights = Runner(), options.weights.read_bytes()
        for name, record in records(options.fasta.read_text("utf-8")):
            outcome, table = runner.predict(record, weights)
            if outcome.status != 0 or table is None:
                print(f"run.py: {name}: exit {outcome.status}: {outcome.stderr.strip()}", file=sys.stderr)
                return 1
            folder = options.out / re.sub(r"[^A-Za-z0-9_-]", "_", name)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "prediction.tsv").write_text(table, "utf-8")
    except (OSError, wasmtime.Trap) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
