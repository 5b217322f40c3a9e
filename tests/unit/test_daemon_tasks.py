"""nexapod.daemon.tasks: what a task is given, what becomes of its outputs, and that no trouble here is a result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from daemon_kit import job_spec, pid

from nexapod.blobs.errors import BlobUnavailable
from nexapod.blobs.room import Quota
from nexapod.blobs.store import BlobStore
from nexapod.config.gpus import GpuSettings
from nexapod.daemon.gpu_desk import GpuDesk
from nexapod.daemon.keeping import keep_checkpoints
from nexapod.daemon.pausing import Pausing
from nexapod.daemon.staging import INDEX_ENTRY, End, Staging, label_of, write_end
from nexapod.daemon.tasks import TaskRunner
from nexapod.executor.contract import Availability, Ended, OnReport, Report, TaskRun
from nexapod.profile.gpus import GpuLook
from nexapod.protocol.events import Checkpointed, Event, Finished, Pause, Progressed, Run, Vacated
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, Digest, ExecutorName, File, JobId, Part, PeerId, TaskId, blob_of
from nexapod.protocol.runs import RunEnd, RunResult
from nexapod.protocol.types import JobSpec, Limits, Split, Usage
from nexapod.protocol.types import Run as RunSpec

HEADER = b"head\n"
JOB = JobId(b"\x0a" * 32)
SEED = Digest(b"\x0b" * 32)


@dataclass
class FakeExecutor:
    """Does what a test says."""

    act: Callable[[TaskRun], Awaitable[Ended]]
    name: ExecutorName = "wasm"
    runs: list[TaskRun] = field(default_factory=list)
    progress: tuple[float, ...] = ()
    frozen: set[str] = field(default_factory=set)
    kept: list[frozenset[str]] = field(default_factory=list)

    async def probe(self) -> Availability:
        return Availability(True, "fake")

    async def run(self, run: TaskRun, on_report: OnReport) -> Ended:
        self.runs.append(run)
        for part in self.progress:
            on_report(Report(part, f"at {part}", 5, Usage(cpu_ms=7)))
        return await self.act(run)

    async def pause(self, label: str) -> bool:
        self.frozen.add(label)
        return True

    async def resume(self, label: str) -> bool:
        self.frozen.discard(label)
        return True

    async def survivors(self) -> frozenset[str]:
        return frozenset()

    async def reap_orphans(self, keep: frozenset[str] = frozenset()) -> int:
        self.kept.append(keep)
        return 0

    async def aclose(self) -> None:
        pass


@dataclass
class FakeProviders:
    """Other peers hold `held`; nobody has anything else."""

    blobs: BlobStore
    held: dict[BlobRef, bytes] = field(default_factory=dict)
    asked: list[tuple[Part, tuple[PeerId, ...]]] = field(default_factory=list)

    async def fetch(self, part: Part, sources: Sequence[PeerId]) -> None:
        self.asked.append((part, tuple(sources)))
        if part.blob not in self.held:
            raise BlobUnavailable(f"blob {part.blob}: nobody gave it")
        data = self.held[part.blob]
        if part.is_whole:
            await self.blobs.put_bytes(data)
            return
        chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        partial = await self.blobs.open_partial(part.blob, [hashlib.sha256(chunk).digest() for chunk in chunks])
        for index in part.chunks:
            assert await partial.write(index, [chunks[index]])
        await partial.settle()
        partial.close()


class NoGpus:
    """A machine without any."""

    def look(self) -> GpuLook:
        return GpuLook((), "")


class NoImages:
    """A machine that has every image by its own name."""

    def __init__(self) -> None:
        self.users: set[str] = set()

    async def ensure(self, run: RunSpec, fetch: object, user: str) -> str:
        assert run.image is not None
        self.users.add(user)
        return run.image

    def release(self, user: str) -> None:
        self.users.discard(user)


def note(folder: Path, *, continued: bool) -> None:
    """What a former process noted of a run."""
    (folder / "task.json").write_text(json.dumps({"gpus": [], "continued": continued}))


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
        self.providers = FakeProviders(self.blobs)
        self.executor = FakeExecutor(act)
        self.events: list[Event] = []
        self.images = NoImages()
        self.committing = trio.Event()
        self.committing.set()
        self.staging = Staging(self.folder, self.blobs, self.providers, self.images)  # type: ignore[arg-type]
        self.gpus = GpuDesk(GpuSettings(), NoGpus(), now_ms=lambda: 0)
        self.nursery = nursery
        self.tasks = self.runner()

    def runner(self, survivors: frozenset[str] = frozenset()) -> TaskRunner:
        """As a daemon has one when it starts."""
        executors = {"wasm": self.executor, "docker": self.executor}
        return TaskRunner(
            self.staging,
            self.blobs,
            executors,
            self.gpus,
            self.events.append,
            self.hand_over,
            self.nursery,
            survivors=survivors,
        )

    async def hand_over(self, event: Event) -> None:
        """The core takes it, once its store does."""
        await self.committing.wait()
        self.events.append(event)

    async def spec(self, pieces: Sequence[bytes] = (b"one", b"second"), **changes: object) -> JobSpec:
        index, at = b"", len(HEADER)
        for piece in pieces:
            index += INDEX_ENTRY.pack(at, len(piece))
            at += len(piece)
        whole = await self.blobs.put_bytes(HEADER + b"".join(pieces))
        bounds = (len(HEADER), whole.size)
        split = Split("piece/in.txt", whole, await self.blobs.put_bytes(index), bounds, len(HEADER))
        run = RunSpec("wasm", module=await self.blobs.put_bytes(b"\0asm"), command=("go",), env=(("COLOUR", "red"),))
        inputs = (File("deep/shared.bin", await self.blobs.put_bytes(b"shared")),)
        base = job_spec(tasks=len(pieces), run=run, inputs=inputs, split=split)
        return JobSpec(**{name: getattr(base, name) for name in base.__dataclass_fields__} | changes)  # type: ignore[arg-type]

    async def finish(self, spec: JobSpec, index: int = 0) -> Finished:
        """Run one task to its end."""
        self.tasks.start(Run(TaskId(JOB, index), spec, SEED, (pid(1), pid(2))))
        await until(lambda: any(isinstance(event, Finished) for event in self.events))
        assert not self.tasks.running
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
        assert seen == {"deep/shared.bin": b"shared", "piece/in.txt": b"head\nsecond"}
        assert (ended.result.outcome, ended.result.log, ended.result.usage) == ("ok", "said", Usage(1, 2, 3))
        assert [file.path for file in ended.result.files] == ["a/x.txt", "b.txt"]
        assert await it.blobs.read(ended.result.files[0].blob, 0, 100) == b"head\nsecond"
        told = [(e.progress, e.log) for e in it.events if isinstance(e, Progressed)]
        assert told == [(250, "at 0.25"), (1000, "at 7.0")]
        (run,) = it.executor.runs
        env = dict(run.env)
        assert (env["COLOUR"], env["NEXAPOD_TASK_INDEX"], env["NEXAPOD_TASK_COUNT"]) == ("red", "1", "2")
        assert env["NEXAPOD_SEED"] == SEED.hex()
        await until(lambda: not run.input.parent.exists())


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
        assert (missing.result.outcome, missing.result.exit) == ("try-elsewhere", 69), "not the task's own word"
        assert "nobody gave it" in missing.result.reason
        assert it.providers.asked == [(Part.whole(spec.run.module), (pid(1), pid(2)))]
        assert it.executor.runs == []
        it.events.clear()
        it.providers.held[spec.run.module] = b"\0asm"
        assert (await it.finish(spec)).result.outcome == "ok"


@pytest.mark.parametrize("entry", [INDEX_ENTRY.pack(5, 100), INDEX_ENTRY.pack(2, 3)])
async def test_a_job_that_contradicts_itself_fails_with_the_reason(tmp_path: Path, entry: bytes) -> None:
    async with bench(tmp_path, write_output) as it:
        spec = await it.spec()
        assert spec.split is not None
        broken = replace(spec.split, index=await it.blobs.put_bytes(entry))
        ended = await it.finish(await it.spec(split=broken))
        assert ended.result.outcome == "failed"
        assert "split index" in ended.result.log
        assert it.executor.runs == []


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"x": "a\0b"}, "NEXAPOD_PARAM_X"),
        ({"a=b": "1"}, "NEXAPOD_PARAM_A=B"),
        ({"x": "a" * (128 << 10)}, "at most 131071"),
        ({f"x{n}": "a" * 100_000 for n in range(6)}, "the variable NEXAPOD_PARAMS has"),
    ],
)
async def test_parameters_that_no_program_can_be_given_fail_with_the_reason(
    tmp_path: Path, params: dict[str, str], why: str
) -> None:
    """They are so on every machine: to try them elsewhere would never end."""
    async with bench(tmp_path, write_output) as it:
        table = await it.blobs.put_bytes(json.dumps([params]).encode())
        ended = await it.finish(await it.spec(params=table))
        assert ended.result.outcome == "failed"
        assert why in ended.result.log
        assert it.executor.runs == []


async def test_a_tasks_image_is_kept_until_its_run_has_ended(tmp_path: Path) -> None:
    async with bench(tmp_path, write_output) as it:
        users: list[set[str]] = []

        async def look(run: TaskRun) -> Ended:
            users.append(set(it.images.users))
            return await write_output(run)

        it.executor.act = look
        assert (
            await it.finish(await it.spec(run=RunSpec("docker", image="sha256:" + "5" * 64)))
        ).result.outcome == "ok"
        assert users == [{it.executor.runs[0].label}]
        assert it.images.users == set()


async def test_what_goes_wrong_on_this_machine_costs_one_lease_and_no_daemon(tmp_path: Path) -> None:
    async def broken(run: TaskRun) -> Ended:
        raise OSError(5, "Input/output error")

    async with bench(tmp_path, broken) as it:
        ended = await it.finish(await it.spec())
        assert (ended.result.outcome, ended.result.exit) == ("try-elsewhere", 69)
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
        it.staging.clean(frozenset({goes_on}))
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


# --- results -------------------------------------------------------------------------------------------------------
async def test_a_task_leaves_its_slot_before_its_outputs_are_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its GPUs are free by then: whoever comes next is given them."""
    order: list[str] = []
    gather = Staging.gather

    async def slow(staging: Staging, effect: Run) -> tuple[File, ...]:
        await until(lambda: Vacated(TaskId(JOB, 0)) in it.events)
        order.append("gathered")
        return await gather(staging, effect)

    monkeypatch.setattr(Staging, "gather", slow)
    async with bench(tmp_path, write_output) as it:
        release = it.gpus.release
        monkeypatch.setattr(it.gpus, "release", lambda label: order.append("released") or release(label))
        assert len((await it.finish(await it.spec())).result.files) == 2
        assert order == ["released", "gathered", "released"]
        told = [type(event) for event in it.events if not isinstance(event, Progressed)]
        assert told == [Vacated, Finished]


