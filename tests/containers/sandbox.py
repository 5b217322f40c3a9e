"""A container executor with folders for its runs, and a way to make its engine vanish."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from run_kit import task_run

from nexapod.executor.contract import Ended, Report, TaskRun
from nexapod.executor.docker.sandbox import DockerExecutor
from nexapod.protocol.types import Limits

HOME = secrets.token_hex(8)
"""Of this run of the tests alone: another may be using the same engine."""
WAITING = "while [ ! -e /input/go ]; do sleep 0.05; done"
LONG = Limits(memory=64 << 20, output=4 << 20, wall_ms=60_000)


@dataclass
class Sandbox:
    executor: DockerExecutor
    root: Path
    image: str
    client: Any
    url: str | None = None
    count: int = 0
    reports: list[Report] = field(default_factory=list)

    def task(self, *command: str, limits: Limits | None = None, image: str | None = None) -> TaskRun:
        self.count += 1
        return task_run(
            self.root / f"run-{self.count}",
            f"{self.count:x}",
            "docker",
            *command,
            image=image or self.image,
            limits=limits or Limits(memory=64 << 20, output=4 << 20, wall_ms=20_000),
        )

    def name_of(self, run: TaskRun) -> str:
        return f"nexapod-{HOME}-{run.label}"

    async def run(self, run: TaskRun) -> Ended:
        with trio.fail_after(60):
            return await self.executor.run(run, self.reports.append)

    async def shell(self, line: str, limits: Limits | None = None) -> Ended:
        return await self.run(self.task("sh", "-c", line, limits=limits))


async def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  (what is waited for happens in other processes)
            await trio.sleep(0.02)


def waiting_task(sandbox: Sandbox, before: str = "echo first", limits: Limits = LONG) -> TaskRun:
    """Ends with status 3 once /input/go is there."""
    line = f"{before}; echo 0.5 >/run/progress; {WAITING}; echo last; exit 3"
    return sandbox.task("sh", "-c", line, limits=limits)


def let_go(run: TaskRun) -> None:
    (run.input / "go").touch()


def state(sandbox: Sandbox, run: TaskRun) -> dict[str, str]:
    found: dict[str, str] = sandbox.client.inspect_container(sandbox.name_of(run))["State"]
    return found


@contextlib.asynccontextmanager
async def running(sandbox: Sandbox, run: TaskRun) -> AsyncIterator[list[Ended]]:
    """The run has begun to report; how it ended is in the list once the block is left, which waits for it."""
    ends: list[Ended] = []

    async def execute() -> None:
        ends.append(await sandbox.run(run))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(execute)
        await wait_until(lambda: bool(sandbox.reports))
        yield ends


@contextlib.asynccontextmanager
async def killed_daemon(sandbox: Sandbox, run: TaskRun, *, guarded: bool = False) -> AsyncIterator[None]:
    """A daemon began this run, and was killed at the first progress that it heard of."""
    scratch = sandbox.root / "scratch"
    daemon = subprocess.Popen(  # noqa: ASYNC220  (killed below; trio would not let it die alone)
        [sys.executable, "-c", _DAEMON, str(scratch), pickle.dumps(run).hex(), sandbox.url or "", "x" * guarded],
        stdout=subprocess.PIPE,
    )
    try:
        assert daemon.stdout is not None
        with trio.fail_after(30):
            while (line := await trio.to_thread.run_sync(daemon.stdout.readline)) != b"in progress\n":
                assert line, "it ended"
    finally:
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait(timeout=10)
        assert daemon.stdout is not None
        daemon.stdout.close()
    yield


_DAEMON = f"""
import pickle, sys, trio
from pathlib import Path
from nexapod.executor.docker.sandbox import DockerExecutor

executor = DockerExecutor(home={HOME!r}, scratch=Path(sys.argv[1]), url=sys.argv[3] or None, guarded=bool(sys.argv[4]))
run = pickle.loads(bytes.fromhex(sys.argv[2]))
trio.run(executor.run, run, lambda report: report.progress and print("in progress", flush=True))
"""


@dataclass
class Relay:
    """Stands between the executor and the engine, so that the engine can be made to vanish."""

    path: str
    target: str
    up: bool = True
    connections: list[trio.SocketStream] = field(default_factory=list)

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        with listener:
            await listener.bind(self.path)
            listener.listen(16)
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    near = trio.SocketStream((await listener.accept())[0])
                    nursery.start_soon(self._join, near)

    async def _join(self, near: trio.SocketStream) -> None:
        self.connections.append(near)
        async with near:
            if not self.up:
                return
            async with await trio.open_unix_socket(self.target) as far, trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, near, far)
                nursery.start_soon(self._copy, far, near)

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for piece in source:
                await sink.send_all(piece)
            await sink.send_eof()

    async def vanish(self) -> None:
        self.up = False
        await self.cut()

    async def cut(self) -> None:
        for connection in self.connections:
            await connection.aclose()
        self.connections.clear()
