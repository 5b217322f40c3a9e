"""Every correction of py-libp2p 0.8.1 for the mesh, in one place; each has the test that fails without it.

As released, one malformed frame from any peer ends the process, a peer goes deaf after some hundreds of inbound
connections, and silent deaths go unnoticed. The multiplexer's part is in multiplexer.py, Kademlia's in nexapod/dht.
Knows nothing of this project's protocols.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Final

import structlog
import trio

from nexapod.mesh.library import (
    DIAL_ERRORS,
    ID,
    PeerStoreError,
    RawConnection,
    UpgradeFailure,
    YamuxStream,
    check_pin,
    muxer_module,
    yamux_module,
)
from nexapod.mesh.multiplexer import WINDOW_MAX, ContainedYamux, contained, note, patient_write, thrifty_read

log = structlog.get_logger()

STREAMS_PER_CONNECTION_MAX: Final = 96


def install() -> None:
    """Check the pin and put the process-wide corrections in place. Idempotent. Raises LocalError."""
    check_pin()
    muxer_module.Yamux = ContainedYamux
    yamux_module.MAX_WINDOW_SIZE = WINDOW_MAX
    YamuxStream.write = patient_write
    YamuxStream.read = thrifty_read


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


def forget_failed_dial(host: Any, peer: str) -> None:
    """Let a peer be dialled again now: the library refuses for 60 s after one failure, though it may be back."""
    host.get_network()._negative_peer_cache.evict(peer)


def identified_addrs(host: Any, identity: Any) -> Sequence[str]:
    """Where a peer listens, as identify has told; nothing before. It is not asked again when it has been away."""
    try:
        return [str(addr) for addr in host.get_peerstore().addrs(identity)]
    except PeerStoreError:
        return []


async def shake_hands(host: Any, addr: Any, identity: Any) -> None:
    """Dial, see that the peer's key is there, and hang up: no connection comes of it. Raises DIAL_ERRORS."""
    network = host.get_network()
    raw = await network.transport_manager.transport_for_dialing(addr).dial(addr)
    try:
        await network.upgrader.upgrade_security(raw, True, identity)
    except DIAL_ERRORS:
        raise
    except Exception as error:  # whoever is there may answer anything, and the library does not name all of it
        note("handshake", error)
        raise UpgradeFailure(repr(error)[:200]) from error
    finally:
        await _hang_up(raw)


async def _hang_up(raw: Any) -> None:
    with trio.move_on_after(1) as scope:
        scope.shield = True
        try:
            await raw.close()
        except Exception as error:
            note("close", error)


async def close_peer(host: Any, peer: str) -> None:
    """Close all connections to a peer, within 3 s even if it reads nothing more."""
    connections = list(host.get_network().get_connections(ID.from_base58(peer)))
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(close_connection, connection)


async def close_connection(connection: Any) -> None:
    """Close one connection, within 3 s even if its peer reads nothing more."""
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
                    nursery.start_soon(close_connection, connection)
