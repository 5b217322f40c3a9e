"""What a task prints: bounded, and harmless to whoever reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexapod.executor.capture import (
    TAIL_BYTES,
    Capture,
    ProgressLines,
    escape,
    progress_of,
    reason_text,
    render,
)
from nexapod.protocol.limits import LOG_TAIL_MAX, TEXT_MAX
from nexapod.protocol.wire import fields


def shown(*pieces: bytes) -> str:
    capture = Capture()
    for piece in pieces:
        capture.write(piece)
    return render(capture.head, capture.tail, capture.total)


def test_what_fits_is_shown_whole() -> None:
    assert shown(b"one\n", b"two\tthree\n") == "one\ntwo\tthree\n"
    assert shown() == ""
    whole = bytes(range(97, 123)) * (LOG_TAIL_MAX // 26)
    assert shown(whole) == whole.decode()


def test_head_and_tail_survive_a_flood() -> None:
    text = shown(b"begin", *[b"x" * 1000] * 5000, b"end")
    assert text.startswith("beginxxx")
    assert text.endswith("xxxend")
    assert "bytes left out" in text
    assert len(text.encode()) <= LOG_TAIL_MAX


def test_escaping_may_push_text_over_the_limit() -> None:
    text = shown(b"begin" + b"\x1b" * (LOG_TAIL_MAX - 8) + b"end")
    assert text.startswith("begin\\x1b")
    assert text.endswith("\\x1bend")
    assert len(text.encode()) <= LOG_TAIL_MAX


def test_memory_is_constant() -> None:
    capture = Capture()
    for _ in range(1000):
        capture.write(b"y" * 5000)
    assert capture.total == 5_000_000
    assert len(capture.tail) == TAIL_BYTES
    assert len(capture._tail) <= 5 * TAIL_BYTES


def test_escape_leaves_text_and_shows_the_rest() -> None:
    assert escape("héllo ✓\n\t".encode()) == "héllo ✓\n\t"
    assert escape(b"\x1b[31m\r\x00\x7f") == "\\x1b[31m\\x0d\\x00\\x7f"
    assert escape(b"\xff\xfe") == "\\xff\\xfe"
    assert escape("\u202e\U000e0001".encode()) == "\\u202e\\U000e0001"


def test_a_reason_is_one_line() -> None:
    assert reason_text("a\n  b\tc \x1b") == "a b c \\x1b"
    assert len(reason_text("é" * 1000).encode()) <= TEXT_MAX


@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_any_log_and_reason_is_valid_in_a_statement(pieces: list[bytes]) -> None:
    text = shown(*pieces)
    assert fields.text(LOG_TAIL_MAX).decode(text) == text
    line = reason_text(b"".join(pieces).decode("utf-8", "surrogateescape"))
    assert fields.text(TEXT_MAX).decode(line) == line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("pieces", "value"),
    [
        ([b"NEXAPOD_PROGRESS=0.42\n"], 0.42),
        ([b"NEXAPOD_PROG", b"RESS=0.4", b"2\r\nmore"], 0.42),
        ([b"NEXAPOD_PROGRESS=0.42"], None),
        ([b"x NEXAPOD_PROGRESS=0.42\n"], None),
        ([b"NEXAPOD_PROGRESS=/run/progress\n"], None),
        ([b"NEXAPOD_PROGRESS=nan\nNEXAPOD_PROGRESS=7\n"], 1.0),
        ([b"NEXAPOD_PROGRESS=0.1\nNEXAPOD_PROGRESS=0.2\nNEXAPOD_PROGRESS=?\n"], 0.2),
        ([b"x" * 5000, b"NEXAPOD_PROGRESS=0.1\n"], None),
        ([b"NEXAPOD_PROGRESS=" + b"0" * 60, b"0" * 60, b"\n"], None),
        ([b"x" * 5000 + b"\nNEXAPOD_PROGRESS=0.1\n" + b"y" * 5000], 0.1),
    ],
)
def test_progress_is_a_whole_line_of_the_output(pieces: list[bytes], value: float | None) -> None:
    lines = ProgressLines()
    for piece in pieces:
        lines.write(piece)
    assert lines.value == value


def test_a_line_without_end_takes_no_memory() -> None:
    lines = ProgressLines()
    for _ in range(100):
        lines.write(b"NEXAPOD_PROGRESS=" * 1000)
    assert len(lines._open) < 200


@given(st.lists(st.binary(max_size=30).map(lambda raw: raw + b"\n" if len(raw) % 3 else raw), max_size=20))
def test_progress_does_not_depend_on_how_the_stream_is_cut(pieces: list[bytes]) -> None:
    text = b"".join(b"NEXAPOD_PROGRESS=" + piece for piece in pieces)
    whole, cut = ProgressLines(), ProgressLines()
    whole.write(text)
    for at in range(len(text)):
        cut.write(text[at : at + 1])
    assert cut.value == whole.value


@given(st.binary(max_size=70))
def test_any_bytes_are_a_progress_or_none(raw: bytes) -> None:
    value = progress_of(raw)
    assert value is None or 0 <= value <= 1
