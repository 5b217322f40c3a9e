"""Trying a promise: folders are laid out, the probe is run through the executor's port, and what is seen is judged.

Bounded: an attempt takes ATTEMPT_S at most, whatever the sandbox does. What goes wrong in between is a verdict, not an
exception.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from nexapod.executor.contract import Ended, Report, TaskRun
from nexapod.executor.outputs import OutputRefused, collect
from nexapod.executor.probe.engine import EngineAway
from nexapod.executor.probe.promises import Folders, Promise, Seen, Traces, Unknown, Verdict
from nexapod.executor.probe.sandboxes import Sandbox
from nexapod.executor.removal import remove_tree
from nexapod.protocol.errors import LocalError

ATTEMPT_S: Final = 40.0
READY_S: Final = 15.0
LOOK_S: Final = 0.02
RESULT_BYTES_MAX: Final = 1 << 16
COUNT_MAX: Final = 100_000
_INPUT: Final = b"what goes in\n"
_FOLDERS: Final = ("input", "output", "checkpoint")


@dataclass(frozen=True, slots=True)
class Tried:
    """A promise, what came of it, and how long that took."""

    promise: Promise
    verdict: Verdict
    seconds: float


async def try_promise(sandbox: Sandbox, promise: Promise, place: Path, number: int) -> Tried:
    """Make the attempt. `place`: a folder of ours alone; `number`: unique among this sandbox's attempts."""
    began = trio.current_time()
    verdict: Verdict = Unknown(f"no end after {ATTEMPT_S:.0f} s")
    with trio.move_on_after(ATTEMPT_S):
        try:
            verdict = promise.judge(await _see(sandbox, promise, place, number))
        except (OSError, EngineAway, LocalError) as error:
            verdict = Unknown(f"it could not be tried: {error}")
    return Tried(promise, verdict, trio.current_time() - began)


async def _see(sandbox: Sandbox, promise: Promise, place: Path, number: int) -> Seen:
    if promise.how == "cancel":
        return await _see_cancelled(sandbox, promise, place, f"{number:x}")
    seen = await _see_run(sandbox, promise, place, f"{number:x}")
    if promise.how == "run":
        return seen
    again = await _see_run(sandbox, promise, place, f"{number:x}-1")
    other = await _see_run(sandbox, promise, place, f"{number:x}-2", seed=bytes(32))
    return replace(seen, again=again.result, other=other.result)


async def _see_run(sandbox: Sandbox, promise: Promise, place: Path, label: str, **options: Any) -> Seen:
    folder = place / label
    await trio.to_thread.run_sync(_lay_out, folder)
    try:
        ended = await sandbox.executor.run(sandbox.task(promise, label, folder, **options), _ignore)
        return await trio.to_thread.run_sync(_sight, promise, folder, ended)
    finally:
        await _remove(folder)


async def _see_cancelled(sandbox: Sandbox, promise: Promise, place: Path, label: str) -> Seen:
    """Start it, wait until it says that it is at work, look, cancel, and look again."""
    folder = place / label
    await trio.to_thread.run_sync(_lay_out, folder)
    during, ends = Traces(), list[Ended]()

    async def execute(run: TaskRun) -> None:
        ends.append(await sandbox.executor.run(run, _ignore))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(execute, sandbox.task(promise, label, folder))
            if await _wait_ready(folder / "output" / "ready", ends):
                during = await sandbox.traces()
            nursery.cancel_scope.cancel()
        after = await sandbox.traces()
    finally:
        await _remove(folder)
    ended = ends[0] if ends else None
    return Seen(promise.limits, ended, during=during, after=after)


async def _wait_ready(mark: Path, ends: list[Ended]) -> bool:
    with trio.move_on_after(READY_S):
        while not ends:
            if os.path.exists(mark):  # noqa: ASYNC240  (one look at a local folder)
                return True
            await trio.sleep(LOOK_S)
    return False


def _ignore(report: Report) -> None:
    """What the probe says while it runs is of no account: how it ends is."""


def _lay_out(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for name in _FOLDERS:
        (folder / name).mkdir()
    (folder / "input").chmod(0o755)
    (folder / "input" / "in.txt").write_bytes(_INPUT)
    (folder / "input" / "in.txt").chmod(0o644)


def _sight(promise: Promise, folder: Path, ended: Ended) -> Seen:
    return Seen(promise.limits, ended, _result(folder, ended), _look_into(promise, folder))


def _result(folder: Path, ended: Ended) -> dict[str, Any]:
    """What the probe wrote, or printed where it could not write. Read as hostile: it ran in what is on trial."""
    texts = [_read(folder / "output" / "result.json"), *reversed(ended.log.splitlines())]
    for text in texts:
        try:
            found = json.loads(text)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def _read(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""  # not written: it was stopped before, or could not
    with open(fd, "rb") as file:
        return file.read(RESULT_BYTES_MAX).decode("ascii", "replace")


def _look_into(promise: Promise, folder: Path) -> Folders:
    files, size = 0, 0
    with os.scandir(folder / "output") as entries:
        for entry in entries:
            files += 1
            size += entry.stat(follow_symlinks=False).st_size
            if files >= COUNT_MAX:
                break
    given = folder / "input"
    return Folders(
        output_files=files,
        output_bytes=size,
        input_intact=os.listdir(given) == ["in.txt"] and (given / "in.txt").read_bytes() == _INPUT,
        strays=tuple(sorted({*os.listdir(folder)} - {*_FOLDERS})),
        refused=_refusal(folder / "output", promise.limits.output),
    )


def _refusal(output: Path, bytes_max: int) -> str:
    try:
        collect(output, bytes_max=bytes_max)
    except OutputRefused as refused:
        return refused.reason
    return ""


async def _remove(folder: Path) -> None:
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(remove_tree, folder)
