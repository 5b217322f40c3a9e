"""`nexapod watch`: a job as it moves, from the daemon's events; bars in a terminal, lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from nexapod.cli.client import Client
from nexapod.cli.console import note, say, short
from nexapod.cli.errors import FAILED, OK, ConnectionLost, Unreachable
from nexapod.cli.job_commands import failing_line
from nexapod.cli.safe import safe

ROWS_MAX: Final = 12
"""Tasks under way that are shown each with a bar of its own."""
RETRIES_MAX: Final = 10
RETRY_S: Final = 1.0
_ENDS: Final = frozenset({"settled", "cancelled", "expired"})
FAILINGS_SHOWN: Final = 5


@dataclass
class Standing:
    """Where a job stands, folded from its events (api/backend.py, EventName)."""

    job_id: str = ""
    name: str = ""
    state: str = "placing"
    tasks: int = 0
    accepted: int = 0
    failed: int = 0
    placed: bool = False
    failing: int = 0
    """Results that did not end well."""
    under_way: dict[int, float] = field(default_factory=dict)
    """Progress of each task that someone works on, 0 to 1."""
    decided: set[int] = field(default_factory=set)
    """Tasks decided since the snapshot: an event that comes twice counts once."""

    @property
    def ended(self) -> bool:
        return self.state in _ENDS

    @property
    def status(self) -> int:
        """The exit status: 0 only when the job is settled and every task accepted."""
        return OK if self.state == "settled" and self.failed == 0 and self.accepted == self.tasks else FAILED

    def take(self, name: str, facts: dict[str, Any]) -> bool:
        """Fold in one event. False when it is nothing new."""
        match name:
            case "snapshot":
                self._snapshot(facts)
            case "placed":
                self.placed = True
            case "task_changed":
                self._changed(facts)
            case "accepted" | "failed":
                return self._decide(name, int(facts["index"]))
            case "failing":
                self.failing += 1
            case "closed":
                self.state = str(facts["state"])
            case _:
                return name in ("refused", "ratification_needed", "fault_proven")
        return True

    def _snapshot(self, facts: dict[str, Any]) -> None:
        self.job_id, self.name = str(facts["job_id"]), str(facts["name"])
        self.state, self.tasks, self.placed = str(facts["state"]), int(facts["tasks"]), bool(facts["placed"])
        self.accepted, self.failed = int(facts["accepted"] or 0), int(facts["failed"] or 0)
        self.decided.clear()

    def _changed(self, facts: dict[str, Any]) -> None:
        index = int(facts["index"])
        if facts.get("state") in ("running", "committed", "frozen"):
            self.under_way[index] = min(1.0, max(0.0, float(facts.get("progress", 0.0))))
        else:
            self.under_way.pop(index, None)

    def _decide(self, outcome: str, index: int) -> bool:
        self.under_way.pop(index, None)
        if index in self.decided:
            return False
        self.decided.add(index)
        if outcome == "accepted":
            self.accepted += 1
        else:
            self.failed += 1
        return True


class _View(Protocol):
    def show(self, standing: Standing, name: str, facts: dict[str, Any]) -> None: ...


class _Json:
    """One JSON object a line: {"event": ..., ...}."""

    def show(self, standing: Standing, name: str, facts: dict[str, Any]) -> None:
        say(json.dumps({"event": name} | facts, ensure_ascii=True))


class _Lines:
    """A line for each thing that a person would want to read of in a log."""

    def show(self, standing: Standing, name: str, facts: dict[str, Any]) -> None:
        done = f"{standing.accepted + standing.failed} of {standing.tasks}"
        match name:
            case "snapshot":
                say(f"{safe(standing.name)} ({short(standing.job_id)}): {safe(standing.state)}, {done} tasks decided")
                if facts["failing"]:
                    say(safe(failing_line(facts["failing"])))
            case "placed":
                say("placed: its stewards hold the job")
            case "accepted":
                say(f"task {facts['index']} accepted ({done})")
            case "failed":
                say(f"task {facts['index']} failed ({done}){_reason(facts)}")
            case "closed":
                say(f"{safe(standing.state)}: {standing.accepted} accepted, {standing.failed} failed")
            case _:
                for line in _news(standing, name, facts):
                    say(line)


def _news(standing: Standing, name: str, facts: dict[str, Any]) -> Iterator[str]:
    """What a person should know at once, whatever else is shown."""
    match name:
        case "failing" if standing.failing <= FAILINGS_SHOWN:
            yield safe(failing_line(facts))
        case "refused":
            yield f"every steward refuses the job{_reason(facts)}"
        case "ratification_needed":
            yield "caretakers decided tasks while no quorum was there: nothing settles before you `nexapod ratify` it"
        case "fault_proven":
            yield f"{safe(facts['peer'])} is proven to have signed a contradiction"


def _reason(facts: dict[str, Any]) -> str:
    return f": {safe(facts['reason'])}" if facts.get("reason") else ""


class _Bars:
    """A bar for the job and one for each of the first tasks under way."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=Console(highlight=False))
        self._whole = self.progress.add_task("", total=None)
        self._bars: dict[int, Any] = {}

    def show(self, standing: Standing, name: str, facts: dict[str, Any]) -> None:
        done = standing.accepted + standing.failed
        failed = f", {standing.failed} failed" if standing.failed else ""
        text = f"{safe(standing.name)[:40]} {standing.state}: {done} of {standing.tasks}{failed}"
        self.progress.update(self._whole, description=text, total=standing.tasks or None, completed=done)
        if name == "failed":
            self._print(f"task {facts['index']} failed{_reason(facts)}")
        for line in _news(standing, name, facts):
            self._print(line)
        self._show_tasks(standing)

    def _print(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False)

    def _show_tasks(self, standing: Standing) -> None:
        for index in [i for i in self._bars if i not in standing.under_way]:
            self.progress.remove_task(self._bars.pop(index))
        for index, progress in standing.under_way.items():
            if index in self._bars:
                self.progress.update(self._bars[index], completed=round(progress * 1000))
            elif len(self._bars) < ROWS_MAX:
                self._bars[index] = self.progress.add_task(
                    f"  task {index}", total=1000, completed=round(progress * 1000)
                )


