"""The files that a job file names: hashed, and planned to be uploaded. Its [inputs] table: files and folders.

A folder is what it holds: each regular file below it. What is a link there is refused: whether the link or what it
leads to is meant, nobody can tell.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from nexapod.cli.hashing import hash_file
from nexapod.cli.jobfile_values import check_path
from nexapod.config.document import Document, Table
from nexapod.protocol import limits
from nexapod.protocol.primitives import BlobRef

FOLDER_ENTRIES_MAX: Final = 10_000
"""Names looked at below one folder."""
SOURCE_BYTES_MAX: Final = 4096
HERE: Final = "."
"""As a path below /input: /input itself."""


@dataclass(frozen=True, slots=True)
class Upload:
    """Bytes that the daemon must hold before the job: those of a file, or some made here. `name` is for people."""

    name: str
    source: Path | bytes
    ref: BlobRef


Told: TypeAlias = Callable[[int], None]
"""Hears how many bytes more have been read."""
Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Told]]
"""What shows how far the reading of a file is: (what, bytes)."""


def no_progress(what: str, total: int) -> AbstractContextManager[Told]:
    return nullcontext(lambda count: None)


@dataclass
class Reading:
    """One job file on its way to a plan."""

    document: Document
    folder: Path
    progress: Progress
    uploads: dict[BlobRef, Upload] = field(default_factory=dict)
    archive: Path | None = None
    """Of the container image, when the job file names one."""
    image_held: bool = False
    remarks: list[str] = field(default_factory=list)
    """What was found in files, for people."""

    def keep(self, name: str, source: Path | bytes, ref: BlobRef) -> str:
        self.uploads.setdefault(ref, Upload(name, source, ref))
        return str(ref)


class _Unfit(Exception):
    """A file or folder cannot be an input. The message says why."""


def plan_file(table: Table, key: str, source: str, reading: Reading, *, bytes_max: int = limits.BLOB_BYTES_MAX) -> str:
    """Hash a file beside the job file and plan its upload. "" when there is a problem, which is noted."""
    path = find_file(table, key, source, reading)
    return _planned(table, key, source, path, reading, bytes_max) if path else ""


def find_file(table: Table, key: str, source: str, reading: Reading) -> Path | None:
    """Where a file beside the job file is. None when there is a problem, which is noted."""
    if not source:
        if key in table and table.raw(key) == "":
            table.problem(key, "it names no file")
        return None
    path = reading.folder / source
    try:
        if path.is_file():
            return path
        what = "is a folder, not a file" if path.is_dir() else "is not a regular file"
        table.problem(key, f"{source!r} {what if path.exists() else 'does not exist'} (looked for {path})")
    except OSError as error:
        table.problem(key, f"{source!r} cannot be read: {error.strerror}")
    return None


def _planned(
    table: Table, key: str, source: str, path: Path, reading: Reading, bytes_max: int = limits.BLOB_BYTES_MAX
) -> str:
    try:
        if path.stat().st_size > bytes_max:
            table.problem(key, f"{source!r} is larger than {bytes_max >> 20} MiB")
            return ""
        with reading.progress(f"reading {source}", path.stat().st_size) as told:
            return reading.keep(source, path, hash_file(path, told))
    except OSError as error:
        table.problem(key, f"{source!r} cannot be read: {error.strerror}")
        return ""


# --- [inputs] ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Found:
    """A file that is to lie below /input, not read yet. `key` is its entry in the table."""

    table: Table
    key: str
    path: Path


def find_inputs(table: Table, reading: Reading) -> dict[str, Found]:
    """What is to lie below /input, by its path there: in the order of the table, a folder's files in that of paths."""
    found: dict[str, Found] = {}
    for key in table.data:
        for target, path in _sources(table, key, reading):
            if len(found) >= limits.INPUTS_MAX:
                table.problem("", f"there are more than {limits.INPUTS_MAX} input files: {_PACK}")
                return found
            clash = clashing(target, found)
            if clash is None:
                found[target] = Found(table, key, path)
            else:
                what = "is there twice" if clash == target else f"and {clash!r} cannot both be: one is a folder"
                table.problem(key, f"the input {target!r} {what}")
    return found


def plan_inputs(found: dict[str, Found], reading: Reading) -> list[dict[str, str]]:
    """[{path, ref}] of what find_inputs found; the uploads are planned."""
    return [
        {"path": target, "ref": _planned(file.table, file.key, _shown(file.path, reading), file.path, reading)}
        for target, file in found.items()
    ]


def _shown(path: Path, reading: Reading) -> str:
    return str(path.relative_to(reading.folder)) if path.is_relative_to(reading.folder) else str(path)


_PACK: Final = "pack them into one (tar -cf DATA.tar FOLDER) and let the task unpack it"


def _sources(table: Table, key: str, reading: Reading) -> list[tuple[str, Path]]:
    """The files of one entry: (path below /input, file)."""
    source = table.text(key, bytes_max=SOURCE_BYTES_MAX)
    folder = reading.folder / source
    if source and os.path.isdir(folder):  # unlike Path's, never an error
        return _folder(table, key, source, folder)
    if source.endswith("/"):
        table.problem(key, f"{source!r} is not a folder (looked for {folder})")
        return []
    if not check_path(table, key, key):
        return []
    path = find_file(table, key, source, reading)
    return [(key, path)] if path else []


def _folder(table: Table, key: str, source: str, folder: Path) -> list[tuple[str, Path]]:
    if key != HERE and not check_path(table, key, key):
        return []
    try:
        paths = sorted(_walk(folder), key=lambda path: path.relative_to(folder).parts)
    except _Unfit as error:
        table.problem(key, f"the folder {source!r} {error}")
        return []
    except OSError as error:
        table.problem(key, f"the folder {source!r} cannot be read: {error.filename}: {error.strerror}")
        return []
    if not paths:
        table.problem(key, f"the folder {source!r} holds no file")
    found = []
    for path in paths:
        inside = path.relative_to(folder).as_posix()
        target = inside if key == HERE else f"{key}/{inside}"
        if check_path(table, key, target):
            found.append((target, path))
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """The regular files below a folder. Raises _Unfit, OSError."""
    seen = files = 0
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                seen += 1
                if seen > FOLDER_ENTRIES_MAX:
                    raise _Unfit(f"holds more than {FOLDER_ENTRIES_MAX} names: {_PACK}")
                if entry.is_symlink():
                    raise _Unfit(
                        f"holds a link, {str(Path(entry.path).relative_to(folder))!r}: put the file there instead"
                    )
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    files += 1
                    yield Path(entry.path)
                else:
                    raise _Unfit(f"holds {str(Path(entry.path).relative_to(folder))!r}, which is no regular file")
                if files > limits.INPUTS_MAX:
                    raise _Unfit(f"holds more than {limits.INPUTS_MAX} files: {_PACK}")


def clashing(target: str, taken: Iterable[str]) -> str | None:
    """The path among `taken` that is the same, or lies below or above."""
    for other in taken:
        if target == other or target.startswith(other + "/") or other.startswith(target + "/"):
            return other
    return None
