"""A container outlives its daemon and, where it may, its engine: nothing is lost, nothing runs twice, nothing hangs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from containers.engine_kit import import_image
from containers.sandbox import (
    HOME,
    LONG,
    Relay,
    Sandbox,
    killed_daemon,
    let_go,
    running,
    state,
    wait_until,
    waiting_task,
)

from nexapod.executor import watch
from nexapod.executor.contract import Ended, TaskRun
from nexapod.executor.docker import engine, life
from nexapod.executor.docker.engine import Container, Engine, EngineError
from nexapod.executor.docker.notes import Notes
from nexapod.executor.docker.sandbox import DockerExecutor


def container_id(sandbox: Sandbox, run: TaskRun) -> str:
    return str(sandbox.client.inspect_container(sandbox.name_of(run))["Id"])


async def test_a_container_whose_daemon_was_killed_goes_on(sandbox: Sandbox) -> None:
    run = waiting_task(sandbox)
    async with killed_daemon(sandbox, run):
        assert await sandbox.executor.survivors() == {run.label}
        assert await sandbox.executor.reap_orphans(frozenset({run.label})) == 0
        began = container_id(sandbox, run)
        ends: list[Ended] = []

        async def go_on() -> None:
            ends.append(await sandbox.run(run))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            await wait_until(lambda: bool(sandbox.reports))
            assert container_id(sandbox, run) == began, "no second container"
            assert await sandbox.executor.survivors() == frozenset(), "it is a run of this daemon now"
            let_go(run)
        assert (ends[0].outcome, ends[0].exit, ends[0].log) == ("failed", 3, "first\nlast\n")
        assert sandbox.reports[-1].progress == 0.5
        assert sandbox.reports[-1].printed == 11
        assert ends[0].usage.peak_memory > 0


async def test_what_ended_while_there_was_no_daemon_keeps_its_result_and_its_own_wall_time(sandbox: Sandbox) -> None:
    run = waiting_task(sandbox, limits=replace(LONG, wall_ms=10_000))
    async with killed_daemon(sandbox, run):
        let_go(run)
        await wait_until(lambda: state(sandbox, run)["Status"] == "exited")
        assert await sandbox.executor.survivors() == {run.label}
        ended = await sandbox.run(run)
        assert (ended.outcome, ended.exit, ended.log) == ("failed", 3, "first\nlast\n")
        assert 0 < ended.usage.wall_ms < 10_000


async def test_wall_time_is_counted_from_the_container_s_own_start(sandbox: Sandbox) -> None:
    run = waiting_task(sandbox, before="sleep 1.5", limits=replace(LONG, wall_ms=3_000))
    async with killed_daemon(sandbox, run):
        began = trio.current_time()
        ended = await sandbox.run(run)
        assert ended.outcome == "wall-limit"
        assert trio.current_time() - began < 2.9
        assert ended.usage.wall_ms >= 3_000


async def test_a_machine_that_slept_did_not_run_the_task(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of day it began hours ago; by the machine's own clock, just now."""
    run = waiting_task(sandbox, limits=replace(LONG, wall_ms=60_000))
    async with killed_daemon(sandbox, run):
        began = Notes.read(sandbox.root / "scratch" / run.label / "notes.json").began
        assert began is not None
        look = Engine.look
        monkeypatch.setattr(Engine, "look", lambda *args: replace(look(*args), started=time.time() - 7_200))
        let_go(run)
        ended = await sandbox.run(run)
        assert (ended.outcome, ended.log) == ("failed", "first\nlast\n")
        assert ended.usage.wall_ms < 30_000


async def test_a_container_that_was_paused_is_a_survivor_and_goes_on(sandbox: Sandbox) -> None:
    run = waiting_task(sandbox)
    async with killed_daemon(sandbox, run):
        sandbox.client.pause(sandbox.name_of(run))
        let_go(run)
        assert await sandbox.executor.survivors() == {run.label}
        assert (await sandbox.run(run)).log == "first\nlast\n"


async def test_the_beginning_of_a_long_log_is_kept_across_daemons_and_all_of_it_counted(sandbox: Sandbox) -> None:
    """More than the engine keeps: its log has been rotated when the second daemon comes."""
    flood = "echo begin; head -c 4000000 /dev/zero | tr '\\0' x; echo; echo flooded; sleep 2.5"
    run = waiting_task(sandbox, before=flood)
    async with killed_daemon(sandbox, run):
        let_go(run)
        ended = await sandbox.run(run)
        assert ended.log.startswith("begin\nxxx")
        assert ended.log.endswith("x\nflooded\nlast\n")
        assert sandbox.reports[-1].printed == 6 + 4_000_001 + 8 + 5


