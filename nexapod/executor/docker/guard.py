"""A process that sees to a daemon's containers when the daemon is gone: nobody else would.

    python -I -m nexapod.executor.docker.guard PID LOCK HOME SCRATCH [URL]

It sleeps until its standard input ends. A daemon that ends in good order says so first, and all is done. One that was
killed says nothing: then its containers are frozen at once, since nobody watches their limits, or knows what the owner
wants of this machine; and those that no other daemon has taken up after KEEP_S are removed, since what is frozen holds
memory. The note of a run says since when it stands still: that is no time of the task's.

While it acts it holds LOCK, which a daemon holds for as long as it lives: the next one waits until the freezing is
done, and once it is there nothing is touched any more. Loads nothing before it is needed: waiting should cost next to
nothing. What it does it says on its standard error, which the next daemon reads.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from nexapod.executor.docker.engine import Engine

DONE: Final = b"done"
"""What a daemon says that has left nothing behind."""
KEEP_S: Final = 600.0
"""How long what is frozen is kept for the next daemon. By then its tasks were long given to others."""
LOOK_EVERY_S: Final = 5.0
DYING_S: Final = 10.0
"""How long the lock of a daemon that is gone may still seem to be held."""


class _Hurry:
    """Whether this process was told to end: then it does what cannot wait, and no more."""

    def __init__(self) -> None:
        self.told = False
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, *_: Any) -> None:
        self.told = True


def main(pid: int, lock: str, home: str, scratch: str, url: str | None = None) -> None:
    hurry = _Hurry()
    if _last_words() == DONE:
        return
    until = None
    while True:
        try:
            held = _hold(lock, pid)
        except FileNotFoundError:
            _act(url, home, scratch, remove=True)  # the home was removed: no daemon comes back to it
            return
        if held is None:
            return
        try:
            too_late = until is not None and time.monotonic() >= until
            left = _act(url, home, scratch, remove=too_late)
        finally:
            os.close(held)
        # The first look may come before what the daemon had asked for last: an engine is slow to start a container.
        if (left == 0 and until is not None) or too_late or hurry.told:
            return
        until = until or time.monotonic() + KEEP_S
        time.sleep(LOOK_EVERY_S)


def open_lock(path: str | os.PathLike[str]) -> int:
    """Its descriptor, not yet held. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def take(descriptor: int) -> bool:
    """Hold the lock, unless another process does. Closing the descriptor lets it go."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _last_words() -> bytes:
    said = b""
    while piece := os.read(0, 64):
        said += piece
    return said.strip()


def _hold(lock: str, gone: int) -> int | None:
    """The lock, held; None: another daemon than the one that is `gone` has it. Raises FileNotFoundError."""
    descriptor = open_lock(lock)
    until = time.monotonic() + DYING_S
    while not take(descriptor):
        holder = os.pread(descriptor, 32, 0).strip()
        if holder != b"%d" % gone or time.monotonic() > until:
            os.close(descriptor)
            return None
        time.sleep(0.02)
    return descriptor


def _act(url: str | None, home: str, scratch: str, *, remove: bool) -> int | None:
    """How many containers are left that hold anything. None: the engine does not tell; it may be back later."""
    from pathlib import Path

    from nexapod.executor.docker.engine import EngineError, connect
    from nexapod.executor.docker.settings import container_name

    try:
        engine = connect(url, home)
    except EngineError as error:
        _say(str(error))
        return None
    try:
        ours = [(name, label) for name, label in engine.runs().items() if name == container_name(home, label)]
        return sum(_see_to(engine, name, Path(scratch, label), remove) for name, label in ours)
    except EngineError as error:
        _say(str(error))
        return None
    finally:
        engine.close()


def _see_to(engine: Engine, name: str, scratch: Path, remove: bool) -> bool:
    """Whether the container is still there and holds memory. One that has ended by itself holds none, and its result is
    the next daemon's to collect. Raises EngineError."""
    from nexapod.executor.docker.engine import EngineError
    from nexapod.executor.docker.notes import Notes, notes_of

    try:
        found = engine.look(name)
    except EngineError as error:
        if error.status != 404:
            raise
        return False
    if not found.alive:
        return False
    if remove:
        engine.remove(name)
        _say(f"removed {name}: no daemon has come back for it")
        return False
    if found.status == "running" and engine.pause(name):
        _say(f"froze {name}: its daemon is gone")
        notes = Notes.read(notes_of(scratch))
        if notes.paused_since is None and scratch.is_dir():
            notes.paused_since = time.monotonic()
            notes.write()
    return True


def _say(text: str) -> None:
    os.write(2, text.encode(errors="replace") + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:6])
