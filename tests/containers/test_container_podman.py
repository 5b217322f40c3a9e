"""The same promises through Podman's service of the engine's API: a private one, started for these tests."""

from __future__ import annotations

import errno
import glob
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
import trio
from containers.elf import one_syscall
from containers.engine_kit import NoEngine, import_image
from containers.sandbox import HOME, Sandbox, killed_daemon, running, wait_until

from nexapod.executor.docker.sandbox import DockerExecutor
from nexapod.protocol.types import Limits

START_S = 10
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""As Podman can run where there is no systemd, and where limits cannot be raised."""


@dataclass
class Podman:
    """A service of its own: storage, socket and state in one folder."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/s"

    def words(self, *words: str) -> list[str]:
        where = [word for name in ("root", "runroot", "tmpdir") for word in (f"--{name}", str(self.folder / name))]
        return ["podman", *where, *words]

    def start(self) -> Any:
        (self.folder / "containers.conf").write_text(CONTAINERS_CONF)
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            self.words("system", "service", "--time=0", self.url),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.folder,  # its monitors leave a file here when a container runs out of memory
            env=self.environment,
        )
        return self._wait_up()

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"CONTAINERS_CONF": str(self.folder / "containers.conf")}

    def _wait_up(self) -> Any:
        end = time.monotonic() + START_S
        while True:
            try:
                return docker.APIClient(base_url=self.url, version="auto", timeout=20)
            except docker.errors.DockerException as error:
                if time.monotonic() > end:
                    said = (self.folder / "log").read_text()[-300:]
                    raise NoEngine(f"its service does not start: {error} {said}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        assert self.process is not None
        subprocess.run(
            self.words("rm", "--all", "--force", "--time", "0"),
            env=self.environment,
            capture_output=True,
            timeout=30,
            check=False,
        )
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def podman(missing: Callable[[str, str], None]) -> Iterator[tuple[Any, Podman, str]]:
    if not shutil.which("podman") or not shutil.which("runc"):
        missing("podman", "podman and runc are not installed")
    if os.geteuid() != 0:
        missing("podman", "these tests start a service that runs as root")
    folder = Path(tempfile.mkdtemp(prefix="nxp-podman-"))
    service = Podman(folder)
    try:
        client = service.start()
        image = import_image(client, folder, tmp_mode=0o1777)
    except NoEngine as error:
        missing("podman", str(error))
    yield client, service, image
    client.remove_image(image, force=True)
    client.close()
    service.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def sandbox(podman: tuple[Any, Podman, str], tmp_path: Path) -> AsyncIterator[Sandbox]:
    client, service, image = podman
    executor = DockerExecutor(home=HOME, scratch=tmp_path / "scratch", url=service.url)
    yield Sandbox(executor, tmp_path, image, client, url=service.url)
    assert client.containers(all=True) == []
    assert [path.name for path in (tmp_path / "scratch").iterdir()] in ([], ["seccomp.json"])
    with trio.fail_after(20):
        while glob.glob(f"/sys/fs/cgroup/*/nexapod-{HOME}/*/*"):
            # What waits for a container may still be in its cgroup: it goes later, as in a daemon.
            await executor.reap_orphans()
            await trio.sleep(0.05)  # a pause: for that to end
    await executor.aclose()


async def test_it_says_that_it_can(sandbox: Sandbox) -> None:
    found = await sandbox.executor.probe()
    assert found.ok, found.reason
    assert found.version.startswith("podman ")
    assert sandbox.image in found.images


async def test_a_task_runs_confined_and_is_told_exactly(sandbox: Sandbox) -> None:
    places = "/ /etc /input /run /tmp /output"
    line = f"cat /proc/self/status; ip -o link; id -u; for d in {places}; do touch $d/x 2>/dev/null && echo $d; done"
    more = "head -c 20000000 /dev/zero >/tmp/y; echo $NVIDIA_VISIBLE_DEVICES; exit 3"
    ended = await sandbox.shell(f"{line}; {more}")
    assert (ended.outcome, ended.exit) == ("failed", 3)
    status = dict(text.split(":\t", 1) for text in ended.log.splitlines() if ":\t" in text)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert [text.split(":")[1].strip() for text in ended.log.splitlines() if ": <" in text] == ["lo"]
    assert ended.log.split()[-5:] == ["65534", "/run", "/tmp", "/output", "void"]
    assert 20_000_000 < ended.usage.peak_memory < 64 << 20
    assert ended.usage.cpu_ms > 0


async def test_memory_output_and_wall_limits_hold(sandbox: Sandbox) -> None:
    ended = await sandbox.shell("x=a; while true; do x=$x$x; done")
    assert ended.outcome == "memory-limit"
    assert (await sandbox.shell("cat /dev/zero >/output/big")).outcome == "output-limit"
    limits = Limits(memory=64 << 20, wall_ms=700)
    ended = await sandbox.shell("trap '' TERM INT; while true; do sleep 1; done", limits)
    assert (ended.outcome, ended.reason) == ("wall-limit", "not done after 700 ms")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the probes are x86-64 machine code")
async def test_system_calls_are_denied_by_our_own_profile(sandbox: Sandbox) -> None:
    run = sandbox.task("sh", "-c", "cd /input; for probe in *; do ./$probe; echo $probe $?; done")
    probes = {
        "inet": (one_syscall(41, 2, 1, 0), 0),
        "vsock": (one_syscall(41, 40, 1, 0), errno.EPERM),
        "unshare": (one_syscall(272, 0x10000000), errno.EPERM),
        "io_uring": (one_syscall(425, 1, 0), errno.EPERM),
        "ptrace": (one_syscall(101, 0, 0, 0), errno.EPERM),
        "keyctl": (one_syscall(250, 0, -3, 0), errno.EPERM),
    }
    for name, (program, _) in probes.items():
        (run.input / name).write_bytes(program)
        (run.input / name).chmod(0o755)
    ended = await sandbox.run(run)
    seen = {name: int(status) for name, status in (text.split() for text in ended.log.splitlines())}
    assert seen == {name: status for name, (_, status) in probes.items()}


async def test_a_task_can_be_paused_resumed_and_cancelled_while_paused(sandbox: Sandbox) -> None:
    run = sandbox.task("sh", "-c", "echo 0.5 >/run/progress; while [ ! -e /input/go ]; do sleep 0.05; done; echo done")
    async with running(sandbox, run) as ends:
        assert await sandbox.executor.pause(run.label)
        assert sandbox.client.inspect_container(sandbox.name_of(run))["State"]["Status"] == "paused"
        assert await sandbox.executor.resume(run.label)
        (run.input / "go").touch()
    assert ends[0].log == "done\n"
    sandbox.reports.clear()
    run = sandbox.task("sh", "-c", "echo 0.5 >/run/progress; sleep 1000")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sandbox.run, run)
        await wait_until(lambda: bool(sandbox.reports))
        assert await sandbox.executor.pause(run.label)
        nursery.cancel_scope.cancel()


async def test_a_container_whose_daemon_was_killed_goes_on(sandbox: Sandbox) -> None:
    line = "echo first; echo 0.5 >/run/progress; while [ ! -e /input/go ]; do sleep 0.05; done; echo last; exit 3"
    run = sandbox.task("sh", "-c", line)
    async with killed_daemon(sandbox, run):
        assert await sandbox.executor.survivors() == {run.label}
        assert await sandbox.executor.reap_orphans(frozenset({run.label})) == 0
        (run.input / "go").touch()
        ended = await sandbox.run(run)
        assert (ended.outcome, ended.exit, ended.log) == ("failed", 3, "first\nlast\n")
