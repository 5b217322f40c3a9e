"""The engine loop: events into the core, effects out of it, saves first.

Everything that happens to this node is an event in one queue. The loop takes what has gathered, hands it to the core
event by event, commits all that the core wants kept in one transaction, and only then lets the other effects run. A
commit that fails (a full disk) stops the node from speaking until it succeeds: nothing is lost, nothing is claimed.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
import trio

from nexapod.daemon.recall import Recall
from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import Checkpointed, Effect, Event, Progressed, Received, Save, Tick
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import Millis, PeerId, TaskId
from nexapod.protocol.records import Record

log = structlog.get_logger()

BATCH_MAX = 256
GATHER_S = 0.01
"""From one batch to the next at least: what comes meanwhile is handled, committed and sent together. Who has been idle
waits for nothing, and neither does a user."""
BATCH_S = 0.025
"""No batch takes longer than this and one more event: the others of the loop, the API among them, have their turn."""
QUEUED_PER_PEER_MAX = 1024
QUEUED_BYTES_PER_PEER_MAX = 8 << 20
"""Frames of one peer that wait at once. Messages are idempotent and repeated: more of them are dropped, and counted."""
COMMIT_RETRY_S = (1.0, 2.0, 5.0, 15.0, 30.0)


class Keeper(Protocol):
    """What the engine needs of the store."""

    async def commit(self, records: Sequence[Record]) -> None: ...


def monotonic_ms() -> Millis:
    """The clock of the core. Rounded: whoever slept until a whole millisecond wakes in it, and not just before it."""
    return round(trio.current_time() * 1000)


@dataclass(slots=True)
class Act:
    """An event whose sender waits for what comes of it."""

    event: Event
    done: trio.Event = field(default_factory=trio.Event)
    effects: list[Effect] = field(default_factory=list)
    error: LocalError | None = None


class Engine:
    """Owns the node: nothing else calls `node.handle`."""

    def __init__(self, node: Node, store: Keeper, recall: Recall | None = None) -> None:
        """`recall`: what the node reads its saved records back with."""
        self.node = node
        self._recall = recall
        self.dropped: Counter[str] = Counter()
        self.stalled = ""
        """Why nothing is said at the moment: the store does not take what must be kept. Empty when all is well."""
        self._store = store
        self._queue: deque[Event | Act] = deque()
        self._queued: Counter[PeerId] = Counter()
        self._queued_bytes: Counter[PeerId] = Counter()
        self._newest: dict[tuple[type[Event], TaskId], Progressed | Checkpointed] = {}
        """How each task stands, of which the queue holds the first one's place: the latest says it all."""
        self._wake = trio.Event()
        self._acts = 0
        """Events in the queue whose senders wait."""
        self._began = float("-inf")
        """When the last batch began."""

    @property
    def waiting(self) -> int:
        """Events that are not handled yet."""
        return len(self._queue)

    def post(self, event: Event) -> None:
        """Hand over an event; never waits. A peer that floods loses its own frames only, and a store that stalls does
        not let the queue grow for ever.
        """
        match event:
            case Received(peer, frame):
                if not self._has_room(peer, len(frame)):
                    self.dropped["frames"] += 1
                    return
                self._queued[peer] += 1
                self._queued_bytes[peer] += len(frame)
            case Progressed(task) | Checkpointed(task):
                waits = (type(event), task) in self._newest
                self._newest[type(event), task] = event
                if waits:
                    return
        self._queue.append(event)
        self._wake.set()

    def _has_room(self, peer: PeerId, size: int) -> bool:
        if self._queued[peer] >= QUEUED_PER_PEER_MAX:
            return False
        return not self._queued[peer] or self._queued_bytes[peer] + size <= QUEUED_BYTES_PER_PEER_MAX

    async def act(self, event: Event) -> list[Effect]:
        """Hand over an event and wait until all its effects have run. Raises the core's LocalError."""
        waiting = Act(event)
        self._queue.append(waiting)
        self._acts += 1
        self._wake.set()
        await waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        return waiting.effects

    async def run(self, perform: Callable[[Effect], None]) -> None:
        """The loop; runs until cancelled. `perform` carries out every effect but Save, and never waits."""
        while True:
            await self._wait()
            acts: list[Act] = []
            effects = self._take(acts)
            await self._commit([e.record for e in effects if isinstance(e, Save)])
            for effect in effects:
                if not isinstance(effect, Save):
                    perform(effect)
            for act in acts:
                act.done.set()
            # One batch may follow another without a pause: let the others have their turn.
            await trio.lowlevel.checkpoint()

    async def _wait(self) -> None:
        deadline = self.node.deadline
        pause = float("inf") if deadline is None else max(0.0, deadline / 1000 - trio.current_time())
        with trio.move_on_after(pause):
            while not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
        with trio.move_on_at(self._began + GATHER_S):
            while not self._acts:
                self._wake = trio.Event()
                await self._wake.wait()
        self._began = trio.current_time()

    def _take(self, acts: list[Act]) -> list[Effect]:
        now = monotonic_ms()
        effects: list[Effect] = []
        if not self._queue:
            return self.node.handle(Tick(), now)
        until = time.perf_counter() + BATCH_S
        for _ in range(min(len(self._queue), BATCH_MAX)):
            item = self._queue.popleft()
            before = len(effects)
            if isinstance(item, Act):
                self._acts -= 1
                effects += self._act(item, now)
                acts.append(item)
            else:
                effects += self._handle(self._unqueued(item), now)
            if self._recall is not None:
                self._recall.saved(e.record for e in effects[before:] if isinstance(e, Save))
            if time.perf_counter() > until:
                break
        return effects

    def _handle(self, event: Event, now: Millis) -> list[Effect]:
        """The core is total for what peers send. Where it is not after all, they must not be able to end this daemon:
        what they sent is dropped, and the log says where the mistake is."""
        try:
            return self.node.handle(event, now)
        except Exception:
            if not isinstance(event, Received):
                raise
            self.dropped["failed"] += 1
            log.exception("core_failed", peer=event.peer, kind=type(event).__name__)
            return []

    def _unqueued(self, event: Event) -> Event:
        """Its place is free again. The event to handle in it: how a task stands may have changed since."""
        match event:
            case Received(peer, frame):
                self._queued[peer] -= 1
                self._queued_bytes[peer] -= len(frame)
                if not self._queued[peer]:
                    del self._queued[peer], self._queued_bytes[peer]
            case Progressed(task) | Checkpointed(task):
                return self._newest.pop((type(event), task))
        return event

    def _act(self, item: Act, now: Millis) -> list[Effect]:
        try:
            item.effects = self.node.handle(item.event, now)
        except LocalError as error:
            item.error = error
        return item.effects

    async def _commit(self, records: list[Record]) -> None:
        if not records:
            return
        attempt = 0
        while True:
            try:
                await self._store.commit(records)
            except LocalError as error:
                self.stalled = str(error)
                pause = COMMIT_RETRY_S[min(attempt, len(COMMIT_RETRY_S) - 1)]
                # The message says it all; the traceback would be repeated at each try.
                log.error("store_failed", error=str(error), retry_s=pause, records=len(records))  # noqa: TRY400
                attempt += 1
                await trio.sleep(pause)
            else:
                if self.stalled:
                    log.info("store_recovered", records=len(records))
                self.stalled = ""
                if self._recall is not None:
                    self._recall.committed()
                return
