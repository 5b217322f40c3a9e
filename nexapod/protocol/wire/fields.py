"""Bounded msgpack and the declaration of fields: from any bytes either a value or a PeerError.

A record is declared once, as a frozen dataclass whose fields are `Annotated[type, Check, "meaning"]`. `record(cls)` is
its schema: on the wire the array of its fields, in order. A statement's body and a message end with one more element,
the extension slot: a map from small integers to bytes, kept and ignored where it is not understood. The tables of
docs/protocol.md are printed from the same declarations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Generic, TypeAlias, TypeVar, get_type_hints

import msgpack

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import BlobRef, File, PeerId, key_of_peer_id, peer_id_of_key
from nexapod.protocol.wire import text as text_table

T = TypeVar("T")
Raw: TypeAlias = Any
"""What msgpack yields: None, bool, int, float, str, bytes, list, dict."""


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """One field's rule, in both directions. `decode` raises PeerError on anything it does not expect.

    `name` is the rule as the specification's tables write it. `parts` are the rules that it is made of, `record` is the
    declared class that it reads, if it reads one.
    """

    name: str
    decode: Callable[[Raw], T]
    encode: Callable[[T], Raw]
    parts: tuple[Check[Any], ...] = ()
    record: type | None = None


def pack(value: Raw) -> bytes:
    """msgpack bytes of a raw value: the one way in which we write it."""
    return bytes(msgpack.packb(value, use_bin_type=True))


def unpack(data: bytes, size_max: int) -> Raw:
    """A raw value from bytes of at most `size_max`. Raises PeerError on anything else, never another error."""
    value = _parsed(data, size_max)
    _check_depth(value)
    return value


def unpacked(data: bytes, size_max: int, decode: Callable[[Raw], T]) -> T:
    """What a schema makes of bytes. Raises PeerError like `unpack`, and as the schema does.

    No schema reads as deep as NESTING_MAX: what one takes is not too deep, so only what it refuses is looked at again.
    """
    value = _parsed(data, size_max)
    try:
        return decode(value)
    except PeerError:
        _check_depth(value)
        raise


def _parsed(data: bytes, size_max: int) -> Raw:
    size = len(data)
    if size > size_max:
        raise PeerError("too-large", f"{size} bytes, at most {size_max} allowed")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            object_pairs_hook=_pairs,
            ext_hook=_no_extension_type,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=limits.EXTENSIONS_MAX,
            max_ext_len=0,
        )
    # msgpack reports damage as ValueError or one of its subclasses, depth as RecursionError or StackError (ValueError),
    # an unexpected map key as TypeError, and a timestamp out of range as OverflowError.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise PeerError("not-msgpack", type(error).__name__) from None
    return value


def _check_depth(value: Raw) -> None:
    if _too_deep(value):
        raise PeerError("not-msgpack", f"more than {limits.NESTING_MAX} arrays inside one another")


def _too_deep(value: Raw) -> bool:
    """Whether containers lie more than NESTING_MAX deep in one another, level by level: no recursion to exhaust."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(limits.NESTING_MAX):
        level = [item for part in level for item in part if isinstance(item, _CONTAINERS)]
        if not level:
            return False
    return True


class Pairs(tuple[tuple[Raw, Raw], ...]):
    """A msgpack map as it was written: no key is hashed, none is lost."""

    __slots__ = ()


_CONTAINERS = (list, Pairs)
_EMPTY = Pairs()


def _pairs(items: list[tuple[Raw, Raw]]) -> Pairs:
    if not items:
        return _EMPTY
    if any(isinstance(part, _CONTAINERS) for pair in items for part in pair):
        raise ValueError("a map holds no arrays and no maps")
    return Pairs(items)


def _no_extension_type(code: int, data: bytes) -> Raw:
    """msgpack's own length limit lets an empty one pass."""
    raise ValueError("an extension type")


def wrong(expected: str, value: Raw) -> PeerError:
    """The error of a value of another type or outside its bounds."""
    return PeerError("bad-field", f"expected {expected}, got {type(value).__name__}")


def integer(low: int, high: int) -> Check[int]:
    """A whole number in [low, high]; a bool is not one."""

    def decode(value: Raw) -> int:
        if type(value) is not int or not low <= value <= high:
            raise wrong(f"an integer in [{low}, {high}]", value)
        return value

    return Check(f"int {low}..{high}", decode, int)


