"""The store's contract, on the real one (SQLite) and on the fake that other tests may use in its place."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from nexapod.protocol.records import Record
from nexapod.store.driver import Settings, open_driver
from nexapod.store.errors import StoreError
from nexapod.store.reading import open_reader
from nexapod.store.schema import MIGRATIONS, SCHEMA_VERSION
from nexapod.store.store import PEERS_MAX, KnownPeer, Store


class MemoryStore:
    """The fake: the same contract in dictionaries, kept by path so that it can be opened again."""

    _disks: dict[Path, tuple[dict[tuple[str, bytes], bytes], dict[str, KnownPeer]]] = {}  # noqa: RUF012

    def __init__(self, path: Path) -> None:
        self._records, self._peers = self._disks.setdefault(path, ({}, {}))

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator[MemoryStore]:
        yield cls(path)

    async def commit(self, records: Sequence[Record]) -> None:
        await trio.lowlevel.checkpoint()
        for record in records:
            if record.value is None:
                self._records.pop((record.kind, record.key), None)
            else:
                self._records[record.kind, record.key] = record.value

    async def load(self, kind: str | None = None, *, but: Collection[str] = ()) -> list[Record]:
        await trio.lowlevel.checkpoint()
        found = [Record(*key, value) for key, value in sorted(self._records.items())]
        return [record for record in found if kind in (None, record.kind) and (kind or record.kind not in but)]

    async def peers(self) -> list[KnownPeer]:
        return sorted(self._peers.values(), key=lambda peer: (-peer.last_seen_wall_ms, peer.peer_id))

    async def remember_peers(self, peers: Sequence[tuple[str, Sequence[str], int]]) -> None:
        for peer, addrs, seen in peers:
            known = self._peers.get(peer)
            if known is None or seen >= known.last_seen_wall_ms:
                self._peers[peer] = KnownPeer(peer, list(addrs), seen)
        for dropped in (await self.peers())[PEERS_MAX:]:
            del self._peers[dropped.peer_id]


@pytest.fixture(params=[Store, MemoryStore])
def kind_of_store(request):
    return request.param


async def test_records_come_back_in_order_after_reopening(kind_of_store, tmp_path):
    path = tmp_path / "nexapod.db"
    async with kind_of_store.open(path) as store:
        await store.commit([Record("job", b"\xff", b"3"), Record("job", b"\x00", b"2"), Record("bid", b"", b"")])
    async with kind_of_store.open(path) as store:
        assert await store.load() == [
            Record("bid", b"", b""),
            Record("job", b"\x00", b"2"),
            Record("job", b"\xff", b"3"),
        ]
        assert await store.load("bid") == [Record("bid", b"", b"")]
        assert await store.load("absent") == []


async def test_kinds_that_nobody_wants_are_not_loaded(kind_of_store, tmp_path):
    async with kind_of_store.open(tmp_path / "nexapod.db") as store:
        await store.commit([Record(kind, b"k", b"v") for kind in ("a", "b'", "c")])
        assert [record.kind for record in await store.load(but=frozenset({"b'", "absent"}))] == ["a", "c"]
        assert [record.kind for record in await store.load(but=("a", "c"))] == ["b'"]


async def test_the_last_record_of_a_key_wins_and_none_deletes(kind_of_store, tmp_path):
    async with kind_of_store.open(tmp_path / "nexapod.db") as store:
        await store.commit([])
        await store.commit([Record("a", b"1", b"old"), Record("a", b"2", b"x"), Record("a", b"3", None)])
        await store.commit([Record("a", b"1", None), Record("a", b"1", b"new"), Record("a", b"2", b"y")])
        await store.commit([Record("a", b"2", b"z"), Record("a", b"2", None)])
        assert await store.load() == [Record("a", b"1", b"new")]


async def test_commits_of_many_tasks_at_once_are_all_kept(kind_of_store, tmp_path):
    path = tmp_path / "nexapod.db"
    async with kind_of_store.open(path) as store, trio.open_nursery() as nursery:
        for number in range(400):
            nursery.start_soon(store.commit, [Record("n", number.to_bytes(2, "big"), b"v")])
    async with kind_of_store.open(path) as store:
        assert len(await store.load("n")) == 400


async def test_peers_are_bounded_and_the_newest_news_count(kind_of_store, tmp_path):
    path = tmp_path / "nexapod.db"
    async with kind_of_store.open(path) as store:
        await store.remember_peers([])
        await store.remember_peers([(f"p{n}", ["/ip4/10.0.0.1/tcp/1"], n) for n in range(PEERS_MAX + 5)])
        await store.remember_peers([("p700", ["stale"], 3), ("p800", ["fresh"], 10_000)])
    async with kind_of_store.open(path) as store:
        peers = await store.peers()
    assert len(peers) == PEERS_MAX
    assert peers[0] == KnownPeer("p800", ["fresh"], 10_000)
    by_id = {peer.peer_id: peer for peer in peers}
    assert by_id["p700"].addrs == ["/ip4/10.0.0.1/tcp/1"]
    assert "p4" not in by_id
    assert "p5" in by_id


# --- the real one only ---------------------------------------------------------------------------------------------


async def test_records_of_the_protocol_before_are_set_aside_and_its_peers_stay(tmp_path):
    path = tmp_path / "nexapod.db"
    with closing(sqlite3.connect(path)) as old:
        for step in MIGRATIONS[0]:
            old.execute(step)
        old.executemany("INSERT INTO records VALUES (?, ?, ?)", [("job", b"k", b"old"), ("seq", b"", b"7")])
        old.execute("INSERT INTO peers VALUES ('p', '[]', 1)")
        old.execute("PRAGMA user_version = 1")
        old.commit()
    for _ in range(2):
        async with Store.open(path) as store:
            assert await store.load("seq") == []
            assert await store.set_aside() == 2
            assert await store.peers() == [KnownPeer("p", [], 1)]
            await store.commit([Record("job", b"k", b"new")])
            assert await store.load() == [Record("job", b"k", b"new")]


async def test_a_new_store_has_set_nothing_aside(tmp_path):
    async with Store.open(tmp_path / "nexapod.db") as store:
        assert await store.set_aside() == 0


async def test_a_reader_sees_what_is_committed_while_a_writer_goes_on_and_writes_nothing(tmp_path):
    path = tmp_path / "nexapod.db"
    async with Store.open(path) as store:
        with open_reader(path) as reader:
            for number in range(20):
                await store.commit([Record("n", bytes([number]), b"v")])
                assert [record.key for record in reader.records("n", b"")] == [bytes([n]) for n in range(number + 1)]
            with pytest.raises(sqlite3.OperationalError):
                reader._connection.execute("DELETE FROM records")
        with pytest.raises(StoreError, match="nowhere"), open_reader(tmp_path / "nowhere" / "nexapod.db"):
            pass


async def test_it_is_set_up_for_durability(tmp_path):
    path = tmp_path / "nexapod.db"
    settings = {}

    async def look(connection):
        for name in ("journal_mode", "synchronous", "foreign_keys", "user_version"):
            settings[name] = next(iter(await connection.execute_fetchall(f"PRAGMA {name}")))[0]

    async with Store.open(path) as store:
        await store._call(look)
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "user_version": SCHEMA_VERSION,
    }


async def test_errors_of_the_body_come_out_as_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError):
        async with Store.open(tmp_path / "nexapod.db"):
            raise ZeroDivisionError


async def test_a_full_database_refuses_the_commit_whole_and_goes_on(tmp_path):
    async with Store.open(tmp_path / "nexapod.db", bytes_max=200_000) as store:
        await store.commit([Record("a", b"kept", b"1")])
        with pytest.raises(StoreError, match=r"nexapod\.db.*full.*free some space"):
            await store.commit([Record("a", bytes([n]), bytes(50_000)) for n in range(10)])
        await store.commit([Record("a", b"after", b"2")])
        assert [record.key for record in await store.load()] == [b"after", b"kept"]


async def test_of_commits_joined_in_one_transaction_only_the_faulty_one_fails(tmp_path):
    failed = []
    async with Store.open(tmp_path / "nexapod.db", bytes_max=400_000) as store:

        async def commit(number, size):
            try:
                await store.commit([Record("a", bytes([number]), bytes(size))])
            except StoreError:
                failed.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(commit, number, 500_000 if number == 3 else 10)
        assert failed == [3]
        assert [record.key[0] for record in await store.load()] == [0, 1, 2, 4, 5]


async def test_another_programs_lock_is_waited_for_and_then_reported(tmp_path):
    path = tmp_path / "nexapod.db"
    async with Store.open(path, busy_ms=50) as store:
        other = sqlite3.connect(path)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program holds it"):
            await store.commit([Record("a", b"1", b"x")])
        other.rollback()
        other.close()
        await store.commit([Record("a", b"1", b"y")])
        assert await store.load() == [Record("a", b"1", b"y")]


async def test_a_cancelled_commit_is_whole_or_absent_and_harms_no_other(tmp_path):
    both = [Record("a", b"1", b"x"), Record("a", b"2", b"x")]
    async with Store.open(tmp_path / "nexapod.db") as store:
        for _ in range(50):
            async with trio.open_nursery() as nursery:
                with trio.move_on_after(0.0003):
                    nursery.start_soon(store.commit, [Record("b", b"other", b"x")])
                    await store.commit(both)
            assert len(await store.load("a")) in (0, 2)
            assert len(await store.load("b")) == 1
            await store.commit([Record("a", b"1", None), Record("a", b"2", None), Record("b", b"other", None)])


async def test_cancelling_everything_closes_the_database(tmp_path):
    path = tmp_path / "nexapod.db"
    with trio.fail_after(10):
        with trio.CancelScope() as scope:
            async with Store.open(path) as store:
                await store.commit([Record("a", b"1", b"x")])
                scope.cancel()
                await store.commit([Record("a", b"2", b"x")])
        assert scope.cancelled_caught
    assert not path.with_name("nexapod.db-wal").exists(), "closed cleanly: the log is folded in"
    async with Store.open(path) as store:
        assert Record("a", b"1", b"x") in await store.load()


async def test_a_closed_store_says_so(tmp_path):
    async with Store.open(tmp_path / "nexapod.db") as store:
        pass
    with pytest.raises(StoreError, match="closed"):
        await store.commit([Record("a", b"1", b"x")])
    with pytest.raises(StoreError, match="closed"):
        await store.load()


async def test_a_disk_that_does_not_answer_is_given_up(tmp_path):
    path = tmp_path / "nexapod.db"
    async with Store.open(path):
        pass
    other = sqlite3.connect(path)

    async def commit_while_locked():
        async with open_driver(Settings(path, busy_ms=500, bytes_max=None, job_s=0.1)) as driver:
            other.execute("BEGIN IMMEDIATE")
            await Store(driver, path).commit([Record("a", b"1", b"x")])

    # The lock stands in for the hanging disk: SQLite waits for it in its thread, longer than a job may take.
    with pytest.raises(StoreError, match="has not answered"):
        await commit_while_locked()
    other.rollback()
    other.close()


async def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "nexapod.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match=r"newer NEXAPod.*update NEXAPod"):
        async with Store.open(path):
            pass


async def test_migrations_are_applied_once_and_a_failing_one_changes_nothing(tmp_path):
    path = tmp_path / "nexapod.db"
    better = (*MIGRATIONS, ("CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('made')"))
    worse = (*better, ("CREATE TABLE more (text TEXT)", "INSERT INTO absent VALUES (1)"))

    async def notes(migrations):
        async with open_driver(Settings(path, 5000, None, migrations=migrations)) as driver:
            return await Store(driver, path)._fetch("SELECT text FROM notes")

    async with Store.open(path) as store:
        await store.commit([Record("a", b"1", b"x")])
    for _ in range(2):
        assert await notes(better) == [("made",)]
    with pytest.raises(StoreError, match="absent"):
        await notes(worse)
    async with open_driver(Settings(path, 5000, None, migrations=better)) as driver:
        store = Store(driver, path)
        assert await store.load() == [Record("a", b"1", b"x")]
        with pytest.raises(StoreError, match="no such table"):
            await store._fetch("SELECT * FROM more")


async def test_a_file_that_is_no_database_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "nexapod.db"
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(StoreError, match=r"nexapod\.db.*move it away"):
        async with Store.open(path):
            pass
    assert path.read_bytes().startswith(b"not a database"), "left as it is, for the user to decide"


async def test_a_damaged_database_is_found_on_opening(tmp_path):
    path = tmp_path / "nexapod.db"
    async with Store.open(path) as store:
        await store.commit([Record("a", n.to_bytes(2, "big"), os.urandom(500)) for n in range(500)])
    content = bytearray(path.read_bytes())
    content[8192:60_000] = os.urandom(60_000 - 8192)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        async with Store.open(path):
            pass


async def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(StoreError, match="check that its folder exists"):
        async with Store.open(tmp_path / "absent" / "nexapod.db"):
            pass


WRITER = """
import sys, trio
from pathlib import Path
from nexapod.protocol.records import Record
from nexapod.store.store import Store

