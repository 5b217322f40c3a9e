"""When do two results agree? One rule for now: `exact`, the same output root."""

from __future__ import annotations

from nexapod.protocol.types import Digest


def exact(one: Digest, other: Digest) -> bool:
    """The same paths, sizes and bytes, and the same way of ending (both are in the root)."""
    return one == other
