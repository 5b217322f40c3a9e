"""The engine's answers, taken apart: streams, times, names; and an engine that does not answer."""

from __future__ import annotations

import io
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nexapod.executor.docker import engine
from nexapod.executor.docker.engine import Container, EngineError, Stream, connect
from nexapod.executor.docker.life import has_outcome, is_survivor
from nexapod.executor.docker.notes import Notes


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def heard(raw: bytes) -> list[tuple[bool, bytes]]:
    closed: list[bool] = []
    response = SimpleNamespace(raw=io.BytesIO(raw), close=lambda: closed.append(True))
    pieces = list(Stream(response))
    assert closed == [True]
    return pieces


def test_a_stream_is_taken_apart_by_its_frames() -> None:
    assert heard(frame(1, b"out") + frame(2, b"err") + frame(1, b"")) == [(True, b"out"), (False, b"err")]
    assert heard(b"") == []


def test_a_stream_that_breaks_off_ends_with_what_there_is() -> None:
    whole = frame(1, b"one") + frame(1, b"twothree")
    assert heard(whole[:-5]) == [(True, b"one"), (True, b"two")]
    assert heard(whole[: 11 + 4]) == [(True, b"one")]


def test_a_frame_that_claims_to_be_huge_is_read_in_pieces() -> None:
    pieces = heard(bytes([1, 0, 0, 0]) + b"\xff\xff\xff\xff" + b"x" * 200_000)
    assert max(len(piece) for _, piece in pieces) <= 64 * 1024
    assert sum(len(piece) for _, piece in pieces) == 200_000


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("1970-01-01T00:00:01Z", 1.0),
        ("1970-01-01T00:00:01.123456789Z", 1.123456789),
        ("1970-01-01T01:00:01.5+01:00", 1.5),
        ("1970-01-01T00:00:01.25+00:00", 1.25),
        ("0001-01-01T00:00:00Z", 0.0),
        ("", 0.0),
        ("yesterday", 0.0),
    ],
)
def test_engines_write_times_to_the_nanosecond(stamp: str, seconds: float) -> None:
    assert engine._seconds(stamp) == pytest.approx(seconds)


def test_an_engine_that_listens_and_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PROBE_S", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(8)
        with pytest.raises(EngineError, match="does not answer"):
            connect(f"unix://{tmp_path}/s", "0123456789abcdef")


def test_what_answers_and_is_no_engine_is_said_to_be_none(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(8)

        def answer_nonsense() -> None:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone")

        thread = threading.Thread(target=answer_nonsense)
        thread.start()
        with pytest.raises(EngineError, match="does not answer"):
            connect(f"unix://{tmp_path}/s", "0123456789abcdef")
        thread.join(5)


# --- whether a container is a survivor -------------------------------------------------------------------------------
LABELS = {"org.nexapod.run": "1", "org.nexapod.settings": "d"}
SETTINGS: dict[str, Any] = {"Image": "sha256:" + "a" * 64, "Labels": LABELS}


def container(**changes: Any) -> Container:
    found = {
        "id": "c",
        "status": "running",
        "exit": 0,
        "oom": False,
        "error": "",
        "labels": {**LABELS, "maintainer": "of the image"},
        "image": SETTINGS["Image"],
        "started": 1.0,
        "finished": 0.0,
    }
    return Container(**(found | changes))


@pytest.mark.parametrize(
    ("changes", "survives"),
    [
        ({}, True),
        ({"status": "paused"}, True),
        ({"status": "exited"}, True),
        ({"status": "exited", "exit": 3}, True),
        ({"status": "exited", "exit": 137}, False),
        ({"status": "exited", "exit": 255}, False),
        ({"status": "exited", "exit": 137, "oom": True}, True),
        ({"status": "created", "started": 0.0}, False),
        ({"status": "exited", "started": 0.0}, False),
        ({"status": "removing"}, False),
    ],
)
def test_what_goes_on_or_ended_by_itself_has_an_outcome(changes: dict[str, Any], survives: bool) -> None:
    assert has_outcome(container(**changes)) == survives
    assert is_survivor(container(**changes), SETTINGS) == survives


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {}},
        {"labels": {"org.nexapod.run": "1"}},
        {"labels": {"org.nexapod.run": "1", "org.nexapod.settings": "other"}},
        {"labels": {"org.nexapod.run": "2", "org.nexapod.settings": "d"}},
        {"image": "sha256:" + "b" * 64},
    ],
)
def test_a_container_that_would_not_be_begun_like_that_is_no_survivor(changes: dict[str, Any]) -> None:
    assert not is_survivor(container(**changes), SETTINGS)


# --- notes -----------------------------------------------------------------------------------------------------------
def test_notes_are_read_as_they_were_written(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.json", 99.0, 1.5, 100.0, (b"head\xff", b"tail", 99), 7.25, 0.5)
    notes.write()
    assert Notes.read(tmp_path / "notes.json") == notes
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]


def test_a_machine_that_was_started_anew_has_another_clock(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.json", began=99.0, paused_s=2.0, paused_since=100.0, progress=0.5, boot="another")
    notes.write()
    assert Notes.read(notes.path) == Notes(notes.path, None, 2.0, None, progress=0.5)


@pytest.mark.parametrize(
    ("notes", "over", "ran_s"),
    [
        ({}, False, 50_000),
        ({"paused_s": 100.0}, True, 49_900),
        ({"began": 4_000.0}, False, 6_000),
        ({"began": 4_000.0, "paused_s": 100.0, "paused_since": 9_000.0}, False, 4_900),
        ({"began": 4_000.0}, True, 6_000),
        ({"began": -90_000.0}, True, 50_000),
    ],
)
def test_a_run_s_time_is_not_that_in_which_the_machine_slept(
    tmp_path: Path, notes: dict[str, float], over: bool, ran_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of day says 50,000 s; the machine's own clock says 10,000 now."""
    monkeypatch.setattr(time, "monotonic", lambda: 10_000.0)
    assert Notes(tmp_path, **notes).ran_for(50_000, over=over) == ran_s  # type: ignore[arg-type]
    assert Notes(tmp_path).ran_for(-5, over=over) == 0, "a time of day that was set back"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"paused_s": "x"}', '{"paused_s":1,"paused_since":null,"heard":0'])
def test_torn_notes_count_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.json"
    assert Notes.read(path) == Notes(path)
    path.write_text(text)
    assert Notes.read(path) == Notes(path)


def test_notes_that_cannot_be_written_do_no_harm(tmp_path: Path) -> None:
    Notes(tmp_path / "gone" / "notes.json").write()


def test_pauses_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    assert Notes(tmp_path / "n").paused_for() == 0
    assert Notes(tmp_path / "n", paused_s=5.0).paused_for() == 5
    assert Notes(tmp_path / "n", paused_s=5.0, paused_since=990.0).paused_for() == 15
