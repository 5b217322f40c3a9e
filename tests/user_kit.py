"""What tests do as a user whom permissions bind, even where they are run by root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

NOBODY: Final = 65534


def as_an_ordinary_user(top: Path, act: Callable[[], None]) -> None:
    """Do it in `top`, in a process that may not pass over permissions, as root may."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.chdir(top)
            if not os.geteuid():
                os.chown(".", NOBODY, NOBODY)
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
