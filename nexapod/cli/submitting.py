"""`nexapod submit`: read the job file, upload what it names, post the job, and say when this machine may go offline."""

from __future__ import annotations

import io
import time
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Final

from nexapod.cli.client import Client
from nexapod.cli.console import byte_progress, note, print_json, say, short
from nexapod.cli.errors import OK, BadFile, ConnectionLost, FileChanged
from nexapod.cli.jobfile import Plan, read_job
from nexapod.cli.jobfile_files import Upload
from nexapod.cli.safe import safe
from nexapod.cli.watching import watch
from nexapod.config import ConfigError

PLACED_WAIT_S: Final = 30.0
_ENDS: Final = frozenset({"complete", "cancelled"})


def submit(client: Client, path: Path, *, wait: bool, and_watch: bool, as_json: bool) -> int:
    """Returns the exit status. Raises CliError."""
    try:
        plan = read_job(path)
    except ConfigError as error:
        raise BadFile("\n".join(safe(line) for line in str(error).split("\n"))) from None
    upload(client, plan, quiet=as_json)
    job = str(client.post("/v1/jobs", plan.body)["job_id"])
    if not as_json:
        say(f"job {job}")
        say(f"{safe(plan.name)}: {plan.tasks} {'task' if plan.tasks == 1 else 'tasks'} submitted")
    view = wait_placed(client, job, PLACED_WAIT_S) if wait else {"placed": False, "placed_on": []}
    if as_json:
        print_json({"job_id": job, "tasks": plan.tasks, "placed": view["placed"], "placed_on": view["placed_on"]})
    elif wait:
        say(_placed_sentence(view))
    return watch(client, job, as_json=as_json) if and_watch else OK


def _placed_sentence(view: dict[str, Any]) -> str:
    if view["placed"]:
        count = len(view["placed_on"])
        return f"the job is held by {count} other {'peer' if count == 1 else 'peers'}: this machine may go offline"
    if view.get("state") in _ENDS:
        return f"the job is {view['state']} already"
    return (
        "no other peers hold the job and its inputs yet: keep this machine running. `nexapod why` says what is missing"
    )


def wait_placed(client: Client, job: str, seconds: float) -> dict[str, Any]:
    """Wait until other peers hold the job, at most so long. Returns {placed, placed_on, state}."""
    end = time.monotonic() + seconds
    view: dict[str, Any] = {"placed": False, "placed_on": [], "state": "placing"}
    while not (view["placed"] or view["state"] in _ENDS) and (left := end - time.monotonic()) > 0:
        try:
            with closing(client.events(job, timeout_s=left)) as events:
                for name, data in events:
                    if name == "snapshot":
                        view = {key: data[key] for key in ("placed", "placed_on", "state")}
                    if view["placed"] or view["state"] in _ENDS or name in ("placed", "complete"):
                        break
                    if time.monotonic() > end:
                        return view
        except ConnectionLost:
            if time.monotonic() < end:
                raise
            return view
        # Ask again: the facts of `placed` are the backend's, its snapshot is the whole truth.
        if not view["placed"]:
            answer = client.get(f"/v1/jobs/{job}?count=0")
            view = {key: answer[key] for key in ("placed", "placed_on", "state")}
    return view


def upload(client: Client, plan: Plan, *, quiet: bool) -> None:
    """Bring every blob of the plan to the daemon; those that it holds are not sent again. Raises CliError."""
    for item in plan.uploads:
        if client.has_blob(item.ref):
            continue
        with byte_progress(item.name, item.ref.size, quiet=quiet) as told, _opened(item) as source:
            ref = client.upload(source, item.ref.size, told)
        if ref != item.ref:
            raise FileChanged(f"{safe(item.name)} changed while it was being read")
        if not quiet:
            note(f"uploaded {safe(item.name)} ({short(ref.digest.hex())})")


def _opened(item: Upload) -> IO[bytes]:
    if isinstance(item.source, bytes):
        return io.BytesIO(item.source)
    try:
        return item.source.open("rb")
    except OSError as error:
        raise FileChanged(f"{safe(item.name)} cannot be read any more: {error.strerror}") from None
