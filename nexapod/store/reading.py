"""Reads records back at once, for a core that asks in the middle of a call and cannot wait for the store's own thread.

A connection of its own, read-only: it sees what was committed (the log is write-ahead) and blocks no writer. It blocks
its caller for as long as the disk takes: ask for little.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from nexapod.protocol.records import Record
from nexapod.store import schema
from nexapod.store.errors import explain

BUSY_S = 5.0


class Reader:
    """The database, open for reading. Made by `open_reader`; for one thread."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def records(self, kind: str, prefix: bytes) -> list[Record]:
        """The committed records of a kind whose keys begin so, by key. Raises StoreError."""
        above = _above(prefix)
        try:
            rows = self._connection.execute(schema.LOAD_PREFIX, (kind, prefix, above, above)).fetchall()
        except sqlite3.Error as error:
            raise explain(error, self._path) from error
        return [Record(*row) for row in rows]


@contextmanager
def open_reader(path: Path) -> Iterator[Reader]:
    """A reader of a database that a Store holds open. Raises StoreError."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
    except sqlite3.Error as error:
        raise explain(error, path) from error
    with closing(connection):
        yield Reader(connection, path)


def _above(prefix: bytes) -> bytes | None:
    """The least key above all that begin with a prefix; None: there is none."""
    rest = prefix.rstrip(b"\xff")
    return None if not rest else rest[:-1] + bytes([rest[-1] + 1])
