"""A daemon that was killed leaves nothing running that nobody watches."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import psutil
import pytest
import structlog.testing
import trio
from containers.sandbox import HOME, Sandbox, killed_daemon, let_go, running, state, wait_until, waiting_task

from nexapod.executor.docker.notes import Notes, notes_of
from nexapod.executor.docker.sandbox import DockerExecutor


@pytest.fixture
async def guarded(sandbox: Sandbox) -> AsyncIterator[Sandbox]:
    await sandbox.executor.aclose()
    sandbox.executor = DockerExecutor(home=HOME, scratch=sandbox.root / "scratch", guarded=True)
    yield sandbox
    await sandbox.executor.aclose()
    await wait_until(lambda: not guards(sandbox))


def guards(sandbox: Sandbox) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if "nexapod.executor.docker.guard" in line and str(sandbox.root / "scratch") in line:
            found.append(process)
    return [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]


def begin_guard(sandbox: Sandbox, keep_s: float = 600.0, lock: str = "scratch.lock") -> subprocess.Popen[bytes]:
    """One whose daemon is gone already."""
    code = (
        "import sys; from nexapod.executor.docker import guard;"
        f"guard.KEEP_S, guard.LOOK_EVERY_S, guard.DYING_S = {keep_s}, 0.1, 0.5; guard.main(1, *sys.argv[1:])"
    )
    scratch = sandbox.root / "scratch"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(sandbox.root / lock), HOME, str(scratch)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


async def said(guard: subprocess.Popen[bytes]) -> str:
    with trio.fail_after(30):
        _, words = await trio.to_thread.run_sync(guard.communicate)
    return str(words.decode())


async def test_the_containers_of_a_killed_daemon_stand_still_until_the_next_one_takes_them_up(
    guarded: Sandbox,
) -> None:
    run = waiting_task(guarded)
    async with killed_daemon(guarded, run, guarded=True):
        await wait_until(lambda: state(guarded, run)["Status"] == "paused")
        notes = notes_of(guarded.root / "scratch" / run.label)
        await wait_until(lambda: Notes.read(notes).paused_since is not None)
        let_go(run)
        await trio.sleep(1.0)  # a pause: nothing is to happen
        assert state(guarded, run)["Status"] == "paused"
        assert await guarded.executor.survivors() == {run.label}
        with structlog.testing.capture_logs() as logs:
            ended = await guarded.run(run)
        assert (ended.outcome, ended.exit, ended.log) == ("failed", 3, "first\nlast\n")
        told = [entry["said"] for entry in logs if entry["event"] == "guard_acted"]
        assert told == [f"froze {guarded.name_of(run)}: its daemon is gone"]
        await wait_until(lambda: len(guards(guarded)) == 1)  # the former one has seen that it is not needed any more


async def test_time_in_which_it_stood_still_is_not_the_tasks(guarded: Sandbox) -> None:
    run = waiting_task(guarded)
    async with killed_daemon(guarded, run, guarded=True):
        notes = notes_of(guarded.root / "scratch" / run.label)
        await wait_until(lambda: Notes.read(notes).paused_since is not None)
        began = Notes.read(notes).began
        assert began is not None
        await trio.sleep(2.0)  # a pause: time is to pass
        let_go(run)
        ended = await guarded.run(run)
        assert ended.exit == 3
        assert ended.usage.wall_ms / 1000 < time.monotonic() - began - 1.9


async def test_a_daemon_that_ends_in_good_order_takes_its_guard_with_it(guarded: Sandbox) -> None:
    run = waiting_task(guarded)
    async with running(guarded, run):
        assert len(guards(guarded)) == 1
        let_go(run)
    await guarded.executor.aclose()
    assert guards(guarded) == []
    assert (guarded.root / "scratch.said").read_bytes() == b""


async def test_a_guard_that_was_killed_is_replaced(guarded: Sandbox) -> None:
    run = waiting_task(guarded)
    async with running(guarded, run):
        [first] = guards(guarded)
        first.kill()
        await wait_until(lambda: not guards(guarded))
        assert (await guarded.executor.probe()).ok
        assert len(guards(guarded)) == 1
        let_go(run)


async def test_what_nobody_takes_up_is_removed_and_what_has_ended_is_kept(sandbox: Sandbox) -> None:
    going, over = waiting_task(sandbox), waiting_task(sandbox)
    async with killed_daemon(sandbox, going), killed_daemon(sandbox, over):
        let_go(over)
        await wait_until(lambda: state(sandbox, over)["Status"] == "exited")
        words = await said(begin_guard(sandbox, keep_s=0.5))
        assert f"froze {sandbox.name_of(going)}" in words
        assert f"removed {sandbox.name_of(going)}" in words
        assert sandbox.name_of(over) not in words
        assert await sandbox.executor.survivors() == {over.label}
        assert (await sandbox.run(over)).exit == 3
        let_go(going)
        assert (await sandbox.run(going)).exit == 3, "begun anew"


async def test_what_is_left_of_a_home_that_was_removed_is_removed_at_once(sandbox: Sandbox) -> None:
    run = waiting_task(sandbox)
    async with killed_daemon(sandbox, run):
        words = await said(begin_guard(sandbox, lock="removed/scratch.lock"))
        assert f"removed {sandbox.name_of(run)}" in words
        let_go(run)
        assert (await sandbox.run(run)).exit == 3, "begun anew"


async def test_a_guard_touches_nothing_once_another_daemon_is_there(sandbox: Sandbox) -> None:
    run = waiting_task(sandbox)
    async with killed_daemon(sandbox, run):
        lock = os.open(sandbox.root / "scratch.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.pwrite(lock, b"%d\n" % os.getpid(), 0)
            assert await said(begin_guard(sandbox)) == ""
        finally:
            os.close(lock)
        assert state(sandbox, run)["Status"] == "running"
        let_go(run)
        assert (await sandbox.run(run)).exit == 3


async def test_a_guard_that_is_told_to_end_freezes_first(sandbox: Sandbox) -> None:
    run = waiting_task(sandbox)
    async with killed_daemon(sandbox, run):
        guard = begin_guard(sandbox)
        await wait_until(lambda: state(sandbox, run)["Status"] == "paused")
        guard.send_signal(signal.SIGTERM)
        assert "froze" in await said(guard)
        assert state(sandbox, run)["Status"] == "paused"
        let_go(run)
        assert (await sandbox.run(run)).exit == 3


async def test_without_an_engine_a_guard_says_so_and_asks_again(sandbox: Sandbox) -> None:
    guard = subprocess.Popen(  # noqa: ASYNC220  (ended below)
        [
            *(sys.executable, "-I", "-m", "nexapod.executor.docker.guard", "1"),
            *(str(sandbox.root / "scratch.lock"), HOME, str(sandbox.root / "scratch"), f"unix://{sandbox.root}/none"),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert guard.stderr is not None
    with trio.fail_after(30):
        assert b"does not answer" in await trio.to_thread.run_sync(guard.stderr.readline)
    guard.send_signal(signal.SIGTERM)
    await said(guard)
