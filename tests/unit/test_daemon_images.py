"""nexapod.daemon.image_shelf and images: images as blobs, into the engine when a task needs one, and out again."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import zstandard
from engine_fake import FakeEngine
from image_kit import AMD64, Made, docker_archive, image, in_pieces, oci_layout, tar

from nexapod.api.backend import Busy
from nexapod.blobs.errors import BlobError, BlobUnavailable, DiskFull, QuotaExceeded
from nexapod.blobs.room import Quota
from nexapod.blobs.store import BlobStore
from nexapod.daemon.image_service import image_errors
from nexapod.daemon.image_shelf import Shelf, UnknownImage
from nexapod.daemon.images import Images
from nexapod.executor.images.errors import BadImage, ImageUnavailable
from nexapod.executor.images.inventory import EngineRoom, ImageNotHere
from nexapod.executor.images.oci import Platform
from nexapod.protocol.primitives import BlobRef, blob_of
from nexapod.protocol.types import Run

BASE = tar({"usr/lib/base": bytes(range(256)) * 12_000})
"""Three chunks: its blob's name is not the plain hash of its bytes."""
ONE, TWO = image(BASE, tar({"one": b"1"})), image(BASE, tar({"two": b"2"}))


class Peer:
    """A daemon's images: its store, its engine, and other peers to fetch from."""

    def __init__(self, folder: Path, *, bytes_max: int = 1 << 30, **settings: Any) -> None:
        self.folder = folder
        self.engine = FakeEngine()
        self.blobs = BlobStore(folder / "blobs")
        self.shelf = Shelf(folder / "images", self.blobs, self.engine, AMD64)
        self.images = Images(folder / "loaded", self.blobs, self.engine, self.shelf, bytes_max=bytes_max, **settings)
        self.elsewhere: dict[BlobRef, bytes] = {}
        self.fetched: list[BlobRef] = []

    async def add(self, made: Made, data: bytes | None = None, platform: Platform | None = None) -> BlobRef:
        archive = docker_archive(made) if data is None else data
        added = await self.shelf.add_archive(_stream(archive), len(archive), platform)
        assert added.image.image == made.id
        return added.image.blobs[0]

    async def fetch(self, ref: BlobRef) -> None:
        self.fetched.append(ref)
        await trio.lowlevel.checkpoint()
        if ref not in self.elsewhere:
            raise BlobUnavailable(f"blob {ref}: nobody gave it")
        await self.blobs.put_bytes(self.elsewhere[ref])

    def job(self, made: Made) -> Run:
        """What a job says of an image whose blobs other peers hold."""
        parts = (made.config, *made.layers)
        self.elsewhere |= {blob_of(part): part for part in parts}
        return Run("docker", image=made.id, image_blobs=tuple(blob_of(part) for part in parts))

    async def ensure(self, run: Run) -> str:
        """For a task that is over at once."""
        image = await self.images.ensure(run, self.fetch, "a task")
        self.images.release("a task")
        return image


async def _stream(data: bytes) -> AsyncIterator[bytes]:
    for piece in in_pieces(data):
        yield piece


@pytest.fixture
async def peer(tmp_path: Path) -> Peer:
    return Peer(tmp_path)


# --- adding ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "data",
    [
        docker_archive(ONE),
        docker_archive(ONE, compress=True),
        oci_layout(ONE),
        oci_layout(ONE, zstd=True),
        gzip.compress(docker_archive(ONE)),
        zstandard.compress(docker_archive(ONE)),
    ],
    ids=["docker", "docker-gzip-layers", "oci", "oci-zstd-layers", "gzip-as-a-whole", "zstd-as-a-whole"],
)
async def test_an_image_becomes_its_configuration_and_its_uncompressed_layers(peer: Peer, data: bytes) -> None:
    await peer.add(ONE, data)
    [shelved] = peer.shelf.images()
    assert shelved.blobs == tuple(blob_of(part) for part in (ONE.config, *ONE.layers))
    assert shelved.image == f"sha256:{shelved.blobs[0].digest.hex()}"
    assert all(peer.blobs.has(ref) for ref in shelved.blobs)
    assert peer.shelf.held == frozenset(shelved.blobs)
    assert not list((peer.folder / "images" / "incoming").iterdir())


