"""Sizes of the protocol that a simulated world may have smaller, so that it meets their limits with little work.

A shard of 256 tasks makes worlds with several shards slow and rare. The core reads the size of a shard where it uses
it, so a world may have smaller ones for as long as it runs; what its messages may hold stays as large as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nexapod.protocol import limits


@contextmanager
def shards_of(tasks: int) -> Iterator[None]:
    """Within, a shard has so many tasks. Not for two worlds at once."""
    usual = limits.SHARD_TASKS
    _set(tasks)
    try:
        yield
    finally:
        _set(usual)


def _set(tasks: int) -> None:
    """Final for everybody else."""
    setattr(limits, "SHARD_TASKS", tasks)  # noqa: B010
