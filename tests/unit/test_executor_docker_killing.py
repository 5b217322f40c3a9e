"""Ending what is in a container without its engine: all of it, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexapod.executor.docker import killing
from nexapod.executor.docker.killing import kill_by_id, kill_containers

Process = subprocess.Popen[bytes]
CONTAINER, OTHER = "c0" * 32, "0c" * 32


@pytest.fixture
def sleepers() -> Iterator[list[Process]]:
    started = [subprocess.Popen(["/bin/sleep", "60"]) for _ in range(3)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def died(process: Process) -> bool:
    try:
        return process.wait(timeout=0.2) == -signal.SIGKILL
    except subprocess.TimeoutExpired:
        return False


def cgroup(path: Path, process: Process) -> Path:
    path.mkdir(parents=True)
    # Zero: a process of a namespace that we do not see. One: nobody's container.
    (path / "cgroup.procs").write_text(f"0\n{process.pid}\n1\n")
    return path


def test_all_that_is_in_a_run_s_containers_is_killed_and_nothing_else(tmp_path: Path, sleepers: list[Process]) -> None:
    inside, monitor, other = sleepers
    found = [cgroup(tmp_path / CONTAINER, inside), cgroup(tmp_path / f"libpod-conmon-{CONTAINER}", monitor)]
    cgroup(tmp_path / OTHER, other)
    kill_containers(found)
    assert [died(process) for process in sleepers] == [True, False, False]
    kill_containers([*found, tmp_path / "gone"])


def test_version_2_kills_a_container_as_one(tmp_path: Path, sleepers: list[Process]) -> None:
    container = cgroup(tmp_path / CONTAINER, sleepers[0])
    (container / "cgroup.kill").touch()
    kill_containers([container])
    assert (container / "cgroup.kill").read_text() == "1"
    assert not died(sleepers[0]), "the kernel's to do, which is not here"


def test_who_got_the_number_of_a_process_just_gone_is_not_killed(
    tmp_path: Path, sleepers: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = cgroup(tmp_path / CONTAINER, sleepers[0]) / "cgroup.procs"
    open_handle = os.pidfd_open

    def open_too_late(pid: int) -> int:
        members.write_text("")
        return open_handle(pid)

    monkeypatch.setattr(os, "pidfd_open", open_too_late)
    kill_containers([members.parent])
    assert not died(sleepers[0])


@pytest.mark.parametrize(
    "line",
    ["0::/system.slice/docker-{}.scope", "9:memory:/docker/{}", "0::/user.slice/libpod-{}.scope/container"],
)
def test_a_container_s_processes_are_known_by_its_id(
    tmp_path: Path, sleepers: list[Process], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, monitor, other = sleepers
    monkeypatch.setattr(killing, "PROC", tmp_path)
    for process, name in ((inside, CONTAINER), (monitor, f"conmon-{CONTAINER}"), (other, OTHER)):
        (tmp_path / str(process.pid)).mkdir()
        (tmp_path / str(process.pid) / "cgroup").write_text("1:name=systemd:/\n" + line.format(name) + "\n")
    for name in ("1", "self", "sys", "99999999"):
        (tmp_path / name).mkdir()
    (tmp_path / "1" / "cgroup").write_text(line.format(CONTAINER))
    kill_by_id(CONTAINER)
    assert [died(process) for process in sleepers] == [True, False, False]


@pytest.mark.parametrize("container", ["", "c0", "/", "docker", CONTAINER.upper()])
def test_what_is_no_id_ends_nothing(
    tmp_path: Path, sleepers: list[Process], container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(killing, "PROC", tmp_path)
    (tmp_path / str(sleepers[0].pid)).mkdir()
    (tmp_path / str(sleepers[0].pid) / "cgroup").write_text(f"0::/docker-{container}.scope")
    kill_by_id(container)
    assert not died(sleepers[0])
