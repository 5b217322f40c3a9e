"""Container images as bytes: what an archive of one holds, what its configuration says, and an archive made anew.

Pure parsing of hostile input: whatever an archive says, only BadImage comes out, and memory stays bounded. Reads
docker-archives (`docker save`) and OCI image layouts in a tar. Knows neither engines nor blobs, and extracts nothing.

An image is its configuration (JSON; its sha2-256 is the image's content id) and layers, which the configuration names
by the sha2-256 of their uncompressed tar archives (`rootfs.diff_ids`).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, TypeGuard

import zstandard

from nexapod.executor.images.errors import BadImage
from nexapod.executor.images.tarwalk import BLOCK, FOLDER, REGULAR, SYMLINK, Entry, Read, entries, shown
from nexapod.protocol.limits import CHUNK_BYTES, IMAGE_NAME_MAX, LAYERS_MAX

JSON_BYTES_MAX: Final = 4 << 20
"""A manifest or an index. A configuration has less than a chunk, so that its blob's name is the content id."""
ARCHIVE_ENTRIES_MAX: Final = 20_000
ARCHIVE_NAMES_BYTES_MAX: Final = 4 << 20
"""Of all members of an archive of images, links' targets included: they are kept in memory. Engines write a few hundred
of eighty bytes."""
LAYER_ENTRIES_MAX: Final = 2_000_000
"""Extended headers and repeated names count here."""
IMAGE_FILES_MAX: Final = 1_000_000
"""Files and folders of all layers of an image. Large ones, of whole software distributions, have half as many."""
FILE_BYTES: Final = 4096
"""What a file or folder takes beside its content, and the unit in which disks give room to that."""
FOLDERS_BYTES_MAX: Final = 32 << 20
FOLDER_BYTES: Final = 256
"""Of memory for the folders of a layer while they are counted: for all, and for each beside its name."""
FORGOTTEN: Final = -1
IMAGES_MAX: Final = 64
"""Images in one archive that are considered: several platforms."""
LINKS_MAX: Final = 4
PIECE_BYTES: Final = 1 << 20
STEP_BYTES: Final = 64 << 10
MAGIC_BYTES: Final = 4
GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
ZSTD_WINDOW_MAX: Final = 8 << 20
"""Memory that a frame may want: what every decoder should give (RFC 8878, 3.1.1.1.2)."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_WORD = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*\Z")
_INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image is built for, in Go's words. An empty variant stands for any."""

    os: str
    arch: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """`linux/amd64`, `linux/arm/v7`. Raises BadImage."""
        words = text.split("/")
        if not 2 <= len(words) <= 3 or not all(_WORD.match(word) for word in words):
            raise BadImage(f"{shown(text)} is not a platform: write it like linux/amd64 or linux/arm/v7")
        return cls(*words)

    def fits(self, wanted: Platform) -> bool:
        return (self.os, self.arch) == (wanted.os, wanted.arch) and wanted.variant in ("", self.variant)

    def __str__(self) -> str:
        return "/".join(word for word in (self.os, self.arch, self.variant) if word)


