"""One SQLite connection on trio: aiosqlite run under trio-asyncio, and the only file that knows either.

One task owns the asyncio loop and the connection, and runs the jobs it is given in turn. So no caller ever
meets asyncio; a caller that is cancelled cannot tear a transaction (the owner finishes or rolls back); and
callers need not be descendants of the task that opened the loop, as trio-asyncio would otherwise ask of
them.

Knows nothing of tables: schema.py has the SQL, store.py the meaning.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import aiosqlite
import structlog
import trio
import trio_asyncio

from nexapod.store.errors import StoreError, damaged, explain
from nexapod.store.schema import MIGRATIONS, Migrations

log = structlog.get_logger()

JOB_S_MAX = 60.0
"""A job that takes longer means a disk that no longer answers: the store is given up, loudly."""
OPEN_S_MAX = 600.0
"""The integrity check reads the whole file, and a migration may rewrite it."""
CLOSE_S_MAX = 30.0
PAGE_BYTES = 4096

Connection: TypeAlias = aiosqlite.Connection
Job: TypeAlias = Callable[[Connection], Awaitable[None]]
"""Runs in the owner. Raises nothing: it hands its outcome to whoever waits for it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a database is opened. `bytes_max` bounds the file; None leaves it to the disk."""

    path: Path
    busy_ms: int
    bytes_max: int | None
    job_s: float = JOB_S_MAX
    migrations: Migrations = MIGRATIONS


class Driver:
    """Where jobs for the connection are handed in."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Unbounded, because each entry has a live caller: store.py bounds those.
        self._jobs_in, self._jobs_out = trio.open_memory_channel[Job](math.inf)
        self._opened = trio.Event()
        self._open_error: StoreError | None = None
        self._broken = False

    def post(self, job: Job) -> None:
        """Queue a job. Raises StoreError when the store was given up or is closed."""
        if self._broken:
            raise self._hangs()
        try:
            self._jobs_in.send_nowait(job)
        except trio.ClosedResourceError:
            raise StoreError(f"{self._settings.path}: the store is closed") from None

    def close(self) -> None:
        """Take no more jobs; those queued are still run."""
        self._jobs_in.close()

    async def wait_open(self) -> None:
        """Return once jobs are served. Raises StoreError when the database cannot be opened."""
        await self._opened.wait()
        if self._open_error:
            raise self._open_error

    async def run(self) -> None:
        """Own the connection until closed or cancelled. Raises StoreError when the disk hangs."""
        try:
            await self._own()
        finally:
            self._opened.set()
        # Raised here, outside trio-asyncio's own nurseries, which would wrap it.
        if self._broken:
            raise self._hangs()

    async def _own(self) -> None:
        async with trio_asyncio.open_loop():
            connection = await self._open()
            if connection is None:
                return
            self._opened.set()
            try:
                await self._serve(connection)
            finally:
                await self._close(connection)

    async def _open(self) -> aiosqlite.Connection | None:
        """The connection, ready for use; or None, with the reason in `_open_error`."""
        connection: aiosqlite.Connection | None = None
        ready = False
        try:
            # Shielded: were it cancelled here, aiosqlite's thread would answer to a loop that is gone.
            with _shielded(self._settings.job_s):
                connection = await trio_asyncio.aio_as_trio(_connect)(self._settings)
            if connection is None:
                raise self._hangs()
            with trio.fail_after(OPEN_S_MAX):
                await trio_asyncio.aio_as_trio(_prepare)(connection, self._settings)
            ready = True
        except sqlite3.Error as error:
            self._open_error = explain(error, self._settings.path)
        except StoreError as error:
            self._open_error = error
        except trio.TooSlowError:
            self._open_error = StoreError(
                f"{self._settings.path}: could not be checked within {OPEN_S_MAX:.0f} s; check its disk"
            )
        finally:
            if connection is not None and not ready:
                await self._close(connection)
        return connection if ready else None

    async def _serve(self, connection: aiosqlite.Connection) -> None:
        async for job in self._jobs_out:
            # Shielded: a shutdown in the middle of a transaction waits for its end.
            with _shielded(self._settings.job_s) as scope:
                await trio_asyncio.aio_as_trio(job)(connection)
            if scope.cancelled_caught:
                log.error("store_disk_hangs", path=str(self._settings.path), waited_s=self._settings.job_s)
                self._broken = True
                return

    def _hangs(self) -> StoreError:
        return StoreError(
            f"{self._settings.path}: its disk has not answered for {self._settings.job_s:g} s; "
            "check the disk, then start the daemon again"
        )

    async def _close(self, connection: aiosqlite.Connection) -> None:
        with _shielded(CLOSE_S_MAX) as scope:
            try:
                await trio_asyncio.aio_as_trio(connection.close)()
            except sqlite3.Error as error:
                # Everything acknowledged is on disk already: closing only tidies the log file up.
                log.warning("store_close_failed", path=str(self._settings.path), error=str(error))
        if scope.cancelled_caught:
            log.error("store_close_hangs", path=str(self._settings.path), waited_s=CLOSE_S_MAX)


