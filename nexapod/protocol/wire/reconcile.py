"""Range-based reconciliation of two sets of ids: the pure rule behind the message Reconcile (docs/protocol.md, 7).

One side describes its set by ranges: each with a count and a digest, or with its ids when they are few. The other side
skips the ranges that it has alike, compares those that come with ids, and describes the rest more finely: it lists a
range of few ids and splits any other. Equal sets cost one message; a difference costs a few ranges for each level, so
bytes grow with the differences and with the logarithm of the sets.

Every answer is finer than its question at its front, so an exchange over sets that do not change ends. An answer holds
at most RANGES_MAX ranges, and fits the bytes that its sender allows: what would not fit stays one coarse range at the
end, for the next turn.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import Digest, StatementId
from nexapod.protocol.wire.messages import Range

RANGES_MAX: Final = 64
"""As the schema of Reconcile has it."""
LISTED_MAX: Final = 24
"""A range of at most so many ids is listed; the schema allows 64."""
FANOUT: Final = 16
"""Ranges that one range is split into: a level costs about 700 bytes, and 10,000 ids have three of them."""
RANGE_BYTES: Final = 80
"""More than a range takes on the wire without its ids (end, count, digest)."""
ID_BYTES: Final = 34
FRONT_BYTES: Final = (FANOUT + 1) * RANGE_BYTES + LISTED_MAX * ID_BYTES
"""What every answer may take, whatever its limit: less would not be finer than the question."""

ANSWER_BYTES_MAX: Final = RANGES_MAX * (RANGE_BYTES + LISTED_MAX * ID_BYTES)

assert FANOUT + 1 <= RANGES_MAX, "the first range that differs can always be split"


@dataclass(frozen=True, slots=True)
class Step:
    """What one question leads to. `ranges` empty: there is nothing to answer."""

    start: bytes
    ranges: tuple[Range, ...]
    give: tuple[StatementId, ...]
    """Here, and not there: sorted."""
    want: tuple[StatementId, ...]
    """There, and not here: sorted."""


def digest_of(ids: Iterable[bytes]) -> Digest:
    """H over sorted ids."""
    return Digest(hashlib.sha256(b"".join(ids)).digest())


def opening(ids: Sequence[StatementId]) -> tuple[Range, ...]:
    """The first question: one range of everything. `ids` sorted, each once."""
    return (_described(ids, b""),)


def answer(
    ids: Sequence[StatementId],
    start: bytes,
    ranges: Sequence[Range],
    bytes_max: int = ANSWER_BYTES_MAX,
    *,
    ask: bool = False,
) -> Step:
    """What to say to somebody's ranges. `ids`: the own set, sorted, each once.

    `bytes_max` bounds the answer's ranges on the wire; never below FRONT_BYTES. `ask`: the answer's ranges also ask for
    what is wanted; else that is to be asked for by other means. Raises PeerError when the ranges do not ascend or list
    ids that do not lie in them.
    """
    _check(start, ranges)
    return _Answer(ids, start, bytes_max, ask=ask).of(ranges)


def _check(start: bytes, ranges: Sequence[Range]) -> None:
    at = start
    for place, asked in enumerate(ranges):
        if asked.end <= at and not (asked.end == b"" and place == len(ranges) - 1):
            raise PeerError("bad-ranges", "ranges must ascend")
        _check_listed(at, asked.end, asked.ids or ())
        at = asked.end


def _check_listed(low: bytes, end: bytes, listed: Sequence[StatementId]) -> None:
    if any(a >= b for a, b in pairwise(listed)):
        raise PeerError("bad-ranges", "listed ids must be sorted, each once")
    if listed and (listed[0] < low or (end != b"" and listed[-1] >= end)):
        raise PeerError("bad-ranges", "a listed id lies outside its range")


def _described(ids: Sequence[StatementId], end: bytes) -> Range:
    listed = tuple(ids) if len(ids) <= LISTED_MAX else None
    return Range(end, len(ids), digest_of(ids), listed)


def _finer(ids: Sequence[StatementId], end: bytes) -> Iterator[Range]:
    """A listed range, or the FANOUT ranges of about equal size that make it up."""
    if len(ids) <= LISTED_MAX:
        yield _described(ids, end)
        return
    cuts = [len(ids) * part // FANOUT for part in range(FANOUT + 1)]
    for low, high in pairwise(cuts):
        upper = end if high == len(ids) else between(ids[high - 1], ids[high])
        # Unlisted even when few: a side that knows the same needs no list.
        yield Range(upper, high - low, digest_of(ids[low:high]), None)


def between(low: bytes, high: bytes) -> bytes:
    """The shortest prefix of `high` that is greater than `low`; low < high, neither a prefix of the other."""
    same = next(place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return high[: same + 1]


def _cost(described: Range) -> int:
    return RANGE_BYTES + ID_BYTES * len(described.ids or ())


class _Answer:
    """One answer as it grows. Ranges that need no more talk are passed over: before the first that differs they are
    left out, between two that differ they are told as the other has them, so that it passes over them too."""

    def __init__(self, ids: Sequence[StatementId], start: bytes, bytes_max: int, *, ask: bool) -> None:
        self._ids = ids
        self._ask = ask
        self._at = start
        self._start = start
        self._left = max(bytes_max, FRONT_BYTES)
        self._said: list[Range] = []
        self._passed: list[StatementId] = []
        """The ids that the other has in the ranges passed over since the last that was said."""
        self._give: list[StatementId] = []
        self._want: list[StatementId] = []

    def of(self, ranges: Sequence[Range]) -> Step:
        for asked in ranges:
            mine = self._until(asked.end)
            if asked.ids is not None or asked.count == 0:
                fits = self._compare(mine, asked.ids or (), asked.end)
            elif (asked.count, asked.digest) == (len(mine), digest_of(mine)):
                self._passed += mine
                fits = True
            else:
                fits = self._say_all(list(_finer(mine, asked.end)))
            if not fits:
                self._leave_coarse(ranges[-1].end)
                break
            self._at = asked.end
        return Step(self._start, tuple(self._said), tuple(self._give), tuple(self._want))

    def _until(self, end: bytes) -> Sequence[StatementId]:
        """The own ids from where the answer stands to before `end`."""
        upper = len(self._ids) if end == b"" else bisect_left(self._ids, end)
        return self._ids[bisect_left(self._ids, self._at) : upper]

    def _compare(self, mine: Sequence[StatementId], theirs: Sequence[StatementId], end: bytes) -> bool:
        """False when what is wanted is to be asked for, and that does not fit."""
        here, there = frozenset(mine), frozenset(theirs)
        wanted = [id for id in theirs if id not in here]
        if self._ask and wanted:
            # Listing no more than both have asks for the others, and for no answer beyond them.
            both = tuple(id for id in theirs if id in here)
            if not self._say_all([Range(end, len(both), digest_of(both), both)]):
                return False
        else:
            self._passed += theirs
        self._give += [id for id in mine if id not in there]
        self._want += wanted
        return True

    def _say_all(self, finer: Sequence[Range]) -> bool:
        """False when they would not fit: then nothing is said of them yet."""
        # With room for what was passed over before it, and for a coarse rest after it.
        ranges, size = len(self._said) + len(finer) + 2, sum(map(_cost, finer)) + 2 * RANGE_BYTES
        if self._said and (ranges > RANGES_MAX or size > self._left):
            return False
        self._bridge()
        for described in finer:
            self._say(described)
        return True

    def _bridge(self) -> None:
        """Tell what was passed over as the other has it, if something was said before it."""
        if not self._said:
            self._start = self._at
        elif self._said[-1].end != self._at:
            self._say(Range(self._at, len(self._passed), digest_of(self._passed), None))
        self._passed = []

    def _leave_coarse(self, end: bytes) -> None:
        """No room is left: the rest of the question is one range, for the next turn."""
        self._bridge()
        mine = self._until(end)
        self._say(Range(end, len(mine), digest_of(mine), None))

    def _say(self, described: Range) -> None:
        self._said.append(described)
        self._left -= _cost(described)
