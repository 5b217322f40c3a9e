"""Looks at how this peer can be met: the addresses it listens on, who holds them, and whom it dials first."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psutil
import trio

from nexapod.config import Config
from nexapod.config.multiaddr import Multiaddr, parse
from nexapod.config.settings import loopback_address
from nexapod.daemon.doctor.check import Finding

CONNECT_S: Final = 3.0
BOOTSTRAP_TRIED_MAX: Final = 16
_NO_BOOTSTRAP: Final = "Name a running daemon's address with --bootstrap, NEXAPOD_BOOTSTRAP or in config.toml."


@dataclass(frozen=True, slots=True)
class Running:
    """What the daemon of this home says, when one runs."""

    pid: int
    listen: tuple[str, ...]
    connected: int
    peers: Sequence[Mapping[str, Any]] = field(default=())


def port(text: str, running: Running | None) -> Finding:
    """Whether an address can be listened on, or is by the daemon that runs. Blocks for an instant."""
    addr = parse_own(text)
    if running:
        return Finding("ok", f"{addr.host} port {addr.port}: held by the daemon of this home (process {running.pid})")
    return bindable(addr.host, addr.port, "choose another with --listen")


def api_port(config: Config, running: Running | None) -> Finding:
    """The API's TCP address, when one is configured."""
    if config.api_tcp is None:
        return Finding("ok", "on the unix socket only")
    host, number = loopback_address(config.api_tcp)
    if running:
        return Finding("ok", f"{config.api_tcp}: left to the daemon of this home (process {running.pid})")
    return bindable(host, number, "choose another with --api-tcp")


def bindable(host: str, number: int, otherwise: str) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = f"{host} port {number or '(any free one)'}"
    try:
        with socket.socket(family, socket.SOCK_STREAM) as plug:
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            plug.bind((host, number))
    except OSError as error:
        return Finding("failed", f"{where}: {_refusal(error, number)}", _port_remedy(error, number, otherwise))
    return Finding("ok", f"{where}: free")


async def bootstrap(addresses: Sequence[str], running: Running | None) -> Finding:
    """Whether anyone who is dialled first answers. A plain TCP connection, closed at once."""
    if not addresses and running and running.connected:
        return Finding("ok", f"none is configured; the daemon of this home is connected to {running.connected} peers")
    if not addresses:
        return Finding("warning", "no bootstrap peer is known: this peer waits until others dial it", _NO_BOOTSTRAP)
    said: dict[str, str] = {}
    async with trio.open_nursery() as nursery:
        for text in addresses[:BOOTSTRAP_TRIED_MAX]:
            nursery.start_soon(_dial, parse(text), said)
    good = [where for where, problem in said.items() if not problem]
    bad = [f"{where}: {problem}" for where, problem in said.items() if problem]
    if not good:
        remedy = "Check this machine's network, and that a daemon runs there."
        return Finding("warning", f"none of {len(said)} answers ({'; '.join(bad[:3])})", remedy)
    return Finding("ok", f"{len(good)} of {len(said)} answer" + (f"; silent: {'; '.join(bad[:3])}" if bad else ""))


def distinct_ports(listen: Sequence[str]) -> list[str]:
    """One address for each port: a daemon names each of its interfaces."""
    return list({parse_own(text).port: text for text in reversed(listen)}.values())[::-1]


def reach(listen: Sequence[str], running: Running | None) -> Finding:
    """Who could dial this peer, going by its addresses alone."""
    hosts = _hosts([parse_own(own) for own in running.listen] if running else [parse(a, listen=True) for a in listen])
    linked = f"; {running.connected} peers are connected" if running else ""
    shown = ", ".join(str(host) for host in hosts[:3])
    if any(host.is_global for host in hosts):
        return Finding("ok", f"{shown}: a public address, where others can dial it unless a firewall forbids{linked}")
    if any(not host.is_loopback for host in hosts):
        said = f"{shown}: private addresses, which only peers of the same network can dial; others it dials itself"
        return Finding("ok", f"{said}{linked}")
    remedy = "Listen on an address of the network: --listen /ip4/0.0.0.0/tcp/4747."
    return Finding("warning", f"{shown or 'no address'}: nobody but this machine can dial it{linked}", remedy)


def parse_own(text: str) -> Multiaddr:
    """An address that a daemon says it listens on: with or without its peer id."""
    return parse(text.partition("/p2p/")[0], listen=True)


async def _dial(addr: Multiaddr, said: dict[str, str]) -> None:
    where = f"{addr.host}:{addr.port}"
    said[where] = f"no answer within {CONNECT_S:.0f} s"
    with trio.move_on_after(CONNECT_S):
        try:
            stream = await trio.open_tcp_stream(addr.host, addr.port)
        except OSError as error:
            said[where] = _root(error)
            return
        said[where] = ""
        await stream.aclose()


def _root(error: BaseException) -> str:
    """trio wraps what each address of a name said; the first says enough."""
    cause = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return str(getattr(cause, "strerror", None) or cause)


def _hosts(addrs: Sequence[Multiaddr]) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses meant, wildcards as those of this machine's interfaces; public first, loopback last."""
    found = set()
    for addr in addrs:
        host = ipaddress.ip_address(addr.host)
        found |= set(_interfaces(host.version)) if host.is_unspecified else {host}
    return sorted(found, key=lambda host: (host.is_loopback, not host.is_global, host.version, int(host)))


def _interfaces(version: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    entries = [entry for card in psutil.net_if_addrs().values() for entry in card if entry.family == family]
    hosts = [ipaddress.ip_address(entry.address) for entry in entries if "%" not in entry.address]
    return [host for host in hosts if not host.is_link_local]


def _refusal(error: OSError, number: int) -> str:
    if error.errno != errno.EADDRINUSE:
        return error.strerror or str(error)
    holder = _holder(number)
    return f"held by {holder}" if holder else "held by another program"


def _holder(number: int) -> str:
    """The program that listens there, where the system tells."""
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        pids = [c.pid for c in listening if c.laddr and c.laddr.port == number and c.pid]
        return f"{psutil.Process(pids[0]).name()} (process {pids[0]})" if pids else ""
    except psutil.Error:
        return ""  # another user's: the port is taken all the same


def _port_remedy(error: OSError, number: int, otherwise: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Stop that program, or {otherwise}."
    if error.errno == errno.EACCES:
        return f"Ports below 1024 are the system's ({number}): {otherwise}."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"This machine has no such address: {otherwise}."
    return f"Check the network settings, or {otherwise}."
