"""Effects of the core, carried out: each kind by the adapter that it belongs to. Decides nothing."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import assert_never

import structlog
import trio

from nexapod.blobs.errors import BlobError
from nexapod.blobs.exchange import Exchange
from nexapod.blobs.store import BlobStore
from nexapod.daemon.hub import Hub
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
    Publish,
    Run,
    Save,
    Send,
    Stop,
    Trace,
)
from nexapod.protocol.types import BlobRef, Part

log = structlog.get_logger()

FETCH_S = 60.0
PROVIDERS_MAX = 8
PUBLISH_WAITING_MAX = 256
PROVIDE_WAITING_MAX = 256
DELETE_S = 60.0
"""What the core dropped is deleted so much later, if nothing wants it then."""
SWEEP_S = 600.0
UPLOAD_KEPT_S = 3600.0
"""How long an uploaded blob that no job names stays."""
PROVIDE_PAUSE_S = 2.0
"""py-libp2p's peers accept ten provider records in ten seconds from one peer."""


class Performer:
    """Carries out effects; its own long work lives in the nursery that it is given."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        dht: Dht,
        blobs: BlobStore,
        exchange: Exchange,
        tasks: TaskRunner,
        hub: Hub,
        post: Callable[[Event], None],
        held: Callable[[], frozenset[BlobRef]],
        nursery: trio.Nursery,
    ) -> None:
        self._mesh = mesh
        self._dht = dht
        self._blobs = blobs
        self._exchange = exchange
        self._tasks = tasks
        self._hub = hub
        self._post = post
        self._held = held
        self._nursery = nursery
        self._dropped: dict[BlobRef, float] = {}
        self.dropped: Counter[str] = Counter()
        self._publications, self._to_publish = trio.open_memory_channel[Publish](PUBLISH_WAITING_MAX)
        self._to_provide: OrderedDict[BlobRef, None] = OrderedDict()
        self._provide_wanted = trio.Event()

    def __call__(self, effect: Effect) -> None:
        match effect:
            case Send(peer, frame, addrs):
                if not self._mesh.send_nowait(peer, "control", frame, addrs):
                    self.dropped["sends"] += 1
            case Publish():
                self._publish(effect)
            case Run():
                self._tasks.start(effect)
            case Stop(task):
                self._tasks.stop(task)
            case Fetch():
                self._nursery.start_soon(self._fetch, effect)
            case Drop(ref):
                self._dropped[ref] = trio.current_time()
            case Penalise(peer, rule, ban):
                if ban:
                    self._mesh.disconnect(peer, f"it broke the rule {rule} once too often")
            case Trace():
                self._hub.trace(effect)
            case Save():
                raise AssertionError("saves are the engine's")
            case _:
                assert_never(effect)

    async def run(self) -> None:
        """Publish, provide and delete, each one at a time, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish_all)
            nursery.start_soon(self._provide_all)
            nursery.start_soon(self._delete_all)

    def _publish(self, effect: Publish) -> None:
        try:
            self._publications.send_nowait(effect)
        except trio.WouldBlock:
            # Gossip is a hint: what is lost here, the comparison of two peers brings.
            self.dropped["publications"] += 1

    async def _publish_all(self) -> None:
        async for effect in self._to_publish:
            await self._mesh.publish(effect.topic, effect.data)

    async def _fetch(self, effect: Fetch) -> None:
        part, ref = effect.part, effect.part.blob
        if await self._blobs.touch(ref):
            self._post(BlobReady(part))
            return
        if await self._tried(lambda: self._exchange.fetch(ref, effect.sources, deadline_s=FETCH_S), part):
            return
        found = await self._dht.providers(ref.digest, PROVIDERS_MAX)
        others = [peer for peer in found if peer not in effect.sources and peer != self._mesh.peer_id]
        if others and await self._tried(lambda: self._exchange.fetch(ref, others, deadline_s=FETCH_S), part):
            return
        self._post(BlobFailed(part))

    async def _tried(self, fetch: Callable[[], Awaitable[object]], part: Part) -> bool:
        try:
            await fetch()
        except BlobError as error:
            log.info("blob_not_fetched", blob=str(part.blob), error=str(error))
            return False
        self._post(BlobReady(part))
        self._provide(part.blob)
        return True

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

    # --- deleting --------------------------------------------------------------------------------------------------
    async def _delete_all(self) -> None:
        """Delete what was dropped, after a while: what one role of this node drops another may want next."""
        sweep_at = trio.current_time() + SWEEP_S
        while True:
            await trio.sleep(DELETE_S / 2)
            now = trio.current_time()
            due = [ref for ref, when in self._dropped.items() if when + DELETE_S <= now]
            for ref in due:
                del self._dropped[ref]
                await self._delete(ref, DELETE_S)
            if sweep_at <= now:
                sweep_at = now + SWEEP_S
                for ref in await self._blobs.unused(UPLOAD_KEPT_S):
                    await self._delete(ref, UPLOAD_KEPT_S)

    async def _delete(self, ref: BlobRef, unused_s: float) -> None:
        if ref in self._held():
            return
        try:
            await self._blobs.delete(ref, unused_s=unused_s)
        except BlobError as error:
            log.warning("blob_not_deleted", blob=str(ref), error=str(error))
