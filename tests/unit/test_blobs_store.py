"""The content-addressed store on a real disk: naming, durability of names, limits, damage, full disks."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import tracemalloc
from contextlib import aclosing

import pytest
import trio

from nexapod.blobs.errors import BlobCorrupt, BlobError, BlobMissing, BlobTooLarge, DiskFull
from nexapod.blobs.files import Writer, publish, write_blob
from nexapod.blobs.partial import Partial
from nexapod.blobs.store import BlobStore
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, Part, blob_of

SIZES = [0, 1, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7]


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs")


def everything_in(store):
    root = store._layout.root
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def as_stream(data, piece):
    for at in range(0, len(data), piece):
        yield data[at : at + piece]


@pytest.mark.parametrize("size", SIZES)
async def test_every_way_in_gives_the_same_name_and_the_same_bytes(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "source").write_bytes(data)
    ways = {
        "bytes": lambda store: store.put_bytes(data),
        "file": lambda store: store.put_file(tmp_path / "source"),
        "stream": lambda store: store.put_stream(as_stream(data, 100_000), size),
    }
    for name, put in ways.items():
        store = BlobStore(tmp_path / name)
        ref = await put(store)
        assert ref == blob_of(data)
        assert store.has(ref)
        assert store.path(ref).read_bytes() == data
        assert await store.read(ref, 0, 100) == data[:100]
        assert await store.read(ref, max(0, size - 5), 100) == data[max(0, size - 5) :]
        assert await store.verify(ref)
        await store.export(ref, tmp_path / f"{name}.out")
        assert (tmp_path / f"{name}.out").read_bytes() == data
        assert len(await store.chunk_list(ref)) == ref.chunks


async def test_what_is_stored_is_private_and_read_only(store):
    ref = await store.put_bytes(b"x")
    assert stat.S_IMODE(store.path(ref).stat().st_mode) == 0o400
    assert stat.S_IMODE(store.path(ref).parent.stat().st_mode) == 0o700


async def test_an_export_is_a_copy_that_cannot_alter_the_store(store, tmp_path):
    ref = await store.put_bytes(b"original")
    await store.export(ref, tmp_path / "copy", mode=0o644)
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o644
    (tmp_path / "copy").write_bytes(b"changed!")
    assert await store.verify(ref)
    with pytest.raises(BlobError, match="File exists"):
        await store.export(ref, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"changed!"
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BlobError):
        await store.export(ref, tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


async def test_counts_follow_puts_and_deletes_and_survive_a_restart(store):
    small, large = os.urandom(10), os.urandom(CHUNK_BYTES * 2)
    for _ in range(2):
        refs = [await store.put_bytes(small), await store.put_bytes(large)]
    for opened in (store, BlobStore(store._layout.root)):
        found = await opened.stat()
        assert (found.blobs, found.bytes) == (2, len(small) + len(large))
        assert found.disk_free > 0
        assert sorted(await opened.refs()) == sorted(refs)
    for _ in range(2):
        await store.delete(refs[1])
    assert (await store.stat()).bytes == len(small)
    assert everything_in(store) == [f"objects/{refs[0].digest.hex()}-10"]


async def test_what_is_not_here_is_missing(store, tmp_path):
    ref = blob_of(b"absent")
    assert not store.has(ref)
    for attempt in (store.read(ref), store.export(ref, tmp_path / "out"), store.verify(ref)):
        with pytest.raises(BlobMissing):
            await attempt
    assert not (tmp_path / "out").exists()
    with pytest.raises(BlobMissing):
        await store.chunk_list(blob_of(bytes(CHUNK_BYTES + 1)))


@pytest.mark.parametrize("damage", ["flipped", "shorter", "longer", "list"])
async def test_damage_on_disk_is_noticed(store, tmp_path, damage):
    data = os.urandom(2 * CHUNK_BYTES + 5)
    ref = await store.put_bytes(data)
    path = store._layout.list(ref) if damage == "list" else store.path(ref)
    path.chmod(0o600)
    content = path.read_bytes()
    changed = {
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "shorter": content[:-1],
        "longer": content + b"x",
        "list": bytes(32) + content[32:],
    }
    path.write_bytes(changed[damage])
    assert not await store.verify(ref)
    if damage != "list":
        with pytest.raises(BlobCorrupt):
            await store.export(ref, tmp_path / "out")
        assert not (tmp_path / "out").exists()


async def test_more_than_allowed_is_refused_and_leaves_nothing(store, tmp_path):
    (tmp_path / "file").write_bytes(bytes(1001))
    with pytest.raises(BlobTooLarge):
        await store.put_file(tmp_path / "file", bytes_max=1000)
    async with aclosing(as_stream(bytes(5 * CHUNK_BYTES), 70_000)) as stream:
        with pytest.raises(BlobTooLarge):
            await store.put_stream(stream, 4 * CHUNK_BYTES)
    assert everything_in(store) == []
    await store.put_file(tmp_path / "file", bytes_max=1001)


async def test_a_stream_that_breaks_or_is_cancelled_leaves_nothing(store):
    async def breaks():
        yield bytes(2 * CHUNK_BYTES)
        raise ConnectionError

    async def hangs():
        yield bytes(2 * CHUNK_BYTES)
        await trio.sleep_forever()

    with pytest.raises(ConnectionError):
        await store.put_stream(breaks(), 1 << 30)
    with trio.move_on_after(0.1):
        await store.put_stream(hangs(), 1 << 30)
    assert everything_in(store) == []


async def test_what_is_finished_is_not_closed_again(store, tmp_path):
    writer = Writer(store._layout, 1000)
    writer.add(b"data")
    ref, new = writer.finish()
    # The number of its file is free, and this one gets it.
    with (tmp_path / "other").open("wb") as other:
        for _ in range(2):
            writer.abort()
        other.write(b"still open")
    assert new
    assert await store.verify(ref)


async def test_a_blob_that_is_put_several_times_at_once_is_counted_once(store):
    data = os.urandom(2 * CHUNK_BYTES)
    writers = [Writer(store._layout, len(data)) for _ in range(3)]
    for writer in writers:
        writer.add(data)
    # All have seen that it is not here yet.
    news = [publish(store._layout, blob_of(data), w._digests, w._fd, w._path) for w in writers]
    assert news == [True, False, False]
    await store.delete(blob_of(data))
    other = BlobStore(store._layout.root)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(other.put_bytes, data)
    assert (await other.stat()).blobs == 1
    assert other.bytes_here == len(data)


async def test_a_put_that_is_cancelled_at_its_end_leaves_nothing_of_the_part_that_was_here(store):
    data = os.urandom(2 * CHUNK_BYTES)
    digests = [hashlib.sha256(data[at : at + CHUNK_BYTES]).digest() for at in (0, CHUNK_BYTES)]
    partial = await store.open_partial(blob_of(data), digests)
    await partial.write(0, [data[:CHUNK_BYTES]])
    partial.close()
    with trio.CancelScope() as scope:

        def write():
            trio.from_thread.run_sync(scope.cancel)
            return write_blob(store._layout, iter((data,)), len(data))

        await store._put(write)
    assert store.bytes_here == len(data)
    assert list(store._layout.partial.iterdir()) == []


async def test_only_regular_files_are_taken_in(store, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "fifo")
    with trio.fail_after(5):
        for name in ("link", "fifo", "", "absent"):
            with pytest.raises(BlobError):
                await store.put_file(tmp_path / name)
    assert everything_in(store) == []


@pytest.fixture
def full_disk():
    """A limit on the size of a file stands in for the disk's: writing beyond it fails in the same place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * CHUNK_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_a_clear_error_and_leaves_nothing_behind(store, tmp_path, full_disk):
    data = os.urandom(2 * CHUNK_BYTES + 1)
    with pytest.raises(DiskFull, match="free some space"):
        await store.put_bytes(data)
    with pytest.raises(DiskFull):
        await store.put_stream(as_stream(data, 1 << 16), 1 << 30)
    digests = [hashlib.sha256(data[at : at + CHUNK_BYTES]).digest() for at in range(0, len(data), CHUNK_BYTES)]
    with pytest.raises(DiskFull):
        await store.open_partial(blob_of(data), digests)
    assert everything_in(store) == []
    ref = await store.put_bytes(data[:-1])
    store.path(ref).parent.joinpath("grown").write_bytes(b"")
    assert store.has(ref)


