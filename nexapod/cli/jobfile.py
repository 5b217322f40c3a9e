"""A job file (TOML) to a plan: what to upload, and what to send to POST /v1/jobs.

All that is wrong is reported at once, each with file, line, table.key and what is allowed. Bounds that other peers set
(protocol/statements.py) are checked here in a person's words; the daemon checks them again. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from nexapod.cli.quantities import parse_duration, parse_size
from nexapod.cli.safe import is_plain_path
from nexapod.cli.splitting import PIECE, By, SplitError, shard_bounds, split_index
from nexapod.config.document import Document, Table, kind_of
from nexapod.protocol import limits
from nexapod.protocol.statements import registry_host
from nexapod.protocol.types import BlobRef, blob_of, blob_root

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
IMAGE = re.compile(r"sha256:[0-9a-f]{64}\Z")
IMAGE_NAME = re.compile(r"[a-z0-9][a-z0-9._/:-]{0,255}\Z")
ARCHIVES: Final = (".tar", ".tar.gz", ".tgz")
ARG_BYTES_MAX: Final = 4096
PARAMS_MAX: Final = 64
PARAMS_BYTES_MAX: Final = 64 << 20
CPUS_MAX: Final = 1024
MEMORY_MIN: Final = 1 << 20
BYTES_MAX: Final = 1 << 40
_RESERVED: Final = "NEXAPOD_"


@dataclass(frozen=True, slots=True)
class Upload:
    """Bytes that the daemon must hold before the job: those of a file, or some made here. `name` is for people."""

    name: str
    source: Path | bytes
    ref: BlobRef


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked job: `body` is the JSON of POST /v1/jobs, to be sent when all uploads are there."""

    name: str
    tasks: int
    body: dict[str, Any]
    uploads: tuple[Upload, ...]
    archive: Path | None = None
    """Of the container image, when the job file names one."""
    image_held: bool = False
    """The image is not given to workers: only peers that hold it work."""


@dataclass
class _Reading:
    """One job file on its way to a plan."""

    document: Document
    folder: Path
    uploads: dict[BlobRef, Upload] = field(default_factory=dict)
    archive: Path | None = None
    image_held: bool = False

    def keep(self, name: str, source: Path | bytes, ref: BlobRef) -> str:
        self.uploads.setdefault(ref, Upload(name, source, ref))
        return str(ref)


def read_job(path: Path) -> Plan:
    """The plan of a job file. Reads (and hashes) every file that it names. Raises ConfigError with all problems."""
    document = Document.open(path)
    reading = _Reading(document, path.absolute().parent)
    root = document.root
    job = root.table("job")
    body = _job(job)
    run = root.table("run")
    if root.require("run", "say what to execute"):
        body["run"] = _run(run, reading)
    inputs = root.table("inputs")
    body["inputs"] = _inputs(inputs, reading)
    tasks = root.table("tasks")
    taken = {entry["path"] for entry in body["inputs"]}
    if root.require("tasks", "give one of count, params and split"):
        body |= _tasks(tasks, reading, taken)
    bounds, requires, validate = root.table("limits"), root.table("requires"), root.table("validate")
    body["limits"] = _limits(bounds)
    body["requires"] = _requires(requires, str(body.get("run", {}).get("executor", "")))
    body["validate"] = _validate(validate)
    for table in (root, job, run, tasks, bounds, requires, validate):
        table.end()
    document.raise_problems()
    uploads = tuple(reading.uploads.values())
    return Plan(body["name"], body["tasks"], body, uploads, reading.archive, reading.image_held)


# --- the tables ----------------------------------------------------------------------------------------------------
def _job(table: Table) -> dict[str, Any]:
    table.require("name", "give the job a name")
    name = table.text("name", bytes_max=limits.TEXT_MAX)
    if "name" in table and table.raw("name") == "":
        table.problem("name", "it is empty")
    return {
        "name": name,
        "description": table.text("description", bytes_max=limits.DESCRIPTION_MAX, lines=True),
        "tags": [tag for tag in table.strings("tags", count_max=limits.TAGS_MAX) if _not_empty(table, "tags", tag)],
        "priority": table.whole("priority", 0, -10, 10),
        "retention_ms": _duration(
            table, "retention", limits.RETENTION_DEFAULT_MS, limits.RETENTION_MIN_MS, limits.RETENTION_MAX_MS
        ),
    }


def _run(table: Table, reading: _Reading) -> dict[str, Any]:
    table.require("executor", "'wasm' or 'docker'")
    executor = table.choice("executor", ("wasm", "docker"), "wasm" if "module" in table else "docker")
    run: dict[str, Any] = {
        "executor": executor,
        "command": list(table.strings("command", count_max=limits.COMMAND_MAX, bytes_max=ARG_BYTES_MAX)),
        "env": _env(table.table("env")),
        "module": None,
        "image": None,
    }
    module, image = table.text("module", bytes_max=4096), table.text("image", bytes_max=4096)
    reading.image_held = table.flag("image_held", default=False)
    if executor == "wasm":
        if image or not module:
            table.problem("module", "a wasm run names a module (a .wasm file), and no image")
        else:
            run["module"] = _file(table, "module", module, reading)
    elif module or not image:
        table.problem("image", "a docker run names an image, and no module")
    else:
        run["image"] = image
        _image(table, image, reading)
    return run


