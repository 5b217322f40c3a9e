"""Running one task here: fetch what it needs, lay out its folders, execute, gather its outputs.

Decides nothing about who runs what: the core says Run and Stop, and is told Finished. Whatever goes wrong on this
machine ends as `try-elsewhere` with the reason, never as a result and never as an exception.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from nexapod.blobs.exchange import Exchange
from nexapod.blobs.store import BlobStore
from nexapod.daemon.images import Images
from nexapod.executor.contract import Ended, Executor, TaskRun
from nexapod.executor.image_errors import BadImage
from nexapod.executor.outputs import OutputRefused, collect
from nexapod.protocol.events import Event, Finished, Progressed, Run
from nexapod.protocol.types import BlobRef, File, JobSpec, PeerId, RunResult, TaskId

log = structlog.get_logger()

FETCH_S = 600.0
"""How long the inputs of a task may take to arrive."""
PARAMS_BYTES_MAX = 64 << 20
INDEX_ENTRY = struct.Struct(">QI")


class InputError(Exception):
    """The job's own description does not hold together: its split index or parameters are not what they must be."""


def label_of(task: TaskId) -> str:
    """A task's name in folders and containers."""
    return f"{task.job.hex()[:24]}-{task.index}"


class TaskRunner:
    """The tasks that run on this machine."""

    def __init__(
        self,
        folder: Path,
        blobs: BlobStore,
        exchange: Exchange,
        executors: Mapping[str, Executor],
        post: Callable[[Event], None],
        nursery: trio.Nursery,
        images: Images | None = None,
    ) -> None:
        self._images = images
        self._folder = folder
        self._blobs = blobs
        self._exchange = exchange
        self._executors = executors
        self._post = post
        self._nursery = nursery
        self._running: dict[TaskId, trio.CancelScope] = {}

    @property
    def running(self) -> frozenset[TaskId]:
        return frozenset(self._running)

    def start(self, effect: Run) -> None:
        """Begin a task; Finished follows unless it is stopped."""
        if effect.task not in self._running:
            scope = trio.CancelScope()
            self._running[effect.task] = scope
            self._nursery.start_soon(self._supervise, effect, scope)

    def stop(self, task: TaskId) -> None:
        """End a task; nothing follows."""
        scope = self._running.get(task)
        if scope is not None:
            scope.cancel()

    def clean(self, keep: frozenset[TaskId]) -> None:
        """At start: remove what tasks of a former process left, but for those that go on."""
        names = {label_of(task) for task in keep}
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in sorted(self._folder.iterdir()):
            if entry.name not in names:
                _remove(entry)

    async def _supervise(self, effect: Run, scope: trio.CancelScope) -> None:
        folder = self._folder / label_of(effect.task)
        result: RunResult | None = None
        try:
            with scope:
                result = await self._result(effect, folder)
        finally:
            del self._running[effect.task]
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_remove, folder)
        if result is not None:
            self._post(Finished(effect.task, result))

    async def _result(self, effect: Run, folder: Path) -> RunResult:
        try:
            run = await self._prepare(effect, folder)
            executor = self._executors[effect.spec.run.executor]
            ended = await executor.run(run, lambda part: self._progress(effect.task, part))
            return await self._gather(ended, run)
        except InputError as error:
            return RunResult("failed", 1, log=str(error))
        except Exception as error:
            # This machine's trouble (disk, engine, network) must cost one lease only, and be seen.
            log.exception("task_not_run", task=str(effect.task))
            return RunResult("try-elsewhere", 75, reason=f"{type(error).__name__}: {error}"[:200])

    def _progress(self, task: TaskId, part: float) -> None:
        self._post(Progressed(task, round(1000 * min(1.0, max(0.0, part)))))

    # --- before ----------------------------------------------------------------------------------------------------
    async def _prepare(self, effect: Run, folder: Path) -> TaskRun:
        spec = effect.spec
        image = await self._image(spec, effect.sources)
        in_image = set(spec.run.image_blobs)
        await self._fetch_all([ref for ref in spec.blobs if ref not in in_image], effect.sources)
        run = TaskRun(
            label=label_of(effect.task),
            executor=spec.run.executor,
            module=self._blobs.path(spec.run.module) if spec.run.module else None,
            image=image,
            command=spec.run.command,
            workdir=spec.run.workdir,
            env=(*spec.run.env, *await self._environment(effect)),
            input=folder / "input",
            output=folder / "output",
            checkpoint=folder / "checkpoint",
            limits=spec.limits,
            seed=effect.seed,
        )
        await trio.to_thread.run_sync(_lay_out, run)
        for file in spec.inputs:
            await self._place(file, run.input)
        if spec.split is not None:
            await self._place_piece(spec, effect.task.index, run.input)
        return run

    async def _image(self, spec: JobSpec, sources: Sequence[PeerId]) -> str | None:
        """The content id that the engine now holds. Raises InputError when the image itself is at fault."""
        if spec.run.image is None:
            return None
        assert self._images is not None
        try:
            return await self._images.ensure(spec.run, lambda ref: self._fetch_all([ref], sources))
        except BadImage as error:
            raise InputError(str(error)) from None

    async def _fetch_all(self, refs: Sequence[BlobRef], sources: Sequence[PeerId]) -> None:
        for ref in refs:
            if not self._blobs.has(ref):
                await self._exchange.fetch(ref, sources, deadline_s=FETCH_S)

    async def _environment(self, effect: Run) -> list[tuple[str, str]]:
        task = effect.task
        env = [
            ("NEXAPOD_JOB", task.job.hex()),
            ("NEXAPOD_TASK_INDEX", str(task.index)),
            ("NEXAPOD_TASK_COUNT", str(effect.spec.tasks)),
            ("NEXAPOD_SEED", effect.seed.hex()),
        ]
        if effect.spec.params is not None:
            params = await self._params(effect.spec.params, task.index)
            env.append(("NEXAPOD_PARAMS", json.dumps(params, sort_keys=True)))
            env += [(f"NEXAPOD_PARAM_{name.upper()}", value) for name, value in sorted(params.items())]
        return env

    async def _params(self, ref: BlobRef, index: int) -> dict[str, str]:
        if ref.size > PARAMS_BYTES_MAX:
            raise InputError(f"the table of parameters has {ref.size} bytes, at most {PARAMS_BYTES_MAX} are read")
        raw = await self._blobs.read(ref, 0, ref.size)
        try:
            table: Any = json.loads(raw)
            params = table[index]
            return {str(name): str(value) for name, value in params.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"the table of parameters has no entry for task {index}: {type(error).__name__}") from None

    async def _place(self, file: File, folder: Path) -> None:
        target = folder / file.path
        await trio.to_thread.run_sync(lambda: target.parent.mkdir(parents=True, exist_ok=True))
        await self._blobs.export(file.blob, target)

    async def _place_piece(self, spec: JobSpec, index: int, folder: Path) -> None:
        """This task's part of the split file."""
        assert spec.split is not None
        split = spec.split
        entry = await self._blobs.read(split.index, index * INDEX_ENTRY.size, INDEX_ENTRY.size)
        if len(entry) != INDEX_ENTRY.size:
            raise InputError(f"the split index has no entry for task {index}")
        offset, length = INDEX_ENTRY.unpack(entry)
        if offset + length > split.blob.size:
            raise InputError(f"the split index points beyond the end of its file for task {index}")
        data = await self._blobs.read(split.blob, offset, length)
        target = folder / split.path

        def write() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o444)

        await trio.to_thread.run_sync(write)

    # --- after -----------------------------------------------------------------------------------------------------
    async def _gather(self, ended: Ended, run: TaskRun) -> RunResult:
        if ended.outcome != "ok":
            return RunResult(ended.outcome, ended.exit, (), ended.usage, ended.log, ended.reason)
        try:
            found = await trio.to_thread.run_sync(partial(collect, run.output, bytes_max=run.limits.output))
        except OutputRefused as error:
            return RunResult(error.outcome, ended.exit or 1, (), ended.usage, ended.log, error.reason)
        files = [File(entry.path, await self._blobs.put_file(entry.source)) for entry in found]
        ordered = tuple(sorted(files, key=lambda file: file.path))
        return RunResult("ok", ended.exit, ordered, ended.usage, ended.log)


def _lay_out(run: TaskRun) -> None:
    """Fresh input and output folders; a checkpoint that is there stays. Only their parent is closed to others."""
    run.input.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for fresh in (run.input, run.output):
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(parents=True)
    run.checkpoint.mkdir(exist_ok=True)


def _remove(folder: Path) -> None:
    """What a task leaves may resist; that costs some disk until the next start, never the daemon."""

    def make_writable_and_retry(function: Callable[..., Any], path: str, _: object) -> None:
        try:
            os.chmod(Path(path).parent, 0o700)
            function(path)
        except OSError as error:
            log.warning("task_folder_not_removed", path=path, error=str(error))

    if folder.exists():
        shutil.rmtree(folder, onerror=make_writable_and_retry)