WRITER = """
import os, sys, trio
from pathlib import Path
from nexapod.blobs.store import BlobStore

async def main():
    store = BlobStore(Path(sys.argv[1]))
    while True:
        for size in (100, 3_000_000):
            print(await store.put_bytes(os.urandom(size)), flush=True)

trio.run(main)
"""


def run_writer_and_kill_it(root):
    """The names of what the writer had stored when it was killed."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(25)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
    return {line.decode().strip() for line in lines if line.endswith(b"\n")}


async def test_kill_9_leaves_whole_blobs_and_no_litter(tmp_path):
    root = tmp_path / "blobs"
    acknowledged = run_writer_and_kill_it(root)
    (root / "tmp" / "left").write_bytes(b"half")
    (root / "lists" / f"{'00' * 32}-2000000").write_bytes(bytes(64))
    store = BlobStore(root)
    refs = await store.refs()
    assert acknowledged <= {str(ref) for ref in refs}
    for ref in refs:
        assert await store.verify(ref)
    assert list((root / "tmp").iterdir()) == []
    assert len(list((root / "lists").iterdir())) == sum(ref.chunks > 1 for ref in refs)


FETCHER = """
import hashlib, sys, trio
from pathlib import Path
from nexapod.blobs.store import BlobStore
from nexapod.protocol.primitives import (BlobRef, blob_root)

