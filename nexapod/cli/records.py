"""Where the records of a file begin, found while the file passes by in blocks: lines, FASTA, SDF, CSV.

Constant memory whatever the file: a scan keeps what the end of a block leaves open, within a bound. Knows nothing of
tasks and pieces (splitting.py). What lies between the first byte of a record and that of the next belongs to the
former; so no byte after the first record is lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

By: TypeAlias = Literal["lines", "fasta", "sdf", "csv"]
BLANKS_MAX: Final = 1 << 20
CSV_RECORD_MAX: Final = 16 << 20
"""A longer record means that a quote is missing, and that the rest of the file would be read inside out."""
SDF_LINE_MAX: Final = 1 << 20
_SPACE: Final = ord(" ")
_BLANK: Final = b" \t\r\n\v\f"
_BOM: Final = b"\xef\xbb\xbf"
_TEXT = re.compile(rb"[^ \t\r\n\v\f]")
_LINE = re.compile(rb"\n[ \t\r\v\f]*+[^ \t\r\n\v\f]")
_FASTA = re.compile(rb"\n>")
_SDF_END = re.compile(rb"\n\$\$\$\$[^\n]*+(?=\n)")
_SDF_MARK: Final = b"\n$$$$"
_CSV = re.compile(rb'[^"\n]*+(?:"[^"]*+"[^"\n]*+)*+\n')
"""One record with its line end. A line end between quotes is text."""
_LINE_END = re.compile(rb"\n")
_CSV_QUOTES = re.compile(
    rb'[^"]*+(?:(?<![^,;|\t ])"[^"]*+(?:""[^"]*+)*+"(?![^,;|\t \r\n])[^"]*+)*+',
)
"""RFC 4180: a quote opens only at the beginning of a field, closes only at its end, and is doubled between."""
_UNBALANCED: Final = (
    "unbalanced quote in the header: put a field that holds a quote in quotes and double the quote, or set"
    " `header = false` if there is no header"
)
_BZIP2: Final = b"BZh"
_BZIP2_BLOCK: Final = b"1AY&SY"
_MAGIC: Final = {
    b"\x1f\x8b": ("compressed by gzip", "unpack it first: gunzip -k FILE"),
    _BZIP2: ("compressed by bzip2", "unpack it first: bunzip2 -k FILE"),
    b"\xfd7zXZ\0": ("compressed by xz", "unpack it first: unxz -k FILE"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it first: unzstd FILE"),
    b"PK\x03\x04": ("a zip archive", "unpack it first: unzip FILE"),
    b"\xff\xfe": ("UTF-16", "convert it first: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    b"\xfe\xff": ("UTF-16", "convert it first: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
}


class SplitError(ValueError):
    """The file cannot be cut. The message says why and what to do."""


class BadRecord(SplitError):
    """As SplitError, at a place of the file: `offset` becomes a line for people."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset


class Scan(Protocol):
    """Is fed the bytes of a file from where it was told to begin. Both raise SplitError."""

    def feed(self, data: bytes) -> list[int]:
        """Offsets in the file of records whose beginning is known now, rising."""
        ...

    def end(self) -> list[int]:
        """The same, as the file has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the first block of a file tells: where scanning begins, and how much precedes every piece."""

    start: int
    header: int


def beginning(first: bytes, by: By, header: int, *, whole: bool) -> Beginning:
    """`first`: the first CHUNK_BYTES of the file, all of it if `whole`. `header`: lines (or CSV records) to keep.

    Raises SplitError for what is no text to cut at all.
    """
    for magic, (what, remedy) in _MAGIC.items():
        if first.startswith(magic) and (magic != _BZIP2 or first[4:10] == _BZIP2_BLOCK):
            raise SplitError(f"it is {what}: {remedy}")
    if b"\n" not in first and b"\r" in first[:-1]:
        raise SplitError("its lines end with CR alone: convert it first: tr '\\r' '\\n' < FILE > NEW")
    start = len(_BOM) if first.startswith(_BOM) else 0
    text = _TEXT.search(first, start)
    if text is None:
        raise SplitError("it holds no record" if whole else "it begins with a mebibyte of blanks")
    if by == "fasta":
        _check_first_fasta(first, start, text.start())
    if not header:
        return Beginning(start, 0)
    end = _csv_header(first, start, text.start(), whole) if by == "csv" else _nth_line(first, header)
    if end is None:
        lines = "header" if by == "csv" else f"{header} header lines"
        raise SplitError("it holds no record beside its header" if whole else f"its {lines} are larger than 1 MiB")
    return Beginning(end, end)


def _check_first_fasta(first: bytes, start: int, text: int) -> None:
    if first[text] != ord(">"):
        raise BadRecord(text, "this is not the beginning of a FASTA record: one begins with '>'")
    if text > start and first[text - 1] != ord("\n"):
        raise BadRecord(text, "blanks stand before the '>' of this record: take them out, its line must begin with it")


def _nth_line(first: bytes, count: int) -> int | None:
    at = 0
    for _ in range(count):
        at = first.find(b"\n", at) + 1
        if at == 0:
            return None
    return at


def _csv_header(first: bytes, start: int, text: int, whole: bool) -> int | None:
    begin = max(start, first.rfind(b"\n", 0, text) + 1)
    found = _CSV.match(first, begin)
    if found:
        is_open = _is_torn(found.group())
    else:
        # Closed nowhere in the file; or, of one that goes on, opened in the first line and not closed in all of this.
        end = len(first) if whole else max(begin, first.find(b"\n", begin))
        is_open = first.count(b'"', begin, end) % 2 == 1
    if is_open:
        raise BadRecord(begin, _UNBALANCED)
    return found.end() if found else None


