"""What kind of engine this is, read off what it says of itself: whether it can keep our promises, and how.

Pure: takes the answers of `/info` and `/version` and facts of this process, and returns what the settings depend on,
or raises Unfit with everything that is missing and what to do about it. Talks to nothing.

Who a task runs as, and whose its files are, depends on how the engine maps users:

| engine                       | inside                | on the disk             |
|------------------------------|-----------------------|-------------------------|
| rootful, daemon is root      | nobody                | nobody                  |
| rootful, daemon is a user    | that user             | that user               |
| userns-remap, daemon is root | nobody                | nobody of the remapping |
| rootless Podman (keep-id)    | the user              | the user                |
| rootless Docker              | refused: only its root inside is the user outside |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nexapod.executor.docker.settings import NOBODY
from nexapod.executor.image_ids import CONTAINERD_STORE, names_by_manifest

_REMAPPED: Final = re.compile(r"/(\d+)\.(\d+)/?$")
"""How an engine with userns-remap ends the name of its own directory: the uid and gid that root is mapped to."""
_CONTROLLERS: Final = (("MemoryLimit", "memory"), ("PidsLimit", "processes"), ("CpuCfsQuota", "CPU time"))


class Unfit(Exception):
    """The engine cannot keep the promises of the sandbox. The text says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Process:
    """What of this process and machine matters here."""

    uid: int
    gid: int
    swap: bool
    """Whether the machine swaps."""
    podman_init: bool
    """Whether the init that Podman uses (catatonit) is installed."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the settings depend on."""

    version: str
    podman: bool
    cpus: int
    init: bool
    user: tuple[int, int]
    """uid and gid of a task inside."""
    owner: tuple[int, int] | None
    """uid and gid to which its directories are given, when not ours."""
    userns: str = ""


def judge(info: Mapping[str, Any], version: Mapping[str, Any], process: Process) -> EngineFacts:
    """Raises Unfit."""
    podman, rootless = is_podman(version), is_rootless(info)
    options = _options(info)
    missing = _missing(info, options, rootless, process)
    user, owner, userns = NOBODY, None, ""
    if rootless and not podman:
        missing.append(
            "it is rootless Docker, which cannot run a task as anyone but root and leave its files to this daemon: use"
            " rootless Podman (podman system service) or Docker that runs as root"
        )
    elif rootless:
        user, userns = (process.uid, process.gid), "keep-id"
        if process.uid == 0:
            missing.append("it is another user's rootless Podman: run the daemon as that user")
    elif _has(options, "name=userns"):
        base = _REMAPPED.search(str(info.get("DockerRootDir", "")))
        if base is None or process.uid != 0:
            missing.append("it remaps users (userns-remap): run the daemon as root, or the engine without it")
        else:
            owner = (int(base[1]) + NOBODY[0], int(base[2]) + NOBODY[1])
    elif process.uid == 0:
        owner = NOBODY
    else:
        user = (process.uid, process.gid)
    if missing:
        raise Unfit("the container engine is not fit: " + "; ".join(missing))
    return EngineFacts(
        version=_shown_version(info, podman),
        podman=podman,
        cpus=max(1, int(info.get("NCPU") or 1)),
        init=process.podman_init if podman else bool(info.get("InitBinary")),
        user=user,
        owner=owner,
        userns=userns,
    )


def is_podman(version: Mapping[str, Any]) -> bool:
    return any(str(part.get("Name")) == "Podman Engine" for part in version.get("Components") or ())


def is_rootless(info: Mapping[str, Any]) -> bool:
    """Podman says so in a field of its own."""
    return bool(info.get("Rootless")) or _has(_options(info), "name=rootless")


def _missing(info: Mapping[str, Any], options: list[str], rootless: bool, process: Process) -> list[str]:
    if info.get("OSType") != "linux":
        return ["it does not run Linux containers: switch it to Linux"]
    missing = []
    if not _has(options, "name=seccomp"):
        missing.append("it has no seccomp: use a kernel and an engine built with it")
    if names_by_manifest(info):
        missing.append(f"it {CONTAINERD_STORE}")
    unbounded = [what for field, what in _CONTROLLERS if not info.get(field)]
    if info.get("CgroupDriver") == "none" or (rootless and str(info.get("CgroupVersion")) != "2"):
        unbounded = [what for _, what in _CONTROLLERS]
    if unbounded:
        remedy = "switch on the kernel's cgroup controllers"
        if rootless:
            remedy = "let systemd delegate the cgroup v2 controllers cpu, memory and pids to your user"
        if rootless and str(info.get("CgroupVersion")) != "2":
            remedy = "rootless, it needs cgroup v2: boot with systemd.unified_cgroup_hierarchy=1, or run it as root"
        missing.append(f"it cannot bound {', '.join(unbounded)}: {remedy}")
    elif not info.get("SwapLimit") and process.swap:
        missing.append("it cannot bound swap: boot with swapaccount=1 or switch swap off")
    return missing


def _options(info: Mapping[str, Any]) -> list[str]:
    return [str(option) for option in info.get("SecurityOptions") or ()]


def _has(options: list[str], name: str) -> bool:
    return any(option == name or option.startswith(name + ",") for option in options)


def _shown_version(info: Mapping[str, Any], podman: bool) -> str:
    number = "".join(c for c in str(info.get("ServerVersion", "?")) if c.isprintable())[:48]
    return f"podman {number}" if podman else number
