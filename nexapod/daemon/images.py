"""Container images for the tasks of this machine: in the engine before a task starts, out of it when room is needed.

Joins the engine and the blob store: fetches what is missing, checks it, loads it, remembers what it loaded, and lets go
of what has not been used for longest. Never removes an image that it did not load itself. Decides nothing about who
runs what; where blobs come from is the caller's `fetch`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import structlog
import trio

from nexapod.blobs.errors import BlobError, disk_errors
from nexapod.blobs.store import BlobStore
from nexapod.daemon.image_shelf import Shelf, check_layer_blob
from nexapod.daemon.small_files import write_durably
from nexapod.executor.images import oci
from nexapod.executor.images.errors import BadImage, EngineSilent, ImageError, ImageUnavailable
from nexapod.executor.images.inventory import Engine, ImageNotHere, is_id
from nexapod.protocol.image_names import registry_host
from nexapod.protocol.primitives import BlobRef
from nexapod.protocol.types import Run

log = structlog.get_logger()

IMAGES_MAX_DEFAULT: Final = 10 << 30
TAG: Final = "nexapod-image"
"""The engine shows a loaded image as `nexapod-image:<digits of its id>`: untagged, a clean-up would take it."""
NAMES_TOLD_MAX: Final = 64
ENGINE_RESERVE: Final = 1 << 30
"""What a load or a pull leaves free on the engine's disk."""
LOADING_S: Final = 3600.0
"""For so long the engine may still make an image of a load that this daemon waited for no longer."""
Fetch: TypeAlias = Callable[[BlobRef], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An image that this daemon brought into the engine, and when a task last asked for it (seconds since 1970)."""

    image: str
    size: int
    used: float
    loading: bool = False
    """It was handed to the engine, and the engine has not said that it holds it."""


class Images:
    """The images of this machine, as its tasks need them."""

    def __init__(
        self,
        folder: Path,
        blobs: BlobStore,
        engine: Engine,
        shelf: Shelf,
        *,
        bytes_max: int = IMAGES_MAX_DEFAULT,
        registries: Sequence[str] = (),
        tell_all: bool = False,
    ) -> None:
        """`folder` remembers what was loaded. `bytes_max`: what loaded images may take in the engine together.
        `registries`: the hosts that images may be pulled from; none are, unless named. `tell_all`: others may know
        every image that the engine holds, also those that are none of this daemon's. Blocks: call it in a thread."""
        self._folder = folder
        self._blobs = blobs
        self._engine = engine
        self._shelf = shelf
        self._bytes_max = bytes_max
        self.registries = tuple(registries)
        self._tell_all = tell_all
        self._turns: dict[str, trio.Lock] = {}
        self._changing = trio.Lock()
        """Held by whoever changes what the engine holds: the quota is counted by one at a time."""
        self._handing_out = trio.Lock()
        """Held from a look at an image until it is noted as used, or is gone: none is given out as it is removed."""
        self._users: dict[str, str] = {}
        """The image of each user. The engine knows of one only while there is a container."""
        self.counts: Counter[str] = Counter()
        with disk_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def ensure(self, run: Run, fetch: Fetch, user: str) -> str:
        """The content id of the run's image, which the engine now holds, and keeps until `release` is called with
        `user`, a name for who asked. `fetch(ref)` brings a blob into the store.

        Raises BadImage when the image itself is at fault: it is so everywhere. Raises ImageUnavailable, BlobError and
        what `fetch` raises when this machine is: another may do better.
        """
        assert run.image is not None
        found = await self._handed_out(run.image, user)
        if found is not None:
            await self._used(found)
            return found
        async with self._turn(run.image):
            found = await self._handed_out(run.image, user)  # somebody else's turn may have brought it
            if found is None:
                load = is_id(run.image)
                found = await (self._load(run, fetch, user) if load else self._pull(run.image, user))
        return found

    def release(self, user: str) -> None:
        """It no longer needs its image, if it has one."""
        self._users.pop(user, None)

    async def _handed_out(self, image: str, user: str) -> str | None:
        """The content id of an image that the engine holds, noted as used; None when it does not hold it."""
        async with self._handing_out:
            try:
                found = await self._engine.find(image)
            except ImageNotHere:
                return None
            self._users[user] = found.id
        return found.id

    async def told(self) -> tuple[str, ...]:
        """What others may know is here: content ids of what was added, references of registries that this owner pulls
        from, and, if so wished, the content ids of all that the engine holds: they say what its owner uses it for."""
        added = [image.image for image in self._shelf.images()]
        try:
            held = await self._engine.images()
        except ImageUnavailable:
            return ()  # with no engine no image can be run
        references = [ref for image in held for ref in image.references if registry_host(ref) in self.registries]
        ids = [image.id for image in held] if self._tell_all else []
        names = dict.fromkeys((*added, *references, *ids))
        return tuple(sorted(list(names)[:NAMES_TOLD_MAX]))

    @asynccontextmanager
    async def _turn(self, image: str) -> AsyncIterator[None]:
        """One at a time for each image: who waits finds it done, or takes over from one that was cancelled."""
        lock = self._turns.setdefault(image, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._turns.pop(image, None)

    # --- from blobs ------------------------------------------------------------------------------------------------
    async def _load(self, run: Run, fetch: Fetch, user: str) -> str:
        image = run.image or ""
        shelved = self._shelf.get(image)
        refs = run.image_blobs or (shelved.blobs if shelved else ())
        if not refs:
            raise ImageUnavailable(f"this machine does not hold the image {image}, and the job does not bring it")
        self._refuse_too_large(image, sum(ref.size for ref in refs))
        for ref in refs:
            if not await self._blobs.touch(ref):
                await fetch(ref)
                self.counts["image_blobs_fetched"] += 1
                self.counts["image_bytes_fetched"] += ref.size
        configuration, unpacked = await self._checked(image, refs)
        self._refuse_too_large(image, unpacked.bytes)
        async with self._changing:
            await self._make_room(image, unpacked)
            # Before it is there: whatever ends this daemon in between, nothing stays in the engine unremembered.
            await self._remember(image, unpacked.bytes, loading=True)
            try:
                await self._engine.load(lambda: self._archive(configuration, refs))
                await self._expect(image)
            except EngineSilent:
                raise  # the engine may still unpack it: it stays remembered, until it is there or long past
            except (ImageError, BlobError):
                await self._clear_away(_Loaded(image, unpacked.bytes, used=0.0))
                raise
            self._users[user] = image
            await self._remember(image, unpacked.bytes)
        self.counts["images_loaded"] += 1
        log.info("image_loaded", image=image, bytes=unpacked.bytes, files=unpacked.files, layers=len(refs) - 1)
        return image

    async def _clear_away(self, refused: _Loaded) -> None:
        """Nothing of an image that was not loaded stays in the engine, or else it stays remembered."""
        try:
            await self._let_go(refused)
        except ImageUnavailable as error:
            log.warning("image_not_cleared_away", image=refused.image, error=str(error))

    async def _checked(self, image: str, refs: Sequence[BlobRef]) -> tuple[oci.Configuration, oci.Unpacked]:
        """Raises BadImage: the blobs are what their names say, and still not the image."""
        if refs[0].chunks != 1 or refs[0].digest.hex() != image[7:]:
            raise BadImage("the first blob of the image is not the configuration that its content id names")
        configuration = oci.parse_configuration(await self._blobs.read(refs[0], 0, refs[0].size))
        if configuration.content_id != image:
            await self._blame(refs[0], "the image's configuration")
        if len(configuration.diff_ids) != len(refs) - 1:
            raise BadImage(f"the image has {len(configuration.diff_ids)} layers, and the job brings {len(refs) - 1}")
        unpacked = oci.Unpacked()
        for number, (digest, ref) in enumerate(zip(configuration.diff_ids, refs[1:], strict=True)):
            check = trio.from_thread.check_cancelled
            hashed = await trio.to_thread.run_sync(_sha256, self._blobs.path(ref), check)
            if hashed != digest:
                await self._blame(ref, f"layer {number} of the image")
            unpacked = await trio.to_thread.run_sync(check_layer_blob, self._blobs, ref, unpacked)
        return configuration, unpacked

    async def _blame(self, ref: BlobRef, what: str) -> None:
        """Whose fault wrong bytes are: this disk's, or the job's."""
        if await self._blobs.verify(ref):
            raise BadImage(f"{what} is not the one that its content id names: whoever submitted the job damaged it")
        await self._blobs.delete(ref)
        raise ImageUnavailable(f"{what} was damaged on this machine's disk, and has been deleted")

    def _archive(self, configuration: oci.Configuration, refs: Sequence[BlobRef]) -> Iterator[bytes]:
        layers = [(ref.size, _read(self._blobs.path(ref))) for ref in refs[1:]]
        return oci.docker_archive(configuration, f"{TAG}:{configuration.content_id[7:]}", layers)

    async def _expect(self, image: str) -> None:
        try:
            found = await self._engine.find(image)
        except ImageNotHere:
            raise ImageUnavailable(
                f"the container engine took the image {image}, and gave it another id: it does not name images by "
                "their configuration"
            ) from None
        if found.id != image:
            raise ImageUnavailable(f"the container engine calls the image {image} by another id, {found.id}")

    # --- from a registry -------------------------------------------------------------------------------------------
    async def _pull(self, reference: str, user: str) -> str:
        host = registry_host(reference)
        if host is None or host not in self.registries:
            raise ImageUnavailable(f"this machine does not pull images from {host}: its owner has not allowed it")
        async with self._changing:
            await self._free_reserve()
            # Its size is not known before: whatever the others leave of the quota is its limit.
            found = await self._engine.pull(reference, self._bytes_max, ENGINE_RESERVE)
            self._users[user] = found.id
            with trio.CancelScope(shield=True):
                await self._remember(found.id, found.size)
            await self._let_others_go(found.id, found.size)
        self.counts["images_pulled"] += 1
        log.info("image_pulled", reference=reference, image=found.id, bytes=found.size)
        return found.id

    # --- the quota -------------------------------------------------------------------------------------------------
    def _refuse_too_large(self, image: str, size: int) -> None:
        if size > self._bytes_max:
            raise ImageUnavailable(
                f"the image {image[:19]} takes {size} bytes: more than the {self._bytes_max} that images may take here"
            )

    async def _make_room(self, image: str, unpacked: oci.Unpacked) -> None:
        """Raises ImageUnavailable when an image does not fit beside those that cannot go."""
        taken = await self._let_others_go(image, unpacked.bytes)
        if taken + unpacked.bytes > self._bytes_max:
            raise ImageUnavailable(
                f"images of running tasks take {taken} of the {self._bytes_max} bytes that images may take here"
            )
        for oldest in await self._others(image):
            if not await self._lacking(unpacked):
                return
            await self._let_go(oldest)
        if lacking := await self._lacking(unpacked):
            raise ImageUnavailable(lacking)

    async def _free_reserve(self) -> None:
        """As far as letting images go does it: what a pull must leave of the engine's disk is there before."""
        for oldest in await self._others(""):
            room = await self._engine.room()
            if room is None or room.bytes >= ENGINE_RESERVE:
                return
            await self._let_go(oldest)

    async def _lacking(self, unpacked: oci.Unpacked) -> str:
        """What the engine's disk lacks for an image, in words; nothing when there is enough, or it cannot be seen."""
        room = await self._engine.room()
        # An engine unpacks an archive, and then its layers out of that.
        needed = 2 * unpacked.bytes + ENGINE_RESERVE
        if room is not None and room.bytes < needed:
            return f"the container engine's disk has {room.bytes} free bytes: loading the image takes up to {needed}"
        if room is not None and room.files is not None and room.files < 2 * unpacked.files:
            return (
                f"the container engine's disk has room for {room.files} more files: the image has up to"
                f" {unpacked.files}, and as many must be left"
            )
        return ""

    async def _let_others_go(self, image: str, size: int) -> int:
        """Remove what was not used for longest, until an image of so many bytes fits beside the rest, or nothing more
        can go; how many bytes the others take. What a task is to use stays, and what a container uses the engine
        keeps."""
        others = await self._others(image)
        taken = sum(one.size for one in others)
        for oldest in others:
            if taken + size <= self._bytes_max:
                break
            if await self._let_go(oldest):
                taken -= oldest.size
        return taken

    async def _others(self, image: str) -> list[_Loaded]:
        """All that was loaded but this one, the longest unused first."""
        loaded = await trio.to_thread.run_sync(_loaded, self._folder)
        return sorted((one for one in loaded if one.image != image), key=lambda one: (one.used, one.image))

    async def _let_go(self, loaded: _Loaded) -> bool:
        """Remove an image that no task is to use, or leave it to its owner; whether it no longer counts."""
        async with self._handing_out:
            return loaded.image not in self._users.values() and await self._gone(loaded)

    async def _gone(self, loaded: _Loaded) -> bool:
        try:
            found = await self._engine.find(loaded.image)
        except ImageNotHere:
            if loaded.loading and loaded.used > time.time() - LOADING_S:
                return False
            event = "image_gone"
        else:
            event = "image_evicted" if all(_is_ours(tag) for tag in found.tags) else "image_left_to_owner"
        # Asked only then: an engine would let an image go that has a tag beside a digest of the same repository.
        if event == "image_evicted" and not await self._engine.remove(loaded.image):
            return False
        await trio.to_thread.run_sync(_forget, self._folder, loaded.image)
        self.counts["images_evicted"] += event == "image_evicted"
        log.info(event, image=loaded.image, bytes=loaded.size)
        return True

    async def _remember(self, image: str, size: int, *, loading: bool = False) -> None:
        data = json.dumps({"size": size, "loading": loading}).encode("ascii")
        await trio.to_thread.run_sync(write_durably, _record(self._folder, image), data)

    async def _used(self, image: str) -> None:
        """Note that a loaded image is wanted now. Not durable: after a crash it is the last use but one."""

        def touch() -> None:
            try:
                os.utime(_record(self._folder, image))
            except FileNotFoundError:
                pass  # it was not loaded by this daemon
            except OSError as error:
                log.warning("image_use_not_noted", image=image, error=str(error))

        await trio.to_thread.run_sync(touch)


def _is_ours(tag: str) -> bool:
    """Whether this daemon gave an image the tag: engines complete it, each in its own way."""
    return tag.removeprefix("localhost/").removeprefix("docker.io/library/").startswith(f"{TAG}:")


# --- what follows blocks -------------------------------------------------------------------------------------------
def _record(folder: Path, image: str) -> Path:
    return folder / f"{image[7:]}.loaded"


def _loaded(folder: Path) -> list[_Loaded]:
    found = []
    for path in folder.glob("*.loaded"):
        try:
            fields = json.loads(path.read_bytes())
            size, loading = int(fields["size"]), bool(fields.get("loading"))
            found.append(_Loaded(f"sha256:{path.stem}", size, path.stat().st_mtime, loading))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("image_record_unreadable", path=str(path), error=f"{type(error).__name__}: {error}")
    return found


def _forget(folder: Path, image: str) -> None:
    with disk_errors(folder):
        _record(folder, image).unlink(missing_ok=True)


def _sha256(path: Path, check: Callable[[], None]) -> bytes:
    hashed = hashlib.sha256()
    for piece in _read(path):
        check()
        hashed.update(piece)
    return hashed.digest()


def _read(path: Path) -> Iterator[bytes]:
    """Raises BlobError: also when a blob has gone in the meantime."""
    with disk_errors(path), path.open("rb") as file:
        while piece := file.read(oci.PIECE_BYTES):
            yield piece
