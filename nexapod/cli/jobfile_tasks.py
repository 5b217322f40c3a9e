"""The [tasks] table of a job file: so many alike, one for each set of parameters, or one for each piece of a file.

The table is read first, and what it names only when all of the job file is right: a file may be large.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from nexapod.cli.jobfile_files import SOURCE_BYTES_MAX, Reading, clashing, find_file
from nexapod.cli.jobfile_values import ENV_NAME, TEXT_BYTES_MAX, check_path, take_size
from nexapod.cli.records import By, SplitError
from nexapod.cli.splitting import PIECE_BYTES_MAX, Cut, shard_bounds, split_file
from nexapod.config.document import Table, kind_of, spelt
from nexapod.protocol import limits
from nexapod.protocol.primitives import blob_of

PARAMS_MAX: Final = 64
PARAMS_BYTES_MAX: Final = 64 << 20
HEADER_LINES_MAX: Final = 10_000
NUMBER_BITS_MAX: Final = 8192
"""Python writes no number of more than 4300 digits."""
PIECE_MAX: Final = 4095 << 20
assert PIECE_MAX <= PIECE_BYTES_MAX
_WAYS: Final = ("count", "params", "split")
_BY: Final = ("lines", "fasta", "sdf", "csv")
_AS: Final = {"lines": "record.txt", "fasta": "record.fasta", "sdf": "record.sdf", "csv": "record.csv"}
_HOW_MANY: Final = ("size", "bytes", "pieces")
_OF_SPLIT: Final = ("by", "as", "header", *_HOW_MANY)

Later: TypeAlias = Callable[[], dict[str, Any]]
"""Gives what the table adds to the job; it may note problems."""


def read_tasks(table: Table, reading: Reading, inputs: list[str]) -> Later:
    """`inputs`: what else lies below /input."""
    ways = [way for way in _WAYS if way in table]
    for key in (*_WAYS, *_OF_SPLIT):
        table.raw(key)
    if len(ways) != 1:
        given = f"it has {' and '.join(ways)}" if ways else "it has none"
        table.problem("", f"exactly one of count, params and split is needed; {given}")
        return _nothing
    if ways != ["split"]:
        for key in _OF_SPLIT:
            if key in table:
                table.problem(key, "it belongs to `split`")
    if ways == ["count"]:
        count = table.whole("count", 1, 1, limits.TASKS_MAX)
        return lambda: {"tasks": count}
    return _params(table, reading) if ways == ["params"] else _split(table, reading, inputs)


def _nothing() -> dict[str, Any]:
    return {"tasks": 1}


# --- a piece of a file for each task -------------------------------------------------------------------------------
def _split(table: Table, reading: Reading, inputs: list[str]) -> Later:
    source = table.text("split", bytes_max=SOURCE_BYTES_MAX)
    table.require("by", "'lines', 'fasta', 'sdf' or 'csv'")
    by = cast(By, table.choice("by", _BY, "lines"))
    target = table.text("as", _AS[by], bytes_max=limits.PATH_MAX)
    check_path(table, "as", target)
    clash = clashing(target, inputs)
    if clash is not None:
        what = "is also one of the [inputs]" if clash == target else f"and the input {clash!r} cannot both be"
        table.problem("as", f"{target!r} {what}")
    cut = _cut(table, by)
    path = find_file(table, "split", source, reading)
    return lambda: _cut_up(table, source, path, cut, target, reading) if path else _nothing()


def _cut(table: Table, by: By) -> Cut:
    given = [key for key in _HOW_MANY if key in table]
    if len(given) > 1:
        table.problem(given[1], f"at most one of size, bytes and pieces is possible; it has {' and '.join(given)}")
        return Cut(by, size=1)
    header = _header(table, by)
    if given == ["bytes"]:
        return Cut(by, bytes_max=take_size(table, "bytes", 1, 1, PIECE_MAX), header=header)
    if given == ["pieces"]:
        return Cut(by, pieces=table.whole("pieces", 1, 1, limits.TASKS_MAX), header=header)
    return Cut(by, size=table.whole("size", 1, 1, limits.BLOB_BYTES_MAX), header=header)


def _header(table: Table, by: By) -> int:
    """How many lines (CSV: records) at the beginning are every task's."""
    if by == "csv":
        return 1 if table.flag("header", True) else 0
    if by == "lines":
        return table.whole("header", 0, 0, HEADER_LINES_MAX)
    if "header" in table:
        table.problem("header", f"it belongs to lines and csv: every record of {by} stands by itself")
    return 0


