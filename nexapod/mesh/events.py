"""What the mesh tells the daemon, and the names of its channels. Values only.

PeerUp comes with the first usable connection, PeerDown with the end of the last. Where the core has the same event, it
is the core's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from nexapod.protocol.events import PeerDown as PeerDown
from nexapod.protocol.events import PeerUp as PeerUp
from nexapod.protocol.primitives import PeerId

Channel: TypeAlias = Literal["control", "bulk"]
CHANNELS: Final[tuple[Channel, ...]] = ("control", "bulk")
VERSION: Final = 3
"""Of the protocol that the channels carry: peers of another one share none with this."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A linked peer that had dialled this one was dialled back, and answered with its own key; `addr`: of its link."""

    peer: PeerId
    addr: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A peer could not be dialled: the `frames` queued for it were dropped."""

    peer: PeerId
    frames: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the control channel."""

    peer: PeerId
    channel: Channel
    data: bytes


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """A peer broke the framing of a link; its stream was reset. `rule` is a short, fixed name."""

    peer: PeerId
    rule: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """A peer of another network answered and was disconnected; `network` is its name, escaped ("" if none)."""

    peer: PeerId
    network: str


MeshEvent: TypeAlias = PeerUp | PeerDown | Reached | Unreachable | Frame | Misbehaved | Foreign


def channel_protocol(network: str, channel: Channel) -> str:
    """The libp2p protocol id of a channel."""
    return f"/nexapod/{network}/{channel}/{VERSION}"
