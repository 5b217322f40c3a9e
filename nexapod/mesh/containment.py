"""Every correction of py-libp2p 0.8.1 for the mesh, in one place; each has the test that fails without it.

As released, one malformed frame from any peer ends the process, a peer goes deaf after some hundreds of inbound
connections, silent deaths go unnoticed, and a restarted publisher is taken for a repetition of itself. The
multiplexer's part is in multiplexer.py, Kademlia's in nexapod/dht. Knows nothing of this project's protocols.
"""

from __future__ import annotations

import time
import types
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio

from nexapod.mesh.library import (
    ID,
    RawConnection,
    RpcQueue,
    YamuxStream,
    check_pin,
    muxer_module,
    pubsub_module,
    yamux_module,
)
from nexapod.mesh.multiplexer import WINDOW_MAX, ContainedYamux, contained, note, patient_write, thrifty_read

log = structlog.get_logger()

STREAMS_PER_CONNECTION_MAX: Final = 96
GOSSIP_QUEUE: Final = 1024
"""Gossip waiting to be written to one peer, and read by us; the library drops silently after 32."""


def install() -> None:
    """Check the pin and put the process-wide corrections in place. Idempotent. Raises LocalError."""
    check_pin()
    muxer_module.Yamux = ContainedYamux
    yamux_module.MAX_WINDOW_SIZE = WINDOW_MAX
    YamuxStream.write = patient_write
    YamuxStream.read = thrifty_read
    pubsub_module.SUBSCRIPTION_CHANNEL_SIZE = GOSSIP_QUEUE
    pubsub_module.RpcQueue = _roomy_queue


def _roomy_queue() -> Any:
    return RpcQueue(max_size=GOSSIP_QUEUE)


def guard_streams(host: Any) -> None:
    """Keep every inbound stream handler's exceptions, and a flood of streams, from the swarm.

    Without it any exception in a handler ends the process, and a leaked StreamEOF leaves a connection that looks
    alive and accepts no stream ever again.
    """
    network = host.get_network()
    inner = network.common_stream_handler

    async def guarded(stream: Any) -> None:
        try:
            if len(stream.swarm_conn.streams) > STREAMS_PER_CONNECTION_MAX:
                contained["streams"] += 1
                await stream.reset()
                return
            await inner(stream)
        except Exception as error:
            note("stream", error, protocol=repr(stream.get_protocol())[:80])
            try:
                await stream.reset()
            except Exception as again:  # a stream that cannot even be reset is gone
                note("reset", again)

    network.set_stream_handler(guarded)


def fix_inbound_slots(host: Any, slots: int) -> None:
    """Give back an inbound connection's slot and task when that connection closes, not when the swarm stops."""
    network = host.get_network()
    network._inbound_limiter.total_tokens = slots

    async def handle(self: Any, socket: Any, maddr: Any, _failure: Any) -> None:
        remote = self._build_remote_multiaddr(socket)
        if remote is not None and not await self.connection_gate.is_allowed(remote):
            await socket.close()
            return
        raw = RawConnection(socket, False)
        try:
            muxed = await self.upgrade_inbound_raw_conn(raw, maddr)
            await muxed.event_closed.wait()
        except Exception as error:
            contained["inbound"] += 1
            log.debug("inbound_connection_failed", error=repr(error)[:200])
        finally:
            with trio.move_on_after(2) as scope:
                scope.shield = True
                try:
                    await raw.close()
                except Exception as error:
                    note("close", error)

    network._do_handle_inbound_connection = types.MethodType(handle, network)


def guard_pubsub(pubsub: Any, admit: Callable[[str], bool] | None = None) -> None:
    """Keep gossip's exceptions inside it, and number messages so that a restart repeats no number.

    `admit(peer id)` is asked before anything is spent on a message that a peer forwards: False drops it.
    """
    pubsub.counter = time.time_ns()
    own = pubsub.my_id.to_base58()
    for name in ("_handle_new_peer_with_retry", "handle_sending_messages", "_replay_recent_messages"):
        setattr(pubsub, name, _never_raising(getattr(pubsub, name), name))
    for name in ("_handle_dead_peer", "handle_subscription"):
        setattr(pubsub, name, _never_raising_sync(getattr(pubsub, name), name))
    for name in ("handle_rpc", "flush_pending_messages"):
        setattr(pubsub.router, name, _never_raising(getattr(pubsub.router, name), name))
    push = _never_raising(pubsub.push_msg, "push_msg")

    async def admitted_push(forwarder: Any, message: Any) -> None:
        peer = forwarder.to_base58()
        if admit is None or peer == own or admit(peer):
            await push(forwarder, message)

    pubsub.push_msg = admitted_push
    pubsub.router.heartbeat = _restarted(pubsub.router.heartbeat, "heartbeat")


def _never_raising(inner: Callable[..., Awaitable[Any]], name: str) -> Callable[..., Awaitable[Any]]:
    async def safe(*args: Any, **kwargs: Any) -> Any:
        try:
            return await inner(*args, **kwargs)
        except Exception as error:
            note(name, error)
            return None

    return safe


def _never_raising_sync(inner: Callable[..., Any], name: str) -> Callable[..., Any]:
    def safe(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        except Exception as error:
            note(name, error)
            return None

    return safe


def _restarted(inner: Callable[[], Awaitable[None]], name: str) -> Callable[[], Awaitable[None]]:
    async def forever() -> None:
        while True:
            try:
                await inner()
            except Exception as error:
                note(name, error)
            await trio.sleep(1)

    return forever


def forget_failed_dial(host: Any, peer: str) -> None:
    """Let a peer be dialled again now: the library refuses for 60 s after one failure, though it may be back."""
    host.get_network()._negative_peer_cache.evict(peer)


async def close_peer(host: Any, peer: str) -> None:
    """Close all connections to a peer, within 3 s even if it reads nothing more."""
    connections = list(host.get_network().get_connections(ID.from_base58(peer)))
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(_close, connection)


async def _close(connection: Any) -> None:
    with trio.move_on_after(2) as scope:
        scope.shield = True
        try:
            await connection.close()
        except Exception as error:
            note("close", error)
    if scope.cancelled_caught:
        await connection.muxed_conn._sever()


async def close_all(host: Any) -> None:
    """Stop listening and close every connection, within 4 s.

    Leaving host.run() does neither when it is cancelled: peers would think us alive, and dial us again.
    """
    network = host.get_network()
    with trio.move_on_after(4) as scope:
        scope.shield = True
        async with trio.open_nursery() as nursery:
            for listener in list(network.listeners.values()):
                nursery.start_soon(listener.close)
        network.listeners.clear()
        async with trio.open_nursery() as nursery:
            for connections in list(network.connections.values()):
                for connection in list(connections):
                    nursery.start_soon(_close, connection)
