"""GPUs in real containers: a task sees those that it was granted, and no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from containers.engine_kit import NoEngine, connect
from containers.python_image import import_python_image, python
from run_kit import task_run

from nexapod.config.gpus import GpuSettings
from nexapod.daemon.gpus import GpuLeases
from nexapod.executor.docker.sandbox import DockerExecutor
from nexapod.profile.gpus import GpuReader
from nexapod.protocol.types import Limits

HOME = "ab01cd23ef456789"
PROBE = Path(__file__).parent / "cuda_probe.py"
Missing = Callable[[str, str], NoReturn]


@pytest.fixture(scope="module")
def engine(missing: Missing) -> Iterator[tuple[Any, str]]:
    try:
        client = connect()
        image = import_python_image(client, "nexapod-test-gpu", "__future__, ctypes, glob, json")
    except NoEngine as error:
        missing("docker", str(error))
    yield client, image
    client.remove_image(image, force=True)
    client.close()


@dataclass
class Sandbox:
    executor: DockerExecutor
    root: Path
    image: str

    async def probe(self, gpus: tuple[str, ...] = ()) -> dict[str, Any]:
        """What CUDA shows to a task that was granted these."""
        run = task_run(
            self.root,
            "9b",
            "docker",
            *(python(), "-I", "-S", "/input/probe.py", "/output/seen.json"),
            image=self.image,
            limits=Limits(memory=2 << 30, wall_ms=60_000, gpus=len(gpus)),
            gpus=gpus,
        )
        shutil.copyfile(PROBE, run.input / "probe.py")
        with trio.fail_after(120):
            ended = await self.executor.run(run, lambda _: None)
        assert (ended.outcome, ended.exit) == ("ok", 0), f"{ended.reason}\n{ended.log}"
        seen: dict[str, Any] = json.loads((self.root / "output" / "seen.json").read_text())
        return seen


@pytest.fixture
async def sandbox(engine: tuple[Any, str], tmp_path: Path) -> AsyncIterator[Sandbox]:
    client, image = engine
    executor = DockerExecutor(home=HOME, scratch=tmp_path / "scratch")
    yield Sandbox(executor, tmp_path, image)
    await executor.aclose()
    assert client.containers(all=True, filters={"label": f"org.nexapod.home={HOME}"}) == []


@pytest.fixture
def granted(engine: tuple[Any, str], missing: Missing) -> str:
    """A GPU of this machine, leased as for a task."""
    found = GpuReader(answer_s=30).look()
    if not found.readings:
        missing("gpu", f"this machine has no GPU to be used ({found.trouble or 'NVML lists none'})")
    client, _ = engine
    if "nvidia" not in client.info().get("Runtimes", {}) and not shutil.which("nvidia-container-runtime-hook"):
        missing("gpu", "the container engine has no nvidia runtime: install nvidia-container-toolkit")
    leases = GpuLeases(GpuSettings())
    leases.update(found.readings, 0)
    uuids = leases.lease("9b", 1)
    if uuids is None:
        missing("gpu", f"no GPU is free: {[state.withheld for state in leases.states()]}")
    return uuids[0]


async def test_a_task_that_was_granted_no_gpu_sees_none(sandbox: Sandbox) -> None:
    assert await sandbox.probe() == {"nodes": [], "library": False, "gpus": {}}


async def test_a_task_computes_on_the_gpu_that_it_was_granted_and_sees_no_other(granted: str, sandbox: Sandbox) -> None:
    seen = await sandbox.probe((granted,))
    assert seen["gpus"] == {granted: True}
    assert len(seen["nodes"]) == 1
