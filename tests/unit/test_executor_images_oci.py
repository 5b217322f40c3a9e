"""nexapod.executor.images.oci and tarwalk: what archives hold, and that none of them, however made, does harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from image_kit import AMD64, Made, docker_archive, image, oci_layout, tar

from nexapod.executor.images import oci
from nexapod.executor.images.errors import BadImage
from nexapod.executor.images.oci import Platform
from nexapod.executor.images.tarwalk import entries

ROOM = 64 << 20


def reader(data: bytes) -> Callable[[int, int], bytes]:
    """Nothing that an archive says may lead to more being read at once than a manifest may have."""

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0
        assert 0 <= length <= oci.JSON_BYTES_MAX
        return data[offset : offset + length]

    return read


def found(data: bytes, wanted: Platform | None = None) -> oci.ArchivedImage:
    return oci.find_image(reader(data), len(data), AMD64, wanted)


def layers_of(data: bytes, archived: oci.ArchivedImage) -> tuple[bytes, ...]:
    return tuple(b"".join(oci.unpacked(reader(data), entry, ROOM)) for entry in archived.layers)


def refused(data: bytes, wanted: Platform | None = None) -> str:
    with pytest.raises(BadImage) as caught:
        found(data, wanted)
    assert str(caught.value).isprintable()
    return str(caught.value)


def archive_of(**files: Any) -> bytes:
    """An archive whose JSON files are given as values, and others as bytes; `__` in a name is a dot."""
    return tar(
        {
            name.replace("__", "."): value if isinstance(value, bytes) else json.dumps(value).encode()
            for name, value in files.items()
        }
    )


TWO = image(tar({"lib": b"shared " * 1000}), tar({"app": b"program"}))


# --- what is found ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "data",
    [
        docker_archive(TWO),
        docker_archive(TWO, compress=True),
        oci_layout(TWO),
        oci_layout(TWO, compress=False, nested=False),
    ],
    ids=["docker", "docker-gzip", "oci-gzip-nested", "oci-plain"],
)
def test_an_image_comes_out_of_its_archive_as_it_was(data: bytes) -> None:
    archived = found(data)
    assert archived.configuration.raw == TWO.config
    assert archived.configuration.content_id == TWO.id
    assert archived.configuration.platform == AMD64
    assert layers_of(data, archived) == TWO.layers
    assert archived.configuration.diff_ids == tuple(hashlib.sha256(layer).digest() for layer in TWO.layers)


def test_names_that_an_archive_gives_are_kept_when_they_are_names() -> None:
    data = docker_archive(TWO, names=["a/b:1", "\x1b[2J", "über", "", "c" * 1000, "--evil", "reg.example:5000/x:2"])
    assert found(data).names == ("a/b:1", "reg.example:5000/x:2")


@pytest.mark.parametrize("make", [docker_archive, oci_layout])
def test_of_several_platforms_this_machines_is_taken_or_the_one_asked_for(make: Callable[..., bytes]) -> None:
    arm = image(tar({"app": b"for arm"}), arch="arm64")
    data = make(arm, TWO)
    assert found(data).configuration.content_id == TWO.id
    assert found(data, Platform.parse("linux/arm64")).configuration.content_id == arm.id
    assert "linux/s390x" in refused(data, Platform.parse("linux/s390x"))
    # The only one is taken as it is, unless another was asked for.
    assert found(make(arm)).configuration.content_id == arm.id
    assert "linux/amd64" in refused(make(arm), AMD64)


def test_two_images_for_one_platform_are_not_guessed_between() -> None:
    assert "one at a time" in refused(docker_archive(TWO, image()))


def test_a_layer_that_occurs_twice_is_a_link_in_old_docker_archives() -> None:
    layer = tar({"x": b"x"})
    made = image(layer, layer)
    body = io.BytesIO()
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar"]}]
    with tarfile.open(fileobj=body, mode="w") as archive:
        for name, data in {"c.json": made.config, "a/layer.tar": layer, "manifest.json": json.dumps(manifest)}.items():
            raw = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
        link = tarfile.TarInfo("b/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../a/layer.tar"
        archive.addfile(link)
    assert layers_of(body.getvalue(), found(body.getvalue())) == (layer, layer)


def test_platforms() -> None:
    assert str(Platform.parse("linux/arm/v7")) == "linux/arm/v7"
    assert Platform.parse("linux/arm/v7").fits(Platform.parse("linux/arm"))
    assert not Platform.parse("linux/arm").fits(Platform.parse("linux/arm/v7"))
    for wrong in ("linux", "linux/", "a/b/c/d", "linux/amd64\n", "Linux/../x"):
        with pytest.raises(BadImage):
            Platform.parse(wrong)


# --- what is made ----------------------------------------------------------------------------------------------------
def test_an_archive_for_the_engine_holds_the_image_again() -> None:
    configuration = oci.parse_configuration(TWO.config)
    pieces = oci.docker_archive(configuration, "x:1", [(len(layer), iter([layer])) for layer in TWO.layers])
    data = b"".join(pieces)
    again = found(data)
    assert (again.configuration.raw, again.names) == (TWO.config, ("x:1",))
    assert layers_of(data, again) == TWO.layers
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert len(archive.getnames()) == 4


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "neither a docker-archive"),
        (b"not a tar" * 100, "not a tar archive"),
        (docker_archive(TWO)[:20_000], "cut off"),
        (archive_of(other=b"x"), "neither a docker-archive"),
        (archive_of(manifest__json=b"{"), "not JSON"),
        (archive_of(manifest__json=b"[" * 100_000), "not JSON"),
        (archive_of(manifest__json=b"\xff\xfe"), "not JSON"),
        (archive_of(manifest__json={}), "not a JSON list"),
        (archive_of(manifest__json=[]), "it has: none"),
        (archive_of(manifest__json=[7]), "not a JSON object"),
        (archive_of(manifest__json=[{"Config": 7}]), "not a name"),
        (archive_of(manifest__json=[{"Config": "x" * 5000}]), "not a name"),
        (archive_of(manifest__json=[{"Config": "../../etc/passwd"}]), "lacks"),
        (archive_of(manifest__json=[{"Config": "/etc/passwd"}]), "lacks"),
        (archive_of(manifest__json=[{"Config": "\x1b[2J\u202e"}]), "lacks"),
        (archive_of(manifest__json=[{}] * 65), "lists 65 images"),
        (archive_of(index__json={"manifests": [{"digest": "md5:00"}]}), "digest"),
        (archive_of(index__json={"manifests": [{"digest": "sha256:" + "0" * 64}]}), "lacks"),
        (archive_of(index__json={"manifests": "x"}), "not a JSON list"),
    ],
)
def test_what_is_no_archive_of_an_image_is_refused_with_a_reason(data: bytes, said: str) -> None:
    assert said in refused(data)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (b"{}", "rootfs"),
        (json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}}).encode(), "has 0 layers"),
        (
            json.dumps({"rootfs": {"diff_ids": ["sha256:" + "0" * 64] * 10_000}}).encode(),
            "has 10000 layers: from 1 to 127",
        ),
        (json.dumps({"rootfs": {"diff_ids": ["sha256:zz"]}, "os": "linux", "architecture": "a"}).encode(), "digest"),
        (json.dumps({"rootfs": {"diff_ids": ["sha256:" + "0" * 64]}}).encode(), "platform"),
        (
            json.dumps({"os": "\x1b[2J", "architecture": "a", "rootfs": {"diff_ids": ["sha256:" + "0" * 64]}}).encode(),
            "platform",
        ),
        (b" " * (1 << 20) + b"{}", "at most 1048576"),
    ],
)
def test_what_is_no_configuration_is_refused(config: bytes, said: str) -> None:
    with pytest.raises(BadImage, match=said):
        oci.parse_configuration(config)


def test_a_manifest_that_lacks_a_layer_or_names_another_number_of_them_is_refused() -> None:
    missing = {"c": TWO.config, "manifest.json": json.dumps([{"Config": "c", "Layers": ["a", "b"]}]).encode()}
    assert "lacks 'a'" in refused(tar(missing))
    assert "its configuration 2" in refused(tar(missing | {"manifest.json": b'[{"Config": "c", "Layers": ["c"]}]'}))


def test_a_layer_that_is_a_link_out_of_the_archive_or_to_itself_is_refused() -> None:
    made = image()
    for target in ("../../../etc/passwd", "/etc/passwd", "layer", "."):
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode="w") as archive:
            link = tarfile.TarInfo("layer")
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
            for name, data in {"c": made.config, "manifest.json": b'[{"Config": "c", "Layers": ["layer"]}]'}.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        assert "'" in refused(body.getvalue())


def test_a_damaged_manifest_of_a_layout_is_seen() -> None:
    data = oci_layout(TWO)
    assert "damaged" in refused(data.replace(b'"schemaVersion": 2, "config"', b'"schemaVersion": 3, "config"'))


# --- gzip and zstd ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pack", [partial(gzip.compress, compresslevel=9, mtime=0), zstandard.compress])
def test_a_bomb_ends_at_the_bound_and_takes_no_memory(pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(bytes(256 << 20))
    data = docker_archive(image().with_layers(bomb))
    archived = found(data)
    tracemalloc.start()
    with pytest.raises(BadImage, match="unpacks to more than the 8388608 bytes"):
        for _ in oci.unpacked(reader(data), archived.layers[0], 8 << 20):
            pass
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@given(st.lists(st.binary(max_size=3000), max_size=5), st.integers(1, 4000), st.integers(0, 3))
def test_gzip_of_any_members_in_any_pieces(parts: list[bytes], step: int, padding: int) -> None:
    data = b"".join(gzip.compress(part, mtime=0) for part in parts) + bytes(padding if parts else 0)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    if not parts:
        with pytest.raises(BadImage):
            list(oci.gunzipped(pieces))
        return
    assert b"".join(oci.gunzipped(pieces)) == b"".join(parts)


def test_a_gzip_stream_that_is_damaged_or_cut_off_is_refused() -> None:
    data = gzip.compress(bytes(range(256)) * 100, mtime=0)
    for wrong in (data[:-5], data[:20] + b"\xff" * 20 + data[40:], data + b"garbage behind", data[:3]):
        with pytest.raises(BadImage, match="gzip"):
            list(oci.gunzipped([wrong]))


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=5), st.integers(1, 4000))
def test_zstd_of_any_frames_in_any_pieces(parts: list[bytes], step: int) -> None:
    skipped = b"\x50\x2a\x4d\x18\x05\x00\x00\x00 toc "  # builders put a table of contents behind the last frame
    data = b"".join(zstandard.compress(part) for part in parts) + skipped
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert b"".join(oci.unzstd(pieces)) == b"".join(parts)


def test_a_zstd_stream_that_is_damaged_or_wants_much_memory_is_refused() -> None:
    wide = zstandard.ZstdCompressionParameters.from_level(19, window_log=27)
    greedy = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    damaged = bytearray(zstandard.compress(bytes(range(256)) * 100))
    damaged[6] ^= 0xFF
    for wrong in (greedy.compress(bytes(1 << 20)) + greedy.flush(), bytes(damaged), oci.ZSTD + b"\xff" * 600):
        with pytest.raises(BadImage, match="zstd"):
            list(oci.unzstd([wrong]))


# --- layers ----------------------------------------------------------------------------------------------------------
def pax(records: bytes, name: str = "f", kind: bytes = b"x") -> bytes:
    head = tarfile.TarInfo("pax")
    head.type, head.size = kind, len(records)
    return head.tobuf() + records + bytes(-len(records) % 512) + tarfile.TarInfo(name).tobuf() + bytes(1024)


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n"
    length = len(body) + 1
    while len(f"{length}{body}") != length:
        length += 1
    return f"{length}{body}".encode()


def old_sparse() -> bytes:
    info = tarfile.TarInfo("huge")
    info.type = b"S"
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def directory_with_data() -> bytes:
    info = tarfile.TarInfo("d/")
    info.type, info.size = b"\0", 512
    return info.tobuf() + bytes(512 + 1024)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (old_sparse(), "sparse"),
        (pax(record("GNU.sparse.major", "1") + record("GNU.sparse.realsize", "1" + "0" * 15)), "sparse"),
        (pax(record("size", "1" + "0" * 15)), "ends before its member"),
        (pax(record("size", "-512")), "no number"),
        (pax(b"0 a=b\n"), "malformed"),
        (pax(b"99 a=b\n"), "malformed"),
        (pax(b"6 a=bc"), "malformed"),
        (pax(b"abc"), "malformed"),
        (pax(record("path", "d/") + record("path", "x") + b"5 ab\n"), "malformed"),
        (directory_with_data(), "readers differ"),
        (tar({"f": b"x" * 5000})[:3000], "ends before its member"),
        (tar({"f": b"x"})[:1024] + b"x" * 100, "cut off"),
        (tar({"f": b"x"})[:512].replace(b"ustar", b"usTar") + bytes(2048), "damaged at byte 0"),
    ],
)
def test_layers_that_could_unpack_to_more_than_they_are_and_damaged_ones_are_refused(layer: bytes, said: str) -> None:
    with pytest.raises(BadImage, match=said):
        oci.check_layer(reader(layer), len(layer))


def test_a_header_that_states_terabytes_is_refused_before_it_is_read() -> None:
    for kind in (b"x", b"L", b"K"):
        info = tarfile.TarInfo("big")
        info.type, info.size = kind, 1 << 40
        layer = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
        with pytest.raises(BadImage):
            list(entries(lambda at, length, layer=layer: layer[at : at + length], 1 << 41, 100))


def gnu_long(kind: bytes, text: bytes) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, len(text)
    return info.tobuf(tarfile.GNU_FORMAT) + text + bytes(-len(text) % 512)


@pytest.mark.parametrize("size", [4096, 4097])
def test_a_name_that_no_file_can_have_is_refused(size: int) -> None:
    one, end = tarfile.TarInfo("x").tobuf(), bytes(1024)
    layers = [gnu_long(b"L", b"n" * size) + one + end, gnu_long(b"K", b"n" * size) + one + end]
    layers += [pax(record(key, "n" * size)) for key in ("path", "linkpath")]
    for layer in layers:
        if size == 4096:
            oci.check_layer(reader(layer), len(layer))
            continue
        with pytest.raises(BadImage, match="more than 4096 bytes"):
            oci.check_layer(reader(layer), len(layer))


def test_an_archives_names_take_little_memory_however_many_and_long() -> None:
    one = tarfile.TarInfo("x").tobuf()
    data = b"".join(gnu_long(b"L", b"%04d" % number + b"n" * 4000) + one for number in range(9000)) + bytes(1024)
    tracemalloc.start()
    assert "names of the archive's members have more than" in refused(data)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_an_archive_of_too_many_members_is_refused() -> None:
    one = tarfile.TarInfo("x").tobuf()
    data = one * (oci.ARCHIVE_ENTRIES_MAX + 1) + bytes(1024)
    assert "more than 20000 members" in refused(data)


def members(*names: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A layer of empty members."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
    return body.getvalue()


def unpacked(*layers: bytes) -> oci.Unpacked:
    total = oci.Unpacked()
    for layer in layers:
        total = oci.check_layer(reader(layer), len(layer), total)
    return total


def test_what_a_layer_unpacks_to_is_more_than_its_bytes_where_files_are_small() -> None:
    empty = [f"{number:04}" for number in range(1000)]
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        assert unpacked(members(*empty, kind=kind)) == oci.Unpacked(1000 * 4096, 1000)
    assert unpacked(tar({"a": bytes(4096), "b": bytes(4097), "c": b""})) == oci.Unpacked((2 + 3 + 1) * 4096, 3)
    # Attributes lie beside a file; here nothing else is large.
    attributes = pax(record("SCHILY.xattr.user.x", "v" * 60_000))
    assert unpacked(attributes) == oci.Unpacked(len(attributes), 1)
    assert unpacked(members(*empty), members(*empty), attributes) == oci.Unpacked(2000 * 4096 + len(attributes), 2001)


def test_folders_that_a_name_leads_through_count_once() -> None:
    assert unpacked(members("./usr/lib/a", "usr/lib/b", "/usr/share/c", "usr/share/../share/d")).files == 4 + 3
    assert unpacked(members("usr", "usr/lib", "usr", kind=tarfile.DIRTYPE)).files == 2
    deep = "/".join("a" * 2000)
    assert unpacked(members(deep, deep + "b")).files == 2001
    assert unpacked(members(".", "", kind=tarfile.DIRTYPE)).files == 0


def test_an_image_of_more_files_than_one_may_have_is_refused_however_few_its_members() -> None:
    deep = "/a" * 1990
    halves = [members(*(f"{number:06}{deep}" for number in range(begin, begin + 252))) for begin in (0, 252)]
    assert unpacked(halves[0]).files == 252 * 1991
    with pytest.raises(BadImage, match="more than 1000000 files and folders"):
        unpacked(*halves)


def test_counting_folders_takes_little_memory_however_many_and_deep() -> None:
    layer = members(*(f"{number:06}" + "/a" * 1990 for number in range(40)))
    tracemalloc.start()
    assert unpacked(layer).files >= 40 * 1991
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_usual_layers_pass(tmp_path: Any) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ("long-" * 40)).write_bytes(b"x" * 3000)
    (tmp_path / "link").symlink_to("d/" + "deep/" * 40)
    (tmp_path / "ünïcode").write_bytes(b"")
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode="w", format=form) as archive:
            if form == tarfile.USTAR_FORMAT:
                (tmp_path / "x").write_bytes(b"x")
                archive.add(tmp_path / "x", "x")
            else:
                archive.add(tmp_path, ".")
        data = body.getvalue()
        oci.check_layer(reader(data), len(data))
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            theirs = [(member.name, member.size if member.isreg() else 0) for member in archive]
        ours = [(entry.name.rstrip("/"), entry.size) for entry in entries(reader(data), len(data), 100)]
        assert ours == theirs


# --- anything at all -------------------------------------------------------------------------------------------------
VALID = (docker_archive(TWO), oci_layout(TWO), docker_archive(image(), compress=True))
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("sha256:" + "0" * 64),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["Config", "Layers", "RepoTags", "manifests", "digest", "platform", "rootfs", "diff_ids", "os"]
            )
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def try_all(data: bytes) -> None:
    """Everything that is done with an archive: BadImage or success, and nothing else."""
    try:
        archived = found(data)
        for entry in archived.layers:
            layer = b"".join(oci.unpacked(reader(data), entry, ROOM))
            oci.check_layer(reader(layer), len(layer))
    except BadImage as error:
        said = str(error)
    else:
        said = ""
    assert said == "" or said.isprintable()


@given(st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 40_000), st.binary(max_size=20)), max_size=6))
def test_damage_anywhere_is_success_or_badimage(data: bytes, changes: list[tuple[int, bytes]]) -> None:
    broken = bytearray(data)
    for at, new in changes:
        broken[at % len(broken) : at % len(broken) + len(new)] = new
    try_all(bytes(broken))


def _headers(data: bytes) -> Iterator[int]:
    return (at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar")


@given(st.sampled_from(VALID), st.data())
def test_damaged_headers_with_right_checksums_are_success_or_badimage(data: bytes, choice: st.DataObject) -> None:
    broken = bytearray(data)
    at = choice.draw(st.sampled_from(list(_headers(data))))
    field, length = choice.draw(st.sampled_from([(0, 100), (124, 12), (156, 1), (157, 100), (345, 155)]))
    broken[at + field : at + field + length] = choice.draw(st.binary(min_size=length, max_size=length))
    broken[at + 148 : at + 156] = b" " * 8
    broken[at + 148 : at + 156] = b"%06o\0 " % sum(broken[at : at + 512])
    try_all(bytes(broken))


@given(JSONS, st.sampled_from(["manifest.json", "index.json"]))
def test_any_json_as_manifest_is_success_or_badimage(value: object, name: str) -> None:
    try_all(tar({name: json.dumps(value).encode()}))


@given(JSONS)
def test_any_json_as_configuration_is_success_or_badimage(value: object) -> None:
    try_all(docker_archive(Made(json.dumps(value).encode(), (b"",))))


@given(st.binary(max_size=3000))
def test_any_bytes_are_success_or_badimage(data: bytes) -> None:
    try_all(data)
    try_all(docker_archive(image().with_layers(data)))
