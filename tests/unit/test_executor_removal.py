"""nexapod.executor.removal: whatever a task leaves goes, nothing else does, and none of it ends a daemon."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from user_kit import as_an_ordinary_user

from nexapod.executor.removal import remove_tree


def test_directories_that_a_task_has_closed_are_removed_with_all_that_is_in_them(tmp_path: Path) -> None:
    def leave_and_remove() -> None:
        task = Path("task")
        for name, mode in (("shut", 0), ("unwritable", 0o500), ("unlisted", 0o300)):
            (task / name / "deep").mkdir(parents=True)
            (task / name / "deep" / "file").write_text("x")
            (task / name / "deep").chmod(mode)
            (task / name).chmod(mode)
        task.chmod(0)
        remove_tree(task)

    as_an_ordinary_user(tmp_path, leave_and_remove)
    assert list(tmp_path.iterdir()) == []


def test_nothing_outside_is_touched(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir(mode=0o750)
    (tmp_path / "outside" / "file").write_text("kept")
    task = tmp_path / "task"
    task.mkdir()
    (task / "folder").symlink_to(tmp_path / "outside")
    (task / "file").symlink_to(tmp_path / "outside" / "file")
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    remove_tree(task)
    remove_tree(tmp_path / "link")
    assert [entry.name for entry in tmp_path.iterdir()] == ["outside"]
    assert (tmp_path / "outside" / "file").read_text() == "kept"
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o750


def test_a_nest_deeper_than_a_path_may_be_long_is_removed(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for name in ["task"] + ["d" * 100] * 1500:
        os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    try:
        remove_tree(tmp_path / "task")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "task"], check=True)  # pytest itself would stumble over it


@pytest.mark.parametrize("name", ["nothing", "nowhere/nothing", "file"])
def test_nothing_and_a_plain_file_are_removed_as_well(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    remove_tree(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_what_cannot_be_removed_is_told_once_and_the_rest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = os.unlink

    def refuse(path: str, *, dir_fd: int) -> None:
        if path.startswith("stuck"):
            raise PermissionError(1, "Operation not permitted", path)
        unlink(path, dir_fd=dir_fd)

    task = tmp_path / "task"
    for name in ("a/stuck", "b/file", "stuck-too"):
        (task / name).parent.mkdir(parents=True, exist_ok=True)
        (task / name).write_text("x")
    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(os, "unlink", refuse)
        remove_tree(task)
    assert sorted(entry.name for entry in task.rglob("*")) == ["a", "stuck", "stuck-too"]
    (told,) = logs
    assert told["left"] == 4, "two files, and the two folders around them"
