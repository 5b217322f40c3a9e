"""The corrections of py-libp2p 0.8.1's stream multiplexer, put in place by containment.install().

As released it never notices a peer that dies silently, lets a peer fill this machine's memory, resets a stream whose
reader pauses for 5 s, and tears a frame in two when a writer is cancelled, which garbles the whole connection.

It is also slow: what is most of the traffic, data and window updates of streams that exist, is handled here in one go.
All other frames go the library's way.
"""

from __future__ import annotations

import random
import struct
from collections import Counter, deque
from collections.abc import Awaitable
from typing import Any, Final

import structlog
import trio

from nexapod.mesh.channel import Channel
from nexapod.mesh.library import (
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
    RawConnError,
    Yamux,
    yamux_module,
)

log = structlog.get_logger()

PING_MIN_S: Final = 5.0
PING_MAX_S: Final = 9.0
PING_TIMEOUT_S: Final = 4.0
WRITE_STALL_S: Final = 60.0
"""How long a reader may leave a stream's window shut before the writer gives up; the library gives up after 5 s."""
FRAME_WRITE_S: Final = 30.0
BODY_READ_S: Final = 60.0
"""How long the rest of a frame may take that has begun."""
BODY_MAX: Final = yamux_module.MAX_MESSAGE_SIZE - yamux_module.HEADER_SIZE - 32
"""Data in one frame: with its header it fits one Noise message."""
BATCH_BYTES: Final = 4 * BODY_MAX
"""Data written to the connection at once: more would make other streams wait."""
_HEADER: Final = struct.Struct(yamux_module.YAMUX_HEADER_FORMAT)
WINDOW_LOOK_S: Final = 0.05
CONNECTION_BUFFER_MAX: Final = 24 << 20
"""Unread bytes of all streams of one connection: past it the connection is closed. Links can hold 4 windows' worth."""
PIECES_UNCHECKED: Final = 128 << 10
"""What one stream may hold unread before all of them are counted: with less in each, they are within the bound."""
WINDOW_MAX: Final = 4 << 20

contained: Counter[str] = Counter()
"""How often each guard of the mesh has caught something, by guard: for metrics and tests."""


def note(guard: str, error: BaseException, **context: object) -> None:
    """Count and log what a guard has caught."""
    contained[guard] += 1
    log.warning("libp2p_error_contained", guard=guard, error=repr(error)[:200], **context)


