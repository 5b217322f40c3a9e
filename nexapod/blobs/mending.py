"""Whole blobs whose bytes went bad: what is good of one is kept, as a partial blob. Blocking."""

from __future__ import annotations

import os
from dataclasses import dataclass

from nexapod.blobs.errors import BlobMissing, disk_errors
from nexapod.blobs.files import CheckCancelled, Layout, name_of, sync_folder, write_small
from nexapod.blobs.partial import Partial
from nexapod.blobs.reading import not_here, object_digests, read_list
from nexapod.protocol.primitives import BlobRef, blob_root


@dataclass(frozen=True, slots=True)
class Findings:
    """What the chunks on disk hash to, and the list that they should match; None when that one is no use."""

    ref: BlobRef
    size: int
    real: list[bytes]
    listed: list[bytes] | None

    @property
    def is_sound(self) -> bool:
        return self.has_right_bytes and self.listed is not None

    @property
    def has_right_bytes(self) -> bool:
        return self.size == self.ref.size and blob_root(self.real) == self.ref.digest

    @property
    def good(self) -> list[int]:
        """Chunks that are what the list says."""
        pairs = zip(self.real, self.listed or [], strict=False)
        return [index for index, (real, listed) in enumerate(pairs) if real == listed]


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left of a damaged blob. `gone`: it was a whole one until now."""

    damaged: int
    gone: bool
    partial: Partial | None = None


def examine(layout: Layout, ref: BlobRef, check: CheckCancelled) -> Findings:
    """Read all of a whole blob. Raises BlobMissing, BlobError."""
    real = object_digests(layout, ref, check)
    listed: list[bytes] | None
    try:
        listed = read_list(layout, ref)
    except BlobMissing:
        listed = None  # the object is there, its list is not
    if listed is not None and (len(listed) != ref.chunks or blob_root(listed) != ref.digest):
        listed = None
    with disk_errors(layout.root):
        try:
            size = layout.object(ref).stat().st_size
        except FileNotFoundError:
            raise not_here(ref) from None
    return Findings(ref, size, real, listed)


def set_aside(layout: Layout, ref: BlobRef, found: Findings) -> Rest:
    """Keep what is good of a blob that is not sound. Raises BlobMissing, DiskFull, BlobError."""
    with layout.lock, disk_errors(layout.root):
        if not layout.object(ref).exists():
            raise not_here(ref)  # deleted since it was examined
        if found.has_right_bytes:
            write_small(layout, layout.list(ref), b"".join(found.real))
            sync_folder(layout.lists)
            return Rest(damaged=0, gone=False)
        good = found.good
        damaged = ref.chunks - len(good)
        if not good or ref.chunks == 1:
            layout.object(ref).unlink(missing_ok=True)
            layout.list(ref).unlink(missing_ok=True)
            return Rest(damaged, gone=True)
        return Rest(damaged, gone=True, partial=_as_partial(layout, ref, found, good))


def _as_partial(layout: Layout, ref: BlobRef, found: Findings, good: list[int]) -> Partial:
    marks = bytearray(ref.chunks)
    for index in good:
        marks[index] = 1
    base = layout.partial / name_of(ref)
    # Its marks and list first: a crash before the bytes follow leaves the whole blob where it was.
    write_small(layout, base.with_name(base.name + ".list"), b"".join(found.listed or []))
    write_small(layout, base.with_name(base.name + ".have"), bytes(marks))
    data = base.with_name(base.name + ".data")
    # Writable before it has its new name, under which the missing chunks are written to it.
    layout.object(ref).chmod(0o600)
    os.rename(layout.object(ref), data)
    layout.list(ref).unlink(missing_ok=True)
    os.truncate(data, ref.size)
    return Partial(layout, ref, bytes(marks))
