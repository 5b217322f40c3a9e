"""Folders and archives as one blob: a manifest that names the blob of each file.

    msgpack(["nexapod-tree", 1, [[path, executable, digest, size], ...]])      sorted by the bytes of the path

The same files make the same blob, whether they came from a folder or an archive: owners, times and empty folders are
left out. Names are never trusted: not those of an archive, and not those of a manifest that another peer made. Pure but
for files; does not know where blobs are, and is given ways to put and read them. Blocking.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

from nexapod.blobs.errors import BlobError, disk_errors
from nexapod.protocol.errors import PeerError
from nexapod.protocol.limits import PATH_MAX
from nexapod.protocol.primitives import BlobRef
from nexapod.protocol.wire import fields

MAGIC: Final = "nexapod-tree"
VERSION: Final = 1
ENTRIES_MAX: Final = 100_000
MANIFEST_BYTES_MAX: Final = 32 << 20
HEADER_BYTES_MAX: Final = 64 << 10
"""A name or an extended header in a tar archive: read into memory as a whole."""
_PATH = fields.PATH
_BLOB = fields.BLOB
_TAR_HEADERS: Final = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

Put: TypeAlias = Callable[[IO[bytes], int], BlobRef]
"""Stores so many bytes of a file."""
Read: TypeAlias = Callable[[BlobRef], Iterator[bytes]]
"""The bytes of a blob, checked."""


class TreeRefused(BlobError):
    """A folder, archive or manifest that cannot be a tree. The message says what of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a tree."""

    path: str
    executable: bool
    blob: BlobRef


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an archive or a folder may hold: what says little of itself can unpack to much."""

    entries: int = ENTRIES_MAX
    bytes: int = 64 << 30


# --- the manifest --------------------------------------------------------------------------------------------------
def encode(entries: Iterable[Entry]) -> bytes:
    """The manifest of a tree. Raises TreeRefused for entries that cannot be one."""
    ordered = sorted(entries, key=lambda entry: entry.path.encode("utf-8", "surrogatepass"))
    _check(ordered)
    rows = [[entry.path, entry.executable, entry.blob.digest, entry.blob.size] for entry in ordered]
    data = fields.pack([MAGIC, VERSION, rows])
    if len(data) > MANIFEST_BYTES_MAX:
        raise TreeRefused(f"the list of its files has more than {MANIFEST_BYTES_MAX} bytes: pack some of them together")
    return data


def decode(data: bytes) -> list[Entry]:
    """The entries of a manifest, from any bytes. Raises TreeRefused."""
    try:
        raw = fields.unpack(data, MANIFEST_BYTES_MAX)
        if type(raw) is not list or len(raw) != 3 or raw[0] != MAGIC:
            raise TreeRefused("this blob is no tree")
        if raw[1] != VERSION:
            raise TreeRefused("this tree is of a newer version: update NEXAPod")
        if type(raw[2]) is not list or len(raw[2]) > ENTRIES_MAX:
            raise TreeRefused("this tree's list of files is malformed, or too long")
        entries = [_entry(row) for row in raw[2]]
    except PeerError as error:
        raise TreeRefused(f"this tree is malformed: {error.detail or error.rule}") from None
    _check(entries)
    if fields.pack([MAGIC, VERSION, raw[2]]) != data:
        raise TreeRefused("this tree is not written in the one way in which trees are")
    return entries


def is_tree(start: bytes) -> bool:
    """Whether a blob that begins like this is meant as a tree."""
    return start.startswith(fields.pack([MAGIC, VERSION, []])[: len(MAGIC) + 3])


def _entry(row: Any) -> Entry:
    if type(row) is not list or len(row) != 4:
        raise TreeRefused("this tree is malformed: a file is a path, a mark, a digest and a size")
    return Entry(_PATH.decode(row[0]), fields.BOOL.decode(row[1]), _BLOB.decode(row[2:]))


