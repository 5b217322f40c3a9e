"""Cutting a file into one piece a task: whole records, in their order, each in exactly one piece. Constant memory.

The file is read once to be hashed and cut, or a second time where the number of its records must be known first. What
a record is, is in records.py. A piece is a range of the file; what precedes every piece is its header (types.Split).
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

from nexapod.cli.hashing import ChunkHash, chunk_hash, chunks
from nexapod.cli.records import BadRecord, By, SplitError, beginning, scan
from nexapod.protocol.limits import CHUNK_BYTES, SHARD_TASKS, SPLIT_ENTRY_BYTES, TASKS_MAX
from nexapod.protocol.primitives import BlobRef

PIECE_BYTES_MAX: Final = 2**32 - 1
PIECE: Final = struct.Struct(">QI")
"""How types.Split has it: u64 offset, u32 length."""
assert PIECE.size == SPLIT_ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Cut:
    """How a file is to be cut: what a record is, and exactly one of the other ways to say how many make a piece."""

    by: By
    size: int = 0
    """Records a piece."""
    bytes_max: int = 0
    """As many whole records as fit, and at least one."""
    pieces: int = 0
    """So many, of equal numbers of records; fewer if there are fewer records."""
    header: int = 0
    """Lines (CSV: records) at the beginning that precede every piece."""


@dataclass(frozen=True, slots=True)
class Split:
    """A file that has been cut."""

    ref: BlobRef
    index: bytes
    header: int
    """Bytes."""
    records: int

    @property
    def pieces(self) -> int:
        return len(self.index) // PIECE.size


def split_file(path: Path, cut: Cut, told: Callable[[int], None] = lambda count: None) -> Split:
    """`told` hears of each block read. Raises SplitError, OSError."""
    with path.open("rb") as file, chunk_hash() as hashing:
        before = _state(os.fstat(file.fileno()))
        try:
            taken = _cut(file, cut, hashing, told)
        except BadRecord as error:
            raise SplitError(f"line {_line_at(file, error.offset)}: {error}") from None
        if _state(path.stat()) != before or taken.ref.size != before[1]:
            raise SplitError("it changed while it was being read: try again when nothing writes to it any more")
    return taken


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_dev


def _line_at(file: IO[bytes], offset: int) -> int:
    """The number of the line that holds a byte."""
    file.seek(0)
    line, left = 1, offset
    while left and (data := file.read(min(left, CHUNK_BYTES))):
        line += data.count(b"\n")
        left -= len(data)
    return line


def _cut(file: IO[bytes], cut: Cut, hashing: ChunkHash, told: Callable[[int], None]) -> Split:
    def take(block: bytes) -> None:
        hashing.add(block)
        told(len(block))

    heads: array[int] = array("Q")
    grouping = _grouping(cut)
    reading = _Reading(file, cut)
    for starts in reading.records(take):
        grouping.take(starts, heads)
        _check_count(heads)
    if cut.pieces:
        second: _Grouping = _Evenly(min(cut.pieces, reading.count), reading.count)
        for starts in _Reading(file, cut).records(lambda chunk: None):
            second.take(starts, heads)
        grouping = second
    grouping.end(reading.size, heads)
    _check_count(heads)
    if not heads:
        raise SplitError("it holds no record")
    return Split(hashing.ref, _index(heads, reading.size), reading.header, reading.count)


def _check_count(heads: array[int]) -> None:
    if len(heads) > TASKS_MAX:
        raise SplitError(
            f"it gives more than {TASKS_MAX} tasks: give each more records with `size`, `bytes` or `pieces`"
        )


def _index(heads: array[int], end: int) -> bytes:
    index = bytearray(len(heads) * PIECE.size)
    stops = heads[1:]
    stops.append(end)
    for number, (start, stop) in enumerate(zip(heads, stops, strict=True)):
        if stop - start > PIECE_BYTES_MAX:
            raise BadRecord(
                start, "the piece that begins here is larger than 4 GiB: cut it smaller, if it has more records"
            )
        PIECE.pack_into(index, number * PIECE.size, start, stop - start)
    return bytes(index)


class _Reading:
    """One pass over a file: its size, header and number of records are known afterwards."""

    def __init__(self, file: IO[bytes], cut: Cut) -> None:
        self._file = file
        self._cut = cut
        self.size = self.header = self.count = 0

    def records(self, told: Callable[[bytes], None]) -> Iterator[list[int]]:
        """Where records begin, block by block. `told` hears of each chunk. Raises SplitError, OSError."""
        self._file.seek(0)
        blocks = chunks(self._file)
        first = next(blocks, b"")
        if not first:
            raise SplitError("it is empty")
        told(first)
        self.size = len(first)
        begin = beginning(first, self._cut.by, self._cut.header, whole=len(first) < CHUNK_BYTES)
        self.header = begin.header
        found = scan(self._cut.by, begin.start)
        yield self._counted(found.feed(first[begin.start :]))
        for block in blocks:
            told(block)
            self.size += len(block)
            yield self._counted(found.feed(block))
        yield self._counted(found.end())

    def _counted(self, starts: list[int]) -> list[int]:
        self.count += len(starts)
        return starts


# --- how records are grouped ---------------------------------------------------------------------------------------
class _Grouping(Protocol):
    """Appends the beginnings of pieces to `heads`."""

    def take(self, starts: list[int], heads: array[int]) -> None: ...

    def end(self, size: int, heads: array[int]) -> None: ...


def _grouping(cut: Cut) -> _Grouping:
    assert sum(map(bool, (cut.size, cut.bytes_max, cut.pieces))) == 1
    if cut.bytes_max:
        return _Within(cut.bytes_max)
    # Where records are to be counted first, none begins a piece yet.
    return _Every(cut.size) if cut.size else _Evenly(0, 0)


class _Every:
    """So many records a piece."""

    def __init__(self, records: int) -> None:
        self._records = records
        self._skip = 0

    def take(self, starts: list[int], heads: array[int]) -> None:
        chosen = starts[self._skip :: self._records]
        heads.extend(chosen)
        self._skip += len(chosen) * self._records - len(starts)

    def end(self, size: int, heads: array[int]) -> None:
        pass


class _Within:
    """As many records as fit into so many bytes, and at least one."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._piece = self._last = -1
        """Where the piece and the last record of it begin."""

    def take(self, starts: list[int], heads: array[int]) -> None:
        if self._piece < 0 and starts:
            self._piece = self._last = starts[0]
            heads.append(starts[0])
        piece, last, bytes_max = self._piece, self._last, self._bytes_max
        for start in starts:
            if start - piece > bytes_max:
                if last != piece:
                    heads.append(last)
                    piece = last
                if start - piece > bytes_max:
                    heads.append(start)
                    piece = start
            last = start
        self._piece, self._last = piece, last

    def end(self, size: int, heads: array[int]) -> None:
        if self._last > self._piece and size - self._piece > self._bytes_max:
            heads.append(self._last)


class _Evenly:
    """So many pieces whose numbers of records differ by one at most."""

    def __init__(self, pieces: int, records: int) -> None:
        self._pieces, self._records = pieces, records
        self._seen = self._begun = 0

    def take(self, starts: list[int], heads: array[int]) -> None:
        end = self._seen + len(starts)
        while self._begun < self._pieces and (record := self._begun * self._records // self._pieces) < end:
            heads.append(starts[record - self._seen])
            self._begun += 1
        self._seen = end

    def end(self, size: int, heads: array[int]) -> None:
        pass


# --- what an index says --------------------------------------------------------------------------------------------
def pieces(index: bytes) -> list[tuple[int, int]]:
    """The (offset, length) pairs of an index blob. Raises ValueError when it is none."""
    if len(index) % PIECE.size:
        raise ValueError("not an index of pieces")
    return list(PIECE.iter_unpack(index))


def shard_bounds(index: bytes) -> list[int]:
    """Where the pieces of each shard begin, and where the last one ends: what types.Split.bounds holds."""
    step = SHARD_TASKS * PIECE.size
    begins = [PIECE.unpack_from(index, at)[0] for at in range(0, len(index), step)]
    return [*begins, sum(PIECE.unpack_from(index, len(index) - PIECE.size))]
