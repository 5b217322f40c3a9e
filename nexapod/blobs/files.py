"""How blobs lie on disk, and the blocking work on those files. Runs in worker threads; knows nothing of trio.

    objects/<digest>-<size>     the bytes, read-only; its modification time is when it was last used
    lists/<digest>-<size>       the 32-byte digests of its chunks, for blobs of more than one
    partial/<digest>-<size>.*   blobs of which some chunks are here (partial.py)
    pins/<digest>-<size>        an empty file for each blob that the user wants kept
    tmp/                        what is being written: emptied on start

A file gets its name only once its bytes are on disk, and a list before its object: whatever has a name is
whole.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nexapod.blobs.errors import BlobError, BlobTooLarge, disk_errors
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, blob_root

DIGEST_BYTES = 32
CheckCancelled = Callable[[], None]
"""Called between chunks of long work; raises to end it."""


class Layout:
    """The paths of a blob folder. Creating it makes the folders and clears what a crash left behind."""

    def __init__(self, root: Path) -> None:
        self.lock = threading.Lock()
        """Held while it is decided whether a blob is here: by who brings it, and by who deletes it."""
        self.root = root
        self.objects = root / "objects"
        self.lists = root / "lists"
        self.partial = root / "partial"
        self.pins = root / "pins"
        self.tmp = root / "tmp"
        with disk_errors(root):
            for folder in (root, self.objects, self.lists, self.partial, self.pins, self.tmp):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._clear()

    def object(self, ref: BlobRef) -> Path:
        return self.objects / name_of(ref)

    def list(self, ref: BlobRef) -> Path:
        return self.lists / name_of(ref)

    def holds(self, ref: BlobRef) -> bool:
        """Whether the whole blob is here. Raises BlobError."""
        with disk_errors(self.root):
            return self.object(ref).exists()

    def refs(self) -> set[BlobRef]:
        """Every whole blob. Raises BlobError."""
        with disk_errors(self.root):
            found = [ref_named(entry.name) for entry in os.scandir(self.objects)]
        return {ref for ref in found if ref is not None}

    def disk_free(self) -> int:
        """Bytes that are left on its disk. Raises BlobError."""
        with disk_errors(self.root):
            disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize

    def _clear(self) -> None:
        for entry in os.scandir(self.tmp):
            os.unlink(entry.path)
        for entry in os.scandir(self.lists):
            # A crash between a list and its object, or between the two deletions.
            if not (self.objects / entry.name).exists():
                os.unlink(entry.path)


def name_of(ref: BlobRef) -> str:
    """The file name of a blob: the size is part of what the digest means."""
    return f"{ref.digest.hex()}-{ref.size}"


def ref_named(name: str) -> BlobRef | None:
    """The inverse of name_of, None for anything else that lies there."""
    try:
        return BlobRef.parse(name.replace("-", ":"))
    except ValueError:
        return None


class Writer:
    """Writes bytes of unknown length under a temporary name and gives them their own at the end."""

    def __init__(self, layout: Layout, bytes_max: int) -> None:
        self._layout = layout
        self._bytes_max = bytes_max
        self._digests: list[bytes] = []
        self._chunk = hashlib.sha256()
        self._chunk_room = CHUNK_BYTES
        self._size = 0
        self._path = layout.tmp / secrets.token_hex(8)
        with disk_errors(layout.root):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def add(self, data: bytes | memoryview) -> None:
        """Append. Raises BlobTooLarge, DiskFull."""
        self._size += len(data)
        if self._size > self._bytes_max:
            raise BlobTooLarge(f"more than the {self._bytes_max} bytes allowed")
        with disk_errors(self._layout.root):
            write_all(self._fd, data)
        view = memoryview(data)
        while len(view) >= self._chunk_room:
            self._chunk.update(view[: self._chunk_room])
            view = view[self._chunk_room :]
            self._end_chunk()
        self._chunk.update(view)
        self._chunk_room -= len(view)

    def finish(self) -> tuple[BlobRef, bool]:
        """Name the blob; also whether it is new here. On disk when this returns."""
        if self._chunk_room < CHUNK_BYTES or not self._digests:
            self._end_chunk()
        ref = BlobRef(blob_root(self._digests), self._size)
        if touch_object(self._layout, ref):
            self.abort()
            return ref, False
        with disk_errors(self._layout.root):
            new = publish(self._layout, ref, self._digests, self._fd, self._path)
            self._close()
        return ref, new

    def abort(self) -> None:
        """Leave nothing behind of what is not finished; may be called at any time, and again. Raises BlobError."""
        with disk_errors(self._layout.root):
            self._close()
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        # Only once: its number may be that of somebody else's file by then.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _end_chunk(self) -> None:
        self._digests.append(self._chunk.digest())
        self._chunk = hashlib.sha256()
        self._chunk_room = CHUNK_BYTES


def publish(layout: Layout, ref: BlobRef, digests: list[bytes], fd: int, path: Path) -> bool:
    """Give finished bytes (open as `fd` at `path`) their name, durably; whether it is new here. Raises OSError."""
    os.fsync(fd)
    if len(digests) > 1:
        write_small(layout, layout.list(ref), b"".join(digests))
        sync_folder(layout.lists)
    with layout.lock:
        # Several may bring the same blob at once: it is new to one of them.
        new = not layout.object(ref).exists()
        os.rename(path, layout.object(ref))
    # Read-only no earlier: until it has its name, whoever tries again must be able to write it.
    os.fchmod(fd, 0o400)
    sync_folder(layout.objects)
    return new


def write_small(layout: Layout, target: Path, data: bytes) -> None:
    """Replace a small file of ours atomically. Raises OSError, leaving nothing behind."""
    path = layout.tmp / secrets.token_hex(8)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
        os.rename(path, target)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """os.write until nothing is left. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def split_digests(data: bytes) -> list[bytes]:
    """A chunk list as stored and as sent, in its parts."""
    return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]


