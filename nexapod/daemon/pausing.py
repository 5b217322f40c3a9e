"""When the owner wants the machine: tasks stand still, nothing new begins, and after a while, if so wished, they go on.

A pause outlives the daemon: a machine that restarts does not work again behind its owner's back.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import structlog
import trio

from nexapod.blobs.errors import BlobError
from nexapod.daemon.engine import Engine
from nexapod.daemon.small_files import delete_durably, write_durably
from nexapod.daemon.tasks import TaskRunner
from nexapod.protocol.events import Pause

log = structlog.get_logger()


class Pausing:
    """The one switch."""

    def __init__(self, engine: Engine, tasks: TaskRunner, kept: Path) -> None:
        """`kept`: the file that is there while there is a pause."""
        self._engine = engine
        self._tasks = tasks
        self._kept = kept
        self._until: float | None = None
        """Trio's clock; None: no end is set."""
        self._changed = trio.Event()

    @property
    def paused(self) -> bool:
        return self._tasks.paused

    @property
    def left_s(self) -> float | None:
        """How long the pause still lasts; None when it is not to end by itself."""
        return None if self._until is None else max(0.0, self._until - trio.current_time())

    async def restore(self) -> None:
        """Go on with the pause in which the last daemon ended, before any task has begun."""
        lasts, for_s = await trio.to_thread.run_sync(_read, self._kept)
        if lasts:
            self._set_end(None if for_s is None else trio.current_time() + for_s)
            await self._tasks.pause()
            self._engine.post(Pause(True))
            log.info("still_paused", for_s=for_s)

    async def pause(self, for_s: float | None) -> None:
        """Returns once every running task stands still. Repeated, it sets a new end. Raises BlobError when this daemon
        is paused, but the next one would not be: its note cannot be written.
        """
        self._set_end(None if for_s is None else trio.current_time() + for_s)
        await self._engine.act(Pause(True))
        await self._tasks.pause()
        log.info("paused", for_s=for_s)
        note = {"until_ms": None if for_s is None else round((time.time() + for_s) * 1000)}
        await trio.to_thread.run_sync(write_durably, self._kept, json.dumps(note).encode())

    async def resume(self) -> None:
        """Let the tasks go on. Raises BlobError when the next daemon would be paused still."""
        self._set_end(None)
        if self.paused:
            await self._tasks.resume()
            await self._engine.act(Pause(False))
            log.info("resumed")
        await trio.to_thread.run_sync(delete_durably, self._kept)

    async def run(self) -> None:
        """End pauses whose time has come, until cancelled."""
        while True:
            with trio.move_on_at(float("inf") if self._until is None else self._until):
                await self._changed.wait()
            self._changed = trio.Event()
            if self._until is not None and self._until <= trio.current_time():
                try:
                    await self.resume()
                except BlobError as error:
                    log.warning("pause_not_forgotten", error=str(error))  # its time is over for the next daemon too

    def _set_end(self, until: float | None) -> None:
        self._until = until
        self._changed.set()


def _read(path: Path) -> tuple[bool, float | None]:
    """Whether there is a pause, and for how many more seconds, None meaning without end. What cannot be read is one
    without end: in doubt the owner, who can end it, wanted the machine.
    """
    try:
        until_ms = json.loads(path.read_bytes())["until_ms"]
        if until_ms is None:
            return True, None
        left_s = float(until_ms) / 1000 - time.time()
    except FileNotFoundError:
        return False, None
    except (OSError, ValueError, TypeError, LookupError) as error:
        log.warning("pause_unreadable", path=str(path), error=str(error), remedy="nexapod resume ends it")
        return True, None
    return left_s > 0, left_s