@pytest.mark.parametrize("outcome", ["ok", "failed"])
async def test_a_task_that_has_ended_is_not_run_again_when_the_daemon_ends_before_the_core_has_kept_its_result(
    tmp_path: Path, outcome: RunEnd
) -> None:
    ended = Ended(outcome, 0 if outcome == "ok" else 3, Usage(1, 2, 3, 4), "said \x1b", "why")

    async def act(run: TaskRun) -> Ended:
        await write_output(run)
        return ended

    async with bench(tmp_path, act) as it:
        it.committing = trio.Event()
        spec = await it.spec()
        it.tasks.start(Run(TaskId(JOB, 0), spec, SEED, ()))
        await until(lambda: bool(it.executor.runs) and not it.tasks.running)
        assert it.events == [Vacated(TaskId(JOB, 0))]
    async with bench(tmp_path, act) as it:
        it.staging.clean(frozenset({TaskId(JOB, 0)}))
        again = (await it.finish(spec)).result
        assert it.executor.runs == []
        assert replace(again, files=()) == RunResult(outcome, ended.exit, (), ended.usage, ended.log, ended.reason)
        assert [file.path for file in again.files] == (["a/x.txt", "b.txt"] if outcome == "ok" else [])
        await until(lambda: not (it.folder / label_of(TaskId(JOB, 0))).exists())


