"""`nexapod tasks`, `pause` and `resume`: what runs on this machine, and the owner's switch."""

from __future__ import annotations

from typing import Any, Final

from nexapod.cli.client import Client
from nexapod.cli.console import note, print_json, say, short, table
from nexapod.cli.errors import Refused
from nexapod.cli.quantities import parse_duration, show_duration, show_size, spell_duration
from nexapod.cli.safe import safe

PAUSE_TIMEOUT_S: Final = 30.0
PAUSE_MS_MAX: Final = 30 * 86_400_000
"""What the API takes (tests/contract/test_api_cli.py compares them)."""
_ENDLESS: Final = "Without a duration, the pause lasts until `nexapod resume`."


def show_tasks(client: Client, *, as_json: bool) -> None:
    tasks = client.get("/v1/tasks")
    if as_json:
        print_json(tasks)
        return
    if not tasks:
        note("No task is on this machine now. `nexapod why` says what it waits for.")
        return
    columns = ("job", "task", "name", "state", "progress", "age", "cpu", "memory", "printed")
    table(columns, [_row(task) for task in tasks], right=(1, 4, 5, 6, 7, 8))


def _row(task: dict[str, Any]) -> tuple[object, ...]:
    return (
        short(task["job_id"]),
        task["index"],
        task["name"],
        "paused" if task["frozen"] else task["stage"],
        "?" if task["progress"] is None else f"{task['progress']:.0%}",
        show_duration(round(task["age_s"] * 1000)),
        show_duration(task["cpu_ms"]),
        show_size(task["peak_memory"]),
        show_size(task["printed"]),
    )


def pause(client: Client, duration: str | None, *, as_json: bool) -> None:
    try:
        ms = parse_duration(duration) if duration is not None else None
    except ValueError as error:
        raise Refused(safe(error), _ENDLESS) from None
    if ms is not None and not 0 < ms <= PAUSE_MS_MAX:
        allowed = f"a pause is longer than nothing and at most {spell_duration(PAUSE_MS_MAX)}"
        raise Refused(f"{safe(duration)} is not possible: {allowed}", _ENDLESS)
    client.post("/v1/pause", {"for_s": None if ms is None else ms / 1000}, timeout_s=PAUSE_TIMEOUT_S)
    if as_json:
        print_json({"paused": True, "for_ms": ms})
    else:
        end = "`nexapod resume` lets them go on" if ms is None else f"they go on in {show_duration(ms)}"
        say(f"The tasks on this machine stand still, and no new ones are taken: {end}.")


def resume(client: Client, *, as_json: bool) -> None:
    client.post("/v1/resume", timeout_s=PAUSE_TIMEOUT_S)
    if as_json:
        print_json({"paused": False})
    else:
        say("The tasks on this machine go on.")
