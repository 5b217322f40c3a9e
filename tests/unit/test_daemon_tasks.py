"""nexapod.daemon.tasks: what a task is given, what becomes of its outputs, and that no trouble here is a result."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing
from protocol_kit import job_spec, pid

from nexapod.blobs.errors import BlobUnavailable
from nexapod.blobs.store import BlobStore
from nexapod.daemon.tasks import INDEX_ENTRY, TaskRunner, label_of
from nexapod.executor.contract import Availability, Ended, TaskRun
from nexapod.protocol.events import Event, Finished, Progressed, Run
from nexapod.protocol.types import (
    BlobRef,
    Digest,
    ExecutorName,
    File,
    JobId,
    JobSpec,
    Limits,
    PeerId,
    Split,
    TaskId,
    Usage,
)
from nexapod.protocol.types import Run as RunSpec

JOB = JobId(b"\x0a" * 32)
SEED = Digest(b"\x0b" * 32)


@dataclass
class FakeExecutor:
    """Does what a test says."""

    act: Callable[[TaskRun], Awaitable[Ended]]
    name: ExecutorName = "wasm"
    runs: list[TaskRun] = field(default_factory=list)
    progress: tuple[float, ...] = ()

    async def probe(self) -> Availability:
        return Availability(True, "fake")

    async def run(self, run: TaskRun, on_progress: Callable[[float], None]) -> Ended:
        self.runs.append(run)
        for part in self.progress:
            on_progress(part)
        return await self.act(run)

    async def reap_orphans(self) -> int:
        return 0

    async def aclose(self) -> None:
        pass


@dataclass
class FakeExchange:
    """Other peers hold `held`; nobody has anything else."""

    blobs: BlobStore
    held: dict[BlobRef, bytes] = field(default_factory=dict)
    asked: list[tuple[BlobRef, tuple[PeerId, ...]]] = field(default_factory=list)

    async def fetch(self, ref: BlobRef, sources: Sequence[PeerId], *, deadline_s: float) -> Path:
        self.asked.append((ref, tuple(sources)))
        if ref not in self.held:
            raise BlobUnavailable(f"blob {ref}: nobody gave it")
        await self.blobs.put_bytes(self.held[ref])
        return self.blobs.path(ref)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another thread, or sets no event."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


class Bench:
    """A task runner with its parts, and one job of two tasks."""

    def __init__(self, folder: Path, nursery: trio.Nursery, act: Callable[[TaskRun], Awaitable[Ended]]) -> None:
        self.folder = folder / "tasks"
        self.blobs = BlobStore(folder / "blobs")
        self.exchange = FakeExchange(self.blobs)
        self.executor = FakeExecutor(act)
        self.events: list[Event] = []
        self.tasks = TaskRunner(
            self.folder,
            self.blobs,
            self.exchange,  # type: ignore[arg-type]
            {"wasm": self.executor},
            self.events.append,
            nursery,
        )

    async def spec(self, pieces: Sequence[bytes] = (b"one", b"second"), **changes: object) -> JobSpec:
        index, at = b"", 0
        for piece in pieces:
            index += INDEX_ENTRY.pack(at, len(piece))
            at += len(piece)
        split = Split("piece/in.txt", await self.blobs.put_bytes(b"".join(pieces)), await self.blobs.put_bytes(index))
        run = RunSpec("wasm", module=await self.blobs.put_bytes(b"\0asm"), command=("go",), env=(("COLOUR", "red"),))
        inputs = (File("deep/shared.bin", await self.blobs.put_bytes(b"shared")),)
        base = job_spec(tasks=len(pieces), run=run, inputs=inputs, split=split)
        return JobSpec(**{name: getattr(base, name) for name in base.__dataclass_fields__} | changes)  # type: ignore[arg-type]

    async def finish(self, spec: JobSpec, index: int = 0) -> Finished:
        """Run one task to its end."""
        self.tasks.start(Run(TaskId(JOB, index), spec, SEED, (pid(1), pid(2))))
        await until(lambda: any(isinstance(event, Finished) for event in self.events))
        assert self.tasks.running == frozenset()
        return next(event for event in self.events if isinstance(event, Finished))


@asynccontextmanager
async def bench(folder: Path, act: Callable[[TaskRun], Awaitable[Ended]]) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        yield Bench(folder, nursery, act)
        nursery.cancel_scope.cancel()


async def write_output(run: TaskRun) -> Ended:
    (run.output / "b.txt").write_bytes(b"second file")
    (run.output / "a").mkdir()
    (run.output / "a" / "x.txt").write_bytes((run.input / "piece" / "in.txt").read_bytes())
    return Ended("ok", 0, Usage(1, 2, 3), log="said")


async def test_a_task_finds_its_inputs_and_its_outputs_become_blobs(tmp_path: Path) -> None:
    async with bench(tmp_path, write_output) as it:
        it.executor.progress = (0.25, 7.0)
        seen: dict[str, bytes] = {}

        async def look(run: TaskRun) -> Ended:
            seen.update({p.relative_to(run.input).as_posix(): p.read_bytes() for p in run.input.rglob("*.*")})
            return await write_output(run)

        it.executor.act = look
        ended = await it.finish(await it.spec(), index=1)
        assert seen == {"deep/shared.bin": b"shared", "piece/in.txt": b"second"}
        assert (ended.result.outcome, ended.result.log, ended.result.usage) == ("ok", "said", Usage(1, 2, 3))
        assert [file.path for file in ended.result.files] == ["a/x.txt", "b.txt"]
        assert await it.blobs.read(ended.result.files[0].blob, 0, 100) == b"second"
        assert [e.progress for e in it.events if isinstance(e, Progressed)] == [250, 1000]
        (run,) = it.executor.runs
        env = dict(run.env)
        assert (env["COLOUR"], env["NEXAPOD_TASK_INDEX"], env["NEXAPOD_TASK_COUNT"]) == ("red", "1", "2")
        assert env["NEXAPOD_SEED"] == SEED.hex()
        assert not run.input.parent.exists()


async def test_parameters_of_the_task_reach_its_environment(tmp_path: Path) -> None:
    async with bench(tmp_path, write_output) as it:
        table = json.dumps([{"beta": "0.5"}, {"beta": "0.7"}]).encode()
        spec = await it.spec(params=await it.blobs.put_bytes(table))
        await it.finish(spec, index=1)
        env = dict(it.executor.runs[0].env)
        assert env["NEXAPOD_PARAM_BETA"] == "0.7"
        assert json.loads(env["NEXAPOD_PARAMS"]) == {"beta": "0.7"}


async def test_a_missing_input_is_fetched_and_one_that_nobody_has_is_no_result(tmp_path: Path) -> None:
    async with bench(tmp_path, write_output) as it:
        spec = await it.spec()
        assert spec.run.module is not None
        await it.blobs.delete(spec.run.module)
        missing = await it.finish(spec)
        assert missing.result.outcome == "try-elsewhere"
        assert "nobody gave it" in missing.result.reason
        assert it.exchange.asked == [(spec.run.module, (pid(1), pid(2)))]
        assert it.executor.runs == []
        it.events.clear()
        it.exchange.held[spec.run.module] = b"\0asm"
        assert (await it.finish(spec)).result.outcome == "ok"


@pytest.mark.parametrize("entry", [b"", INDEX_ENTRY.pack(5, 100)])
async def test_a_job_that_contradicts_itself_fails_with_the_reason(tmp_path: Path, entry: bytes) -> None:
    async with bench(tmp_path, write_output) as it:
        spec = await it.spec()
        assert spec.split is not None
        broken = Split("in.txt", spec.split.blob, await it.blobs.put_bytes(entry))
        ended = await it.finish(await it.spec(split=broken))
        assert ended.result.outcome == "failed"
        assert "split index" in ended.result.log
        assert it.executor.runs == []


async def test_what_goes_wrong_on_this_machine_costs_one_lease_and_no_daemon(tmp_path: Path) -> None:
    async def broken(run: TaskRun) -> Ended:
        raise OSError(5, "Input/output error")

    async with bench(tmp_path, broken) as it:
        ended = await it.finish(await it.spec())
        assert (ended.result.outcome, ended.result.exit) == ("try-elsewhere", 75)
        assert "Input/output error" in ended.result.reason


async def test_outputs_beyond_the_limit_are_no_result(tmp_path: Path) -> None:
    async def flood(run: TaskRun) -> Ended:
        (run.output / "big").write_bytes(bytes(2000))
        return Ended("ok", 0)

    async with bench(tmp_path, flood) as it:
        ended = await it.finish(await it.spec(limits=Limits(output=1000)))
        assert ended.result.outcome == "output-limit"
        assert ended.result.files == ()


async def test_a_task_that_is_stopped_says_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    cancelled = trio.Event()

    async def hang(run: TaskRun) -> Ended:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError("unreachable")

    async with bench(tmp_path, hang) as it:
        task = TaskId(JOB, 0)
        it.tasks.start(Run(task, await it.spec(), SEED, ()))
        await until(lambda: bool(it.executor.runs))
        it.tasks.stop(task)
        await until(cancelled.is_set)
        await until(lambda: not it.tasks.running and not (it.folder / label_of(task)).exists())
        assert it.events == []
        it.tasks.stop(task)


async def test_a_start_removes_what_others_left_and_keeps_the_checkpoints_of_what_goes_on(tmp_path: Path) -> None:
    async with bench(tmp_path, write_output) as it:
        goes_on, over = TaskId(JOB, 0), TaskId(JOB, 1)
        for task in (goes_on, over):
            (it.folder / label_of(task) / "checkpoint").mkdir(parents=True)
            (it.folder / label_of(task) / "checkpoint" / "state").write_text("half")
        it.tasks.clean(frozenset({goes_on}))
        assert [entry.name for entry in it.folder.iterdir()] == [label_of(goes_on)]
        seen: list[str] = []

        async def resume(run: TaskRun) -> Ended:
            seen.append((run.checkpoint / "state").read_text())
            return await write_output(run)

        it.executor.act = resume
        await it.finish(await it.spec())
        assert seen == ["half"]


async def test_a_folder_that_cannot_be_removed_is_no_reason_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    async with bench(tmp_path, write_output) as it:
        spec = await it.spec()

        async def locked(run: TaskRun) -> Ended:
            ended = await write_output(run)
            monkeypatch.setattr(os, "unlink", refuse)
            return ended

        it.executor.act = locked
        assert (await it.finish(spec)).result.outcome == "ok"