def watch(client: Client, job: str, *, as_json: bool) -> int:
    """Follow a job to its end. Returns the exit status: 0 only when all of it is accepted. Raises CliError."""
    standing = Standing()
    view: _View
    frame: AbstractContextManager[Any] = nullcontext()
    if as_json:
        view = _Json()
    elif sys.stdout.isatty():
        bars = _Bars()
        view, frame = bars, bars.progress
    else:
        view = _Lines()
    with frame:
        for name, facts in _events(client, job, standing):
            if standing.take(name, facts) or as_json:
                view.show(standing, name, facts)
    if not as_json and not isinstance(view, _Lines):
        say(f"{safe(standing.state)}: {standing.accepted} accepted, {standing.failed} failed")
    if not as_json and standing.ended and standing.accepted:
        note(f"get the results: nexapod results {short(standing.job_id)} -o DIR")
    return standing.status


def _events(client: Client, job: str, standing: Standing) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a job to its end, over as many connections as it takes: each begins with a snapshot."""
    failures = 0
    while True:
        try:
            lagged = False
            for event in client.events(job):
                failures = 0
                yield event
                if event[0] == "closed":
                    return
                if lagged := event[0] == "lagged":  # some were lost: a new connection begins with the whole truth
                    break
            failures += not lagged
        except (ConnectionLost, Unreachable) as error:
            # Before the first answer it is an error like any other; later the daemon may be restarting.
            if not standing.job_id or failures >= RETRIES_MAX:
                raise
            failures += 1
            note(f"{error.facts}; trying again")
        if failures > RETRIES_MAX:
            raise ConnectionLost("the daemon's stream of events ends again and again")
        if failures:
            time.sleep(RETRY_S)
