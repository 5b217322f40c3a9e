"""One row of what doctor found, and how a look becomes a row: timed, bounded, and never a traceback."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import structlog
import trio

from nexapod.protocol.errors import LocalError

log = structlog.get_logger()

State: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
LOOK_S: Final = 15.0
"""The most that one look may take; those that wait for others bound themselves, below this."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look came to. `remedy` is empty where nothing has to be done."""

    state: State
    happened: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A finding with its name: a row of the table."""

    name: str
    group: str
    state: State
    happened: str
    remedy: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """Something to look at. `at` blocks, and runs in a thread."""

    name: str
    group: str
    at: Callable[[], Finding]


class Desk:
    """Where rows gather, each named when it is begun, so that whoever waits sees what for."""

    def __init__(self, on_begin: Callable[[str, str], None]) -> None:
        self.rows: list[Check] = []
        self._on_begin = on_begin
        self._open: tuple[str, str, float] | None = None

    def begin(self, group: str, name: str) -> None:
        """The next row's names. One that was begun and never ended leaves no row."""
        self._open = (group, name, time.monotonic())
        self._on_begin(group, name)

    def end(self, finding: Finding) -> None:
        """The row that was begun."""
        assert self._open is not None, "a row ends that was not begun"
        group, name, began = self._open
        self._open = None
        seconds = round(time.monotonic() - began, 3)
        self.rows.append(Check(name, group, finding.state, finding.happened, finding.remedy, seconds))


async def take(desk: Desk, look: Look) -> None:
    """Look, and add the row. Whatever the look raises is its finding."""
    desk.begin(look.group, look.name)
    finding = Finding("failed", f"no answer within {LOOK_S:.0f} s", "The disk or the system hangs: look at its log.")
    with trio.move_on_after(LOOK_S):
        finding = await trio.to_thread.run_sync(_found, look, abandon_on_cancel=True)  # type: ignore[call-arg, unused-ignore]
    desk.end(finding)


def _found(look: Look) -> Finding:
    try:
        return look.at()
    except (OSError, LocalError) as error:
        return Finding("failed", str(error), "Mend what is named.")
    except Exception as error:
        # A look reads whatever a machine happens to be; one that stumbles must not hide the others.
        log.exception("check_failed", check=look.name)
        return Finding("failed", f"the look itself failed: {type(error).__name__}: {error}", "Please report it.")
