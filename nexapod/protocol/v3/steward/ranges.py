"""Two sets of ids compared by the digests of ranges: pure (docs/protocol-3.md, Reconcile).

Whoever receives ranges answers with what the other lacks, and with finer ranges where it cannot tell yet. Of n ids with
d differences that takes about log(n) answers and d ids.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nexapod.protocol.types import Digest, StatementId
from nexapod.protocol.v3.wire.messages import Range

LISTED_MAX: Final = 32
"""Ids of a range that are listed rather than divided."""
FAN_OUT: Final = 16
RANGES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Compared:
    """What one message of ranges comes to."""

    missing_there: tuple[StatementId, ...]
    missing_here: tuple[StatementId, ...]
    """Of what the other listed."""
    answers: tuple[tuple[bytes, tuple[Range, ...]], ...]
    """Ranges to send back, each list with where it starts."""

    @property
    def same(self) -> bool:
        return not (self.missing_there or self.missing_here or self.answers)


def digest(ids: Sequence[StatementId]) -> Digest:
    """Of sorted ids."""
    return Digest(hashlib.sha256(b"".join(ids)).digest())


def whole(ids: Sequence[StatementId]) -> tuple[Range, ...]:
    """Everything, in one range. `ids` are sorted, here as everywhere."""
    return (_range(ids, b""),)


def _range(ids: Sequence[StatementId], end: bytes) -> Range:
    return Range(end, len(ids), digest(ids), tuple(ids) if len(ids) <= LISTED_MAX else None)


def compare(ids: Sequence[StatementId], start: bytes, ranges: Sequence[Range]) -> Compared:
    """The other's ranges against these ids. Ranges that do not ascend are ignored."""
    there: list[StatementId] = []
    here: list[StatementId] = []
    answers: list[tuple[bytes, tuple[Range, ...]]] = []
    for theirs in ranges:
        if theirs.end and theirs.end <= start:
            break
        mine = between(ids, start, theirs.end)
        if digest(mine) != theirs.digest:
            if theirs.ids is not None:
                listed = frozenset(theirs.ids)
                there += [id for id in mine if id not in listed]
                lacking = [id for id in theirs.ids if _at(ids, id) is None]
                here += lacking
                if lacking:
                    answers += _answers(mine, start, theirs.end)
            else:
                answers += _answers(mine, start, theirs.end)
        if not theirs.end:
            break
        start = theirs.end
    return Compared(tuple(there), tuple(here), tuple(answers[:RANGES_MAX]))


def _answers(mine: Sequence[StatementId], start: bytes, end: bytes) -> list[tuple[bytes, tuple[Range, ...]]]:
    return [(start, tuple(divide(mine, end)))]


def divide(ids: Sequence[StatementId], end: bytes) -> list[Range]:
    """A range's ids as ranges that are listed, or at least smaller."""
    if len(ids) <= LISTED_MAX:
        return [_range(ids, end)]
    size = max(LISTED_MAX, -(-len(ids) // FAN_OUT))
    cuts = list(range(0, len(ids), size))
    ends = [bytes(ids[cut]) for cut in cuts[1:]] + [end]
    return [_range(ids[cut : cut + size], upto) for cut, upto in zip(cuts, ends, strict=True)]


def between(ids: Sequence[StatementId], start: bytes, end: bytes) -> Sequence[StatementId]:
    """Those from `start` to before `end`; an empty end is the very end."""
    low = bisect_left(ids, start)
    return ids[low : bisect_left(ids, end)] if end else ids[low:]


def _at(ids: Sequence[StatementId], id: StatementId) -> int | None:
    place = bisect_left(ids, id)
    return place if place < len(ids) and ids[place] == id else None