def _check(entries: list[Entry]) -> None:
    if len(entries) > ENTRIES_MAX:
        raise TreeRefused(f"it has more than {ENTRIES_MAX} files: pack some of them together")
    before: bytes | None = None
    files = {entry.path for entry in entries}
    for entry in entries:
        key = safe_path(entry.path).encode("utf-8")
        if before is not None and key <= before:
            raise TreeRefused(f"{entry.path!r} is there twice, or out of order")
        before = key
        parents = entry.path.split("/")[:-1]
        if any("/".join(parents[: depth + 1]) in files for depth in range(len(parents))):
            raise TreeRefused(f"{entry.path!r} is inside of what is a file itself")


def safe_path(path: str) -> str:
    """The path, if it is one that stays below a folder. Raises TreeRefused."""
    try:
        return _PATH.decode(path)
    except (PeerError, UnicodeEncodeError):
        raise TreeRefused(
            f"{path!r} cannot be a file of a tree: names are relative, without '..' and control characters, and have"
            f" at most {PATH_MAX} bytes"
        ) from None


# --- taking in -----------------------------------------------------------------------------------------------------
class _Taking:
    """Entries being gathered, within their bounds."""

    def __init__(self, put: Put, bounds: Bounds) -> None:
        self.entries: list[Entry] = []
        self._put = put
        self._bounds = bounds
        self._bytes = 0
        self._seen: set[str] = set()

    def file(self, path: str, executable: bool, size: int, source: IO[bytes]) -> None:
        """One file. Raises TreeRefused, before any of it is read when that can be known."""
        safe_path(path)
        if path in self._seen:
            raise TreeRefused(f"{path!r} is there twice")
        self._seen.add(path)
        if len(self._seen) > self._bounds.entries:
            raise TreeRefused(f"it has more than the {self._bounds.entries} files allowed")
        self._bytes += size
        if self._bytes > self._bounds.bytes:
            raise TreeRefused(f"it unpacks to more than the {self._bounds.bytes} bytes allowed")
        counted = _Exactly(source, size, path)
        blob = self._put(io.BufferedReader(counted, 1 << 18), size)
        if counted.left or blob.size != size:
            raise TreeRefused(f"{path!r} is shorter than is said of it")
        self.entries.append(Entry(path, executable, blob))


class _Exactly(io.RawIOBase):
    """The `size` bytes that a file was said to have; more of them is an error, not a surprise."""

    def __init__(self, source: IO[bytes], size: int, path: str) -> None:
        self.left = size
        self._source = source
        self._path = path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(min(len(buffer), self.left) if self.left else 1)
        if len(data) > self.left:
            raise TreeRefused(f"{self._path!r} is longer than is said of it")
        self.left -= len(data)
        buffer[: len(data)] = data
        return len(data)


def from_folder(folder: Path, put: Put, bounds: Bounds | None = None) -> list[Entry]:
    """The files below a folder. Links and special files are refused, not followed. Raises TreeRefused, BlobError."""
    taking = _Taking(put, bounds or Bounds())
    with disk_errors(folder):
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise TreeRefused(f"{folder}: not a folder")
        for path in _files_below(folder):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as source:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise TreeRefused(f"{path}: not a regular file")
                executable = bool(status.st_mode & 0o100)
                taking.file(path.relative_to(folder).as_posix(), executable, status.st_size, source)
    return taking.entries


