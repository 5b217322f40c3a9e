"""The ids of peers that a user names on the command line."""

from __future__ import annotations

from nexapod.cli.errors import Refused
from nexapod.cli.safe import safe
from nexapod.protocol.primitives import PeerId, key_of_peer_id


class NoPeer(Refused):
    """A peer's id begins with 12D3KooW: `nexapod status` shows a daemon's own, `nexapod peers` those that it knows."""


def peer_of(text: str) -> PeerId:
    """Raises NoPeer."""
    try:
        key_of_peer_id(PeerId(text))
    except ValueError:
        raise NoPeer(f"{safe(text)!r} is not the id of a peer") from None
    return PeerId(text)