def _image(table: Table, image: str, reading: _Reading) -> None:
    """An archive beside the job file, a content id, a registry's reference by digest, or the name of what was added."""
    if image.endswith(ARCHIVES):
        reading.archive = reading.folder / image
        if not reading.archive.is_file():
            table.problem("image", f"{image!r} is not a file (looked for {reading.archive})")
    elif not (IMAGE.match(image) or registry_host(image) or IMAGE_NAME.match(image)):
        ways = "a content id (sha256:...), the name of an added image, host/name@sha256:..., or an archive (.tar)"
        table.problem("image", f"{image!r} names no image: give {ways}")
    if reading.image_held and not IMAGE.match(image):
        table.problem("image_held", "an image that only workers hold is named by its content id")


def _env(table: Table) -> dict[str, str]:
    if len(table.data) > limits.ENV_MAX:
        table.problem("", f"{len(table.data)} variables: at most {limits.ENV_MAX} are allowed")
    env = {}
    for name in table.data:
        if not ENV_NAME.match(name):
            table.problem(name, "it is not the name of an environment variable")
        elif name.startswith(_RESERVED):
            table.problem(name, f"names that begin with {_RESERVED} are set for each task by the mesh")
        env[name] = table.text(name, bytes_max=ARG_BYTES_MAX)
    return env


def _inputs(table: Table, reading: _Reading) -> list[dict[str, str]]:
    if len(table.data) > limits.INPUTS_MAX:
        table.problem("", f"{len(table.data)} files: at most {limits.INPUTS_MAX} are allowed")
        return []
    entries = []
    for path in table.data:
        _plain_path(table, path, path)
        source = table.text(path, bytes_max=4096)
        if source:
            entries.append({"path": path, "ref": _file(table, path, source, reading)})
        elif table.raw(path) == "":
            table.problem(path, "it names no file")
    return entries


def _tasks(table: Table, reading: _Reading, taken: set[str]) -> dict[str, Any]:
    ways = [way for way in ("count", "params", "split") if way in table]
    for way in ("count", "params", "split"):
        table.raw(way)
    if len(ways) != 1:
        given = f"it has {' and '.join(ways)}" if ways else "it has none"
        table.problem("", f"exactly one of count, params and split is needed; {given}")
    if ways != ["split"]:
        for key in ("by", "as", "size"):
            if key in table:
                table.problem(key, "it belongs to `split`")
            table.raw(key)
    if ways == ["count"]:
        return {"tasks": table.whole("count", 1, 1, limits.TASKS_MAX)}
    if ways == ["params"]:
        return _params(table, reading)
    if ways == ["split"]:
        return _split(table, reading, taken)
    return {"tasks": 1}


