"""Where promises are tried: the real executors, each with the probe in it, and a view from outside of what they leave.

A sandbox here owns what it made (the image, scratch folders, runners) and takes it away again in `aclose`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import psutil
import trio

from nexapod.executor.contract import Executor, TaskRun
from nexapod.executor.docker import cgroups
from nexapod.executor.docker.sandbox import DockerExecutor
from nexapod.executor.probe import image
from nexapod.executor.probe.engine import HOME_MARK, REPOSITORY, Engine, EngineAway, home_id, is_of_the_dead
from nexapod.executor.probe.promises import Promise, Traces
from nexapod.executor.wasm.sandbox import WasmExecutor
from nexapod.protocol.primitives import ExecutorName

T = TypeVar("T")
CLOSE_S: Final = 20.0
_SEED: Final = bytes(range(32))
_RUNNER: Final = "nexapod.executor.wasm.runner"
_FENCE_KEYS: Final = ("NoNewPrivs", "Seccomp")


class Sandbox(Protocol):
    """An executor with the probe."""

    @property
    def executor(self) -> Executor: ...

    def task(self, promise: Promise, label: str, folder: Path, seed: bytes = _SEED) -> TaskRun:
        """The attempt as a run. `folder` holds input, output and checkpoint."""
        ...

    async def traces(self) -> Traces:
        """What there is of its runs just now. Raises EngineAway."""
        ...

    async def aclose(self) -> Traces:
        """Remove everything; what could not be."""
        ...


class WasmSandbox:
    """The embedded executor."""

    def __init__(self, place: Path) -> None:
        self._scratch = place / "scratch-wasm"
        self._module = place / "probe.wasm"
        self._module.write_bytes(image.module())
        self.executor: WasmExecutor = WasmExecutor(scratch=self._scratch, cache=place / "modules")

    def task(self, promise: Promise, label: str, folder: Path, seed: bytes = _SEED) -> TaskRun:
        return _task(promise, "wasm", label, folder, seed, promise.command, module=self._module)

    async def traces(self) -> Traces:
        return await trio.to_thread.run_sync(self._traces, self.executor.idle_pids)

    async def aclose(self) -> Traces:
        await self.executor.aclose()
        return await trio.to_thread.run_sync(self._traces, frozenset[int]())

    def _traces(self, idle: frozenset[int]) -> Traces:
        runners = [child for child in psutil.Process().children() if child.pid not in idle and _is_runner(child)]
        return Traces(
            processes=tuple(f"runner {runner.pid}" for runner in runners),
            scratch=_names(self._scratch),
            fences=tuple(status for runner in runners if (status := _fence(runner.pid))),
        )


class DockerSandbox:
    """Containers of the probe's image. Make it with `open`."""

    def __init__(self, engine: Engine, content_id: str, place: Path, pid: int) -> None:
        self._engine = engine
        self._image = content_id
        self._scratch = place / "scratch-docker"
        self._home = home_id(pid)
        self._tag = str(pid)
        self._token = f"nexapod-probe-{secrets.token_hex(8)}"
        self.executor: DockerExecutor = DockerExecutor(home=self._home, scratch=self._scratch)

    @classmethod
    async def open(cls, engine: Engine, arch: str, place: Path) -> DockerSandbox:
        """Load the image. `arch` is one of image.GO_ARCHITECTURES. Raises EngineAway."""
        pid = os.getpid()
        await _in_thread(engine.sweep)
        await _in_thread(_sweep_cgroups)
        tar, _ = await _in_thread(partial(image.archive, arch, REPOSITORY, str(pid)))
        content_id = await _in_thread(partial(engine.load, tar, str(pid)))
        return cls(engine, content_id, place, pid)

    def task(self, promise: Promise, label: str, folder: Path, seed: bytes = _SEED) -> TaskRun:
        # The token marks the processes of our containers among all that are seen from outside.
        command = (image.PROGRAM_PATH, *promise.command, self._token)
        return _task(promise, "docker", label, folder, seed, command, image_id=self._image)

    async def traces(self) -> Traces:
        return await _in_thread(self._traces)

    async def aclose(self) -> Traces:
        left = Traces(images=("what the engine did not remove in time",))
        with trio.move_on_after(CLOSE_S) as deadline:
            deadline.shield = True
            left = await self._close()
        return left  # noqa: RET504  (mypy does not know that the block may be left early)

    async def _close(self) -> Traces:
        await self.executor.reap_orphans()
        await self.executor.aclose()
        try:
            await _in_thread(partial(self._engine.unload, self._tag))
            return await _in_thread(self._traces_and_image)
        except EngineAway as away:
            return Traces(images=(f"what the engine did not show or remove: {away}",))

    def _traces(self) -> Traces:
        return Traces(
            containers=tuple(f"container {name}" for name in self._engine.containers(self._home)),
            processes=tuple(f"process {pid}" for pid in _pids_with(self._token)),
            scratch=(*_names(self._scratch), *_cgroups(self._home)),
        )

    def _traces_and_image(self) -> Traces:
        found = self._traces()
        return Traces(found.containers, found.processes, found.scratch, tuple(self._engine.images(self._tag)))


def _task(
    promise: Promise,
    executor: ExecutorName,
    label: str,
    folder: Path,
    seed: bytes,
    command: tuple[str, ...],
    *,
    module: Path | None = None,
    image_id: str | None = None,
) -> TaskRun:
    return TaskRun(
        label=label,
        executor=executor,
        module=module,
        image=image_id,
        command=command,
        env=(),
        workdir="",
        input=folder / "input",
        output=folder / "output",
        checkpoint=folder / "checkpoint",
        limits=promise.limits,
        seed=seed,
    )


async def _in_thread(function: Callable[[], T]) -> T:
    """Given up when cancelled: the engine's own timeouts end the thread soon after."""
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)  # type: ignore[call-arg, unused-ignore]


def _names(scratch: Path) -> tuple[str, ...]:
    """The folders of runs in a scratch folder. Files there are the executor's own, and go with the place."""
    if not scratch.is_dir():
        return ()
    return tuple(f"{scratch.name}/{path.name}" for path in sorted(scratch.iterdir()) if path.is_dir())


def _sweep_cgroups() -> None:
    """Remove the cgroups of doctors that were killed; their containers are gone by now."""
    for path in cgroups.named(f"nexapod-{HOME_MARK}*"):
        home = path.name.removeprefix("nexapod-")
        if is_of_the_dead(home):
            cgroups.Cgroups(cgroups.ROOT, 2 if path.parent == cgroups.ROOT else 1, path.name).remove_leftovers()


def _cgroups(home: str) -> tuple[str, ...]:
    return tuple(str(path) for path in cgroups.named(f"nexapod-{home[:16]}"))


def _is_runner(process: psutil.Process) -> bool:
    try:
        return _RUNNER in process.cmdline()
    except psutil.Error:
        return False  # gone meanwhile


def _pids_with(token: str) -> list[int]:
    """Processes with this word on their command line, as far as this user may see them."""
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            if token in process.cmdline():
                found.append(process.pid)
        except psutil.Error:
            continue  # gone meanwhile, or another user's
    return found


def _fence(pid: int) -> dict[str, Any]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in lines)
    return {key: value.strip() for key, value in pairs if key in _FENCE_KEYS}
