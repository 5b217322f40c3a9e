"""Frames on a byte stream, whatever pieces the bytes come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexapod.mesh.framing import FrameBuffer, encode_frame
from nexapod.protocol.errors import LocalError, PeerError
from nexapod.protocol.limits import FRAME_BYTES_MAX


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.lists(st.integers(1, 50), max_size=200))
def test_frames_survive_any_cutting(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(encode_frame, frames))
    buffer, found = FrameBuffer(), []
    for cut in cuts:
        found += buffer.feed(stream[:cut])
        stream = stream[cut:]
    assert found + buffer.feed(stream) == frames


def test_the_largest_frame_passes_and_a_larger_one_does_not() -> None:
    largest = b"x" * FRAME_BYTES_MAX
    assert FrameBuffer().feed(encode_frame(largest)) == [largest]
    with pytest.raises(LocalError):
        encode_frame(largest + b"x")
    with pytest.raises(LocalError):
        encode_frame(b"")


@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_bad_length_is_the_peers_fault_before_its_bytes_come(length: int) -> None:
    with pytest.raises(PeerError, match="frame-length"):
        FrameBuffer().feed(length.to_bytes(4, "big"))


@given(st.lists(st.binary(max_size=64), max_size=30))
def test_any_bytes_give_frames_or_a_peer_error(pieces: list[bytes]) -> None:
    buffer = FrameBuffer()
    for piece in pieces:
        try:
            frames = buffer.feed(piece)
        except PeerError:
            return
        assert all(0 < len(frame) <= FRAME_BYTES_MAX for frame in frames)