def _is_torn(record: bytes) -> bool:
    """Whether a quote that is no border of a field has made one record of several lines.

    Within one line such a quote does no harm.
    """
    return b"\n" in record[:-1] and not _CSV_QUOTES.fullmatch(record)


def scan(by: By, start: int) -> Scan:
    """A scan of what follows the byte `start`."""
    return _SCANS[by](start)


class _Lines:
    """A record is a line that says something; a blank one belongs to the record before it."""

    def __init__(self, start: int) -> None:
        # A line begins after a line end: so the file has one more, before its first byte.
        self._open = b"\n"
        self._at = start - 1

    def feed(self, data: bytes) -> list[int]:
        block, at = self._open + data, self._at
        starts = [at + found.start() + 1 for found in _LINE.finditer(block)]
        last = block.rfind(b"\n")
        self._open = b"" if last < 0 or _TEXT.search(block, last) else block[last:]
        self._at = at + len(block) - len(self._open)
        if len(self._open) > BLANKS_MAX:
            raise BadRecord(self._at + 1, "more than a mebibyte of blanks follows")
        return starts

    def end(self) -> list[int]:
        return []


class _Fasta:
    """A record begins with a line that begins with '>'."""

    def __init__(self, start: int) -> None:
        self._open = b"\n"
        self._at = start - 1

    def feed(self, data: bytes) -> list[int]:
        block, at = self._open + data, self._at
        self._open = b"\n" if block.endswith(b"\n") else b""
        self._at = at + len(block) - len(self._open)
        return [at + found.start() + 1 for found in _FASTA.finditer(block)]

    def end(self) -> list[int]:
        return []


class _Sdf:
    """A record ends with a line that begins with `$$$$`. It may begin with blank lines: the name of a molecule is one.

    The last may lack its end. One without anything between two ends is a record too, so that the n-th stays the n-th.
    """

    def __init__(self, start: int) -> None:
        self._open = b"\n"
        self._at = start - 1
        self._held: int | None = start
        """The beginning of what is no record before something is in it."""
        self._ends = 0

    def feed(self, data: bytes) -> list[int]:
        block, at = self._open + data, self._at
        ends = [at + found.end() + 1 for found in _SDF_END.finditer(block)]
        self._ends += len(ends)
        starts = ends if self._held is None else [self._held, *ends]
        self._held = None
        if starts and not _TEXT.search(block, max(0, starts[-1] - at)):
            self._held = starts.pop()
        last = block.rfind(b"\n")
        begun = last >= 0 and _SDF_MARK.startswith(block[last : last + len(_SDF_MARK)])
        self._open = block[last:] if begun else b""
        self._at = at + len(block) - len(self._open)
        if len(self._open) > SDF_LINE_MAX:
            raise BadRecord(self._at + 1, "this line that ends a record has no end itself")
        return starts

    def end(self) -> list[int]:
        if not self._ends and not self._open.startswith(_SDF_MARK):
            raise SplitError("it has no line `$$$$`, which ends each record of an SDF file")
        return []


class _Csv:
    """A record ends with a line end that is not between quotes (RFC 4180); any delimiter. Blank lines as in _Lines."""

    def __init__(self, start: int) -> None:
        self._open = b""
        self._at = start

    def feed(self, data: bytes) -> list[int]:
        block, at = self._open + data, self._at
        starts, end = self._records(block)
        self._open, self._at = block[end:], at + end
        if len(self._open) > CSV_RECORD_MAX:
            raise BadRecord(self._at, f"this record is longer than {CSV_RECORD_MAX >> 20} MiB: is a quote missing?")
        return starts

    def end(self) -> list[int]:
        if not self._open.strip(_BLANK):
            return []
        block = self._open + b"\n"
        starts, end = self._records(block)
        if end != len(block):
            raise BadRecord(self._at, "a quote is opened in this record and not closed before the file ends")
        return starts

    def _records(self, block: bytes) -> tuple[list[int], int]:
        """The beginnings of the whole records of a block, and where the last one ends."""
        if b'"' not in block:
            return self._plain(block)
        starts = []
        at = line = 0
        inside = several = False
        for found in _LINE_END.finditer(block):
            end = found.end()
            # Doubled quotes included, a line that opens no more than it closes has an even number of them.
            if block.count(b'"', line, end) % 2:
                inside = not inside
                several = several or inside
            line = end
            if inside:
                continue
            if several:
                self._check_quotes(block[at:end], at)
                several = False
            if block[at] > _SPACE or not block[at:end].isspace():
                starts.append(self._at + at)
            at = end
        return starts, at

    def _check_quotes(self, record: bytes, at: int) -> None:
        if _is_torn(record):
            what = "a quote stands inside a field of this record: put such a field in quotes and double the quote"
            raise BadRecord(self._at + at, what)

    def _plain(self, block: bytes) -> tuple[list[int], int]:
        end = block.rfind(b"\n") + 1
        first = [self._at] if end and _TEXT.search(block[: block.find(b"\n")]) else []
        return first + [self._at + found.start() + 1 for found in _LINE.finditer(block, 0, end)], end


_SCANS: Final[dict[By, Callable[[int], Scan]]] = {"lines": _Lines, "fasta": _Fasta, "sdf": _Sdf, "csv": _Csv}