@pytest.mark.parametrize("which", ["empty", "no end", "another boot's", "continued"])
async def test_an_end_that_cannot_be_trusted_is_not_taken_for_a_result(tmp_path: Path, which: str) -> None:
    async with bench(tmp_path, write_output) as it:
        folder = it.folder / label_of(TaskId(JOB, 0))
        folder.mkdir(parents=True)
        (folder / "output").mkdir()
        # Of the last one: it rests on a checkpoint, and the run names none.
        write_end(folder, End(Ended("ok", 0), continued=which == "continued"))
        kept = json.loads((folder / "end.json").read_text())
        match which:
            case "empty":
                (folder / "end.json").write_text("")
            case "no end":
                (folder / "end.json").write_text("[]")
            case "another boot's":
                (folder / "end.json").write_text(json.dumps({**kept, "boot": "another"}))
        assert (await it.finish(await it.spec())).result.outcome == "ok"
        assert len(it.executor.runs) == 1


async def test_an_end_that_cannot_be_kept_is_a_result_all_the_same(tmp_path: Path) -> None:
    async def act(run: TaskRun) -> Ended:
        (run.input.parent / "end.json").mkdir()
        return await write_output(run)

    async with bench(tmp_path, act) as it:
        assert (await it.finish(await it.spec())).result.outcome == "ok"


