"""The daemon's container images as the API sees them: that part of nexapod.api.backend.Backend. Translates only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from nexapod.api.backend import Busy, Invalid, Json, NotFound
from nexapod.daemon import machine_views
from nexapod.daemon.blob_service import blob_errors
from nexapod.daemon.image_shelf import Added, Shelf, UnknownImage
from nexapod.executor.images.errors import BadImage, ImageError
from nexapod.executor.images.inventory import ImageNotHere
from nexapod.executor.images.oci import Platform


class ImageService:
    """Adds, shows and forgets images."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def images(self) -> list[Json]:
        return [machine_views.image_view(image) for image in self._shelf.images()]

    async def image(self, name: str) -> Json:
        with image_errors():
            return machine_views.image_view(self._shelf.find(name))

    async def add_image(self, name: str, platform: str) -> Json:
        with image_errors():
            return _added(await self._shelf.add_from_engine(name, _platform(platform)))

    async def add_image_archive(self, stream: AsyncIterator[bytes], size: int, platform: str) -> Json:
        with image_errors():
            return _added(await self._shelf.add_archive(stream, size, _platform(platform)))

    async def remove_image(self, name: str) -> Json:
        with image_errors():
            return machine_views.image_view(await self._shelf.remove(name))


def _platform(text: str) -> Platform | None:
    return Platform.parse(text) if text else None


def _added(added: Added) -> Json:
    return machine_views.image_view(added.image) | {"new_blobs": added.new_blobs, "new_bytes": added.new_bytes}


@contextmanager
def image_errors() -> Iterator[None]:
    """What went wrong with an image, as the API says it."""
    try:
        with blob_errors():
            yield
    except UnknownImage as error:
        raise NotFound(
            str(error), "Add it: nexapod image add NAME. `nexapod image list` shows what was added."
        ) from None
    except ImageNotHere as error:
        raise NotFound(str(error), "`docker image ls` shows what the engine holds; or give an archive of it.") from None
    except BadImage as error:
        raise Invalid(str(error)) from None
    except ImageError as error:
        remedy = "Correct that, then try again. An archive (docker save NAME -o FILE.tar) needs no engine."
        raise Busy(str(error), remedy) from None
