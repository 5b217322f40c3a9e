"""Names of peers, blobs and tasks, and what a job says of its shards."""

from __future__ import annotations

import hashlib

import pytest
from plain import MODULE, ONE, job_spec
from worker_bench import a_profile as profile

from nexapod.protocol.limits import CHUNK_BYTES, SPLIT_ENTRY_BYTES
from nexapod.protocol.primitives import (
    BlobRef,
    Digest,
    File,
    JobId,
    Part,
    PeerId,
    TaskId,
    blob_of,
    blob_root,
    kad_key,
    key_of_peer_id,
    peer_id_of_key,
)
from nexapod.protocol.types import Split

MIB = 1 << 20


def test_a_peer_id_holds_its_key() -> None:
    key = bytes(range(32))
    assert key_of_peer_id(peer_id_of_key(key)) == key
    assert peer_id_of_key(key).startswith("12D3KooW")


@pytest.mark.parametrize("text", ["", "2", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "0OIl"])
def test_other_peer_ids_hold_none(text: str) -> None:
    with pytest.raises(ValueError):
        key_of_peer_id(PeerId(text))


def test_a_peers_place_is_the_hash_of_its_ids_bytes() -> None:
    raw = bytes.fromhex("002408011220") + key_of_peer_id(ONE)
    assert kad_key(ONE) == int.from_bytes(hashlib.sha256(raw).digest(), "big")


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB])
def test_a_blob_of_one_chunk_is_named_by_its_plain_hash(size: int) -> None:
    data = b"\x01" * size
    assert blob_of(data) == BlobRef(Digest(hashlib.sha256(data).digest()), size)
    assert blob_of(data).chunks == 1


def test_a_larger_blob_is_named_by_the_list_of_its_chunks() -> None:
    data = b"\x01" * (2 * MIB + 1)
    digests = [hashlib.sha256(data[at : at + MIB]).digest() for at in (0, MIB, 2 * MIB)]
    assert blob_of(data).digest == hashlib.sha256(b"nexapod/blob\0" + b"".join(digests)).digest()
    assert blob_of(data).chunks == 3
    assert blob_root(digests) == blob_of(data).digest


@pytest.mark.parametrize("text", ["", "00:1", "0" * 64, "0" * 64 + ":", "0" * 64 + ":-1", "0" * 64 + ":1_0", "g" * 64])
def test_what_is_not_a_blobs_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        BlobRef.parse(text)


def test_tasks_fall_into_shards_of_256() -> None:
    spec = job_spec(tasks=513)
    assert spec.shards == 3
    assert [spec.shard_tasks(n) for n in range(3)] == [range(256), range(256, 512), range(512, 513)]
    task = TaskId(JobId(bytes.fromhex("ab" * 32)), 512)
    assert (task.shard, str(task)) == (2, "abababababab/512")


def test_a_jobs_blobs_are_all_it_needs_once_each() -> None:
    a, b, c, d = (blob_of(n.encode()) for n in "abcd")
    spec = job_spec(tasks=1, inputs=(File("x", a), File("y", a)), split=Split("z", b, c, (0, 1)), params=d)
    assert spec.blobs == (a, MODULE, d, c, b)
    assert job_spec().blobs == (MODULE,)


def test_a_part_covers_the_chunks_of_its_bytes() -> None:
    big = BlobRef(Digest(bytes(32)), 10 * CHUNK_BYTES + 5)
    assert Part.whole(big) == Part(big, 0, 11)
    assert Part.whole(big).is_whole
    assert Part.covering(big, 0, 0) == Part(big, 0, 1)
    assert Part.covering(big, CHUNK_BYTES - 1, 2) == Part(big, 0, 2)
    assert Part.covering(big, CHUNK_BYTES, CHUNK_BYTES) == Part(big, 1, 1)
    assert Part.covering(big, 10 * CHUNK_BYTES, 5) == Part(big, 10, 1)
    assert Part.covering(big, big.size, 0) == Part(big, 10, 1), "an empty piece at the end is still somewhere"
    assert (Part(big, 10, 1).size, Part(big, 3, 2).size, list(Part(big, 3, 2).chunks)) == (5, 2 * CHUNK_BYTES, [3, 4])


def test_a_shard_needs_its_own_part_of_a_split_file() -> None:
    file = BlobRef(Digest(bytes(32)), 9 * CHUNK_BYTES)
    index = BlobRef(Digest(b"i" * 32), 600 * SPLIT_ENTRY_BYTES)
    bounds = (10, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7, 9 * CHUNK_BYTES)
    spec = job_spec(tasks=600, split=Split("z.csv", file, index, bounds, header=10))
    common, listed = Part.whole(MODULE), Part.whole(index)
    assert spec.shard_parts(0) == (common, listed, Part(file, 0, 3), Part(file, 0, 1))
    assert spec.shard_parts(1) == (common, listed, Part(file, 3, 1), Part(file, 0, 1))
    assert spec.shard_parts(2) == (common, listed, Part(file, 3, 6), Part(file, 0, 1))
    assert spec.blobs == (MODULE, index, file)


def test_the_hardware_class_is_system_and_architecture() -> None:
    assert profile(os="linux", arch="aarch64").hardware == "linux-aarch64"