class ContainedYamux(Yamux):  # type: ignore[misc]
    """The stream multiplexer, corrected: it notices dead peers, bounds its memory, and never tears a frame.

    The library measures the round trip every 30 s and ignores it when no answer comes. Here that loop is the
    liveness check: whenever nothing was heard for 5 to 9 s it pings, and closes the connection after 4 s of silence.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.secured_conn: Any
        super().__init__(*args, **kwargs)
        self.heard_at: float = trio.current_time()
        self._ping_id: int = 0
        self._doubted = trio.Event()
        self._channel: Channel | None = None
        session: Any = self.secured_conn
        if Channel.fits(session):
            self._channel = Channel(session)
            self.secured_conn = _Lane(self, self._channel)

    def doubt(self) -> None:
        """Ping now: the same peer has connected once more, so this connection may be of its former life."""
        self._doubted.set()

    async def _measure_rtt_loop(self) -> None:
        pause = 0.5  # the first round trip tunes the window of new streams
        while not self.event_shutting_down.is_set():
            with trio.move_on_after(pause):
                await self._doubted.wait()
            pause = random.uniform(PING_MIN_S, PING_MAX_S)  # noqa: S311  (jitter, not a secret)
            quiet = trio.current_time() - self.heard_at >= PING_MIN_S
            if not quiet and self.rtt() > 0 and not self._doubted.is_set():
                continue
            self._doubted = trio.Event()
            if not await self._answers():
                log.info("peer_silent", peer=str(self.peer_id), timeout_s=PING_TIMEOUT_S)
                await self._sever()
                return

    async def _answers(self) -> bool:
        self._ping_event = trio.Event()
        self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
        header = struct.pack(
            yamux_module.YAMUX_HEADER_FORMAT, 0, yamux_module.TYPE_PING, yamux_module.FLAG_SYN, 0, self._ping_id
        )
        sent_at = trio.current_time()
        self._ping_sent_time = sent_at
        try:
            with trio.move_on_after(PING_TIMEOUT_S):
                await self._write_frame(header)
                await self._ping_event.wait()
        except (RawConnError, OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            return False
        return self._ping_event.is_set() or self.heard_at > sent_at  # busy, not dead, when data came meanwhile

    async def _sever(self) -> None:
        """Close the socket under the multiplexer: its reader then fails, and cleans up all the rest."""
        with trio.move_on_after(2) as scope:
            scope.shield = True
            try:
                await self.secured_conn.close()
            except Exception as error:  # the point is to be rid of it
                note("sever", error)

    async def _read_data_body(self, length: int) -> bytes:
        self.heard_at = trio.current_time()
        await self._check_buffers(length)
        if self._channel is None:
            body: bytes = await super()._read_data_body(length)
            return body
        with trio.fail_after(BODY_READ_S):
            return await self._channel.read(length)

    async def _check_buffers(self, length: int) -> None:
        """Close the connection of a peer that fills this machine's memory. Raises RawConnError then."""
        waiting = sum(stream.__dict__["pieces"].size for stream in self.streams.values() if "pieces" in stream.__dict__)
        if sum(map(len, self.stream_buffers.values())) + waiting + length > CONNECTION_BUFFER_MAX:
            contained["buffer"] += 1
            log.warning("peer_ignores_flow_control", peer=str(self.peer_id))
            await self._sever()
            raise RawConnError("flow control ignored")

    async def next_unusual_header(self, channel: Channel) -> bytes:
        """Handle frames until one comes that is for the library; its header."""
        while True:
            await channel.fill(_HEADER.size)
            version, kind, flags, stream_id, length = _HEADER.unpack_from(channel.plain, channel.at)
            stream = self.streams.get(stream_id)
            usual = stream is not None and not (version or flags) and kind in _USUAL and length <= WINDOW_MAX
            if not usual:
                if stream is not None:
                    self._hand_back(stream)
                return channel.take(_HEADER.size)
            channel.at += _HEADER.size
            self.heard_at = trio.current_time()
            if kind == yamux_module.TYPE_WINDOW_UPDATE:
                stream.send_window += length
                _window_opened(stream)
            else:
                await self._take_body(channel, stream, length)

    async def _take_body(self, channel: Channel, stream: Any, length: int) -> None:
        pieces = _pieces_of(stream)
        if pieces.size > PIECES_UNCHECKED:
            await self._check_buffers(length)
        if channel.ready < length:
            with trio.fail_after(BODY_READ_S):
                await channel.fill(length)
        body = channel.take(length)
        buffer = self.stream_buffers.get(stream.stream_id)
        if buffer is None:
            return  # it was reset while its data came
        if buffer:
            buffer += body
        else:
            pieces.add(body)
        stream.recv_window = max(0, stream.recv_window - length)
        self.stream_events[stream.stream_id].set()

    def _hand_back(self, stream: Any) -> None:
        """Put what was set apart where the library looks for it: what it does next may end the stream."""
        pieces = stream.__dict__.get("pieces")
        buffer = self.stream_buffers.get(stream.stream_id)
        if pieces and buffer is not None:
            buffer += pieces.take(pieces.size)

    async def write_data(self, stream_id: int, data: memoryview) -> None:
        """Write at most BATCH_BYTES of a stream's data, in frames that go out together."""
        if self._channel is None:
            for at in range(0, len(data), BODY_MAX):
                await self._write_frame(_data_frame(stream_id, data[at : at + BODY_MAX]))
            return
        frames = [_data_frame(stream_id, data[at : at + BODY_MAX]) for at in range(0, len(data), BODY_MAX)]
        async with self._write_lock:
            await self._write_whole(self._channel.write_all(frames), len(frames))
        await trio.lowlevel.checkpoint()

    async def _write_whole(self, writing: Awaitable[None], frames: int) -> None:
        """Write to the end: a cancelled half frame would garble every stream of the connection."""
        with trio.move_on_after(FRAME_WRITE_S * frames) as scope:
            scope.shield = True
            await writing
        if scope.cancelled_caught:
            await self._sever()
            raise RawConnError("the connection accepts no data")

    async def _write_frame(self, data: bytes) -> None:
        """Write one frame whole."""
        if data[1] == yamux_module.TYPE_PING and data[3] & yamux_module.FLAG_ACK:
            self.heard_at = trio.current_time()  # their ping, which we answer, shows that they live
        async with self._write_lock:
            await self._write_whole(self.secured_conn.write(data), 1)
        await trio.lowlevel.checkpoint()

    async def handle_incoming(self) -> None:
        """Read frames until the connection ends; what the library lets through must not reach the swarm's nursery."""
        try:
            await super().handle_incoming()
        except Exception as error:
            note("yamux", error, peer=str(self.peer_id))
            await self._cleanup_on_error()


