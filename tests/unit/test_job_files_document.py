"""docs/job-files.md says what the reader of job files accepts: the same keys, defaults and bounds, both ways round."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from nexapod.cli.jobfile import read_job
from nexapod.config import ConfigError
from nexapod.protocol import limits

TEXT = (Path(__file__).parents[2] / "docs" / "job-files.md").read_text(encoding="utf-8")
TABLES = ["job", "run", "tasks", "limits", "requires", "validate"]
RIGHT = """
[job]
name = "x"
[run]
executor = "wasm"
module = "m.wasm"
[tasks]
count = 1
[limits]
[requires]
[validate]
"""


def rows(table: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    section = TEXT.split(f"## `[{table}]`\n", 1)[1].split("\n## ", 1)[0]
    lines = section[section.index("| key |") :].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def told(folder: Path, text: str) -> str:
    (folder / "m.wasm").write_bytes(b"\0asm")
    (folder / "job.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_job(folder / "job.toml")
    return str(caught.value)


def accepted(folder: Path, table: str) -> set[str]:
    """The keys of a table, as the error about one that it does not have lists them."""
    said = told(folder, RIGHT.replace(f"[{table}]", f"[{table}]\nqqqqqqqqqqqqqqqq = 1"))
    found = re.search(r"qqqq: unknown key; allowed: (.*)", said)
    assert found, said
    return set(found[1].split(", "))


@pytest.mark.parametrize("table", TABLES)
def test_the_document_lists_the_keys_that_are_accepted(tmp_path: Path, table: str) -> None:
    assert {row[0].strip("`") for row in rows(table)} == accepted(tmp_path, table)


def test_it_has_a_section_for_each_table(tmp_path: Path) -> None:
    said = told(tmp_path, "qqqqqqqqqqqqqqqq = 1\n" + RIGHT)
    found = re.search(r"qqqq: unknown key; allowed: (.*)", said)
    assert found
    assert set(re.findall(r"^## `\[(\w+)\]`$", TEXT, re.MULTILINE)) == set(found[1].split(", "))


@pytest.mark.parametrize("table", TABLES)
def test_every_key_has_an_example(table: str) -> None:
    for row in rows(table):
        key = row[0].strip("`")
        example = re.search(rf"`({key} = [^`]*)`", row[-1])
        assert example, key
        assert key in tomllib.loads(example[1])


def _between(row: list[str]) -> tuple[str, str] | None:
    """The bounds of a row that says `low to high` in numbers or amounts."""
    found = re.match(r'`?"?(-?[0-9.]+[A-Za-z]*)"?`? to `?"?(-?[0-9.]+[A-Za-z]*)"?`?(;|$)', row[3])
    return (found[1], found[2]) if found else None


BOUNDED = [(table, row[0].strip("`"), *ends) for table in TABLES for row in rows(table) if (ends := _between(row))]


def test_enough_bounds_are_looked_at() -> None:
    assert {"priority", "retention", "count", "bytes", "pieces", "cpus", "memory", "wall", "pids", "gpus", "agree"} <= {
        key for _, key, _, _ in BOUNDED
    }


@pytest.mark.parametrize(("table", "key", "low", "high"), BOUNDED)
def test_the_bounds_are_those_that_an_error_tells(tmp_path: Path, table: str, key: str, low: str, high: str) -> None:
    beyond = '"999TiB"' if low.endswith("B") else ('"99999d"' if re.search("[a-z]$", low) else "99999999")
    change = f"{key} = {beyond}"
    text = RIGHT.replace(f"[{table}]", f"[{table}]\n{change}")
    if key in ("bytes", "pieces"):
        text = RIGHT.replace("count = 1", f'split = "m.wasm"\nby = "lines"\n{change}')
    elif key == "count":
        text = RIGHT.replace("count = 1", change)
    elif key == "pids":
        text = text.replace('"wasm"\nmodule = "m.wasm"', f'"docker"\nimage = "sha256:{"a" * 64}"')
    assert f"from {low} to {high} is allowed" in told(tmp_path, text)


def test_its_other_numbers_are_those_of_the_code() -> None:
    assert f"at most {limits.INPUTS_MAX}\nfiles" in TEXT
    assert f"from 1 to {limits.TASKS_MAX:,} tasks" in TEXT
    assert f"regular files only, at most {limits.OUTPUT_FILES_MAX}." in TEXT


EXAMPLES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_its_examples_are_right(tmp_path: Path, number: int) -> None:
    example = tomllib.loads(EXAMPLES[number])
    for name in ("dock.wasm", "receptor.pdbqt", "models/weights-3.bin", "reference/a", "settings/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0asm")
    (tmp_path / "library.sdf").write_text("m\nM  END\n$$$$\n" * 60)
    (tmp_path / "compounds.csv").write_text("id,smiles\n" + "1,CCO\n" * 5000)
    text = RIGHT.replace("[tasks]\ncount = 1\n", "") if "tasks" in example else RIGHT
    text = EXAMPLES[number] if "job" in example else text + EXAMPLES[number]
    (tmp_path / "m.wasm").write_bytes(b"\0asm")
    (tmp_path / "job.toml").write_text(text)
    first = next(iter(example.get("tasks", {"count": 1})))
    tasks = read_job(tmp_path / "job.toml").tasks
    assert tasks == {"count": 1, "params": 6, "temperature": 6, "split": 2}[first]
