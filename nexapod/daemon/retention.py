"""When blobs that nobody needs any more are deleted: when their room is wanted, and no sooner.

What the core has dropped stays as a cache: another task, or another peer, may want it next. The store keeps within its
quota whenever something is written; here it is seen to that the disk keeps its free space when others fill it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from nexapod.blobs.errors import BlobError
from nexapod.blobs.store import BlobStore
from nexapod.protocol.primitives import BlobRef

log = structlog.get_logger()

LOOK_S: Final = 30.0
UPLOAD_KEPT_S: Final = 3600.0
"""An uploaded blob that no job names is kept for so long at least, whatever room is wanted: its job comes after it. So
is what a task leaves, until the core holds it."""


class Retention:
    """Keeps a store within its bounds."""

    def __init__(self, blobs: BlobStore, held: Callable[[], frozenset[BlobRef]]) -> None:
        """`held()`: what the core needs; it is never evicted."""
        self._blobs = blobs
        blobs.held = held

    async def run(self) -> None:
        """Look at the disk every now and then, until cancelled."""
        while True:
            try:
                await self._blobs.room.keep()
            except BlobError as error:
                log.warning("blobs_not_evicted", error=str(error))
            await trio.sleep(LOOK_S)
