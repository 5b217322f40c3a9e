"""Effects of the core, carried out: each kind by the adapter that it belongs to. Decides nothing."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable

import structlog
import trio

from nexapod.blobs.errors import BlobError
from nexapod.blobs.store import BlobStore
from nexapod.daemon.hub import Hub
from nexapod.daemon.providers import Providers
from nexapod.daemon.retention import Retention
from nexapod.daemon.tasks import TaskRunner
from nexapod.dht.dht import Dht
from nexapod.mesh.mesh import Mesh
from nexapod.protocol.events import (
    BlobFailed,
    BlobReady,
    Drop,
    Effect,
    Event,
    Fetch,
    Penalise,
    Run,
    Save,
    Send,
    Stop,
    Trace,
)
from nexapod.protocol.primitives import BlobRef

log = structlog.get_logger()

FETCHES_AT_ONCE = 32
"""A submitter may wait for ten thousand results. Each search has a deadline, and asks ever more peers until then: begun
all at once, all would be late, and fill the mesh with questions."""
PROVIDE_WAITING_MAX = 256
PROVIDE_BYTES_MIN = 1 << 20
"""To tell the DHT of a blob costs both sides a tenth of a second of work. The core names who has what a task needs, and
left: further sources are worth that for large blobs alone."""
PROVIDE_PAUSE_S = 2.0
"""py-libp2p's peers accept ten provider records in ten seconds from one peer."""


class Performer:
    """Carries out effects: at once, or when `run` gets to it."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        dht: Dht,
        blobs: BlobStore,
        providers: Providers,
        tasks: TaskRunner,
        hub: Hub,
        post: Callable[[Event], None],
        held: Callable[[], frozenset[BlobRef]],
    ) -> None:
        """`held()`: blobs that must not be evicted."""
        self._mesh = mesh
        self._dht = dht
        self._blobs = blobs
        self._providers = providers
        self._retention = Retention(blobs, held)
        self._tasks = tasks
        self._hub = hub
        self._post = post
        self.dropped: Counter[str] = Counter()
        # As many as the core waits for, which keeps each of them in its state anyway.
        self._to_fetch, self._fetches = trio.open_memory_channel[Fetch](math.inf)
        self._to_provide: OrderedDict[BlobRef, None] = OrderedDict()
        self._provide_wanted = trio.Event()

    def __call__(self, effect: Effect) -> None:
        match effect:
            case Send(peer, frame, addrs):
                if not self._mesh.send_nowait(peer, "control", frame, addrs):
                    self.dropped["sends"] += 1
            case Run():
                self._tasks.start(effect)
            case Stop(task):
                self._tasks.stop(task)
            case Fetch():
                self._to_fetch.send_nowait(effect)
            case Drop():
                pass  # it may stay as a cache, and can go now: `held` no longer names it
            case Penalise(peer, rule, ban_ms):
                if ban_ms:
                    self._mesh.ban(peer, ban_ms, rule)
            case Trace():
                self._hub.trace(effect)
            case Save():
                raise AssertionError("saves are the engine's")
            case _:
                self._hub.notice(effect)

    async def run(self) -> None:
        """Fetch, provide, and keep the disk in bounds, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(FETCHES_AT_ONCE):
                nursery.start_soon(self._fetch_all)
            nursery.start_soon(self._provide_all)
            nursery.start_soon(self._retention.run)

    async def _fetch_all(self) -> None:
        async for effect in self._fetches:
            await self._fetch(effect)

    async def _fetch(self, effect: Fetch) -> None:
        part = effect.part
        try:
            if not await self._blobs.touch(part):
                await self._providers.fetch(part, effect.sources)
                if part.is_whole and part.blob.size >= PROVIDE_BYTES_MIN:
                    self._provide(part.blob)
        except BlobError as error:
            log.info("fetch_failed", blob=str(part.blob), first=part.first, count=part.count, error=str(error))
            self._post(BlobFailed(part))
        else:
            self._post(BlobReady(part))

    def _provide(self, ref: BlobRef) -> None:
        self._to_provide[ref] = None
        if len(self._to_provide) > PROVIDE_WAITING_MAX:
            self._to_provide.popitem(last=False)
            self.dropped["provider_records"] += 1
        self._provide_wanted.set()

    async def _provide_all(self) -> None:
        while True:
            await self._provide_wanted.wait()
            self._provide_wanted = trio.Event()
            while self._to_provide:
                ref, _ = self._to_provide.popitem(last=False)
                await self._dht.provide(ref.digest)
                await trio.sleep(PROVIDE_PAUSE_S)
