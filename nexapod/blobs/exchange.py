"""Blobs between peers: the one object that the daemon joins to its bulk channel.

Responsible for bringing blobs and parts of them here, checked, and for handing out those that are here. Does not
know links, who has which blob, or what a peer's misdeeds lead to: it is given a way to send, sources, and a
place to report to.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from nexapod.blobs.asking import Asker, Timing
from nexapod.blobs.errors import BlobTooLarge, BlobUnavailable
from nexapod.blobs.fetching import Fetch, HasRoom, OnBad
from nexapod.blobs.frames import AskChunk, AskList, decode
from nexapod.blobs.rates import Rates
from nexapod.blobs.serving import Send, Server
from nexapod.blobs.store import BlobStore
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import BlobRef, Part, PeerId

log = structlog.get_logger()

FETCHES_MAX = 64
"""Blobs fetched at once; further fetches wait, within their deadline."""
FETCH_BYTES_MAX = 64 << 30
"""The largest blob fetched: its chunk list (2 MiB) is held in memory."""


class Exchange:
    """Serves and fetches while `run` runs: until then fetches wait, and questions are dropped."""

    def __init__(
        self,
        store: BlobStore,
        send: Send,
        *,
        on_bad: OnBad | None = None,
        timing: Timing | None = None,
        rates: Rates | None = None,
        has_room: HasRoom | None = None,
    ) -> None:
        """`send(peer, frame)` waits for room and raises OSError or trio's Broken/ClosedResourceError when the peer is
        gone. `on_bad(peer, error)` is told of each breach, with its rule and penalty; it must not raise. `has_room()`
        says whether this machine could take in more than it does (load.py); without it, it always could."""
        self._timing = timing or Timing()
        self._store = store
        self._on_bad: OnBad = on_bad or _ignore
        self._has_room: HasRoom = has_room or (lambda: True)
        rates = rates or Rates()
        self._server = Server(store, send, self._timing.send, rates)
        self._asker = Asker(send, self._timing, rates)
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

    async def fetch(self, part: Part, sources: Sequence[PeerId], *, deadline_s: float) -> None:
        """Bring a part of a blob here; at once when it is here already.

        Fetches of the same blob are joined: their sources add up, each caller keeps its own part and deadline. What
        arrived of a fetch that fails is used by the next. Raises BlobUnavailable, BlobTooLarge, QuotaExceeded,
        DiskFull, BlobError.
        """
        if self._store.has(part):
            return
        if part.blob.size > FETCH_BYTES_MAX:
            raise BlobTooLarge(f"blob {part.blob}: more than the {FETCH_BYTES_MAX} bytes that are fetched")
        with trio.move_on_after(deadline_s):
            await self._running.wait()
            fetch = self._fetch_of(part.blob)
            waiter = fetch.want(part)
            fetch.add_sources(self._asker.ranked(sources))
            try:
                await waiter.done.wait()
            finally:
                fetch.leave(waiter)
            if waiter.error is not None:
                raise type(waiter.error)(str(waiter.error)) from waiter.error
            return
        raise BlobUnavailable(f"blob {part.blob}: not here within {deadline_s:g} s")

    def _fetch_of(self, ref: BlobRef) -> Fetch:
        if self._nursery is None:
            raise BlobUnavailable(f"blob {ref}: this daemon is shutting down")
        fetch = self._fetches.get(ref)
        if fetch is None or fetch.closed:
            fetch = Fetch(self._store, self._asker, self._on_bad, self._has_room, ref, hedge_s=self._timing.hedge)
            self._fetches[ref] = fetch
            self._nursery.start_soon(self._run_fetch, fetch)
        return fetch

    async def _run_fetch(self, fetch: Fetch) -> None:
        try:
            await fetch.run(self._slots)
        finally:
            if self._fetches.get(fetch.ref) is fetch:
                del self._fetches[fetch.ref]


def _ignore(peer: PeerId, error: PeerError) -> None:
    log.info("blob_peer_error", peer=peer, rule=error.rule)