def text(bytes_max: int, *, empty: bool = True) -> Check[str]:
    """UTF-8 text without the forbidden code points."""

    def decode(value: Raw) -> str:
        if type(value) is not str or (not value and not empty):
            raise wrong("text", value)
        # Printable ASCII, the common case, is decided without the table: it never differs between interpreters.
        if value.isascii() and value.isprintable():
            size = len(value)
        else:
            if not text_table.allowed(value):
                raise PeerError("bad-field", "text with a forbidden character")
            size = len(value.encode("utf-8", "surrogatepass"))
        if size > bytes_max:
            raise PeerError("bad-field", f"text over {bytes_max} bytes")
        return value

    return Check(f"text {0 if empty else 1}..{bytes_max}", decode, str)


def choice(*allowed: str) -> Check[Any]:
    """One of a few words, as its place among them: an integer on the wire."""

    def decode(value: Raw) -> str:
        if type(value) is not int or not 0 <= value < len(allowed):
            raise wrong(f"one of {allowed}", value)
        return allowed[value]

    return Check("word " + ", ".join(f"{i} {w}" for i, w in enumerate(allowed)), decode, allowed.index)


def binary(low: int, high: int | None = None) -> Check[Any]:
    """Bytes of a length in [low, high]; of exactly `low` when no `high` is given."""
    top = low if high is None else high

    def decode(value: Raw) -> bytes:
        if type(value) is not bytes or not low <= len(value) <= top:
            raise wrong(f"{low} to {top} bytes", value)
        return value

    return Check(f"bin {low}" if high is None else f"bin {low}..{top}", decode, bytes)


def _bool(value: Raw) -> bool:
    if type(value) is not bool:
        raise wrong("a boolean", value)
    return value


def array(item: Check[T], low: int, high: int) -> Check[tuple[T, ...]]:
    """A list of low to high items that all pass `item`."""

    def decode(value: Raw) -> tuple[T, ...]:
        if type(value) is not list or not low <= len(value) <= high:
            raise wrong(f"a list of {low} to {high}", value)
        return tuple(map(item.decode, value))

    return Check(f"list {low}..{high} of {item.name}", decode, lambda values: list(map(item.encode, values)), (item,))


def several(*checks: Check[Any]) -> Check[tuple[Any, ...]]:
    """A list of exactly these."""
    decoders, encoders = [check.decode for check in checks], [check.encode for check in checks]

    def decode(value: Raw) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(decoders):
            raise wrong(f"a list of {len(decoders)}", value)
        return tuple([decoder(part) for decoder, part in zip(decoders, value)])  # noqa: B905 - as long, and hot

    return Check(
        "[" + ", ".join(check.name for check in checks) + "]",
        decode,
        lambda value: [encoder(part) for encoder, part in zip(encoders, value)],  # noqa: B905
        checks,
    )


def optional(check: Check[T]) -> Check[T | None]:
    """The value or nil."""
    return Check(
        f"nil or {check.name}",
        lambda value: None if value is None else check.decode(value),
        lambda value: None if value is None else check.encode(value),
        (check,),
    )


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record as it is declared."""

    name: str
    check: Check[Any]
    meaning: str


@cache
def fields_of(cls: type) -> tuple[Field, ...]:
    """The declared fields of a record, in the order of the wire; the extension slot is not among them."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for declared in fields(cls):
        if declared.name == "ext":
            continue
        check, meaning = hints[declared.name].__metadata__
        found.append(Field(declared.name, check, meaning))
    return tuple(found)


def has_extensions(cls: type) -> bool:
    """Whether a record ends with the extension slot."""
    return any(declared.name == "ext" for declared in fields(cls))


