"""Uploads: the size that one states, and its body held to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request

from nexapod.api.backend import Invalid, TooLarge
from nexapod.protocol import limits


def announced_size(request: Request) -> int:
    text = request.headers.get("content-length", "")
    if not (text.isascii() and text.isdigit()):
        raise Invalid("the upload has no Content-Length", "send it, and no chunked encoding")
    if len(text) > 15 or int(text) > limits.BLOB_BYTES_MAX:
        raise TooLarge(f"a blob has at most {limits.BLOB_BYTES_MAX} bytes")
    return int(text)


async def exactly(stream: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    taken = 0
    async for piece in stream:
        taken += len(piece)
        if piece:
            yield piece
    if taken != size:
        raise Invalid(f"{size} bytes were announced, {taken} came")
