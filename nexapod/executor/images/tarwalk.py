"""Walking the headers of a tar archive that a stranger made: bounded in memory and time, total, and never extracting.

The standard library's reader is not used for it: it takes a header's word for how much to read into memory, keeps every
member, and its older releases can be made to loop. Names are only ever compared; nothing here opens a path. Where
readers differ, this one follows Go's, which is the engine's, or refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from nexapod.executor.images.errors import BadImage

BLOCK: Final = 512
HEADER_BYTES_MAX: Final = 1 << 20
"""Of one extended header (PAX, GNU): what Go's reader takes."""
NAME_BYTES_MAX: Final = 4096
"""Of a member's name, or a link's target: no longer one can be made on Linux."""
Read: TypeAlias = Callable[[int, int], bytes]
"""read(offset, length): fewer bytes at the end only."""

REGULAR: Final = (b"0", b"\0", b"7")
SYMLINK: Final = b"2"
FOLDER: Final = b"5"
_WITHOUT_DATA: Final = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, directories, FIFOs: no data follows, whatever size they state."""
_OCTAL = re.compile(rb"[0-7]*\Z")
_DIGITS = re.compile(rb"[0-9]{1,19}\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: where its bytes lie in the archive. `target`: of a link."""

    name: str
    kind: bytes
    offset: int
    size: int
    target: str = ""


@dataclass(slots=True)
class _Pending:
    """What extended headers say of the member that follows them."""

    name: bytes | None = None
    target: bytes | None = None
    size: int | None = None


def entries(read: Read, size: int, count_max: int) -> Iterator[Entry]:
    """The members of an archive of `size` bytes, in their order. Raises BadImage."""
    at = count = 0
    pending = _Pending()
    while (header := read(at, BLOCK)) and header.count(0) != BLOCK:
        count += 1
        if count > count_max:
            raise BadImage(f"the archive has more than {count_max} members")
        _check_sum(header, at)
        entry = _entry(header, at + BLOCK, pending)
        if entry.offset + entry.size > size:
            raise BadImage(f"the archive ends before its member {shown(entry.name)} does: it is cut off or damaged")
        if entry.kind in (b"x", b"L", b"K"):
            _extend(pending, entry, read)
        else:
            pending = _Pending()
            if entry.kind != b"g":
                yield entry
        at = entry.offset + -(-entry.size // BLOCK) * BLOCK


def shown(name: str) -> str:
    """A name in an error: short, and nothing in it can drive a terminal."""
    return ascii(name[:100])


def _check_sum(header: bytes, at: int) -> None:
    if len(header) != BLOCK:
        raise BadImage("the archive is not a whole number of blocks: it is cut off, or not a tar archive")
    digits = header[148:156].strip(b" \0")
    stated = int(digits, 8) if digits and _OCTAL.match(digits) else -1
    blanked = header[:148] + b" " * 8 + header[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in blanked)
    if stated not in (sum(blanked), signed):
        raise BadImage(f"it is not a tar archive, or damaged at byte {at}")


def _entry(header: bytes, offset: int, pending: _Pending) -> Entry:
    kind = header[156:157]
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        name = _text(header[345:500]) + b"/" + name
    size = _number(header[124:136])
    if kind in (b"x", b"g", b"L", b"K"):
        return Entry(_decoded(name), kind, offset, size)
    if kind == b"S":
        raise BadImage("a member is a sparse file: it could be far larger unpacked than it is here")
    names = (name, pending.name or b"")
    size = size if pending.size is None else pending.size
    if kind == b"\0" and size and any(text.endswith(b"/") for text in names):
        raise BadImage("a member is a directory with data: readers differ on what that is")
    target = pending.target if pending.target is not None else _text(header[157:257])
    name = pending.name if pending.name is not None else name
    if max(len(name), len(target)) > NAME_BYTES_MAX:
        raise BadImage(f"a member's name, or what it links to, has more than {NAME_BYTES_MAX} bytes")
    return Entry(_decoded(name), kind, offset, 0 if kind in _WITHOUT_DATA else size, _decoded(target))


def _extend(pending: _Pending, entry: Entry, read: Read) -> None:
    if entry.size > HEADER_BYTES_MAX:
        raise BadImage(f"an extended header has {entry.size} bytes")
    data = read(entry.offset, entry.size)
    if entry.kind == b"L":
        pending.name = _text(data)
    elif entry.kind == b"K":
        pending.target = _text(data)
    else:
        _read_pax(pending, data)


def _read_pax(pending: _Pending, data: bytes) -> None:
    """Records of `<length> <key>=<value>\\n`. A second such header replaces the first."""
    pending.size = None
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        length = int(digits) if space and _DIGITS.match(digits) else 0
        record = data[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length <= len(digits) + 2 or len(record) != length or not record.endswith(b"\n") or not equals:
            raise BadImage("an extended header is malformed")
        _take_record(pending, key, value)
        at += length


def _take_record(pending: _Pending, key: bytes, value: bytes) -> None:
    if key.startswith(b"GNU.sparse"):
        raise BadImage("a member is a sparse file: it could be far larger unpacked than it is here")
    if key == b"path":
        pending.name = value
    elif key == b"linkpath":
        pending.target = value
    elif key == b"size":
        if not _DIGITS.match(value):
            raise BadImage("an extended header states a size that is no number")
        pending.size = int(value)


def _number(field: bytes) -> int:
    """A number as tar has it: octal digits, or binary behind a set high bit. Raises BadImage."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40 or value >= 1 << 62:
            raise BadImage("a header of the archive states an impossible number")
        return value
    digits = _text(field.strip(b" \0")).strip(b" ")
    if not _OCTAL.match(digits):
        raise BadImage("a header of the archive states a number that is none")
    return int(digits or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
