"""What can go wrong with blobs on this machine, told to the user. What other peers do wrong is a PeerError."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nexapod.protocol.errors import LocalError


class BlobError(LocalError):
    """A blob could not be stored or read."""


class BlobMissing(BlobError):
    """This machine does not hold the blob."""


class BlobCorrupt(BlobError):
    """The bytes on disk are no longer those that the blob's name promises."""


class BlobTooLarge(BlobError):
    """There are more bytes than were allowed."""


class BlobUnavailable(BlobError):
    """None of the peers asked delivered the blob in time. The message says what became of each."""


class DiskFull(BlobError):
    """The disk, or what this user may write on it, is full. Free some space; nothing was left behind."""


class QuotaExceeded(BlobError):
    """There is no room within the bounds that the user set, even without all that could go. Nothing was left behind."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Put the operating system's errors into ours. `path`: what the user should look at."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"{path}: no space left ({error.strerror}); free some space and try again") from error
        raise BlobError(f"{error.filename or path}: {error.strerror}; check its permissions and the disk") from error
