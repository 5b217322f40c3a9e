"""A job file (TOML) to a plan: what to upload, and what to send to POST /v1/jobs. docs/job-files.md lists its keys.

All that is wrong is reported at once, each with file, line, table.key and what is allowed; what is wrong inside the
files that it names only when it is right itself, as they may be large. Bounds that other peers set
(protocol/types.py) are checked here in a person's words; the daemon checks them again. Knows nothing of HTTP.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nexapod.cli.jobfile_files import (
    SOURCE_BYTES_MAX,
    Progress,
    Reading,
    Upload,
    find_inputs,
    no_progress,
    plan_file,
    plan_inputs,
)
from nexapod.cli.jobfile_tasks import read_tasks
from nexapod.cli.jobfile_values import BYTES_MAX, ENV_NAME, TEXT_BYTES_MAX, check_filled, take_duration, take_size
from nexapod.config.document import Document, Table
from nexapod.protocol import limits
from nexapod.protocol.image_names import registry_host
from nexapod.protocol.types import Limits

IMAGE = re.compile(r"sha256:[0-9a-f]{64}\Z")
IMAGE_NAME = re.compile(r"[a-z0-9][a-z0-9._/:-]{0,255}\Z")
ARCHIVES: Final = (".tar", ".tar.gz", ".tgz")
CPUS_MAX: Final = 1024
MEMORY_MIN: Final = 1 << 20
IDLE_MIN_MS: Final = 1000
_CAPABILITY = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\Z")
_RESERVED: Final = "NEXAPOD_"
_WASM: Final = b"\0asm"
_DEFAULTS: Final = Limits()
_WAYS: Final = "give one of count, params and split"
_DOCKER_ONLY: Final = "it belongs to docker runs: a wasm task has no such thing"
_NO_GPU: Final = "it has no effect: the tasks are given no GPU, say how many with `gpus` in [limits]"


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked job: `body` is the JSON of POST /v1/jobs, to be sent when all uploads are there."""

    name: str
    tasks: int
    body: dict[str, Any]
    uploads: tuple[Upload, ...]
    remarks: tuple[str, ...] = ()
    """What was found in its files, for people."""
    archive: Path | None = None
    """Of the container image, when the job file names one."""
    image_held: bool = False
    """The image is not given to workers: only peers that hold it work."""


def read_job(path: Path, progress: Progress = no_progress) -> Plan:
    """The plan of a job file. Reads (and hashes) every file that it names. Raises ConfigError with all problems."""
    document = Document.open(path)
    reading = Reading(document, path.absolute().parent, progress)
    root = document.root
    job, run, tasks = root.table("job"), root.table("run"), root.table("tasks")
    bounds, requires, validate = root.table("limits"), root.table("requires"), root.table("validate")
    body = _job(job)
    if root.require("run", "say what to execute"):
        body["run"] = _run(run, reading)
    executor = str(body.get("run", {}).get("executor", ""))
    inputs = find_inputs(root.table("inputs"), reading)
    body["limits"] = _limits(bounds, executor)
    body["requires"] = _requires(requires, executor, body["limits"])
    body["validate"] = _validate(validate)
    way = read_tasks(tasks, reading, list(inputs)) if root.require("tasks", _WAYS) else None
    for table in (root, job, run, tasks, bounds, requires, validate):
        table.end()
    document.raise_problems()
    assert way is not None
    body["inputs"] = plan_inputs(inputs, reading)
    body |= way()
    document.raise_problems()
    uploads = tuple(reading.uploads.values())
    return Plan(body["name"], body["tasks"], body, uploads, tuple(reading.remarks), reading.archive, reading.image_held)


# --- the tables ----------------------------------------------------------------------------------------------------
def _job(table: Table) -> dict[str, Any]:
    table.require("name", "give the job a name")
    name = table.text("name", bytes_max=limits.TEXT_MAX)
    if "name" in table and table.raw("name") == "":
        table.problem("name", "it is empty")
    return {
        "name": name,
        "description": table.text("description", bytes_max=limits.DESCRIPTION_MAX, lines=True),
        "tags": [tag for tag in table.strings("tags", count_max=limits.TAGS_MAX) if check_filled(table, "tags", tag)],
        "priority": table.whole("priority", 0, -10, 10),
        "retention_ms": take_duration(
            table, "retention", limits.RETENTION_DEFAULT_MS, limits.RETENTION_MIN_MS, limits.RETENTION_MAX_MS
        ),
    }


def _run(table: Table, reading: Reading) -> dict[str, Any]:
    table.require("executor", "'wasm' or 'docker'")
    executor = table.choice("executor", ("wasm", "docker"), "wasm" if "module" in table else "docker")
    run: dict[str, Any] = {
        "executor": executor,
        "command": list(table.strings("command", count_max=limits.COMMAND_MAX, bytes_max=TEXT_BYTES_MAX, lines=True)),
        "env": _env(table.table("env")),
        "workdir": _workdir(table, executor),
        "checkpoint": table.choice("checkpoint", ("local", "shared"), "local"),
        "module": None,
        "image": None,
    }
    module, image = (table.text(key, bytes_max=SOURCE_BYTES_MAX) for key in ("module", "image"))
    reading.image_held = table.flag("image_held", default=False)
    if executor == "wasm":
        if image or not module:
            table.problem("module", "a wasm run names a module (a .wasm file), and no image")
        else:
            run["module"] = plan_file(table, "module", module, reading, bytes_max=limits.MODULE_BYTES_MAX)
    elif module or not image:
        table.problem("image", "a docker run names an image, and no module")
    else:
        run["image"] = image
        _image(table, image, reading)
    if run["module"] and not _begins(reading.folder / module, _WASM):
        table.problem("module", f"{module!r} is no WebAssembly module: one begins with the bytes {_WASM.hex(' ')}")
    if "image_held" in table and executor == "wasm":
        table.problem("image_held", _DOCKER_ONLY)
    return run


