"""Links: for each peer and channel one long-lived stream out and one in, carrying frames, with bounded queues.

Knows nothing of what frames mean. Sending is best effort: a frame may be lost with its stream, and whoever needs an
answer asks again. Control frames are handed over at once; bulk frames one at a time, each awaited, so that a slow
consumer slows its sender.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
import trio

from nexapod.mesh.events import CHANNELS, Channel, Frame, MeshEvent, Misbehaved, Unreachable, channel_protocol
from nexapod.mesh.framing import FrameBuffer, encode_frame
from nexapod.mesh.library import ID, STREAM_ERRORS
from nexapod.mesh.peers import Dialler
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import PeerId

log = structlog.get_logger()

QUEUE_FRAMES_MAX: Final = 1024
QUEUE_BYTES_MAX: Final[dict[Channel, int]] = {"control": 4 << 20, "bulk": 2 << 20}
ALL_QUEUES_BYTES_MAX: Final = 128 << 20
WRITE_BYTES: Final = 256 * 1024
READ_BYTES: Final = 256 * 1024
OPEN_S: Final = 6.0
REOPEN_MIN_S: Final = 0.25
REOPEN_MAX_S: Final = 8.0
BULK_HANDLER_S: Final = 50.0
"""Less than the sender's patience (multiplexer.WRITE_STALL_S): a handler that takes longer costs the stream."""
STREAMS_IN_MAX: Final = 2
"""Inbound streams of one peer and channel: a new one may come before the end of the old one is noticed."""
FRAMES_PER_TURN: Final = 64


class PeerUnreachable(Exception):
    """The peer cannot be reached now: try another one, or this one later."""


@dataclass(slots=True, eq=False)
class _Link:
    peer: PeerId
    channel: Channel
    frames: deque[bytes] = field(default_factory=deque)
    queued: int = 0
    stream: Any = None
    pumping: bool = False
    retried: bool = False
    reopen_s: float = 0.0
    generation: int = 0
    """Rises whenever queued frames are dropped: tells waiting senders."""
    room: trio.Event = field(default_factory=trio.Event)
    opening: trio.Lock = field(default_factory=trio.Lock)

    def full(self, size: int) -> bool:
        return len(self.frames) >= QUEUE_FRAMES_MAX or self.queued + size > QUEUE_BYTES_MAX[self.channel]

    def take(self) -> bytes:
        """Join waiting frames up to one write's worth; one frame at least."""
        batch = [self.frames.popleft()]
        size = len(batch[0])
        while self.frames and size + len(self.frames[0]) <= WRITE_BYTES:
            batch.append(self.frames.popleft())
            size += len(batch[-1])
        self.queued -= size
        return batch[0] if len(batch) == 1 else b"".join(batch)

    def make_room(self) -> None:
        self.room.set()
        self.room = trio.Event()


