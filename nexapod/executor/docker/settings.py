"""A task as container settings: everything that a sandbox grants, in one pure function, default-deny.

What is not named here is not granted. Knows the engine's API by its field names only; talks to nothing. Submitters
can only tighten: no field of a job reaches a setting unclamped.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nexapod.executor.contract import PROGRESS_ENV, PROGRESS_PATH, BadRun, TaskRun
from nexapod.protocol.limits import PIDS_MAX

LABEL_HOME: Final = "org.nexapod.home"
LABEL_RUN: Final = "org.nexapod.run"
LABEL_SETTINGS: Final = "org.nexapod.settings"
"""Digest of the settings: whether a container that a former daemon began is the same run, confined in the same way."""
NOBODY: Final = (65534, 65534)
PIDS_MIN: Final = 8
"""The engine's own start of the container takes a few."""
NOFILE: Final = 1024
NPROC: Final = 16_384
"""Counts all of a user's processes together, so it bounds nothing here; only for engines that want it named."""
MEMORY_MIN: Final = 6 << 20
"""The least that the engine accepts."""
SHM_BYTES: Final = 16 << 20
TMP_BYTES_MAX: Final = 1 << 30
LOG_BYTES: Final = 1 << 20
"""What the engine keeps of the output, for a daemon that comes back; of more, only the end is left."""
CPU_SHARES: Final = 128
"""An eighth of the default weight: what else runs on the machine goes first."""
OOM_SCORE_ADJ: Final = 1000
"""When the machine itself runs out of memory, a task is the first to go."""

VOLUMES_MAX: Final = 16

