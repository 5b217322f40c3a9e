"""What came from the network or a file, made harmless before a terminal shows it."""

from __future__ import annotations

import re

from nexapod.protocol.codec import path as path_check
from nexapod.protocol.errors import PeerError
from nexapod.protocol.limits import PATH_MAX

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,79}\Z")


def safe(value: object) -> str:
    """Text on one line in which nothing can drive a terminal: control and invisible characters are written out.

    (The log has its own copy: loading the logging library would cost each command more than its answer.)
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def safe_lines(text: str) -> list[str]:
    """The lines of a text, each made safe."""
    return [safe(line) for line in text.split("\n")]


def is_plain_path(path: str) -> bool:
    """Whether a path is relative, without '..', control characters or anything else that leads out of its folder."""
    try:
        path_check(PATH_MAX).decode(path)
    except PeerError:
        return False
    return True


def is_plain_name(name: str) -> bool:
    """Whether a name may be that of a folder we make: one component, nothing hidden, nothing to quote."""
    return bool(_PLAIN.match(name))
