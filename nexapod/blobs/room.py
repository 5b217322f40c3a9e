"""How much of the disk blobs may take. Decides how many bytes have to go; which ones, the store decides.

What is promised to writes under way counts as taken, so that many of them at once cannot pass the bound together.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import trio

from nexapod.blobs.errors import QuotaExceeded, disk_errors

DEFAULT_BYTES_MAX: Final = 20 << 30
DEFAULT_DISK_PART: Final = 10
"""A volunteer's disk is not ours to fill: the default quota is at most this part of it."""
DEFAULT_DISK_FREE_MIN: Final = 1 << 30
SLACK_PART: Final = 20
SLACK_BYTES_MAX: Final = 256 << 20
"""Once something has to go, so much more goes with it (a part of the quota, bounded): the next one then finds room."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Bytes. None: no bound."""

    blobs_max: int | None = None
    disk_free_min: int = 0

    @classmethod
    def for_disk(cls, folder: Path, blobs_max: int | None, disk_free_min: int | None) -> Quota:
        """What was configured, with the defaults for this disk where nothing was. Raises BlobError."""
        with disk_errors(folder):
            disk = os.statvfs(folder)
        default = min(DEFAULT_BYTES_MAX, disk.f_blocks * disk.f_frsize // DEFAULT_DISK_PART)
        return cls(
            default if blobs_max is None else blobs_max,
            DEFAULT_DISK_FREE_MIN if disk_free_min is None else disk_free_min,
        )


class Reservation:
    """Bytes promised to one write. What it has written it takes off; what is left is given back at its end."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._left = 0

    async def grow(self, size: int) -> None:
        """Promise so many more bytes. Raises QuotaExceeded."""
        await self._room._promise(size)
        self._left += size

    def take(self, size: int) -> None:
        """So many bytes have been written: they now count as used."""
        taken = min(size, self._left)
        self._left -= taken
        self._room._promised -= taken

    def give_back(self) -> None:
        """Nothing more will be written."""
        self.take(self._left)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()


class Room:
    """The room of one blob folder."""

    def __init__(
        self, root: Path, quota: Quota, used: Callable[[], int], evict: Callable[[int], Awaitable[None]]
    ) -> None:
        """`used()`: bytes of blobs. `evict(bytes)`: delete that much of what nobody needs, or what there is of it."""
        self.quota = quota
        self._root = root
        self._used = used
        self._evict = evict
        self._promised = 0
        self._turn = trio.Lock()

    async def keep(self) -> None:
        """Come back within the bounds as far as that is possible: the disk may have been filled by others."""
        async with self._turn:
            over = self._over(0)
            if over > 0:
                await self._evict(over + self._slack())

    async def _promise(self, size: int) -> None:
        async with self._turn:
            over = self._over(size)
            if over > 0:
                await self._evict(over + self._slack())
                if self._over(size) > 0:
                    raise QuotaExceeded(self._why(size))
            self._promised += size

    def _over(self, size: int) -> int:
        """How many bytes would have to go for `size` more to fit."""
        return max(self._over_quota(size), self._over_disk(size))

    def _over_quota(self, size: int) -> int:
        return 0 if self.quota.blobs_max is None else self._used() + self._promised + size - self.quota.blobs_max

    def _over_disk(self, size: int) -> int:
        """One system call: needs no thread."""
        if not self.quota.disk_free_min:
            return 0
        with disk_errors(self._root):
            disk = os.statvfs(self._root)
        return self._promised + size + self.quota.disk_free_min - disk.f_bavail * disk.f_frsize

    def _slack(self) -> int:
        return min(SLACK_BYTES_MAX, (self.quota.blobs_max or SLACK_BYTES_MAX * SLACK_PART) // SLACK_PART)

    def _why(self, size: int) -> str:
        if self._over_quota(size) > 0:
            return (
                f"no room for {size} bytes: of the {self.quota.blobs_max} that blobs may take (storage.blobs_max),"
                f" {self._used()} are taken by what is pinned, needed by a job or in use, and {self._promised} by what"
                " is being written; unpin something, wait for a job to end, or raise storage.blobs_max"
            )
        return (
            f"no room for {size} bytes: the disk of {self._root} must keep {self.quota.disk_free_min} bytes free"
            " (storage.disk_free_min); free some space, or lower storage.disk_free_min"
        )
