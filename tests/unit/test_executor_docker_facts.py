"""What an engine is fit for, from what it says of itself: Docker's and Podman's answers, recorded, rootful and not.

The rootful answers were recorded from Docker 20.10 and Podman 4.3, that of rootless Podman 4.3 on a machine with cgroup
v1 and here with v2; the others are those with the fields changed that the engines' own documentation names.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nexapod.executor.docker.facts import EngineFacts, Process, Unfit, judge
from nexapod.executor.docker.settings import NOBODY

DOCKER: dict[str, Any] = {
    "OSType": "linux",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "CgroupDriver": "cgroupfs",
    "CgroupVersion": "1",
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "NCPU": 2,
    "InitBinary": "docker-init",
    "ServerVersion": "20.10.24+dfsg1",
    "DockerRootDir": "/var/lib/docker",
}
DOCKER_PARTS = {"Components": [{"Name": "Engine"}, {"Name": "containerd"}, {"Name": "runc"}, {"Name": "docker-init"}]}
DOCKER_ROOTLESS = DOCKER | {
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"],
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "DockerRootDir": "/home/ada/.local/share/docker",
}
DOCKER_REMAPPED = DOCKER | {
    "SecurityOptions": ["name=seccomp,profile=default", "name=userns"],
    "DockerRootDir": "/var/lib/docker/231072.231073",
}
PODMAN = DOCKER | {
    "InitBinary": "",
    "ServerVersion": "4.3.1",
    "DockerRootDir": "/var/lib/containers/storage",
    "Rootless": False,
}
PODMAN_PARTS = {"Components": [{"Name": "Podman Engine"}, {"Name": "Conmon"}, {"Name": "OCI Runtime (runc)"}]}
PODMAN_ROOTLESS = PODMAN | {
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "Rootless": True,
}
ROOT = Process(uid=0, gid=0, swap=False, podman_init=True)
ADA = Process(uid=1000, gid=1001, swap=False, podman_init=False)


def why(info: dict[str, Any], parts: dict[str, Any] = DOCKER_PARTS, process: Process = ROOT) -> str:
    with pytest.raises(Unfit) as unfit:
        judge(info, parts, process)
    text = str(unfit.value)
    assert text.startswith("the container engine is not fit: ")
    return text


def test_docker_that_runs_as_root() -> None:
    assert judge(DOCKER, DOCKER_PARTS, ROOT) == EngineFacts(
        version="20.10.24+dfsg1", podman=False, cpus=2, init=True, user=NOBODY, owner=NOBODY
    )
    as_user = judge(DOCKER, DOCKER_PARTS, ADA)
    assert (as_user.user, as_user.owner) == ((1000, 1001), None)


def test_podman_that_runs_as_root() -> None:
    facts = judge(PODMAN, PODMAN_PARTS, ROOT)
    assert (facts.podman, facts.init, facts.user, facts.owner) == (True, True, NOBODY, NOBODY)
    assert facts.version == "podman 4.3.1"
    assert not judge(PODMAN, PODMAN_PARTS, replace(ROOT, podman_init=False)).init


def test_rootless_podman_runs_tasks_as_the_user_that_we_are() -> None:
    facts = judge(PODMAN_ROOTLESS, PODMAN_PARTS, ADA)
    assert (facts.user, facts.owner, facts.userns) == ((1000, 1001), None, "keep-id")
    assert "another user's rootless Podman: run the daemon as that user" in why(PODMAN_ROOTLESS, PODMAN_PARTS, ROOT)


def test_rootless_docker_is_refused_with_what_to_use_instead() -> None:
    text = why(DOCKER_ROOTLESS, process=ADA)
    assert "rootless Docker" in text
    assert "use rootless Podman (podman system service) or Docker that runs as root" in text


def test_a_remapping_engine_s_tasks_own_their_files_by_the_mapped_id() -> None:
    facts = judge(DOCKER_REMAPPED, DOCKER_PARTS, ROOT)
    assert (facts.user, facts.owner) == (NOBODY, (231072 + 65534, 231073 + 65534))
    assert "remaps users (userns-remap): run the daemon as root" in why(DOCKER_REMAPPED, process=ADA)
    assert "remaps users" in why(DOCKER_REMAPPED | {"DockerRootDir": "/var/lib/docker"})


def test_an_engine_without_seccomp_is_refused() -> None:
    assert "no seccomp" in why(DOCKER | {"SecurityOptions": None})
    assert "no seccomp" in why(DOCKER | {"SecurityOptions": ["name=seccompish"]})


@pytest.mark.parametrize(
    ("field", "what"), [("MemoryLimit", "memory"), ("PidsLimit", "processes"), ("CpuCfsQuota", "CPU time")]
)
def test_an_engine_that_cannot_bound_something_is_refused(field: str, what: str) -> None:
    assert f"cannot bound {what}: switch on the kernel's cgroup controllers" in why(DOCKER | {field: False})


def test_a_rootless_engine_without_delegated_cgroups_bounds_nothing() -> None:
    for lacking, remedy in (
        ({"CgroupDriver": "none"}, "let systemd delegate the cgroup v2 controllers"),
        ({"CgroupVersion": "1", "CgroupDriver": "cgroupfs"}, "rootless, it needs cgroup v2"),
    ):
        text = why(PODMAN_ROOTLESS | lacking, PODMAN_PARTS, ADA)
        assert f"cannot bound memory, processes, CPU time: {remedy}" in text


def test_an_engine_that_names_images_otherwise_than_the_mesh_is_refused() -> None:
    text = why(DOCKER | {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]})
    assert "it keeps images in containerd's store" in text
    assert 'set "features": {"containerd-snapshotter": false}' in text
    assert judge(DOCKER | {"DriverStatus": [["Backing Filesystem", "extfs"]]}, DOCKER_PARTS, ROOT).init


def test_swap_must_be_bounded_where_there_is_any() -> None:
    unbounded = DOCKER | {"SwapLimit": False}
    assert judge(unbounded, DOCKER_PARTS, ROOT).init
    assert "cannot bound swap: boot with swapaccount=1 or switch swap off" in why(
        unbounded, process=replace(ROOT, swap=True)
    )


def test_all_that_is_missing_is_said_at_once() -> None:
    text = why(DOCKER_ROOTLESS | {"SecurityOptions": ["name=rootless"], "MemoryLimit": False}, process=ADA)
    assert text.count(";") == 2


def test_an_engine_for_other_systems_is_refused() -> None:
    assert "switch it to Linux" in why(DOCKER | {"OSType": "windows"})


def test_an_engine_s_own_words_are_not_trusted_to_be_printable() -> None:
    facts = judge(DOCKER | {"ServerVersion": "1\x1b[2J" + "9" * 99, "NCPU": None}, {"Components": None}, ROOT)
    assert facts.version.isprintable()
    assert (len(facts.version), facts.cpus) == (48, 1)