@dataclass(frozen=True, slots=True)
class Configuration:
    """An image's configuration, its bytes as they are."""

    raw: bytes
    diff_ids: tuple[bytes, ...]
    """The sha2-256 of each layer's uncompressed tar, lowest first."""
    platform: Platform

    @property
    def content_id(self) -> str:
        return f"sha256:{hashlib.sha256(self.raw).hexdigest()}"


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """One image in an archive: each layer is a member of it, perhaps compressed."""

    configuration: Configuration
    layers: tuple[Entry, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What layers come to on a disk, at most."""

    bytes: int = 0
    files: int = 0
    """With folders, links and all else that has a name."""


def parse_configuration(raw: bytes) -> Configuration:
    """Raises BadImage."""
    if len(raw) > CHUNK_BYTES:
        raise BadImage(f"the image's configuration has {len(raw)} bytes: at most {CHUNK_BYTES} are possible")
    config = _object(_json(raw, "the image's configuration"), "the image's configuration")
    rootfs = _object(config.get("rootfs"), "rootfs of the image's configuration")
    listed = _list(rootfs.get("diff_ids"), "rootfs.diff_ids of the image's configuration")
    if not 1 <= len(listed) <= LAYERS_MAX:
        raise BadImage(f"the image has {len(listed)} layers: from 1 to {LAYERS_MAX} are possible")
    words = [str(config.get(key) or "")[:64] for key in ("os", "architecture", "variant")]
    if not _WORD.match(words[0]) or not _WORD.match(words[1]) or (words[2] and not _WORD.match(words[2])):
        raise BadImage("the image's configuration does not say for which platform it is")
    return Configuration(raw, tuple(bytes.fromhex(_hex(item)) for item in listed), Platform(*words))


def find_image(read: Read, size: int, machine: Platform, wanted: Platform | None = None) -> ArchivedImage:
    """The image in an archive of `size` bytes; of several, the one for `wanted`, or else for this machine.

    Raises BadImage. That the layers are those of the configuration is seen when their bytes are read.
    """
    # Of two members with one name the last counts, as for every other reader of tar.
    members = {_plain(entry.name): entry for entry in _with_few_names(entries(read, size, ARCHIVE_ENTRIES_MAX))}
    archive = _Archive(read, members)
    if "manifest.json" in members:
        images = _docker_images(archive)
    elif "index.json" in members:
        images = _layout_images(archive, machine, wanted)
    else:
        what = "neither a docker-archive (no manifest.json) nor an OCI layout (no index.json)"
        raise BadImage(f"the archive is {what}: make one with `docker save` or `skopeo copy ... oci-archive:`")
    return _chosen(images, machine, wanted)


def _with_few_names(members: Iterable[Entry]) -> Iterator[Entry]:
    """The same members. Raises BadImage once their names take too much memory."""
    total = 0
    for entry in members:
        total += len(entry.name) + len(entry.target)
        if total > ARCHIVE_NAMES_BYTES_MAX:
            raise BadImage(f"the names of the archive's members have more than {ARCHIVE_NAMES_BYTES_MAX} bytes")
        yield entry


def unpacked(read: Read, entry: Entry, bytes_max: int) -> Iterator[bytes]:
    """The bytes of a layer, decompressed if need be, in pieces of at most PIECE_BYTES. Raises BadImage."""
    pieces = _pieces(read, entry)
    unpack = unpacker_of(read(entry.offset, min(MAGIC_BYTES, entry.size)))
    yield from bounded(unpack(pieces) if unpack else pieces, bytes_max)


def unpacker_of(start: bytes) -> Callable[[Iterable[bytes]], Iterator[bytes]] | None:
    """What unpacks bytes that begin so, with at least MAGIC_BYTES of them; None: they are not compressed."""
    if start.startswith(GZIP):
        return gunzipped
    return unzstd if start.startswith(ZSTD) else None


def bounded(pieces: Iterable[bytes], bytes_max: int) -> Iterator[bytes]:
    """The same pieces, until they are too many. Raises BadImage."""
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > bytes_max:
            raise BadImage(f"it unpacks to more than the {bytes_max} bytes that there is room for")
        yield piece


def gunzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """What a gzip stream, of one member or several, unpacks to, in pieces of at most PIECE_BYTES. Raises BadImage."""
    member: Any = zlib.decompressobj(wbits=31)
    begun = False
    try:
        for piece in _small(pieces):
            while piece:
                if member.eof:
                    if piece.count(0) == len(piece):  # padding behind the last member
                        break
                    member = zlib.decompressobj(wbits=31)
                begun = True
                if out := member.decompress(piece, PIECE_BYTES):
                    yield out
                piece = member.unconsumed_tail or member.unused_data
        while begun and not member.eof and (out := member.decompress(b"", PIECE_BYTES)):
            yield out
    except zlib.error as error:
        raise BadImage(f"a gzip stream is damaged ({error})") from None
    if not member.eof:
        raise BadImage("a gzip stream is cut off")


def unzstd(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """What a zstd stream, of one frame or several, unpacks to, in pieces of at most PIECE_BYTES. Raises BadImage.

    One that is cut off ends early: the digest of what it should unpack to tells.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    try:
        source = io.BufferedReader(_Readable(_small(pieces)), STEP_BYTES)
        with decompressor.stream_reader(source, STEP_BYTES, read_across_frames=True) as reader:
            while out := reader.read(PIECE_BYTES):
                yield out
    except zstandard.ZstdError as error:
        raise BadImage(f"a zstd stream is damaged, or needs more than {ZSTD_WINDOW_MAX} bytes ({error})") from None


class _Readable(io.RawIOBase):
    """Pieces of at most STEP_BYTES as a file, for a library that wants one."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = next(self._pieces, b"")
        buffer[: len(piece)] = piece
        return len(piece)


def _small(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """In smaller steps: zlib copies what it has not used, once for each of a stream's members."""
    for piece in pieces:
        for at in range(0, len(piece), STEP_BYTES):
            yield piece[at : at + STEP_BYTES]


def check_layer(read: Read, size: int, below: Unpacked = Unpacked()) -> Unpacked:
    """What a layer unpacks to, together with those `below` it in its image.

    Raises BadImage: it is no tar, or could unpack to more than its headers tell, or there are too many files.
    """
    folders = _Folders()
    taken, files = 0, below.files
    for entry in entries(read, size, LAYER_ENTRIES_MAX):
        made = folders.made_by(_plain(entry.name), is_folder=entry.kind == FOLDER)
        files += made
        if files > IMAGE_FILES_MAX:
            raise BadImage(f"the image's layers have more than {IMAGE_FILES_MAX} files and folders")
        taken += made * FILE_BYTES + -(-entry.size // FILE_BYTES) * FILE_BYTES
    # Headers count too: they may hold attributes, which a disk keeps beside the file.
    return Unpacked(below.bytes + max(taken, size), files)


class _Folders:
    """Counts what comes into being as members are unpacked: the folders too through which a name leads. A name of four
    kilobytes leads through two thousand."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], int] = {}
        """The number of each folder, by that of the one above it and its name. 0: the top."""
        self._room = FOLDERS_BYTES_MAX

    def made_by(self, path: str, *, is_folder: bool) -> int:
        """At most: folders that are not remembered, because there are too many, count again."""
        words = path.split("/")
        folders, made = (words, 0) if is_folder else (words[:-1], 1)
        above = 0
        for word in filter(None, folders):
            found = self._known.get((above, word))
            if found is None:
                made += 1
                found = self._remembered(above, word)
            above = found
        return made

    def _remembered(self, above: int, word: str) -> int:
        self._room -= FOLDER_BYTES + len(word)
        if self._room < 0:
            return FORGOTTEN
        return self._known.setdefault((above, word), len(self._known) + 1)


def docker_archive(
    configuration: Configuration, name: str, layers: Sequence[tuple[int, Iterator[bytes]]]
) -> Iterator[bytes]:
    """The archive that an engine loads the image from, in pieces: layers as (size, bytes), each read when its turn
    comes. `name`: the tag that the image gets."""
    config_name = f"{configuration.content_id[7:]}.json"
    paths = [f"{number:03}-{digest.hex()}/layer.tar" for number, digest in enumerate(configuration.diff_ids)]
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": paths}]
    yield _member(config_name, configuration.raw)
    for path, (size, pieces) in zip(paths, layers, strict=True):
        yield _header(path, size)
        yield from pieces
        yield bytes(-size % BLOCK)
    yield _member("manifest.json", json.dumps(manifest).encode("ascii"))
    yield bytes(2 * BLOCK)


def _member(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + bytes(-len(data) % BLOCK)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


# --- what is in an archive -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Archive:
    read: Read
    members: Mapping[str, Entry]

    def file(self, name: object) -> Entry:
        """The regular member of that name, by way of symbolic links inside the archive. Raises BadImage."""
        if not isinstance(name, str) or len(name) > 4096:
            raise BadImage("a manifest names a file by something that is not a name")
        path = _plain(name)
        for _ in range(LINKS_MAX):
            entry = self.members.get(path)
            if entry is None:
                raise BadImage(f"the archive lacks {shown(name)}, which its manifest names: it is incomplete")
            if entry.kind in REGULAR:
                return entry
            if entry.kind != SYMLINK or entry.target.startswith("/"):
                break
            # `docker save` writes a layer once, and links to it where it occurs again.
            path = _plain(str(PurePosixPath(path).parent / entry.target))
        raise BadImage(f"{shown(name)} in the archive is not a file")

    def bytes_of(self, name: object, bytes_max: int) -> bytes:
        entry = self.file(name)
        if entry.size > bytes_max:
            raise BadImage(f"{shown(entry.name)} in the archive has {entry.size} bytes: at most {bytes_max} are read")
        return self.read(entry.offset, entry.size)

    def blob(self, descriptor: object) -> bytes:
        """A small blob of an OCI layout, checked against the digest that names it. Raises BadImage."""
        digest = _hex(_object(descriptor, "a descriptor").get("digest"))
        data = self.bytes_of(f"blobs/sha256/{digest}", JSON_BYTES_MAX)
        if hashlib.sha256(data).hexdigest() != digest:
            raise BadImage(f"the blob {digest} of the archive is damaged")
        return data


def _docker_images(archive: _Archive) -> list[ArchivedImage]:
    manifest = _json(archive.bytes_of("manifest.json", JSON_BYTES_MAX), "manifest.json")
    return [_docker_image(archive, item) for item in _bounded(_list(manifest, "manifest.json"))]


def _docker_image(archive: _Archive, item: object) -> ArchivedImage:
    fields = _object(item, "an entry of manifest.json")
    configuration = parse_configuration(archive.bytes_of(fields.get("Config"), CHUNK_BYTES))
    paths = _list(fields.get("Layers") or [], "Layers in manifest.json")
    names = _list(fields.get("RepoTags") or [], "RepoTags in manifest.json")
    return _image(archive, configuration, paths, tuple(name for name in names if is_name(name)))


def _image(
    archive: _Archive, configuration: Configuration, paths: Sequence[object], names: tuple[str, ...]
) -> ArchivedImage:
    if len(paths) != len(configuration.diff_ids):
        raise BadImage(f"the image has {len(paths)} layers, and its configuration {len(configuration.diff_ids)}")
    return ArchivedImage(configuration, tuple(archive.file(path) for path in paths), names[:IMAGES_MAX])


def _layout_images(archive: _Archive, machine: Platform, wanted: Platform | None) -> list[ArchivedImage]:
    index = _json(archive.bytes_of("index.json", JSON_BYTES_MAX), "index.json")
    found = []
    for descriptor in _bounded(_manifests(index)):
        if str(descriptor.get("mediaType")) in _INDEX_TYPES:
            inner = _bounded(_manifests(_json(archive.blob(descriptor), "an index")))
            found += _for_platform(inner, machine, wanted)
        else:
            found.append(descriptor)
    return [_layout_image(archive, descriptor) for descriptor in _bounded(found)]


def _for_platform(
    descriptors: list[dict[str, Any]], machine: Platform, wanted: Platform | None
) -> list[dict[str, Any]]:
    """Those that may be wanted: the others' layers need not be in the archive at all. Raises BadImage."""
    stated = [(descriptor, _platform_of(descriptor)) for descriptor in descriptors]
    # What is attested of an image stands beside it, for the platform "unknown".
    images = [(descriptor, platform) for descriptor, platform in stated if platform is None or platform.os != "unknown"]
    fitting = [descriptor for descriptor, platform in images if platform is None or platform.fits(wanted or machine)]
    if not fitting and len(images) == 1 and wanted is None:
        return [images[0][0]]
    if not fitting:
        raise _not_among(wanted or machine, (str(platform) for _, platform in images))
    return fitting


def _manifests(index: object) -> list[dict[str, Any]]:
    listed = _list(_object(index, "an index").get("manifests"), "manifests of an index")
    return [_object(item, "a descriptor") for item in listed]


def _platform_of(descriptor: dict[str, Any]) -> Platform | None:
    stated = descriptor.get("platform")
    if not isinstance(stated, dict):
        return None
    words = [str(stated.get(key) or "") for key in ("os", "architecture", "variant")]
    known = all(_WORD.match(word) for word in words[:2])
    return Platform(*words) if known and (not words[2] or _WORD.match(words[2])) else None


def _not_among(wanted: Platform, held: Iterable[str]) -> BadImage:
    return BadImage(f"the archive has no image for {wanted}; it has: {', '.join(sorted(set(held))[:8]) or 'none'}")


def _layout_image(archive: _Archive, descriptor: dict[str, Any]) -> ArchivedImage:
    manifest = _object(_json(archive.blob(descriptor), "an image's manifest"), "an image's manifest")
    raw = archive.blob(manifest.get("config"))
    layers = [_object(item, "a layer") for item in _list(manifest.get("layers"), "layers of an image's manifest")]
    annotations = descriptor.get("annotations")
    named = annotations if isinstance(annotations, dict) else {}
    names = [named.get(key) for key in ("io.containerd.image.name", "org.opencontainers.image.ref.name")]
    paths = [f"blobs/sha256/{_hex(layer.get('digest'))}" for layer in layers]
    return _image(archive, parse_configuration(raw), paths, tuple(name for name in names if is_name(name)))


def _chosen(images: list[ArchivedImage], machine: Platform, wanted: Platform | None) -> ArchivedImage:
    """One image: any, if it is the only one and no platform was asked for."""
    unlike = {image.configuration.content_id: image for image in images}
    fitting = [image for image in unlike.values() if image.configuration.platform.fits(wanted or machine)]
    if not fitting and len(unlike) == 1 and wanted is None:
        return images[0]
    if not fitting:
        raise _not_among(wanted or machine, (str(image.configuration.platform) for image in images))
    if len(fitting) > 1:
        names = ", ".join(shown(name) for image in fitting[:8] for name in image.names[:2])
        raise BadImage(f"the archive has {len(fitting)} images ({names}): save one at a time")
    return fitting[0]


# --- values --------------------------------------------------------------------------------------------------------
def is_name(value: object) -> TypeGuard[str]:
    """Whether it may be the name of an image, with a tag or without: nothing in it can drive a terminal or a path."""
    return isinstance(value, str) and len(value) <= IMAGE_NAME_MAX and bool(_NAME.match(value))


def _plain(name: str) -> str:
    """A member's name, as manifests write it: without `.` and `..`, as far as they can be taken away."""
    words: list[str] = []
    for word in name.split("/"):
        if word == ".." and words and words[-1] != "..":
            words.pop()
        elif word not in ("", "."):
            words.append(word)
    return "/".join(words)


def _pieces(read: Read, entry: Entry) -> Iterator[bytes]:
    for at in range(0, entry.size, PIECE_BYTES):
        yield read(entry.offset + at, min(PIECE_BYTES, entry.size - at))


def _json(raw: bytes, what: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadImage(f"{what} is not JSON ({type(error).__name__})") from None


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadImage(f"{what} is not a JSON object")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadImage(f"{what} is not a JSON list")
    return value


def _bounded(items: list[Any]) -> list[Any]:
    if len(items) > IMAGES_MAX:
        raise BadImage(f"the archive lists {len(items)} images: at most {IMAGES_MAX} are considered")
    return items


def _hex(value: object) -> str:
    found = _DIGEST.match(value) if isinstance(value, str) else None
    if found is None:
        raise BadImage("a digest is not sha256: and 64 hexadecimal digits")
    return found.group(1)
