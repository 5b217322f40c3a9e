"""Operator groups: who counts as one voter (docs/protocol.md, Operator groups).

A peer is its own group, except on globally routable addresses, where everyone in one /24 (IPv4) or /48 (IPv6) is:
identities are free there, address blocks are not. On loopback and private networks the owner vouches for the machines.
"""

from __future__ import annotations

import ipaddress

from nexapod.protocol.types import PeerId


def group_of(peer: PeerId, addr: str) -> str:
    """The operator group of a peer that is connected from the multiaddr `addr` ("" when not known)."""
    parts = addr.split("/")
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return peer
    try:
        address = ipaddress.ip_address(parts[2])
    except ValueError:
        return peer
    if not address.is_global:
        return peer
    prefix = 24 if address.version == 4 else 48
    return str(ipaddress.ip_network((address, prefix), strict=False))
