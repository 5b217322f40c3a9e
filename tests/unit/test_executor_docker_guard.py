"""nexapod.executor.docker.guard and guarding, as far as no container engine is needed: who acts when."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest
import structlog.testing

from nexapod.executor.docker import guard, guarding
from nexapod.executor.docker.engine import EngineError
from nexapod.executor.docker.guarding import Guard

HOME = "0011223344556677"


def guard_in(folder: Path) -> Guard:
    return Guard(folder / "docker.lock", HOME, folder / "docker", f"unix://{folder}/no-engine")


def locked(path: Path, text: bytes) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.pwrite(descriptor, text, 0)
    return descriptor


async def test_a_guard_stands_once_and_ends_with_its_daemon(tmp_path: Path) -> None:
    one = guard_in(tmp_path)
    await one.stand()
    process = one._process
    assert process is not None
    await one.stand()
    assert one._process is process
    assert process.poll() is None
    assert (tmp_path / "docker.lock").read_bytes() == b"%d\n" % os.getpid()
    one.close(done=True)
    assert process.returncode == 0
    one.close(done=True)
    other = guard_in(tmp_path)
    await other.stand()
    other.close(done=True)


async def test_a_daemon_waits_for_a_guard_that_is_at_work_and_says_so_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "WAIT_S", 0.2)
    held = locked(tmp_path / "docker.lock", b"1\n")
    with pytest.raises(EngineError, match="still at work"):
        await guard_in(tmp_path).stand()
    os.close(held)
    with pytest.raises(EngineError, match="no guard can be set"):
        await guard_in(tmp_path / "missing").stand()


async def test_what_a_former_guard_did_is_told(tmp_path: Path) -> None:
    (tmp_path / "docker.said").write_text("froze this\nfroze that\n")
    one = guard_in(tmp_path)
    with structlog.testing.capture_logs() as logs:
        await one.stand()
    assert [entry["said"] for entry in logs] == ["froze this", "froze that"]
    assert (tmp_path / "docker.said").read_bytes() == b""
    one.close(done=True)


async def test_a_daemon_that_could_not_remove_everything_leaves_its_guard_behind(tmp_path: Path) -> None:
    one = guard_in(tmp_path)
    await one.stand()
    process = one._process
    assert process is not None
    one.close(done=False)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_a_guard_does_nothing_once_another_daemon_is_there(tmp_path: Path) -> None:
    lock = tmp_path / "docker.lock"
    held = locked(lock, b"4711\n")
    assert guard._hold(str(lock), gone=4710) is None
    os.close(held)
    free = guard._hold(str(lock), gone=4710)
    assert free is not None
    os.close(free)


def test_the_lock_of_a_dying_daemon_is_waited_for_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "docker.lock"
    held = locked(lock, b"4711\n")
    timer = threading.Timer(0.2, os.close, (held,))
    timer.start()
    found = guard._hold(str(lock), gone=4711)
    assert found is not None
    monkeypatch.setattr(guard, "DYING_S", 0.1)
    assert guard._hold(str(lock), gone=4711) is None, "somebody holds it all the same"
    os.close(found)
    timer.join()