def _cut_up(table: Table, source: str, path: Path, cut: Cut, target: str, reading: Reading) -> dict[str, Any]:
    try:
        with reading.progress(f"reading {source}", path.stat().st_size) as told:
            split = split_file(path, cut, told)
    except SplitError as error:
        table.problem("split", f"{source!r} cannot be split by {cut.by}: {error}")
        return _nothing()
    except OSError as error:
        table.problem("split", f"{source!r} cannot be read: {error.strerror}")
        return _nothing()
    reading.remarks.append(f"{source}: {split.records:,} records, cut into {split.pieces:,} pieces")
    index = reading.keep(f"index of {source}", split.index, blob_of(split.index))
    body = {
        "path": target,
        "ref": reading.keep(source, path, split.ref),
        "index": index,
        "bounds": shard_bounds(split.index),
        "header": split.header,
    }
    return {"tasks": split.pieces, "split": body}


# --- a set of parameters for each task -----------------------------------------------------------------------------
def _params(table: Table, reading: Reading) -> Later:
    raw = table.raw("params")
    rows = _product(table, raw) if isinstance(raw, dict) else _rows(table, raw)
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    if len(data) > PARAMS_BYTES_MAX:
        table.problem("params", f"they take {len(data)} bytes: at most {PARAMS_BYTES_MAX} are allowed")
    return lambda: {"tasks": len(rows), "params": reading.keep("parameters", data, blob_of(data))}


def _product(table: Table, axes: dict[str, Any]) -> list[dict[str, str]]:
    """Every combination, the last key varying fastest."""
    columns: dict[str, list[str]] = {}
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            table.problem(f"params.{name}", f"expected a list of values, not {_empty_or_kind(values)}")
            continue
        columns[name] = [_value(table, f"params.{name}", value) for value in values]
    if not _names_fit(table, axes) or len(columns) != len(axes):
        return []
    count = math.prod(len(values) for values in columns.values())
    if count > limits.TASKS_MAX:
        table.problem("params", f"they give {count} tasks: a job has at most {limits.TASKS_MAX}")
        return []
    return [dict(zip(columns, row, strict=True)) for row in itertools.product(*columns.values())]


def _rows(table: Table, raw: Any) -> list[dict[str, str]]:
    """One table of values a task, all with the same names."""
    if not isinstance(raw, list) or not raw or not all(isinstance(row, dict) for row in raw):
        table.problem("params", "expected a table of lists (every combination), or a list of tables (one a task)")
        return []
    if len(raw) > limits.TASKS_MAX:
        table.problem("params", f"{len(raw)} tasks: a job has at most {limits.TASKS_MAX}")
        return []
    names = raw[0].keys()
    if not _names_fit(table, raw[0]):
        return []
    for number, row in enumerate(raw):
        if row.keys() != names:
            odd = ", ".join(sorted(row.keys() ^ names))
            table.problem("params", f"entry {number} differs from the first in its names: {odd}")
            return []
    return [{name: _value(table, f"params.{name}", value) for name, value in row.items()} for row in raw]


def _names_fit(table: Table, names: Any) -> bool:
    if not 0 < len(names) <= PARAMS_MAX:
        table.problem("params", f"{len(names)} names: from 1 to {PARAMS_MAX} are allowed")
        return False
    # Each becomes the variable NEXAPOD_PARAM_<NAME>: two that differ in case alone would be one.
    folded: dict[str, str] = {}
    for name in names:
        if not ENV_NAME.match(name):
            table.problem(f"params.{name}", "a name has letters, digits and '_', and begins with no digit")
            return False
        if folded.setdefault(name.upper(), name) != name:
            table.problem(f"params.{name}", f"it differs from {folded[name.upper()]!r} in capitals alone")
            return False
    return True


def _value(table: Table, key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > NUMBER_BITS_MAX:
        table.problem(key, f"{spelt(value)} is not possible: give it as text")
        return ""
    if isinstance(value, (int, float)):
        return repr(value)
    if not isinstance(value, str):
        table.problem(key, f"a value is text, a number or true/false, not {kind_of(value)}")
        return ""
    if len(value.encode("utf-8")) > TEXT_BYTES_MAX or "\0" in value:
        table.problem(key, f"a text has at most {TEXT_BYTES_MAX} bytes, and no NUL")
    return value


def _empty_or_kind(value: Any) -> str:
    return "an empty list" if value == [] else kind_of(value)