async def test_a_layer_that_two_images_share_is_stored_once_and_fetched_once(tmp_path: Path) -> None:
    giver, worker = Peer(tmp_path / "giver"), Peer(tmp_path / "worker")
    await giver.add(ONE)
    before = (await giver.blobs.stat()).bytes
    archive = docker_archive(TWO)
    added = await giver.shelf.add_archive(_stream(archive), len(archive), None)
    assert (added.new_blobs, added.new_bytes) == (2, len(TWO.config) + len(TWO.layers[1]))
    assert (await giver.blobs.stat()).bytes - before == added.new_bytes
    for made in (ONE, TWO):
        assert await worker.ensure(worker.job(made)) == made.id
    assert sorted(worker.fetched) == sorted({blob_of(p) for m in (ONE, TWO) for p in (m.config, *m.layers)})
    assert worker.fetched.count(blob_of(BASE)) == 1


async def test_what_was_added_is_known_after_a_restart_by_id_digits_and_name(peer: Peer) -> None:
    await peer.add(ONE, docker_archive(ONE, names=["tool", "tool:v1"]))
    await peer.add(TWO, docker_archive(TWO, names=["tool:latest"]))
    again = Peer(peer.folder)
    assert again.shelf.images() == peer.shelf.images()
    for text in (ONE.id, ONE.id[7:20], ONE.id[:20], "tool:v1"):
        assert again.shelf.find(text).image == ONE.id
    assert again.shelf.find("tool").image == TWO.id, "the name moved to what was added later"
    for unknown in ("sha256:" + "0" * 64, "other", ONE.id[7:10], ""):
        with pytest.raises(UnknownImage):
            again.shelf.find(unknown)
    await again.shelf.remove("tool")
    assert [image.image for image in Peer(peer.folder).shelf.images()] == [ONE.id]
    assert blob_of(BASE) in again.shelf.held
    assert blob_of(TWO.config) not in again.shelf.held


async def test_a_record_that_is_damaged_costs_that_image_alone(peer: Peer) -> None:
    await peer.add(ONE)
    await peer.add(TWO)
    (peer.folder / "images" / f"{ONE.id[7:]}.json").write_bytes(b'{"image": 7}')
    (peer.folder / "images" / "incoming" / "left").write_bytes(b"by a crash")
    again = Peer(peer.folder)
    assert [image.image for image in again.shelf.images()] == [TWO.id]
    assert not list((peer.folder / "images" / "incoming").iterdir())


async def test_an_image_of_the_engine_is_added_by_its_name(peer: Peer) -> None:
    peer.engine.put(ONE, "tool:1")
    added = await peer.shelf.add_from_engine("tool:1", None)
    assert (added.image.image, added.image.names, added.new_blobs) == (ONE.id, ("tool:1",), 3)
    again = await peer.shelf.add_from_engine(ONE.id, None)
    assert (again.image.names, again.new_blobs, again.new_bytes) == (("tool:1",), 0, 0)
    with pytest.raises(ImageNotHere):
        await peer.shelf.add_from_engine("nothing", None)
    with pytest.raises(BadImage, match="cannot be the name"):
        await peer.shelf.add_from_engine("--all\x1b", None)


async def test_an_archive_that_is_not_what_it_says_is_not_added(peer: Peer) -> None:
    forged = ONE.with_layers(BASE, tar({"one": b"another"}))
    sparse = tar({"f": b""})
    sparse = sparse[:156] + b"S" + sparse[157:]
    sparse = sparse[:148] + b"%06o\0 " % (sum(sparse[:148]) + 8 * 32 + sum(sparse[156:512])) + sparse[156:]
    for data in (docker_archive(forged), docker_archive(image(sparse)), docker_archive(ONE)[:1_000_000], b"x" * 5000):
        with pytest.raises(BadImage):
            await peer.shelf.add_archive(_stream(data), len(data), None)
    assert peer.shelf.images() == []
    assert not list((peer.folder / "images" / "incoming").iterdir())
    with pytest.raises(ImageUnavailable, match="room"):
        await peer.shelf.add_archive(_stream(b""), 1 << 60, None)


