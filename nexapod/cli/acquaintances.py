"""Whom this machine's user knows, for commands that need no daemon: the peer of the home folder, configured friends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nexapod.cli.console import note
from nexapod.cli.safe import safe
from nexapod.config import ConfigError, Flags, load
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import PeerId
from nexapod.store.home import Home


def known_here(home: Path, environ: Mapping[str, str]) -> frozenset[PeerId]:
    """Its own peer, and the friends that config.toml names. What cannot be read is said, and counts for nobody."""
    known: set[PeerId] = set()
    try:
        known.update(load(Flags(home=home), environ).submit.friends)
    except ConfigError as error:
        note(f"the friends of config.toml are not known: {safe(str(error).splitlines()[0])}")
    own = _own_peer(Home(home).identity)
    return frozenset(known if own is None else {*known, own})


def _own_peer(path: Path) -> PeerId | None:
    from nexapod.mesh.identity import load_or_create, peer_id

    try:
        return peer_id(load_or_create(path)) if path.is_file() else None
    except (LocalError, OSError) as error:
        note(f"this home's own peer is not known: {safe(error)}")
        return None
