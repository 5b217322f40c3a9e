"""The daemon's blobs as the API sees them: that part of nexapod.api.backend.Backend. Translates; decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from nexapod.api.backend import Busy, Invalid, Json, NotFound
from nexapod.blobs.errors import BlobError, BlobMissing, BlobTooLarge, BlobUnavailable, DiskFull, QuotaExceeded
from nexapod.blobs.store import BlobStat, BlobStore
from nexapod.daemon.retention import UPLOAD_KEPT_S
from nexapod.protocol.primitives import BlobRef


class BlobService:
    """Puts, shows, pins, checks and fetches blobs."""

    def __init__(self, blobs: BlobStore, fetch: Callable[[BlobRef], Awaitable[None]] | None = None) -> None:
        self._blobs = blobs
        self._fetch = fetch

    async def put_blob(self, stream: AsyncIterator[bytes], size: int) -> BlobRef:
        with blob_errors():
            ref = await self._blobs.put_stream(stream, size)
        self._blobs.spare(ref, UPLOAD_KEPT_S)
        return ref

    async def has_blob(self, ref: BlobRef) -> bool:
        here = self._blobs.has(ref)
        if here:
            # Whoever asks need not upload it, and is about to name it.
            self._blobs.spare(ref, UPLOAD_KEPT_S)
        return here

    async def read_blob(self, ref: BlobRef, offset: int, length: int) -> bytes:
        with blob_errors():
            return await self._blobs.read(ref, offset, length)

    async def list_blobs(self, first: int, count: int) -> list[Json]:
        with blob_errors():
            return [_view(found) for found in (await self._blobs.stats())[first : first + count]]

    async def blob_stat(self, ref: BlobRef) -> Json:
        with blob_errors():
            return _view(await self._blobs.stat_of(ref))

    async def pin_blob(self, ref: BlobRef) -> Json:
        with blob_errors():
            await self._blobs.pin(ref)
            return _view(await self._blobs.stat_of(ref))

    async def unpin_blob(self, ref: BlobRef) -> Json:
        with blob_errors():
            return {"ref": str(ref), "was_pinned": await self._blobs.unpin(ref)}

    async def verify_blob(self, ref: BlobRef) -> Json:
        with blob_errors():
            damaged = await self._blobs.mend(ref)
        return {"ref": str(ref), "sound": damaged == 0, "damaged_chunks": damaged}

    async def fetch_blob(self, ref: BlobRef, wait_s: float) -> Json:
        if not self._blobs.has(ref):
            if self._fetch is None:
                raise NotFound("the blob is not here, and this daemon looks for none")
            with blob_errors(), trio.move_on_after(wait_s):
                await self._fetch(ref)
        try:
            here = (await self._blobs.stat_of(ref)).chunks_here
        except BlobMissing:
            here = 0
        return {"ref": str(ref), "here": self._blobs.has(ref), "chunks": ref.chunks, "chunks_here": here}


@contextmanager
def blob_errors() -> Iterator[None]:
    """The store's errors, as the API tells them."""
    try:
        yield
    except (BlobMissing, BlobUnavailable) as error:
        raise NotFound(
            str(error), "`nexapod blob list` shows what is here; a peer that has it must be online."
        ) from None
    except BlobTooLarge as error:
        raise Invalid(str(error)) from None
    except QuotaExceeded as error:
        raise Busy(
            str(error), "`nexapod blob list` shows what takes the room; config.toml says how much there is."
        ) from None
    except DiskFull as error:
        raise Busy(str(error), "Free disk space where the daemon's home lies, then try again.") from None
    except BlobError as error:
        raise Busy(str(error)) from None


def _view(found: BlobStat) -> Json:
    return {
        "ref": str(found.ref),
        "size": found.ref.size,
        "chunks": found.ref.chunks,
        "chunks_here": found.chunks_here,
        "whole": found.is_whole,
        "pinned": found.pinned,
        "held": found.held,
        "used": int(found.used_at * 1000),
    }
