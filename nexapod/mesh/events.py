"""What the mesh tells the daemon, and the names of its channels and topics. Values only.

Where the core has the same event, it is the core's: PeerUp with the first usable connection, PeerDown with the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from nexapod.protocol.events import PeerDown as PeerDown
from nexapod.protocol.events import PeerUp as PeerUp
from nexapod.protocol.events import Topic as Topic
from nexapod.protocol.types import PeerId

Channel: TypeAlias = Literal["control", "bulk"]
CHANNELS: Final[tuple[Channel, ...]] = ("control", "bulk")
TOPICS: Final[tuple[Topic, ...]] = ("profile", "job")


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
class Gossip:
    """One gossip message, validated; `peer` is who published it (its signature was checked)."""

    topic: Topic
    peer: PeerId
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


MeshEvent: TypeAlias = PeerUp | PeerDown | Unreachable | Frame | Gossip | Misbehaved | Foreign


def channel_protocol(network: str, channel: Channel) -> str:
    """The libp2p protocol id of a channel."""
    return f"/nexapod/{network}/{channel}/1"


def topic_name(network: str, topic: Topic) -> str:
    """The gossip topic of a network."""
    return f"nexapod/{network}/{topic}/1"