async def test_what_a_task_left_is_not_evicted_before_the_core_holds_it(tmp_path: Path) -> None:
    async with bench(tmp_path, write_output) as it:
        it.committing = trio.Event()
        it.tasks.start(Run(TaskId(JOB, 0), await it.spec(), SEED, ()))
        await until(lambda: bool(it.executor.runs) and not it.tasks.running)
        for path in (tmp_path / "blobs" / "objects").iterdir():
            os.utime(path, (0, 0))
        it.blobs.room.quota = Quota(blobs_max=1)
        await it.blobs.room.keep()
        assert not it.blobs.has(blob_of(b"shared")), "an input, of which the core says nothing here"
        assert it.blobs.has(blob_of(b"second file"))


# --- parts ---------------------------------------------------------------------------------------------------------
async def test_of_a_split_file_a_task_fetches_its_own_piece_only(tmp_path: Path) -> None:
    async with bench(tmp_path, write_output) as it:
        spec = await it.spec([b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"c" * CHUNK_BYTES, b"d" * CHUNK_BYTES])
        assert spec.split is not None
        whole = await it.blobs.read(spec.split.blob, 0, spec.split.blob.size)
        await it.blobs.delete(spec.split.blob)
        it.providers.held[spec.split.blob] = whole
        ended = await it.finish(spec, index=2)
        assert ended.result.outcome == "ok", ended.result
        assert it.providers.asked == [
            (Part(spec.split.blob, 0, 1), (pid(1), pid(2))),
            (Part(spec.split.blob, 2, 2), (pid(1), pid(2))),
        ]
        piece = await it.blobs.read(ended.result.files[0].blob, 0, 2 * CHUNK_BYTES)
        assert piece == HEADER + b"c" * CHUNK_BYTES


# --- checkpoints ---------------------------------------------------------------------------------------------------
async def _continued(it: Bench, spec: JobSpec, files: tuple[File, ...]) -> Finished:
    it.events.clear()
    it.tasks.start(Run(TaskId(JOB, 0), spec, SEED, (pid(1),), files))
    await until(lambda: any(isinstance(event, Finished) for event in it.events))
    return next(event for event in it.events if isinstance(event, Finished))


async def test_a_task_goes_on_from_what_another_worker_had_kept(tmp_path: Path) -> None:
    seen: list[str] = []

    async def look(run: TaskRun) -> Ended:
        seen.append((run.checkpoint / "deep" / "state").read_text())
        return await write_output(run)

    async with bench(tmp_path, look) as it:
        ref = blob_of(b"half")
        it.providers.held[ref] = b"half"
        ended = await _continued(it, await it.spec(), (File("deep/state", ref),))
        assert (seen, ended.result.outcome, ended.result.continued) == (["half"], "ok", True)


