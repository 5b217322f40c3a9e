"""An engine's images in memory: keeps what it is given by the same rules as the Docker engine, and passes its tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from image_kit import AMD64, Made, docker_archive

from nexapod.executor.images import oci
from nexapod.executor.images.errors import BadImage, EngineSilent, ImageUnavailable
from nexapod.executor.images.inventory import EngineImage, EngineRoom, ImageNotHere, full_reference


def repository(name: str) -> str:
    """With the host that a tag leaves out."""
    return full_reference(f"{name}@").removesuffix("@")


class FakeEngine:
    def __init__(self) -> None:
        self.held: dict[str, Made] = {}
        self.tags: dict[str, list[str]] = {}
        self.references: dict[str, list[str]] = {}
        self.in_use: set[str] = set()
        self.registry: dict[str, Made] = {}
        """What can be pulled, by full reference."""
        self.loads: list[str] = []
        self.pulls: list[str] = []
        self.full = False
        self.gone = False
        self.disk: EngineRoom | None = EngineRoom(1 << 40, 1 << 20)
        """What was free before there was any image."""
        self.slow = False
        """Loads take longer than anybody waits."""
        self.unpacking: list[tuple[Made, tuple[str, ...]]] = []

    def put(self, made: Made, *tags: str) -> None:
        self.held[made.id] = made
        self.tags.setdefault(made.id, []).extend(tags)

    def finish_unpacking(self) -> None:
        """What was given up comes about."""
        for made, names in self.unpacking:
            self.put(made, *names)
        self.unpacking.clear()

    async def find(self, name: str) -> EngineImage:
        self._answer()
        for image in self.held:
            digits = len(name) >= 12 and image[7:].startswith(name)
            known = (image, *self.tags.get(image, ()), *self.references.get(image, ()))
            if digits or name in known or f"{name}:latest" in known:
                return self._described(image)
        raise ImageNotHere(f"no such image: {name}")

    async def images(self) -> tuple[EngineImage, ...]:
        self._answer()
        return tuple(self._described(image) for image in sorted(self.held))

    async def save(self, image: str, path: Path, bytes_max: int) -> None:
        found = await self.find(image)
        data = docker_archive(self.held[found.id], names=[])
        if len(data) > bytes_max:
            raise ImageUnavailable("larger than there is room for")
        path.write_bytes(data)  # noqa: ASYNC240  (a test)

    async def load(self, archive: Callable[[], Iterator[bytes]]) -> None:
        self._answer()
        data = b"".join(archive())
        if self.full:
            raise ImageUnavailable("the container engine did not take the image: no space left on device")

        def read(offset: int, length: int) -> bytes:
            return data[offset : offset + length]

        try:
            found = oci.find_image(read, len(data), AMD64)
            layers = tuple(b"".join(oci.unpacked(read, entry, 1 << 30)) for entry in found.layers)
        except BadImage as error:
            raise ImageUnavailable(f"the container engine did not take the image: {error}") from None
        if tuple(hashlib.sha256(layer).digest() for layer in layers) != found.configuration.diff_ids:
            raise ImageUnavailable("the container engine did not take the image: invalid diffID")
        self.loads.append(found.configuration.content_id)
        if self.slow:
            self.unpacking.append((Made(found.configuration.raw, layers), found.names))
            raise EngineSilent("the container engine was not done with an image within 900 s")
        self.put(Made(found.configuration.raw, layers), *found.names)

    async def pull(self, reference: str, bytes_max: int, free_min: int) -> EngineImage:
        self._answer()
        self.pulls.append(reference)
        made = self.registry.get(reference)
        if made is None:
            raise ImageUnavailable(f"{reference} was not pulled: manifest unknown")
        if sum(map(len, made.layers)) > bytes_max:
            raise ImageUnavailable(f"{reference} is larger than allowed")
        room = await self.room()
        if room is not None and room.bytes < free_min:
            raise ImageUnavailable(f"{free_min} free bytes must be left: the pull of {reference} was ended")
        self.put(made)
        self.references.setdefault(made.id, []).append(reference)
        return self._described(made.id)

    async def remove(self, image: str) -> bool:
        self._answer()
        if image in self.in_use or not self._named_once(image):
            return False
        self.held.pop(image, None)
        self.tags.pop(image, None)
        self.references.pop(image, None)
        return True

    async def room(self) -> EngineRoom | None:
        self._answer()
        if self.disk is None:
            return None
        return EngineRoom(self.disk.bytes - sum(self._described(one).size for one in self.held), self.disk.files)

    def _named_once(self, image: str) -> bool:
        """As the Docker engine sees it: a tag and a digest of one repository are one name (isSingleReference in its
        daemon/images/image_delete.go)."""
        tags = [tag.rpartition(":")[0] for tag in self.tags.get(image, ())]
        digests = {reference.partition("@")[0] for reference in self.references.get(image, ())}
        if len(tags) + len(self.references.get(image, ())) <= 1:
            return True
        return len(tags) <= 1 and len({*map(repository, tags), *digests}) == 1

    async def aclose(self) -> None:
        pass

    def _answer(self) -> None:
        if self.gone:
            raise EngineSilent("the container engine does not answer")

    def _described(self, image: str) -> EngineImage:
        size = sum(map(len, self.held[image].layers))
        return EngineImage(image, size, tuple(self.tags.get(image, ())), tuple(self.references.get(image, ())))
