"""What a task prints: bounded, and harmless to whoever reads it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nexapod.executor.capture import TAIL_BYTES, Capture, escape, reason_text, render
from nexapod.protocol import codec
from nexapod.protocol.limits import LOG_TAIL_MAX, TEXT_MAX


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
    assert codec.text(LOG_TAIL_MAX).decode(text) == text
    line = reason_text(b"".join(pieces).decode("utf-8", "surrogateescape"))
    assert codec.text(TEXT_MAX).decode(line) == line
    assert "\n" not in line
