"""When a task writes: told by the kernel (inotify), so that a watch need not look often to see a sudden writer soon.

Costs nothing while nothing is written. Only says that something was written, not what or how much: the events are
hostile in number and content, and are thrown away unread. Where the kernel gives no more of them, nothing is told, and
the watch finds out with its next look.
"""

from __future__ import annotations

import os
from typing import Final

import structlog
import trio
from inotify_simple import INotify, flags

log = structlog.get_logger()

_WRITTEN: Final = flags.MODIFY | flags.CREATE | flags.MOVED_TO | flags.ONLYDIR
WATCHES_MAX: Final = 1024
"""Directories that one run has followed in all. A directory that is removed while a task holds it open stays followed,
and this user's programs share what the kernel has of it: a task must not use it up."""
_DRAIN_BYTES: Final = 256 * 1024
_DRAINS_MAX: Final = 16
"""What is left after so many reads wakes the next wait at once, which is what it should do."""


class Writes:
    """Whether anything was written in the directories that are followed."""

    def __init__(self) -> None:
        """Raises OSError: the kernel gives no more of them; AttributeError: this system has none."""
        self._inotify = INotify(nonblocking=True)
        self._refused = False
        self._followed = 0
        """The kernel numbers what is followed from 1 up, and gives no number twice."""

    def follow(self, directory: int) -> None:
        """An open directory: not those below it. From any thread, and again at no cost."""
        if self._followed >= WATCHES_MAX:
            return
        try:
            # By descriptor: the task cannot put something else in its place meanwhile.
            number = self._inotify.add_watch(f"/proc/self/fd/{directory}", _WRITTEN)
        except OSError as error:
            if not self._refused:
                log.warning("writes_not_followed", reason=str(error))
            self._refused = True
        else:
            self._followed = max(self._followed, number)

    async def wait(self) -> None:
        """Until something was written since the last wait ended."""
        await trio.lowlevel.wait_readable(self._inotify.fileno())
        for _ in range(_DRAINS_MAX):
            try:
                os.read(self._inotify.fileno(), _DRAIN_BYTES)
            except BlockingIOError:
                return

    def close(self) -> None:
        """No wait may be going on. Returns at once: on a busy machine the kernel takes tens of milliseconds."""
        trio.lowlevel.start_thread_soon(self._inotify.close, lambda result: result.unwrap())


def writes() -> Writes | None:
    """None: this system has none, or no more of them."""
    try:
        return Writes()
    except (OSError, AttributeError) as error:
        log.warning("writes_not_followed", reason=str(error))
        return None
