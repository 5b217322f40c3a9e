"""Builds the libp2p host: TCP, Noise and Yamux only, bounded, and with the library's own dialling switched off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nexapod.mesh import containment
from nexapod.mesh.addresses import expand
from nexapod.mesh.library import (
    NOISE_ID,
    TCP,
    YAMUX_ID,
    ConnectionConfig,
    ConnectionLimits,
    Multiaddr,
    NoiseTransport,
    ResourceLimits,
    ResourceManager,
    RetryConfig,
    create_new_key_pair,
    create_noise_key_pair,
    new_host,
)
from nexapod.mesh.multiplexer import ContainedYamux

SPARE_CONNECTIONS = 32
"""Beyond peers_max: room for a steward that must be reached while all places are taken."""
HANDSHAKES_MAX = 128
CONNECTIONS_PER_PEER_MAX = 4


def _announced(candidates: list[Any]) -> list[Any]:
    return [Multiaddr(text) for text in expand(str(addr) for addr in candidates)]


def build_host(seed: bytes, peers_max: int, announce: Callable[[list[Any]], list[Any]] = _announced) -> Any:
    """A host with every correction of the swarm applied. Raises LocalError when libp2p is not the pinned one."""
    containment.install()
    keys = create_new_key_pair(seed)
    connections = peers_max + SPARE_CONNECTIONS
    config = ConnectionConfig(
        max_connections=connections,
        min_connections=0,
        low_watermark=0,  # 0 to 1: the library's own dialler, blind to our backoff, never has reason to act
        high_watermark=connections,
        load_balancing_strategy="least_loaded",  # of two connections the busier may be of the peer's former life
        max_connections_per_peer=1,  # spares every dial a 250 ms wait
        dial_timeout=5.0,
        inbound_upgrade_timeout=5.0,
        outbound_upgrade_timeout=5.0,
        outbound_stream_protocol_negotiation_timeout=5.0,
        inbound_stream_protocol_negotiation_timeout=5.0,
    )
    limits = ResourceManager(
        limits=ResourceLimits(
            max_connections=connections + HANDSHAKES_MAX,
            max_streams=connections * containment.STREAMS_PER_CONNECTION_MAX,
        ),
        connection_limits=ConnectionLimits(
            max_established_per_peer=CONNECTIONS_PER_PEER_MAX, max_established_total=connections
        ),
        enable_circuit_breaker=False,  # it would refuse everyone for a minute after five failures of anyone
        enable_graceful_degradation=False,
        enable_memory_limits=False,
        enable_metrics=False,
    )
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE_ID: NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)},
        muxer_opt={YAMUX_ID: ContainedYamux},
        transports=[TCP()],
        connection_config=config,
        resource_manager=limits,
        addrs_factory=announce,
        negotiate_timeout=5,
    )
    host.get_network().retry_config = RetryConfig(max_retries=0)  # peers.py decides when to try again
    _silence_auto_connector(host)
    containment.guard_streams(host)
    containment.fix_inbound_slots(host, connections + HANDSHAKES_MAX)
    return host


def _silence_auto_connector(host: Any) -> None:
    """The library dials towards the middle of its watermarks by itself; peer keeping is ours alone."""

    async def nothing() -> None:
        return None

    host.get_network().auto_connector.maybe_connect = nothing
