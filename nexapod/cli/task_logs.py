"""`nexapod logs`: what the workers of a task print, once or as it comes."""

from __future__ import annotations

import time
from typing import Any, Final

from nexapod.cli.client import Client
from nexapod.cli.console import note, print_json, say
from nexapod.cli.errors import NothingThere
from nexapod.cli.safe import safe, safe_lines
from nexapod.protocol.limits import TASKS_MAX

LOOK_S: Final = 1.0
_OVER: Final = ("accepted", "failed")


def show(client: Client, job: str, task: int, *, as_json: bool) -> None:
    """What is there now."""
    logs = client.get(_path(job, task))
    if as_json:
        print_json(logs)
        return
    if not logs:
        note("No worker of this task has shown anything yet.")
    for entry in logs:
        _say_head(entry)
        _say_lines(str(entry["log"]) or "(nothing)")


def follow(client: Client, job: str, task: int, *, as_json: bool) -> None:
    """What comes, until the task is accepted or failed. With `as_json`, each change is a line of its own."""
    shown: dict[str, dict[str, Any]] = {}
    while True:
        over = _is_over(client, job, task)
        for entry in client.get(_path(job, task)):
            old = shown.get(entry["peer"])
            if old != entry:
                shown[entry["peer"]] = entry
                print_json(entry) if as_json else _say_more(old, entry)
        if over:
            return
        time.sleep(LOOK_S)


def _is_over(client: Client, job: str, task: int) -> bool:
    view = client.get(f"/v1/jobs/{job}?first={task}&count=1")
    found = [row["state"] for row in view["task_list"] if row["index"] == task]
    return view["state"] in ("settled", "cancelled") or (bool(found) and found[0] in _OVER)


def _say_more(old: dict[str, Any] | None, entry: dict[str, Any]) -> None:
    """What is new since it was shown last. Once the middle has been left out, the end of the log is shown again."""
    before = str(old["log"]) if old is not None else ""
    log = str(entry["log"])
    more = log[len(before) :] if log.startswith(before) else log
    if old is None or more or entry["outcome"] != old["outcome"]:
        _say_head(entry)
    _say_lines(more)


def _say_head(entry: dict[str, Any]) -> None:
    status = "" if entry["exit"] is None else f", exit {safe(entry['exit'])}"
    reason = "" if entry["reason"] in ("", f"exit status {entry['exit']}") else f": {safe(entry['reason'])}"
    say(f"--- {safe(entry['peer'])}: {safe(entry['outcome'])}{status}{reason}")


def _say_lines(log: str) -> None:
    for line in safe_lines(log.removesuffix("\n")) if log else ():
        say(f"  {line}")


def _path(job: str, task: int) -> str:
    if task >= TASKS_MAX:
        raise NothingThere(f"there is no task {task}: a job has at most {TASKS_MAX}", "`nexapod job` lists its tasks.")
    return f"/v1/jobs/{job}/tasks/{task}/log"