@pytest.mark.parametrize("change", ["killed", "limits", "image", "scratch", "labels"])
async def test_what_cannot_be_trusted_to_be_the_run_is_begun_anew(sandbox: Sandbox, change: str) -> None:
    run = waiting_task(sandbox)
    async with killed_daemon(sandbox, run):
        name, before = sandbox.name_of(run), container_id(sandbox, run)
        match change:
            case "killed":  # as by an engine or a machine that went down
                sandbox.client.kill(name)
                assert await sandbox.executor.survivors() == frozenset()
            case "limits":
                run = replace(run, limits=replace(run.limits, memory=32 << 20))
            case "image":
                run = replace(run, image=import_image(sandbox.client, sandbox.root))
            case "scratch":
                (sandbox.root / "scratch" / run.label).rename(sandbox.root / "elsewhere")
                assert await sandbox.executor.survivors() == frozenset()
            case "labels":  # somebody else's container of that name
                sandbox.client.remove_container(name, force=True)
                none = sandbox.client.create_host_config(network_mode="none")
                sandbox.client.create_container(run.image, ["sleep", "9"], name=name, host_config=none)
                sandbox.client.start(name)
        let_go(run)
        ended = await sandbox.run(run)
        assert (ended.exit, ended.log) == (3, "first\nlast\n")
        ids = {container["Id"] for container in sandbox.client.containers(all=True)}
        assert before not in ids
        if change == "image":
            sandbox.client.remove_image(run.image, force=True)


async def test_survivors_that_nobody_wants_are_reaped(sandbox: Sandbox) -> None:
    run = waiting_task(sandbox)
    async with killed_daemon(sandbox, run):
        assert await sandbox.executor.reap_orphans(frozenset({"ffff"})) == 1
        assert await sandbox.executor.survivors() == frozenset()


# --- the engine ------------------------------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def relayed(sandbox: Sandbox, away_s: float, *, exact_usage: bool = True) -> AsyncIterator[tuple[Relay, Sandbox]]:
    """A sandbox whose engine can vanish."""
    engine_url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not engine_url.startswith("unix://"):
        pytest.skip("the engine is not behind a unix socket")
    relay = Relay(str(sandbox.root / "relay.sock"), engine_url.removeprefix("unix://"))
    executor = DockerExecutor(
        home=HOME,
        scratch=sandbox.root / "scratch",
        url=f"unix://{relay.path}",
        engine_away_s=away_s,
        exact_usage=exact_usage,
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.serve)
            yield relay, replace(sandbox, executor=executor)
            await executor.aclose()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("exact_usage", [True, False])
async def test_an_engine_that_vanishes_costs_the_run_and_its_container_goes_once_it_is_back(
    sandbox: Sandbox, exact_usage: bool
) -> None:
    """Nobody watches it any more, so what is in it is ended at once: by its cgroup, or by its id."""
    async with relayed(sandbox, 1, exact_usage=exact_usage) as (relay, lab):
        run = waiting_task(lab)
        async with running(lab, run) as ends:
            await relay.vanish()
        assert ends[0].outcome == "try-elsewhere"
        assert "container engine" in ends[0].reason
        assert not (await lab.executor.probe()).ok
        await wait_until(lambda: state(sandbox, run)["Status"] == "exited")
        relay.up = True
        assert (await lab.executor.probe()).ok
        assert sandbox.client.containers(all=True, filters={"name": sandbox.name_of(run)}) == []


async def test_a_run_survives_an_engine_that_is_away_for_a_while(sandbox: Sandbox) -> None:
    async with relayed(sandbox, 30) as (relay, lab):
        run = waiting_task(lab)
        async with running(lab, run) as ends:
            for _ in range(2):
                await relay.vanish()
                assert not await lab.executor.pause(run.label), "nobody can be asked"
                relay.up = True
                await wait_until(lambda: bool(relay.connections))
            let_go(run)
        assert (ends[0].outcome, ends[0].exit, ends[0].log) == ("failed", 3, "first\nlast\n")


async def test_what_is_printed_after_a_stream_was_cut_without_a_word_is_heard(sandbox: Sandbox) -> None:
    """The engine is back before anybody misses it: nothing but the end of its stream tells that it was away."""
    async with relayed(sandbox, 30) as (relay, lab):
        run = waiting_task(lab)
        async with running(lab, run) as ends:
            await relay.cut()
            await trio.sleep(10 * life.LATE_S)  # a pause: between the end of the stream and that of the container
            let_go(run)
        assert (ends[0].outcome, ends[0].exit, ends[0].log) == ("failed", 3, "first\nlast\n")