def _files_below(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_symlink():
            raise TreeRefused(f"{entry.path}: a symbolic link; put what it points to in its place, or leave it out")
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        else:
            raise TreeRefused(f"{entry.path}: neither a file nor a folder")


def from_archive(archive: Path, put: Put, bounds: Bounds | None = None) -> list[Entry]:
    """The files of a .tar, .tar.gz or .zip archive. Links and special files are refused.

    Raises TreeRefused, BlobError.
    """
    taking = _Taking(put, bounds or Bounds())
    with disk_errors(archive), archive.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        try:
            if start.startswith(b"PK"):
                _take_zip(file, taking)
            else:
                _take_tar(file, "r|gz" if start.startswith(b"\x1f\x8b") else "r|", taking)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            # What the two libraries raise for damaged, encrypted and exotic archives; zlib's error is below.
            raise TreeRefused(f"{archive}: not an archive that can be read: {error}") from None
        except Exception as error:
            # zlib.error and lzma.LZMAError have no common base, and are not to be missed.
            if type(error).__name__ not in ("error", "LZMAError"):
                raise
            raise TreeRefused(f"{archive}: damaged: {error}") from None
    return taking.entries


class _Member(tarfile.TarInfo):
    """A member whose headers cannot fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _TAR_HEADERS and member.size > HEADER_BYTES_MAX:
            raise TreeRefused(f"the archive has a header of {member.size} bytes")
        return member

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the stubs lack it
            assert isinstance(archive, _Archive)
            archive.ended = True
            raise


class _Archive(tarfile.TarFile):
    """An archive that knows whether its end mark was seen: to the library, one that was cut off just ends."""

    tarinfo = _Member
    ended = False


def _take_tar(file: IO[bytes], mode: Any, taking: _Taking) -> None:
    with _Archive.open(fileobj=file, mode=mode, errorlevel=2) as archive:
        for count, member in enumerate(archive):
            archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
            if count > 2 * ENTRIES_MAX:
                raise TreeRefused("the archive has too many entries")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise TreeRefused(f"{member.name!r}: neither a file nor a folder; archives with links are not taken")
            source = archive.extractfile(member)
            assert source is not None
            taking.file(_without_dot(member.name), bool(member.mode & 0o100), member.size, source)
        if not archive.ended:
            raise TreeRefused("the archive is cut off or damaged: its end mark is missing; pack or copy it again")


def _take_zip(file: IO[bytes], taking: _Taking) -> None:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            mode = member.external_attr >> 16
            if member.is_dir():
                continue
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise TreeRefused(
                    f"{member.filename!r}: neither a file nor a folder; archives with links are not taken"
                )
            if member.flag_bits & 1:
                raise TreeRefused(f"{member.filename!r} is encrypted")
            with archive.open(member) as source:
                taking.file(_without_dot(member.filename), bool(mode & 0o100), member.file_size, source)


def _without_dot(name: str) -> str:
    """`tar -C folder .` writes ./name."""
    return name.removeprefix("./")


# --- giving out ----------------------------------------------------------------------------------------------------
def to_folder(entries: list[Entry], read: Read, dest: Path) -> None:
    """Write a tree as a new folder, all of it or nothing. Raises TreeRefused when something is there, BlobError."""
    _check(entries)
    with _beside(dest) as made:
        made.mkdir(mode=0o755)
        for entry in entries:
            path = made / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                for piece in read(entry.blob):
                    file.write(piece)
                os.fchmod(file.fileno(), 0o755 if entry.executable else 0o644)
        if os.path.lexists(dest):
            raise TreeRefused(f"{dest}: something is there already; choose another name")
        made.rename(dest)


def to_tar(entries: list[Entry], read: Read, dest: Path) -> None:
    """Write a tree as a new tar archive: the same tree gives the same bytes.

    Raises TreeRefused when something is there, BlobError.
    """
    _check(entries)
    with _beside(dest) as made:
        with tarfile.open(made, "x", format=tarfile.PAX_FORMAT) as archive:
            for entry in entries:
                member = tarfile.TarInfo(entry.path)
                member.size = entry.blob.size
                member.mode = 0o755 if entry.executable else 0o644
                with io.BufferedReader(_Pieces(read(entry.blob))) as source:
                    archive.addfile(member, source)
        try:
            # Unlike a rename it does not replace what is there.
            os.link(made, dest)
        except FileExistsError:
            raise TreeRefused(f"{dest}: something is there already; choose another name") from None


class _Pieces(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@contextmanager
def _beside(dest: Path) -> Iterator[Path]:
    """A name beside `dest` for what is being made; nothing stays there."""
    if os.path.lexists(dest):
        raise TreeRefused(f"{dest}: something is there already; choose another name")
    made = dest.with_name(f".{dest.name[:100]}.{secrets.token_hex(6)}")
    with disk_errors(dest):
        try:
            yield made
        finally:
            if made.is_dir():
                shutil.rmtree(made)
            else:
                made.unlink(missing_ok=True)