async def test_what_cannot_be_had_or_is_here_already_is_not_taken_from_others(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    async def look(run: TaskRun) -> Ended:
        seen.append([p.read_text() for p in sorted(run.checkpoint.rglob("*")) if p.is_file()])
        return await write_output(run)

    async with bench(tmp_path, look) as it:
        here, gone = await it.blobs.put_bytes(b"half"), blob_of(b"gone")
        both = (File("a", here), File("b", gone))
        ended = await _continued(it, await it.spec(), both)
        assert (seen, ended.result.continued) == ([[]], False), "a checkpoint is taken up whole or not at all"
        own = it.folder / label_of(TaskId(JOB, 0)) / "checkpoint"
        with trio.fail_after(10):
            while own.parent.exists():  # noqa: ASYNC110 - removed in a thread, after the end was told
                await trio.sleep(0.01)
        own.mkdir(parents=True)
        (own / "mine").write_text("own")
        note(own.parent, continued=False)
        ended = await _continued(it, await it.spec(), (File("a", here),))
        assert (seen[1], ended.result.continued) == (["own"], False)


async def test_a_checkpoint_that_was_half_copied_when_the_daemon_ended_is_copied_anew_and_is_anothers(
    tmp_path: Path,
) -> None:
    seen: list[list[str]] = []

    async def look(run: TaskRun) -> Ended:
        seen.append(sorted(path.name for path in run.checkpoint.iterdir()))
        return await write_output(run)

    folder = tmp_path / "tasks" / label_of(TaskId(JOB, 0))
    async with bench(tmp_path, look) as it:
        files = (File("a", await it.blobs.put_bytes(b"half")), File("b", await it.blobs.put_bytes(b"other")))
        spec = await it.spec()
        export, copying = it.blobs.export, trio.Event()

        async def hang_at_b(ref: BlobRef, dest: Path, **options: int) -> None:
            if dest.name == "b":
                copying.set()
                await trio.sleep_forever()
            await export(ref, dest, **options)

        it.blobs.export = hang_at_b  # type: ignore[method-assign]
        it.tasks.start(Run(TaskId(JOB, 0), spec, SEED, (pid(1),), files))
        await copying.wait()
    assert list((folder / "checkpoint").iterdir()) == [], "what has that name is whole"
    async with bench(tmp_path, look) as it:
        it.staging.clean(frozenset({TaskId(JOB, 0)}))
        ended = await _continued(it, spec, files)
        assert (seen, ended.result.continued) == ([["a", "b"]], True)


@pytest.mark.parametrize("text", [None, "", "[]", '{"gpus": []}'])
@pytest.mark.parametrize("given", [True, False])
async def test_a_checkpoint_that_nobody_can_say_the_origin_of_is_no_independent_one(
    tmp_path: Path, text: str | None, given: bool
) -> None:
    seen: list[list[str]] = []

    async def look(run: TaskRun) -> Ended:
        seen.append(sorted(path.name for path in run.checkpoint.iterdir()))
        return await write_output(run)

    async with bench(tmp_path, look) as it:
        folder = it.folder / label_of(TaskId(JOB, 0))
        (folder / "checkpoint").mkdir(parents=True)
        (folder / "checkpoint" / "mine").touch()
        if text is not None:
            (folder / "task.json").write_text(text)
        files = (File("a", await it.blobs.put_bytes(b"half")),) if given else ()
        ended = await _continued(it, await it.spec(), files)
        assert (seen, ended.result.continued) == ([["a"]] if given else [["mine"]], given)


async def test_a_checkpoint_of_another_lineage_than_the_run_names_is_begun_anew(tmp_path: Path) -> None:
    async def look(run: TaskRun) -> Ended:
        assert list(run.checkpoint.iterdir()) == []
        return await write_output(run)

    async with bench(tmp_path, look) as it:
        folder = it.folder / label_of(TaskId(JOB, 0))
        (folder / "checkpoint").mkdir(parents=True)
        (folder / "checkpoint" / "theirs").touch()
        note(folder, continued=True)
        ended = await _continued(it, await it.spec(), ())
        assert (ended.result.outcome, ended.result.continued) == ("ok", False)


@pytest.mark.parametrize("given", [True, False])
async def test_a_run_that_goes_on_without_its_note_counts_as_continued_when_it_may_be(
    tmp_path: Path, given: bool
) -> None:
    async with bench(tmp_path, write_output) as it:
        for name in ("input/piece", "output", "checkpoint"):
            (it.folder / label_of(TaskId(JOB, 0)) / name).mkdir(parents=True)
        (it.folder / label_of(TaskId(JOB, 0)) / "input/piece/in.txt").touch()
        it.tasks = it.runner(frozenset({label_of(TaskId(JOB, 0))}))
        files = (File("a", await it.blobs.put_bytes(b"half")),) if given else ()
        assert (await _continued(it, await it.spec(), files)).result.continued is given


async def test_what_a_task_keeps_is_told_when_it_has_changed_and_stands_still(tmp_path: Path) -> None:
    told: list[tuple[File, ...]] = []
    blobs = BlobStore(tmp_path / "blobs")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    run = TaskRun("ab-0", "wasm", tmp_path, None, (), (), "", tmp_path, tmp_path, folder, Limits(disk=100), bytes(32))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: keep_checkpoints(run, blobs, told.append, look_s=0.01))
        (folder / "link").symlink_to("/etc/passwd")
        await trio.sleep(0.05)  # a pause: nothing is to happen
        assert told == [], "nothing is taken of a folder with anything but plain files in it"
        (folder / "link").unlink()
        (folder / "state").write_text("one")
        await until(lambda: len(told) == 1)
        (folder / "new").write_text("three")
        (folder / "new").replace(folder / "state")
        await until(lambda: len(told) == 2)
        await trio.sleep(0.05)  # a pause: nothing is to happen
        (folder / "state").write_text("x" * 101)
        await trio.sleep(0.05)  # a pause: nothing is to happen
        nursery.cancel_scope.cancel()
    assert told == [(File("state", blob_of(b"one")),), (File("state", blob_of(b"three")),)]


