"""nexapod.api.event_buffer: what a slow reader is told of a job's events."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nexapod.api.backend import EventName
from nexapod.api.event_buffer import PENDING_MAX, EventBuffer


def changed(index: int, progress: float) -> tuple[EventName, dict[str, Any]]:
    return "task_changed", {"index": index, "state": "running", "progress": progress}


def accepted(index: int) -> tuple[EventName, dict[str, Any]]:
    return "accepted", {"index": index, "reason": ""}


def buffer_of(*events: tuple[EventName, dict[str, Any]]) -> EventBuffer:
    buffer = EventBuffer()
    for event in events:
        buffer.add(event)
    return buffer


def test_of_a_task_that_changes_only_the_newest_is_told() -> None:
    buffer = buffer_of(changed(1, 0.1), changed(2, 0.1), changed(1, 0.2))
    assert buffer.take() == [changed(2, 0.1), changed(1, 0.2)]
    assert buffer.take() == []


def test_a_decision_replaces_what_came_before_it() -> None:
    buffer = buffer_of(changed(1, 0.1), changed(2, 0.1), accepted(1))
    assert buffer.take() == [changed(2, 0.1), accepted(1)]


def test_other_events_are_all_told_in_order() -> None:
    failing: tuple[EventName, dict[str, Any]] = ("failing", {"index": 1})
    events = [("placed", {"peers": []}), failing, failing, accepted(1), ("closed", {"state": "settled"})]
    buffer = buffer_of(*events)  # type: ignore[arg-type]
    assert buffer.closed
    assert buffer.take() == events


def test_a_reader_that_is_far_behind_is_told_how_much_it_lost() -> None:
    buffer = buffer_of(*(accepted(index) for index in range(PENDING_MAX + 1)))
    assert buffer.take() == [("lagged", {"lost": PENDING_MAX}), accepted(PENDING_MAX)]
    buffer.add(accepted(0))
    assert buffer.take() == [accepted(0)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.floats(0, 1)), max_size=60), st.data())
def test_whenever_it_is_read_the_last_word_on_each_task_is_the_true_one(
    steps: list[tuple[bool, int, float]], data: st.DataObject
) -> None:
    buffer = EventBuffer()
    truth: dict[int, Any] = {}
    told: dict[int, Any] = {}
    for decide, index, progress in steps:
        event = accepted(index) if decide else changed(index, progress)
        truth[index] = event
        buffer.add(event)
        if data.draw(st.booleans()):
            told.update({event[1]["index"]: event for event in buffer.take()})
    told.update({event[1]["index"]: event for event in buffer.take()})
    assert told == truth
