"""Reading whole blobs from disk, and noticing damage. Blocking; runs in worker threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from nexapod.blobs.errors import BlobCorrupt, BlobError, BlobMissing, disk_errors
from nexapod.blobs.files import CheckCancelled, Layout, chunk_length, split_digests, write_all
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, blob_root

ReadChunk: TypeAlias = Callable[[int], bytes]
"""The bytes of a chunk, checked. Raises BlobMissing, BlobCorrupt, BlobError."""
Range: TypeAlias = tuple[int, int]
"""Offset and length, in bytes."""


def not_here(ref: BlobRef) -> BlobMissing:
    """What is said of a blob that this machine does not hold."""
    return BlobMissing(f"blob {ref}: not on this machine")


def _open_object(layout: Layout, ref: BlobRef) -> int:
    try:
        with disk_errors(layout.root):
            return os.open(layout.object(ref), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except BlobError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise not_here(ref) from None
        raise


def read_object(layout: Layout, ref: BlobRef, offset: int, length: int) -> bytes:
    """Part of a blob, shorter at its end. Raises BlobMissing, BlobError."""
    fd = _open_object(layout, ref)
    try:
        with disk_errors(layout.root):
            return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def read_list(layout: Layout, ref: BlobRef) -> list[bytes]:
    """The digests of a whole blob's chunks, as they lie there. Raises BlobMissing, BlobError."""
    if ref.chunks == 1:
        return [ref.digest]
    try:
        with disk_errors(layout.root):
            data = layout.list(ref).read_bytes()
    except BlobError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise not_here(ref) from None
        raise
    return split_digests(data)


@contextmanager
def object_chunks(layout: Layout, ref: BlobRef) -> Iterator[ReadChunk]:
    """The chunks of a whole blob. Raises BlobMissing, BlobCorrupt, BlobError."""
    fd = _open_object(layout, ref)
    try:
        digests = read_list(layout, ref)
        with disk_errors(layout.root):
            size = os.fstat(fd).st_size
        if size != ref.size or blob_root(digests) != ref.digest:
            raise BlobCorrupt(f"blob {ref}: damaged on disk")

        def read(index: int) -> bytes:
            with disk_errors(layout.root):
                data = os.pread(fd, chunk_length(ref, index), index * CHUNK_BYTES)
            if hashlib.sha256(data).digest() != digests[index]:
                raise BlobCorrupt(f"blob {ref}: damaged on disk, in chunk {index}")
            return data

        yield read
    finally:
        os.close(fd)


def object_digests(layout: Layout, ref: BlobRef, check: CheckCancelled) -> list[bytes]:
    """What the chunks on disk really hash to; too many or too few when the length is wrong. Raises BlobMissing,
    BlobError.
    """
    fd = _open_object(layout, ref)
    try:
        found: list[bytes] = []
        with disk_errors(layout.root):
            size = os.fstat(fd).st_size
            for at in range(0, max(size, 1), CHUNK_BYTES):
                check()
                found.append(hashlib.sha256(os.pread(fd, CHUNK_BYTES, at)).digest())
        return found
    finally:
        os.close(fd)


def copy_ranges(read: ReadChunk, ranges: Sequence[Range], dest: Path, mode: int, check: CheckCancelled) -> None:
    """A new file of these bytes, one range after the other; nothing stays of it on any error."""
    with disk_errors(dest):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(dest, flags, 0o600)
    try:
        for offset, length in ranges:
            for piece in _pieces(read, offset, length, check):
                with disk_errors(dest):
                    write_all(target, piece)
        with disk_errors(dest):
            os.fchmod(target, mode)
    except BaseException:
        with disk_errors(dest):
            dest.unlink(missing_ok=True)
        raise
    finally:
        os.close(target)


def _pieces(read: ReadChunk, offset: int, length: int, check: CheckCancelled) -> Iterator[memoryview]:
    at, end = offset, offset + length
    while at < end:
        check()
        index, skip = divmod(at, CHUNK_BYTES)
        piece = memoryview(read(index))[skip : skip + end - at]
        yield piece
        at += len(piece)
