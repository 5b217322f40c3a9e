"""A blob that is being fetched: which chunks are here already, across restarts. Blocking; runs in worker
threads.

    <name>.list   the digests of its chunks, checked against the name when read
    <name>.data   the bytes, in place
    <name>.have   one byte a chunk: 1 = written. A byte, not a bit, so that threads need not read before
    they write

`have` is a hint of where to look, never a proof: it may reach the disk before the bytes do. Each chunk that
it claims is hashed again when a fetch is taken up.
"""

from __future__ import annotations

import hashlib
import os

from nexapod.blobs.errors import disk_errors
from nexapod.blobs.files import (
    CheckCancelled,
    Layout,
    chunk_length,
    name_of,
    publish,
    split_digests,
    write_small,
)
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.types import BlobRef, blob_root


def saved_list(layout: Layout, ref: BlobRef) -> list[bytes] | None:
    """The chunk list of an interrupted fetch, None when there is none to trust."""
    path = layout.partial / (name_of(ref) + ".list")
    if not path.exists():
        return None
    with disk_errors(layout.root):
        digests = split_digests(path.read_bytes())
    return digests if len(digests) == ref.chunks and blob_root(digests) == ref.digest else None


class Partial:
    """An open partial blob. `write` may be called for different chunks from several threads at once."""

    def __init__(self, layout: Layout, ref: BlobRef, digests: list[bytes], check: CheckCancelled) -> None:
        self._layout = layout
        self._ref = ref
        self._digests = digests
        base = layout.partial / name_of(ref)
        self._list = base.with_name(base.name + ".list")
        self._data = base.with_name(base.name + ".data")
        self._have = base.with_name(base.name + ".have")
        self._data_fd = self._have_fd = -1
        fresh = not self._have.exists()
        try:
            with disk_errors(layout.root):
                self._open()
                self.present = self._verified(check)
        except BaseException:
            self.close()
            if fresh:
                self._remove()
            raise

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        write_small(self._layout, self._list, b"".join(self._digests))
        self._data_fd = os.open(self._data, flags, 0o600)
        # Reserves the space: a disk too small says so now, and not after hours.
        os.posix_fallocate(self._data_fd, 0, self._ref.size)
        self._have_fd = os.open(self._have, flags, 0o600)
        os.ftruncate(self._have_fd, self._ref.chunks)

    def _verified(self, check: CheckCancelled) -> set[int]:
        """The chunks that are really here."""
        claimed = [index for index, mark in enumerate(os.pread(self._have_fd, self._ref.chunks, 0)) if mark]
        present = set()
        for index in claimed:
            check()
            piece = os.pread(self._data_fd, chunk_length(self._ref, index), index * CHUNK_BYTES)
            if hashlib.sha256(piece).digest() == self._digests[index]:
                present.add(index)
        return present

    def write(self, index: int, data: bytes | bytearray) -> bool:
        """Put one chunk in place; False, with nothing written, when it is not what the list says."""
        if len(data) != chunk_length(self._ref, index):
            return False
        if hashlib.sha256(data).digest() != self._digests[index]:
            return False
        with disk_errors(self._layout.root):
            _pwrite_all(self._data_fd, data, index * CHUNK_BYTES)
            os.pwrite(self._have_fd, b"\x01", index)
        return True

    def finish(self) -> tuple[BlobRef, bool]:
        """Turn it into a whole blob; every chunk has been written. The blob, and whether it is new here."""
        new = not self._layout.object(self._ref).exists()
        with disk_errors(self._layout.root):
            os.ftruncate(self._data_fd, self._ref.size)
            publish(self._layout, self._ref, self._digests, self._data_fd, self._data)
        self.close()
        self._remove()
        return self._ref, new

    def close(self) -> None:
        """Let go of the files; what is in them stays for the next time."""
        for fd in (self._data_fd, self._have_fd):
            if fd >= 0:
                os.close(fd)
        self._data_fd = self._have_fd = -1

    def _remove(self) -> None:
        for path in (self._have, self._data, self._list):
            path.unlink(missing_ok=True)


def _pwrite_all(fd: int, data: bytes | bytearray, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