async def test_an_image_of_too_many_files_is_not_added_even_when_each_layer_is_known(peer: Peer) -> None:
    deep = "/a" * 1990
    halves = [tar({f"{number:06}{deep}": b"" for number in range(at, at + 252)}) for at in (0, 252)]
    for half in halves:
        await peer.add(image(half))
    with pytest.raises(BadImage, match="more than 1000000 files"):
        await peer.add(image(*halves))
    with pytest.raises(BadImage, match="more than 1000000 files"):
        await peer.ensure(peer.job(image(*halves)))


async def test_the_platform_asked_for_is_taken(peer: Peer) -> None:
    arm = image(tar({"arm": b"a"}), arch="arm64")
    await peer.add(arm, oci_layout(ONE, arm), Platform("linux", "arm64"))
    assert (peer.shelf.images()[0].platform, peer.shelf.images()[0].arch) == ("linux/arm64", "aarch64")


class SlowStore(BlobStore):
    """Before each layer that is put, so much time goes by that no blob is fresh any more."""

    meanwhile: Callable[[], Awaitable[object]] = staticmethod(trio.lowlevel.checkpoint)

    async def put_stream(self, stream: AsyncIterator[bytes], bytes_max: int) -> BlobRef:
        for ref in await self.refs():
            os.utime(self.path(ref), (1, 1))
        await self.meanwhile()
        return await super().put_stream(stream, bytes_max)


def with_little_room(peer: Peer, bytes_max: int) -> SlowStore:
    store = SlowStore(peer.folder / "blobs", Quota(blobs_max=bytes_max))
    store.held = lambda: peer.shelf.held
    peer.blobs = peer.shelf._blobs = store
    return store


async def test_room_for_an_images_next_layer_is_never_made_of_the_one_before(peer: Peer) -> None:
    store = with_little_room(peer, 8 << 20)
    cached = await store.put_bytes(os.urandom(4 << 20))
    made = image(*(tar({"f": os.urandom(3 << 20)}) for _ in range(2)))
    await peer.add(made)
    assert not store.has(cached)
    assert all(store.has(ref) for ref in peer.shelf.images()[0].blobs)


async def test_an_image_that_does_not_fit_is_not_added_and_what_came_of_it_goes_again(peer: Peer) -> None:
    store = with_little_room(peer, 8 << 20)
    with pytest.raises(QuotaExceeded):
        await peer.add(image(*(tar({"f": os.urandom(5 << 20)}) for _ in range(2))))
    assert (peer.shelf.images(), peer.shelf.held) == ([], frozenset())
    await peer.add(image(tar({"f": os.urandom(6 << 20)})))
    assert all(store.has(ref) for ref in peer.shelf.images()[0].blobs)


async def test_a_layer_known_from_an_image_that_is_removed_meanwhile_stays(peer: Peer) -> None:
    store = with_little_room(peer, 7 << 20)
    await peer.add(ONE)
    cached = await store.put_bytes(os.urandom(2 << 20))

    async def remove() -> None:
        os.utime(store.path(cached), (2, 2))
        await peer.shelf.remove(ONE.id)

    store.meanwhile = remove
    large = image(BASE, tar({"f": os.urandom(3 << 20)}))
    await peer.add(large)
    assert [one.image for one in peer.shelf.images()] == [large.id]
    assert all(store.has(ref) for ref in peer.shelf.images()[0].blobs)
    assert not store.has(cached), "room was made"


async def test_an_image_of_which_a_part_was_lost_meanwhile_is_not_added(peer: Peer) -> None:
    store = with_little_room(peer, 1 << 30)
    store.meanwhile = lambda: store.delete(blob_of(BASE))
    with pytest.raises(ImageUnavailable, match="was lost while it was added"):
        await peer.add(ONE)
    assert peer.shelf.images() == []


@pytest.mark.parametrize(
    ("error", "remedy"),
    [(QuotaExceeded("full"), "config.toml says how much"), (DiskFull("full"), "Free disk"), (BlobError("odd"), "")],
)
def test_what_the_blob_store_lacks_is_told_with_its_own_remedy(error: BlobError, remedy: str) -> None:
    with pytest.raises(Busy, match=str(error)) as told, image_errors():
        raise error
    assert remedy in told.value.remedy


