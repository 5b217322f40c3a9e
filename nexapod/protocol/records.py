"""What a node asks to be kept: the only thing that survives a crash."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One value under (kind, key). `value` None deletes it. `kind` is one of a few short names of node.py's."""

    kind: str
    key: bytes
    value: bytes | None
