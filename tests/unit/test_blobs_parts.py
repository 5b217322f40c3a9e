"""Parts of blobs: only their chunks travel, they are read, served and kept, and the last one makes the blob whole."""

from __future__ import annotations

import os
import shutil

import pytest
import trio
from test_blobs_exchange import MIB, network_in

from nexapod.blobs.errors import BlobError, BlobMissing, BlobUnavailable
from nexapod.blobs.fetching import REFUSALS_MAX
from nexapod.blobs.store import BlobStore
from nexapod.protocol.primitives import Part


def received(network, name):
    return sum(size for _, target, size in network.sent if target == name)


async def test_only_the_chunks_of_a_part_are_brought_and_take_room(tmp_path):
    data = os.urandom(40 * MIB)
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(data)
        part = Part(ref, 7, 3)
        await taker.fetch(part, "giver")
        assert 3 * MIB < received(network, "taker") < 3.1 * MIB
        assert taker.store.has(part)
        assert taker.store.has(Part(ref, 8, 1))
        assert not taker.store.has(Part(ref, 6, 2))
        assert not taker.store.has(ref)
        assert taker.store.bytes_here == 3 * MIB
        on_disk = next(taker.store._layout.partial.glob("*.data")).stat()
        assert on_disk.st_blocks * 512 < 4 * MIB
        found = await taker.store.stat_of(ref)
        assert (found.chunks_here, found.is_whole) == (3, False)


async def test_bytes_of_a_part_are_read_and_exported_and_others_are_missing(tmp_path):
    data = os.urandom(5 * MIB + 77)
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(data)
        await taker.fetch(Part(ref, 0, 1), "giver")
        await taker.fetch(Part(ref, 2, 2), "giver")
        assert await taker.store.read(ref, 2 * MIB + 5, MIB) == data[2 * MIB + 5 : 3 * MIB + 5]
        out = tmp_path / "out"
        await taker.store.export_range(ref, 2 * MIB - 0, 2 * MIB, out)
        assert out.read_bytes() == data[2 * MIB : 4 * MIB]
        await taker.store.export_ranges(ref, [(0, 10), (3 * MIB, 20)], tmp_path / "two")
        assert (tmp_path / "two").read_bytes() == data[:10] + data[3 * MIB : 3 * MIB + 20]
        for offset, length in ((MIB, 1), (2 * MIB - 1, 2), (4 * MIB, 1)):
            with pytest.raises(BlobMissing):
                await taker.store.read(ref, offset, length)
            with pytest.raises(BlobMissing):
                await taker.store.export_range(ref, offset, length, tmp_path / "missing")
            assert not (tmp_path / "missing").exists()
        with pytest.raises(BlobError, match="no such bytes"):
            await taker.store.export_range(ref, 0, ref.size + 1, tmp_path / "beyond")
        for store in (taker.store, giver.store):
            with pytest.raises(BlobError):
                await store.export_range(ref, 0, 1, out)  # it exists


async def test_the_last_chunk_makes_it_whole(tmp_path):
    data = os.urandom(6 * MIB + 1)
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(data)
        for first, count in ((0, 2), (4, 3), (1, 3)):
            assert not taker.store.has(ref)
            await taker.fetch(Part(ref, first, count), "giver")
        assert taker.store.has(ref)
        assert taker.store.path(ref).read_bytes() == data
        assert (await taker.store.stat()).bytes == len(data)
        assert list(taker.store._layout.partial.iterdir()) == []


async def test_a_part_outlives_a_restart_and_is_checked_before_it_counts(tmp_path):
    data = os.urandom(6 * MIB)
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(data)
        part = Part(ref, 1, 3)
        await taker.fetch(part, "giver")
        network.cut("taker")
        network.cut("giver")
        taker = network.node("taker")
        assert not taker.store.has(part), "not yet checked by this process"
        await taker.fetch(part)  # from nobody: it is here
        assert taker.store.has(part)
        assert await taker.store.read(ref, MIB, 100) == data[MIB : MIB + 100]


async def test_a_part_damaged_on_disk_is_fetched_again(tmp_path):
    data = os.urandom(6 * MIB)
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(data)
        await taker.fetch(Part(ref, 1, 3), "giver")
        with next(taker.store._layout.partial.glob("*.data")).open("r+b") as file:
            file.seek(2 * MIB + 10)
            file.write(b"rotten")
        again = BlobStore(taker.store._layout.root)
        with pytest.raises(BlobMissing):
            await again.read(ref, 2 * MIB, 10)
        network.cut("taker")
        taker = network.node("taker")
        network.sent.clear()
        await taker.fetch(Part(ref, 1, 3), "giver")
        assert received(network, "taker") < 1.1 * MIB
        assert await taker.store.read(ref, MIB, 3 * MIB) == data[MIB : 4 * MIB]


async def test_holders_of_parts_serve_them_to_others(tmp_path):
    data = os.urandom(9 * MIB)
    async with network_in(tmp_path) as network:
        origin, low, high, taker = (network.node(name) for name in ("origin", "low", "high", "taker"))
        ref = await origin.store.put_bytes(data)
        await low.fetch(Part(ref, 0, 5), "origin")
        await high.fetch(Part(ref, 5, 4), "origin")
        network.cut("origin")
        await taker.fetch(ref, "low", "high")
        assert taker.store.path(ref).read_bytes() == data
        assert taker.bad == []