class Links:
    """All links of this peer. `start` gives it the nursery that its tasks live in."""

    def __init__(
        self,
        host: Any,
        network: str,
        dialler: Dialler,
        emit: Callable[[MeshEvent], None],
        on_bulk: Callable[[PeerId, bytes], Awaitable[None]],
        on_heard: Callable[[PeerId, Any], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.used_at: dict[PeerId, float] = {}
        self._host = host
        self._dialler = dialler
        self._emit = emit
        self._on_bulk = on_bulk
        self._on_heard = on_heard
        self._protocols = {channel: channel_protocol(network, channel) for channel in CHANNELS}
        self._links: dict[tuple[PeerId, Channel], _Link] = {}
        self._inbound: Counter[tuple[PeerId, Channel]] = Counter()
        self._queued = 0
        self._nursery: trio.Nursery | None = None
        host.set_stream_handler(self._protocols["control"], self._serve_control)
        host.set_stream_handler(self._protocols["bulk"], self._serve_bulk)

    def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    # --- sending -----------------------------------------------------------------------------------------------
    def send_nowait(self, peer: PeerId, channel: Channel, frame: bytes) -> bool:
        """Queue a frame. False, and counted, when the queue is full or the mesh is not running."""
        data = encode_frame(frame)
        link = self._link(peer, channel)
        if self._nursery is None or link.full(len(data)) or self._queued + len(data) > ALL_QUEUES_BYTES_MAX:
            self.counts["frames_refused"] += 1
            return False
        self._enqueue(link, data)
        return True

    async def send(self, peer: PeerId, channel: Channel, frame: bytes) -> None:
        """Queue a frame, waiting for room. Raises PeerUnreachable, also when the link fails while waiting."""
        data = encode_frame(frame)
        if self._nursery is None or not await self._dialler.connect(peer):
            raise PeerUnreachable(peer)
        link = self._link(peer, channel)
        generation = link.generation
        while link.full(len(data)) or self._queued + len(data) > ALL_QUEUES_BYTES_MAX:
            await link.room.wait()
            if link.generation != generation:
                raise PeerUnreachable(peer)
        self._enqueue(link, data)
        await trio.lowlevel.checkpoint()

    def _link(self, peer: PeerId, channel: Channel) -> _Link:
        return self._links.setdefault((peer, channel), _Link(peer, channel))

    def _enqueue(self, link: _Link, data: bytes) -> None:
        assert self._nursery is not None
        link.frames.append(data)
        link.queued += len(data)
        self._queued += len(data)
        if not link.pumping:
            link.pumping = True
            self._nursery.start_soon(self._pump, link)

    async def _pump(self, link: _Link) -> None:
        """Write what is queued, then end: an idle link holds a stream and no task."""
        try:
            while link.frames:
                stream = await self._opened(link)
                if stream is None:
                    self._drop(link)
                    return
                await self._write(link, stream)
        finally:
            link.pumping = False

    async def _write(self, link: _Link, stream: Any) -> None:
        data = link.take()
        self._queued -= len(data)
        link.make_room()
        self.used_at[link.peer] = trio.current_time()
        try:
            await stream.muxed_stream.write(data)  # as in _read
        except STREAM_ERRORS as error:
            log.debug("link_broken", peer=link.peer, channel=link.channel, error=repr(error)[:120])
            self.counts["links_broken"] += 1
            await self._discard(link, stream)
            if link.channel == "control" and not link.retried:
                # The stream most likely died while idle. Control messages are idempotent; bulk has its own resume.
                link.retried = True
                link.frames.appendleft(data)
                link.queued += len(data)
                self._queued += len(data)
            else:
                self.counts["writes_lost"] += 1
        else:
            link.retried = False
            self.counts["bytes_out"] += len(data)

    async def _opened(self, link: _Link) -> Any:
        """The link's stream, dialling and opening as needed; None when that failed."""
        async with link.opening:
            if link.stream is not None and not link.stream.is_closed:
                return link.stream
            link.stream = None
            if link.reopen_s:
                await trio.sleep(link.reopen_s)
            if not await self._dialler.connect(link.peer):
                return None
            link.stream = await self._new_stream(link)
            link.reopen_s = 0.0 if link.stream else min(max(link.reopen_s * 2, REOPEN_MIN_S), REOPEN_MAX_S)
            return link.stream

    async def _new_stream(self, link: _Link) -> Any:
        try:
            with trio.move_on_after(OPEN_S):
                return await self._host.new_stream(ID.from_base58(link.peer), [self._protocols[link.channel]])
        except STREAM_ERRORS as error:
            log.debug("link_not_opened", peer=link.peer, channel=link.channel, error=repr(error)[:120])
        return None

    async def open_control(self, peer: PeerId) -> bool:
        """Open the control link to a connected peer before anything is sent on it."""
        return await self._opened(self._link(peer, "control")) is not None

    def _drop(self, link: _Link) -> None:
        lost = len(link.frames)
        self._queued -= link.queued
        link.frames.clear()
        link.queued = 0
        link.generation += 1
        link.make_room()
        self.counts["frames_dropped"] += lost
        self._emit(Unreachable(link.peer, lost))

    async def _discard(self, link: _Link, stream: Any) -> None:
        if link.stream is stream:
            link.stream = None
        with trio.move_on_after(1) as scope:
            scope.shield = True
            try:
                await stream.reset()
            except STREAM_ERRORS as error:
                log.debug("stream_not_reset", error=repr(error)[:120])

    def forget(self, peer: PeerId) -> None:
        """A peer is gone: its streams are dead. What is still queued is left to the pump, which will try to dial."""
        self.used_at.pop(peer, None)
        for channel in CHANNELS:
            link = self._links.get((peer, channel))
            if link is None:
                continue
            link.stream = None
            if not link.pumping:
                del self._links[peer, channel]

    # --- receiving ---------------------------------------------------------------------------------------------
    async def _serve_control(self, stream: Any) -> None:
        await self._serve("control", stream)

    async def _serve_bulk(self, stream: Any) -> None:
        await self._serve("bulk", stream)

    async def _serve(self, channel: Channel, stream: Any) -> None:
        peer = PeerId(stream.muxed_conn.peer_id.to_base58())
        key = (peer, channel)
        if self._inbound[key] >= STREAMS_IN_MAX:
            self.counts["streams_refused"] += 1
            await stream.reset()
            return
        self._inbound[key] += 1
        try:
            self._on_heard(peer, stream.swarm_conn)
            await self._read(peer, channel, stream)
        finally:
            self._inbound[key] -= 1
            if not self._inbound[key]:
                del self._inbound[key]

    async def _read(self, peer: PeerId, channel: Channel, stream: Any) -> None:
        buffer = FrameBuffer()
        # Not through the stream's own state, which costs a turn of the loop: the multiplexer's errors say the same.
        read = stream.muxed_stream.read
        try:
            while True:
                data = await read(READ_BYTES)
                frames = buffer.feed(data)
                self.counts["bytes_in"] += len(data)
                await self._hand_over(peer, channel, frames)
        except STREAM_ERRORS as error:
            log.debug("link_ended", peer=peer, channel=channel, error=repr(error)[:120])
        except PeerError as error:
            log.warning("peer_misbehaved", peer=peer, channel=channel, rule=error.rule, detail=error.detail)
            self.counts["misbehaved"] += 1
            self._emit(Misbehaved(peer, error.rule))
        with trio.move_on_after(1) as scope:
            scope.shield = True
            await stream.reset()

    async def _hand_over(self, peer: PeerId, channel: Channel, frames: list[bytes]) -> None:
        self.counts["frames_in"] += len(frames)
        if frames:
            self.used_at[peer] = trio.current_time()
        for count, frame in enumerate(frames, 1):
            if channel == "bulk":
                await self._hand_over_bulk(peer, frame)
                continue
            self._emit(Frame(peer, channel, frame))
            if count % FRAMES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()

    async def _hand_over_bulk(self, peer: PeerId, frame: bytes) -> None:
        with trio.move_on_after(BULK_HANDLER_S) as scope:
            try:
                await self._on_bulk(peer, frame)
            except Exception:
                self.counts["handler_errors"] += 1
                log.exception("bulk_handler_failed", peer=peer)
        if scope.cancelled_caught:
            self.counts["handler_timeouts"] += 1
            raise PeerError("bulk-handler-slow", f"{BULK_HANDLER_S:.0f} s", penalty=0)
