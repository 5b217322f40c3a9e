"""Operator groups: who counts as one voter (docs/protocol.md, Operator groups).

Identities are free, address blocks are not. The address is the one that the observer sees on the peer's own link, never
one that somebody says.
"""

from __future__ import annotations

import ipaddress
from typing import Final, TypeAlias

from nexapod.protocol.primitives import PeerId
from nexapod.protocol.types import Group, Grouping

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
BLOCK_PREFIXES: Final = (24, 48)
"""What one operator is taken to have: bits of an IPv4 and of an IPv6 address."""
REGION_PREFIXES: Final = (16, 32)
"""What one provider is taken to have: a panel does not rest on one."""


def group_of(peer: PeerId, addr: str, grouping: Grouping) -> Group | None:
    """The group of a peer whose link comes from the multiaddr `addr` ("" when not known). None: it has no vote."""
    return peer if grouping == "peer" else block(addr, BLOCK_PREFIXES)


def block(addr: str, prefixes: tuple[int, int]) -> Group | None:
    """The block of addresses around a multiaddr's, in CIDR notation; None when it shows no address that counts."""
    address = _address(addr)
    if address is None or address.is_loopback or address.is_unspecified or address.is_multicast:
        return None
    # Built from the number: a scope (fe80::1%eth0) is the observer's own word for a link, and no part of a block.
    if address.version == 4:
        return str(ipaddress.IPv4Network((int(address), prefixes[0]), strict=False))
    return str(ipaddress.IPv6Network((int(address), prefixes[1]), strict=False))


def _address(addr: str) -> Address | None:
    parts = addr.split("/")
    # What comes through a relay shows the relay's address: with many relays one peer would be many groups.
    if "p2p-circuit" in parts:
        return None
    if parts[1:2] == ["ip6zone"]:
        parts = parts[2:]
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return None
    try:
        address = ipaddress.ip_address(parts[2])
    except ValueError:
        return None
    # A dual-stack socket shows IPv4 peers so; all of them lie in one /48.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
