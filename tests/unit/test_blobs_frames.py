"""The bulk channel's frames: every frame survives the trip, and no bytes make decoding fail otherwise than by blame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexapod.blobs.frames import (
    ID_MAX,
    PIECE_BYTES,
    AskChunk,
    AskList,
    ChunkPart,
    ListPart,
    NotHere,
    decode,
    encode,
)
from nexapod.protocol.errors import PeerError
from nexapod.protocol.limits import BLOB_BYTES_MAX, CHUNK_BYTES, FRAME_BYTES_MAX
from nexapod.protocol.primitives import BlobRef, Digest
from nexapod.protocol.wire import fields

ids = st.integers(0, ID_MAX)
refs = st.builds(BlobRef, st.binary(min_size=32, max_size=32).map(Digest), st.integers(0, BLOB_BYTES_MAX))
data = st.binary(min_size=1, max_size=200)
frames = st.one_of(
    refs.flatmap(lambda ref: st.builds(AskList, ids, st.just(ref), st.integers(0, ref.chunks - 1))),
    refs.flatmap(lambda ref: st.builds(AskChunk, ids, st.just(ref), st.integers(0, ref.chunks - 1))),
    st.builds(ListPart, ids, data),
    st.builds(ChunkPart, ids, st.integers(0, CHUNK_BYTES), data),
    st.builds(NotHere, ids),
)
raw = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(frames)
def test_frames_survive_the_trip(frame):
    assert decode(encode(frame)) == frame


def decode_or_blame(data):
    try:
        decode(data)
    except PeerError as error:
        assert error.rule  # noqa: PT017


@given(st.binary(max_size=500))
def test_any_bytes_are_a_frame_or_a_breach(data):
    decode_or_blame(data)


@given(raw)
def test_any_value_is_a_frame_or_a_breach(value):
    decode_or_blame(fields.pack(value))


@given(st.sampled_from("lLcCn"), st.lists(raw, max_size=5))
def test_any_fields_are_a_frame_or_a_breach(kind, values):
    decode_or_blame(fields.pack([kind, *values]))


def test_the_largest_frames_fit():
    largest = ChunkPart(ID_MAX, CHUNK_BYTES, bytes(PIECE_BYTES))
    assert len(encode(largest)) <= FRAME_BYTES_MAX
    assert decode(encode(largest)) == largest


@pytest.mark.parametrize(
    "value",
    [
        ["c", 1, bytes(32), CHUNK_BYTES, 1],
        ["c", 1, bytes(31), 5, 0],
        ["c", 1, bytes(32), BLOB_BYTES_MAX + 1, 0],
        ["c", -1, bytes(32), 5, 0],
        ["c", True, bytes(32), 5, 0],
        ["C", 1, 0, b""],
        ["C", 1, 0, bytes(PIECE_BYTES + 1)],
        ["n", 1, 2],
        ["z", 1],
        [["n"], 1],
        {"n": 1},
    ],
)
def test_what_no_honest_peer_sends_is_a_breach(value):
    with pytest.raises(PeerError):
        decode(fields.pack(value))
