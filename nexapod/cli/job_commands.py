"""The commands about one job, or all of them, that ask one question or say one thing."""

from __future__ import annotations

import time
from typing import Any, Final

from nexapod.cli.client import Client
from nexapod.cli.console import facts, note, print_json, say, short, table
from nexapod.cli.quantities import show_duration
from nexapod.cli.safe import safe

TASKS_SHOWN_MAX: Final = 200
PEERS_SHOWN: Final = 4
LOG_LINES_SHOWN: Final = 5
ENDS: Final = frozenset({"settled", "cancelled"})


def show_jobs(client: Client, *, as_json: bool) -> None:
    jobs = client.get("/v1/jobs")
    if as_json:
        print_json(jobs)
        return
    if not jobs:
        note("No job is known. Submit one: nexapod submit JOB.toml")
    rows = [
        (short(j["job_id"]), j["name"], j["state"], counts(j), "me" if j["mine"] else short(j["submitter"]), _age(j))
        for j in jobs
    ]
    table(("job", "name", "state", "tasks", "submitter", "age"), rows)


def counts(row: dict[str, Any]) -> str:
    """How far a job is, in words."""
    if row["accepted"] is None:
        return f"{row['tasks']} (details: at its submitter)"
    failed = f", {row['failed']} failed" if row["failed"] else ""
    running = f", {row['running']} under way" if row["running"] else ""
    return f"{row['accepted']} of {row['tasks']} accepted{failed}{running}"


def _age(row: dict[str, Any]) -> str:
    return show_duration(max(0, int(time.time() * 1000) - row["created"]))


def show_job(client: Client, job: str, *, as_json: bool) -> None:
    view = client.get(f"/v1/jobs/{job}")
    path = f"/v1/jobs/{view['job_id']}"
    tasks = (
        list(client.pages(path, lambda answer: list(answer["task_list"]), view["tasks"]))
        if as_json
        else view["task_list"]
    )
    if as_json:
        print_json(view | {"task_list": tasks})
        return
    pairs = [
        ("job", view["job_id"]),
        ("name", view["name"]),
        *_written(view),
        ("state", view["state"]),
        ("tasks", counts(view)),
        ("submitter", view["submitter"]),
        ("age", _age(view)),
    ]
    facts([*pairs, *_kept(view)])
    for line in _failing(view["failing"], view["job_id"]):
        say(line)
    if tasks:
        say()
        table(
            ("task", "state", "progress", "results", "reason"),
            [_task_row(t) for t in tasks[:TASKS_SHOWN_MAX]],
            right=(0, 2),
        )
    if view["tasks"] > TASKS_SHOWN_MAX:
        note(f"The first {TASKS_SHOWN_MAX} tasks are shown; --json gives all.")


def _kept(view: dict[str, Any]) -> list[tuple[str, str]]:
    """Who keeps the job, and what its result rests on."""
    pairs = [("panel", _some(view["panel"]))]
    pairs += [(f"seats of shard {s['shard']}", f"{_some(s['holders'])}{_moved(s)}") for s in view["seats"]]
    if not view["mine"]:
        return [*pairs, ("work here", view["work"])]
    held = f"yes, by {len(view['placed_on'])}" if view["placed"] else "not yet"
    held += "" if view["may_leave"] or view["state"] in ENDS else "; keep this machine running"
    pairs = [("rests on", view["rests_on"]), *pairs, ("held by stewards", held)]
    pairs += [("refused", f"{short(r['peer'])}: {r['reason']}") for r in view["refused"][:PEERS_SHOWN]]
    pairs += [("cannot settle", problem) for problem in view["problems"]]
    if view["unratified"]:
        shards = ", ".join(map(str, view["unratified"][:PEERS_SHOWN]))
        pairs.append(("not ratified", f"caretakers decided in shards {shards}: `nexapod ratify` accepts that"))
    return pairs


