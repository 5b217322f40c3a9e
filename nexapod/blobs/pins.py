"""Which blobs the user wants kept: an empty file for each, so that a pin outlives everything. Blocking, but short."""

from __future__ import annotations

import os
from typing import Final

from nexapod.blobs.errors import BlobError, disk_errors
from nexapod.blobs.files import Layout, name_of, ref_named, sync_folder
from nexapod.protocol.primitives import BlobRef

PINS_MAX: Final = 100_000


class Pins:
    """The pins of a blob folder."""

    def __init__(self, layout: Layout) -> None:
        """Raises BlobError."""
        self._folder = layout.pins
        with disk_errors(self._folder):
            found = [ref_named(entry.name) for entry in os.scandir(self._folder)]
        self._refs = {ref for ref in found if ref is not None}

    def __contains__(self, ref: object) -> bool:
        return ref in self._refs

    @property
    def refs(self) -> frozenset[BlobRef]:
        return frozenset(self._refs)

    def add(self, ref: BlobRef) -> None:
        """On disk when this returns. Raises DiskFull, BlobError."""
        if len(self._refs) >= PINS_MAX:
            raise BlobError(f"{PINS_MAX} blobs are pinned, and no more can be: unpin some")
        with disk_errors(self._folder):
            os.close(os.open(self._folder / name_of(ref), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            sync_folder(self._folder)
        self._refs.add(ref)

    def remove(self, ref: BlobRef) -> bool:
        """Whether it was pinned. Raises BlobError."""
        was = ref in self._refs
        with disk_errors(self._folder):
            (self._folder / name_of(ref)).unlink(missing_ok=True)
            sync_folder(self._folder)
        self._refs.discard(ref)
        return was
