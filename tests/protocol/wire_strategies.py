"""Hypothesis strategies of what the declared records look like on the wire, made from the declarations themselves."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgpack
from hypothesis import strategies as st

from nexapod.protocol.wire import fields, text
from nexapod.protocol.wire.fields import Check

Raw = Any


def _letters(low: int, high: int) -> st.SearchStrategy[str]:
    """Text of low to high bytes of UTF-8, mostly short, none of it forbidden."""
    letters = st.sampled_from("aZ09 é\t\n\U0001fae8漢")
    return st.lists(letters, min_size=low, max_size=8).map("".join).filter(lambda t: low <= len(t.encode()) <= high)


_EXTENSIONS = st.dictionaries(st.integers(0, 255), st.binary(max_size=100), max_size=8).map(
    lambda given: dict(sorted(given.items()))
)
_PATHS = st.lists(st.sampled_from(["a", "b.txt", "é", "..."]), min_size=1, max_size=3).map("/".join)
_BLOBS = st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 1 << 40)).map(list)
_LEAVES: dict[str, st.SearchStrategy[Raw]] = {
    "bool": st.booleans(),
    "u32": st.integers(0, 2**32 - 1),
    "u63": st.integers(0, 2**63 - 1),
    "name": _letters(1, 256),
    "path": _PATHS,
    "digest": st.binary(min_size=32, max_size=32),
    "peer": st.binary(min_size=32, max_size=32),
    "blob": _BLOBS,
    "file": st.tuples(_PATHS, _BLOBS).map(list),
    "extensions": _EXTENSIONS,
}


@cache
def raw_of(check: Check[Any]) -> st.SearchStrategy[Raw]:
    """Raw values that the check accepts."""
    if check.record is not None:
        slots = [_EXTENSIONS] if fields.has_extensions(check.record) else []
        return st.tuples(*map(raw_of, check.parts), *slots).map(list)
    if check.name.startswith("nil or "):
        return st.none() | raw_of(check.parts[0])
    if found := re.match(r"list (\d+)\.\.(\d+) of ", check.name):
        low, high = int(found[1]), int(found[2])
        return st.lists(raw_of(check.parts[0]), min_size=low, max_size=min(high, low + 2))
    if check.name.startswith("["):
        return st.tuples(*map(raw_of, check.parts)).map(list)
    return _leaf(check.name)


def _leaf(name: str) -> st.SearchStrategy[Raw]:
    if name in _LEAVES:
        return _LEAVES[name]
    kind, _, rest = name.partition(" ")
    if kind == "word":
        return st.integers(0, rest.count(","))
    low, _, high = rest.partition("..")
    bounds = (int(low), int(high or low))
    if kind == "int":
        return st.integers(*bounds)
    if kind == "bin":
        return st.binary(min_size=bounds[0], max_size=min(bounds[1], bounds[0] + 40))
    assert kind == "text", name
    return _letters(*bounds)


ANYTHING: st.SearchStrategy[Raw] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=4)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(0, 300), inner, max_size=3),
    max_leaves=12,
)
"""Any value that msgpack writes."""


@st.composite
def damaged(draw: st.DrawFn, raws: st.SearchStrategy[Raw]) -> bytes:
    """Bytes of a value that was right until something in it was replaced."""
    raw = draw(raws)
    if draw(st.booleans()):
        data = bytearray(pack(raw))
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(data)
    place = raw
    while isinstance(place, list) and place:
        at = draw(st.integers(0, len(place) - 1))
        if not isinstance(place[at], list) or not place[at] or draw(st.booleans()):
            place[at] = draw(ANYTHING)
            break
        place = place[at]
    return pack(raw)


def pack(raw: Raw) -> bytes:
    """msgpack, not by the code that is tested."""
    return bytes(msgpack.packb(raw, use_bin_type=True))


def forbidden_edges() -> list[int]:
    """The first and last code point of each forbidden range."""
    return [edge for low, high in text.FORBIDDEN for edge in (low, high)]
