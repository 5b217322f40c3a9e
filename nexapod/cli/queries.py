"""The commands that ask one question about this daemon and its peers, and show the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nexapod.cli.client import Client
from nexapod.cli.console import facts, note, print_json, say, table
from nexapod.cli.quantities import show_duration, show_size
from nexapod.cli.safe import safe


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
            ("reachable", _reachable(status.get("dialable"))),
            ("slots", f"{status['running_tasks']} of {status['slots']} busy"),
            ("open jobs", status["active_jobs"]),
            ("steward of", _shards(status["steward_shards"])),
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


def _reachable(dialable: bool | None) -> str:
    return {
        True: "yes: other peers have dialled it",
        False: "no: it works for others, but is no steward",
        None: "not known yet: no other peer has dialled it",
    }[dialable]


def _shards(count: int) -> str:
    return f"{count} shard" if count == 1 else f"{count} shards"


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
            _link(p),
            _steward(p),
            p.get("slots", "?"),
            p.get("cpus", ""),
            show_size(p["memory"]) if p.get("memory") else "",
            ", ".join(str(e["name"]) for e in p.get("executors", [])),
        )
        for p in peers
    ]
    # As wide as a terminal with whole peer ids allows; --json has the rest, addresses among it.
    table(("peer", "state", "steward", "slots", "cores", "memory", "runs"), rows, right=(3, 4, 5))


def _link(peer: dict[str, Any]) -> str:
    if peer["connected"]:
        return "connected"
    return "heard of" if peer["gone_s"] is None else f"gone {show_duration(peer['gone_s'] * 1000)}"


def _steward(peer: dict[str, Any]) -> str:
    """Whether a job submitted here could name it as a steward: only one that this daemon has got through to."""
    if not peer["steward"]:
        return "no"
    return "yes" if peer["dialled"] or not peer["connected"] else "not dialled"


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
            ("reachable", _reachable(profile["reachable"] or None)),
            ("steward", _offer(profile)),
        ]
    )
    if profile["local_gpus"]:
        say()
        columns = ("gpu", "uuid", "model", "memory", "busy", "temperature", "power", "state")
        table(columns, [_gpu_row(g) for g in profile["local_gpus"]], right=(0, 3, 4, 5, 6))
    if profile["local_gpus"] and profile["gpu_trouble"]:
        note(safe(profile["gpu_trouble"]))


def _offer(profile: dict[str, Any]) -> str:
    offer = profile["offer"]
    if offer is None:
        return f"no: {profile['no_offer']}" if profile["no_offer"] else "no"
    size = f"{_shards(offer['shards'])} and {show_size(offer['storage'])}"
    return f"of up to {size} of one job, at {', '.join(offer['addrs'])}"


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


def show_why(client: Client, job: str | None, *, as_json: bool) -> None:
    answer = client.get("/v1/why" if job is None else f"/v1/jobs/{job}/why")
    if as_json:
        print_json(answer)
        return
    for sentence in answer["sentences"]:
        say(safe(sentence))


def stop(client: Client, *, now: bool, as_json: bool) -> None:
    client.post("/v1/stop", {"drain": not now})
    if as_json:
        print_json({"stopping": True, "drain": not now})
    else:
        say("the daemon stops" if now else "the daemon stops when its running tasks have ended, within a bound")
