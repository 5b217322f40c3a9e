"""nexapod.protocol.codec: every check takes what it should, refuses the rest by name, and writes what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from protocol_kit import pid

from nexapod.protocol import codec
from nexapod.protocol.errors import PeerError
from nexapod.protocol.types import BlobRef, blob_of, key_of_peer_id


def _rule(check: codec.Check[Any], value: Any) -> str:
    with pytest.raises(PeerError) as caught:
        check.decode(value)
    return caught.value.rule


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x01\x01", b"\xd9\x02\xff\xff", b"\x81\x90\x01", b"\xc7\x0c\xff" + bytes(12), b"\x91" * 100_000],
)
def test_bytes_that_are_not_one_msgpack_value_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        codec.unpack(data, 1 << 20)
    assert caught.value.rule == "not-msgpack"


def test_size_is_checked_before_anything_is_read() -> None:
    assert codec.unpack(b"\xc4\x01a", 3) == b"a"
    with pytest.raises(PeerError, match="too-large: 4 bytes, at most 3 allowed"):
        codec.unpack(b"\xc4\x02ab", 3)


def test_a_length_that_promises_more_than_there_is_allocates_nothing() -> None:
    with pytest.raises(PeerError):
        codec.unpack(b"\xdd\xff\xff\xff\xff", 100)


def test_integers_have_bounds_and_are_neither_booleans_nor_floats() -> None:
    check = codec.integer(1, 3)
    assert [check.decode(n) for n in (1, 3)] == [1, 3]
    assert {_rule(check, value) for value in (0, 4, True, 2.0, "2", None)} == {"bad-field"}


def test_text_is_bounded_in_bytes_and_has_no_control_characters() -> None:
    check = codec.text(4)
    assert [check.decode(t) for t in ("", "abcd", "éé", "a\n\tb")] == ["", "abcd", "éé", "a\n\tb"]
    assert {_rule(check, t) for t in ("abcde", "ééé", "a\0", "\x1b[m", "\u202e", b"ab", None)} == {"bad-field"}
    assert _rule(codec.text(4, empty=False), "") == "bad-field"


def test_choices_bytes_booleans_pairs_and_options() -> None:
    assert codec.choice("a", "b").decode("b") == "b"
    assert {_rule(codec.choice("a"), v) for v in ("b", 1, b"a")} == {"bad-field"}
    assert codec.binary(2).decode(b"ab") == b"ab"
    assert codec.binary(1, 3).decode(b"abc") == b"abc"
    assert {_rule(codec.binary(2), v) for v in (b"a", b"abc", "ab")} == {"bad-field"}
    assert codec.BOOL.decode(True) is True
    assert {_rule(codec.BOOL, v) for v in (1, 0, None)} == {"bad-field"}
    assert codec.pair(codec.U32, codec.U32).decode([1, 2]) == (1, 2)
    assert codec.pair(codec.U32, codec.U32).encode((1, 2)) == [1, 2]
    assert {_rule(codec.pair(codec.U32, codec.U32), v) for v in ([1], [1, 2, 3], None)} == {"bad-field"}
    maybe = codec.optional(codec.U32)
    assert [maybe.decode(None), maybe.decode(3), maybe.encode(None), maybe.encode(3)] == [None, 3, None, 3]
    assert _rule(maybe, -1) == "bad-field"


def test_arrays_have_bounds() -> None:
    check = codec.array(codec.U32, 1, 2)
    assert check.decode([1, 2]) == (1, 2)
    assert check.encode((1, 2)) == [1, 2]
    assert {_rule(check, v) for v in ([], [1, 2, 3], {1: 2}, [-1])} == {"bad-field"}


@dataclass(frozen=True)
class _Point:
    x: int
    y: int

    def __post_init__(self) -> None:
        if self.x > self.y:
            raise ValueError("x is more than y")


def test_a_record_is_an_array_and_names_the_field_that_is_wrong() -> None:
    check = codec.record(_Point, x=codec.U32, y=codec.U32)
    assert check.decode([1, 2]) == _Point(1, 2)
    assert check.encode(_Point(1, 2)) == [1, 2]
    assert {_rule(check, v) for v in ([1], [1, 2, 3], {"x": 1, "y": 2}, None)} == {"bad-field"}
    with pytest.raises(PeerError, match=r"bad-field: y: expected an integer"):
        check.decode([1, "2"])
    with pytest.raises(PeerError, match="bad-field: x is more than y"):
        check.decode([2, 1])


@pytest.mark.parametrize("path", ["a", "a/b.txt", ".hidden", "..a/b", "é"])
def test_plain_relative_paths_pass(path: str) -> None:
    assert codec.path(255).decode(path) == path


@pytest.mark.parametrize("path", ["/a", "a//b", "a/", ".", "..", "a/../b", "a/./b", "a\\b", "a\nb", "a\tb"])
def test_paths_that_could_lead_elsewhere_are_refused(path: str) -> None:
    assert _rule(codec.path(255), path) == "bad-path"


def test_peers_travel_as_their_keys_and_blobs_as_digest_and_size() -> None:
    assert codec.PEER.encode(pid(1)) == key_of_peer_id(pid(1))
    assert codec.PEER.decode(key_of_peer_id(pid(1))) == pid(1)
    assert _rule(codec.PEER, b"short") == "bad-field"
    ref = blob_of(b"abc")
    assert codec.blob(3).decode([ref.digest, 3]) == ref
    assert codec.blob(3).encode(ref) == [ref.digest, 3]
    assert _rule(codec.blob(2), [ref.digest, 3]) == "bad-field"


def test_what_is_packed_is_read_back() -> None:
    value = [None, True, -1, 2**63 - 1, "é", b"\0", [[]], {"a": 1}]
    assert codec.unpack(codec.pack(value), 1000) == value
    assert codec.pack(value) == msgpack.packb(value)
    assert BlobRef.parse(str(blob_of(b"x"))) == blob_of(b"x")
