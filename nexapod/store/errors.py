"""What can go wrong with the database, told to the user: what happened, why, and what to do next."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from nexapod.protocol.errors import LocalError


class StoreError(LocalError):
    """The database could not be used. The message names the file and says what to do."""


_WHAT_TO_DO = {
    sqlite3.SQLITE_FULL: "the disk (or the size allowed to the database) is full; free some space",
    sqlite3.SQLITE_READONLY: "it is read-only; check its permissions and how its disk is mounted",
    sqlite3.SQLITE_PERM: "it cannot be written; check its owner and its permissions",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that its folder exists and belongs to you",
    sqlite3.SQLITE_BUSY: "another program holds it; close that program and try again",
    sqlite3.SQLITE_LOCKED: "another program holds it; close that program and try again",
    sqlite3.SQLITE_IOERR: "its disk reports an error; check the disk, its free space and the system log",
    sqlite3.SQLITE_TOOBIG: "a value is too large for it; this is a bug, please report it",
}
_DAMAGED = (
    "it is damaged or not a NEXAPod database; move it away (with its -wal and -shm files), or put a copy "
    "back: a daemon that starts without it keeps its identity, and peers send it again what they hold"
)
_WHAT_TO_DO |= {sqlite3.SQLITE_CORRUPT: _DAMAGED, sqlite3.SQLITE_NOTADB: _DAMAGED}
_UNKNOWN = "unexpected; the system log may say more"


def damaged(path: Path, finding: str) -> StoreError:
    """The error for a file that opens, but fails SQLite's own check."""
    return StoreError(f"{path}: {_DAMAGED} (integrity check: {finding})")


def explain(error: sqlite3.Error, path: Path) -> StoreError:
    """Put SQLite's error into words. The primary result code is the low byte of the extended one."""
    code = getattr(error, "sqlite_errorcode", None)
    advice = _WHAT_TO_DO.get(code & 0xFF, _UNKNOWN) if isinstance(code, int) else _UNKNOWN
    return StoreError(f"{path}: {advice} (SQLite: {error})")
