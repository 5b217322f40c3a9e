"""bootstrap_peers.toml: the networks by name, each with the addresses where a new peer finds its first ones.

One file is shipped with the package; one in the configuration folder replaces and adds networks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from nexapod.config.document import Document, Table
from nexapod.config.multiaddr import parse

if TYPE_CHECKING:
    # For its name alone: every command loads this module.
    from nexapod.protocol.types import Grouping

FILE_NAME: Final = "bootstrap_peers.toml"
BOOTSTRAP_MAX: Final = 64
PUBLIC: Final = "main"
GROUPINGS: Final = ("peer", "network")
NETWORK_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
NETWORK_NAME_RULE: Final = "small letters, digits, '.', '_' and '-', at most 63 of them"


@dataclass(frozen=True, slots=True)
class Network:
    """A mesh by name."""

    name: str
    description: str
    bootstrap: tuple[str, ...]
    grouping: Grouping
    """Who counts as one operator: each peer, where the network's owner vouches for all, or each block of addresses."""


def default_grouping(network: str) -> Grouping:
    """Of a network whose entry does not say: nobody vouches for who joins the public one."""
    return "network" if network == PUBLIC else "peer"


def shipped_file() -> Path:
    """The file of the installed package, or that of the checkout that it is run from."""
    package = Path(__file__).resolve().parent.parent
    inside = package / FILE_NAME
    return inside if inside.is_file() else package.parent / FILE_NAME


def read(path: Path) -> dict[str, Network]:
    """The networks of one file. Raises ConfigError, naming file, key and what is allowed."""
    document = Document.open(path)
    root = document.root
    table = root.table("networks")
    found = {name: _network(table, name) for name in table.data}
    root.end()
    document.raise_problems()
    return found


def read_all(config_folder: Path) -> dict[str, Network]:
    """The shipped networks, with those of the user's own file over them. Raises ConfigError."""
    networks = read(shipped_file())
    own = config_folder / FILE_NAME
    return networks | read(own) if own.exists() else networks


def _network(parent: Table, name: str) -> Network:
    table = parent.table(name)
    if not NETWORK_NAME.match(name):
        table.problem("", f"it cannot be a network's name: {NETWORK_NAME_RULE}")
    network = Network(
        name,
        table.text("description", bytes_max=1024),
        addresses(table, "bootstrap"),
        cast("Grouping", table.choice("grouping", GROUPINGS, default_grouping(name))),
    )
    table.end()
    return network


def addresses(table: Table, key: str, *, listen: bool = False) -> tuple[str, ...]:
    """A list of multiaddrs at a key; those that are wrong are noted as problems."""
    texts = table.strings(key, count_max=BOOTSTRAP_MAX)
    for text in texts:
        try:
            parse(text, listen=listen)
        except ValueError as error:
            table.problem(key, f"{text!r}: {error}")
    return texts
