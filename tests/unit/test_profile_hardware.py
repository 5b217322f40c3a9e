"""This machine's hardware, and the cgroup limits on it, against recorded /proc and /sys files."""

from __future__ import annotations

import os

import psutil
import pytest

from nexapod.profile.hardware import hardware

CPUINFO = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC   9454 48-Core\n"


@pytest.fixture
def system(tmp_path):
    """Folders that stand for /proc and /sys/fs/cgroup, and a way to fill them."""

    class System:
        proc = tmp_path / "proc"
        cgroup = tmp_path / "cgroup"

        def write(self, path, text):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        def look(self):
            return hardware(tmp_path, proc=self.proc, cgroup_root=self.cgroup)

    made = System()
    made.write(made.proc / "cpuinfo", CPUINFO)
    made.write(made.proc / "self" / "cgroup", "0::/user.slice/pod.scope\n")
    return made


def test_without_limits_it_is_the_machine(system):
    seen = system.look()
    assert seen.cpus == len(os.sched_getaffinity(0))
    assert seen.cpus_milli == seen.cpus * 1000
    assert 1 <= seen.cpus_physical <= seen.cpus
    assert seen.memory == psutil.virtual_memory().total
    assert seen.disk_free > 0
    assert seen.cpu_model == "AMD EPYC 9454 48-Core"
    assert seen.os == "linux"
    assert seen.arch not in ("amd64", "arm64", "")


def test_a_quota_of_a_parent_counts(system):
    system.write(system.cgroup / "user.slice" / "cpu.max", "50000 100000\n")
    system.write(system.cgroup / "user.slice" / "pod.scope" / "cpu.max", "max 100000\n")
    system.write(system.cgroup / "user.slice" / "pod.scope" / "memory.max", "268435456\n")
    system.write(system.cgroup / "user.slice" / "memory.max", "max\n")
    seen = system.look()
    assert seen.cpus_milli == 500
    assert seen.cpus == 1
    assert seen.memory == 268_435_456


def test_version_1_limits_count(system):
    system.write(system.proc / "self" / "cgroup", "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n1:name=systemd:/\n")
    system.write(system.cgroup / "cpu" / "cpu.cfs_quota_us", "30000\n")
    system.write(system.cgroup / "cpu" / "cpu.cfs_period_us", "100000\n")
    system.write(system.cgroup / "memory" / "memory.limit_in_bytes", "1048576\n")
    seen = system.look()
    assert seen.cpus_milli == 300
    assert seen.memory == 1_048_576


@pytest.mark.parametrize("text", ["", "max", "-1 100000", "0 100000", "rubbish", "100000 0", "9" * 30])
def test_unreadable_limits_are_no_limits(system, text):
    system.write(system.cgroup / "cpu.max", text)
    system.write(system.cgroup / "memory.max", text if " " not in text else "-1")
    seen = system.look()
    assert seen.cpus_milli == len(os.sched_getaffinity(0)) * 1000
    assert seen.memory == psutil.virtual_memory().total


def test_the_affinity_mask_counts(system):
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert system.look().cpus == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_home_that_does_not_exist_yet_has_its_parents_disk(tmp_path):
    assert hardware(tmp_path / "not" / "yet").disk_free > 0
