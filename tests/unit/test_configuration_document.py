"""docs/configuration.md and the file that `nexapod init` writes say what the reader of config.toml accepts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from nexapod.blobs.room import DEFAULT_BYTES_MAX, DEFAULT_DISK_FREE_MIN, DEFAULT_DISK_PART
from nexapod.cli.starting import CONFIG_TEMPLATE
from nexapod.config import Config, ConfigError, Flags, load, settings
from nexapod.config.sizes import parse_size
from nexapod.config.stewarding import STORAGE_MIN
from nexapod.config.storage import BLOBS_MIN, IMAGES_MIN, RATE_MIN
from nexapod.daemon.images import IMAGES_MAX_DEFAULT
from nexapod.daemon.offering import JOB_PART
from nexapod.protocol.primitives import peer_id_of_key

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
TOP = ""
TABLES = ["log", "steward", "submit", "storage", "bandwidth", "images", "api", "gpu"]
PEER = peer_id_of_key(bytes(32))


def rows(table: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    heading = f"## `[{table}]`\n" if table else "## At the top of the file\n"
    section = TEXT.split(heading, 1)[1].split("\n## ", 1)[0]
    lines = section[section.index("| key |") :].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


ROWS = [(table, row) for table in (TOP, *TABLES) for row in rows(table)]


def read(folder: Path, text: str) -> Config:
    (folder / "nexapod").mkdir(exist_ok=True)
    (folder / "nexapod/config.toml").write_text(text)
    return load(Flags(), {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)})


def accepted(folder: Path, table: str) -> set[str]:
    """The keys of a table, as the error about one that it does not have lists them."""
    with pytest.raises(ConfigError) as caught:
        read(folder, f"[{table}]\nqqqqqqqqqqqqqqqq = 1" if table else "qqqqqqqqqqqqqqqq = 1")
    found = re.search(r"qqqq: unknown key; allowed: (.*)", str(caught.value))
    assert found, caught.value
    return set(found[1].split(", "))


def names(table: str) -> set[str]:
    return {row[0].strip("`") for row in rows(table)}


def test_the_document_lists_the_keys_that_are_accepted(tmp_path: Path) -> None:
    assert accepted(tmp_path, TOP) == names(TOP) | set(TABLES)
    assert set(re.findall(r"^## `\[(\w+)\]`$", TEXT, re.MULTILINE)) == set(TABLES)
    for table in TABLES:
        assert names(table) == accepted(tmp_path, table), table


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_every_key_has_an_example_that_is_taken(tmp_path: Path, table: str, row: list[str]) -> None:
    key = row[0].strip("`")
    example = re.search(rf"`({key} = [^`]*)`", row[-1])
    assert example, key
    config = read(tmp_path, f"[{table}]\n{example[1]}" if table else example[1])
    assert key == "bootstrap" or config != read(tmp_path, ""), "the example is the default"


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_a_default_that_can_be_written_is_the_default(tmp_path: Path, table: str, row: list[str]) -> None:
    if not row[2].startswith("`") or table == "storage":
        return
    line = f"{row[0].strip('`')} = {row[2].strip('`')}"
    assert read(tmp_path, f"[{table}]\n{line}" if table else line) == read(tmp_path, "")


def test_the_sizes_are_those_of_the_code() -> None:
    told = {row[0].strip("`"): row for row in rows("storage")}
    assert parse_size(told["disk_free_min"][2].strip('`"')) == DEFAULT_DISK_FREE_MIN
    assert parse_size(told["images_max"][2].strip('`"')) == IMAGES_MAX_DEFAULT
    assert f"{DEFAULT_BYTES_MAX >> 30} GiB, or a tenth of the disk" in told["blobs_max"][2]
    assert DEFAULT_DISK_PART == 10
    assert f'"{BLOBS_MIN >> 20}MiB"' in told["blobs_max"][3]
    assert f'"{IMAGES_MIN >> 20}MiB"' in told["images_max"][3]
    kept = {row[0].strip("`"): row for row in rows("steward")}
    assert f'"{STORAGE_MIN >> 20}MiB"' in kept["storage"][3]
    assert "half of `blobs_max`" in kept["storage"][2]
    assert JOB_PART == 2
    assert all(f'"{RATE_MIN >> 10}KiB/s"' in row[3] for row in rows("bandwidth"))


@pytest.mark.parametrize(("table", "row"), [(t, r) for t, r in ROWS if re.search(r"[0-9]+ to |at most [0-9]+", r[3])])
def test_the_bounds_are_those_that_an_error_tells(tmp_path: Path, table: str, row: list[str]) -> None:
    key = row[0].strip("`")
    wrong = "99999" if " to " in row[3] else ("'" + "a" * 99 + "'" if row[1] == "text" else f"[{'0,' * 99}]")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"[{table}]\n{key} = {wrong}" if table else f"{key} = {wrong}")
    bounds = re.findall(r"[0-9]+", row[3])
    assert bounds
    assert set(bounds) <= set(re.findall(r"[0-9]+", str(caught.value)))


def test_its_example_is_right(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert read(tmp_path, example).network == "mylab"


def test_it_lists_the_variables_that_are_read() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", TEXT.split("## Environment", 1)[1], re.MULTILINE))
    read_there = set(re.findall(r'"(NEXAPOD_\w+)"', Path(settings.__file__).read_text(encoding="utf-8")))
    assert told == read_there | {"DOCKER_HOST"}


# --- the file that init writes -------------------------------------------------------------------------------------
def lines() -> list[tuple[str, str, str]]:
    """(table, key = value, what is said of it)."""
    found, table = [], TOP
    for line in CONFIG_TEMPLATE.splitlines():
        if header := re.match(r"\[(\w+)\]", line):
            table = header[1]
        elif entry := re.match(r"# (\w+ = (?:\[.*?\]|\S+))\s*(?:# (.*))?$", line):
            found.append((table, entry[1], entry[2] or ""))
    return found


def test_the_file_that_init_writes_has_every_key() -> None:
    assert {(table, entry.split(" = ")[0]) for table, entry, _ in lines()} == {
        (table, row[0].strip("`")) for table, row in ROWS
    }


@pytest.mark.parametrize(("table", "entry", "said"), lines())
def test_what_it_shows_is_the_default_unless_it_says_otherwise(
    tmp_path: Path, table: str, entry: str, said: str
) -> None:
    text = entry.replace("12D3KooW...", PEER)
    key = entry.split(" = ")[0]
    read(tmp_path, f"[{table}]\n{text}" if table else text)
    [row] = [row for of, row in ROWS if (of, row[0].strip("`")) == (table, key)]
    written = row[2].startswith("`")
    assert written or "without it: " in said
    if written and "without it: " not in said:
        assert tomllib.loads(text) == tomllib.loads(f"{key} = {row[2].strip('`')}")
