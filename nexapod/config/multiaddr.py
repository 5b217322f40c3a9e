"""The syntax of the multiaddrs that a person writes, checked without the library that dials them.

    /ip4/192.0.2.7/tcp/4747    /ip6/::/tcp/4747    /dns4/peer.example.org/tcp/4747/p2p/12D3KooW...

TCP over IPv4, IPv6 or a name, and at the end the peer's id: what this mesh speaks, nothing else.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from nexapod.protocol.primitives import PeerId, key_of_peer_id

MULTIADDR_MAX: Final = 256
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?\Z")
EXAMPLE: Final = "/ip4/192.0.2.7/tcp/4747/p2p/12D3KooW..."


@dataclass(frozen=True, slots=True)
class Multiaddr:
    """The parts of an address. `peer` is None where no /p2p/ part is given."""

    family: str
    host: str
    port: int
    peer: PeerId | None

    def __str__(self) -> str:
        tail = f"/p2p/{self.peer}" if self.peer else ""
        return f"/{self.family}/{self.host}/tcp/{self.port}{tail}"


def parse(text: str, *, listen: bool = False) -> Multiaddr:
    """The parts of `text`. Raises ValueError, which says in words what is wrong.

    An address to listen on has no peer id, may have port 0 (any free port) and no name; an address to dial is the
    opposite in all three.
    """
    parts = text.split("/")
    if (
        len(text) > MULTIADDR_MAX
        or not (text.isascii() and text.isprintable())
        or "%" in text
        or parts[0]
        or len(parts) not in (5, 7)
    ):
        raise ValueError(f"expected an address like {EXAMPLE}")
    family, host, transport, port = parts[1:5]
    _check_host(family, host, listen=listen)
    if transport != "tcp":
        raise ValueError(f"the transport {transport!r} is not spoken here: only tcp is")
    if not port.isdigit() or len(port) > 5 or not (0 if listen else 1) <= int(port) <= 65535:
        raise ValueError(f"the port {port!r} is not a number from {0 if listen else 1} to 65535")
    peer = _peer(parts[5:])
    if listen and peer:
        raise ValueError("an address to listen on has no /p2p/ part")
    if not listen and peer is None:
        raise ValueError("it must end in /p2p/ and the peer's id, as `nexapod status` shows it on that machine")
    return Multiaddr(family, host, int(port), peer)


def _check_host(family: str, host: str, *, listen: bool) -> None:
    try:
        if family == "ip4":
            ipaddress.IPv4Address(host)
        elif family == "ip6":
            ipaddress.IPv6Address(host)
        elif family in ("dns", "dns4", "dns6") and not listen:
            if not _NAME.match(host):
                raise ValueError(f"{host!r} is not a host name")
        else:
            allowed = "ip4 or ip6" if listen else "ip4, ip6, dns, dns4 or dns6"
            raise ValueError(f"it begins with {family!r}: expected {allowed}")
    except ipaddress.AddressValueError as error:
        raise ValueError(f"{host!r} is not an {family} address: {error}") from None


def _peer(rest: list[str]) -> PeerId | None:
    if not rest:
        return None
    if rest[0] != "p2p":
        raise ValueError(f"after the port comes /p2p/ and a peer id, not {rest[0]!r}")
    try:
        key_of_peer_id(PeerId(rest[1]))
    except ValueError:
        raise ValueError(f"{rest[1]!r} is not the id of a peer: one begins with 12D3KooW") from None
    return PeerId(rest[1])
