"""When something is written: told once for each time, and only for what is followed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import trio
from structlog.testing import capture_logs

from nexapod.executor import writes as module
from nexapod.executor.writes import Writes, writes


@pytest.fixture
def told() -> Iterator[Writes]:
    told = writes()
    assert told, "needs Linux"
    yield told
    told.close()


def follow(told: Writes, directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        told.follow(fd)
    finally:
        os.close(fd)


async def is_told(told: Writes) -> bool:
    with trio.move_on_after(0.05):
        await told.wait()
        return True
    return False


def truncated(directory: Path) -> None:
    os.truncate(directory / "old", 1 << 20)


def hidden(directory: Path) -> None:
    with (directory / "old").open("ab") as file:
        (directory / "old").unlink()
        file.write(b"x")


WAYS: dict[str, Callable[[Path], object]] = {
    "written": lambda directory: (directory / "old").write_bytes(b"x"),
    "truncated": truncated,
    "made": lambda directory: (directory / "new").touch(),
    "linked": lambda directory: (directory / "new").symlink_to("anywhere"),
    "moved": lambda directory: (directory / "elsewhere").rename(directory / "here"),
    "folder": lambda directory: (directory / "folder").mkdir(),
    "hidden": hidden,
}


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_to_take_room_is_told(told: Writes, tmp_path: Path, way: str) -> None:
    for name in ("old", "elsewhere"):
        (tmp_path / name).write_bytes(b"long before")
    follow(told, tmp_path)
    assert not await is_told(told)
    WAYS[way](tmp_path)
    assert await is_told(told)
    assert not await is_told(told), "once"


async def test_reading_is_not_told(told: Writes, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"x")
    follow(told, tmp_path)
    (tmp_path / "old").read_bytes()
    os.listdir(tmp_path)
    assert not await is_told(told)


async def test_what_is_followed_twice_is_told_once(told: Writes, tmp_path: Path) -> None:
    for _ in range(3):
        follow(told, tmp_path)
    (tmp_path / "new").touch()
    assert await is_told(told)
    assert not await is_told(told)


def test_a_task_cannot_use_up_what_the_kernel_follows(
    told: Writes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By directories that it removes and keeps open."""
    monkeypatch.setattr(module, "WATCHES_MAX", 8)
    follow(told, tmp_path)
    held = []
    for name in range(20):
        follow(told, tmp_path)  # as every look does
        (tmp_path / str(name)).mkdir()
        held.append(os.open(tmp_path / str(name), os.O_RDONLY))
        told.follow(held[-1])
        (tmp_path / str(name)).rmdir()
    watches = Path(f"/proc/self/fdinfo/{told._inotify.fileno()}").read_text().count("inotify wd")
    for fd in held:
        os.close(fd)
    assert watches == 8


async def test_a_flood_of_events_is_thrown_away(told: Writes, tmp_path: Path) -> None:
    follow(told, tmp_path)
    for name in range(20_000):  # more than the kernel keeps
        (tmp_path / str(name)).touch()
    times = 0
    while await is_told(told):
        times += 1
    assert 1 <= times < 5


def refuse(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EMFILE, "no more of them")


def test_a_kernel_that_has_none_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INotify", refuse)
    with capture_logs() as logged:
        assert writes() is None
    assert [entry["event"] for entry in logged] == ["writes_not_followed"]


async def test_a_directory_that_cannot_be_followed_is_said_once(told: Writes, tmp_path: Path) -> None:
    with capture_logs() as logged:
        for _ in range(3):
            told.follow(-1)
    assert [entry["event"] for entry in logged] == ["writes_not_followed"]
    follow(told, tmp_path)
    (tmp_path / "new").touch()
    assert await is_told(told), "the others are"
