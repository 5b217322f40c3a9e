"""What can go wrong in a command, one class a situation. Its docstring is what the user reads below the facts: what to
do next. The exit status of each is part of the interface:

    0    done; for `submit --watch` and `watch`: the job is settled, and every task of it accepted
    1    failed: the job has failed tasks or was cancelled, a certificate or result is not good, the daemon failed
    2    wrong usage: unknown option, missing argument
    3    no daemon answers
    4    no such job, task or file on the daemon
    5    refused: invalid input, or not possible in this state
    130  interrupted
"""

from __future__ import annotations

import inspect
from typing import ClassVar, Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_FOUND: Final = 4
REFUSED: Final = 5
INTERRUPTED: Final = 130


class CliError(Exception):
    """Look at the daemon's log for more."""

    status: ClassVar[int] = FAILED

    def __init__(self, facts: str, remedy: str = "") -> None:
        """`facts` says what happened and why; `remedy` replaces the docstring where more is known."""
        super().__init__(facts)
        self.facts = facts
        self.remedy = remedy or inspect.getdoc(self) or ""


class Unreachable(CliError):
    """Start a daemon with `nexapod start`, or name the home folder of a running one with --home or NEXAPOD_HOME."""

    status = UNREACHABLE


class ConnectionLost(CliError):
    """The daemon may have been stopped. Nothing that it had acknowledged is lost: ask again when it runs."""

    status = UNREACHABLE


class NothingThere(CliError):
    """`nexapod jobs` lists the jobs that this daemon knows."""

    status = NOT_FOUND


class Refused(CliError):
    """Correct what is named above and try again."""

    status = REFUSED


class BadFile(Refused):
    """Correct the file and try again; nothing has been submitted."""


class FileChanged(Refused):
    """Submit again when nothing writes to that file any more."""


class DaemonFailed(CliError):
    """This is a fault of the daemon, whose log says more."""


class BadResult(CliError):
    """The file was not kept. Try again; if it stays so, the daemon's disk may be failing."""


class UnsafePath(CliError):
    """A worker chose this name for an output file. It was not written; the other files were."""


class SystemTrouble(CliError):
    """Look at what is named above, its permissions and the free space there, and run the command again."""


class DiskTrouble(CliError):
    """Check the folder, its permissions and its free space, and run the command again: it continues where it was."""
