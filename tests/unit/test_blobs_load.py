"""nexapod.blobs.load: when this machine has room for more."""

from __future__ import annotations

import time

import psutil
import pytest

from nexapod.blobs.load import IDLE_MAX, OWN_MIN, STALE_S, WINDOW_S, WINDOWS, Load, Spent, spent_now


class Machine:
    """Clocks that the test moves."""

    def __init__(self) -> None:
        self.now = Spent(1000.0, 50.0, 9000.0)
        self.load = Load(lambda: self.now, lambda: self.now.at)

    def passes(self, seconds: float, *, own: float, idle: float) -> bool:
        """Time in which this process uses `own` cores and `idle` stand idle; then, whether there is room."""
        at = self.now
        self.now = Spent(at.at + seconds, at.own + own * seconds, at.idle + idle * seconds)
        return self.load.has_room()


@pytest.fixture
def machine() -> Machine:
    it = Machine()
    assert not it.load.has_room()
    return it


@pytest.mark.parametrize(
    ("own", "idle", "room"),
    [
        (1.0, 0.3, False),  # two cores, shared with who sends
        (1.0, 15.0, True),  # many cores
        (0.1, 1.8, True),  # a slow line
        (0.1, 0.0, True),  # a slow line to a machine that computes for others on all its cores
        (OWN_MIN + 0.01, IDLE_MAX - 0.01, False),
        (OWN_MIN - 0.01, 0.0, True),
        (OWN_MIN, IDLE_MAX + 0.01, True),
    ],
)
def test_there_is_room_unless_this_process_fills_what_the_machine_has(
    machine: Machine, own: float, idle: float, room: bool
) -> None:
    for _ in range(WINDOWS - 1):
        assert not machine.passes(WINDOW_S + 0.001, own=own, idle=idle)
    assert machine.passes(WINDOW_S + 0.001, own=own, idle=idle) is room


def see_room(machine: Machine) -> None:
    assert [machine.passes(WINDOW_S + 0.001, own=0.0, idle=2.0) for _ in range(WINDOWS)][-1]


def test_it_says_what_the_last_whole_windows_showed(machine: Machine) -> None:
    see_room(machine)
    assert machine.passes(WINDOW_S / 2, own=2.0, idle=0.0)
    assert not machine.passes(WINDOW_S * 0.6, own=2.0, idle=0.0)
    assert not machine.passes(WINDOW_S / 2, own=0.0, idle=2.0)
    see_room(machine)


def test_a_single_window_with_room_is_a_pause(machine: Machine) -> None:
    for _ in range(5):
        assert not machine.passes(WINDOW_S + 0.001, own=0.0, idle=2.0)
        assert not machine.passes(WINDOW_S + 0.001, own=1.5, idle=0.1)


def test_what_is_long_ago_says_nothing(machine: Machine) -> None:
    see_room(machine)
    assert not machine.passes(STALE_S * 1.1, own=0.0, idle=2.0)
    see_room(machine)


def test_the_clocks_of_this_machine_tell_work() -> None:
    before = spent_now()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = spent_now()
    assert after.own - before.own >= 0.05
    assert after.at > before.at
    assert after.idle >= before.idle


def test_a_host_that_hides_its_cores_has_none_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden() -> None:
        raise PermissionError(13, "Permission denied", "/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", hidden)
    assert spent_now().idle == 0
