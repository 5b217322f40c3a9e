"""Sortition: who should go first for which task, with no coordination (docs/protocol.md, Tickets)."""

from __future__ import annotations

import hashlib

from nexapod.protocol.limits import BID_STEP_MS
from nexapod.protocol.types import Digest, JobId, Millis, PeerId, TaskId, key_of_peer_id

ONE = 1 << 64
"""Tickets are whole numbers in [0, ONE): integers, so that every machine orders them alike."""


def ticket(task: TaskId, peer: PeerId) -> int:
    """The first 64 bits of H(job, task, peer): smallest goes first."""
    digest = hashlib.sha256(
        b"nexapod/ticket\0" + task.job + task.index.to_bytes(4, "big") + key_of_peer_id(peer)
    ).digest()
    return int.from_bytes(digest[:8], "big")


def rank(ticket_value: int, eligible: int) -> int:
    """u * N: about how many of N eligible peers hold a smaller ticket for the task."""
    return ticket_value * eligible // ONE


def bid_delay(ticket_value: int, eligible: int, wanted: int) -> Millis:
    """How long to wait before bidding: d * max(0, u*N - R), in milliseconds."""
    return max(0, BID_STEP_MS * (ticket_value * eligible - wanted * ONE) // ONE)


def shard_key(job: JobId, shard: int) -> int:
    """Where a shard stands in the XOR key space of peers."""
    return int.from_bytes(hashlib.sha256(b"nexapod/shard\0" + job + shard.to_bytes(4, "big")).digest(), "big")


def task_seed(task: TaskId) -> Digest:
    """The seed that every replica of a task is given."""
    return Digest(hashlib.sha256(b"nexapod/seed\0" + task.job + task.index.to_bytes(4, "big")).digest())
