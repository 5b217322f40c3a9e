"""What a task left in a directory: checked names and sizes, within limits. The task may be hostile.

Walks by directory descriptors and never follows a link, so nothing outside the directory is ever opened or listed, also
while the task still runs and changes it. Does not read, hash or move a file: that is for whoever stores them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from nexapod.executor.capture import escape, reason_text
from nexapod.protocol.errors import PeerError
from nexapod.protocol.limits import OUTPUT_FILES_MAX
from nexapod.protocol.wire import fields

DEPTH_MAX: Final = 16
"""Directories within directories."""
DIRECTORIES_MAX: Final = 256

_PATH = fields.PATH
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One regular file: `path` relative and POSIX, as the protocol spells it; bytes."""

    path: str
    directory: Path
    """What it was found below."""
    size: int
    state: tuple[int, ...]
    """Changes with the content: device, inode, and times of change (ns), of which a program can set only the first."""

    @property
    def source(self) -> Path:
        """Where it lies, for people; and for nobody to open while the task may put links in its way."""
        return self.directory / self.path

    def open(self) -> int:
        """A descriptor for reading, of a regular file below the directory: no link on the way is followed. Raises
        OSError."""
        head, slash, name = self.path.rpartition("/")
        folder = _open_below(self.directory, head + slash)
        try:
            fd = os.open(name, _OPEN_FILE, dir_fd=folder)
        finally:
            os.close(folder)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file any more", str(self.source))


@dataclass(frozen=True, slots=True)
class Left:
    """What lies in a directory now: bytes, files, and when the newest of them was written (ns)."""

    size: int = 0
    files: int = 0
    newest_ns: int = 0


class OutputRefused(Exception):
    """What a task left cannot be its result. `outcome` says whether it was too much, or not plain files."""

    def __init__(self, outcome: Literal["output-limit", "failed"], reason: str) -> None:
        self.outcome: Literal["output-limit", "failed"] = outcome
        self.reason = reason_text(reason)
        super().__init__(self.reason)


def collect(directory: Path, *, bytes_max: int, files_max: int = OUTPUT_FILES_MAX) -> list[OutputFile]:
    """The regular files below `directory`, sorted by path.

    Raises OutputRefused: over a limit, or anything but plain files and directories with plain names.
    """
    found: list[OutputFile] = []
    total = 0
    for relative, info in _walk(directory):
        _refuse_irregular(relative, info)
        total += info.st_size
        state = (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns)
        found.append(OutputFile(_checked_path(relative), directory, info.st_size, state))
        _refuse_excess(total, len(found), bytes_max, files_max)
    return sorted(found, key=lambda file: file.path)


def measure(
    directory: Path,
    *,
    bytes_max: int,
    files_max: int = OUTPUT_FILES_MAX,
    follow: Callable[[int], None] | None = None,
) -> Left:
    """While a task still writes: raises OutputRefused as soon as it has left too much. Names and kinds come later.

    `follow` is called with a descriptor of each directory, before what is in it is counted.
    """
    total = count = newest_ns = 0
    for count, (_, info) in enumerate(_walk(directory, follow), 1):
        total += info.st_size
        newest_ns = max(newest_ns, info.st_mtime_ns)
        _refuse_excess(total, count, bytes_max, files_max)
    return Left(total, count, newest_ns)


def _refuse_irregular(relative: str, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(info.st_mode) else "no regular file"
        raise OutputRefused("failed", f"output {_shown(relative)} is {kind}")


def _refuse_excess(total: int, count: int, bytes_max: int, files_max: int) -> None:
    if count > files_max:
        raise OutputRefused("output-limit", f"more than {files_max} output files")
    if total > bytes_max:
        raise OutputRefused("output-limit", f"more than {bytes_max} bytes of output")


def _checked_path(relative: str) -> str:
    try:
        return _PATH.decode(relative)
    except PeerError as error:
        raise OutputRefused("failed", f"output name {_shown(relative)}: {error}") from None


def _shown(relative: str) -> str:
    return escape(os.fsencode(relative))[:120]


def _walk(directory: Path, follow: Callable[[int], None] | None = None) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry that is not a directory, with its lstat. A name that vanishes meanwhile is skipped."""
    pending: list[str] = [""]
    seen = 1
    while pending:
        prefix = pending.pop()
        for name, info in _entries(directory, prefix, follow):
            relative = prefix + name
            if not stat.S_ISDIR(info.st_mode):
                yield relative, info
                continue
            seen += 1
            if seen > DIRECTORIES_MAX or relative.count("/") >= DEPTH_MAX:
                raise OutputRefused("output-limit", f"over {DIRECTORIES_MAX} directories or {DEPTH_MAX} deep")
            pending.append(relative + "/")


def _entries(
    directory: Path, prefix: str, follow: Callable[[int], None] | None
) -> Iterator[tuple[str, os.stat_result]]:
    try:
        fd = _open_below(directory, prefix)
    except PermissionError:
        # Where tasks run as our own user, they can close any directory to us, the top one too.
        where = f"output directory {_shown(prefix)}" if prefix else "the directory"
        raise OutputRefused("failed", f"{where} cannot be read") from None
    except (FileNotFoundError, NotADirectoryError):
        # The task removed or replaced it meanwhile. In the top directory that is our own mistake.
        if not prefix:
            raise
        return
    try:
        if follow:
            follow(fd)
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    yield entry.name, entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
    finally:
        os.close(fd)


def _open_below(directory: Path, prefix: str) -> int:
    """A descriptor of directory/prefix, each step opened from the one before, so that no link is followed."""
    fd = os.open(directory, _OPEN)
    for part in prefix.split("/")[:-1]:
        try:
            deeper = os.open(part, _OPEN, dir_fd=fd)
        finally:
            os.close(fd)
        fd = deeper
    return fd