@cache
def record(cls: type, make: Callable[..., Any] | None = None) -> Check[Any]:
    """The schema of a declared record. `make` checks what no single field can: it raises ValueError."""
    declared = fields_of(cls)
    names = [field.name for field in declared]
    decoders = [field.check.decode for field in declared]
    encoders = [field.check.encode for field in declared]
    if has_extensions(cls):
        names, decoders, encoders = [*names, "ext"], [*decoders, EXTENSIONS.decode], [*encoders, EXTENSIONS.encode]
    assert names == [part.name for part in fields(cls)], "the extension slot is the last field"
    size = len(names)
    build: Callable[..., Any] = cls if make is None else lambda *parts: make(**dict(zip(names, parts, strict=True)))

    def decode(value: Raw) -> Any:
        if type(value) is not list or len(value) != size:
            raise wrong(f"{size} fields", value)
        try:
            parts = [decoder(raw) for decoder, raw in zip(decoders, value)]  # noqa: B905 - as long, and hot
        except PeerError as error:
            raise blame(value, error) from None
        try:
            return build(*parts)
        except ValueError as error:
            raise PeerError("bad-field", str(error)) from None

    def blame(value: list[Raw], error: PeerError) -> PeerError:
        """The same error with the name of the field before it: looked for only once something is wrong."""
        name = next(name for name, decoder, raw in zip(names, decoders, value, strict=True) if _fails(decoder, raw))
        return PeerError(error.rule, f"{name}: {error.detail}", penalty=error.penalty)

    def encode(value: Any) -> Raw:
        return [encoder(getattr(value, name)) for name, encoder in zip(names, encoders)]  # noqa: B905

    return Check(cls.__name__, decode, encode, tuple(field.check for field in declared), cls)


def _fails(decoder: Callable[[Raw], Any], raw: Raw) -> bool:
    try:
        decoder(raw)
    except PeerError:
        return True
    return False


def _path(value: Raw) -> str:
    checked = _PATH_TEXT.decode(value)
    if "\n" in checked or "\t" in checked:
        raise PeerError("bad-path", "a path with a line break or tab")
    parts = checked.split("/")
    if checked.startswith("/") or "\\" in checked or any(part in ("", ".", "..") for part in parts):
        raise PeerError("bad-path", "a path must be relative, plain and without '..'")
    return checked


def _extensions(value: Raw) -> tuple[tuple[int, bytes], ...]:
    if type(value) is not Pairs:
        raise wrong("a map", value)
    if not value:
        return ()
    keys = [key for key, _ in value]
    if any(type(key) is not int or not 0 <= key <= 255 for key in keys) or keys != sorted(set(keys)):
        raise PeerError("bad-field", "an extension's key is an integer in [0, 255]; each once, in order")
    if any(type(data) is not bytes for _, data in value):
        raise PeerError("bad-field", "an extension is bytes")
    if sum(len(data) for _, data in value) > limits.EXTENSION_BYTES_MAX:
        raise PeerError("bad-field", f"extensions of over {limits.EXTENSION_BYTES_MAX} bytes")
    return tuple(value)


BOOL: Check[bool] = Check("bool", _bool, bool)
DIGEST: Check[Any] = Check("digest", binary(32).decode, bytes)
U16 = integer(0, 2**16 - 1)
U32: Check[int] = Check("u32", integer(0, 2**32 - 1).decode, int)
U63: Check[int] = Check("u63", integer(0, 2**63 - 1).decode, int)
_KEY = binary(32)
PEER: Check[PeerId] = Check("peer", lambda value: peer_id_of_key(_KEY.decode(value)), key_of_peer_id)
SHORT = text(limits.TEXT_MAX)
NAME: Check[str] = Check("name", text(limits.TEXT_MAX, empty=False).decode, str)
_PATH_TEXT = text(limits.PATH_MAX, empty=False)
PATH: Check[str] = Check("path", _path, str)
EXTENSIONS: Check[tuple[tuple[int, bytes], ...]] = Check("extensions", _extensions, dict)
TASK = integer(0, limits.TASKS_MAX - 1)
SHARD = integer(0, limits.TASKS_MAX // limits.SHARD_TASKS)
ENVELOPE = binary(1, limits.ENVELOPE_BYTES_MAX)

_blob_parts = several(DIGEST, integer(0, limits.BLOB_BYTES_MAX))
BLOB: Check[BlobRef] = Check(
    "blob",
    lambda value: BlobRef(*_blob_parts.decode(value)),
    lambda ref: [ref.digest, ref.size],
)
_file_parts = several(PATH, BLOB)
FILE: Check[File] = Check(
    "file",
    lambda value: File(*_file_parts.decode(value)),
    lambda file: [file.path, BLOB.encode(file.blob)],
)

Extensions: TypeAlias = tuple[tuple[int, bytes], ...]
