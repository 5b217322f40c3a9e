"""Ends all that is in a container without the engine: at once, and also when the engine is away.

Two ways to find it: by the cgroup that is the container's, where it is ours to name (cgroups.py), which costs a few
reads of files; and else among all processes by the container's id, which the kernel shows in the name of their cgroup.
What this process may not kill stays; but where it is not root, tasks run as its own user, whom it may.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
_MONITOR: Final = "conmon"
"""Podman puts the process that waits for a container beside it."""
_ID: Final = re.compile(r"[0-9a-f]{64}")


def kill_containers(cgroups: Iterable[Path]) -> None:
    """All that is in these cgroups, or was a moment ago. Harmless when nothing is."""
    for cgroup in cgroups:
        if _MONITOR not in cgroup.name and not _killed_as_one(cgroup):
            _kill_each(partial(_members, cgroup))


def kill_by_id(container: str) -> None:
    """All processes of the container of this id. Harmless when there are none."""
    if _ID.fullmatch(container):
        _kill_each(partial(_processes_of, container))


def _killed_as_one(cgroup: Path) -> bool:
    """By cgroup v2, since Linux 5.14. False: it cannot."""
    try:
        fd = os.open(cgroup / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        with open(fd, "w") as file:
            file.write("1")
    except OSError:
        return False
    return True


def _kill_each(members: Callable[[], list[int]]) -> None:
    """The first of them is the container's init, and with it the kernel ends all that are begun meanwhile."""
    with contextlib.ExitStack() as opened:
        handles = {}
        for pid in members():
            with contextlib.suppress(OSError):
                handles[pid] = os.pidfd_open(pid)
                opened.callback(os.close, handles[pid])
        # Only those that are still in it: a handle may be of a process that was given the number of one just gone.
        for pid in members():
            if pid in handles:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(handles[pid], signal.SIGKILL)


def _members(cgroup: Path) -> list[int]:
    """Those that this process can see, oldest first: others count as 0."""
    try:
        return sorted(pid for pid in map(int, (cgroup / "cgroup.procs").read_text().split()) if pid > 1)
    except OSError:
        return []


def _processes_of(container: str) -> list[int]:
    found = []
    for entry in os.scandir(PROC):
        if entry.name.isdecimal() and int(entry.name) > 1:
            try:
                paths = Path(entry.path, "cgroup").read_text()
            except OSError:
                continue  # gone meanwhile, or not ours to see
            if any(container in path and _MONITOR not in path for path in paths.splitlines()):
                found.append(int(entry.name))
    return sorted(found)
