"""The container's settings: every promise of the sandbox, read off the request that the engine gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexapod.executor.contract import BadRun, TaskRun
from nexapod.executor.docker.settings import HostFacts, ImageFacts, UnfitImage, container_name, container_settings
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
    workdir="",
    input=Path("/d/i"),
    output=Path("/d/o"),
    checkpoint=Path("/d/c"),
    limits=Limits(cpus_milli=1500, memory=256 << 20, output=1 << 20, disk=2 << 20),
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


@pytest.mark.parametrize(
    "path",
    ["/", "data", "/data/", "//data", "/a/../data", "/output/x", "/run/..", "/proc", "/sys/fs", "/dev/shm/x", ".", ""],
)
def test_a_volume_that_an_engine_would_make_on_the_disk_is_refused(path: str) -> None:
    with pytest.raises(UnfitImage, match="volume"):
        settings(image=ImageFacts(volumes=("/data", path)))


def test_an_image_has_so_many_volumes() -> None:
    assert len(host_config(image=ImageFacts(tuple(f"/v{n}" for n in range(16))))["Tmpfs"]) == 17
    with pytest.raises(UnfitImage, match="17 volumes"):
        settings(image=ImageFacts(tuple(f"/v{n}" for n in range(17))))


def test_resources_are_those_of_the_job() -> None:
    config = host_config()
    assert config["Memory"] == config["MemorySwap"] == 256 << 20
    assert config["NanoCpus"] == 1_500_000_000
    assert config["PidsLimit"] == 64
    limits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in config["Ulimits"]}
    assert limits == {"nofile": (1024, 1024), "core": (0, 0), "fsize": (128 << 20, 128 << 20)}


def test_resources_are_clamped_to_what_the_engine_takes() -> None:
    tiny = replace(RUN, limits=Limits(cpus_milli=1, memory=1 << 20))
    assert host_config(tiny)["Memory"] == 6 << 20
    assert host_config(tiny)["NanoCpus"] == 10_000_000
    huge = replace(RUN, limits=Limits(cpus_milli=1_000_000))
    assert host_config(huge)["NanoCpus"] == 4_000_000_000
    assert host_config(host=replace(HOST, nofile_max=256))["Ulimits"][0]["Hard"] == 256


@pytest.mark.parametrize(("wanted", "given"), [(1, 8), (8, 8), (300, 300), (1024, 1024), (1025, 1024), (1 << 40, 1024)])
def test_a_job_may_have_fewer_processes_than_the_most_and_never_more(wanted: int, given: int) -> None:
    assert host_config(replace(RUN, limits=Limits(pids=wanted)))["PidsLimit"] == given


def test_an_engine_that_replaces_its_default_limits_is_told_each() -> None:
    """Podman refuses to start a container whose own limits name files and not processes."""
    limits = host_config(host=replace(HOST, nproc_max=4096))["Ulimits"]
    assert {limit["Name"]: limit["Hard"] for limit in limits}["nproc"] == 4096


def test_an_engine_that_copies_into_a_tmpfs_is_told_not_to() -> None:
    """Else Podman gives /tmp the mode of the image's directory, and refuses an owner."""
    tmpfs = host_config(host=replace(HOST, tmpfs_copies=True))["Tmpfs"]["/tmp"]
    assert tmpfs == "rw,nosuid,nodev,mode=1777,notmpcopyup,size=134217728"


def test_a_user_namespace_is_asked_for_only_where_the_engine_needs_it() -> None:
    assert host_config(host=replace(HOST, userns="keep-id"))["UsernsMode"] == "keep-id"


GPUS = ("GPU-8f6d1b7c-0000-1111-2222-333344445555", "MIG-41b36fd0-1111-5555-aaaa-123412341234")


def gpu_env(run: TaskRun) -> dict[str, str]:
    env = dict(item.split("=", 1) for item in settings(run)["Env"])
    return {name: value for name, value in env.items() if "NVIDIA" in name.upper()}


def test_a_task_has_the_gpus_that_it_was_granted_and_no_other() -> None:
    run = replace(RUN, limits=Limits(gpus=2), gpus=GPUS, env=(("NVIDIA_VISIBLE_DEVICES", "all"),))
    [request] = host_config(run)["DeviceRequests"]
    assert request == {
        "Driver": "",
        "Count": 0,
        "DeviceIDs": list(GPUS),
        "Capabilities": [["gpu"]],
        "Options": {},
    }
    assert gpu_env(run) == {
        "NVIDIA_VISIBLE_DEVICES": ",".join(GPUS),
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    }


