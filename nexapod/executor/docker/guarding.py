"""A daemon's side of its guard (guard.py): it is there before the first container begins, and told when all is done."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import trio

from nexapod.executor.docker.engine import EngineError
from nexapod.executor.docker.guard import DONE, open_lock, take

log = structlog.get_logger()

WAIT_S: Final = 60.0
"""How long a former daemon's guard may take to freeze what is left."""
ENDS_S: Final = 5.0
SAID_BYTES: Final = 4096


@dataclass(slots=True)
class Guard:
    """`lock`: a file of this home's alone; what the guard has said lies beside it."""

    lock: Path
    home: str
    scratch: Path
    url: str | None = None
    _held: int | None = None
    _process: subprocess.Popen[bytes] | None = None
    _setting: trio.Lock = field(default_factory=trio.Lock)

    async def stand(self) -> None:
        """A guard watches over this process from now on. Raises EngineError."""
        async with self._setting:
            try:
                await self._hold()
                if self._process is None or self._process.poll() is not None:
                    self._process = await trio.to_thread.run_sync(self._begin)
            except OSError as error:
                raise EngineError(f"no guard can be set over the containers: {error}") from None

    def close(self, *, done: bool) -> None:
        """This process ends. `done`: nothing is left to guard; otherwise the guard sees to it. Blocks for a moment."""
        process, self._process = self._process, None
        if process is not None and done:
            try:
                process.communicate(DONE, timeout=ENDS_S)
            except (subprocess.TimeoutExpired, OSError) as error:
                log.warning("guard_not_ended", error=str(error))
                process.kill()
                process.wait()
        elif process is not None and process.stdin is not None:
            process.stdin.close()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    async def _hold(self) -> None:
        """Be the daemon that is there. Waits for a guard that is at work; what it did is told."""
        if self._held is not None:
            return
        descriptor = open_lock(self.lock)
        try:
            with trio.fail_after(WAIT_S):
                while not take(descriptor):  # noqa: ASYNC110  (another process holds it)
                    await trio.sleep(0.05)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except trio.TooSlowError:
            os.close(descriptor)
            raise EngineError("the guard of a former daemon is still at work on its containers") from None
        except BaseException:
            os.close(descriptor)
            raise
        self._held = descriptor
        for line in self._said():
            log.info("guard_acted", said=line)

    @property
    def _said_path(self) -> Path:
        return self.lock.with_suffix(".said")

    def _said(self) -> list[str]:
        try:
            with self._said_path.open("rb") as file:
                return file.read(SAID_BYTES).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def _begin(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-I", "-m", "nexapod.executor.docker.guard"]
        argv += [str(os.getpid()), str(self.lock), self.home, str(self.scratch), *([self.url] if self.url else [])]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        said = os.open(self._said_path, flags, 0o600)
        try:
            # In a session of its own: what is typed at the daemon's terminal is for the daemon.
            return subprocess.Popen(  # noqa: S603  (all of it is ours)
                argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True, cwd="/"
            )
        finally:
            os.close(said)
