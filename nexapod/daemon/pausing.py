"""When the owner wants the machine: tasks stand still, nothing new begins, and after a while, if so wished, they go on.

A pause outlives the daemon: a machine that restarts does not work again behind its owner's back.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from nexapod.blobs.errors import BlobError
from nexapod.daemon.engine import Engine
from nexapod.daemon.small_files import delete_durably, write_durably
from nexapod.daemon.tasks import TaskRunner
from nexapod.protocol.events import Pause

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Wish:
    """What the owner wants, by the last request."""

    paused: bool
    until: float | None = None
    """Trio's clock; None: no end is set."""


class Pausing:
    """The one switch. Requests may come while another one is carried out: what the last one wants is what comes of it,
    and each returns when it has been carried out, or overtaken."""

    def __init__(self, engine: Engine, tasks: TaskRunner, kept: Path) -> None:
        """`kept`: the file that is there while there is a pause."""
        self._engine = engine
        self._tasks = tasks
        self._kept = kept
        self._wish = Wish(paused=False)
        self._changed = trio.Event()
        self._settling = trio.Lock()
        self._told = False
        """What the core was told."""

    @property
    def paused(self) -> bool:
        return self._wish.paused

    @property
    def left_s(self) -> float | None:
        """How long the pause still lasts; None when it is not to end by itself."""
        return None if self._wish.until is None else max(0.0, self._wish.until - trio.current_time())

    async def restore(self) -> None:
        """Go on with the pause in which the last daemon ended, before any task has begun."""
        lasts, for_s = await trio.to_thread.run_sync(_read, self._kept)
        if lasts:
            self._want(Wish(True, _at(for_s)))
            self._tell(paused=True)
            log.info("still_paused", for_s=for_s)

    async def pause(self, for_s: float | None) -> None:
        """Returns once every running task stands still. Repeated, it sets a new end. Raises BlobError when this daemon
        is paused, but the next one would not be: its note cannot be written.
        """
        self._want(Wish(True, _at(for_s)))
        await self._settle()

    async def resume(self) -> None:
        """Let the tasks go on. Raises BlobError when the next daemon would be paused still."""
        self._want(Wish(False))
        await self._settle()

    async def run(self) -> None:
        """End pauses whose time has come, until cancelled."""
        while True:
            with trio.move_on_at(float("inf") if self._wish.until is None else self._wish.until):
                await self._changed.wait()
            self._changed = trio.Event()
            if self._wish.until is not None and self._wish.until <= trio.current_time():
                try:
                    await self.resume()
                except BlobError as error:
                    log.warning("pause_not_forgotten", error=str(error))  # its time is over for the next daemon too

    def _want(self, wish: Wish) -> None:
        """A request that is being carried out follows this one from now on."""
        self._wish = wish
        self._tasks.want(paused=wish.paused)
        self._changed.set()

    async def _settle(self) -> None:
        """Carry out what is wanted when it is this request's turn: if another one came, that one is next. Nothing that
        cannot be noted or saved keeps a task from standing still: the error is raised last, and the core hears of it
        when it can.
        """
        async with self._settling:
            wish = self._wish
            error = await self._note(wish)
            self._tell(paused=wish.paused)
            await self._tasks.settle()
            log.info("paused" if wish.paused else "resumed", overtaken=wish is not self._wish)
        if error is not None:
            raise error

    async def _note(self, wish: Wish) -> BlobError | None:
        """For the next daemon. Before the tasks follow: one that finds them otherwise puts them right."""
        try:
            if wish.paused:
                for_s = None if wish.until is None else wish.until - trio.current_time()
                note = {"until_ms": None if for_s is None else round((time.time() + for_s) * 1000)}
                await trio.to_thread.run_sync(write_durably, self._kept, json.dumps(note).encode())
            else:
                await trio.to_thread.run_sync(delete_durably, self._kept)
        except BlobError as error:
            return error
        return None

    def _tell(self, *, paused: bool) -> None:
        """The core, whose store may be stalled: it hears of it in its turn."""
        if paused != self._told:
            self._told = paused
            self._engine.post(Pause(paused))


def _at(for_s: float | None) -> float | None:
    return None if for_s is None else trio.current_time() + for_s


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
