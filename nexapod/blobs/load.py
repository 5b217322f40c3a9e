"""Whether this machine could take in more if more were sent.

A fetch is held up by what its sources send, or by what this machine can do with it: decrypt, hash, write. In the second
case a further source brings nothing but its own cost, to this machine and to whoever runs it
(docs/decisions/0020-a-further-source-needs-room.md). Knows this process and this machine's cores, and no fetch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psutil

WINDOW_S: Final = 0.1
"""Ten of the kernel's ticks, in which it counts idle time."""
STALE_S: Final = 3 * WINDOW_S
"""Who waits asks more often: what began longer ago was not looked at, and tells of another time."""
OWN_MIN: Final = 0.7
"""Cores: a process that uses less is not held up by the processor, whatever else the machine does."""
IDLE_MAX: Final = 0.75
"""Cores: where more stand idle, a second source has one to be served with."""
WINDOWS: Final = 2
"""One after the other: a single one may have met a pause, in which the disk was waited for."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds since some fixed time. `own`: of all cores, by this process. `idle`: of all cores, by nobody."""

    at: float
    own: float
    idle: float


def spent_now() -> Spent:
    """Read the clocks of this process and of the machine's cores."""
    return Spent(time.monotonic(), time.process_time(), _idle())


def _idle() -> float:
    try:
        times = psutil.cpu_times()
    except OSError:
        return 0.0  # some hosts hide it (/proc/stat) from what they run: none is known to stand idle
    # A core that waits for a disk is free for other work. Not every system tells that apart.
    return float(times.idle + getattr(times, "iowait", 0.0))


class Load:
    """What the last windows showed."""

    def __init__(self, spent: Callable[[], Spent] = spent_now, clock: Callable[[], float] = time.monotonic) -> None:
        self._spent = spent
        self._clock = clock
        self._since: Spent | None = None
        self._with_room = 0
        """Windows, up to now and without one between them that had none."""

    def has_room(self) -> bool:
        """Whether more could be taken in. Not before that is seen, in windows that began with a question."""
        passed = self._clock() - self._since.at if self._since else STALE_S
        if passed >= WINDOW_S:
            before, now = self._since, self._spent()
            self._since = now
            seen = before is not None and passed < STALE_S and _had_room(before, now)
            self._with_room = self._with_room + 1 if seen else 0
        return self._with_room >= WINDOWS


def _had_room(before: Spent, now: Spent) -> bool:
    passed = now.at - before.at
    return (now.own - before.own) / passed < OWN_MIN or (now.idle - before.idle) / passed > IDLE_MAX
