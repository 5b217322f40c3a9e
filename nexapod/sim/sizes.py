"""Sizes of the protocol that a simulated world may have smaller, so that it meets their limits with little work.

A shard of 256 tasks makes worlds with several shards slow and rare, an hour without a quorum one that nobody waits for.
The core reads these where it uses them, so a world may have smaller ones for as long as it runs; what its messages may
hold stays as large as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis


@contextmanager
def sizes_of(shard_tasks: int, caretaker_ms: Millis) -> Iterator[None]:
    """Within, a shard has so many tasks, and a caretaker waits for so long. Not for two worlds at once."""
    usual = limits.SHARD_TASKS, limits.CARETAKER_MS
    _set(shard_tasks, caretaker_ms)
    try:
        yield
    finally:
        _set(*usual)


def _set(shard_tasks: int, caretaker_ms: Millis) -> None:
    """Final for everybody else."""
    setattr(limits, "SHARD_TASKS", shard_tasks)  # noqa: B010
    setattr(limits, "CARETAKER_MS", caretaker_ms)  # noqa: B010
