"""Blobs of which some chunks are here: being fetched, or held in part for good. Blocking; runs in worker threads.

    <name>.list   the digests of its chunks, checked against the name when read
    <name>.data   the bytes, in place; a sparse file
    <name>.have   one byte a chunk: 1 = written. A byte, not a bit, so that threads need not read before
    they write. Its modification time is when the blob was last used

`have` is a hint of where to look, never a proof: it may reach the disk before the bytes do. A chunk that it claims is
hashed before it is first used in the life of a process, and no earlier: a restart need not read gigabytes.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from nexapod.blobs.errors import BlobError, disk_errors
from nexapod.blobs.files import (
    CheckCancelled,
    Layout,
    chunk_length,
    name_of,
    publish,
    ref_named,
    split_digests,
    write_small,
)
from nexapod.blobs.reading import not_here
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, blob_root

ABSENT, CLAIMED, CHECKED = 0, 1, 2
"""What is known of a chunk: not here; said to be here; seen to be here by this process."""
SUFFIXES = (".have", ".data", ".list")
SYNC_BYTES = 32 << 20
"""So much is written before it is sent to the disk while more arrives: the end then has little to wait for."""


class Partial:
    """One such blob. `write` and reads may be called for different chunks from several threads at once."""

    def __init__(self, layout: Layout, ref: BlobRef, marks: bytes = b"") -> None:
        self.ref = ref
        self.users = 0
        """Fetches that have it open: it is not removed meanwhile."""
        self.is_published = False
        """It has become a whole blob; a fetch that was ending may have done that for the next one."""
        self.marks = bytearray(ref.chunks)
        for index, mark in enumerate(marks[: ref.chunks]):
            self.marks[index] = CLAIMED if mark else ABSENT
        self._layout = layout
        self._have, self._data, self._list = (_path(layout, ref, suffix) for suffix in SUFFIXES)
        self._digests: list[bytes] | None = None
        self._data_fd = self._have_fd = -1
        self._lock = threading.Lock()
        self._unsynced = 0

    @property
    def bytes_here(self) -> int:
        """Bytes of the chunks that are here, or said to be."""
        here = self.ref.chunks - self.marks.count(ABSENT)
        if here and self.marks[-1] != ABSENT:
            return (here - 1) * CHUNK_BYTES + chunk_length(self.ref, self.ref.chunks - 1)
        return here * CHUNK_BYTES

    @property
    def is_whole(self) -> bool:
        return self.marks.count(CHECKED) == self.ref.chunks

    def has(self, chunks: range) -> bool:
        """Whether all of these were seen to be here."""
        return self.marks.count(CHECKED, chunks.start, chunks.stop) == len(chunks)

    # --- reading ---------------------------------------------------------------------------------------------------
    def digests(self) -> list[bytes]:
        """The chunk list. Raises BlobMissing when there is none to trust, BlobError."""
        if self._digests is None:
            try:
                with disk_errors(self._layout.root):
                    digests = split_digests(self._list.read_bytes())
            except BlobError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    raise not_here(self.ref) from None
                raise
            if len(digests) != self.ref.chunks or blob_root(digests) != self.ref.digest:
                raise not_here(self.ref)
            self._digests = digests
        return self._digests

    def chunk(self, index: int) -> bytes:
        """The bytes of a chunk, checked. Raises BlobMissing, BlobError."""
        if self.marks[index] == ABSENT:
            raise not_here(self.ref)
        data = self._read(index, 0, CHUNK_BYTES)
        if hashlib.sha256(data).digest() != self.digests()[index]:
            self._unmark(index)
            raise not_here(self.ref)
        self.marks[index] = CHECKED
        return data

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that lie in chunks that are here. Raises BlobMissing, BlobError."""
        found, end = bytearray(), min(offset + length, self.ref.size)
        while offset < end:
            index, skip = divmod(offset, CHUNK_BYTES)
            if self.marks[index] == CHECKED:
                piece = self._read(index, skip, end - offset)
            else:
                piece = self.chunk(index)[skip : skip + end - offset]
            if not piece:
                raise not_here(self.ref)
            found += piece
            offset += len(piece)
        return bytes(found)

    def _read(self, index: int, skip: int, length: int) -> bytes:
        try:
            with disk_errors(self._layout.root):
                fd = os.open(self._data, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except BlobError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # it has just become whole, or was removed
                raise not_here(self.ref) from None
            raise
        try:
            with disk_errors(self._layout.root):
                return os.pread(fd, min(length, chunk_length(self.ref, index) - skip), index * CHUNK_BYTES + skip)
        finally:
            os.close(fd)

    # --- writing ---------------------------------------------------------------------------------------------------
    def begin(self, digests: list[bytes]) -> None:
        """Open it for writing, once for each user. Raises DiskFull, BlobError, leaving no new file behind."""
        with self._lock:
            if not (self.users or self.is_published):
                self._open(digests)
            self.users += 1

    def end(self) -> None:
        """Undo one `begin`; what was written stays for the next time. Raises BlobError."""
        with self._lock, disk_errors(self._layout.root):
            self.users -= 1
            if not self.users:
                self._close()

    def check(self, chunks: Iterable[int], check: CheckCancelled) -> None:
        """Hash those of the chunks that are only said to be here. Raises BlobError."""
        for index in chunks:
            if self.marks[index] == CLAIMED:
                check()
                try:
                    self.chunk(index)
                except BlobError:
                    self._unmark(index)

    def write(self, index: int, parts: Sequence[bytes | memoryview]) -> bool:
        """Put one chunk in place, which came in these parts; False, with nothing written, when it is not what the list
        says. Raises DiskFull, BlobError.
        """
        size = sum(map(len, parts))
        if size != chunk_length(self.ref, index):
            return False
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        if digest.digest() != self.digests()[index]:
            return False
        with disk_errors(self._layout.root):
            _pwrite_all(self._data_fd, parts, index * CHUNK_BYTES)
            os.pwrite(self._have_fd, b"\x01", index)
            self.marks[index] = CHECKED
            self._send_to_disk(size)
        return True

    def sync(self) -> None:
        """What was written is on disk when this returns. Raises DiskFull, BlobError."""
        with disk_errors(self._layout.root):
            os.fdatasync(self._data_fd)
            os.fdatasync(self._have_fd)

    def publish(self) -> bool:
        """Turn it into a whole blob; every chunk is here. Whether that is new. Raises DiskFull, BlobError."""
        assert self.is_whole
        with self._lock, disk_errors(self._layout.root):
            if self.is_published:
                return False
            new = publish(self._layout, self.ref, self.digests(), self._data_fd, self._data)
            self.is_published = True
            for path in (self._have, self._list):
                path.unlink(missing_ok=True)
        return new

    def touch(self) -> None:
        """Note that it was used now. Raises BlobError."""
        # It may have become whole, or been removed, since it was looked for.
        with disk_errors(self._layout.root), suppress(FileNotFoundError):
            os.utime(self._have)

    def used_at(self) -> float | None:
        """Wall-clock seconds; None when it is no longer there. Raises BlobError."""
        with disk_errors(self._layout.root):
            try:
                return self._have.stat().st_mtime
            except FileNotFoundError:
                return None

    def remove(self) -> bool:
        """Delete it, unless somebody has it open. Raises BlobError."""
        with self._lock:
            if self.users:
                return False
            with disk_errors(self._layout.root):
                remove_files(self._layout, self.ref)
            self.marks[:] = bytes(len(self.marks))
        return True

    def _open(self, digests: list[bytes]) -> None:
        with disk_errors(self._layout.root):
            fresh = not self._have.exists()
        try:
            with disk_errors(self._layout.root):
                write_small(self._layout, self._list, b"".join(digests))
                self._data_fd = _open_for_writing(self._data)
                os.ftruncate(self._data_fd, self.ref.size)
                self._have_fd = _open_for_writing(self._have)
                os.ftruncate(self._have_fd, self.ref.chunks)
            self._digests = digests
        except BaseException:
            self._close()
            if fresh:
                with disk_errors(self._layout.root):
                    remove_files(self._layout, self.ref)
            raise

    def _close(self) -> None:
        fds, self._data_fd, self._have_fd = (self._data_fd, self._have_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def _unmark(self, index: int) -> None:
        self.marks[index] = ABSENT
        if self._have_fd >= 0:
            with disk_errors(self._layout.root):
                os.pwrite(self._have_fd, b"\x00", index)

    def _send_to_disk(self, count: int) -> None:
        """In the thread of whoever wrote last before a step is full; the others go on."""
        with self._lock:
            self._unsynced += count
            due = self._unsynced >= SYNC_BYTES
            if due:
                self._unsynced = 0
        if due:
            os.fdatasync(self._data_fd)


def load_partials(layout: Layout) -> Iterator[Partial]:
    """What former processes left; what cannot be used is removed. Raises BlobError."""
    with disk_errors(layout.root):
        names = {entry.name for entry in os.scandir(layout.partial)}
        usable = set()
        for name in sorted(name for name in names if name.endswith(".have")):
            ref = ref_named(name.removesuffix(".have"))
            wanted = {name_of(ref) + suffix for suffix in SUFFIXES} if ref else {""}
            # Whole by now: the crash came between its new name and the removal of what it no longer needs.
            if ref is None or not wanted <= names or layout.holds(ref):
                continue
            usable |= wanted
            yield Partial(layout, ref, _path(layout, ref, ".have").read_bytes())
        for name in names - usable:
            (layout.partial / name).unlink(missing_ok=True)


def remove_files(layout: Layout, ref: BlobRef) -> None:
    """Delete whatever there is of a partial blob. Raises OSError."""
    for suffix in SUFFIXES:
        _path(layout, ref, suffix).unlink(missing_ok=True)


def _path(layout: Layout, ref: BlobRef, suffix: str) -> Path:
    return layout.partial / (name_of(ref) + suffix)


def _open_for_writing(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except PermissionError:
        # Whole blobs are read-only, and so may be what a crash left on the way to or from being one.
        path.chmod(0o600)
        return os.open(path, flags, 0o600)


def _pwrite_all(fd: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    left = [memoryview(part) for part in parts]
    while left:
        written = os.pwritev(fd, left, offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]
