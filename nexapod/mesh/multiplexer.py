"""The corrections of py-libp2p 0.8.1's stream multiplexer, put in place by containment.install().

As released it never notices a peer that dies silently, lets a peer fill this machine's memory, resets a stream whose
reader pauses for 5 s, and tears a frame in two when a writer is cancelled, which garbles the whole connection.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from typing import Any, Final

import structlog
import trio

from nexapod.mesh.library import MuxedStreamError, RawConnError, Yamux, yamux_module

log = structlog.get_logger()

PING_MIN_S: Final = 5.0
PING_MAX_S: Final = 9.0
PING_TIMEOUT_S: Final = 4.0
WRITE_STALL_S: Final = 60.0
"""How long a reader may leave a stream's window shut before the writer gives up; the library gives up after 5 s."""
FRAME_WRITE_S: Final = 30.0
CONNECTION_BUFFER_MAX: Final = 24 << 20
"""Unread bytes of all streams of one connection: past it the connection is closed. Links can hold 4 windows' worth."""
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
        super().__init__(*args, **kwargs)
        self.heard_at: float = trio.current_time()
        self._ping_id: int = 0
        self._doubted = trio.Event()

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
        if sum(map(len, self.stream_buffers.values())) + length > CONNECTION_BUFFER_MAX:
            contained["buffer"] += 1
            log.warning("peer_ignores_flow_control", peer=str(self.peer_id))
            await self._sever()
            raise RawConnError("flow control ignored")
        body: bytes = await super()._read_data_body(length)
        return body

    async def _write_frame(self, data: bytes) -> None:
        """Write one frame whole: a cancelled half frame would garble every stream of the connection."""
        if data[1] == yamux_module.TYPE_PING and data[3] & yamux_module.FLAG_ACK:
            self.heard_at = trio.current_time()  # their ping, which we answer, shows that they live
        async with self._write_lock:
            with trio.move_on_after(FRAME_WRITE_S) as scope:
                scope.shield = True
                await self.secured_conn.write(data)
            if scope.cancelled_caught:
                await self._sever()
                raise RawConnError("the connection accepts no data")
        await trio.lowlevel.checkpoint()

    async def handle_incoming(self) -> None:
        """Read frames until the connection ends; what the library lets through must not reach the swarm's nursery."""
        try:
            await super().handle_incoming()
        except Exception as error:
            note("yamux", error, peer=str(self.peer_id))
            await self._cleanup_on_error()


async def patient_write(self: Any, data: bytes) -> None:
    """YamuxStream.write with room for a slow reader, and without copying what was already sent."""
    view = memoryview(data)
    body_max = yamux_module.MAX_MESSAGE_SIZE - yamux_module.HEADER_SIZE - 32  # one frame, one Noise message
    while view:
        room = await _wait_for_window(self)
        piece = view[: min(room, body_max)]
        self.send_window -= len(piece)
        header = struct.pack(yamux_module.YAMUX_HEADER_FORMAT, 0, yamux_module.TYPE_DATA, 0, self.stream_id, len(piece))
        await self.conn._write_frame(header + bytes(piece))
        view = view[len(piece) :]


async def _wait_for_window(stream: Any) -> int:
    deadline = trio.current_time() + WRITE_STALL_S
    pause = 0.001
    while True:
        if stream.send_closed or stream.closed:
            raise MuxedStreamError("Stream is closed for sending")
        if stream.send_window > 0:
            return int(stream.send_window)
        if trio.current_time() > deadline:
            raise MuxedStreamError(f"the reader opened no window for {WRITE_STALL_S:.0f} s")
        await trio.sleep(pause)
        pause = min(pause * 2, 0.02)
