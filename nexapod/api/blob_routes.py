"""The routes about blobs. Each checks its request, asks the backend and answers; none decides anything."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from nexapod.api import models
from nexapod.api.answers import BlobAnswer, Reply
from nexapod.api.backend import Backend, Invalid, NotFound
from nexapod.api.uploads import announced_size, exactly
from nexapod.protocol.primitives import BlobRef

BLOB_PATH: Final = "/v1/blobs"
BLOBS_PER_PAGE: Final = 1_000
BLOBS_PER_PAGE_MAX: Final = 10_000
FETCH_WAIT_S_MAX: Final = 20
"""Less than the patience of whoever asks: a fetch goes on where it was when it is asked for again."""

First = Annotated[int, Query(ge=0, le=1 << 40, description="how many to leave out")]
Count = Annotated[int, Query(ge=0, le=BLOBS_PER_PAGE_MAX, description="how many are wanted")]


def about_blobs(app: FastAPI, backend: Backend) -> None:
    """Add the routes."""

    @app.post(BLOB_PATH, response_model=None, status_code=201, responses={201: {"model": models.BlobView}})
    async def put_blob(request: Request) -> Response:
        """Store the request's body; its Content-Length must be given and true."""
        size = announced_size(request)
        ref = await backend.put_blob(exactly(request.stream(), size), size)
        return Reply({"digest": ref.digest.hex(), "size": ref.size, "ref": str(ref)}, 201)

    @app.get(BLOB_PATH + "/{ref}", response_model=None)
    async def get_blob(ref: str, offset: Annotated[int, Query(ge=0)] = 0) -> Response:
        """The bytes of a blob, from `offset` on."""
        blob = await _held_blob(backend, ref)
        if offset > blob.size:
            raise Invalid(f"the blob has {blob.size} bytes; offset {offset} is beyond")
        return BlobAnswer(backend, blob, offset, blob.size - offset)

    @app.get(BLOB_PATH, response_model=None, responses={200: {"model": list[models.BlobStat]}})
    async def listed(first: First = 0, count: Count = BLOBS_PER_PAGE) -> Response:
        """The blobs that are here, whole or in part, the last used first."""
        return Reply(await backend.list_blobs(first, count))

    @app.head(BLOB_PATH + "/{ref}", response_model=None)
    async def head_blob(ref: str) -> Response:
        """Whether the blob is here."""
        blob = await _held_blob(backend, ref)
        return Response(headers={"content-length": str(blob.size)})

    @app.get(BLOB_PATH + "/{ref}/stat", response_model=None, responses={200: {"model": models.BlobStat}})
    async def stat(ref: str) -> Response:
        """What is here of a blob, and why it stays."""
        return Reply(await backend.blob_stat(_ref(ref)))

    @app.post(BLOB_PATH + "/{ref}/pin", response_model=None, responses={200: {"model": models.BlobStat}})
    async def pin(ref: str) -> Response:
        """Keep a blob, whatever room is wanted."""
        return Reply(await backend.pin_blob(_ref(ref)))

    @app.post(BLOB_PATH + "/{ref}/unpin", response_model=None, responses={200: {"model": models.Unpinned}})
    async def unpin(ref: str) -> Response:
        """Let a blob go when room is wanted."""
        return Reply(await backend.unpin_blob(_ref(ref)))

    @app.post(BLOB_PATH + "/{ref}/verify", response_model=None, responses={200: {"model": models.BlobCheck}})
    async def verify(ref: str) -> Response:
        """Read a blob again, and set it aside if it is damaged."""
        return Reply(await backend.verify_blob(_ref(ref)))

    @app.post(BLOB_PATH + "/{ref}/fetch", response_model=None, responses={200: {"model": models.BlobFetch}})
    async def fetch(ref: str, wait_s: Annotated[int, Query(ge=0, le=FETCH_WAIT_S_MAX)] = FETCH_WAIT_S_MAX) -> Response:
        """Look for a blob in the mesh for so long; ask again while it is not here."""
        return Reply(await backend.fetch_blob(_ref(ref), wait_s))


async def _held_blob(backend: Backend, text: str) -> BlobRef:
    ref = _ref(text)
    if not await backend.has_blob(ref):
        raise NotFound("the blob is not here")
    return ref


def _ref(text: str) -> BlobRef:
    try:
        return BlobRef.parse(text)
    except ValueError as error:
        raise Invalid(str(error)) from None
