"""Every error of SQLite that a user can meet names the file and says what to do."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from nexapod.store.errors import explain

PATH = Path("/home/ada/.nexapod/nexapod.db")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_FULL, "free some space"),
        (sqlite3.SQLITE_READONLY, "read-only"),
        (sqlite3.SQLITE_BUSY, "another program"),
        (sqlite3.SQLITE_IOERR_FSYNC, "check the disk"),
        (sqlite3.SQLITE_CORRUPT, "move it away"),
        (sqlite3.SQLITE_NOTADB, "move it away"),
        (sqlite3.SQLITE_CANTOPEN, "folder"),
        (sqlite3.SQLITE_MISMATCH, "unexpected"),
    ],
)
def test_codes_are_explained(code, words):
    error = sqlite3.OperationalError("sqlite's own words")
    error.sqlite_errorcode = code
    message = str(explain(error, PATH))
    assert words in message
    assert str(PATH) in message
    assert "sqlite's own words" in message


def test_an_error_without_a_code_is_still_told():
    assert "unexpected" in str(explain(sqlite3.ProgrammingError("odd"), PATH))
