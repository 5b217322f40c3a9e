"""What a running task keeps in /checkpoint, into the blob store now and then, so that its stewards can keep it too.

A copy of files that a task may be writing: it is taken only when nothing changed while it was made. A task that keeps
several files in step with one another writes them into one, or replaces each by rename.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
import trio

from nexapod.blobs.errors import BlobError
from nexapod.blobs.store import BlobStore
from nexapod.daemon.retention import UPLOAD_KEPT_S
from nexapod.executor.contract import TaskRun
from nexapod.executor.outputs import OutputFile, OutputRefused, collect
from nexapod.protocol.limits import CHECKPOINT_FILES_MAX
from nexapod.protocol.primitives import File

log = structlog.get_logger()

LOOK_S: Final = 15.0
"""Longer than a steward's own pause between two of them (limits.CHECKPOINT_MIN_MS)."""


async def keep_checkpoints(
    run: TaskRun, blobs: BlobStore, tell: Callable[[tuple[File, ...]], None], *, look_s: float = LOOK_S
) -> None:
    """Look at the run's checkpoint until cancelled, and tell of each new state that could be copied whole."""
    told: list[OutputFile] = []
    while True:
        await trio.sleep(look_s)
        try:
            told = await _look(run, blobs, tell, told)
        except (BlobError, OutputRefused, OSError) as error:
            # A full disk, or something that is no plain file: the task goes on, and so does the next look.
            log.info("checkpoint_not_kept", label=run.label, error=str(error))


async def put_spared(blobs: BlobStore, file: OutputFile) -> File:
    """Into the store, and not out of it again before the core has heard of it and holds it. Raises BlobError."""
    ref = await blobs.put_opened(file.open, file.source)
    blobs.spare(ref, UPLOAD_KEPT_S)
    return File(file.path, ref)


async def _look(
    run: TaskRun, blobs: BlobStore, tell: Callable[[tuple[File, ...]], None], told: list[OutputFile]
) -> list[OutputFile]:
    see = partial(collect, run.checkpoint, bytes_max=run.limits.disk, files_max=CHECKPOINT_FILES_MAX)
    seen = await trio.to_thread.run_sync(see)
    if not seen or seen == told:
        return told
    files = tuple([await put_spared(blobs, entry) for entry in seen])
    if await trio.to_thread.run_sync(see) != seen:
        return told
    tell(files)
    return seen