def chunk_length(ref: BlobRef, index: int) -> int:
    """Bytes of one chunk: all are CHUNK_BYTES long but the last."""
    return min(CHUNK_BYTES, ref.size - index * CHUNK_BYTES)


def write_blob(layout: Layout, pieces: Iterator[bytes], bytes_max: int) -> tuple[BlobRef, bool]:
    """Store what `pieces` yields; the blob and whether it is new here. Nothing stays behind on any error."""
    writer = Writer(layout, bytes_max)
    try:
        for piece in pieces:
            writer.add(piece)
        return writer.finish()
    except BaseException:
        writer.abort()
        raise


def open_plain(path: Path) -> int:
    """A descriptor of a file: a symbolic link as last component is refused, and a FIFO does not block. Raises
    OSError."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def size_of(open_file: Callable[[], int], path: Path) -> int:
    """Bytes of a file. Raises BlobError."""
    with disk_errors(path):
        fd = open_file()
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)


def pieces_of(open_file: Callable[[], int], path: Path, check: CheckCancelled) -> Iterator[bytes]:
    """The content of a regular file, a chunk at a time; `path` for what is wrong with it. Raises BlobError."""
    with disk_errors(path):
        fd = open_file()
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BlobError(f"{path}: not a regular file")
        while True:
            check()
            with disk_errors(path):
                piece = os.read(fd, CHUNK_BYTES)
            if not piece:
                return
            yield piece
    finally:
        os.close(fd)


def touch_object(layout: Layout, ref: BlobRef) -> bool:
    """Note that a blob is wanted now, so that a deletion already on its way spares it; False when it is not here."""
    with layout.lock, disk_errors(layout.root):
        try:
            os.utime(layout.object(ref))
        except FileNotFoundError:
            return False
    return True


def remove_object(layout: Layout, ref: BlobRef, unused_s: float) -> bool:
    """Remove a whole blob; whether it was there and is gone. Raises BlobError.

    One that was written or touched within the last `unused_s` seconds stays: whoever decided to delete it may not have
    known of that.
    """
    path = layout.object(ref)
    with layout.lock, disk_errors(layout.root):
        if not path.exists() or (unused_s and time.time() - path.stat().st_mtime < unused_s):
            return False
        path.unlink()
        layout.list(ref).unlink(missing_ok=True)
    return True
