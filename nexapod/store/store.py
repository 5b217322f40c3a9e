"""What the daemon keeps: the core's records and the addresses of known peers, in one SQLite file.

Responsible for durability: when `commit` returns, kill -9 and power loss keep what was committed, whole.
Does not know what a record means.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import trio

from nexapod.protocol.records import Record
from nexapod.store import schema
from nexapod.store.driver import Connection, Driver, Settings, open_driver
from nexapod.store.errors import StoreError, explain

T = TypeVar("T")

PEERS_MAX = 1000
"""Peers whose addresses are kept: the least recently seen are dropped."""
PEER_ADDRS_MAX = 16
CALLS_MAX = 256
"""Calls under way at once; further ones wait their turn."""
BUSY_MS = 5000


class KnownPeer(NamedTuple):
    """Where a peer was last reached. `last_seen_wall_ms`: Unix time in milliseconds, this machine's clock."""

    peer_id: str
    addrs: list[str]
    last_seen_wall_ms: int


@dataclass(eq=False, slots=True)
class _Commit:
    """One commit() under way."""

    records: Sequence[Record]
    done: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None


class Store:
    """The open database. Made by `Store.open`; safe to use from any number of tasks."""

    def __init__(self, driver: Driver, path: Path) -> None:
        self._driver = driver
        self._path = path
        self._waiting: list[_Commit] = []
        self._calls = trio.Semaphore(CALLS_MAX)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, busy_ms: int = BUSY_MS, bytes_max: int | None = None) -> AsyncIterator[Store]:
        """Open (or create) the database, check it, bring its schema up to date; close it at the end.

        `busy_ms`: how long to wait for another program's lock. `bytes_max`: bound of the file; None means
        the disk. Raises StoreError: damaged, newer than this program, not accessible.
        """
        async with open_driver(Settings(path, busy_ms, bytes_max)) as driver:
            yield cls(driver, path)

    async def commit(self, records: Sequence[Record]) -> None:
        """Write all of `records` in one transaction, or none; on disk when this returns. The last of a key
        wins.

        Commits that wait at the same moment share one transaction, in the order they came: one wait for the
        disk instead of many. If that fails each is tried alone, so one caller's fault is not another's.
        Raises StoreError, with nothing written. When cancelled, all or nothing of it will have been
        written.
        """
        if not records:
            return
        async with self._calls:
            mine = _Commit(tuple(records))
            self._waiting.append(mine)
            if len(self._waiting) == 1:
                self._post_flush()
            try:
                await mine.done.wait()
            finally:
                if mine in self._waiting:
                    self._waiting.remove(mine)
        if mine.error is not None:
            raise mine.error

    async def load(self, kind: str | None = None, *, but: Collection[str] = ()) -> list[Record]:
        """All records (`but` those of these kinds), or those of one kind, ordered by (kind, key). Raises StoreError."""
        if kind is None:
            rows = await self._fetch(schema.LOAD_BUT, (json.dumps(sorted(but)),))
        else:
            rows = await self._fetch(schema.LOAD_KIND, (kind,))
        return [Record(*row) for row in rows]

    async def set_aside(self) -> int:
        """How many records of an earlier version of the protocol lie here, read by nobody. Raises StoreError."""
        return int((await self._fetch(schema.COUNT_SET_ASIDE))[0][0])

    async def peers(self) -> list[KnownPeer]:
        """The known peers, most recently seen first. Raises StoreError."""
        return [KnownPeer(peer, json.loads(addrs), seen) for peer, addrs, seen in await self._fetch(schema.PEERS)]

    async def remember_peers(self, peers: Iterable[tuple[str, Sequence[str], int]]) -> None:
        """Keep (peer id, addresses, last seen in wall-clock ms) of each, unless something newer is known.

        At most PEERS_MAX peers and PEER_ADDRS_MAX addresses of each stay. Raises StoreError.
        """
        rows = [(peer, json.dumps(list(addrs)[:PEER_ADDRS_MAX]), seen) for peer, addrs, seen in peers]

        async def write(connection: Connection) -> None:
            await connection.executemany(schema.UPSERT_PEER, rows)
            await connection.execute(schema.TRIM_PEERS, (PEERS_MAX,))

        if rows:
            await self._call(lambda connection: _transaction(connection, write))

    async def _fetch(self, sql: str, parameters: tuple[object, ...] = ()) -> list[Any]:
        async def read(connection: Connection) -> list[Any]:
            return list(await connection.execute_fetchall(sql, parameters))

        return await self._call(read)

    async def _call(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` where the connection lives and hand back its result."""
        done = trio.Event()
        results: list[T] = []
        errors: list[Exception] = []

        async def job(connection: Connection) -> None:
            try:
                results.append(await work(connection))
            except Exception as error:  # whatever it is belongs to the caller, not to the connection's owner
                errors.append(self._blame(error))
            done.set()

        async with self._calls:
            self._driver.post(job)
            await done.wait()
        if errors:
            raise errors[0]
        return results[0]

    def _post_flush(self) -> None:
        try:
            self._driver.post(self._flush)
        except StoreError:
            self._waiting.pop()
            raise

    async def _flush(self, connection: Connection) -> None:
        group, self._waiting = self._waiting, []
        if not await self._write(connection, group) and len(group) > 1:
            for one in group:
                await self._write(connection, [one])
        for one in group:
            one.done.set()

    async def _write(self, connection: Connection, group: list[_Commit]) -> bool:
        upserts, deletes = _net_effect(record for one in group for record in one.records)

        async def write(connection: Connection) -> None:
            if upserts:
                await connection.executemany(schema.UPSERT, upserts)
            if deletes:
                await connection.executemany(schema.DELETE, deletes)

        error: Exception | None = None
        try:
            if group:
                await _transaction(connection, write)
        except Exception as problem:  # handed to every caller of the group
            error = self._blame(problem)
        for one in group:
            one.error = error
        return error is None

    def _blame(self, error: Exception) -> Exception:
        return explain(error, self._path) if isinstance(error, sqlite3.Error) else error


def _net_effect(records: Iterable[Record]) -> tuple[list[tuple[str, bytes, bytes]], list[tuple[str, bytes]]]:
    """What is left to insert and to delete when only the last record of each key counts."""
    last = {(record.kind, record.key): record.value for record in records}
    upserts = [(kind, key, value) for (kind, key), value in last.items() if value is not None]
    deletes = [(kind, key) for (kind, key), value in last.items() if value is None]
    return upserts, deletes


async def _transaction(connection: Connection, write: Callable[[Connection], Awaitable[None]]) -> None:
    """Run `write` and commit, or roll back. The first statement opens the transaction (see driver.py)."""
    try:
        await write(connection)
        await connection.commit()
    except Exception:
        # Not BaseException: a cancellation means that the disk hangs (driver.py), and so would the rollback.
        await connection.rollback()
        raise