def _shielded(seconds: float) -> trio.CancelScope:
    return trio.CancelScope(deadline=trio.current_time() + seconds, shield=True)


@asynccontextmanager
async def open_driver(settings: Settings) -> AsyncIterator[Driver]:
    """Open, check and migrate; close at the end. Raises StoreError, and the body's own errors unwrapped."""
    driver = Driver(settings)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.run)
            await driver.wait_open()
            try:
                yield driver
            finally:
                driver.close()
    except BaseExceptionGroup as group:
        # The nursery is a detail of ours: one error inside comes out as itself.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


async def _connect(settings: Settings) -> aiosqlite.Connection:
    failures: list[sqlite3.Error] = []

    def connect() -> sqlite3.Connection:
        try:
            # IMMEDIATE: the first write of a transaction takes the lock at once, so no later one fails for it.
            return sqlite3.connect(settings.path, timeout=settings.busy_ms / 1000, isolation_level="IMMEDIATE")
        except sqlite3.Error as error:
            # When connecting fails aiosqlite does not wait for its thread, which then answers to a loop that is
            # gone. So it always succeeds, is closed in order, and the failure is raised after that.
            failures.append(error)
            return sqlite3.connect(":memory:")

    connection = await aiosqlite.Connection(connect, iter_chunk_size=64)
    if failures:
        await connection.close()
        raise failures[0]
    try:
        await _configure(connection, settings)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _configure(connection: aiosqlite.Connection, settings: Settings) -> None:
    await connection.execute_fetchall("PRAGMA journal_mode = WAL")
    await connection.execute_fetchall("PRAGMA synchronous = FULL")
    await connection.execute_fetchall("PRAGMA foreign_keys = ON")
    # The log is cut back to this after a burst, rather than keeping its largest size.
    await connection.execute_fetchall(f"PRAGMA journal_size_limit = {16 << 20}")
    if settings.bytes_max is not None:
        await connection.execute_fetchall(f"PRAGMA max_page_count = {settings.bytes_max // PAGE_BYTES}")


async def _prepare(connection: aiosqlite.Connection, settings: Settings) -> None:
    findings = [str(row[0]) for row in await connection.execute_fetchall("PRAGMA quick_check(1)")]
    if findings != ["ok"]:
        raise damaged(settings.path, findings[0] if findings else "no answer")
    version = next(iter(await connection.execute_fetchall("PRAGMA user_version")))[0]
    known = len(settings.migrations)
    if version > known:
        raise StoreError(
            f"{settings.path}: written by a newer NEXAPod (schema {version}, this one knows {known}); "
            "update NEXAPod, or use another home folder"
        )
    for number in range(version, known):
        await _migrate(connection, settings.migrations[number], number + 1)


async def _migrate(connection: aiosqlite.Connection, steps: tuple[str, ...], version: int) -> None:
    """One migration and its number, in one transaction: a crash leaves the old schema or the new one."""
    await connection.execute("BEGIN IMMEDIATE")
    try:
        for step in steps:
            await connection.execute(step)
        await connection.execute(f"PRAGMA user_version = {version}")
        await connection.commit()
    except BaseException:
        await connection.rollback()
        raise