# --- for a task ------------------------------------------------------------------------------------------------------
async def test_an_image_that_the_engine_holds_costs_nothing(peer: Peer) -> None:
    peer.engine.put(ONE)
    assert await peer.ensure(Run("docker", image=ONE.id, image_blobs=peer.job(ONE).image_blobs)) == ONE.id
    assert (peer.fetched, peer.engine.loads) == ([], [])


async def test_a_missing_image_is_fetched_checked_and_loaded_and_comes_back_when_it_vanishes(peer: Peer) -> None:
    run = peer.job(ONE)
    assert await peer.ensure(run) == ONE.id
    assert peer.engine.held[ONE.id] == ONE
    assert peer.engine.tags[ONE.id] == [f"nexapod-image:{ONE.id[7:]}"]
    assert peer.images.counts["image_bytes_fetched"] == sum(map(len, (ONE.config, *ONE.layers)))
    peer.engine.held.clear()
    assert await peer.ensure(run) == ONE.id
    assert (len(peer.fetched), len(peer.engine.loads)) == (3, 2)


async def test_tasks_that_want_one_image_at_once_share_the_work(peer: Peer) -> None:
    run = peer.job(ONE)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(peer.ensure, run)
    assert (len(peer.fetched), len(peer.engine.loads)) == (3, 1)


async def test_who_waits_takes_over_from_a_task_that_was_stopped(peer: Peer) -> None:
    run, waiting = peer.job(ONE), trio.Event()

    async def stuck(ref: BlobRef) -> None:
        waiting.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def stopped() -> None:
            with scope:
                await peer.images.ensure(run, stuck, "a stopped task")

        nursery.start_soon(stopped)
        await waiting.wait()
        nursery.start_soon(peer.ensure, run)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    assert peer.engine.loads == [ONE.id]


async def test_what_was_added_here_needs_no_blobs_in_the_job(peer: Peer) -> None:
    await peer.add(ONE)
    assert await peer.ensure(Run("docker", image=ONE.id)) == ONE.id
    assert peer.fetched == []
    with pytest.raises(ImageUnavailable, match="does not hold"):
        await peer.ensure(Run("docker", image=TWO.id))


def forged_jobs() -> list[tuple[str, Made, str]]:
    config = json.loads(ONE.config)
    huge = tar({"f": b""})
    huge = huge[:156] + b"S" + huge[157:]
    huge = huge[:148] + b"%06o\0 " % (sum(huge[:148]) + 8 * 32 + sum(huge[156:512])) + huge[156:]
    return [
        ("a layer of other bytes", ONE.with_layers(BASE, tar({"one": b"other"})), "layer 1 of the image is not"),
        ("a layer too few", ONE.with_layers(BASE), "2 layers, and the job brings 1"),
        ("layers in another order", ONE.with_layers(*reversed(ONE.layers)), "layer 0 of the image is not"),
        ("no configuration", Made(b"[]", ONE.layers), "not a JSON object"),
        ("no layers", Made(json.dumps(config | {"rootfs": {"diff_ids": []}}).encode(), ()), "has 0 layers"),
        ("a sparse layer", image(huge), "sparse"),
        ("a layer that is no tar", image(b"x" * 2000), "not a tar archive"),
    ]


@pytest.mark.parametrize(("made", "said"), [job[1:] for job in forged_jobs()], ids=[job[0] for job in forged_jobs()])
async def test_a_job_whose_image_is_wrong_fails_and_never_reaches_the_engine(peer: Peer, made: Made, said: str) -> None:
    with pytest.raises(BadImage, match=said):
        await peer.ensure(peer.job(made))
    assert peer.engine.loads == []


async def test_a_configuration_that_the_content_id_does_not_name_is_refused(peer: Peer) -> None:
    run = peer.job(ONE)
    with pytest.raises(BadImage, match="not the configuration"):
        await peer.ensure(Run("docker", image=TWO.id, image_blobs=run.image_blobs))


