"""What a container used, exactly, after it has ended: from a parent cgroup of its own, which outlives it.

An engine removes only a container's leaf cgroup. Its parent's counters are hierarchical and stay: CPU time and peak
memory to the byte, at the cost of a few file reads, where the engine's own statistics take a second to answer and
are gone with the container. Possible for root with the cgroupfs driver, on cgroup v1 and v2; `find` says whether.
"""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nexapod.protocol.types import Usage

ROOT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where the counters of our containers are found."""

    root: Path
    version: int
    prefix: str
    """The name of the directory that holds one parent for each run."""

    def parent(self, label: str) -> str:
        """For the engine's CgroupParent."""
        return f"/{self.prefix}/{label}"

    def usage(self, label: str) -> Usage | None:
        """CPU time (ms) and peak memory (bytes) of a run's containers, ended or not. None: not found."""
        try:
            return self._usage_v1(label) if self.version == 1 else self._usage_v2(label)
        except (OSError, ValueError, IndexError):
            return None  # the engine put it elsewhere: the caller falls back to the engine's statistics

    def containers(self, label: str) -> list[Path]:
        """The cgroups of a run's containers, of which one is enough to know who is in it."""
        base = self.root / self.prefix if self.version == 2 else self.root / "memory" / self.prefix
        try:
            return [Path(entry.path) for entry in os.scandir(base / label) if entry.is_dir()]
        except OSError:
            return []  # the engine put it elsewhere, or has not begun it

    def remove(self, label: str) -> None:
        """Remove a run's parent in every hierarchy. One still in use stays, and goes with `remove_leftovers`."""
        for base in self._bases():
            for directory, _, _ in os.walk(base / label, topdown=False):
                _rmdir(directory)
            _rmdir(str(base))

    def remove_leftovers(self) -> None:
        """Remove all that no container is in."""
        for base in self._bases():
            for directory, _, _ in os.walk(base, topdown=False):
                _rmdir(directory)

    def _bases(self) -> list[Path]:
        if self.version == 2:
            return [self.root / self.prefix]
        return [Path(entry.path) / self.prefix for entry in os.scandir(self.root) if entry.is_dir()]

    def _usage_v1(self, label: str) -> Usage:
        peak = int((self.root / "memory" / self.prefix / label / "memory.max_usage_in_bytes").read_text())
        cpu_ns = int((self.root / "cpuacct" / self.prefix / label / "cpuacct.usage").read_text())
        return Usage(cpu_ms=cpu_ns // 1_000_000, peak_memory=peak)

    def _usage_v2(self, label: str) -> Usage:
        base = self.root / self.prefix / label
        cpu = dict(line.split() for line in (base / "cpu.stat").read_text().splitlines())
        return Usage(cpu_ms=int(cpu["usage_usec"]) // 1000, peak_memory=int((base / "memory.peak").read_text()))


def find(info: dict[str, Any], home: str, root: Path = ROOT) -> Cgroups | None:
    """Whether the trick works with an engine that says this `info` of itself."""
    if os.geteuid() != 0 or info.get("CgroupDriver") != "cgroupfs":
        return None
    prefix = f"nexapod-{home[:16]}"
    if info.get("CgroupVersion") == "2":
        return Cgroups(root, 2, prefix) if (root / "cgroup.controllers").exists() else None
    return Cgroups(root, 1, prefix) if (root / "memory").is_dir() and (root / "cpuacct").is_dir() else None


def named(pattern: str, root: Path = ROOT) -> list[Path]:
    """The directories of that name, any daemon's, wherever `parent` makes an engine put one: at the top of a hierarchy.
    Never below: what others run comes and goes there, and a walk through it would break off in the middle."""
    if (root / "cgroup.controllers").exists():
        tops = [str(root)]
    else:
        tops = [entry.path for entry in _directories(root) if not entry.is_symlink()]
    found = [entry for top in tops for entry in _directories(top) if fnmatch.fnmatchcase(entry.name, pattern)]
    return sorted(Path(entry.path) for entry in found)


def _directories(folder: str | Path) -> list[os.DirEntry[str]]:
    """None where there is no such folder: not every machine has cgroups."""
    try:
        return [entry for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return []


def _rmdir(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError:
        return  # in use by another run, or never made in this hierarchy: both are as they should be