def _some(peers: list[str]) -> str:
    shown = ", ".join(short(peer) for peer in peers[:PEERS_SHOWN])
    return f"{len(peers)}: {shown}{' ...' if len(peers) > PEERS_SHOWN else ''}"


def _moved(seats: dict[str, Any]) -> str:
    return f" (changed {seats['epoch']} times)" if seats["epoch"] > 1 else " (changed once)" if seats["epoch"] else ""


def _failing(failing: dict[str, Any] | None, job: str) -> list[str]:
    """The first result that did not end well, and the end of what it printed."""
    if failing is None:
        return []
    printed = str(failing["log"]).strip().split("\n")[-LOG_LINES_SHOWN:] if failing["log"].strip() else []
    return [
        "",
        safe(failing_line(failing)),
        *[f"  {safe(line)}" for line in printed],
        f"all that it printed: nexapod logs {short(job)} {failing['index']}",
    ]


def failing_line(failing: dict[str, Any]) -> str:
    """A result that did not end well, in one line that is not safe yet."""
    reason = "" if failing["reason"] in ("", f"exit status {failing['exit']}") else f": {failing['reason']}"
    ending = f"({failing['outcome']}, exit {failing['exit']})"
    return f"task {failing['index']} did not end well at {short(failing['peer'])} {ending}{reason}"


def _written(view: dict[str, Any]) -> list[tuple[str, str]]:
    """What its submitter wrote of a job, besides its name; a description may have several lines."""
    lines = str(view["description"]).rstrip().split("\n") if view["description"] else []
    shown = [("" if number else "description", line.expandtabs()) for number, line in enumerate(lines)]
    return shown + ([("tags", ", ".join(view["tags"]))] if view["tags"] else [])


def _task_row(task: dict[str, Any]) -> tuple[object, ...]:
    replicas = [f"{short(r['peer'])} {_ending(r)}" for r in task["replicas"]]
    told = {r["peer"] for r in task["replicas"] if r["exit"] is not None}
    replicas += [f"{short(n['peer'])} exit {n['exit']}" for n in task["notes"] if n["peer"] not in told]
    workers = replicas or [short(w) for w in task["workers"]]
    shown = ", ".join(workers[:PEERS_SHOWN]) + (" ..." if len(workers) > PEERS_SHOWN else "")
    return task["index"], task["state"], f"{task['progress']:.0%}", shown, _reason(task)


def _ending(replica: dict[str, Any]) -> str:
    if replica["outcome"] != "ok":
        return f"{replica['outcome']} (exit {replica['exit']})" if replica["exit"] else str(replica["outcome"])
    return {True: "ok (agrees)", False: "ok (differs)", None: "ok"}[replica["agrees"]]


def _reason(task: dict[str, Any]) -> str:
    """Why it failed, or else why the first of its results did not end well."""
    said = [task["reason"], *(r["reason"] for r in task["replicas"]), *(n["reason"] for n in task["notes"])]
    return next((str(reason) for reason in said if reason), "")


def cancel(client: Client, job: str, *, as_json: bool) -> None:
    view = client.get(f"/v1/jobs/{job}?count=0")
    client.post(f"/v1/jobs/{view['job_id']}/cancel")
    if as_json:
        print_json({"job_id": view["job_id"], "cancelled": True})
    else:
        say(f"job {short(view['job_id'])} is cancelled: its tasks end on all peers as they hear of it")


def ratify(client: Client, job: str, *, as_json: bool) -> None:
    view = client.get(f"/v1/jobs/{job}?count=0")
    client.post(f"/v1/jobs/{view['job_id']}/ratify")
    if as_json:
        print_json({"job_id": view["job_id"], "ratified": view["unratified"]})
    elif view["unratified"]:
        say(f"job {short(view['job_id'])}: accepted what caretakers decided in {_shards(len(view['unratified']))}")
    else:
        say(f"job {short(view['job_id'])}: no caretakers have decided anything, so there is nothing to accept")


def _shards(count: int) -> str:
    return f"{count} shard" if count == 1 else f"{count} shards"
