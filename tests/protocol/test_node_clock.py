"""A machine that slept gives everybody the time that was left."""

from __future__ import annotations

from nexapod.protocol import limits
from nexapod.protocol.node.clock import Clock

GAP = limits.CLOCK_GAP_MS


def test_time_passes_as_it_does_outside() -> None:
    clock = Clock(100)
    assert clock.advance(150, 200) == 0
    assert (clock.now, clock.outside(200), clock.outside(None)) == (150, 200, None)


def test_a_call_at_or_a_little_after_the_deadline_is_no_gap() -> None:
    clock = Clock(0)
    assert clock.advance(60_000 + GAP, 60_000) == 0
    assert clock.now == 60_000 + GAP


def test_nothing_is_missed_where_there_is_no_deadline() -> None:
    clock = Clock(0)
    assert clock.advance(10**9, None) == 0
    assert clock.now == 10**9


def test_after_a_sleep_every_deadline_has_what_it_had_left() -> None:
    clock = Clock(0)
    clock.advance(10_000, 60_000)
    assert clock.advance(3_600_000, 60_000) == 3_590_000
    assert clock.now == 10_000
    assert clock.outside(60_000) == 3_650_000
    assert clock.advance(3_650_000, 60_000) == 0
    assert clock.now == 60_000


def test_a_driver_that_is_always_late_does_not_stop_the_clock() -> None:
    clock, reading, deadline, fired = Clock(0), 0, 1_000, 0
    for _ in range(10):
        reading += 10 * GAP
        clock.advance(reading, deadline)
        if clock.now >= deadline:
            fired += 1
            deadline = clock.now + 1_000
    assert fired == 5


def test_a_reading_that_goes_back_does_not() -> None:
    clock = Clock(500)
    assert clock.advance(100, 600) == 0
    assert clock.now == 500
