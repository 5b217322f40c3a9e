"""nexapod.log: nothing from elsewhere forges a line, drives a terminal, or brings a secret along."""

from __future__ import annotations

import io
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from nexapod.log import VALUE_MAX, escape, make_safe, sd_notify, setup_logging

NASTY = 'x\n{"event": "forged"}\x1b[2J\u202e\x9b31m\r'


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_machine_gets_one_json_object_a_line() -> None:
    stream = io.StringIO()
    setup_logging("info", stream=stream)
    log = structlog.get_logger()
    log.info("something", remote=NASTY, digest=b"\xab" * 32, count=3, deep={"k": [NASTY]}, token="t0p")
    log.debug("not shown")
    (event,) = lines(stream)
    assert stream.getvalue().isascii()
    assert (event["event"], event["level"], event["count"], event["digest"]) == ("something", "info", 3, "ab" * 32)
    assert event["remote"] == escape(NASTY) == event["deep"]["k"][0]
    assert event["token"] == "[redacted]"


def test_a_person_gets_one_line_an_event() -> None:
    stream = io.StringIO()
    setup_logging("info", "console", stream=stream)
    structlog.get_logger().info("something", remote=NASTY)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()


def test_an_exception_stays_marked_as_one() -> None:
    stream = io.StringIO()
    setup_logging("info", "console", stream=stream)
    try:
        raise ValueError(NASTY)
    except ValueError:
        structlog.get_logger().exception("it_failed")
    head, *rest = stream.getvalue().rstrip("\n").split("\n")
    assert "it_failed" in head
    assert rest
    assert all(line.startswith("  | ") and line.isprintable() for line in rest)


def test_libraries_speak_through_it_from_warnings_on() -> None:
    stream = io.StringIO()
    setup_logging("info", "json", stream=stream)
    logging.getLogger("a_library.x").info("chatter")
    logging.getLogger("a_library.x").warning("odd: %s", NASTY)
    logging.getLogger("a_library.x").warning("%d", "not a number")
    first, second = lines(stream)
    assert (first["event"], first["library"], first["level"]) == ("library_log", "a_library.x", "warning")
    assert first["message"] == escape(f"odd: {NASTY}")
    assert second["message"] == "%d"


def test_a_reader_that_went_away_ends_nothing() -> None:
    stream = io.StringIO()
    setup_logging("info", "json", stream=stream)
    stream.close()
    structlog.get_logger().info("unheard")


@given(st.dictionaries(st.text(max_size=8), st.text() | st.binary() | st.none() | st.integers() | st.floats()))
def test_any_values_become_one_safe_line(values: dict[str, Any]) -> None:
    event = make_safe(None, "info", dict(values))
    text = json.dumps(event)
    assert "\n" not in text
    assert all(str(v).isprintable() for key, v in event.items() if key != "exception")


def test_what_is_long_or_deep_is_cut() -> None:
    deep: Any = "x"
    for _ in range(50):
        deep = [deep]
    event = make_safe(None, "info", {"long": "a" * (VALUE_MAX * 3), "many": list(range(1000)), "deep": deep})
    assert len(event["long"]) < VALUE_MAX + 40
    assert len(event["many"]) == 64
    assert len(json.dumps(event)) < 10_000


def test_systemd_is_told_when_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert sd_notify("READY=1") is False
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert sd_notify("READY=1") is True
        assert systemd.recv(100) == b"READY=1"
    setup_logging("error", "json", stream=io.StringIO())
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert sd_notify("STOPPING=1") is False
