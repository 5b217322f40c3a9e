"""The page that a runner and its daemon share: the same head, tail and count as a capture of the whole stream."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexapod.executor.capture import HEAD_BYTES, TAIL_BYTES, Capture, render
from nexapod.executor.wasm.board import SIZE, Board, Pen


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    board.clear()
    yield board
    board.close()


@given(
    st.lists(st.one_of(st.binary(max_size=50), st.binary(min_size=1, max_size=9).map(lambda b: b * 500)), max_size=30)
)
def test_it_shows_what_a_capture_would_keep(pieces: list[bytes]) -> None:
    board, capture = Board(), Capture()
    board.clear()
    pen = Pen(board.fd)
    for piece in pieces:
        pen.write(piece)
        capture.write(piece)
        assert board.printed()[2] == capture.total
    assert board.printed() == (capture.head, capture.tail, capture.total)
    pen.clear()
    assert board.printed() == (b"", b"", 0)
    board.close()


def test_progress_is_told_by_lines_of_stdout_only(board: Board) -> None:
    pen = Pen(board.fd)
    assert board.progress() is None
    pen.write(b"NEXAPOD_PROGRESS=0.1\n")
    assert board.progress() is None
    pen.write_stdout(b"NEXAPOD_PROGRESS=0.")
    pen.write_stdout(b"25\nmore")
    assert board.progress() == 0.25
    assert board.printed()[2] == 21 + 26


def test_a_pause_is_told_and_outlives_the_beginning_of_a_run(board: Board) -> None:
    pen = Pen(board.fd)
    board.set_paused_ns(5)
    pen.clear()
    assert pen.paused_ns() == 5
    board.clear()
    assert pen.paused_ns() == 0


@given(st.binary(min_size=SIZE, max_size=SIZE))
def test_any_bytes_are_a_page(raw: bytes) -> None:
    board = Board()
    os.pwrite(board.fd, raw, 0)
    head, tail, total = board.printed()
    assert len(head) <= HEAD_BYTES
    assert len(tail) <= TAIL_BYTES
    assert total >= len(head) + len(tail)
    render(head, tail, total)
    progress = board.progress()
    assert progress is None or 0 <= progress <= 1
    board.close()


def test_a_runner_cannot_shrink_it_under_its_reader(board: Board) -> None:
    for size in (0, SIZE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(board.fd, size)
