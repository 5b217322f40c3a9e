"""What an envelope is about, read before any signature is checked: what does not matter here costs none.

Nothing read here is believed: the signatures, and then the whole body, are checked before anything is done with it.
"""

from __future__ import annotations

from typing import Final

import msgpack

from nexapod.protocol.primitives import JobId
from nexapod.protocol.wire.statements import Kind, Statement, Unverified

OF_TASKS: Final[frozenset[Kind]] = frozenset(("commit", "reveal", "freeze", "verdict", "checkpoint"))
"""Kinds that are about tasks of one shard."""
OF_JOBS: Final[frozenset[Kind]] = frozenset(
    ("cancel", "placed", "settlement", "fault", "succession", "renewal", "admission", "beacon", "adoption")
)
"""Kinds that are about a job as a whole, or about who its seats are."""
CLOSING: Final[frozenset[Kind]] = frozenset(("cancel", "settlement"))
"""Kinds that end a job."""
OF_PEERS: Final[frozenset[Kind]] = frozenset(("profile", "offer"))
START_BYTES: Final = 64
"""A digest and an integer at the beginning of an array take no more, however they are written."""


def job_named(unverified: Unverified) -> JobId | None:
    """The job that the first field of a body names; None: it names none."""
    first = _start(unverified.raw, 1)
    return JobId(first[0]) if first and type(first[0]) is bytes and len(first[0]) == 32 else None


def place_named(unverified: Unverified) -> int:
    """The second field of a body about tasks: the shard, or a checkpoint's task. -1: it has none."""
    start = _start(unverified.raw, 2)
    return start[1] if len(start) == 2 and type(start[1]) is int else -1


def _start(raw: bytes, count: int) -> list[object]:
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=START_BYTES + 1)
    unpacker.feed(raw[:START_BYTES])
    try:
        fields = unpacker.read_array_header()
        return [unpacker.unpack() for _ in range(min(count, fields))]
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        return []


def is_contained(unverified: Unverified, known: Statement) -> bool:
    """Whether every signature is among those of a statement that was checked before."""
    return frozenset(signature for _, signature in unverified.signatures) <= frozenset(
        signature for _, signature in known.signatures
    )
