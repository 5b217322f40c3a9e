"""Bounded msgpack, and the typed check of every field: from any bytes either a value or a PeerError.

A `Check` turns a raw msgpack value into ours and back. `record()` builds the check of a frozen dataclass from the
checks of its fields; on the wire it is the array of its fields, in order. Knows nothing of what the fields mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgpack

from nexapod.protocol.errors import PeerError
from nexapod.protocol.types import BlobRef, Digest, PeerId, key_of_peer_id, peer_id_of_key

T = TypeVar("T")
Raw = Any
"""What msgpack yields: None, bool, int, float, str, bytes, list, dict."""


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """One field's rule, in both directions. `decode` raises PeerError on anything it does not expect."""

    decode: Callable[[Raw], T]
    encode: Callable[[T], Raw]


def pack(value: Raw) -> bytes:
    """msgpack bytes of a raw value: the one way in which we write it."""
    return bytes(msgpack.packb(value, use_bin_type=True))


def unpack(data: bytes, size_max: int) -> Raw:
    """A raw value from bytes of at most `size_max`. Raises PeerError on anything else, never another error."""
    if len(data) > size_max:
        raise PeerError("too-large", f"{len(data)} bytes, at most {size_max} allowed")
    size = len(data)
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size,
            max_ext_len=0,
        )
    # msgpack reports damage as ValueError or one of its subclasses, depth as RecursionError or StackError (ValueError),
    # an unhashable or unexpected map key as TypeError, and a timestamp out of range as OverflowError.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise PeerError("not-msgpack", type(error).__name__) from None


def _wrong(expected: str, value: Raw) -> PeerError:
    return PeerError("bad-field", f"expected {expected}, got {type(value).__name__}")


def integer(low: int, high: int) -> Check[int]:
    """A whole number in [low, high]; a bool is not one."""

    def decode(value: Raw) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _wrong(f"an integer in [{low}, {high}]", value)
        return value

    return Check(decode, int)


def text(bytes_max: int, *, empty: bool = True) -> Check[str]:
    """UTF-8 text without control characters other than newline and tab."""

    def decode(value: Raw) -> str:
        if type(value) is not str or (not value and not empty):
            raise _wrong("text", value)
        # The common case is printable ASCII: decided without a loop in Python.
        if not (value.isascii() and value.isprintable()):
            if any(not (c.isprintable() or c in "\n\t") for c in value):
                raise PeerError("bad-field", "text with control characters")
            if len(value.encode("utf-8", "surrogatepass")) > bytes_max:
                raise PeerError("bad-field", f"text over {bytes_max} bytes")
        elif len(value) > bytes_max:
            raise PeerError("bad-field", f"text over {bytes_max} bytes")
        return value

    return Check(decode, str)


def choice(*allowed: str) -> Check[Any]:
    """One of a few words."""

    def decode(value: Raw) -> str:
        if type(value) is not str or value not in allowed:
            raise _wrong(f"one of {allowed}", value)
        return value

    return Check(decode, str)


def binary(low: int, high: int | None = None) -> Check[bytes]:
    """Bytes of a length in [low, high]; of exactly `low` when no `high` is given."""
    top = low if high is None else high

    def decode(value: Raw) -> bytes:
        if type(value) is not bytes or not low <= len(value) <= top:
            raise _wrong(f"{low} to {top} bytes", value)
        return value

    return Check(decode, bytes)


def _bool(value: Raw) -> bool:
    if type(value) is not bool:
        raise _wrong("a boolean", value)
    return value


def array(item: Check[T], low: int, high: int) -> Check[tuple[T, ...]]:
    """A list of low to high items that all pass `item`."""

    def decode(value: Raw) -> tuple[T, ...]:
        if type(value) is not list or not low <= len(value) <= high:
            raise _wrong(f"a list of {low} to {high}", value)
        return tuple(map(item.decode, value))

    return Check(decode, lambda values: list(map(item.encode, values)))


def pair(first: Check[Any], second: Check[Any]) -> Check[tuple[Any, Any]]:
    """A list of exactly two."""

    def decode(value: Raw) -> tuple[Any, Any]:
        if type(value) is not list or len(value) != 2:
            raise _wrong("a pair", value)
        return first.decode(value[0]), second.decode(value[1])

    return Check(decode, lambda v: [first.encode(v[0]), second.encode(v[1])])


def optional(check: Check[T]) -> Check[T | None]:
    """The value or nil."""
    return Check(
        lambda value: None if value is None else check.decode(value),
        lambda value: None if value is None else check.encode(value),
    )


def record(make: Callable[..., T], **fields: Check[Any]) -> Check[T]:
    """A dataclass as the array of its fields, in the order given here."""
    names = tuple(fields)
    decoders = tuple(check.decode for check in fields.values())
    encoders = tuple((name, check.encode) for name, check in fields.items())

    def decode(value: Raw) -> T:
        if type(value) is not list or len(value) != len(names):
            raise _wrong(f"{len(names)} fields", value)
        parts = []
        for name, decoder, raw in zip(names, decoders, value, strict=True):
            try:
                parts.append(decoder(raw))
            except PeerError as error:
                raise PeerError(error.rule, f"{name}: {error.detail}", penalty=error.penalty) from None
        try:
            return make(**dict(zip(names, parts, strict=True)))
        except ValueError as error:
            raise PeerError("bad-field", str(error)) from None

    return Check(decode, lambda value: [encode(getattr(value, name)) for name, encode in encoders])


def _path(value: Raw, bytes_max: int) -> str:
    checked = _plain_path_text(bytes_max).decode(value)
    parts = checked.split("/")
    if checked.startswith("/") or "\\" in checked or any(part in ("", ".", "..") for part in parts):
        raise PeerError("bad-path", "a path must be relative, plain and without '..'")
    return checked


def _plain_path_text(bytes_max: int) -> Check[str]:
    base = text(bytes_max, empty=False)

    def decode(value: Raw) -> str:
        checked = base.decode(value)
        if "\n" in checked or "\t" in checked:
            raise PeerError("bad-path", "a path with a line break or tab")
        return checked

    return Check(decode, str)


def path(bytes_max: int) -> Check[str]:
    """A relative POSIX path that stays below where it is joined."""
    return Check(lambda value: _path(value, bytes_max), str)


BOOL: Check[bool] = Check(_bool, bool)
DIGEST: Check[Digest] = binary(32)  # type: ignore[assignment]
U32 = integer(0, 2**32 - 1)
U63 = integer(0, 2**63 - 1)
PEER: Check[PeerId] = Check(lambda value: peer_id_of_key(binary(32).decode(value)), key_of_peer_id)


def blob(size_max: int) -> Check[BlobRef]:
    """A blob's name, of at most so many bytes."""
    return record(BlobRef, digest=DIGEST, size=integer(0, size_max))
