"""The home folder: where everything of one daemon lies, and the lock that lets only one daemon use it.

Knows the layout, not the contents: the identity, the database and the blobs are other modules' files. Loads
neither trio nor SQLite, so that a command line may use it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nexapod.protocol.errors import LocalError

SOCKET_PATH_MAX = 100


class HomeError(LocalError):
    """The home folder cannot be used. The message names it and says what to do."""


class HomeInUse(HomeError):
    """Another daemon holds this home folder. `pid` is its process, None when it could not be read."""

    def __init__(self, root: Path, pid: int | None) -> None:
        holder = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"{root}: {holder} is already running with this home folder; stop it, or choose another one")
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Home:
    """The paths inside a home folder."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "identity.seed"

    @property
    def database(self) -> Path:
        return self.root / "nexapod.db"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def tasks(self) -> Path:
        return self.root / "tasks"

    @property
    def api_socket(self) -> Path:
        return self.root / "api.sock"

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def paused(self) -> Path:
        return self.root / "paused"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def create(self) -> None:
        """Make the folder with access for its owner only, or check and tighten it. Raises HomeError."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.root.stat()
            if status.st_uid != os.geteuid():
                raise HomeError(f"{self.root}: belongs to another user; choose a home folder of your own")
            if stat.S_IMODE(status.st_mode) != 0o700:
                self.root.chmod(0o700)
            for folder in (self.blobs, self.tasks):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HomeError(
                f"{self.root}: not usable as home folder ({error.strerror}); choose another, or correct it"
            ) from error

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Create the folder and be its only daemon until the end. Raises HomeInUse, HomeError.

        The kernel drops the lock with the process, however it ends: a lock file left behind never stands in
        the way.
        """
        self.create()
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise HomeError(f"{self.lock}: cannot be opened ({error.strerror}); check its permissions") from error
        try:
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            raise HomeInUse(self.root, _pid_in(descriptor)) from None
        except OSError as error:
            raise HomeError(f"{self.lock}: cannot be locked ({error.strerror}); {_lock_advice(error)}") from error


@contextmanager
def short_socket_path(path: Path) -> Iterator[str]:
    """The path, or one that leads to the same place and fits the kernel's 107 bytes; good inside the block."""
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _pid_in(descriptor: int) -> int | None:
    # Empty for the instant between its holder's flock and its write.
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _lock_advice(error: OSError) -> str:
    if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
        return "its file system has no locks: choose a home folder on a local disk"
    return "check the disk and its free space"