async def test_a_layer_damaged_on_this_disk_is_this_machines_fault_and_goes(peer: Peer) -> None:
    run = peer.job(ONE)
    ref = await peer.blobs.put_bytes(BASE)
    path = peer.blobs.path(ref)
    os.chmod(path, 0o600)
    data = bytearray(path.read_bytes())
    data[100_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageUnavailable, match="damaged on this machine's disk"):
        await peer.ensure(run)
    assert not peer.blobs.has(ref)
    assert await peer.ensure(run) == ONE.id


async def test_what_this_machine_lacks_is_never_the_jobs_fault(peer: Peer) -> None:
    run = peer.job(ONE)
    peer.engine.full = True
    with pytest.raises(ImageUnavailable, match="no space left"):
        await peer.ensure(run)
    peer.engine.gone = True
    with pytest.raises(ImageUnavailable, match="does not answer"):
        await peer.ensure(run)
    peer.engine.gone = False
    lacking = Run("docker", image=TWO.id, image_blobs=(blob_of(TWO.config), blob_of(b"nowhere")))
    with pytest.raises(BlobError, match="nobody gave it"):
        await peer.ensure(lacking)


async def test_an_engine_that_gives_images_other_ids_is_told_apart(peer: Peer) -> None:
    class Other(FakeEngine):
        def put(self, made: Made, *tags: str) -> None:
            super().put(Made(b"manifest" + made.config, made.layers), *tags)

    peer.images._engine = Other()
    with pytest.raises(ImageUnavailable, match="does not name images by their configuration"):
        await peer.ensure(peer.job(ONE))


# --- the quota -------------------------------------------------------------------------------------------------------
def small(number: int) -> Made:
    return image(tar({"f": bytes([number]) * 100_000}))


async def test_the_image_used_longest_ago_makes_room_and_only_one_that_was_loaded_here(tmp_path: Path) -> None:
    peer = Peer(tmp_path, bytes_max=250_000)
    peer.engine.put(ONE, "owner/image:1")
    await peer.ensure(Run("docker", image=ONE.id))
    for number in (1, 2):
        await peer.ensure(peer.job(small(number)))
        os.utime(tmp_path / "loaded" / f"{small(number).id[7:]}.loaded", (number, number))
    await peer.ensure(peer.job(small(1)))  # used again: now
    await peer.ensure(peer.job(small(3)))
    assert set(peer.engine.held) == {ONE.id, small(1).id, small(3).id}
    assert peer.images.counts["images_evicted"] == 1
    # A daemon that starts anew still knows what it loaded.
    again = Peer(tmp_path, bytes_max=250_000)
    again.images._engine = peer.engine
    await again.ensure(again.job(small(4)))
    assert set(peer.engine.held) == {ONE.id, small(3).id, small(4).id}


async def test_what_a_container_uses_stays_and_without_room_the_task_goes_elsewhere(tmp_path: Path) -> None:
    peer = Peer(tmp_path, bytes_max=150_000)
    await peer.ensure(peer.job(small(1)))
    peer.engine.in_use.add(small(1).id)
    with pytest.raises(ImageUnavailable, match="images of running tasks"):
        await peer.ensure(peer.job(small(2)))
    peer.engine.in_use.clear()
    assert await peer.ensure(peer.job(small(2))) == small(2).id
    assert set(peer.engine.held) == {small(2).id}
    fetched = list(peer.fetched)
    with pytest.raises(ImageUnavailable, match="more than the 150000"):
        await peer.ensure(peer.job(image(tar({"f": bytes(200_000)}))))
    assert peer.fetched == fetched, "nothing is fetched that cannot be used"