async def test_an_engine_whose_clock_is_ahead_is_listened_to_once_more_and_no_longer(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, follow, followed = Engine.look, Engine.follow, []

    def ahead(*args: Any) -> Container:
        found = look(*args)
        return replace(found, finished=found.finished + 3_600)

    def counted(*args: Any) -> engine.Stream:
        followed.append(args)
        return follow(*args)

    monkeypatch.setattr(Engine, "look", ahead)
    monkeypatch.setattr(Engine, "follow", counted)
    with trio.fail_after(20):
        assert (await sandbox.shell("exit 3")).exit == 3
    assert len(followed) == 1


async def test_a_task_that_has_closed_its_outputs_is_waited_for(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WAIT_SLICE_S", 0.2)
    run = waiting_task(sandbox, before="exec >/dev/null 2>&1")
    async with running(sandbox, run) as ends:
        await trio.sleep(1)  # a pause: several slices of waiting
        assert not ends
        let_go(run)
    assert (ends[0].outcome, ends[0].exit, ends[0].log) == ("failed", 3, "")


async def test_an_engine_that_was_deaf_for_a_moment_is_listened_to_again(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question without an answer, and the stream of what the task prints is closed for fear that it never ends."""
    pings = 0

    def ping(_: Engine) -> None:
        nonlocal pings
        pings += 1
        if pings == 1:
            raise EngineError("it does not answer")

    monkeypatch.setattr(Engine, "ping", ping)
    monkeypatch.setattr(life, "WAIT_SLICE_S", 0.2)
    monkeypatch.setattr(engine, "WAIT_SLICE_S", 0.2)
    run = waiting_task(sandbox)
    async with running(sandbox, run) as ends:
        await wait_until(lambda: pings > 1)
        await trio.sleep(1)  # a pause: for the stream that was closed
        let_go(run)
    assert (ends[0].outcome, ends[0].log) == ("failed", "first\nlast\n")


@pytest.fixture
def out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the task runs, this machine ends a process for want of memory."""
    kills = iter([7, 8])
    monkeypatch.setattr(life, "oom_kills", lambda: next(kills))


@pytest.mark.usefixtures("out_of_memory")
async def test_a_machine_that_runs_out_of_memory_is_no_fault_of_the_task(sandbox: Sandbox) -> None:
    """The kernel ends tasks first, whoever took the memory."""
    ended = await sandbox.shell("kill -9 $$")
    assert (ended.outcome, ended.reason) == ("try-elsewhere", "this machine ran out of memory")


@pytest.mark.usefixtures("out_of_memory")
async def test_a_task_at_its_own_limit_of_memory_is_at_fault_whatever_else_was_ended(sandbox: Sandbox) -> None:
    ended = await sandbox.shell("x=a; while true; do x=$x$x; done")
    assert ended.outcome == "memory-limit"


async def test_a_container_that_somebody_else_killed_is_no_result(sandbox: Sandbox) -> None:
    run = waiting_task(sandbox)
    async with running(sandbox, run) as ends:
        sandbox.client.kill(sandbox.name_of(run))
    assert (ends[0].outcome, ends[0].reason) == ("try-elsewhere", "somebody else ended the container")


async def test_a_task_that_kills_itself_has_failed(sandbox: Sandbox) -> None:
    ended = await sandbox.shell("kill -9 $$")
    assert (ended.outcome, ended.exit, ended.reason) == ("failed", 137, "exit status 137")


async def test_an_image_that_vanished_after_it_was_seen_means_elsewhere(sandbox: Sandbox, tmp_path: Path) -> None:
    image = import_image(sandbox.client, tmp_path)
    assert image in (await sandbox.executor.probe()).images
    assert (await sandbox.run(sandbox.task("true", image=image))).outcome == "ok"
    sandbox.client.remove_image(image, force=True)
    ended = await sandbox.run(sandbox.task("true", image=image))
    assert ended.outcome == "try-elsewhere"
    assert "image" in ended.reason


async def test_a_disk_that_runs_full_means_elsewhere(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "DISK_FREE_MIN", 1 << 62)
    ended = await sandbox.run(waiting_task(sandbox))
    assert (ended.outcome, ended.reason) == ("try-elsewhere", "the disk of this machine is nearly full")
