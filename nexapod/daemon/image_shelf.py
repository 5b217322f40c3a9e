"""The images that this machine's user has added: kept as blobs, one small file each that says which.

Brings an archive, or an image of the local engine, into the blob store, checked; says under which names an image was
added; and names the blobs that must stay. Works without an engine for archives. Knows nothing of jobs.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
import trio

from nexapod.blobs.errors import disk_errors
from nexapod.blobs.store import BlobStore
from nexapod.daemon.small_files import delete_durably, write_durably
from nexapod.executor.images import oci
from nexapod.executor.images.errors import BadImage, ImageError, ImageUnavailable
from nexapod.executor.images.inventory import Engine, is_id
from nexapod.protocol.primitives import BlobRef

log = structlog.get_logger()
T = TypeVar("T")

LAYER_BYTES_MAX: Final = 64 << 30
"""The largest blob that peers fetch."""
ARCHIVE_BYTES_MAX: Final = 256 << 30
DISK_RESERVE: Final = 1 << 30
"""What unpacking leaves free on the disk."""
IMAGES_MAX: Final = 1024
NAMES_MAX: Final = 64
PREFIX_DIGITS_MIN: Final = 4


_GO_ARCH: Final = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}
"""Images name an architecture in Go's words, profiles in the kernel's."""
_PROFILE_ARCH: Final = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}


def this_machine() -> oci.Platform:
    """The platform whose images run here."""
    machine = platform.machine().lower()
    return oci.Platform("linux", _GO_ARCH.get(machine, machine))


class UnknownImage(ImageError):
    """No such image has been added here."""


@dataclass(frozen=True, slots=True)
class Shelved:
    """An added image."""

    image: str
    """Its content id."""
    platform: str
    blobs: tuple[BlobRef, ...]
    """Configuration, then layers: what types.Run.image_blobs holds."""
    diff_ids: tuple[str, ...]
    names: tuple[str, ...] = ()
    added: int = 0
    """Wall-clock milliseconds: of two images with one name the later is meant."""

    @property
    def size(self) -> int:
        return sum(ref.size for ref in self.blobs)

    @property
    def arch(self) -> str:
        """As profiles name it; empty when that is not known."""
        return _PROFILE_ARCH.get(self.platform.split("/")[1], "")


@dataclass(frozen=True, slots=True)
class Added:
    """What adding an image came to."""

    image: Shelved
    new_blobs: int
    new_bytes: int


class Shelf:
    """Everything that was added, in `folder`."""

    def __init__(self, folder: Path, blobs: BlobStore, engine: Engine, machine: oci.Platform) -> None:
        """Makes the folder, reads what is in it and clears what a crash left. Blocks: call it in a thread."""
        self._folder = folder
        self._scratch = folder / "incoming"
        self._blobs = blobs
        self._engine = engine
        self._machine = machine
        self._adding = trio.Lock()
        self._recording = trio.Lock()
        """Held while what is remembered changes: a removal need not wait until an image has been added."""
        self._coming: set[BlobRef] = set()
        """What is here of the image that is being added."""
        with disk_errors(folder):
            self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self._scratch.iterdir():
                left.unlink()
        self._images = {image.image: image for image in _read_all(folder)}

    # --- what is there ---------------------------------------------------------------------------------------------
    @property
    def held(self) -> frozenset[BlobRef]:
        """Blobs that must not be deleted."""
        return frozenset(ref for image in self._images.values() for ref in image.blobs) | self._coming

    def images(self) -> list[Shelved]:
        """The newest first."""
        return sorted(self._images.values(), key=lambda image: (-image.added, image.image))

    def get(self, image: str) -> Shelved | None:
        """By content id."""
        return self._images.get(image)

    def find(self, text: str) -> Shelved:
        """By content id, the first digits of it, or name (`name:tag`; without a tag, `latest`). Raises UnknownImage."""
        if is_id(text) and text in self._images:
            return self._images[text]
        named = [image for image in self.images() if _with_tag(text) in image.names]
        digits = text.removeprefix("sha256:")
        begun = [image for name, image in self._images.items() if name[7:].startswith(digits)]
        if named:
            return named[0]
        if len(digits) >= PREFIX_DIGITS_MIN and len(begun) == 1:
            return begun[0]
        if len(digits) >= PREFIX_DIGITS_MIN and begun:
            raise UnknownImage(f"{len(begun)} added images begin with {text}: give more digits")
        raise UnknownImage(f"no image {text} has been added here")

    # --- adding ----------------------------------------------------------------------------------------------------
    async def add_archive(self, stream: AsyncIterator[bytes], size: int, wanted: oci.Platform | None) -> Added:
        """Take in an archive of `size` bytes, perhaps compressed. Raises ImageError, BlobError."""
        async with self._adding:
            path = self._scratch / secrets.token_hex(8)
            try:
                self._refuse_too_large(size)
                await self._spool(stream, path)
                return await self._take_in(path, wanted, ())
            finally:
                path.unlink(missing_ok=True)

    async def add_from_engine(self, name: str, wanted: oci.Platform | None) -> Added:
        """Take in what the local engine calls so. Raises ImageError, BlobError."""
        if not oci.is_name(name):
            raise BadImage(f"{name[:100]!a} cannot be the name of an image")
        found = await self._engine.find(name)
        async with self._adding:
            path = self._scratch / secrets.token_hex(8)
            try:
                await self._engine.save(found.id, path, self._room())
                added = await self._take_in(path, wanted, found.tags)
            finally:
                path.unlink(missing_ok=True)
        if added.image.image != found.id:
            log.warning("image_named_otherwise", engine=found.id, image=added.image.image)
        return added

    async def remove(self, text: str) -> Shelved:
        """Forget an added image; the blobs that nothing else needs go within about an hour. Raises UnknownImage."""
        async with self._recording:
            image = self.find(text)
            await self._in_thread(lambda: delete_durably(_file(self._folder, image.image)))
            del self._images[image.image]
        return image

    async def _take_in(self, path: Path, wanted: oci.Platform | None, names: Sequence[str]) -> Added:
        before = set(await self._blobs.refs())
        await self._in_thread(lambda: _unpack_archive(path, self._room()))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            found = await self._in_thread(lambda: oci.find_image(_reader(fd), size, self._machine, wanted))
            layers = await self._put_layers(fd, found)
            blobs = (await self._blobs.put_bytes(found.configuration.raw), *layers)
            image = await self._record(found, blobs, names)
        finally:
            os.close(fd)
            self._coming.clear()
        new = set(blobs) - before
        log.info("image_added", image=image.image, bytes=image.size, new_bytes=sum(ref.size for ref in new))
        return Added(image, len(new), sum(ref.size for ref in new))

    async def _put_layers(self, fd: int, found: oci.ArchivedImage) -> list[BlobRef]:
        layers: list[BlobRef] = []
        unpacked = oci.Unpacked()
        for number in range(len(found.layers)):
            layers.append(await self._put_layer(fd, found, number))
            check = partial(check_layer_blob, self._blobs, layers[-1], unpacked)
            unpacked = await self._in_thread(check)
        return layers

    async def _put_layer(self, fd: int, found: oci.ArchivedImage, number: int) -> BlobRef:
        """Store a layer, unpacked, and check that it is the one which the configuration names."""
        digest = found.configuration.diff_ids[number]
        known = self._known_layer(digest.hex())
        if known is not None:
            self._coming.add(known)  # the image that it is known from may be removed meanwhile
            if await self._blobs.touch(known):
                return known
        hashed = hashlib.sha256()
        pieces = oci.unpacked(_reader(fd), found.layers[number], min(LAYER_BYTES_MAX, self._room()))
        ref = await self._blobs.put_stream(self._hashing(pieces, hashed), LAYER_BYTES_MAX)
        # Room for the next layer must not be made of this one. One that is refused goes when room is wanted.
        self._coming.add(ref)
        if hashed.digest() != digest:
            raise BadImage(f"layer {number} of the image is not the one that its configuration names: it is damaged")
        return ref

    async def _hashing(self, pieces: Iterator[bytes], hashed: Any) -> AsyncIterator[bytes]:
        def following() -> bytes | None:
            piece = next(pieces, None)
            if piece is not None:
                hashed.update(piece)
            return piece

        while (piece := await self._in_thread(following)) is not None:
            yield piece

    def _known_layer(self, digest: str) -> BlobRef | None:
        for image in self._images.values():
            if digest in image.diff_ids:
                return image.blobs[1 + image.diff_ids.index(digest)]
        return None

    async def _record(self, found: oci.ArchivedImage, blobs: tuple[BlobRef, ...], names: Sequence[str]) -> Shelved:
        """Remember an image whose blobs are all here. Raises ImageUnavailable."""
        async with self._recording:
            for ref in blobs:
                if not await self._blobs.touch(ref):
                    raise ImageUnavailable(f"{ref}, a part of the image, was lost while it was added: add it again")
            image = self._remembered(found, blobs, names)
            await self._in_thread(lambda: _write(self._folder, image))
            self._images[image.image] = image
        return image

    def _remembered(self, found: oci.ArchivedImage, blobs: tuple[BlobRef, ...], names: Sequence[str]) -> Shelved:
        image = found.configuration.content_id
        if image not in self._images and len(self._images) >= IMAGES_MAX:
            raise ImageUnavailable(f"{IMAGES_MAX} images have been added: remove one first (nexapod image remove)")
        former = self._images.get(image)
        given = [*names, *map(_with_tag, found.names), *(former.names if former else ())]
        return Shelved(
            image=image,
            platform=str(found.configuration.platform),
            blobs=blobs,
            diff_ids=tuple(digest.hex() for digest in found.configuration.diff_ids),
            names=tuple(dict.fromkeys(given))[:NAMES_MAX],
            added=int(time.time() * 1000),
        )

    async def _spool(self, stream: AsyncIterator[bytes], path: Path) -> None:
        file = await trio.open_file(path, "xb")
        with disk_errors(path):
            async with file:
                async for piece in stream:
                    await file.write(piece)

    def _refuse_too_large(self, size: int) -> None:
        room = self._room()
        if size > room:
            raise ImageUnavailable(f"the archive has {size} bytes, and there is room for {room}: free some disk space")

    def _room(self) -> int:
        disk = os.statvfs(self._folder)
        return max(0, min(ARCHIVE_BYTES_MAX, disk.f_bavail * disk.f_frsize - DISK_RESERVE))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work)


def check_layer_blob(blobs: BlobStore, ref: BlobRef, below: oci.Unpacked) -> oci.Unpacked:
    """See oci.check_layer. Raises BadImage, BlobError. Blocks."""
    path = blobs.path(ref)
    with disk_errors(path):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return oci.check_layer(_reader(fd), ref.size, below)
        finally:
            os.close(fd)


def _reader(fd: int) -> Callable[[int, int], bytes]:
    return lambda offset, length: os.pread(fd, length, offset)


def _unpack_archive(path: Path, bytes_max: int) -> None:
    """Unpack an archive that is compressed as a whole, in its place. Blocks. Raises BadImage, BlobError."""
    with disk_errors(path), path.open("rb") as source:
        unpack = oci.unpacker_of(source.read(oci.MAGIC_BYTES))
        if unpack is None:
            return
        source.seek(0)
        plain = path.with_suffix(".plain")
        try:
            with plain.open("xb") as target:
                pieces = unpack(iter(lambda: source.read(oci.PIECE_BYTES), b""))
                target.writelines(oci.bounded(pieces, bytes_max))
            plain.replace(path)
        except BaseException:
            plain.unlink(missing_ok=True)
            raise


def _with_tag(name: str) -> str:
    """A name as engines complete it."""
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"


# --- the files -----------------------------------------------------------------------------------------------------
def _file(folder: Path, image: str) -> Path:
    return folder / f"{image[7:]}.json"


def _write(folder: Path, image: Shelved) -> None:
    fields = asdict(image) | {"blobs": [str(ref) for ref in image.blobs]}
    write_durably(_file(folder, image.image), json.dumps(fields).encode("ascii"))


def _read_all(folder: Path) -> Iterator[Shelved]:
    for path in sorted(folder.glob("*.json")):
        try:
            fields = json.loads(path.read_bytes())
            blobs = tuple(BlobRef.parse(ref) for ref in fields["blobs"])
            lists = {key: tuple(map(str, fields[key])) for key in ("diff_ids", "names")}
            image = Shelved(str(fields["image"]), str(fields["platform"]), blobs, added=int(fields["added"]), **lists)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("image_record_unreadable", path=str(path), error=f"{type(error).__name__}: {error}")
            continue
        yield image
