"""Removing what a task left, whatever that is: directories that it closed to us, nests deeper than a path may be long.

Walks by directory descriptors, two of them at a time, and follows no link, so nothing outside is ever touched. What
cannot be removed is logged, and costs disk until somebody tries again: it is never an exception.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger()

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_HOLD: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path) -> None:
    """Remove a file, or a directory and all below it. Harmless when there is none. Blocks."""
    removal = _Removal()
    try:
        removal.remove(path)
    except OSError as error:
        removal.note(error)
    if removal.left:
        # Once, however much is left: a task must not fill the log either.
        log.warning("not_removed", path=str(path), left=removal.left, error=removal.trouble)


@dataclass(frozen=True, slots=True)
class _Level:
    """A directory whose content is being removed."""

    name: str
    siblings: list[str]
    """Directories beside it that are still to go."""
    above: tuple[int, int]
    """Device and inode of the directory that it lies in: the way back up must lead there."""


class _Removal:
    """Depth first, without recursion: a task may nest directories deeper than Python's stack, or a path, allows."""

    def __init__(self) -> None:
        self.left = 0
        self.trouble = ""
        """Why the first of what is left could not be removed."""

    def note(self, error: OSError) -> None:
        self.left += 1
        self.trouble = self.trouble or str(error)

    def remove(self, path: Path) -> None:
        try:
            fd = os.open(path.parent, _OPEN)
        except FileNotFoundError:
            return
        levels: list[_Level] = []
        try:
            pending = self._directories(fd, [path.name])
            while pending or levels:
                if not pending:
                    level = levels.pop()
                    fd = _replace(fd, _open_above(fd, level))
                    pending = level.siblings
                    self._remove_empty(level.name, fd)
                    continue
                level = _Level(pending.pop(), pending, _identity(fd))
                try:
                    fd = _replace(fd, _open_writable(level.name, fd))
                except OSError as error:
                    self.note(error)
                    continue
                levels.append(level)
                pending = self._directories(fd, self._names(fd))
        finally:
            os.close(fd)

    def _directories(self, fd: int, names: Iterable[str]) -> list[str]:
        """Remove the named entries of a directory, but for directories: those come back."""
        found = []
        for name in names:
            try:
                os.unlink(name, dir_fd=fd)
            except FileNotFoundError:
                continue
            except IsADirectoryError:
                found.append(name)
            except OSError as error:
                self.note(error)
        return found

    def _names(self, fd: int) -> list[str]:
        try:
            return os.listdir(fd)
        except OSError as error:
            self.note(error)
            return []

    def _remove_empty(self, name: str, above: int) -> None:
        try:
            os.rmdir(name, dir_fd=above)
        except OSError as error:
            self.note(error)


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _open_writable(name: str, above: int) -> int:
    """A directory to read and to remove from, whatever mode a task gave it."""
    held = os.open(name, _HOLD, dir_fd=above)  # needs no permission of the directory itself
    try:
        with suppress(PermissionError):  # not ours: if that matters, what is in it cannot be removed, and says so
            os.chmod(f"/proc/self/fd/{held}", 0o700)
        return os.open(".", _OPEN, dir_fd=held)
    finally:
        os.close(held)


def _open_above(fd: int, level: _Level) -> int:
    above = os.open("..", _OPEN, dir_fd=fd)
    if _identity(above) != level.above:
        os.close(above)
        raise OSError(f"{level.name!r} was moved elsewhere while its content was removed")
    return above
