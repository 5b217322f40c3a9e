"""Blobs between peers: the one object that the daemon joins to its bulk channel.

Responsible for bringing blobs here whole and checked, and for handing out those that are here. Does not
know links, who has which blob, or what a peer's misdeeds lead to: it is given a way to send, sources, and a
place to report to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from nexapod.blobs.asking import Asker
from nexapod.blobs.errors import BlobTooLarge, BlobUnavailable
from nexapod.blobs.fetching import Fetch, OnBad
from nexapod.blobs.frames import AskChunk, AskList, decode
from nexapod.blobs.serving import Send, Server
from nexapod.blobs.store import BlobStore
from nexapod.protocol.errors import PeerError
from nexapod.protocol.types import BlobRef, PeerId

log = structlog.get_logger()

FETCHES_MAX = 64
"""Blobs fetched at once; further fetches wait, within their deadline."""
FETCH_BYTES_MAX = 64 << 30
"""The largest blob fetched: its chunk list (2 MiB) is held in memory."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `stall`: a silent source is given up. `answer`: one chunk, however it trickles. `hedge`: a
    chunk out
    for so long is asked of a second source. `send`: one frame into a link."""

    stall: float = 10.0
    answer: float = 120.0
    hedge: float = 2.0
    send: float = 20.0


class Exchange:
    """Serves and fetches while `run` runs: until then fetches wait, and questions are dropped."""

    def __init__(
        self, store: BlobStore, send: Send, *, on_bad: OnBad | None = None, timing: Timing | None = None
    ) -> None:
        """`send(peer, frame)` waits for room and raises OSError or trio's Broken/ClosedResourceError when
        the peer is
        gone. `on_bad(peer, error)` is told of each breach, with its rule and penalty; it must not raise."""
        self._timing = timing or Timing()
        self._store = store
        self._on_bad: OnBad = on_bad or _ignore
        self._server = Server(store, send, self._timing.send)
        self._asker = Asker(send, stall_s=self._timing.stall, answer_s=self._timing.answer, send_s=self._timing.send)
        self._fetches: dict[BlobRef, Fetch] = {}
        self._slots = trio.Semaphore(FETCHES_MAX)
        self._nursery: trio.Nursery | None = None
        self._running = trio.Event()

    async def run(self) -> None:
        """Serve and fetch until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._running.set()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def on_frame(self, peer: PeerId, frame: bytes) -> None:
        """Take in a frame of the bulk channel. Total: raises nothing and never waits; breaches go to
        `on_bad`.
        """
        try:
            message = decode(frame)
            if not isinstance(message, AskList | AskChunk):
                self._asker.on_answer(peer, message)
            elif self._nursery is not None:
                self._server.take(peer, message, self._nursery)
        except PeerError as error:
            self._on_bad(peer, error)

    def peer_gone(self, peer: PeerId) -> None:
        """The peer's link is closed: what was asked of it is asked elsewhere at once."""
        self._asker.peer_gone(peer)
        self._server.forget(peer)

    @property
    def questions_dropped(self) -> int:
        """Other peers' questions not answered because too many were open: a counter."""
        return self._server.dropped

    async def fetch(self, ref: BlobRef, sources: Sequence[PeerId], *, deadline_s: float) -> Path:
        """Bring a blob here and return where it lies; at once when it is here already.

        Fetches of the same blob are joined: their sources add up, each caller keeps its own deadline. What
        arrived of a fetch that fails is used by the next. Raises BlobUnavailable, BlobTooLarge, DiskFull,
        BlobError.
        """
        if self._store.has(ref):
            return self._store.path(ref)
        if ref.size > FETCH_BYTES_MAX:
            raise BlobTooLarge(f"blob {ref}: more than the {FETCH_BYTES_MAX} bytes that are fetched")
        with trio.move_on_after(deadline_s):
            await self._running.wait()
            fetch = self._join(ref, sources)
            await self._wait(fetch)
            if fetch.error is not None:
                raise type(fetch.error)(str(fetch.error)) from fetch.error
            return self._store.path(ref)
        raise BlobUnavailable(f"blob {ref}: not here within {deadline_s:g} s")

    async def _wait(self, fetch: Fetch) -> None:
        fetch.waiters += 1
        try:
            await fetch.done.wait()
        finally:
            fetch.waiters -= 1
            if not fetch.waiters:
                self._abandon(fetch)

    def _join(self, ref: BlobRef, sources: Sequence[PeerId]) -> Fetch:
        if self._nursery is None:
            raise BlobUnavailable(f"blob {ref}: this daemon is shutting down")
        fetch = self._fetches.get(ref)
        if fetch is None:
            fetch = Fetch(self._store, self._asker, self._on_bad, ref, hedge_s=self._timing.hedge)
            self._fetches[ref] = fetch
            self._nursery.start_soon(self._run_fetch, fetch)
        fetch.add_sources(sources)
        return fetch

    def _abandon(self, fetch: Fetch) -> None:
        fetch.cancel()
        # At once, so that whoever asks next does not join a fetch that is ending.
        if self._fetches.get(fetch.ref) is fetch:
            del self._fetches[fetch.ref]

    async def _run_fetch(self, fetch: Fetch) -> None:
        try:
            await fetch.run(self._slots)
        finally:
            if self._fetches.get(fetch.ref) is fetch:
                del self._fetches[fetch.ref]


def _ignore(peer: PeerId, error: PeerError) -> None:
    log.info("blob_peer_error", peer=peer, rule=error.rule)
