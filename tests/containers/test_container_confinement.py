"""What a task finds inside a real container: each promise of the sandbox, tried from within."""

from __future__ import annotations

import errno
import glob
import os
import platform
from pathlib import Path

import pytest
import trio
from containers.elf import one_syscall
from containers.sandbox import HOME, Sandbox

from nexapod.executor.docker.engine import Engine
from nexapod.executor.docker.sandbox import DockerExecutor
from nexapod.executor.docker.settings import ImageFacts
from nexapod.protocol.types import Limits


async def test_there_is_no_network(sandbox: Sandbox) -> None:
    ended = await sandbox.shell("ip -o link; nc -w 2 1.1.1.1 53 </dev/null; echo left with $?")
    links = [line for line in ended.log.splitlines() if ": <" in line]
    assert [line.split(":")[1].strip() for line in links] == ["lo"]
    assert "left with 1" in ended.log


async def test_the_process_has_no_privilege_to_lose(sandbox: Sandbox) -> None:
    ended = await sandbox.shell("cat /proc/self/status; id -u; id -g")
    status = dict(line.split(":\t", 1) for line in ended.log.splitlines() if ":\t" in line)
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status.get(capabilities, "0"), 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    uid, gid = ended.log.split()[-2:]
    expected = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    assert (int(uid), int(gid)) == expected
    assert int(uid) != 0


async def test_only_the_task_s_own_directories_can_be_written(sandbox: Sandbox) -> None:
    places = "/ /bin /etc /usr /input /proc/sys/kernel /sys /dev /output /checkpoint /run /tmp /data /dev/shm"
    ended = await sandbox.shell(f"for d in {places}; do touch $d/probe 2>/dev/null && echo $d; done; exit 0")
    assert ended.log.split() == ["/output", "/checkpoint", "/run", "/tmp", "/data", "/dev/shm"]


async def test_memory_backed_places_are_small(sandbox: Sandbox) -> None:
    limits = Limits(memory=64 << 20, output=64 << 20, wall_ms=20_000)
    line = "for d in /dev/shm /tmp /data; do dd if=/dev/zero of=$d/x bs=64k 2>/dev/null; wc -c <$d/x; rm $d/x; done"
    ended = await sandbox.shell(line, limits)
    assert [int(size) >> 20 for size in ended.log.split()] == [16, 32, 32]


async def test_an_image_s_volume_leaves_nothing_on_the_disk(sandbox: Sandbox) -> None:
    before = {volume["Name"] for volume in sandbox.client.volumes()["Volumes"] or ()}
    assert (await sandbox.shell("echo x >/data/x")).outcome == "ok"
    assert {volume["Name"] for volume in sandbox.client.volumes()["Volumes"] or ()} == before


async def test_an_image_that_wants_a_volume_on_the_disk_is_the_job_s_mistake(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "image", lambda engine, image: ImageFacts(("/data/",)))
    ended = await sandbox.shell("true")
    assert (ended.outcome, ended.exit) == ("failed", 125)
    assert "'/data/'" in ended.reason


async def test_processes_and_open_files_are_bounded(sandbox: Sandbox) -> None:
    forks = "i=0; while [ $i -lt 400 ]; do sleep 5 & i=$((i+1)); done"
    ended = await sandbox.shell(f"exec 2>&1; ulimit -n; ulimit -c; {forks}")
    assert ended.log.splitlines()[:2] == ["1024", "0"]
    assert "can't fork" in ended.log


async def test_a_child_that_runs_out_of_memory_is_noticed(sandbox: Sandbox) -> None:
    """The shell survives and leaves with 0: the result is incomplete all the same."""
    ended = await sandbox.shell("sh -c 'x=a; while true; do x=$x$x; done'; exit 0")
    assert ended.outcome == "memory-limit"


async def test_a_command_that_does_not_exist_is_the_job_s_mistake(sandbox: Sandbox) -> None:
    ended = await sandbox.run(sandbox.task("/no/such/program"))
    assert (ended.outcome, ended.exit) == ("failed", 127)


async def test_an_image_that_is_not_here_means_elsewhere(sandbox: Sandbox) -> None:
    image = "sha256:" + "0" * 64
    ended = await sandbox.run(sandbox.task("true", image=image))
    assert ended.outcome == "try-elsewhere"
    assert ended.reason == f"this machine does not hold the image {image}"


async def test_usage_is_what_the_task_used(sandbox: Sandbox) -> None:
    ended = await sandbox.shell("head -c 30000000 /dev/zero >/tmp/x; sleep 0.3")
    assert 30_000_000 < ended.usage.peak_memory < 64 << 20
    assert 300 <= ended.usage.wall_ms < 20_000
    assert ended.usage.cpu_ms < ended.usage.wall_ms + 1000
    assert glob.glob(f"/sys/fs/cgroup/*/nexapod-{HOME}") == []


