"""Trees: folders and archives in and out, the same whichever way; names and sizes that lie are refused."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexapod.blobs.trees import (
    HEADER_BYTES_MAX,
    Bounds,
    Entry,
    TreeRefused,
    decode,
    encode,
    from_archive,
    from_folder,
    is_tree,
    to_folder,
    to_tar,
)
from nexapod.protocol.primitives import BlobRef, blob_of
from nexapod.protocol.wire import fields

FILES = {"a.txt": b"alpha", "bin/run": b"#!/bin/sh\n", "deep/er/empty": b"", "z": bytes(300_000)}
BLOB = blob_of(b"x")


class Store:
    """Blobs in memory."""

    def __init__(self) -> None:
        self.blobs: dict[BlobRef, bytes] = {}

    def put(self, source: IO[bytes], size: int) -> BlobRef:
        data = source.read()
        self.blobs[blob_of(data)] = data
        return blob_of(data)

    def read(self, ref: BlobRef) -> Iterator[bytes]:
        data = self.blobs[ref]
        yield from (data[at : at + 1000] for at in range(0, len(data), 1000))


@pytest.fixture
def store() -> Store:
    return Store()


def make_folder(folder: Path) -> Path:
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / "bin/run").chmod(0o755)
    (folder / "nothing in it").mkdir()
    return folder


def tar_of(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(data or bytes(member.size)))
    return out.getvalue()


def member(name: str, **facts: object) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    for key, value in facts.items():
        setattr(found, key, value)
    return found


def test_a_folder_and_its_archives_are_the_same_tree(store: Store, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder")
    tree = encode(from_folder(folder, store.put))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, ".")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in sorted(folder.rglob("*")):
            zipped.write(path, path.relative_to(folder))
    for name in ("a.tar", "a.tar.gz", "a.zip"):
        assert encode(from_archive(tmp_path / name, store.put)) == tree, name
    assert is_tree(tree)
    assert not is_tree(b"anything else")
    assert {entry.path: store.blobs[entry.blob] for entry in decode(tree)} == FILES
    assert [entry.path for entry in decode(tree) if entry.executable] == ["bin/run"]


def test_it_is_written_back_as_it_was(store: Store, tmp_path: Path) -> None:
    entries = from_folder(make_folder(tmp_path / "folder"), store.put)
    to_folder(entries, store.read, tmp_path / "back")
    assert encode(from_folder(tmp_path / "back", store.put)) == encode(entries)
    assert stat.S_IMODE((tmp_path / "back/bin/run").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "back/a.txt").stat().st_mode) == 0o644
    for name in ("one.tar", "two.tar"):
        to_tar(entries, store.read, tmp_path / name)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert encode(from_archive(tmp_path / "one.tar", store.put)) == encode(entries)


@pytest.mark.parametrize("write", [to_folder, to_tar])
def test_nothing_is_overwritten_and_nothing_half_done_stays(store: Store, tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    entries = from_folder(make_folder(tmp_path / "folder"), store.put)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/there").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("out/there", "out", "link"):
        with pytest.raises(TreeRefused, match="there already"):
            write(entries, store.read, tmp_path / name)
    assert (tmp_path / "out/there").read_text() == "mine"

    def breaks(ref: BlobRef) -> Iterator[bytes]:
        yield b"half"
        raise OSError(5, "Input/output error")

    before = sorted(tmp_path.iterdir())
    with pytest.raises(Exception, match="Input/output"):
        write(entries, breaks, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up", "a/../../up", "a/./b", "a//b", "", ".", "..", "a\0b", "a\nb", "x" * 256, "a/"]
)
def test_paths_that_lead_out_are_refused_everywhere(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(TreeRefused):
        encode([Entry(name, False, BLOB)])
    with pytest.raises(TreeRefused):
        decode(fields.pack(["nexapod-tree", 1, [[name, False, BLOB.digest, BLOB.size]]]))
    with pytest.raises(TreeRefused):
        to_folder([Entry(name, False, BLOB)], store.read, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up"])
def test_archives_with_such_paths_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(member(name, size=1)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr(name, b"x")
    for archive in ("a.tar", "a.zip"):
        with pytest.raises(TreeRefused, match="cannot be a file of a tree"):
            from_archive(tmp_path / archive, store.put)
    assert not store.blobs


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(store: Store, tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(member("evil", type=kind, linkname="/etc/passwd")))
    with pytest.raises(TreeRefused, match="neither a file nor a folder"):
        from_archive(tmp_path / "a.tar", store.put)


def test_links_in_a_zip_and_in_a_folder_are_refused(store: Store, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        link = zipfile.ZipInfo("evil")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc/passwd")
    with pytest.raises(TreeRefused, match="neither a file nor a folder"):
        from_archive(tmp_path / "a.zip", store.put)
    folder = make_folder(tmp_path / "folder")
    (folder / "deep/link").symlink_to("/etc/passwd")
    with pytest.raises(TreeRefused, match="a symbolic link"):
        from_folder(folder, store.put)
    (folder / "deep/link").unlink()
    os.mkfifo(folder / "fifo")
    with pytest.raises(TreeRefused, match="neither a file nor a folder"):
        from_folder(folder, store.put)
    with pytest.raises(TreeRefused, match="not a folder"):
        from_folder(folder / "a.txt", store.put)


def test_bombs_are_refused_by_what_they_say_or_by_what_they_do(store: Store, tmp_path: Path) -> None:
    bounds = Bounds(entries=3, bytes=1000)
    (tmp_path / "large.tar.gz").write_bytes(gzip.compress(tar_of(member("zeros", size=1001))))
    (tmp_path / "many.tar").write_bytes(tar_of(*(member(str(number)) for number in range(4))))
    with zipfile.ZipFile(tmp_path / "large.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("zeros", bytes(1001))
    for name in ("large.tar.gz", "many.tar", "large.zip"):
        with pytest.raises(TreeRefused, match="more than the"):
            from_archive(tmp_path / name, store.put, bounds)
    # Its directory says 5 bytes, its data is a million.
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("liar", bytes(1_000_000))
    lying = raw.getvalue().replace((1_000_000).to_bytes(4, "little"), (5).to_bytes(4, "little"))
    (tmp_path / "liar.zip").write_bytes(lying)
    with pytest.raises(TreeRefused):
        from_archive(tmp_path / "liar.zip", store.put, bounds)
    assert sum(map(len, store.blobs.values())) <= 1000


def test_a_header_that_would_fill_the_memory_is_refused(store: Store, tmp_path: Path) -> None:
    header = member("x", type=tarfile.XHDTYPE, size=HEADER_BYTES_MAX + 1)
    (tmp_path / "a.tar").write_bytes(header.tobuf() + bytes(HEADER_BYTES_MAX + 1024))
    with pytest.raises(TreeRefused, match="a header of"):
        from_archive(tmp_path / "a.tar", store.put)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04rubbish", b"\x1f\x8brubbish", b"rubbish" * 100])
def test_what_is_no_archive_is_refused(store: Store, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(TreeRefused):
        from_archive(tmp_path / "a", store.put)


def test_an_archive_cut_short_is_refused(store: Store, tmp_path: Path) -> None:
    whole = tar_of(member("a", size=50_000))
    packed = gzip.compress(tar_of(member("a", size=50_000), data=os.urandom(50_000)))
    for number, data in enumerate((whole[:20_000], packed[:20_000])):
        (tmp_path / str(number)).write_bytes(data)
        with pytest.raises(TreeRefused):
            from_archive(tmp_path / str(number), store.put)


@pytest.mark.parametrize("cut_at", [1024, 1024 + 100, 700, 1024 + 512 + 100])
def test_a_tar_that_lacks_its_end_mark_is_refused(store: Store, tmp_path: Path, cut_at: int) -> None:
    """Between two files, in a header, in the data: what is left of it reads like a whole archive of fewer files."""
    whole = tar_of(*(member(name, size=5) for name in "abcde"), data=b"12345")
    from_archive(_written(tmp_path / "whole", whole), store.put)
    for number, data in enumerate((whole[:cut_at], gzip.compress(whole[:cut_at]))):
        with pytest.raises(TreeRefused, match=r"end mark is missing|unexpected end|shorter"):
            from_archive(_written(tmp_path / str(number), data), store.put)


def test_a_tar_with_rubbish_in_place_of_a_header_is_refused(store: Store, tmp_path: Path) -> None:
    whole = tar_of(member("a", size=5), member("b", size=5), data=b"12345")
    with pytest.raises(TreeRefused, match="end mark is missing"):
        from_archive(_written(tmp_path / "a.tar", whole[:1024] + b"?" * 512 + whole[1536:]), store.put)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_the_same_name_twice_and_files_inside_of_files_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(member("same"), member("same")))
    with pytest.raises(TreeRefused, match="twice"):
        from_archive(tmp_path / "a.tar", store.put)
    with pytest.raises(TreeRefused, match="twice"):
        encode([Entry("same", False, BLOB)] * 2)
    with pytest.raises(TreeRefused, match="inside of what is a file"):
        encode([Entry("a", False, BLOB), Entry("a/b", False, BLOB)])


def test_manifests_have_one_form() -> None:
    good = [["a", False, BLOB.digest, 1], ["b", True, BLOB.digest, 1]]
    assert len(decode(fields.pack(["nexapod-tree", 1, good]))) == 2
    for bad in (
        ["nexapod-tree", 1, good[::-1]],
        ["nexapod-tree", 2, good],
        ["other", 1, good],
        ["nexapod-tree", 1, {}],
        ["nexapod-tree", 1, [["a", 0, BLOB.digest, 1]]],
        ["nexapod-tree", 1, [["a", False, b"short", 1]]],
        ["nexapod-tree", 1, [["a", False, BLOB.digest, -1]]],
        ["nexapod-tree", 1, [["a", False, BLOB.digest]]],
    ):
        with pytest.raises(TreeRefused):
            decode(fields.pack(bad))
    with pytest.raises(TreeRefused):
        decode(fields.pack(["nexapod-tree", 1, good]) + b"\xc0")
    wide = fields.pack(["nexapod-tree", 1, good])[:-1] + b"\xcc\x01"  # 1 in two bytes
    with pytest.raises(TreeRefused):
        decode(wide)


@given(st.binary(max_size=200))
def test_decoding_is_total(data: bytes) -> None:
    with suppress(TreeRefused):
        decode(data)
