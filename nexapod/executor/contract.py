"""What every executor promises: the shape of a run, how it ends, and the port that the daemon drives.

Responsible for the vocabulary shared by the daemon and the executors. Deliberately does not know jobs, peers or
blobs: everything a run needs is a local path or a plain value, already checked by whoever built the TaskRun.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import ExecutorName
from nexapod.protocol.runs import EXIT_TRY_ELSEWHERE, RunEnd
from nexapod.protocol.types import Limits, Usage

EXIT_OK: Final = 0
EXIT_TRAPPED: Final = 134
"""A wasm trap, as a shell shows an abort."""
EXIT_KILLED: Final = 137
"""Ended by us at a limit, as a shell shows SIGKILL."""
PROGRESS_ENV: Final = "NEXAPOD_PROGRESS"
PROGRESS_PATH: Final = "/run/progress"
"""Where a task may write a number from 0 to 1. It may also print it, as a line NEXAPOD_PROGRESS=0.42 of its own."""

_LABEL: Final = re.compile(r"[0-9a-f-]{1,64}")
_IMAGE: Final = re.compile(r"sha256:[0-9a-f]{64}")


class BadRun(LocalError):
    """A run that cannot be started as it was described. Fix the caller: the daemon checks jobs before it runs them."""


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One task, ready to run: all paths are local, exist, and were checked.

    `/input` must be readable by others (files 0644, directories 0755) below a parent only the daemon can enter:
    containers run as another user. `output`, `checkpoint` belong to the run until it ends.
    """

    label: str
    """Names containers and scratch: `[0-9a-f-]{1,64}`, unique among the runs of this machine."""
    executor: ExecutorName
    module: Path | None
    """The wasm module file. Its bytes must never change under the same path."""
    image: str | None
    """`sha256:<hex>`: the content id of a container image that the engine holds."""
    command: tuple[str, ...]
    """wasm: argv after the program's name. docker: the command; empty means the image's own."""
    env: tuple[tuple[str, str], ...]
    workdir: str
    """docker: where the command starts; empty means the image's own."""
    input: Path
    output: Path
    checkpoint: Path
    limits: Limits
    seed: bytes
    """32 bytes, the same for every replica of the task: fixes the randomness and the clock of a wasm task."""
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs granted to this run, as NVML spells them: as many as `limits.gpus`."""

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.label):
            raise BadRun(f"label {self.label!r} is not [0-9a-f-]{{1,64}}")
        if len(self.seed) != 32:
            raise BadRun(f"a seed is 32 bytes, not {len(self.seed)}")
        if self.executor == "wasm" and (self.module is None or self.image is not None):
            raise BadRun("a wasm run names a module and no image")
        if self.executor == "docker" and (self.module is not None or not _IMAGE.fullmatch(self.image or "")):
            raise BadRun("a docker run names an image by its content id (sha256:<64 hex digits>) and no module")
        for name, value in self.env:
            if not name or "=" in name or "\0" in name + value:
                raise BadRun(f"environment variable {name!r} cannot be passed on")
        if any("\0" in word for word in (*self.command, self.workdir)):
            raise BadRun("a command with a zero byte")
        if self.workdir and not self.workdir.startswith("/"):
            raise BadRun(f"working directory {self.workdir!r} is not absolute")


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether an executor can run tasks here. When not, `reason` says what is missing and what to do about it."""

    ok: bool
    version: str = ""
    reason: str = ""
    images: tuple[str, ...] = ()
    """Content ids of the container images that it holds, sorted."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended. `reason` is for people: at most TEXT_MAX bytes of printable text; empty when all went well."""

    outcome: RunEnd
    exit: int
    usage: Usage = field(default_factory=Usage)
    log: str = ""
    """The head and the tail of what the task printed, escaped, at most LOG_TAIL_MAX bytes."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """How a run stands while it goes on."""

    progress: float | None = None
    """From 0 to 1; None while the task has said nothing of it."""
    log: str = ""
    """As Ended.log, so far."""
    printed: int = 0
    """Bytes printed so far, kept or not."""
    usage: Usage = field(default_factory=Usage)
    """So far. A number that cannot be had while the task runs is 0."""


OnReport: TypeAlias = Callable[[Report], None]


class Executor(Protocol):
    """A sandbox. The same contract tests run against every one (tests/contract/test_executor_contract.py)."""

    name: ExecutorName

    async def probe(self) -> Availability:
        """Find out whether tasks can run here. Never raises for what is missing; bounded in time."""
        ...

    async def run(self, run: TaskRun, on_report: OnReport) -> Ended:
        """Run one task to its end; or, when `survivors` names its label, go on with what a former daemon began.

        Whatever the task or the sandbox does is an Ended, never an exception. Cancelling kills the task and
        cleans up within a deadline. `on_report` is called when something changed, about once a second at most.
        """
        ...

    async def pause(self, label: str) -> bool:
        """Freeze a run, within a second: it uses no more CPU, and neither its wall nor its idle time passes. False:
        no such run, or the sandbox cannot. Repeating it is harmless."""
        ...

    async def resume(self, label: str) -> bool:
        """Let it go on. False: no such run."""
        ...

    async def survivors(self) -> frozenset[str]:
        """Labels of runs that a former daemon of this home began and that still run, or have ended with their result
        kept. `run` goes on with them; their folders must be as they were. Ask before `reap_orphans`."""
        ...

    async def reap_orphans(self, keep: frozenset[str] = frozenset()) -> int:
        """End and remove what an earlier daemon of this home left behind, but for the labels to `keep`; how many."""
        ...

    async def aclose(self) -> None:
        """Release everything. No run may be in progress."""
        ...


def outcome_of_exit(exit_status: int) -> RunEnd:
    """What an exit status means when no limit was hit (docs/protocol.md, Task)."""
    named: dict[int, RunEnd] = {EXIT_OK: "ok", EXIT_TRY_ELSEWHERE: "try-elsewhere"}
    return named.get(exit_status, "failed")