def chunk(index):
    return bytes([index]) * (1 << 20)

async def main():
    digests = [hashlib.sha256(chunk(index)).digest() for index in range(200)]
    ref = BlobRef(blob_root(digests), 200 << 20)
    partial = await BlobStore(Path(sys.argv[1])).open_partial(ref, digests)
    print(ref, flush=True)
    for index in range(200):
        await partial.write(index, [chunk(index)])
        print(index, flush=True)

trio.run(main)
"""


def run_fetcher_and_kill_it(root):
    """The blob, and how many of its chunks had been written when the fetcher was killed."""
    with subprocess.Popen([sys.executable, "-c", FETCHER, str(root)], stdout=subprocess.PIPE) as fetcher:
        assert fetcher.stdout is not None
        ref = BlobRef.parse(fetcher.stdout.readline().decode().strip())
        lines = [fetcher.stdout.readline() for _ in range(20)]
        fetcher.send_signal(signal.SIGKILL)
        lines += fetcher.stdout.readlines()
    return ref, max(int(line) for line in lines if line.endswith(b"\n")) + 1


async def test_kill_9_in_the_middle_of_a_fetch_loses_no_chunk_that_was_written(tmp_path):
    root = tmp_path / "blobs"
    ref, written = run_fetcher_and_kill_it(root)
    store = BlobStore(root)
    digests = await store.saved_list(ref)
    partial = await store.open_partial(ref, digests)
    missing = await partial.missing(range(200))
    partial.close()
    assert missing == list(range(200 - len(missing), 200))
    assert written <= 200 - len(missing) <= written + 1
    assert await store.read(ref, 5 << 20, 100) == bytes([5]) * 100


def write_large(path):
    with open(path, "wb") as file:
        for _ in range(64):
            file.write(os.urandom(CHUNK_BYTES))


async def test_a_large_file_is_stored_in_little_memory(store, tmp_path):
    write_large(tmp_path / "large")
    tracemalloc.start()
    try:
        ref = await store.put_file(tmp_path / "large")
        await store.export(ref, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * CHUNK_BYTES


async def test_a_partial_blob_is_taken_up_again_but_its_marks_are_not_believed(store):
    data, ref, chunks, digests = large()
    partial = await store.open_partial(ref, digests)
    assert await partial.missing(range(4)) == [0, 1, 2, 3]
    assert not await partial.write(1, [chunks[0]])
    assert not await partial.write(3, [chunks[0]])
    for index in (0, 1, 3):
        assert await partial.write(index, [chunks[index]])
    partial.close()
    # Power failed: chunk 1 was marked, but its bytes never reached the disk.
    on_disk = store._layout.partial / f"{ref.digest.hex()}-{ref.size}.data"
    on_disk.write_bytes(chunks[0] + bytes(CHUNK_BYTES) + on_disk.read_bytes()[2 * CHUNK_BYTES :])
    again = BlobStore(store._layout.root)
    assert await again.saved_list(ref) == digests
    partial = await again.open_partial(ref, digests)
    assert await partial.missing(range(4)) == [1, 2]
    for index in (1, 2):
        assert await partial.write(index, [chunks[index]])
    await partial.settle()
    partial.close()
    assert again.path(ref).read_bytes() == data
    assert await again.verify(ref)
    assert (await again.stat()).blobs == 1
    assert list(again._layout.partial.iterdir()) == []


def large():
    """Bytes of four chunks, their name, the chunks, and the list of them."""
    data = os.urandom(3 * CHUNK_BYTES + 9)
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    return data, blob_of(data), chunks, [hashlib.sha256(chunk).digest() for chunk in chunks]


async def test_a_blob_whose_last_chunk_came_as_its_fetch_was_cut_off_is_not_here_as_a_whole(store):
    """All of it is, but not under its name: who was told that it is here would not find it."""
    data, ref, chunks, digests = large()
    cut_off = await store.open_partial(ref, digests)
    for index, chunk in enumerate(chunks):
        assert await cut_off.write(index, [chunk])
    cut_off.close()
    assert store.has(Part(ref, 0, 3))
    assert not store.has(Part.whole(ref))
    assert not await store.touch(Part.whole(ref))
    fetch = await store.open_partial(ref, digests)
    assert await fetch.missing(range(4)) == []
    await fetch.settle()
    fetch.close()
    assert store.has(Part.whole(ref))
    assert store.path(ref).read_bytes() == data


async def test_two_who_begin_as_a_third_gives_up_share_one_file(store, monkeypatch):
    """The third removes what it had begun: the first goes on with that, the second makes it anew."""
    data, ref, chunks, digests = large()
    begin, opened, may_go_on = Partial.begin, threading.Event(), threading.Event()

    def slow(partial, digests):
        opened.set()
        assert may_go_on.wait(10)
        begin(partial, digests)

    third = await store.open_partial(ref, digests)
    found = []

    async def first():
        found.append(await store.open_partial(ref, digests))

    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(Partial, "begin", slow)
        nursery.start_soon(first)
        await trio.to_thread.run_sync(opened.wait)
        monkeypatch.setattr(Partial, "begin", begin)
        third.close()
        found.append(await store.open_partial(ref, digests))
        may_go_on.set()
    second, first_one = found
    first_one.close()
    for index, chunk in enumerate(chunks):
        assert await second.write(index, [chunk])
    await second.settle()
    second.close()
    assert store.path(ref).read_bytes() == data
    assert (await store.stat()).partial == 0


async def test_a_saved_list_that_was_damaged_is_not_used(store):
    data = os.urandom(CHUNK_BYTES + 1)
    ref = blob_of(data)
    (store._layout.partial / f"{ref.digest.hex()}-{ref.size}.list").write_bytes(bytes(64))
    assert await store.saved_list(ref) is None


@pytest.mark.parametrize("suffix", [".data", ".have", ".list"])
async def test_what_is_no_partial_blob_is_cleared(store, suffix):
    ref = blob_of(bytes(2 * CHUNK_BYTES))
    left = store._layout.partial / f"{ref.digest.hex()}-{ref.size}{suffix}"
    left.write_bytes(b"x")
    BlobStore(store._layout.root)
    assert not left.exists()


PLAIN_USER = """
import hashlib, os, signal, sys, trio
from pathlib import Path
from nexapod.blobs.store import BlobStore
from nexapod.protocol.primitives import (BlobRef, blob_root)

