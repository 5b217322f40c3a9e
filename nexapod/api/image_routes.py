"""The routes of the API that are about container images, and the shapes of their answers."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from nexapod.api.answers import Reply
from nexapod.api.backend import Backend
from nexapod.api.uploads import announced_size, exactly
from nexapod.protocol import limits

ARCHIVE_PATH: Final = "/v1/images/archive"
PLATFORM_MAX: Final = 100

Name = Annotated[str, Query(max_length=limits.IMAGE_NAME_MAX, description="a content id, its first digits, or a name")]
PlatformName = Annotated[str, Query(max_length=PLATFORM_MAX, description="e.g. linux/arm64; empty: this machine's")]


class AddBody(BaseModel):
    """An image of the local engine."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(min_length=1, max_length=limits.IMAGE_NAME_MAX)
    platform: str = Field("", max_length=PLATFORM_MAX)


class RemoveBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(min_length=1, max_length=limits.IMAGE_NAME_MAX)


class ImageView(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    image: str
    """Its content id: what a job names."""
    names: list[str]
    platform: str
    arch: str
    """As profiles name it; empty when that is not known."""
    size: int
    blobs: list[str]
    """Its configuration, then its layers: the `image_blobs` of a job."""
    added: int
    """Wall-clock milliseconds."""


class ImageAdded(ImageView):
    new_blobs: int
    new_bytes: int
    """What was not here before."""


def about_images(app: FastAPI, backend: Backend) -> None:

    @app.get("/v1/images", response_model=None, responses={200: {"model": list[ImageView]}})
    async def images() -> Response:
        """The container images that were added here."""
        return Reply(await backend.images())

    @app.get("/v1/image", response_model=None, responses={200: {"model": ImageView}})
    async def image(name: Name) -> Response:
        """One of them."""
        return Reply(await backend.image(name))

    @app.post("/v1/images", response_model=None, status_code=201, responses={201: {"model": ImageAdded}})
    async def add(body: AddBody) -> Response:
        """Add an image that the local container engine holds."""
        return Reply(await backend.add_image(body.name, body.platform), 201)

    @app.post(ARCHIVE_PATH, response_model=None, status_code=201, responses={201: {"model": ImageAdded}})
    async def add_archive(request: Request, platform: PlatformName = "") -> Response:
        """Add the image in the request's body: a docker-archive or an OCI layout in a tar."""
        size = announced_size(request)
        return Reply(await backend.add_image_archive(exactly(request.stream(), size), size, platform), 201)

    @app.post("/v1/images/remove", response_model=None, responses={200: {"model": ImageView}})
    async def remove(body: RemoveBody) -> Response:
        """Forget an added image. Jobs that name it keep what they need."""
        return Reply(await backend.remove_image(body.name))