async def test_usage_is_sampled_where_there_are_no_cgroups_of_ours(sandbox: Sandbox, tmp_path: Path) -> None:
    executor = DockerExecutor(home=HOME, scratch=tmp_path / "scratch", exact_usage=False)
    run = sandbox.task(
        "sh", "-c", "head -c 20000000 /dev/zero >/tmp/x; i=0; while [ $i -lt 3 ]; do sleep 1; i=$((i+1)); done"
    )
    with trio.fail_after(60):
        ended = await executor.run(run, lambda _: None)
    await executor.aclose()
    assert ended.outcome == "ok"
    assert 20_000_000 < ended.usage.peak_memory < 64 << 20
    assert ended.usage.cpu_ms > 0


async def test_an_engine_that_is_not_there_is_said_so(tmp_path: Path, sandbox: Sandbox) -> None:
    executor = DockerExecutor(home=HOME, scratch=tmp_path / "scratch", url=f"unix://{tmp_path}/none.sock")
    found = await executor.probe()
    assert (found.ok, found.images) == (False, ())
    assert "container engine" in found.reason
    ended = await executor.run(sandbox.task("true"), lambda _: None)
    assert ended.outcome == "try-elsewhere"
    assert await executor.reap_orphans() == 0
    await executor.aclose()


CLONE_NEWUSER = 0x10000000
ALLOWED = {
    "socket_unix": one_syscall(41, 1, 1, 0),
    "socket_inet": one_syscall(41, 2, 1, 0),
    "socket_netlink_route": one_syscall(41, 16, 3, 0),
    "personality_query": one_syscall(135, 0xFFFFFFFF),
}
DENIED = {
    "socket_vsock": (one_syscall(41, 40, 1, 0), errno.EPERM),
    "socket_packet": (one_syscall(41, 17, 3, 0), errno.EPERM),
    "socket_alg": (one_syscall(41, 38, 5, 0), errno.EPERM),
    "socket_netlink_audit": (one_syscall(41, 16, 3, 9), errno.EPERM),
    "unshare_user": (one_syscall(272, CLONE_NEWUSER), errno.EPERM),
    "clone_user": (one_syscall(56, CLONE_NEWUSER | 17), errno.EPERM),
    "clone3": (one_syscall(435, 0, 0), errno.ENOSYS),
    "setns": (one_syscall(308, 0, 0), errno.EPERM),
    "mount": (one_syscall(165, 0, 0, 0, 0, 0), errno.EPERM),
    "ptrace": (one_syscall(101, 0, 0, 0), errno.EPERM),
    "process_vm_readv": (one_syscall(310, 1, 0, 0, 0, 0, 0), errno.EPERM),
    "io_uring_setup": (one_syscall(425, 1, 0), errno.EPERM),
    "keyctl": (one_syscall(250, 0, -3, 0), errno.EPERM),
    "add_key": (one_syscall(248, 0, 0, 0, 0, -3), errno.EPERM),
    "bpf": (one_syscall(321, 0, 0, 0), errno.EPERM),
    "perf_event_open": (one_syscall(298, 0, 0, -1, -1, 0), errno.EPERM),
    "userfaultfd": (one_syscall(323, 0), errno.EPERM),
    "personality_set": (one_syscall(135, 0x0040000), errno.EPERM),
    "ioctl_of_a_file_system": (one_syscall(16, 1, 0x4030582A, 0), errno.EPERM),  # FS_IOC_RESVSP64: takes disk space
    "ioctl_of_a_terminal": (one_syscall(16, 1, 0x5401, 0), errno.ENOTTY),  # TCGETS: asked, and there is none
    "inotify_init1": (one_syscall(294, 0), errno.EPERM),
    "fallocate_hidden": (one_syscall(285, 1, 1, 0, 4096), errno.EOPNOTSUPP),
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the probes are x86-64 machine code")
async def test_system_calls_that_no_task_needs_are_denied(sandbox: Sandbox) -> None:
    run = sandbox.task("sh", "-c", "cd /input; for probe in *; do ./$probe; echo $probe $?; done")
    for name, program in ALLOWED.items() | {name: program for name, (program, _) in DENIED.items()}.items():
        (run.input / name).write_bytes(program)
        (run.input / name).chmod(0o755)
    ended = await sandbox.run(run)
    seen = {name: int(status) for name, status in (line.split() for line in ended.log.splitlines())}
    assert seen == dict.fromkeys(ALLOWED, 0) | {name: number for name, (_, number) in DENIED.items()}
