"""A task's run with folders of its own, for the tests of every executor."""

from __future__ import annotations

from pathlib import Path

from nexapod.executor.contract import TaskRun
from nexapod.protocol.primitives import ExecutorName
from nexapod.protocol.types import Limits

SEED = bytes(32)


def task_run(
    home: Path,
    label: str,
    executor: ExecutorName,
    *command: str,
    module: Path | None = None,
    image: str | None = None,
    env: tuple[tuple[str, str], ...] = (),
    limits: Limits,
    seed: bytes = SEED,
    gpus: tuple[str, ...] = (),
) -> TaskRun:
    """Its folders are made below `home`, or are those of an earlier run there."""
    for name in ("input", "output", "checkpoint"):
        (home / name).mkdir(parents=True, exist_ok=True)
    return TaskRun(
        label=label,
        executor=executor,
        module=module,
        image=image,
        command=command,
        env=env,
        workdir="",
        input=home / "input",
        output=home / "output",
        checkpoint=home / "checkpoint",
        limits=limits,
        seed=seed,
        gpus=gpus,
    )