def chunk(index):
    return bytes([index]) * (1 << 20)

def die_at(name, when):
    real = getattr(os, name)
    def instead(*args):
        names = [os.readlink(f"/proc/self/fd/{arg}") if isinstance(arg, int) else str(arg) for arg in args]
        if not any(name.endswith(".data") for name in names):
            return real(*args)
        if when == "after":
            real(*args)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(os, name, instead)

async def fetch(store):
    digests = [hashlib.sha256(chunk(index)).digest() for index in range(3)]
    ref = BlobRef(blob_root(digests), 3 << 20)
    partial = await store.open_partial(ref, digests)
    for index in await partial.missing(range(3)):
        await partial.write(index, [chunk(index)])
    await partial.settle()
    partial.close()
    assert await store.verify(ref)
    return ref

async def mend(store):
    ref = await fetch(store)
    store.path(ref).chmod(0o600)
    with store.path(ref).open("r+b") as file:
        file.write(b"rotten")
    store.path(ref).chmod(0o400)
    if len(sys.argv) > 2:
        die_at(*sys.argv[2:])
    await store.mend(ref)

async def main():
    store = BlobStore(Path("blobs"))
    if sys.argv[1] == "mend":
        return await mend(store)
    if len(sys.argv) > 2:
        die_at(*sys.argv[2:])
    await fetch(store)

if os.geteuid() == 0:
    os.setuid(65534)
trio.run(main)
"""


def as_plain_user(folder, *args):
    """Run the program above in `folder`, not as root: root may write what is read-only. Its status."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    # It is given no path: a user of its own may not enter the folders above this one.
    return subprocess.run([sys.executable, "-c", PLAIN_USER, *args], cwd=folder).returncode


@pytest.mark.parametrize("fault", [("fsync", "before"), ("rename", "before"), ("rename", "after")])
def test_kill_9_while_a_blob_becomes_whole_does_not_lock_it(tmp_path, fault):
    folder = tmp_path / "home"
    assert as_plain_user(folder, "fetch", *fault) == -signal.SIGKILL
    for left in (folder / "blobs" / "partial").glob("*.data"):
        assert stat.S_IMODE(left.stat().st_mode) == 0o600
    assert as_plain_user(folder, "fetch") == 0


def test_what_an_earlier_crash_left_read_only_is_written_again(tmp_path):
    folder = tmp_path / "home"
    assert as_plain_user(folder, "fetch", "rename", "before") == -signal.SIGKILL
    for left in (folder / "blobs" / "partial").iterdir():
        left.chmod(0o400)
    assert as_plain_user(folder, "fetch") == 0


def test_kill_9_while_a_damaged_blob_is_set_aside_does_not_lock_it(tmp_path):
    folder = tmp_path / "home"
    assert as_plain_user(folder, "mend", "rename", "after") == -signal.SIGKILL
    [left] = (folder / "blobs" / "partial").glob("*.data")
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    assert as_plain_user(folder, "fetch") == 0