async def test_an_image_stays_from_when_a_task_is_given_it_until_that_is_over(tmp_path: Path) -> None:
    peer = Peer(tmp_path, bytes_max=250_000, registries=("registry.example:5000",))
    peer.engine.registry[REFERENCE] = small(2)
    await peer.images.ensure(peer.job(small(1)), peer.fetch, "fetches its inputs")  # loaded for it
    await peer.images.ensure(Run("docker", image=REFERENCE), peer.fetch, "waits for a GPU")  # pulled for it
    await peer.images.ensure(peer.job(small(1)), peer.fetch, "is paused")  # there already
    with pytest.raises(ImageUnavailable, match="images of running tasks"):
        await peer.ensure(peer.job(small(3)))
    peer.images.release("fetches its inputs")
    with pytest.raises(ImageUnavailable, match="images of running tasks"):
        await peer.ensure(peer.job(small(3)))
    assert set(peer.engine.held) == {small(1).id, small(2).id}
    peer.images.release("is paused")
    await peer.ensure(peer.job(small(3)))
    assert set(peer.engine.held) == {small(2).id, small(3).id}


async def test_nobody_is_given_an_image_that_is_being_removed(tmp_path: Path) -> None:
    class Slow(FakeEngine):
        async def remove(self, image: str) -> bool:
            removing.set()
            await trio.testing.wait_all_tasks_blocked()
            return await super().remove(image)

    removing = trio.Event()
    peer = Peer(tmp_path, bytes_max=150_000)
    peer.engine = peer.images._engine = Slow()
    await peer.ensure(peer.job(small(1)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.ensure, peer.job(small(2)))
        await removing.wait()
        await peer.images.ensure(peer.job(small(1)), peer.fetch, "came at that moment")
    assert small(1).id in peer.engine.held


async def test_an_image_that_its_owner_gave_a_name_is_the_owners_and_no_longer_counts(tmp_path: Path) -> None:
    peer = Peer(tmp_path, bytes_max=150_000)
    await peer.ensure(peer.job(small(1)))
    peer.engine.tags[small(1).id].append("mine:1")
    assert await peer.ensure(peer.job(small(2))) == small(2).id
    assert set(peer.engine.held) == {small(1).id, small(2).id}
    assert peer.images.counts["images_evicted"] == 0


@pytest.mark.parametrize("host", ["", "localhost/", "docker.io/library/"])
async def test_an_image_of_ours_in_use_goes_on_counting_whatever_the_engine_calls_it(tmp_path: Path, host: str) -> None:
    peer = Peer(tmp_path, bytes_max=150_000)
    made = small(1)
    await peer.ensure(peer.job(made))
    peer.engine.tags[made.id] = [f"{host}nexapod-image:{made.id[7:]}"]
    peer.engine.in_use.add(made.id)
    with pytest.raises(ImageUnavailable, match="images of running tasks"):
        await peer.ensure(peer.job(small(2)))
    peer.engine.in_use.clear()
    await peer.ensure(peer.job(small(2)))
    assert set(peer.engine.held) == {small(2).id}


async def test_records_of_before_loads_were_noted_are_read_and_damaged_ones_cost_only_themselves(
    tmp_path: Path,
) -> None:
    peer = Peer(tmp_path, bytes_max=150_000)
    await peer.ensure(peer.job(small(1)))
    (tmp_path / "loaded" / f"{small(1).id[7:]}.loaded").write_bytes(b'{"size": 112640}')
    (tmp_path / "loaded" / f"{'0' * 64}.loaded").write_bytes(b"[]")
    await peer.ensure(peer.job(small(2)))
    assert set(peer.engine.held) == {small(2).id}


async def test_an_image_that_its_owner_removed_counts_no_more(tmp_path: Path) -> None:
    peer = Peer(tmp_path, bytes_max=150_000)
    await peer.ensure(peer.job(small(1)))
    assert await peer.engine.remove(small(1).id)
    await peer.ensure(peer.job(small(2)))
    assert [path.stem for path in (tmp_path / "loaded").iterdir()] == [small(2).id[7:]]


async def test_an_image_counts_as_what_it_may_unpack_to(tmp_path: Path) -> None:
    peer = Peer(tmp_path, bytes_max=1 << 20)
    many = image(tar({f"{number:03}": b"" for number in range(300)}))
    assert sum(map(len, many.layers)) < 1 << 18
    with pytest.raises(ImageUnavailable, match="takes 1228800 bytes: more than the 1048576"):
        await peer.ensure(peer.job(many))
    await peer.ensure(peer.job(image(tar({f"{number:03}": b"" for number in range(200)}))))
    await peer.ensure(peer.job(small(1)))
    await peer.ensure(peer.job(image(tar({f"{number:03}": b"" for number in range(150)}))))
    assert peer.images.counts["images_evicted"] == 1


GIB = 1 << 30


@pytest.mark.parametrize(
    ("disk", "said"),
    [
        (EngineRoom(GIB + 200_000, None), "has 1073941824 free bytes: loading the image takes up to 1073954816"),
        (EngineRoom(1 << 40, 1), "room for 1 more files: the image has up to 1"),
        (EngineRoom(GIB + 300_000, 2), ""),
        (None, ""),
    ],
)
async def test_what_the_engines_disk_has_no_room_for_is_not_loaded(
    peer: Peer, disk: EngineRoom | None, said: str
) -> None:
    peer.engine.disk = disk
    if said:
        with pytest.raises(ImageUnavailable, match=said):
            await peer.ensure(peer.job(small(1)))
    else:
        await peer.ensure(peer.job(small(1)))
    assert len(peer.engine.loads) == (not said)


async def test_on_a_disk_that_is_nearly_full_images_of_ours_make_room(peer: Peer) -> None:
    peer.engine.disk = EngineRoom(GIB + 400_000, None)
    peer.engine.put(small(9), "owner/image:1")
    await peer.ensure(peer.job(small(1)))
    await peer.ensure(peer.job(small(2)))
    assert set(peer.engine.held) == {small(9).id, small(2).id}
    peer.engine.in_use.add(small(2).id)
    with pytest.raises(ImageUnavailable, match="free bytes"):
        await peer.ensure(peer.job(small(3)))
    assert set(peer.engine.held) == {small(9).id, small(2).id}


async def test_an_image_that_could_not_be_loaded_counts_for_nothing(tmp_path: Path) -> None:
    peer = Peer(tmp_path, bytes_max=150_000)
    peer.engine.full = True
    with pytest.raises(ImageUnavailable):
        await peer.ensure(peer.job(small(1)))
    peer.engine.full = False
    assert list((tmp_path / "loaded").iterdir()) == []
    await peer.ensure(peer.job(small(2)))


async def test_what_the_engine_makes_of_a_load_that_was_given_up_is_counted_and_goes(tmp_path: Path) -> None:
    peer = Peer(tmp_path, bytes_max=150_000)
    peer.engine.slow = True
    with pytest.raises(ImageUnavailable, match="not done"):
        await peer.ensure(peer.job(small(1)))
    peer.engine.slow = False
    with pytest.raises(ImageUnavailable, match="images of running tasks"):
        await peer.ensure(peer.job(small(2)))  # it may come to be at any moment
    peer.engine.finish_unpacking()
    await peer.ensure(peer.job(small(2)))
    assert set(peer.engine.held) == {small(2).id}


async def test_a_load_that_was_given_up_and_came_to_nothing_counts_for_an_hour_and_never_for_itself(
    tmp_path: Path,
) -> None:
    peer = Peer(tmp_path, bytes_max=150_000)
    peer.engine.slow = True
    for _ in range(2):
        with pytest.raises(ImageUnavailable, match="not done"):
            await peer.ensure(peer.job(small(1)))
    peer.engine.slow = False
    hour_ago = time.time() - 3601
    os.utime(tmp_path / "loaded" / f"{small(1).id[7:]}.loaded", (hour_ago, hour_ago))
    await peer.ensure(peer.job(small(2)))
    assert [path.stem for path in (tmp_path / "loaded").iterdir()] == [small(2).id[7:]]
    assert peer.images.counts["images_evicted"] == 0


async def test_an_engine_that_is_lost_after_a_load_leaves_the_image_counted(tmp_path: Path) -> None:
    class Lost(FakeEngine):
        async def load(self, archive: Callable[[], Iterator[bytes]]) -> None:
            await super().load(archive)
            self.gone = True

    peer = Peer(tmp_path, bytes_max=150_000)
    peer.engine = peer.images._engine = Lost()
    with pytest.raises(ImageUnavailable, match="does not answer"):
        await peer.ensure(peer.job(small(1)))
    peer.engine.gone = False
    assert set(peer.engine.held) == {small(1).id}
    assert await peer.ensure(peer.job(small(1))) == small(1).id
    with pytest.raises(ImageUnavailable, match="does not answer"):
        await peer.ensure(peer.job(small(2)))
    assert set(peer.engine.held) == {small(2).id}


# --- registries ------------------------------------------------------------------------------------------------------
REFERENCE = f"registry.example:5000/science/tool@sha256:{hashlib.sha256(b'manifest').hexdigest()}"


async def test_nothing_is_pulled_from_a_registry_that_the_owner_has_not_named(peer: Peer) -> None:
    peer.engine.registry[REFERENCE] = ONE
    with pytest.raises(ImageUnavailable, match=r"does not pull images from registry\.example:5000"):
        await peer.ensure(Run("docker", image=REFERENCE))
    assert peer.engine.pulls == []


async def test_a_reference_is_pulled_once_counted_and_told_to_others(tmp_path: Path) -> None:
    peer = Peer(tmp_path, bytes_max=4 << 20, registries=("registry.example:5000",))
    peer.engine.registry[REFERENCE] = ONE
    await peer.ensure(peer.job(small(1)))
    for _ in range(2):
        assert await peer.ensure(Run("docker", image=REFERENCE)) == ONE.id
    assert peer.engine.pulls == [REFERENCE]
    assert REFERENCE in await peer.images.told()
    # Pulled images count, and go, like loaded ones.
    os.utime(tmp_path / "loaded" / f"{ONE.id[7:]}.loaded", (1, 1))
    await peer.ensure(peer.job(image(tar({"f": bytes(2_000_000)}))))
    assert ONE.id not in peer.engine.held
    with pytest.raises(ImageUnavailable, match="was not pulled"):
        await peer.ensure(Run("docker", image=REFERENCE.replace("tool", "other")))


async def test_a_pull_leaves_the_engine_s_disk_its_reserve_and_images_go_for_that(tmp_path: Path) -> None:
    peer = Peer(tmp_path, registries=("registry.example:5000",))
    peer.engine.registry[REFERENCE] = ONE
    await peer.ensure(peer.job(small(1)))
    peer.engine.disk = EngineRoom(GIB + 10_000, None)
    await peer.ensure(Run("docker", image=REFERENCE))
    assert set(peer.engine.held) == {ONE.id}
    peer.engine.held.clear()
    peer.engine.disk = EngineRoom(GIB - 1, None)
    with pytest.raises(ImageUnavailable, match="must be left"):
        await peer.ensure(Run("docker", image=REFERENCE))
    assert peer.engine.held == {}


async def test_a_pulled_image_that_its_owner_then_pulled_by_tag_is_the_owners(tmp_path: Path) -> None:
    peer = Peer(tmp_path, bytes_max=4 << 20, registries=("registry.example:5000",))
    peer.engine.registry[REFERENCE] = ONE
    await peer.ensure(Run("docker", image=REFERENCE))
    peer.engine.tags[ONE.id] = ["registry.example:5000/science/tool:12"]
    await peer.ensure(peer.job(image(tar({"f": bytes(2_000_000)}))))
    assert ONE.id in peer.engine.held
    assert not (tmp_path / "loaded" / f"{ONE.id[7:]}.loaded").exists()


async def test_others_are_told_of_what_was_added_and_of_nothing_that_the_owner_has_besides(peer: Peer) -> None:
    await peer.add(TWO)
    peer.engine.put(ONE)
    peer.engine.references[ONE.id] = [REFERENCE]
    assert await peer.images.told() == (TWO.id,)


async def test_others_are_told_of_ids_and_of_no_private_registry_where_the_owner_wants_it(tmp_path: Path) -> None:
    peer = Peer(tmp_path, tell_all=True)
    await peer.add(TWO)
    peer.engine.put(ONE)
    peer.engine.references[ONE.id] = [REFERENCE]
    assert set(await peer.images.told()) == {ONE.id, TWO.id}
    for number in range(100):
        peer.engine.put(small(number))
    told = await peer.images.told()
    assert len(told) == 64
    assert TWO.id in told, "what was added comes first"
    peer.engine.gone = True
    assert await peer.images.told() == ()
