"""The container's settings: every promise of the sandbox, read off the request that the engine gets."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexapod.executor.container import HostFacts, ImageFacts, container_name, container_settings
from nexapod.executor.contract import TaskRun
from nexapod.protocol.types import Limits

HOME = "0123456789abcdef"
HOST = HostFacts(cpus=4, nofile_max=20_000, user=(65534, 65534), init=True, seccomp="{}", cgroup_parent="/n/1")
RUN = TaskRun(
    label="1a-2b",
    executor="docker",
    module=None,
    image="sha256:" + "a" * 64,
    command=("run", "--fast"),
    env=(("NEXAPOD_TASK_INDEX", "7"),),
    input=Path("/d/i"),
    output=Path("/d/o"),
    checkpoint=Path("/d/c"),
    limits=Limits(cpus_milli=1500, memory=256 << 20, output=1 << 20),
    seed=bytes(32),
)


def settings(run: TaskRun = RUN, host: HostFacts = HOST, image: ImageFacts | None = None) -> dict[str, Any]:
    return container_settings(run, host, image or ImageFacts(), home=HOME, scratch=Path("/d/s"))


def host_config(run: TaskRun = RUN, host: HostFacts = HOST, image: ImageFacts | None = None) -> dict[str, Any]:
    config = settings(run, host, image)["HostConfig"]
    assert isinstance(config, dict)
    return config


def test_nothing_is_shared_with_the_host() -> None:
    config = host_config()
    assert config["NetworkMode"] == "none"
    assert config["IpcMode"] == "private"
    assert config["CgroupnsMode"] == "private"
    assert settings()["NetworkDisabled"] is True
    assert not {"PidMode", "UTSMode", "UsernsMode", "Binds", "VolumesFrom", "Links", "PortBindings"} & config.keys()


def test_nothing_is_privileged() -> None:
    config = host_config()
    assert config["Privileged"] is False
    assert (config["CapDrop"], config["CapAdd"]) == (["ALL"], [])
    assert (config["Devices"], config["DeviceRequests"]) == ([], [])
    assert config["SecurityOpt"] == ["no-new-privileges:true", "seccomp={}"]
    assert config["ReadonlyRootfs"] is True
    assert settings()["User"] == "65534:65534"


def test_a_task_is_never_root() -> None:
    assert settings(host=replace(HOST, user=(1000, 1000)))["User"] == "1000:1000"
    with pytest.raises(AssertionError):
        settings(host=replace(HOST, user=(0, 0)))


def test_only_four_directories_are_mounted_and_the_input_read_only() -> None:
    mounts = {m["Target"]: (m["Type"], m["Source"], m["ReadOnly"]) for m in host_config()["Mounts"]}
    assert mounts == {
        "/input": ("bind", "/d/i", True),
        "/output": ("bind", "/d/o", False),
        "/checkpoint": ("bind", "/d/c", False),
        "/run": ("bind", "/d/s", False),
    }


def test_an_image_s_volumes_become_bounded_memory() -> None:
    tmpfs = host_config(image=ImageFacts(volumes=("/data", "/output")))["Tmpfs"]
    assert sorted(tmpfs) == ["/data", "/tmp"]
    assert all("size=134217728" in options and "nosuid,nodev" in options for options in tmpfs.values())


def test_resources_are_those_of_the_job() -> None:
    config = host_config()
    assert config["Memory"] == config["MemorySwap"] == 256 << 20
    assert config["NanoCpus"] == 1_500_000_000
    assert config["PidsLimit"] == 256
    limits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in config["Ulimits"]}
    assert limits == {"nofile": (1024, 1024), "core": (0, 0), "fsize": (128 << 20, 128 << 20)}


def test_resources_are_clamped_to_what_the_engine_takes() -> None:
    tiny = replace(RUN, limits=Limits(cpus_milli=1, memory=1 << 20))
    assert host_config(tiny)["Memory"] == 6 << 20
    assert host_config(tiny)["NanoCpus"] == 10_000_000
    huge = replace(RUN, limits=Limits(cpus_milli=1_000_000))
    assert host_config(huge)["NanoCpus"] == 4_000_000_000
    assert host_config(host=replace(HOST, nofile_max=256))["Ulimits"][0]["Hard"] == 256


def test_a_big_output_may_be_one_file() -> None:
    big = replace(RUN, limits=Limits(memory=64 << 20, output=1 << 30))
    assert host_config(big)["Ulimits"][2]["Hard"] == (1 << 30) + 1


def test_threads_are_pinned_unless_the_job_says_otherwise() -> None:
    env = dict(item.split("=", 1) for item in settings()["Env"])
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == "1"
    assert env["NEXAPOD_TASK_INDEX"] == "7"
    assert env["NEXAPOD_PROGRESS"] == "/run/progress"
    own = replace(RUN, env=(("OMP_NUM_THREADS", "4"), ("NEXAPOD_PROGRESS", "/etc/x"), ("A", "b=c")))
    env = dict(item.split("=", 1) for item in settings(own)["Env"])
    assert (env["OMP_NUM_THREADS"], env["NEXAPOD_PROGRESS"], env["A"]) == ("4", "/run/progress", "b=c")


def test_an_image_s_health_check_is_off_and_its_command_kept_when_none_is_given() -> None:
    assert settings()["Healthcheck"] == {"Test": ["NONE"]}
    assert settings()["Cmd"] == ["run", "--fast"]
    assert "Cmd" not in settings(replace(RUN, command=()))


def test_orphans_can_be_told_from_other_people_s_containers() -> None:
    assert settings()["Labels"] == {"org.nexapod.home": HOME, "org.nexapod.run": "1a-2b"}
    assert container_name(HOME, "1a-2b") == "nexapod-0123456789abcdef-1a-2b"
    for wrong in ("", "short", "ABCDEF0123", "../../../x", "g" * 16):
        with pytest.raises(ValueError):
            container_name(wrong, "1")


@given(
    st.builds(
        Limits,
        cpus_milli=st.integers(1, 1_024_000),
        memory=st.integers(1 << 20, 1 << 50),
        output=st.integers(0, 1 << 40),
    ),
    st.lists(st.tuples(st.text(min_size=1, max_size=9), st.text(max_size=9)), max_size=5),
    st.lists(st.text(max_size=9), max_size=5),
)
def test_no_job_loosens_anything(limits: Limits, env: list[tuple[str, str]], command: list[str]) -> None:
    env = [(name, value) for name, value in env if "=" not in name and "\0" not in name + value]
    words = tuple(word for word in command if "\0" not in word)
    config = host_config(replace(RUN, limits=limits, env=tuple(env), command=words))
    loosened = ("NanoCpus", "Memory", "MemorySwap", "Ulimits", "Tmpfs")
    fixed = {name: value for name, value in host_config().items() if name not in loosened}
    assert {name: value for name, value in config.items() if name not in loosened} == fixed
    assert config["Memory"] == config["MemorySwap"] <= max(limits.memory, 6 << 20)
    assert config["NanoCpus"] <= max(limits.cpus_milli, 10) * 1_000_000


def test_the_seccomp_profile_denies_by_default() -> None:
    profile = json.loads(files("nexapod.executor").joinpath("seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    free = {name for rule in profile["syscalls"] if "args" not in rule for name in rule["names"]}
    dangerous = {
        "socket", "clone", "unshare", "setns", "mount", "umount2", "pivot_root", "ptrace", "process_vm_readv",
        "process_vm_writev", "keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd",
        "io_uring_setup", "io_uring_enter", "io_uring_register", "open_by_handle_at", "name_to_handle_at", "kcmp",
        "fsopen", "fsmount", "move_mount", "open_tree", "mount_setattr", "init_module", "finit_module", "kexec_load",
        "reboot", "swapon", "chroot", "personality", "syslog", "acct", "quotactl", "settimeofday", "clock_settime",
        "fallocate", "pidfd_getfd", "process_madvise", "lookup_dcookie", "iopl", "ioperm", "modify_ldt", "vhangup",
    }  # fmt: skip
    assert not free & dangerous
    families = [r["args"][0]["value"] for r in profile["syscalls"] if "socket" in r["names"]]
    assert sorted(families) == [1, 2, 10, 16], "no AF_VSOCK (40), no AF_ALG (38), no AF_PACKET (17)"
