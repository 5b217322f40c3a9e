"""The order of a panel for a shard (docs/protocol.md, Seats): anybody can check it with no network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from nexapod.protocol import limits
from nexapod.protocol.primitives import JobId, PeerId, key_of_peer_id


def order(job: JobId, shard: int, members: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """The members by their hash for this shard, each once: the first are its seats, the next their successors."""
    start = hashlib.sha256(b"nexapod/seat\0" + job + shard.to_bytes(4, "big"))

    def rank(member: PeerId) -> tuple[bytes, bytes]:
        key = key_of_peer_id(member)
        hashed = start.copy()
        hashed.update(key)
        return hashed.digest(), key

    return tuple(sorted(dict.fromkeys(members), key=rank))


def first_holders(job: JobId, shard: int, members: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """The seats of epoch 0: at most `SEATS`, the leader first."""
    return order(job, shard, members)[: limits.SEATS]