async def test_a_link_put_in_the_way_while_a_checkpoint_is_copied_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that runs may change its folder between any two steps, and change it back."""
    (secret := tmp_path / "secret").mkdir()
    (secret / "f").write_bytes(b"secret")
    folder = tmp_path / "checkpoint"
    (folder / "d").mkdir(parents=True)
    (folder / "d" / "f").write_bytes(b"plain.")
    told: list[tuple[File, ...]] = []
    blobs = BlobStore(tmp_path / "blobs")
    tries = 0
    put_opened = blobs.put_opened

    async def put_while_it_is_changed(*args: Any) -> BlobRef:
        nonlocal tries
        tries += 1
        (folder / "d").rename(folder / "kept")
        (folder / "d").symlink_to(secret)
        try:
            return await put_opened(*args)
        finally:
            (folder / "d").unlink()
            (folder / "kept").rename(folder / "d")

    monkeypatch.setattr(blobs, "put_opened", put_while_it_is_changed)
    run = TaskRun("ab-0", "wasm", tmp_path, None, (), (), "", tmp_path, tmp_path, folder, Limits(disk=100), bytes(32))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: keep_checkpoints(run, blobs, told.append, look_s=0.01))
        await until(lambda: tries > 1)
        nursery.cancel_scope.cancel()
    assert told == []
    assert not blobs.has(blob_of(b"secret"))


async def test_only_a_job_that_shares_checkpoints_has_them_kept(tmp_path: Path) -> None:
    async with bench(tmp_path, write_output) as it:
        spec = await it.spec()
        shared = replace(spec, run=replace(spec.run, checkpoint="shared"))
        for given in (spec, shared):
            await it.finish(given)
            it.events.clear()
        assert not [e for e in it.events if isinstance(e, Checkpointed)], "a short task has nothing to keep"


# --- pauses and restarts -------------------------------------------------------------------------------------------
async def test_a_pause_freezes_what_runs_and_holds_back_what_would_begin(tmp_path: Path) -> None:
    go = trio.Event()

    async def wait(run: TaskRun) -> Ended:
        await go.wait()
        return await write_output(run)

    async with bench(tmp_path, wait) as it:
        spec = await it.spec()
        first, second = TaskId(JOB, 0), TaskId(JOB, 1)
        it.tasks.start(Run(first, spec, SEED, ()))
        await until(lambda: len(it.executor.runs) == 1)
        it.tasks.want(paused=True)
        await it.tasks.settle()
        assert it.executor.frozen == {label_of(first)}
        assert it.tasks.running[first].frozen
        it.tasks.start(Run(second, spec, SEED, ()))
        await trio.sleep(0.05)  # a pause: nothing is to happen
        assert len(it.executor.runs) == 1
        it.tasks.want(paused=False)
        await it.tasks.settle()
        await until(lambda: len(it.executor.runs) == 2)
        assert it.executor.frozen == set()
        go.set()
        await until(lambda: not it.tasks.running)


@dataclass
class Core:
    """Where Pausing tells the core."""

    told: list[Event] = field(default_factory=list)

    def post(self, event: Event) -> None:
        self.told.append(event)


@asynccontextmanager
async def owned(folder: Path) -> AsyncIterator[tuple[Bench, Pausing, Core]]:
    """Two tasks that run for ever, in sandboxes that take their time to stand still, and the owner's switch."""

    async def forever(run: TaskRun) -> Ended:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async with bench(folder, forever) as it:
        spec = await it.spec()
        for index in range(2):
            it.tasks.start(Run(TaskId(JOB, index), spec, SEED, ()))
        await until(lambda: len(it.executor.runs) == 2)
        core = Core()
        yield it, Pausing(cast("Any", core), it.tasks, folder / "paused"), core