def test_without_a_grant_there_is_no_gpu_whatever_the_job_says() -> None:
    tricks = (("NVIDIA_VISIBLE_DEVICES", "all"), ("nvidia_visible_devices", "0"), ("NVIDIA_MIG_CONFIG_DEVICES", "all"))
    run = replace(RUN, env=tricks)
    assert host_config(run)["DeviceRequests"] == []
    assert gpu_env(run) == {"NVIDIA_VISIBLE_DEVICES": "void", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


@pytest.mark.parametrize(
    ("wanted", "granted"), [(1, ()), (0, GPUS[:1]), (1, GPUS), (1, ("all",)), (1, ("GPU-1,GPU-2",)), (1, ("0",))]
)
def test_gpus_that_are_not_as_granted_are_our_own_mistake(wanted: int, granted: tuple[str, ...]) -> None:
    with pytest.raises(BadRun, match="GPUs"):
        settings(replace(RUN, limits=Limits(gpus=wanted), gpus=granted))


def test_a_command_starts_where_the_job_says_or_where_the_image_does() -> None:
    assert settings(replace(RUN, workdir="/output"))["WorkingDir"] == "/output"
    assert "WorkingDir" not in settings()


def test_an_engine_that_stops_cannot_make_a_task_end_as_if_it_were_done() -> None:
    assert settings()["StopSignal"] == "SIGKILL"


def variants() -> Iterator[tuple[str, TaskRun, HostFacts, ImageFacts]]:
    limits = RUN.limits
    yield "image", replace(RUN, image="sha256:" + "b" * 64), HOST, ImageFacts()
    yield "command", replace(RUN, command=("run",)), HOST, ImageFacts()
    yield "env", replace(RUN, env=()), HOST, ImageFacts()
    yield "workdir", replace(RUN, workdir="/tmp"), HOST, ImageFacts()
    yield "output", replace(RUN, output=Path("/d/p")), HOST, ImageFacts()
    yield "memory", replace(RUN, limits=replace(limits, memory=1 << 30)), HOST, ImageFacts()
    yield "disk", replace(RUN, limits=replace(limits, disk=1 << 30)), HOST, ImageFacts()
    yield "pids", replace(RUN, limits=replace(limits, pids=9)), HOST, ImageFacts()
    yield "gpus", replace(RUN, limits=replace(limits, gpus=1), gpus=GPUS[:1]), HOST, ImageFacts()
    yield "user", RUN, replace(HOST, user=(1000, 1000)), ImageFacts()
    yield "seccomp", RUN, replace(HOST, seccomp='{"defaultAction":"SCMP_ACT_ALLOW"}'), ImageFacts()
    yield "volumes", RUN, HOST, ImageFacts(("/data",))


def test_containers_that_are_confined_otherwise_are_told_apart() -> None:
    def digest(made: dict[str, Any]) -> str:
        return str(made["Labels"]["org.nexapod.settings"])

    assert digest(settings()) == digest(settings())
    digests = {name: digest(settings(run, host, image)) for name, run, host, image in variants()}
    assert len({digest(settings()), *digests.values()}) == 1 + len(digests)


def test_a_big_output_may_be_one_file() -> None:
    big = replace(RUN, limits=Limits(memory=64 << 20, output=1 << 30))
    assert host_config(big)["Ulimits"][2]["Hard"] == (1 << 30) + 1
    big = replace(RUN, limits=Limits(memory=64 << 20, disk=1 << 31))
    assert host_config(big)["Ulimits"][2]["Hard"] == (1 << 31) + 1


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
    labels = settings()["Labels"]
    assert (labels["org.nexapod.home"], labels["org.nexapod.run"]) == (HOME, "1a-2b")
    assert container_name(HOME, "1a-2b") == "nexapod-0123456789abcdef-1a-2b"
    for wrong in ("", "short", "ABCDEF0123", "../../../x", "g" * 16):
        with pytest.raises(ValueError):
            container_name(wrong, "1")


LIMITS = st.builds(
    Limits,
    cpus_milli=st.integers(1, 1_024_000),
    memory=st.integers(1 << 20, 1 << 50),
    output=st.integers(0, 1 << 40),
    disk=st.integers(0, 1 << 40),
    wall_ms=st.integers(1, 1 << 40),
    idle_ms=st.integers(0, 1 << 40),
    pids=st.integers(1, 1 << 40),
    gpu_memory=st.integers(0, 1 << 50),
)


@given(
    LIMITS,
    st.lists(st.tuples(st.text(min_size=1, max_size=9), st.text(max_size=9)), max_size=5),
    st.lists(st.text(max_size=9), max_size=5),
    st.text(max_size=20),
)
def test_no_job_loosens_anything(limits: Limits, env: list[tuple[str, str]], command: list[str], path: str) -> None:
    env = [(name, value) for name, value in env if "=" not in name and "\0" not in name + value]
    words = tuple(word for word in command if "\0" not in word)
    workdir = "" if "\0" in path else f"/{path}"
    run = replace(RUN, limits=limits, env=tuple(env), command=words, workdir=workdir)
    made, usual = settings(run), settings()
    config = made.pop("HostConfig")
    free = ("Cmd", "Env", "WorkingDir", "Labels")
    usual.pop("HostConfig")
    assert {n: v for n, v in made.items() if n not in free} == {n: v for n, v in usual.items() if n not in free}
    bounded = ("NanoCpus", "Memory", "MemorySwap", "PidsLimit", "Ulimits", "Tmpfs")
    fixed = {name: value for name, value in host_config().items() if name not in bounded}
    assert {name: value for name, value in config.items() if name not in bounded} == fixed
    assert config["Memory"] == config["MemorySwap"] == max(limits.memory, 6 << 20)
    assert config["NanoCpus"] <= max(limits.cpus_milli, 10) * 1_000_000
    assert config["NanoCpus"] <= HOST.cpus * 1_000_000_000
    assert 8 <= config["PidsLimit"] <= min(max(8, limits.pids), 1024)
    ulimits = {limit["Name"]: limit["Hard"] for limit in config["Ulimits"]}
    assert ulimits.keys() == {"nofile", "core", "fsize"}
    assert (ulimits["nofile"], ulimits["core"]) == (1024, 0)
    tmp = max(1 << 20, min(limits.memory // 2, 1 << 30))
    assert ulimits["fsize"] == max(limits.output + 1, limits.disk + 1, tmp)
    assert config["Tmpfs"] == {"/tmp": f"rw,nosuid,nodev,mode=1777,uid=65534,gid=65534,size={tmp}"}


def test_every_limit_of_a_job_is_looked_at_above() -> None:
    """A limit that is new must be clamped, and be drawn by the test that says so; GPUs are tested by themselves."""
    drawn = {"cpus_milli", "memory", "output", "disk", "wall_ms", "idle_ms", "pids", "gpu_memory"}
    assert {field.name for field in fields(Limits)} == drawn | {"gpus"}


def test_the_seccomp_profile_denies_by_default() -> None:
    profile = json.loads(files("nexapod.executor.docker").joinpath("seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    free = {name for rule in profile["syscalls"] if "args" not in rule for name in rule["names"]}
    dangerous = {
        "socket", "clone", "unshare", "setns", "mount", "umount2", "pivot_root", "ptrace", "process_vm_readv",
        "process_vm_writev", "keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd",
        "io_uring_setup", "io_uring_enter", "io_uring_register", "open_by_handle_at", "name_to_handle_at", "kcmp",
        "fsopen", "fsmount", "move_mount", "open_tree", "mount_setattr", "init_module", "finit_module", "kexec_load",
        "reboot", "swapon", "chroot", "personality", "syslog", "acct", "quotactl", "settimeofday", "clock_settime",
        "ioctl", "inotify_init", "inotify_init1",
        "fallocate", "pidfd_getfd", "process_madvise", "lookup_dcookie", "iopl", "ioperm", "modify_ldt", "vhangup",
    }  # fmt: skip
    assert not free & dangerous
    families = [r["args"][0]["value"] for r in profile["syscalls"] if "socket" in r["names"]]
    assert sorted(families) == [1, 2, 10, 16], "no AF_VSOCK (40), no AF_ALG (38), no AF_PACKET (17)"
