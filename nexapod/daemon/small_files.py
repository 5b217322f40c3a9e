"""Small files that must be whole, or not there, after a crash at any moment."""

from __future__ import annotations

import os
from pathlib import Path

from nexapod.blobs.errors import disk_errors
from nexapod.blobs.files import sync_folder, write_all


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file, for its owner alone; on disk when this returns. Blocks. Raises BlobError."""
    fresh = path.with_suffix(".new")
    with disk_errors(path):
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.replace(path)
        sync_folder(path.parent)


def delete_durably(path: Path) -> None:
    """Delete a file that may be there. Blocks. Raises BlobError."""
    with disk_errors(path.parent):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
