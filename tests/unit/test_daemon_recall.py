"""nexapod.daemon.recall: what the core has saved is read back at once, whether it is committed or not."""

from __future__ import annotations

from pathlib import Path

from nexapod.daemon.recall import Recall
from nexapod.protocol.records import Record
from nexapod.store.reading import open_reader
from nexapod.store.store import Store


async def test_what_is_not_committed_yet_lies_over_what_is(tmp_path: Path) -> None:
    path = tmp_path / "nexapod.db"
    async with Store.open(path) as store:
        await store.commit([Record("a", b"x1", b"old"), Record("a", b"x2", b"gone"), Record("a", b"y", b"other")])
        with open_reader(path) as reader:
            recall = Recall(reader.records)
            recall.saved([Record("a", b"x1", b"new"), Record("a", b"x2", None), Record("a", b"x0", b"first")])
            recall.saved([Record("b", b"x9", b"another kind")])
            assert recall.records("a", b"x") == [Record("a", b"x0", b"first"), Record("a", b"x1", b"new")]
            await store.commit([Record("a", b"x1", b"new"), Record("a", b"x2", None), Record("a", b"x0", b"first")])
            recall.committed()
            assert recall.records("a", b"x") == [Record("a", b"x0", b"first"), Record("a", b"x1", b"new")]
            assert recall.records("a", b"") == [*recall.records("a", b"x"), Record("a", b"y", b"other")]
            assert recall.records("b", b"") == []


async def test_a_beginning_of_the_largest_bytes_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "nexapod.db"
    async with Store.open(path) as store:
        await store.commit([Record("a", key, b"v") for key in (b"\xfe\xff", b"\xff", b"\xff\xff", b"\xff\xff\x01")])
        with open_reader(path) as reader:
            assert [record.key for record in reader.records("a", b"\xff\xff")] == [b"\xff\xff", b"\xff\xff\x01"]
            assert [record.key for record in reader.records("a", b"\xfe\xff")] == [b"\xfe\xff"]