def _split(table: Table, reading: _Reading, taken: set[str]) -> dict[str, Any]:
    source = table.text("split", bytes_max=4096)
    table.require("by", "'lines' or 'fasta'")
    by = cast(By, table.choice("by", ("lines", "fasta"), "lines"))
    target = table.text("as", "record.fasta" if by == "fasta" else "record.txt", bytes_max=limits.PATH_MAX)
    size = table.whole("size", 1, 1, limits.TASKS_MAX)
    _plain_path(table, "as", target)
    if target in taken:
        table.problem("as", f"{target!r} is also one of the [inputs]")
    ref = _file(table, "split", source, reading)
    if not ref:
        return {"tasks": 1}
    try:
        index = split_index(reading.folder / source, by, size)
    except (SplitError, OSError) as error:
        table.problem("split", f"{source!r} cannot be split by {by}: {error}")
        return {"tasks": 1}
    index_ref = reading.keep(f"index of {source}", index, blob_of(index))
    split = {"path": target, "ref": ref, "index": index_ref, "bounds": shard_bounds(index)}
    return {"tasks": len(index) // PIECE.size, "split": split}


def _limits(table: Table) -> dict[str, Any]:
    if "network" in table:
        table.choice("network", ("none",), "none")
    table.raw("network")
    return {
        "cpus_milli": math.ceil(table.number("cpus", 1.0, 0.001, CPUS_MAX) * 1000),
        "memory": _size(table, "memory", 256 << 20, MEMORY_MIN),
        "output": _size(table, "output", 16 << 20, 0),
        "wall_ms": _duration(table, "wall", 3_600_000, 1, limits.WALL_MAX_MS),
        "gpus": table.whole("gpus", 0, 0, limits.GPUS_MAX),
        "gpu_memory": _size(table, "gpu_memory", 0, 0),
    }


def _requires(table: Table, executor: str) -> dict[str, Any]:
    arch = (table.text("arch"),) if isinstance(table.raw("arch"), str) else table.strings("arch", count_max=8)
    wanted = table.choice("executor", ("wasm", "docker"), executor)
    if executor and wanted != executor:
        table.problem("executor", f"[run] says {executor!r}")
    return {
        "arch": [a for a in arch if _not_empty(table, "arch", a)],
        "memory": _size(table, "memory", 0, 0),
        "gpu_model": table.text("gpu_model"),
    }


def _validate(table: Table) -> dict[str, Any]:
    validate: dict[str, Any] = {
        "mode": table.choice("mode", ("exact",), "exact"),
        "agree": table.whole("agree", 2, 1, limits.REPLICAS_MAX),
        "max_replicas": table.whole("max_replicas", 5, 1, limits.REPLICAS_MAX),
    }
    if "max_replicas" not in table:
        validate["max_replicas"] = max(5, validate["agree"])
    elif validate["agree"] > validate["max_replicas"]:
        table.problem("agree", f"{validate['agree']} results cannot agree among at most {validate['max_replicas']}")
    return validate


# --- sweeps --------------------------------------------------------------------------------------------------------
def _params(table: Table, reading: _Reading) -> dict[str, Any]:
    raw = table.raw("params")
    rows = _product(table, raw) if isinstance(raw, dict) else _rows(table, raw)
    if not rows:
        return {"tasks": 1}
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    if len(data) > PARAMS_BYTES_MAX:
        table.problem("params", f"they take {len(data)} bytes: at most {PARAMS_BYTES_MAX} are allowed")
    return {"tasks": len(rows), "params": reading.keep("parameters", data, blob_of(data))}


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
    if isinstance(value, (int, float)):
        return repr(value)
    if not isinstance(value, str):
        table.problem(key, f"a value is text, a number or true/false, not {kind_of(value)}")
    elif len(value.encode("utf-8")) > ARG_BYTES_MAX or "\0" in value:
        table.problem(key, f"a text has at most {ARG_BYTES_MAX} bytes, and no NUL")
    return str(value)


def _empty_or_kind(value: Any) -> str:
    return "an empty list" if value == [] else kind_of(value)


# --- values --------------------------------------------------------------------------------------------------------
def _size(table: Table, key: str, default: int, low: int) -> int:
    return _amount(table, key, default, parse_size, low, BYTES_MAX, "bytes, as text like '512MiB'")


def _duration(table: Table, key: str, default: int, low: int, high: int) -> int:
    return _amount(table, key, default, parse_duration, low, high, "milliseconds, as text like '10m'")


def _amount(table: Table, key: str, default: int, parse: Callable[[str], int], low: int, high: int, unit: str) -> int:
    raw = table.raw(key)
    if raw is None:
        return default
    if not isinstance(raw, str):
        table.problem(key, f"expected text with a unit, not {kind_of(raw)}")
        return default
    try:
        value = parse(raw)
    except ValueError as error:
        table.problem(key, str(error))
        return default
    if not low <= value <= high:
        table.problem(key, f"{raw!r} is not possible: from {low} to {high} {unit}")
        return default
    return value


def _not_empty(table: Table, key: str, text: str) -> bool:
    if not text:
        table.problem(key, "an entry is empty")
    return bool(text)


def _plain_path(table: Table, key: str, path: str) -> None:
    if not is_plain_path(path):
        rule = f"relative, without '..', '\\' or control characters, at most {limits.PATH_MAX} bytes"
        table.problem(key, f"{path!r} cannot be a path below /input: {rule}")


def _file(table: Table, key: str, source: str, reading: _Reading) -> str:
    """Hash a file beside the job file and plan its upload. "" when there is a problem, which is noted."""
    path = reading.folder / source
    if not source or "\0" in source:
        table.problem(key, "it names no file")
        return ""
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            table.problem(key, f"{source!r} {what} (looked for {path})")
            return ""
        if path.stat().st_size > limits.BLOB_BYTES_MAX:
            table.problem(key, f"{source!r} is larger than {limits.BLOB_BYTES_MAX >> 40} TiB")
            return ""
        return reading.keep(source, path, hash_file(path))
    except OSError as error:
        table.problem(key, f"{source!r} cannot be read: {error.strerror}")
        return ""


def hash_file(path: Path) -> BlobRef:
    """The name of a file's bytes, in constant memory. Raises OSError."""
    digests, size = [], 0
    with path.open("rb") as file:
        while chunk := file.read(limits.CHUNK_BYTES):
            digests.append(hashlib.sha256(chunk).digest())
            size += len(chunk)
    return BlobRef(blob_root(digests or [hashlib.sha256(b"").digest()]), size)
