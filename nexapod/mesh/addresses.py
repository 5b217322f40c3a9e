"""Multiaddrs as text: which can be dialled over TCP, whose they are, and which of ours to show to others.

Pure, but for reading the machine's interface addresses.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import psutil

from nexapod.mesh.library import Multiaddr
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import PeerId, key_of_peer_id

_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
_ADDR_CHARS_MAX = 256
_REMEMBERED: Final = 4096
"""Addresses: the same few come with every message to a peer, and taking one apart takes the library 0.1 ms."""
_INTERFACES: Final = Path("/sys/class/net")


@lru_cache(maxsize=_REMEMBERED)
def parse_dialable(text: str) -> tuple[str, PeerId | None]:
    """Split a multiaddr into its TCP part and its peer id, if it has one.

    Raises ValueError for anything that is not /(ip4|ip6|dns...)/<host>/tcp/<port>[/p2p/<Ed25519 peer id>].
    """
    if len(text) > _ADDR_CHARS_MAX or not text.isprintable():
        raise ValueError(f"not an address: {text[:_ADDR_CHARS_MAX]!r}")
    try:
        parts = [(part.name, value) for part, value in Multiaddr(text).items()]
    except Exception as error:  # the library raises many kinds, and the text may come from anyone
        raise ValueError(f"not a multiaddr: {text!r}") from error
    names = [name for name, _ in parts]
    if names not in ([host, "tcp", *tail] for host in _HOSTS for tail in ([], ["p2p"])):
        raise ValueError(f"not a TCP address: {text!r}")
    port = int(str(parts[1][1]))
    if not 0 < port < 65536:
        raise ValueError(f"no port to dial: {text!r}")
    peer = None
    if len(parts) == 3:
        peer = PeerId(str(parts[2][1]))
        key_of_peer_id(peer)
    if names[0] in ("ip4", "ip6") and ipaddress.ip_address(str(parts[0][1])).is_unspecified:
        raise ValueError(f"nobody can dial {text!r}")
    return f"/{names[0]}/{parts[0][1]}/tcp/{port}", peer


def parse_known(text: str) -> tuple[PeerId, str]:
    """Split a configured address into peer id and TCP part. Raises LocalError saying what is wrong with it."""
    try:
        addr, peer = parse_dialable(text)
    except ValueError as error:
        raise LocalError(f"{error}; expected /ip4/<address>/tcp/<port>/p2p/<peer id>") from error
    if peer is None:
        raise LocalError(f"the address {text!r} names no peer: add /p2p/<peer id>")
    return peer, addr


def dialable(peer: PeerId, addrs: Iterable[str]) -> list[str]:
    """The TCP parts of those addresses that can be dialled and are not another peer's, without repetition."""
    found: dict[str, None] = {}
    for text in addrs:
        try:
            addr, owner = parse_dialable(text)
        except ValueError:
            continue  # what others say of a peer may be anything; only what is usable counts
        if owner in (None, peer):
            found[addr] = None
    return list(found)


def same_host(one: str, other: str) -> bool:
    """Whether two multiaddrs name the same IP address, whatever the port; a name is no address."""
    hosts = [_host(addr) for addr in (one, other)]
    return hosts[0] is not None and hosts[0] == hosts[1]


def _host(addr: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    parts = addr.split("/")
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return None
    try:
        host = ipaddress.ip_address(parts[2].partition("%")[0])
    except ValueError:
        return None
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return mapped or host


def parse_listen(texts: Sequence[str]) -> list[tuple[str, int]]:
    """(host, port) of each listen address. Raises LocalError; a wildcard host and port 0 are allowed."""
    found = []
    for text in texts:
        try:
            names = [(part.name, str(value)) for part, value in Multiaddr(text).items()]
        except Exception as error:  # see parse_dialable
            raise LocalError(f"not a multiaddr to listen on: {text!r}") from error
        if [name for name, _ in names] not in (["ip4", "tcp"], ["ip6", "tcp"]):
            raise LocalError(f"cannot listen on {text!r}: expected /ip4/<address>/tcp/<port>")
        found.append((names[0][1], int(names[1][1])))
    return found


def check_free(listen: Sequence[tuple[str, int]]) -> None:
    """Raise LocalError when a port is taken: libp2p listens with SO_REUSEPORT and would silently share it."""
    for host, port in listen:
        if port == 0:
            continue
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise LocalError(
                    f"cannot listen on {host} port {port}: {error.strerror}; is another daemon running?"
                ) from error


def by_reach(hosts: Mapping[str, str], bridges: Container[str]) -> list[str]:
    """Addresses in the order in which another machine is likely to reach them, without link-local ones.

    `hosts`: address to interface. Those of bridges come behind the others: docker0's is the same on every machine, and
    leads nowhere from outside. Loopback is last.
    """
    usable = [host for host in hosts if "%" not in host and not ipaddress.ip_address(host).is_link_local]
    return sorted(usable, key=lambda host: (ipaddress.ip_address(host).is_loopback, hosts[host] in bridges, host))


def _interface_hosts(family: int) -> list[str]:
    """Addresses of this machine's interfaces."""
    found = psutil.net_if_addrs()
    hosts = {entry.address: name for name, entries in found.items() for entry in entries if entry.family == family}
    return by_reach(hosts, {name for name in found if (_INTERFACES / name / "bridge").is_dir()})


def expand(listening: Iterable[str]) -> list[str]:
    """Replace wildcard hosts by the addresses of this machine's interfaces; loopback only if nothing else."""
    found: dict[str, None] = {}
    for text in listening:
        _, name, host, *rest = text.split("/")
        tail = "/".join(rest)
        if not ipaddress.ip_address(host).is_unspecified:
            found[text] = None
            continue
        hosts = _interface_hosts(socket.AF_INET if name == "ip4" else socket.AF_INET6)
        outside = [host for host in hosts if not ipaddress.ip_address(host).is_loopback]
        found.update({f"/{name}/{host}/{tail}": None for host in outside or hosts})
    return list(found)
