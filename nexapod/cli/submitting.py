"""`nexapod submit`: read the job file, upload what it names, post the job; say what it rests on, and who holds it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from nexapod.cli.client import Client
from nexapod.cli.console import byte_progress, note, print_json, say, short, waiting
from nexapod.cli.errors import OK, BadFile, CliError, FileChanged
from nexapod.cli.image_commands import with_image
from nexapod.cli.jobfile import Plan, read_job
from nexapod.cli.jobfile_files import Upload
from nexapod.cli.peer_ids import peer_of
from nexapod.cli.safe import safe
from nexapod.cli.watching import watch
from nexapod.config import ConfigError

PLACED_WAIT_S: Final = 30.0
LOOK_FIRST_S: Final = 0.02
LOOK_S: Final = 0.2
"""Between two looks at whether the job is placed, ever longer ones up to this: a stream of events says nothing of how
many hold it so far."""
REASONS_SHOWN: Final = 6
PANEL_TO_LEAVE: Final = 3
"""With fewer stewards, one of them the submitter, the others are no quorum of them."""
_NOT_AWAITED: Final = {"placed": False, "placed_on": [], "may_leave": False}
_ENDS: Final = frozenset({"settled", "cancelled"})


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user says about the stewards: `friends` by peer id, who must be among them."""

    friends: tuple[str, ...] = ()
    accept_unknown: bool = False


def submit(client: Client, path: Path, choices: Choices, *, wait: bool, and_watch: bool, as_json: bool) -> int:
    """Returns the exit status. Raises CliError."""
    friends = [peer_of(friend) for friend in choices.friends]
    try:
        plan = read_job(path, partial(byte_progress, quiet=as_json))
    except ConfigError as error:
        raise BadFile("\n".join(safe(line) for line in str(error).split("\n"))) from None
    for remark in () if as_json else plan.remarks:
        note(safe(remark))
    plan = with_image(client, plan, quiet=as_json)
    upload(client, plan, quiet=as_json)
    about_stewards = {"friends": friends, "accept_unknown": choices.accept_unknown}
    submitted = client.post("/v1/jobs", plan.body | about_stewards)
    job = str(submitted["job_id"])
    if not as_json:
        say(f"job {job}")
        say(f"{safe(plan.name)}: {plan.tasks} {'task' if plan.tasks == 1 else 'tasks'} submitted")
        say(safe(submitted["rests_on"]))
    view = wait_placed(client, job, PLACED_WAIT_S, quiet=as_json) if wait else _NOT_AWAITED
    if as_json:
        print_json(
            {
                "job_id": job,
                "tasks": plan.tasks,
                "panel": submitted["panel"],
                "rests_on": submitted["rests_on"],
                "placed": view["placed"],
                "placed_on": view["placed_on"],
                "may_leave": view["may_leave"],
            }
        )
    elif wait:
        for line in placed_lines(view, lambda: _missing(client, job)):
            say(line)
    return watch(client, job, as_json=as_json) if and_watch else OK


def placed_lines(view: dict[str, Any], missing: Callable[[], list[str]]) -> list[str]:
    """Whether this machine may go offline, and what is missing if it may not."""
    if view["may_leave"]:
        return [f"its stewards hold the job and all its inputs ({_holders(view)}): this machine may go offline"]
    if view["placed"]:
        return ["this machine is one of its few stewards: keep it running until the job is settled"]
    if view.get("state") in _ENDS:
        refused = [f"  {safe(r['peer'])} refuses it: {safe(r['reason'])}" for r in view.get("refused", [])]
        return [f"the job is {safe(view['state'])} already", *refused]
    verb = "holds" if len(view["placed_on"]) == 1 else "hold"
    held = f"only {_holders(view)} {verb}" if view["placed_on"] else "none of its stewards holds"
    first = f"{held} the job and all its inputs yet: keep this machine running"
    return [first, *(f"  {safe(sentence)}" for sentence in missing())]


def _holders(view: dict[str, Any]) -> str:
    """How many of the panel hold the shards of which they have a seat."""
    count, panel = len(view["placed_on"]), len(view["panel"])
    return f"{count} of {panel} {'steward' if panel == 1 else 'stewards'}"


def _missing(client: Client, job: str) -> list[str]:
    try:
        return [str(sentence) for sentence in client.get(f"/v1/jobs/{job}/why")["sentences"]][:REASONS_SHOWN]
    except CliError as error:
        # The job is submitted: that its state cannot be explained now does not undo that.
        return [error.facts]


def wait_placed(client: Client, job: str, seconds: float, *, quiet: bool) -> dict[str, Any]:
    """Wait until its stewards hold the job and this machine may leave, at most so long; not for that where it is one of
    so few that it never may. Returns the job's view. Raises CliError."""
    end = time.monotonic() + seconds
    pause = LOOK_FIRST_S
    with waiting("placing the job", quiet=quiet) as show:
        while True:
            view: dict[str, Any] = client.get(f"/v1/jobs/{job}?count=0")
            done = view["may_leave"] or (view["placed"] and len(view["panel"]) < PANEL_TO_LEAVE)
            if done or view["state"] in _ENDS or (left := end - time.monotonic()) <= 0:
                return view
            show(f"placing the job: held by {_holders(view)}")
            time.sleep(min(pause, left))
            pause = min(2 * pause, LOOK_S)


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
