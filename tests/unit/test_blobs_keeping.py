"""What the store keeps and what goes: quota, free disk, pins, what is needed or in use, damage, and full disks."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from test_blobs_exchange import MIB, fetch_in_vain, network_in

from nexapod.blobs import mending
from nexapod.blobs.errors import BlobCorrupt, BlobMissing, DiskFull, QuotaExceeded
from nexapod.blobs.files import name_of
from nexapod.blobs.room import DEFAULT_BYTES_MAX, DEFAULT_DISK_FREE_MIN, Quota
from nexapod.blobs.store import BlobStore
from nexapod.daemon.retention import Retention
from nexapod.protocol.primitives import BlobRef, Part, blob_of

QUOTA = Quota(blobs_max=8 * MIB)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", QUOTA)


async def put(store: BlobStore, mib: int, *, age_s: float = 1000) -> BlobRef:
    """A blob last used so long ago."""
    ref = await store.put_bytes(os.urandom(mib * MIB))
    set_age(store, ref, age_s)
    return ref


def set_age(store: BlobStore, ref: BlobRef, age_s: float) -> None:
    os.utime(store.path(ref), (time.time() - age_s,) * 2)


def kept(store: BlobStore, *refs: BlobRef) -> list[bool]:
    return [store.has(ref) for ref in refs]


# --- quota ---------------------------------------------------------------------------------------------------------
async def test_the_least_recently_used_goes_first(store: BlobStore) -> None:
    refs = [await put(store, 2, age_s=age) for age in (2000, 4000, 3000, 1000)]
    await store.put_bytes(os.urandom(2 * MIB))
    assert kept(store, *refs) == [True, False, False, True], "with what goes, a little more goes"
    assert store.bytes_here <= 8 * MIB


async def test_reading_is_using(store: BlobStore) -> None:
    refs = [await put(store, 2, age_s=age) for age in (4000, 3000, 2000, 1000)]
    await store.read(refs[0], 0, 1)
    await store.put_bytes(os.urandom(MIB))
    assert kept(store, *refs) == [True, False, True, True]


async def test_what_is_needed_pinned_spared_or_fresh_stays_and_then_there_is_no_room(store: BlobStore) -> None:
    held, pinned, spared, fresh = [await put(store, 2) for _ in range(4)]
    store.held = lambda: frozenset({held})
    await store.pin(pinned)
    set_age(store, pinned, 1000)
    store.spare(spared, 60)
    await store.touch(fresh)
    for attempt in (store.put_bytes(os.urandom(MIB)), store.put_bytes(b"x")):
        with pytest.raises(QuotaExceeded, match=r"storage\.blobs_max"):
            await attempt
    assert kept(store, held, pinned, spared, fresh) == [True] * 4
    set_age(store, fresh, 61)
    await store.put_bytes(os.urandom(MIB))
    assert kept(store, held, pinned, spared, fresh) == [True, True, True, False]


async def test_what_is_being_exported_stays(store: BlobStore, tmp_path: Path) -> None:
    ref = await put(store, 6)
    with store._in_use(ref), pytest.raises(QuotaExceeded):
        await store.put_bytes(os.urandom(4 * MIB))
    await store.put_bytes(os.urandom(4 * MIB))
    assert not store.has(ref)


async def test_every_way_in_respects_the_quota_and_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(9 * MIB))

    async def stream():
        for _ in range(9):
            yield bytes(MIB)

    with pytest.raises(QuotaExceeded):
        await store.put_file(tmp_path / "large")
    with pytest.raises(QuotaExceeded):
        await store.put_stream(stream(), 1 << 30)
    assert list((tmp_path / "blobs" / "tmp").iterdir()) == []
    assert store.bytes_here == 0
    await store.put_bytes(bytes(8 * MIB))


async def test_writes_at_once_cannot_pass_the_quota_together(store: BlobStore) -> None:
    outcomes: list[bool] = []

    async def attempt() -> None:
        try:
            await store.put_bytes(os.urandom(3 * MIB))
            outcomes.append(True)
        except QuotaExceeded:
            outcomes.append(False)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(attempt)
    assert outcomes.count(True) == 2
    assert store.room._promised == 0


async def test_a_fetch_that_cannot_fit_says_so_and_parts_are_evicted_too(tmp_path: Path) -> None:
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        taker.store.room.quota = QUOTA
        large = await giver.store.put_bytes(os.urandom(9 * MIB))
        with pytest.raises(QuotaExceeded):
            await taker.fetch(large, "giver")
        await taker.fetch(Part(large, 0, 6), "giver")
        other = await giver.store.put_bytes(os.urandom(4 * MIB))
        with pytest.raises(QuotaExceeded):
            await taker.fetch(other, "giver")
        have = taker.store._layout.partial / f"{name_of(large)}.have"
        os.utime(have, (time.time() - 100,) * 2)
        await taker.fetch(other, "giver")
        assert not taker.store.has(Part(large, 0, 1))
        assert taker.store.room._promised == 0


async def test_those_who_want_the_same_chunks_need_room_for_them_once(tmp_path: Path) -> None:
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        taker.store.room.quota = QUOTA
        ref = await giver.store.put_bytes(os.urandom(7 * MIB))
        async with trio.open_nursery() as nursery:
            for part in (Part.whole(ref), Part.whole(ref), Part(ref, 0, 3), Part(ref, 2, 3), Part.whole(ref)):
                nursery.start_soon(taker.fetch, part, "giver")
        assert taker.store.has(ref)
        assert taker.store.room._promised == 0


@pytest.mark.parametrize("first", ["small", "large"])
async def test_one_who_gets_no_room_does_not_end_the_fetch_of_the_others(tmp_path: Path, first: str) -> None:
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        taker.store.room.quota = QUOTA
        ref = await giver.store.put_bytes(os.urandom(9 * MIB))

        async def too_large() -> None:
            with pytest.raises(QuotaExceeded):
                await taker.fetch(ref, "giver")

        async def small_enough() -> None:
            await taker.fetch(Part(ref, 1, 6), "giver")

        wanted = [too_large, small_enough] if first == "large" else [small_enough, too_large]
        async with trio.open_nursery() as nursery:
            for each in wanted:
                nursery.start_soon(each)
                await trio.lowlevel.checkpoint()
        assert taker.store.has(Part(ref, 1, 6))
        assert taker.store.room._promised == 0


async def test_a_part_that_is_here_needs_no_room(tmp_path: Path) -> None:
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        part = Part(await giver.store.put_bytes(os.urandom(3 * MIB)), 0, 2)
        await taker.fetch(part, "giver")
        network.cut("taker")
        taker = network.node("taker")
        taker.store.room.quota = Quota(blobs_max=MIB)
        await taker.fetch(part, "giver")  # to be checked, as it is from before the restart
        assert taker.store.has(part)


async def test_free_disk_is_kept_by_evicting_when_others_fill_it(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    old, needed = await put(store, 1), await put(store, 1)
    Retention(store, lambda: frozenset({needed}))
    store.room.quota = Quota(disk_free_min=1 << 60)
    await store.room.keep()
    assert kept(store, old, needed) == [False, True]
    with pytest.raises(QuotaExceeded, match=r"storage\.disk_free_min"):
        await store.put_bytes(b"x")


async def test_the_default_quota_is_a_part_of_the_disk(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    default = Quota.for_disk(tmp_path, None, None)
    assert default == Quota(min(DEFAULT_BYTES_MAX, disk.f_blocks * disk.f_frsize // 10), DEFAULT_DISK_FREE_MIN)
    assert Quota.for_disk(tmp_path, 5, 0) == Quota(5, 0)


# --- pins ----------------------------------------------------------------------------------------------------------
async def test_pins_outlive_a_restart(store: BlobStore) -> None:
    ref, other = await put(store, 1), await put(store, 1)
    await store.pin(ref)
    await store.pin(ref)
    again = BlobStore(store._layout.root, QUOTA)
    assert again.pinned() == frozenset({ref})
    assert (await again.stat_of(ref)).pinned
    assert not (await again.stat_of(other)).pinned
    assert await again.unpin(ref)
    assert not await again.unpin(ref)
    assert BlobStore(store._layout.root).pinned() == frozenset()
    with pytest.raises(BlobMissing, match="fetch it first"):
        await store.pin(blob_of(b"absent"))


async def test_the_stats_say_what_is_here(store: BlobStore) -> None:
    old, new = await put(store, 2, age_s=500), await put(store, 1, age_s=100)
    store.held = lambda: frozenset({old})
    assert [(found.ref, found.held, found.is_whole) for found in await store.stats()] == [
        (new, False, True),
        (old, True, True),
    ]
    assert (await store.stat_of(old)).used_at == pytest.approx(time.time() - 500, abs=30)
    with pytest.raises(BlobMissing):
        await store.stat_of(blob_of(b"absent"))
    found = await store.stat()
    assert (found.blobs, found.partial, found.pinned, found.bytes_max) == (2, 0, 0, 8 * MIB)


# --- damage --------------------------------------------------------------------------------------------------------
def damage(store: BlobStore, ref: BlobRef, at: int = 0) -> None:
    path = store.path(ref)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


async def test_a_damaged_blob_is_set_aside_and_only_its_bad_chunk_is_fetched_again(tmp_path: Path) -> None:
    data = os.urandom(7 * MIB)
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        for node in (giver, taker):
            ref = await node.store.put_bytes(data)
        assert await taker.store.mend(ref) == 0
        damage(taker.store, ref, 3 * MIB + 5)
        assert not await taker.store.verify(ref)
        assert taker.store.has(ref), "verifying alone changes nothing"
        assert await taker.store.mend(ref) == 1
        assert not taker.store.has(ref)
        assert await taker.store.read(ref, 0, MIB) == data[:MIB]
        assert BlobStore(taker.store._layout.root)._partials[ref].bytes_here == 6 * MIB
        await taker.fetch(ref, "giver")
        assert sum(size for _, target, size in network.sent if target == "taker") < 1.1 * MIB
        assert taker.store.path(ref).read_bytes() == data
        assert (await taker.store.stat()).bytes == len(data)


async def test_what_nothing_is_left_of_goes(store: BlobStore) -> None:
    small, large = await store.put_bytes(b"small"), await put(store, 2)
    damage(store, small)
    damage(store, large, 0)
    damage(store, large, MIB)
    assert await store.mend(small) == 1
    assert await store.mend(large) == 2
    assert kept(store, small, large) == [False, False]
    assert store.bytes_here == 0
    with pytest.raises(BlobMissing):
        await store.mend(small)


@pytest.mark.parametrize("mib", [1, 3])
async def test_several_who_find_the_same_damage_count_it_once(store: BlobStore, tmp_path: Path, mib: int) -> None:
    ref, sound = await put(store, mib), await put(store, 1)
    damage(store, ref)
    outcomes: list[object] = []

    async def mend() -> None:
        try:
            outcomes.append(await store.mend(ref))
        except BlobMissing:
            outcomes.append("gone")

    async def export(number: int) -> None:
        with pytest.raises((BlobCorrupt, BlobMissing)):
            await store.export(ref, tmp_path / f"out{number}")

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(mend)
            nursery.start_soon(export, number)
    assert set(outcomes) <= {1, "gone"}
    assert kept(store, ref, sound) == [False, True]
    found = await store.stat()
    assert (found.blobs, found.bytes) == (1, mib * MIB)


async def test_what_is_deleted_while_it_is_examined_is_not_counted_again(store: BlobStore) -> None:
    ref = await put(store, 3)
    damage(store, ref)
    found = mending.examine(store._layout, ref, lambda: None)
    await store.delete(ref)
    with pytest.raises(BlobMissing):
        mending.set_aside(store._layout, ref, found)


async def test_a_lost_list_is_made_again(store: BlobStore, tmp_path: Path) -> None:
    ref = await put(store, 3)
    listed = store._layout.list(ref)
    before = listed.read_bytes()
    for after in (None, bytes(96)):
        listed.unlink()
        if after is not None:
            listed.write_bytes(after)
        assert not await store.verify(ref)
        assert await store.mend(ref) == 0
        assert listed.read_bytes() == before
        assert await store.verify(ref)


async def test_damage_found_by_an_export_sets_the_blob_aside(store: BlobStore, tmp_path: Path) -> None:
    ref = await put(store, 3)
    damage(store, ref, 2 * MIB)
    with pytest.raises(BlobCorrupt, match="in chunk 2"):
        await store.export(ref, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not store.has(ref)


# --- a disk that is really full --------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Take all that is left of the disk."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


async def test_a_put_on_a_full_disk_leaves_nothing_and_works_once_there_is_room(small_disk: Path) -> None:
    store = BlobStore(small_disk / "blobs")
    (small_disk / "filler").write_bytes(bytes(6 * MIB))
    with pytest.raises(DiskFull, match="no space left"):
        await store.put_bytes(os.urandom(4 * MIB))
    assert list((small_disk / "blobs" / "tmp").iterdir()) == []
    (small_disk / "filler").unlink()
    ref = await store.put_bytes(os.urandom(4 * MIB))
    assert await store.verify(ref)


async def test_a_fetch_onto_a_full_disk_keeps_what_came_and_goes_on_once_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    async with network_in(tmp_path) as network:
        giver = network.node("giver")
        network.folder = small_disk
        taker = network.node("taker")
        data = os.urandom(6 * MIB)
        ref = await giver.store.put_bytes(data)
        (small_disk / "filler").write_bytes(bytes(4 * MIB))
        with pytest.raises(DiskFull):
            await taker.fetch(ref, "giver")
        assert taker.store.room._promised == 0
        (small_disk / "filler").unlink()
        network.sent.clear()
        await taker.fetch(ref, "giver")
        assert taker.store.path(ref).read_bytes() == data
        assert sum(size for _, target, size in network.sent if target == "taker") < 5.5 * MIB, (
            "at least one of six chunks was kept"
        )
        assert await taker.store.verify(ref)


async def test_no_inode_or_block_left_for_a_pin_or_an_export_is_an_ordinary_error(
    small_disk: Path, tmp_path: Path
) -> None:
    store = BlobStore(small_disk / "blobs")
    ref = await store.put_bytes(os.urandom(3 * MIB))
    fill(small_disk / "filler")
    with pytest.raises(DiskFull):
        await store.export(ref, small_disk / "out")
    assert not (small_disk / "out").exists()
    with pytest.raises(DiskFull):
        await store.put_bytes(b"x" * 5000)
    assert await store.verify(ref)
    (small_disk / "filler").unlink()
    await store.export(ref, small_disk / "out")


async def test_with_a_floor_of_free_disk_it_does_not_come_to_that(small_disk: Path, tmp_path: Path) -> None:
    async with network_in(tmp_path) as network:
        giver = network.node("giver")
        network.folder = small_disk
        taker = network.node("taker")
        taker.store.room.quota = Quota(disk_free_min=2 * MIB)
        ref = await giver.store.put_bytes(os.urandom(7 * MIB))
        with pytest.raises(QuotaExceeded, match=r"storage\.disk_free_min"):
            await taker.fetch(ref, "giver")
        await fetch_in_vain(taker, blob_of(b"nobody has this"), "giver")