async def lane(store, name):
    number = 0
    while True:
        number += 1
        stamp = b"%d" % number
        await store.commit([Record(name, b"left", stamp), Record(name, b"right", stamp + b" " * 3000)])
        print(name, number, flush=True)

async def main():
    async with Store.open(Path(sys.argv[1])) as store, trio.open_nursery() as nursery:
        for name in ("one", "two", "three"):
            nursery.start_soon(lane, store, name)

trio.run(main)
"""


def run_writer_and_kill_it(path: Path, lines_before_kill: int) -> dict[str, int]:
    """What the writer had acknowledged when it was killed, by lane."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(lines_before_kill)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
    acknowledged: dict[str, int] = {}
    for line in lines:
        if line.endswith(b"\n") and line.strip():
            name, number = line.decode().split()
            acknowledged[name] = int(number)
    return acknowledged


async def test_kill_9_in_mid_commit_loses_nothing_acknowledged(tmp_path):
    started = time.monotonic()
    for round_number in range(4):
        path = tmp_path / f"{round_number}.db"
        acknowledged = run_writer_and_kill_it(path, 40 + 37 * round_number)
        assert acknowledged
        async with Store.open(path) as store:
            kept = {(record.kind, record.key): record.value for record in await store.load()}
        for name, number in acknowledged.items():
            left, right = kept[name, b"left"], kept[name, b"right"]
            assert left is not None
            assert right is not None
            assert left == right.rstrip(), "both halves of a transaction, or neither"
            assert number <= int(left) <= number + 1
    assert time.monotonic() - started < 60