def slowly(change: Callable[[str], Awaitable[bool]], begun: trio.Event) -> Callable[[str], Awaitable[bool]]:
    """The same, some time after it was asked for, whatever was asked for since."""

    async def later(label: str) -> bool:
        begun.set()
        await trio.sleep(0.05)  # a pause: the sandbox's own time
        return await change(label)

    return later


async def test_who_resumes_while_the_tasks_are_being_frozen_has_them_all_go_on(tmp_path: Path) -> None:
    async with owned(tmp_path) as (it, pausing, core):
        freezing = trio.Event()
        it.executor.pause = slowly(it.executor.pause, freezing)  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pausing.pause, None)
            await freezing.wait()
            await pausing.resume()
            assert it.executor.frozen == set()
        assert (it.executor.frozen, pausing.paused, it.tasks.paused) == (set(), False, False)
        assert not (tmp_path / "paused").exists()
        assert core.told == [Pause(True), Pause(False)]


async def test_who_pauses_while_the_tasks_are_being_let_go_has_them_all_stand_still(tmp_path: Path) -> None:
    async with owned(tmp_path) as (it, pausing, core):
        await pausing.pause(None)
        thawing = trio.Event()
        it.executor.resume = slowly(it.executor.resume, thawing)  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pausing.resume)
            await thawing.wait()
            await pausing.pause(3600)
            assert len(it.executor.frozen) == 2
        assert len(it.executor.frozen) == 2
        assert (pausing.paused, it.tasks.paused, core.told[-1]) == (True, True, Pause(True))
        assert (tmp_path / "paused").exists()
        assert pausing.left_s is not None


async def test_a_freeze_that_cannot_be_had_gives_way_to_whoever_resumes(tmp_path: Path) -> None:
    async with owned(tmp_path) as (it, pausing, _):
        asked = trio.Event()

        async def refuse(label: str) -> bool:
            asked.set()
            return False

        it.executor.pause = refuse  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pausing.pause, None)
            await asked.wait()
            with trio.fail_after(5):
                await pausing.resume()
        assert not pausing.paused