async def test_what_no_holder_has_fails_and_the_rest_stays(tmp_path):
    async with network_in(tmp_path) as network:
        origin, low, taker = (network.node(name) for name in ("origin", "low", "taker"))
        ref = await origin.store.put_bytes(os.urandom(9 * MIB))
        await low.fetch(Part(ref, 0, 5), "origin")
        network.cut("origin")
        with pytest.raises(BlobUnavailable, match="low does not have it"):
            await taker.fetch(Part(ref, 3, 4), "low")
        await taker.fetch(Part(ref, 3, 2), "low")
        assert taker.store.has(Part(ref, 3, 2))


async def test_a_source_with_nothing_is_not_asked_for_every_chunk(tmp_path):
    async with network_in(tmp_path) as network:
        origin, bare, taker = (network.node(name) for name in ("origin", "bare", "taker"))
        ref = await origin.store.put_bytes(os.urandom(60 * MIB))
        await taker.fetch(Part(ref, 0, 1), "origin")
        await bare.fetch(Part(ref, 0, 1), "origin")
        network.sent.clear()
        with pytest.raises(BlobUnavailable):
            await taker.fetch(Part(ref, 1, 59), "bare")
        assert sum(1 for _, target, _ in network.sent if target == "bare") <= REFUSALS_MAX + 4


async def test_overlapping_parts_at_once_share_the_work(tmp_path):
    data = os.urandom(24 * MIB)
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(data)
        async with trio.open_nursery() as nursery:
            for first, count in ((0, 10), (5, 10), (9, 3), (12, 8), (5, 10)):
                nursery.start_soon(taker.fetch, Part(ref, first, count), "giver")
        assert 20 * MIB < received(network, "taker") < 20.5 * MIB
        assert await taker.store.read(ref, 0, 20 * MIB) == data[: 20 * MIB]
        assert taker.exchange._fetches == {}


async def test_one_who_leaves_takes_only_what_nobody_else_wants(tmp_path):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(os.urandom(64 * MIB))
        scope = trio.CancelScope()

        async def impatient():
            with scope:
                await taker.fetch(ref, "giver")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(impatient)
            while not received(network, "taker") > MIB:  # noqa: ASYNC110  (nothing tells of it)
                await trio.sleep(0.001)
            nursery.start_soon(taker.fetch, Part(ref, 60, 4), "giver")
            await trio.lowlevel.checkpoint()
            scope.cancel()
        assert taker.store.has(Part(ref, 60, 4))
        assert received(network, "taker") < 40 * MIB


async def test_two_who_want_different_parts_fail_and_succeed_by_themselves(tmp_path):
    async with network_in(tmp_path) as network:
        origin, low, taker = (network.node(name) for name in ("origin", "low", "taker"))
        ref = await origin.store.put_bytes(os.urandom(9 * MIB))
        await low.fetch(Part(ref, 0, 5), "origin")
        network.cut("origin")
        failed = []

        async def hopeless():
            with pytest.raises(BlobUnavailable):
                await taker.fetch(Part(ref, 8, 1), "low")
            failed.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hopeless)
            await taker.fetch(Part(ref, 0, 5), "low")
        assert failed
        assert taker.store.has(Part(ref, 0, 5))


@pytest.mark.parametrize("delay", range(0, 40, 2))
async def test_a_fetch_begun_while_another_of_the_same_blob_ends_loses_nothing(tmp_path, delay):
    data = os.urandom(2 * MIB)
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(data)
        scope = trio.CancelScope()

        async def impatient():
            with scope:
                await taker.fetch(ref, "giver")

        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(impatient)
                for _ in range(delay):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
                nursery.start_soon(taker.fetch, ref, "giver")
            assert taker.store.path(ref).read_bytes() == data
            assert taker.store.bytes_here == len(data)
            assert list(taker.store._layout.partial.iterdir()) == []
            await taker.store.delete(ref)
            scope = trio.CancelScope()


def partial_file(store, suffix):
    return next(store._layout.partial.glob(f"*{suffix}"))


def make_unreadable(path):
    """What reads or removes it fails, for root too. It stands for a failing disk, or too many open files."""
    path.unlink()
    path.mkdir()


async def test_a_disk_that_fails_in_a_fetch_ends_that_fetch_and_not_the_daemon(tmp_path):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(os.urandom(3 * MIB))
        other = await giver.store.put_bytes(b"other")
        await taker.fetch(Part(ref, 0, 1), "giver")
        network.cut("taker")
        taker = network.node("taker")
        make_unreadable(partial_file(taker.store, ".list"))
        with pytest.raises(BlobError, match="check its permissions and the disk"):
            await taker.fetch(ref, "giver")
        await taker.fetch(other, "giver")


async def test_what_cannot_be_removed_or_measured_is_an_ordinary_error(tmp_path):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(os.urandom(3 * MIB))
        await taker.fetch(Part(ref, 0, 1), "giver")
        while taker.store._partials[ref].users:
            await trio.lowlevel.checkpoint()
        make_unreadable(partial_file(taker.store, ".data"))
        with pytest.raises(BlobError):
            await taker.store.delete(ref)
        shutil.rmtree(taker.store._layout.root)
        for attempt in (taker.store.stat(), taker.store.refs()):
            with pytest.raises(BlobError, match="No such file"):
                await attempt


async def test_a_part_that_goes_while_it_is_touched_is_no_error(tmp_path, monkeypatch):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        part = Part(await giver.store.put_bytes(os.urandom(3 * MIB)), 0, 1)
        await taker.fetch(part, "giver")
        have = partial_file(taker.store, ".have")
        set_times = os.utime

        def after_it_is_gone(path):
            if path == have:
                have.unlink()
            set_times(path)

        monkeypatch.setattr(os, "utime", after_it_is_gone)
        assert await taker.store.touch(part)
