"""nexapod.protocol.timers: deadlines by name."""

from __future__ import annotations

from nexapod.protocol.timers import Timers


def test_names_come_due_in_order_of_time_then_of_setting() -> None:
    timers = Timers()
    for name, when in (("b", 20), ("a", 10), ("c", 10)):
        timers.set(name, when)
    assert timers.next == 10
    assert timers.pop_due(9) is None
    assert [timers.pop_due(20) for _ in range(4)] == ["a", "c", "b", None]
    assert timers.next is None


def test_setting_again_replaces_and_none_removes() -> None:
    timers = Timers()
    timers.set("a", 10)
    timers.set("a", 30)
    timers.set("b", 20)
    timers.set("b", None)
    timers.set("c", None)
    assert "a" in timers
    assert "b" not in timers
    assert timers.pop_due(29) is None
    assert timers.pop_due(30) == "a"
    assert "a" not in timers


def test_setting_the_same_time_again_adds_nothing() -> None:
    timers = Timers()
    for _ in range(1000):
        timers.set("a", 10)
    assert timers.pop_due(10) == "a"
    assert timers.pop_due(10) is None
