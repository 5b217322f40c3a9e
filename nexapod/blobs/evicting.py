"""When each blob was last used: what eviction goes by. Blocking; runs in worker threads."""

from __future__ import annotations

import os

from nexapod.blobs.errors import disk_errors
from nexapod.blobs.files import Layout, name_of, ref_named
from nexapod.blobs.reading import not_here
from nexapod.protocol.primitives import BlobRef


def uses(layout: Layout) -> list[tuple[float, BlobRef]]:
    """Wall-clock seconds of the last use of every blob, whole or in part, in no particular order. Raises BlobError."""
    found: list[tuple[float, BlobRef]] = []
    with disk_errors(layout.root):
        for folder, suffix in ((layout.objects, ""), (layout.partial, ".have")):
            for entry in os.scandir(folder):
                ref = ref_named(entry.name.removesuffix(suffix)) if entry.name.endswith(suffix) else None
                if ref is None:
                    continue
                try:
                    found.append((entry.stat(follow_symlinks=False).st_mtime, ref))
                except FileNotFoundError:
                    continue  # deleted, or become whole, since the folder was read
    return found


def used_at(layout: Layout, ref: BlobRef) -> float:
    """The same of one blob. Raises BlobMissing, BlobError."""
    with disk_errors(layout.root):
        for path in (layout.object(ref), layout.partial / (name_of(ref) + ".have")):
            try:
                return path.stat().st_mtime
            except FileNotFoundError:
                continue
    raise not_here(ref)
