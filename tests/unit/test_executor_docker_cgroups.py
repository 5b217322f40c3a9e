"""Exact usage from cgroup files, laid out here as both versions lay them out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexapod.executor.docker.cgroups import Cgroups, find, named
from nexapod.protocol.types import Usage

HOME = "0123456789abcdef"


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_version_1_counts_in_two_hierarchies(tmp_path: Path, as_root: None) -> None:
    for controller in ("memory", "cpuacct", "pids"):
        (tmp_path / controller / f"nexapod-{HOME}" / "1").mkdir(parents=True)
    cgroups = find({"CgroupDriver": "cgroupfs", "CgroupVersion": "1"}, HOME, tmp_path)
    assert cgroups is not None
    assert cgroups.parent("1") == f"/nexapod-{HOME}/1"
    (tmp_path / "memory" / cgroups.prefix / "1" / "memory.max_usage_in_bytes").write_text("4096\n")
    (tmp_path / "cpuacct" / cgroups.prefix / "1" / "cpuacct.usage").write_text("2500000\n")
    assert cgroups.usage("1") == Usage(cpu_ms=2, peak_memory=4096)
    assert cgroups.usage("2") is None


def test_version_2_counts_in_one(tmp_path: Path, as_root: None) -> None:
    (tmp_path / "cgroup.controllers").touch()
    cgroups = find({"CgroupDriver": "cgroupfs", "CgroupVersion": "2"}, HOME, tmp_path)
    assert cgroups is not None
    base = tmp_path / cgroups.prefix / "1"
    base.mkdir(parents=True)
    (base / "memory.peak").write_text("8192\n")
    (base / "cpu.stat").write_text("usage_usec 3000\nuser_usec 1000\n")
    assert cgroups.usage("1") == Usage(cpu_ms=3, peak_memory=8192)


def test_a_run_s_cgroups_are_removed_and_those_of_others_stay(tmp_path: Path) -> None:
    cgroups = Cgroups(tmp_path, 1, "nexapod-x")
    for label in ("1", "2"):
        (tmp_path / "memory" / "nexapod-x" / label / "leaf").mkdir(parents=True)
    cgroups.remove("1")
    assert sorted(path.name for path in (tmp_path / "memory" / "nexapod-x").iterdir()) == ["2"]
    cgroups.remove_leftovers()
    assert list((tmp_path / "memory").iterdir()) == []


@pytest.mark.parametrize("version", [1, 2])
def test_what_others_run_may_end_while_our_cgroups_are_looked_for(
    tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = [tmp_path / "memory", tmp_path / "pids"] if version == 1 else [tmp_path]
    for top in tops:
        (top / f"nexapod-{HOME}" / "1").mkdir(parents=True)
        (top / "docker" / ("0" * 64)).mkdir(parents=True)
    if version == 1:
        (tmp_path / "also-memory").symlink_to("memory")
    else:
        (tmp_path / "cgroup.controllers").touch()
    scandir = os.scandir

    def vanishing(path: str | Path) -> Iterator[os.DirEntry[str]]:
        if "docker" in str(path):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert named("nexapod-0123*", tmp_path) == [top / f"nexapod-{HOME}" for top in tops]
    assert named("nexapod-4*", tmp_path) == []
    assert named("nexapod-*", tmp_path / "no-cgroups-here") == []


@pytest.mark.parametrize(("version", "hierarchy"), [(1, "memory"), (2, "")])
def test_a_run_s_containers_are_found(tmp_path: Path, version: int, hierarchy: str) -> None:
    cgroups = Cgroups(tmp_path, version, "nexapod-x")
    assert cgroups.containers("1") == []
    for label in ("1", "2"):
        (tmp_path / hierarchy / "nexapod-x" / label / f"container-{label}").mkdir(parents=True)
    (tmp_path / hierarchy / "nexapod-x" / "1" / "memory.peak").touch()
    assert [path.name for path in cgroups.containers("1")] == ["container-1"]


def test_where_it_cannot_work_it_is_not_tried(tmp_path: Path, as_root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find({"CgroupDriver": "systemd", "CgroupVersion": "2"}, HOME, tmp_path) is None
    assert find({"CgroupDriver": "cgroupfs", "CgroupVersion": "2"}, HOME, tmp_path) is None
    assert find({"CgroupDriver": "cgroupfs"}, HOME, tmp_path) is None
    (tmp_path / "cgroup.controllers").touch()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert find({"CgroupDriver": "cgroupfs", "CgroupVersion": "2"}, HOME, tmp_path) is None