PINNED_ENV: Final[tuple[tuple[str, str], ...]] = (
    # The number of threads changes the order of summation, and so the result.
    ("OMP_NUM_THREADS", "1"),
    ("MKL_NUM_THREADS", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("BLIS_NUM_THREADS", "1"),
    ("GOTO_NUM_THREADS", "1"),
    ("VECLIB_MAXIMUM_THREADS", "1"),
    ("NUMEXPR_NUM_THREADS", "1"),
    ("NUMBA_NUM_THREADS", "1"),
    ("RAYON_NUM_THREADS", "1"),
    ("JULIA_NUM_THREADS", "1"),
    ("OMP_DYNAMIC", "FALSE"),
    ("MKL_CBWR", "COMPATIBLE"),
    ("PYTHONHASHSEED", "0"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
    ("TZ", "UTC"),
    ("HOME", "/tmp"),  # noqa: S108  (the container's own)
    ("TMPDIR", "/tmp"),  # noqa: S108
)
"""The same on every machine. A job may set its own: it is then the same for all its replicas too."""

GPU_NONE: Final = "void"
"""For NVIDIA_VISIBLE_DEVICES: no GPU, whatever the image's environment says and whatever runtime the engine has."""
_GPU_ENV: Final = "NVIDIA_"
_GPU: Final = re.compile(r"(GPU|MIG)-[0-9A-Za-z-]{1,64}")
_HOME: Final = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What of this machine the settings depend on."""

    cpus: int
    nofile_max: int
    """The hard limit of open files that the engine may hand on."""
    user: tuple[int, int]
    """uid and gid inside: NOBODY for a daemon that is root, else the daemon's own. Never 0."""
    init: bool
    """Whether the engine has an init to reap zombies with."""
    seccomp: str
    """The profile: as JSON text, or the path of a file that holds it, for engines that take only that."""
    nproc_max: int = 0
    """The hard limit of processes that the engine may hand on, for engines that want it named; 0: it is not named."""
    tmpfs_copies: bool = False
    """Whether the engine gives a tmpfs the content and mode of the image's directory, unless it is told not to. Such an
    engine lets it have no owner."""
    userns: str = ""
    """The engine's user namespace mode, where not its default."""
    cgroup_parent: str = ""
    """The cgroup that outlives the container, so that its counters can be read; empty: the engine's default."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image declares that would open a hole."""

    volumes: tuple[str, ...] = ()
    """Paths for which the engine would make writable volumes, without a limit, on the disk."""


class UnfitImage(BadRun):
    """The image asks for what no sandbox grants: it is so on every machine."""


def container_name(home: str, label: str) -> str:
    """Unique by home and run; the engine accepts each character of both."""
    if not _HOME.fullmatch(home):
        raise ValueError("a home id is 8 to 64 hex digits")
    return f"nexapod-{home[:16]}-{label}"


def tmp_bytes(run: TaskRun) -> int:
    """The size of /tmp: it lies in memory, and counts as the task's."""
    return max(1 << 20, min(run.limits.memory // 2, TMP_BYTES_MAX))


def container_settings(run: TaskRun, host: HostFacts, image: ImageFacts, *, home: str, scratch: Path) -> dict[str, Any]:
    """The body of the engine's `create` request. `scratch` is seen as /run. Raises BadRun: GPUs not as granted; and
    UnfitImage."""
    assert host.user[0] != 0, "a task is never root, not even inside"
    _refuse_unfit(image)
    if len(run.gpus) != run.limits.gpus or not all(_GPU.fullmatch(gpu) for gpu in run.gpus):
        raise BadRun(f"the task wants {run.limits.gpus} GPUs and is granted {list(run.gpus)!r:.200}")
    settings: dict[str, Any] = {
        "Image": run.image,
        "User": f"{host.user[0]}:{host.user[1]}",
        "Env": [f"{name}={value}" for name, value in _env(run).items()],
        "Hostname": "task",
        "NetworkDisabled": True,
        "Tty": False,
        "OpenStdin": False,
        "StopSignal": "SIGKILL",  # an engine that shuts down must not let a task end as if it were done
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _confinement(run, host) | _bounds(run, host) | _files(run, host, image, scratch),
    }
    if run.command:
        settings["Cmd"] = list(run.command)
    if run.workdir:
        settings["WorkingDir"] = run.workdir
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return settings | {"Labels": {LABEL_HOME: home, LABEL_RUN: run.label, LABEL_SETTINGS: digest}}


def _refuse_unfit(image: ImageFacts) -> None:
    """An engine puts nothing of its own where a tmpfs has the very same name; but it makes a volume, on the disk and
    without a limit, for a name that only means the same place."""
    if len(image.volumes) > VOLUMES_MAX:
        raise UnfitImage(f"the image declares {len(image.volumes)} volumes: at most {VOLUMES_MAX} are given")
    for path in image.volumes:
        plain = path.startswith("/") and path == posixpath.normpath(path) and not path.startswith("//")
        taken = path == "/" or any(path.startswith(f"{own}/") for own in (*_OWN_PATHS, *_SYSTEM_PATHS))
        if not plain or taken or path in _SYSTEM_PATHS:
            raise UnfitImage(f"the image declares the volume {path[:100]!a}: no task is given one there")


def _env(run: TaskRun) -> dict[str, str]:
    own = {name: value for name, value in run.env if not name.upper().startswith(_GPU_ENV)}
    gpus = {"NVIDIA_VISIBLE_DEVICES": ",".join(run.gpus) or GPU_NONE, "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    return dict(PINNED_ENV) | own | gpus | {PROGRESS_ENV: PROGRESS_PATH}


def _gpu_requests(run: TaskRun) -> list[dict[str, Any]]:
    if not run.gpus:
        return []
    return [{"Driver": "", "Count": 0, "DeviceIDs": list(run.gpus), "Capabilities": [["gpu"]], "Options": {}}]


def _confinement(run: TaskRun, host: HostFacts) -> dict[str, Any]:
    userns = {"UsernsMode": host.userns} if host.userns else {}
    return userns | {
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Privileged": False,
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "CapAdd": [],
        "Devices": [],
        "DeviceRequests": _gpu_requests(run),
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={host.seccomp}"],
        "Init": host.init,
        "AutoRemove": False,
        "RestartPolicy": {"Name": "no"},
        "CgroupParent": host.cgroup_parent,
    }


def _bounds(run: TaskRun, host: HostFacts) -> dict[str, Any]:
    memory = max(run.limits.memory, MEMORY_MIN)
    # One byte more than it may have on the disk, so that a task which runs into it is seen to be over its limit. /tmp
    # is under the same limit, which therefore cannot be smaller than it.
    file_bytes = max(run.limits.output + 1, run.limits.disk + 1, tmp_bytes(run))
    ulimits = [("nofile", min(NOFILE, host.nofile_max)), ("core", 0), ("fsize", file_bytes)]
    if host.nproc_max:
        ulimits.append(("nproc", min(NPROC, host.nproc_max)))
    return {
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": max(10, min(run.limits.cpus_milli, host.cpus * 1000)) * 1_000_000,
        "CpuShares": CPU_SHARES,
        "PidsLimit": max(PIDS_MIN, min(run.limits.pids, PIDS_MAX)),
        "OomScoreAdj": OOM_SCORE_ADJ,
        "ShmSize": SHM_BYTES,
        "Ulimits": [{"Name": name, "Soft": value, "Hard": value} for name, value in ulimits],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": str(LOG_BYTES), "max-file": "1"}},
    }


def _files(run: TaskRun, host: HostFacts, image: ImageFacts, scratch: Path) -> dict[str, Any]:
    # Owned by the task: runc gives the mount the mode of the image's directory, whatever is asked for here. Podman
    # takes no owner, so that with it and runc an image whose /tmp is closed to its users has no /tmp to write to.
    uid, gid = host.user
    owner = "notmpcopyup" if host.tmpfs_copies else f"uid={uid},gid={gid}"
    tmpfs = f"rw,nosuid,nodev,mode=1777,{owner},size={tmp_bytes(run)}"
    return {
        "Mounts": [
            _bind(run.input, "/input", read_only=True),
            _bind(run.output, "/output", read_only=False),
            _bind(run.checkpoint, "/checkpoint", read_only=False),
            _bind(scratch, "/run", read_only=False),
        ],
        "Tmpfs": {path: tmpfs for path in ("/tmp", *image.volumes) if path not in _OWN_PATHS},  # noqa: S108
    }


_OWN_PATHS: Final = ("/input", "/output", "/checkpoint", "/run")
_SYSTEM_PATHS: Final = ("/proc", "/sys", "/dev")


def _bind(source: Path, target: str, *, read_only: bool) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }
