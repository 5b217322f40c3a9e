"""What this machine is, and how much of it this process may use: CPUs, memory and disk, as the system tells.

Respects what bounds the process: the CPU affinity mask and the cgroups (v2 and v1) that it lies in.
Blocking; keeps no state. Knows nothing of what the user lets the daemon use: that is a policy.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
import structlog

log = structlog.get_logger()

_ARCH = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_TEXT_MAX = 256


@dataclass(frozen=True, slots=True)
class Hardware:
    """This machine, as far as this process may use it. Bytes; `cpus_milli` in thousandths of a CPU."""

    os: str
    arch: str
    cpu_model: str
    cpus_physical: int
    cpus: int
    """Logical CPUs usable: within the affinity mask, and the cgroup quota rounded down, but at least 1."""
    cpus_milli: int
    """The same, not rounded."""
    memory: int
    disk_free: int
    """Free for this user where the home folder lies."""


def hardware(home: Path, *, proc: Path = Path("/proc"), cgroup_root: Path = Path("/sys/fs/cgroup")) -> Hardware:
    """Look at the machine. `home`, or its nearest existing parent, tells which disk counts."""
    logical = _affinity()
    groups = _groups(proc, cgroup_root)
    cpus_milli = min([logical * 1000, *groups.cpu_quotas()])
    return Hardware(
        os=platform.system().lower(),
        arch=_arch(platform.machine()),
        cpu_model=_cpu_model(proc),
        cpus_physical=min(psutil.cpu_count(logical=False) or logical, logical),
        cpus=max(1, cpus_milli // 1000),
        cpus_milli=cpus_milli,
        memory=min([psutil.virtual_memory().total, *groups.memory_limits()]),
        disk_free=_disk_free(home),
    )


def _arch(machine: str) -> str:
    return _ARCH.get(machine.lower(), machine.lower())


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def _cpu_model(proc: Path) -> str:
    """As /proc/cpuinfo names it; on machines that give no name there, what the platform says."""
    for line in _read(proc / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return " ".join(value.split())[:_TEXT_MAX]
    return (platform.processor() or platform.machine())[:_TEXT_MAX]


def _disk_free(home: Path) -> int:
    place = home.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return int(psutil.disk_usage(str(place)).free)
    except OSError as error:
        log.warning("disk_free_unknown", path=str(place), error=error.strerror)
        return 0


@dataclass(frozen=True, slots=True)
class _Groups:
    """The folders of the cgroups that bound this process: its own and all above it, by controller."""

    unified: tuple[Path, ...]
    cpu: tuple[Path, ...]
    memory: tuple[Path, ...]

    def cpu_quotas(self) -> Iterator[int]:
        """Each quota, in thousandths of a CPU."""
        for folder in self.unified:
            quota, _, period = _read(folder / "cpu.max").partition(" ")
            yield from _milli(quota, period)
        for folder in self.cpu:
            yield from _milli(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))

    def memory_limits(self) -> Iterator[int]:
        """Each limit, in bytes. Version 1 writes a very large number for none, which no minimum heeds."""
        for folder in self.unified:
            yield from _positive(_read(folder / "memory.max"))
        for folder in self.memory:
            yield from _positive(_read(folder / "memory.limit_in_bytes"))


def _groups(proc: Path, root: Path) -> _Groups:
    unified: tuple[Path, ...] = ()
    cpu: tuple[Path, ...] = ()
    memory: tuple[Path, ...] = ()
    for line in _read(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if number == "0" and not controllers:
            unified = _with_parents(root, path)
        if "cpu" in names:
            cpu = _with_parents(root / "cpu", path)
        if "memory" in names:
            memory = _with_parents(root / "memory", path)
    return _Groups(unified, cpu, memory)


def _with_parents(mount: Path, path: str) -> tuple[Path, ...]:
    """A group's folder and all above it. In a container the path may be the host's: then only the mount
    exists.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return tuple(mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _milli(quota: str, period: str) -> Iterator[int]:
    """1000 * quota / period; nothing for "max", -1 or what is not there."""
    for amount in _positive(quota):
        for per in _positive(period):
            yield max(1, amount * 1000 // per)


def _positive(text: str) -> Iterator[int]:
    if text.strip().isdigit() and int(text) > 0:
        yield int(text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""  # absent on this system, or not ours to read: then it bounds nothing that we could know
