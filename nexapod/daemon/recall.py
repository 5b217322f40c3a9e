"""Lets the core read back what it has saved, in the middle of a call, without the store's own thread.

What the present batch of calls has saved is not committed yet, and is laid over what is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nexapod.protocol.records import Record


class Recall:
    """The records of this node, committed or about to be."""

    def __init__(self, read: Callable[[str, bytes], list[Record]]) -> None:
        """`read`: the committed records of a kind whose keys begin so; it may block for as long as a disk takes."""
        self._read = read
        self._uncommitted: dict[tuple[str, bytes], Record] = {}

    def saved(self, records: Iterable[Record]) -> None:
        """The core has asked for these to be kept."""
        self._uncommitted.update({(record.kind, record.key): record for record in records})

    def committed(self) -> None:
        """All of them are on disk."""
        self._uncommitted.clear()

    def records(self, kind: str, prefix: bytes) -> list[Record]:
        """Those of a kind whose keys begin so, by key: node/archive.py's ReadRecords."""
        found = {record.key: record for record in self._read(kind, prefix)}
        for record in self._uncommitted.values():
            if record.kind == kind and record.key.startswith(prefix):
                found[record.key] = record
        return [found[key] for key in sorted(found) if found[key].value is not None]
