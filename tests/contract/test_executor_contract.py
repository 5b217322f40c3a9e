"""What every executor promises, proved on the real ones. Each behaviour exists as a wasm module and as a shell line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from containers.engine_kit import HOME, NoEngine, connect, import_image
from run_kit import task_run
from wasmtime import wat2wasm

from nexapod.executor.contract import BadRun, Ended, Executor, Report, TaskRun
from nexapod.executor.docker.sandbox import DockerExecutor
from nexapod.executor.outputs import OutputRefused, collect
from nexapod.executor.wasm.sandbox import WasmExecutor
from nexapod.protocol.limits import LOG_TAIL_MAX
from nexapod.protocol.types import Limits

WAT = Path(__file__).parent.parent / "wasm"
SEED = bytes(range(32))
SMALL = Limits(memory=32 << 20, output=1 << 20, wall_ms=20_000)

SHELL = {
    "copy": "echo 0.5 >/run/progress; cat /input/in.txt >/output/out.txt; echo copied",
    "exit": "exit $0",
    "progress_then_spin": "trap '' TERM INT; echo 0.5 >/run/progress; while true; do sleep 1000; done",
    "memory": "x=a; while true; do x=$x$x; done",
    "fill": "cat /dev/zero >/output/big",
    "files": "i=0; while true; do >/output/$i; i=$((i+1)); done",
    "symlink": "ln -s target /output/link",
    "deface": "cd /input; ! >new && ! echo x >in.txt && ! rm in.txt && ! ln in.txt /output/new && ! mv in.txt /output",
    "env": "env",
    "tell": "echo NEXAPOD_PROGRESS=0.25",
    "flood": "printf begin >&2; head -c 100000 /dev/zero | tr '\\0' '\\033' >&2; printf end >&2",
}


@dataclass
class Lab:
    """One executor with directories for its runs."""

    executor: Executor
    root: Path
    image: str | None
    leftovers: Callable[[], list[str]]
    reports: list[Report] = field(default_factory=list)
    count: int = 0

    @property
    def progress(self) -> list[float]:
        """Each number once, in the order told."""
        told = [report.progress for report in self.reports if report.progress is not None]
        return [number for number, before in zip(told, [None, *told], strict=False) if number != before]

    def task(
        self, behaviour: str, *args: str, limits: Limits = SMALL, env: tuple[tuple[str, str], ...] = ()
    ) -> TaskRun:
        self.count += 1
        home = self.root / f"run-{self.count}"
        module = None
        command = args
        if self.image is None:
            module = self.root / f"{behaviour}.wasm"
            if not module.exists():
                module.write_bytes(wat2wasm((WAT / f"{behaviour}.wat").read_text()))
        else:
            command = ("sh", "-c", SHELL[behaviour], *args)
        run = task_run(
            home,
            f"{self.count:x}",
            self.executor.name,
            *command,
            module=module,
            image=self.image,
            env=env,
            limits=limits,
            seed=SEED,
        )
        (run.input / "in.txt").write_text("what goes in\n")
        return run

    async def run(self, run: TaskRun) -> Ended:
        with trio.fail_after(60):
            return await self.executor.run(run, self.reports.append)

    async def do(self, behaviour: str, *args: str, **options: Any) -> Ended:
        return await self.run(self.task(behaviour, *args, **options))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str, str], None]) -> Iterator[tuple[Any, str]]:
    try:
        client = connect()
        made = import_image(client, tmp_path_factory.mktemp("image"))
    except NoEngine as error:
        missing("docker", str(error))
    yield client, made
    client.remove_image(made, force=True)
    client.close()


@pytest.fixture(params=["wasm", "docker"])
def unopened(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    if request.param == "wasm":
        executor: Executor = WasmExecutor(scratch=tmp_path / "scratch", cache=tmp_path / "cache")
        return Lab(executor, tmp_path, None, lambda: _runners_at_work(executor))
    client, made = request.getfixturevalue("image")
    executor = DockerExecutor(home=HOME, scratch=tmp_path / "scratch")

    def containers() -> list[str]:
        found = client.containers(all=True, filters={"label": f"org.nexapod.home={HOME}"})
        return [container["Names"][0] for container in found]

    return Lab(executor, tmp_path, made, containers)


@pytest.fixture
async def lab(unopened: Lab) -> AsyncIterator[Lab]:
    assert unopened.leftovers() == []
    yield unopened
    scratch = list((unopened.root / "scratch").iterdir())
    left = unopened.leftovers()
    await unopened.executor.aclose()
    assert scratch == []
    assert left == []


def _runners_at_work(executor: Executor) -> list[str]:
    assert isinstance(executor, WasmExecutor)
    idle = executor.idle_pids
    children = psutil.Process().children(recursive=True)
    return [str(child.pid) for child in children if child.pid not in idle and _is_runner(child)]


def _is_runner(process: psutil.Process) -> bool:
    try:
        return "nexapod.executor.wasm.runner" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


async def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  (what is waited for happens in other processes)
            await trio.sleep(0.02)


async def test_probe_says_that_it_can_and_which_version(lab: Lab) -> None:
    found = await lab.executor.probe()
    assert found.ok, found.reason
    assert found.version
    assert found.reason == ""
    if lab.image:
        assert lab.image in found.images


async def test_a_task_reads_its_input_writes_its_output_and_reports_progress(lab: Lab) -> None:
    run = lab.task("copy")
    ended = await lab.run(run)
    assert (ended.outcome, ended.exit, ended.reason) == ("ok", 0, "")
    assert ended.log == "copied\n"
    assert lab.progress == [0.5]
    found = collect(run.output, bytes_max=run.limits.output)
    assert [(file.path, file.size) for file in found] == [("out.txt", 13)]
    assert found[0].source.read_text() == "what goes in\n"
    assert ended.usage.wall_ms < 20_000
    assert 0 < ended.usage.peak_memory <= run.limits.memory


@pytest.mark.parametrize(
    ("status", "outcome"), [("0", "ok"), ("1", "failed"), ("75", "try-elsewhere"), ("200", "failed")]
)
async def test_an_exit_status_decides_the_outcome(lab: Lab, status: str, outcome: str) -> None:
    ended = await lab.do("exit", status)
    assert (ended.outcome, ended.exit) == (outcome, int(status))
    assert ended.reason == ("" if status == "0" else f"exit status {status}")


async def test_a_task_that_ignores_every_signal_ends_at_its_wall_limit(lab: Lab) -> None:
    limits = Limits(memory=32 << 20, output=1 << 20, wall_ms=700)
    began = trio.current_time()
    ended = await lab.do("progress_then_spin", limits=limits)
    assert ended.outcome == "wall-limit"
    assert ended.reason == "not done after 700 ms"
    assert 700 <= ended.usage.wall_ms < 10_000
    assert trio.current_time() - began < 20
    assert lab.progress == [0.5]


async def test_a_task_cannot_have_more_memory_than_its_limit(lab: Lab) -> None:
    ended = await lab.do("memory")
    assert ended.outcome == "memory-limit"
    assert "33554432 bytes of memory" in ended.reason
    assert ended.usage.peak_memory > 16 << 20


async def test_a_task_that_writes_too_much_is_stopped(lab: Lab) -> None:
    run = lab.task("fill")
    ended = await lab.run(run)
    assert (ended.outcome, ended.reason) == ("output-limit", "more than 1048576 bytes of output")
    with pytest.raises(OutputRefused, match="more than 1048576 bytes"):
        collect(run.output, bytes_max=run.limits.output)


async def test_output_and_checkpoint_together_are_bounded(lab: Lab) -> None:
    limits = Limits(memory=32 << 20, output=1 << 20, disk=1 << 20, wall_ms=20_000)
    run = lab.task("copy", limits=limits)
    (run.checkpoint / "state").write_bytes(b"x" * ((1 << 20) - 5))
    ended = await lab.run(run)
    assert ended.outcome == "output-limit"
    assert ended.reason == "more than 1048576 bytes in /output and /checkpoint together"


async def test_a_task_that_makes_too_many_files_is_stopped(lab: Lab) -> None:
    ended = await lab.do("files")
    assert (ended.outcome, ended.reason) == ("output-limit", "more than 64 output files")


async def test_a_symbolic_link_is_no_output(lab: Lab) -> None:
    run = lab.task("symlink")
    ended = await lab.run(run)
    assert ended.outcome == "ok"
    with pytest.raises(OutputRefused, match="link is a symbolic link") as refused:
        collect(run.output, bytes_max=run.limits.output)
    assert refused.value.outcome == "failed"


async def test_the_input_cannot_be_changed(lab: Lab) -> None:
    run = lab.task("deface")
    ended = await lab.run(run)
    assert (ended.outcome, ended.exit) == ("ok", 0), ended.log
    assert [(file.name, file.read_text()) for file in run.input.iterdir()] == [("in.txt", "what goes in\n")]


async def test_a_task_sees_its_own_environment_and_nothing_of_ours(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXAPOD_TEST_SECRET", "do-not-tell")
    ended = await lab.do("env", env=(("NEXAPOD_TASK_INDEX", "7"), ("GREETING", "héllo wörld")))
    seen = dict(line.split("=", 1) for line in ended.log.replace("\\x00", "\n").splitlines())
    assert seen["NEXAPOD_TASK_INDEX"] == "7"
    assert seen["GREETING"] == "héllo wörld"
    assert seen["NEXAPOD_PROGRESS"] == "/run/progress"
    assert "do-not-tell" not in ended.log
    if lab.image is None:
        assert len(seen) == 3


async def test_what_a_task_prints_is_kept_bounded_and_escaped(lab: Lab) -> None:
    ended = await lab.do("flood")
    assert ended.outcome == "ok"
    assert ended.log.startswith("begin\\x1b")
    assert ended.log.endswith("\\x1bend")
    assert "bytes left out" in ended.log
    assert "\x1b" not in ended.log
    assert LOG_TAIL_MAX // 2 < len(ended.log.encode()) <= LOG_TAIL_MAX


async def test_the_last_report_has_the_whole_log_and_counts_all_that_was_printed(lab: Lab) -> None:
    ended = await lab.do("flood")
    assert lab.reports[-1].printed == 100_008
    assert lab.reports[-1].log == ended.log


async def test_progress_may_be_a_line_of_the_output(lab: Lab) -> None:
    assert (await lab.do("tell")).outcome == "ok"
    assert lab.progress == [0.25]


async def test_a_task_without_a_sign_of_life_is_ended(lab: Lab) -> None:
    ended = await lab.do(
        "progress_then_spin", limits=Limits(memory=32 << 20, output=1 << 20, wall_ms=20_000, idle_ms=700)
    )
    assert (ended.outcome, ended.reason) == ("idle-limit", "no sign of life for 700 ms")
    assert ended.usage.wall_ms < 15_000


async def test_a_paused_task_uses_no_time(lab: Lab) -> None:
    limits = Limits(memory=32 << 20, output=1 << 20, wall_ms=3_000, idle_ms=2_500)
    run = lab.task("progress_then_spin", limits=limits)
    ends: list[Ended] = []
    assert not await lab.executor.pause(run.label), "no such run yet"

    async def execute() -> None:
        ends.append(await lab.run(run))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(execute)
        await _until(lambda: bool(lab.progress))
        with trio.fail_after(5):
            assert await lab.executor.pause(run.label)
            assert await lab.executor.pause(run.label)
        await trio.sleep(4)  # a pause: longer than the wall limit and the idle limit
        assert ends == []
        with trio.fail_after(5):
            assert await lab.executor.resume(run.label)
            assert await lab.executor.resume(run.label)
    assert ends[0].outcome in ("idle-limit", "wall-limit")
    assert ends[0].usage.wall_ms < 3_900
    assert not await lab.executor.pause(run.label), "it is over"
    assert not await lab.executor.resume(run.label)


async def test_a_paused_task_can_be_cancelled(lab: Lab) -> None:
    run = lab.task("progress_then_spin")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.executor.run, run, lab.reports.append)
        await _until(lambda: bool(lab.progress))
        assert await lab.executor.pause(run.label)
        nursery.cancel_scope.cancel()
    assert lab.leftovers() == []


async def test_cancelling_kills_the_task_and_leaves_nothing(lab: Lab) -> None:
    run = lab.task("progress_then_spin")
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.executor.run, run, lab.reports.append)
        await _until(lambda: bool(lab.progress))
        assert await lab.executor.reap_orphans() == 0, "a run in progress is no orphan"
        assert lab.leftovers() != []
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 20
    assert lab.leftovers() == []
    assert (await lab.do("exit", "0")).outcome == "ok"


async def test_a_run_in_progress_is_no_survivor(lab: Lab) -> None:
    assert await lab.executor.survivors() == frozenset()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.executor.run, lab.task("progress_then_spin"), lab.reports.append)
        await _until(lambda: bool(lab.progress))
        assert await lab.executor.survivors() == frozenset()
        nursery.cancel_scope.cancel()


async def test_runs_at_the_same_time_do_not_meet(lab: Lab) -> None:
    ends: dict[str, Ended] = {}

    async def one(status: str) -> None:
        ends[status] = await lab.do("exit", status)

    async with trio.open_nursery() as nursery:
        for status in ("0", "3", "4", "5"):
            nursery.start_soon(one, status)
    assert {status: ended.exit for status, ended in ends.items()} == {"0": 0, "3": 3, "4": 4, "5": 5}


async def test_a_label_and_a_seed_are_checked(lab: Lab) -> None:
    run = lab.task("exit", "0")
    fields = {name: getattr(run, name) for name in TaskRun.__slots__}
    for wrong in (
        {"label": "../x"},
        {"label": "A"},
        {"seed": b"short"},
        {"env": (("A=B", "c"),)},
        {"command": ("\0",)},
        {"workdir": "\0"},
        {"workdir": "relative"},
    ):
        with pytest.raises(BadRun, match=r"label|seed|environment|zero byte|not absolute"):
            TaskRun(**{**fields, **wrong})


@asynccontextmanager
async def killed_daemon(run: TaskRun, scratch: Path) -> AsyncIterator[list[psutil.Process]]:
    """A daemon that was killed while its task ran: its processes then, without itself."""
    daemon = subprocess.Popen(  # noqa: ASYNC220  (killed below; trio would not let it die alone)
        [sys.executable, "-c", _DAEMON, str(scratch), json.dumps(_plain(run))], stdout=subprocess.PIPE
    )
    try:
        assert daemon.stdout is not None
        with trio.fail_after(30):
            assert await trio.to_thread.run_sync(daemon.stdout.readline) == b"0.5\n"
        sandboxes = [child for child in psutil.Process(daemon.pid).children() if _is_runner(child)]
    finally:
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.wait(timeout=10)
        assert daemon.stdout is not None
        daemon.stdout.close()
    yield sandboxes


async def test_what_a_killed_daemon_leaves_behind_is_found_and_ended(lab: Lab, tmp_path: Path) -> None:
    run, scratch = lab.task("progress_then_spin"), tmp_path / "scratch"
    async with killed_daemon(run, scratch) as sandboxes:
        await _until(lambda: not any(_is_runner(runner) for runner in sandboxes))
        assert await lab.executor.reap_orphans() == 1
        assert lab.leftovers() == []
        assert list(scratch.iterdir()) == []
        assert await lab.executor.reap_orphans() == 0


async def test_what_is_to_be_kept_is_not_reaped_and_its_run_ends_as_it_should(lab: Lab, tmp_path: Path) -> None:
    """A sandbox that outlives its daemon goes on; one that does not is begun anew."""
    run = replace(lab.task("progress_then_spin"), limits=Limits(wall_ms=4_000))
    async with killed_daemon(run, tmp_path / "scratch"):
        kept = await lab.executor.survivors()
        assert kept in (frozenset(), {run.label})
        assert await lab.executor.reap_orphans(kept) == (0 if kept else 1)
        assert await lab.executor.survivors() == kept
        ended = await lab.run(run)
        assert ended.outcome == "wall-limit"
        assert lab.progress == [0.5]
        assert await lab.executor.survivors() == frozenset()


def _plain(run: TaskRun) -> dict[str, Any]:
    return {
        "label": run.label,
        "executor": run.executor,
        "module": run.module and str(run.module),
        "image": run.image,
        "command": run.command,
        "wall_ms": run.limits.wall_ms,
        "directories": [str(run.input), str(run.output), str(run.checkpoint)],
    }


_DAEMON = f"""
import json, sys, trio
from pathlib import Path
from nexapod.executor.contract import TaskRun
from nexapod.executor.docker.sandbox import DockerExecutor
from nexapod.executor.wasm.sandbox import WasmExecutor
from nexapod.protocol.types import Limits

scratch, run = Path(sys.argv[1]), json.loads(sys.argv[2])
wasm = run["executor"] == "wasm"
executor = WasmExecutor(scratch=scratch, cache=None) if wasm else DockerExecutor(home={HOME!r}, scratch=scratch)
task = TaskRun(run["label"], run["executor"], run["module"] and Path(run["module"]), run["image"],
    tuple(run["command"]), (), "", *map(Path, run["directories"]), Limits(wall_ms=run["wall_ms"]), {SEED!r})
trio.run(executor.run, task, lambda report: report.progress and print(report.progress, flush=True))
"""
