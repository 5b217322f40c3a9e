"""The commands that ask one question and show the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from nexapod.cli.client import Client
from nexapod.cli.console import facts, note, print_json, say, short, table
from nexapod.cli.quantities import show_duration, show_size
from nexapod.cli.safe import safe

TASKS_SHOWN_MAX: Final = 200
PEERS_SHOWN: Final = 4


def show_status(client: Client, *, as_json: bool) -> None:
    status = client.get("/v1/status")
    if as_json:
        print_json(status)
        return
    facts(
        [
            ("peer", status["peer_id"]),
            ("state", _state(status)),
            ("up for", show_duration(status["uptime_s"] * 1000)),
            ("network", status["network"]),
            ("connected", f"{status['connected_peers']} of {status['known_peers']} known peers"),
            ("work", f"{status['running_tasks']} of {status['slots']} slots busy, {status['active_jobs']} active jobs"),
            ("home", status["home"]),
            ("version", f"{status['version']}, process {status['pid']}"),
            *[("listening", address) for address in status["listen"]],
        ]
    )


def _state(status: dict[str, Any]) -> str:
    state, left_s = str(status["state"]), status.get("pause_left_s")
    if state != "paused":
        return state
    end = "until `nexapod resume`" if left_s is None else f"for {show_duration(round(left_s * 1000))} more"
    return f"{state} {end}"


def show_peers(client: Client, *, as_json: bool) -> None:
    peers = client.get("/v1/peers")
    if as_json:
        print_json(peers)
        return
    if not peers:
        note("No other peer is known yet. Name one with `nexapod start --bootstrap`.")
    rows = [
        (
            p["peer_id"],
            "connected" if p["connected"] else ("known" if p["live"] else "silent"),
            p.get("slots", "") if p["heard_s"] is not None else "?",
            p.get("cpus", ""),
            show_size(p["memory"]) if p.get("memory") else "",
            p.get("arch", ""),
            ", ".join(str(e["name"]) for e in p.get("executors", [])),
            p["address"],
        )
        for p in peers
    ]
    table(("peer", "state", "slots", "cores", "memory", "arch", "runs", "address"), rows, right=(2, 3, 4))


def show_profile(client: Client, *, as_json: bool) -> None:
    profile = client.get("/v1/profile")
    if as_json:
        print_json(profile)
        return
    gpus = [_told_gpu(g) for g in profile["gpus"]] or [f"none: {profile['gpu_trouble']}".removesuffix(": ")]
    runs = [f"{e['name']} ({e['version']})" for e in profile["executors"]] or ["none: no task can run here"]
    facts(
        [
            ("machine", f"{profile['os']} {profile['arch']}, {profile['cpus']} cores, {profile['cpu_model']}"),
            ("memory", show_size(profile["memory"])),
            ("free disk", show_size(profile["disk_free"])),
            *[("GPU", gpu) for gpu in gpus],
            *[("executor", run) for run in runs],
            *[("image", image) for image in profile["images"]],
            ("slots", profile["slots"]),
            ("reachable", "yes: it may be a steward" if profile["serves"] else "no: it works for others only"),
        ]
    )
    if profile["local_gpus"]:
        say()
        columns = ("gpu", "uuid", "model", "memory", "busy", "temperature", "power", "state")
        table(columns, [_gpu_row(g) for g in profile["local_gpus"]], right=(0, 3, 4, 5, 6))
    if profile["local_gpus"] and profile["gpu_trouble"]:
        note(safe(profile["gpu_trouble"]))


def _told_gpu(gpu: dict[str, Any]) -> str:
    return f"{gpu['model']}, {show_size(gpu['memory'])}, compute capability {gpu['capability']}, driver {gpu['driver']}"


def _gpu_row(gpu: dict[str, Any]) -> tuple[object, ...]:
    free = f"leased to {gpu['leased_by']}" if gpu["leased_by"] else "free"
    return (
        gpu["index"],
        gpu["uuid"],
        gpu["model"],
        _of(gpu["memory_used"], gpu["memory"], show_size),
        _unit(gpu["utilisation_percent"], "%"),
        _unit(gpu["temperature_c"], "C"),
        _of(gpu["power_w"], gpu["power_limit_w"], lambda watts: f"{watts:.0f} W"),
        f"not lent: {gpu['withheld']}" if gpu["withheld"] else free,
    )


def _of(part: Any, whole: Any, show: Callable[[Any], str]) -> str:
    """How much of how much; a question mark for what the GPU does not tell."""
    used, limit = ("?" if value is None else show(value) for value in (part, whole))
    return f"{used} of {limit}"


def _unit(value: int | None, unit: str) -> str:
    return "?" if value is None else f"{value} {unit}"


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
    if row["settled"] is None:
        return f"{row['tasks']} (details: at its submitter)"
    failed = f", {row['failed']} failed" if row["failed"] else ""
    running = f", {row['running']} under way" if row["running"] else ""
    return f"{row['settled']} of {row['tasks']} settled{failed}{running}"


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
    held = f"yes, by {len(view['placed_on'])} peers" if view["placed"] else "not yet: keep this machine running"
    pairs = [
        ("job", view["job_id"]),
        ("name", view["name"]),
        *_written(view),
        ("state", view["state"]),
        ("tasks", counts(view)),
        ("submitter", view["submitter"]),
        ("age", _age(view)),
    ]
    if view["mine"]:
        pairs.append(("held by others", held))
    facts(pairs)
    if tasks:
        say()
        table(
            ("task", "state", "progress", "workers", "reason"),
            [_task_row(t) for t in tasks[:TASKS_SHOWN_MAX]],
            right=(0, 2),
        )
    if view["tasks"] > TASKS_SHOWN_MAX:
        note(f"The first {TASKS_SHOWN_MAX} tasks are shown; --json gives all.")


def _written(view: dict[str, Any]) -> list[tuple[str, str]]:
    """What its submitter wrote of a job, besides its name; a description may have several lines."""
    lines = str(view["description"]).rstrip().split("\n") if view["description"] else []
    shown = [("" if number else "description", line.expandtabs()) for number, line in enumerate(lines)]
    return shown + ([("tags", ", ".join(view["tags"]))] if view["tags"] else [])


def _task_row(task: dict[str, Any]) -> tuple[object, ...]:
    replicas = [f"{short(r['peer'])} {r['outcome']}{_mark(r['agreed'])}" for r in task["replicas"]]
    workers = replicas or [short(w) for w in task["workers"]]
    shown = ", ".join(workers[:PEERS_SHOWN]) + (" ..." if len(workers) > PEERS_SHOWN else "")
    return task["index"], task["state"], f"{task['progress']:.0%}", shown, task["reason"]


def _mark(agreed: bool | None) -> str:
    return {True: " (agrees)", False: " (not counted)", None: ""}[agreed]


def show_why(client: Client, job: str | None, *, as_json: bool) -> None:
    answer = client.get("/v1/why" if job is None else f"/v1/jobs/{job}/why")
    if as_json:
        print_json(answer)
        return
    for sentence in answer["sentences"]:
        say(safe(sentence))


def cancel(client: Client, job: str, *, as_json: bool) -> None:
    view = client.get(f"/v1/jobs/{job}?count=0")
    client.post(f"/v1/jobs/{view['job_id']}/cancel")
    if as_json:
        print_json({"job_id": view["job_id"], "cancelled": True})
    else:
        say(f"job {short(view['job_id'])} is cancelled: its tasks end on all peers as they hear of it")


def stop(client: Client, *, now: bool, as_json: bool) -> None:
    client.post("/v1/stop", {"drain": not now})
    if as_json:
        print_json({"stopping": True, "drain": not now})
    else:
        say("the daemon stops" if now else "the daemon stops when its running tasks have ended, within a bound")
