"""An engine that is stopped and started while a task runs: one that keeps its containers, and one that ends them.

A private engine, started for these tests, so that no other container on this machine is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
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
from containers.engine_kit import NoEngine, import_image
from containers.sandbox import HOME, Sandbox, killed_daemon, running

from nexapod.executor.contract import TaskRun
from nexapod.executor.docker.sandbox import DockerExecutor

START_S = 20
STOP_S = 30
WAITING = "echo first; echo 0.5 >/run/progress; while [ ! -e /input/go ]; do sleep 0.05; done; echo last; exit 3"


@dataclass
class PrivateEngine:
    """A dockerd with its own socket, storage, containerd and network namespace: one that is told to have no bridge
    would remove that of the machine's own engine."""

    folder: Path
    live_restore: bool
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/s"

    def start(self) -> Any:
        where = ["--host", self.url, "--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec")]
        quiet = ["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--storage-driver=vfs"]
        own = self.folder / "daemon.json"  # not the machine's
        own.write_text("{}")
        quiet += ["--config-file", str(own), "--shutdown-timeout", "3"]
        keep = ["--live-restore"] if self.live_restore else []
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", "dockerd", *where, "--pidfile", str(self.folder / "pid"), *quiet, *keep],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._wait_up()

    def _wait_up(self) -> Any:
        assert self.process is not None
        end = time.monotonic() + START_S
        while True:
            try:
                client = docker.APIClient(base_url=self.url, version="auto", timeout=20)
                client.ping()
            except docker.errors.DockerException as error:
                if self.process.poll() is not None or time.monotonic() > end:
                    said = (self.folder / "log").read_text()[-300:]
                    raise NoEngine(f"a private dockerd does not start: {error} {said}") from None
                time.sleep(0.05)
            else:
                return client

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_S)


@pytest.fixture(params=[True, False], ids=["keeps", "ends"])
def private(request: pytest.FixtureRequest, missing: Callable[[str, str], None]) -> Iterator[tuple[Any, PrivateEngine]]:
    programs = ("dockerd", "containerd", "unshare")
    if not all(map(shutil.which, programs)) or os.geteuid() != 0:
        missing("dockerd", "needs root, dockerd, containerd and unshare, to start an engine of its own")
    folder = Path(tempfile.mkdtemp(prefix="nxp-dockerd-"))
    engine = PrivateEngine(folder, request.param)
    try:
        client = engine.start()
    except NoEngine as error:
        shutil.rmtree(folder, ignore_errors=True)
        missing("dockerd", str(error))
    yield client, engine
    for container in client.containers(all=True):
        client.remove_container(container["Id"], force=True)
    engine.stop()
    client.close()
    # An engine that is to keep its containers leaves its storage mounted.
    subprocess.run(["umount", str(folder / "data")], capture_output=True, timeout=10, check=False)
    shutil.rmtree(folder)


@pytest.fixture
async def sandbox(private: tuple[Any, PrivateEngine], tmp_path: Path) -> AsyncIterator[Sandbox]:
    client, engine = private
    image = import_image(client, tmp_path)
    executor = DockerExecutor(home=HOME, scratch=tmp_path / "scratch", url=engine.url)
    yield Sandbox(executor, tmp_path, image, client, url=engine.url)
    await executor.aclose()
    assert client.containers(all=True) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def waiting_task(sandbox: Sandbox) -> TaskRun:
    return sandbox.task("sh", "-c", WAITING)


async def test_an_engine_restarts_while_a_task_runs(sandbox: Sandbox, private: tuple[Any, PrivateEngine]) -> None:
    _, engine = private
    run = waiting_task(sandbox)
    async with running(sandbox, run) as ends:
        await trio.to_thread.run_sync(engine.stop)
        await trio.to_thread.run_sync(engine.start)
        (run.input / "go").touch()
    if engine.live_restore:
        assert (ends[0].outcome, ends[0].exit, ends[0].log) == ("failed", 3, "first\nlast\n")
    else:
        assert ends[0].outcome == "try-elsewhere"
        assert "container engine" in ends[0].reason
    assert (await sandbox.executor.probe()).ok, "it connects anew"
    assert (await sandbox.shell("true")).outcome == "ok"


async def test_daemon_and_engine_go_down_together(sandbox: Sandbox, private: tuple[Any, PrivateEngine]) -> None:
    """As when the machine goes down: what the engine ended is no result, and is begun anew."""
    _, engine = private
    run = waiting_task(sandbox)
    async with killed_daemon(sandbox, run):
        await trio.to_thread.run_sync(engine.stop)
        await trio.to_thread.run_sync(engine.start)
        assert await sandbox.executor.survivors() == (frozenset({run.label}) if engine.live_restore else frozenset())
        (run.input / "go").touch()
        ended = await sandbox.run(run)
        assert (ended.outcome, ended.exit, ended.log) == ("failed", 3, "first\nlast\n")
