"""docs/api.md lists the requests that are answered, the words of states, and the events, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from nexapod.api import models
from nexapod.api.answers import PING_S
from nexapod.api.app import create_app
from nexapod.api.backend import EventName

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> list[str]:
    """What stands in the first column of the table that begins so."""
    section = TEXT.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^\| `([^`]*)` \|", section, re.MULTILINE)


def test_every_request_is_listed() -> None:
    nobody: Any = None
    app: Any = create_app(nobody)
    paths = app._app.openapi()["paths"]
    answered = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    assert sorted(first_cells("request")) == sorted(answered)


def test_the_words_are_those_of_the_answers() -> None:
    assert first_cells("a job is") == list(get_args(models.JobState))
    assert first_cells("a task is") == list(get_args(models.TaskState))


def test_the_events_are_those_that_are_told() -> None:
    assert sorted(first_cells("event")) == sorted(get_args(EventName))
    assert f"every {PING_S:.0f}\nseconds" in TEXT
