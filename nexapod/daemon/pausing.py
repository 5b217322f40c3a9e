"""When the owner wants the machine: tasks stand still, nothing new begins, and after a while, if so wished, they go on.

A pause lasts until it is ended or this daemon is: a daemon that starts works.
"""

from __future__ import annotations

import structlog
import trio

from nexapod.daemon.engine import Engine
from nexapod.daemon.tasks import TaskRunner
from nexapod.protocol.events import Pause

log = structlog.get_logger()


class Pausing:
    """The one switch."""

    def __init__(self, engine: Engine, tasks: TaskRunner) -> None:
        self._engine = engine
        self._tasks = tasks
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

    async def pause(self, for_s: float | None) -> None:
        """Returns once every running task stands still. Repeated, it sets a new end."""
        self._set_end(None if for_s is None else trio.current_time() + for_s)
        await self._engine.act(Pause(True))
        await self._tasks.pause()
        log.info("paused", for_s=for_s)

    async def resume(self) -> None:
        self._set_end(None)
        if self.paused:
            await self._tasks.resume()
            await self._engine.act(Pause(False))
            log.info("resumed")

    async def run(self) -> None:
        """End pauses whose time has come, until cancelled."""
        while True:
            with trio.move_on_at(float("inf") if self._until is None else self._until):
                await self._changed.wait()
            self._changed = trio.Event()
            if self._until is not None and self._until <= trio.current_time():
                await self.resume()

    def _set_end(self, until: float | None) -> None:
        self._until = until
        self._changed.set()