def _begins(path: Path, mark: bytes) -> bool:
    """Of a file that has just been read as a whole: that it cannot be any more is told when it is uploaded."""
    try:
        with path.open("rb") as file:
            return file.read(len(mark)) == mark
    except OSError:
        return True


def _image(table: Table, image: str, reading: Reading) -> None:
    """An archive beside the job file, a content id, a registry's reference by digest, or the name of what was added."""
    if image.endswith(ARCHIVES):
        reading.archive = reading.folder / image
        if not os.path.isfile(reading.archive):  # unlike Path's, never an error
            table.problem("image", f"{image!r} is not a file (looked for {reading.archive})")
    elif not (IMAGE.match(image) or registry_host(image) or IMAGE_NAME.match(image)):
        ways = "a content id (sha256:...), the name of an added image, host/name@sha256:..., or an archive (.tar)"
        table.problem("image", f"{image!r} names no image: give {ways}")
    if reading.image_held and not IMAGE.match(image):
        table.problem("image_held", "an image that only workers hold is named by its content id")


def _workdir(table: Table, executor: str) -> str:
    workdir = table.text("workdir", bytes_max=limits.TEXT_MAX)
    if "workdir" in table and executor == "wasm":
        table.problem("workdir", _DOCKER_ONLY)
    elif workdir and not workdir.startswith("/"):
        table.problem("workdir", f"{workdir!r} is not absolute: it is a folder in the container, like '/output'")
    return workdir


def _env(table: Table) -> dict[str, str]:
    if len(table.data) > limits.ENV_MAX:
        table.problem("", f"{len(table.data)} variables: at most {limits.ENV_MAX} are allowed")
    env = {}
    for name in table.data:
        if not ENV_NAME.match(name):
            table.problem(name, "it is not the name of an environment variable")
        elif name.startswith(_RESERVED):
            table.problem(name, f"names that begin with {_RESERVED} are set for each task by the mesh")
        env[name] = table.text(name, bytes_max=TEXT_BYTES_MAX, lines=True)
    return env


def _limits(table: Table, executor: str) -> dict[str, Any]:
    if "network" in table:
        table.choice("network", ("none",), "none")
    table.raw("network")
    if "pids" in table and executor == "wasm":
        table.problem("pids", _DOCKER_ONLY)
    output = take_size(table, "output", _DEFAULTS.output, 0)
    wall = take_duration(table, "wall", _DEFAULTS.wall_ms, 1, limits.WALL_MAX_MS)
    gpus = table.whole("gpus", 0, 0, limits.GPUS_MAX)
    if gpus and executor == "wasm":
        table.problem("gpus", _DOCKER_ONLY)
    if "gpu_memory" in table and not gpus:
        table.problem("gpu_memory", _NO_GPU)
    return {
        "cpus_milli": math.ceil(table.number("cpus", _DEFAULTS.cpus_milli / 1000, 0.001, CPUS_MAX) * 1000),
        "memory": take_size(table, "memory", _DEFAULTS.memory, MEMORY_MIN),
        "output": output,
        "disk": _disk(table, output),
        "wall_ms": wall,
        "idle_ms": _idle(table, wall),
        "pids": table.whole("pids", _DEFAULTS.pids, 1, limits.PIDS_MAX),
        "gpus": gpus,
        "gpu_memory": take_size(table, "gpu_memory", 0, 0),
    }


def _disk(table: Table, output: int) -> int:
    """Room for what is handed over, and as much for a checkpoint."""
    disk = take_size(table, "disk", min(2 * output, BYTES_MAX), 0)
    if disk < output:
        table.problem("disk", "it is less than `output`, which is a part of it")
    return disk


def _idle(table: Table, wall: int) -> int:
    idle = take_duration(table, "idle", _DEFAULTS.idle_ms, IDLE_MIN_MS, limits.WALL_MAX_MS)
    if idle >= wall:
        table.problem("idle", "it has no effect: the task is ended by `wall` before")
    return idle


def _requires(table: Table, executor: str, bounds: dict[str, Any]) -> dict[str, Any]:
    arch = (table.text("arch"),) if isinstance(table.raw("arch"), str) else table.strings("arch", count_max=8)
    wanted = table.choice("executor", ("wasm", "docker"), executor)
    if executor and wanted != executor:
        table.problem("executor", f"[run] says {executor!r}")
    for key in ("gpu_model", "gpu_capability"):
        if key in table and not bounds["gpus"]:
            table.problem(key, _NO_GPU)
    return {
        "arch": [a for a in arch if check_filled(table, "arch", a)],
        "memory": take_size(table, "memory", 0, 0),
        "gpu_model": table.text("gpu_model"),
        "gpu_capability": _capability(table),
    }


def _capability(table: Table) -> str:
    capability = table.text("gpu_capability")
    if capability and not _CAPABILITY.match(capability):
        table.problem("gpu_capability", f"{capability!r} is no CUDA compute capability: write it like '8.0'")
    return capability


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