async def test_a_sandbox_of_which_nobody_knows_whether_it_stands_still_is_let_go_as_well(tmp_path: Path) -> None:
    async with owned(tmp_path) as (it, pausing, _):
        freezing = trio.Event()

        async def freeze_and_fall_silent(label: str) -> bool:
            it.executor.frozen.add(label)
            freezing.set()
            await trio.sleep_forever()
            raise AssertionError("unreachable")

        it.executor.pause = freeze_and_fall_silent  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pausing.pause, None)
            await freezing.wait()
            nursery.cancel_scope.cancel()
        assert it.executor.frozen
        await pausing.resume()
        assert it.executor.frozen == set()


async def test_a_task_that_was_held_back_is_so_again_by_a_pause_that_follows_at_once(tmp_path: Path) -> None:
    async with bench(tmp_path, write_output) as it:
        it.tasks.want(paused=True)
        it.tasks.start(Run(TaskId(JOB, 0), await it.spec(), SEED, ()))
        await until(lambda: (it.folder / label_of(TaskId(JOB, 0)) / "task.json").exists())
        await trio.testing.wait_all_tasks_blocked(0.05)
        it.tasks.want(paused=False)
        it.tasks.want(paused=True)
        await trio.sleep(0.05)  # a pause: nothing is to happen
        assert it.executor.runs == []


async def test_a_run_that_outlived_its_daemon_is_gone_on_with_in_its_own_folders(tmp_path: Path) -> None:
    task = TaskId(JOB, 0)
    seen: list[str] = []

    async def look(run: TaskRun) -> Ended:
        seen.append((run.output / "begun").read_text())
        return Ended("ok", 0)

    async with bench(tmp_path, look) as it:
        spec = await it.spec()
        folder = it.folder / label_of(task)
        for name in ("input", "output", "checkpoint"):
            (folder / name).mkdir(parents=True)
        (folder / "output" / "begun").write_text("before")
        note(folder, continued=True)
        it.tasks = it.runner(frozenset({label_of(task)}))
        ended = await it.finish(spec)
        assert (seen, ended.result.continued) == (["before"], True)
        it.events.clear()
        await it.finish(spec)
        assert len(seen) == 1, "the next run of it begins anew"


def lay_out(it: Bench, task: TaskId) -> None:
    """As a former process left it."""
    for name in ("input", "output", "checkpoint"):
        (it.folder / label_of(task) / name).mkdir(parents=True)
    note(it.folder / label_of(task), continued=False)


async def test_a_run_that_outlived_its_daemon_stands_still_when_the_next_one_is_paused(tmp_path: Path) -> None:
    go = trio.Event()

    async def wait(run: TaskRun) -> Ended:
        await go.wait()
        return Ended("ok", 0)

    async with bench(tmp_path, wait) as it:
        survivor, other = TaskId(JOB, 0), TaskId(JOB, 1)
        lay_out(it, survivor)
        it.tasks = it.runner(frozenset({label_of(survivor)}))
        it.tasks.want(paused=True)
        for task in (survivor, other):
            it.tasks.start(Run(task, await it.spec(), SEED, ()))
        await until(lambda: it.executor.frozen == {label_of(survivor)})
        assert it.tasks.running[survivor].frozen
        assert [run.label for run in it.executor.runs] == [label_of(survivor)]
        it.tasks.want(paused=False)
        await it.tasks.settle()
        assert it.executor.frozen == set()
        go.set()
        await until(lambda: not it.tasks.running)


async def test_what_outlived_its_daemon_and_is_not_gone_on_with_is_ended(tmp_path: Path) -> None:
    async def forever(run: TaskRun) -> Ended:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async with bench(tmp_path, forever) as it:
        taken, left = TaskId(JOB, 0), TaskId(JOB, 1)
        lay_out(it, taken)
        it.tasks = it.runner(frozenset({label_of(taken), label_of(left)}))
        it.tasks.start(Run(taken, await it.spec(), SEED, ()))
        it.nursery.start_soon(lambda: it.tasks.run(taken_up_s=0))
        await until(lambda: bool(it.executor.kept))
        assert set(it.executor.kept) == {frozenset({label_of(taken)})}, "by every executor"
