"""Cutting a file into one piece a task: where each record begins, in constant memory.

A blank line belongs to the record before it; blank lines at the top belong to none.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TypeAlias

from nexapod.protocol.limits import SHARD_TASKS, TASKS_MAX

By: TypeAlias = Literal["lines", "fasta"]
PIECE_BYTES_MAX: Final = 2**32 - 1
PIECE: Final = struct.Struct(">QI")
"""How types.Split has it: u64 offset, u32 length."""
_BLANK_LINE_MAX: Final = 4096
"""A line longer than this is not looked at: it is not blank."""
_BLANK: Final = b" \t\r\n\v\f"


class SplitError(ValueError):
    """The file cannot be cut. The message says why."""


def split_index(path: Path, by: By, records_per_task: int) -> bytes:
    """The index blob of a file's pieces: `records_per_task` records each, the last with what is left.

    Raises SplitError, OSError.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise SplitError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            starts = _fasta(data) if by == "fasta" else _lines(data)
            return b"".join(PIECE.pack(*piece) for piece in _grouped(starts, len(data), records_per_task))


def pieces(index: bytes) -> list[tuple[int, int]]:
    """The (offset, length) pairs of an index blob. Raises ValueError when it is none."""
    if len(index) % PIECE.size:
        raise ValueError("not an index of pieces")
    return list(PIECE.iter_unpack(index))


def shard_bounds(index: bytes) -> list[int]:
    """Where the pieces of each shard begin, and where the last one ends: what types.Split.bounds holds."""
    found = pieces(index)
    return [offset for offset, _ in found[::SHARD_TASKS]] + [sum(found[-1])]


def _grouped(starts: Iterator[int], end: int, records_per_task: int) -> Iterator[tuple[int, int]]:
    # One more than a job may have is enough to know that it is too many.
    heads = list(islice(starts, 0, (TASKS_MAX + 1) * records_per_task, records_per_task))
    if not heads:
        raise SplitError("it holds no record")
    if len(heads) > TASKS_MAX:
        raise SplitError(f"it gives more than {TASKS_MAX} tasks: give each more records with `size`")
    for start, stop in zip(heads, [*heads[1:], end], strict=True):
        if stop - start > PIECE_BYTES_MAX:
            raise SplitError(f"the piece at byte {start} is larger than 4 GiB")
        yield start, stop - start


def _lines(data: mmap.mmap) -> Iterator[int]:
    at = 0
    while at < len(data):
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end
        if end - at > _BLANK_LINE_MAX or data[at:end].strip(_BLANK):
            yield at
        at = end + 1


def _fasta(data: mmap.mmap) -> Iterator[int]:
    first = next(_lines(data), None)
    if first is None:
        raise SplitError("it holds no record")
    if data[first : first + 1] != b">":
        line = data[:first].count(b"\n") + 1
        raise SplitError(f"line {line} is not the beginning of a FASTA record: one begins with '>'")
    at = first
    while at >= 0:
        yield at
        found = data.find(b"\n>", at)
        at = found + 1 if found >= 0 else -1
