"""Answers other peers' questions for blobs. One task a peer that asks, so a slow one delays only itself.

Bounded: so many peers at once, so many questions of each; what is beyond is dropped and counted, and asked
again by the other side. Does not know who deserves to be served: that is the daemon's to decide, before
frames come here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeAlias

import structlog
import trio

from nexapod.blobs import files
from nexapod.blobs.errors import BlobError, BlobMissing
from nexapod.blobs.frames import (
    LIST_PIECE_DIGESTS,
    PIECE_BYTES,
    Answer,
    AskList,
    ChunkPart,
    ListPart,
    NotHere,
    Question,
    encode,
)
from nexapod.blobs.rates import Rates
from nexapod.blobs.store import BlobStore
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, PeerId

log = structlog.get_logger()

Send: TypeAlias = Callable[[PeerId, bytes], Awaitable[None]]
"""Hands a frame to the peer's link, waiting for room. Raises OSError or a closed/broken resource when it is
gone.
"""
LINK_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)

PEERS_SERVED_MAX = 64
QUESTIONS_PER_PEER_MAX = 32
WHOLE_CHUNKS_MAX = 16
"""Answers whose chunk is in memory as a whole; further ones are read piece by piece."""


class Server:
    """The giving half of the exchange."""

    def __init__(self, store: BlobStore, send: Send, send_s: float, rates: Rates) -> None:
        self._rates = rates
        self._whole_chunks = WHOLE_CHUNKS_MAX
        self._store = store
        self._send = send
        self._send_s = send_s
        self._questions: dict[PeerId, deque[Question]] = {}
        self.dropped = 0
        """Questions not answered because too many were open."""

    def take(self, peer: PeerId, question: Question, nursery: trio.Nursery) -> None:
        """Queue a question; its answer is sent by a task of `nursery`.

        It takes the place of one for the same that still waits: who asks again has given the former up, and would
        otherwise be sent everything twice.
        """
        queue = self._questions.get(peer)
        if queue is None:
            if len(self._questions) >= PEERS_SERVED_MAX:
                self.dropped += 1
                return
            self._questions[peer] = deque((question,))
            nursery.start_soon(self._serve, peer)
        elif (place := _place_of_same(queue, question)) is not None:
            queue[place] = question
        elif len(queue) >= QUESTIONS_PER_PEER_MAX:
            self.dropped += 1
        else:
            queue.append(question)

    def forget(self, peer: PeerId) -> None:
        """Answer nothing more of what this peer has asked."""
        queue = self._questions.get(peer)
        if queue is not None:
            queue.clear()

    async def _serve(self, peer: PeerId) -> None:
        queue = self._questions[peer]
        try:
            while queue:
                await self._answer(peer, queue.popleft())
        except (*LINK_ERRORS, trio.TooSlowError) as error:
            log.info("blob_serving_ended", peer=peer, error=type(error).__name__, unanswered=len(queue))
        finally:
            del self._questions[peer]

    async def _answer(self, peer: PeerId, question: Question) -> None:
        try:
            if isinstance(question, AskList):
                await self._send_list(peer, question.id, question.ref, question.first)
            else:
                await self._send_chunk(peer, question.id, question.ref, question.chunk)
        except BlobError as error:
            if not isinstance(error, BlobMissing):
                log.warning("blob_read_failed", blob=str(question.ref), error=str(error))
            await self._send_frame(peer, NotHere(question.id))

    async def _send_list(self, peer: PeerId, id: int, ref: BlobRef, first: int) -> None:
        digests = await self._store.chunk_list(ref)
        if ref.chunks == 1 or len(digests) != ref.chunks:
            raise BlobMissing(f"blob {ref}: no list")
        await self._send_frame(peer, ListPart(id, b"".join(digests[first : first + LIST_PIECE_DIGESTS])))

    async def _send_chunk(self, peer: PeerId, id: int, ref: BlobRef, chunk: int) -> None:
        length = files.chunk_length(ref, chunk)
        if length == 0:
            raise BlobMissing("the empty blob is nobody's to send")
        async with self._held(length) as step:
            for at in range(0, length, step):
                data = memoryview(await self._read(ref, chunk * CHUNK_BYTES + at, min(step, length - at)))
                piece_bytes = self._rates.piece_bytes(PIECE_BYTES)
                for begin in range(0, len(data), piece_bytes):
                    piece = data[begin : begin + piece_bytes]
                    await self._send_frame(peer, ChunkPart(id, at + begin, piece))

    @asynccontextmanager
    async def _held(self, length: int) -> AsyncIterator[int]:
        """How much of a chunk to read at once: all of it, or a frame's worth where many slow readers would otherwise
        hold much memory.
        """
        if self._whole_chunks <= 0:
            yield PIECE_BYTES
            return
        self._whole_chunks -= 1
        try:
            yield length
        finally:
            self._whole_chunks += 1

    async def _read(self, ref: BlobRef, offset: int, length: int) -> bytes:
        data = await self._store.read(ref, offset, length)
        if len(data) != length:
            raise BlobMissing(f"blob {ref}: shorter on disk than its name says")
        return data

    async def _send_frame(self, peer: PeerId, frame: Answer) -> None:
        data = encode(frame)
        await self._rates.up(peer, len(data))
        with trio.fail_after(self._send_s):
            await self._send(peer, data)


def _place_of_same(queue: deque[Question], question: Question) -> int | None:
    same = (place for place, queued in enumerate(queue) if replace(queued, id=question.id) == question)
    return next(same, None)