class _Pieces:
    """Bytes of a stream as they came, so that most of them are never copied."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: deque[bytes] = deque()

    def __len__(self) -> int:
        return self.size

    def add(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            self.size += len(part)

    def take(self, most: int) -> bytes:
        """The first bytes, at most so many."""
        if len(self._parts) == 1 and self.size <= most:
            self.size = 0
            return self._parts.popleft()
        taken: list[bytes] = []
        room = most
        while self._parts and room:
            part = self._parts.popleft()
            if len(part) > room:
                self._parts.appendleft(part[room:])
                part = part[:room]
            taken.append(part)
            room -= len(part)
        self.size -= most - room
        return b"".join(taken)


def _pieces_of(stream: Any) -> _Pieces:
    pieces: _Pieces | None = stream.__dict__.get("pieces")
    if pieces is None:
        pieces = stream.__dict__["pieces"] = _Pieces()
    return pieces


_USUAL: Final = (yamux_module.TYPE_DATA, yamux_module.TYPE_WINDOW_UPDATE)


class _Lane:
    """What the library takes for its connection: where it asks for a header it gets the next one that is for it."""

    def __init__(self, muxer: ContainedYamux, channel: Channel) -> None:
        self._muxer = muxer
        self._channel = channel
        self.write = channel.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def read(self, count: int) -> bytes:
        """The library reads headers here and nothing else: bodies go through _read_data_body."""
        assert count == _HEADER.size
        return await self._muxer.next_unusual_header(self._channel)


def _data_frame(stream_id: int, data: memoryview) -> bytes:
    return b"".join((_HEADER.pack(0, yamux_module.TYPE_DATA, 0, stream_id, len(data)), data))


async def patient_write(self: Any, data: bytes) -> None:
    """YamuxStream.write with room for a slow reader, and without copying what was already sent."""
    view = memoryview(data)
    while view:
        room = await _wait_for_window(self)
        piece = view[: min(room, BATCH_BYTES)]
        self.send_window -= len(piece)
        await self.conn.write_data(self.stream_id, piece)
        view = view[len(piece) :]


async def _wait_for_window(stream: Any) -> int:
    deadline = trio.current_time() + WRITE_STALL_S
    while True:
        if stream.send_closed or stream.closed:
            raise MuxedStreamError("Stream is closed for sending")
        if stream.send_window > 0:
            return int(stream.send_window)
        if trio.current_time() > deadline:
            raise MuxedStreamError(f"the reader opened no window for {WRITE_STALL_S:.0f} s")
        opened = stream.__dict__.setdefault("window_opened", trio.Event())
        # Not every way in which a stream changes tells of it: a look now and then.
        with trio.move_on_after(WINDOW_LOOK_S):
            await opened.wait()


def _window_opened(stream: Any) -> None:
    opened = stream.__dict__.pop("window_opened", None)
    if opened is not None:
        opened.set()


async def thrifty_read(self: Any, n: int | None = -1) -> bytes:
    """YamuxStream.read that opens the window by halves and not with every read, and asks no environment variable.

    Up to `n` bytes, all that are there when it is -1 or None. Raises MuxedStreamEOF, MuxedStreamReset.
    """
    await trio.lowlevel.checkpoint()
    pieces = _pieces_of(self)
    while True:
        buffer = self.conn.stream_buffers.get(self.stream_id)
        if buffer is None or self.conn.event_shutting_down.is_set() or not (buffer or pieces):
            _check_open(self, buffer)
            await _wait_for_data(self)
        elif self.reset_received and not self.recv_closed:
            raise MuxedStreamReset("Stream was reset")
        else:
            break
    data = _take(buffer, pieces, n)
    if self.closed:
        self.conn._finalize_stream_locked(self, fully_closed=True)
    await _open_window(self, len(buffer) + pieces.size)
    return data


def _take(buffer: bytearray, pieces: _Pieces, n: int | None) -> bytes:
    """From whichever of the two holds something: never both do."""
    most = len(buffer) + pieces.size if n is None or n < 0 else n
    if not buffer:
        return pieces.take(most)
    data = bytes(buffer[:most])
    del buffer[:most]
    return data


def _check_open(stream: Any, buffer: bytearray | None) -> None:
    """Raise when nothing more will come."""
    if stream.reset_received:
        raise MuxedStreamReset("Stream was reset")
    if buffer is None or stream.conn.event_shutting_down.is_set() or stream.recv_closed:
        raise MuxedStreamEOF("Stream is closed for receiving")
    if stream.closed:
        raise MuxedStreamReset("Stream is reset or closed")


async def _wait_for_data(stream: Any) -> None:
    events = stream.conn.stream_events
    try:
        await events[stream.stream_id].wait()
        events[stream.stream_id] = trio.Event()
    except KeyError:
        raise MuxedStreamEOF("Stream was removed") from None


async def _open_window(stream: Any, buffered: int) -> None:
    """Let the peer send on, once half of the window is free; a window that is used up within four round trips was too
    small, and doubles.
    """
    free = stream.target_recv_window - stream.recv_window - buffered
    if free < stream.target_recv_window // 2 or stream.recv_closed:
        return
    now = trio.current_time()
    if now - stream.epoch_start < 4 * stream._effective_rtt():
        larger = min(2 * stream.target_recv_window, WINDOW_MAX)
        free += larger - stream.target_recv_window
        stream.target_recv_window = larger
    stream.epoch_start = now
    stream.recv_window += free
    await stream.send_window_update(free)
