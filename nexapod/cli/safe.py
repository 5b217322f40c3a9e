"""What came from the network or a file, made harmless before a terminal shows it."""

from __future__ import annotations

import re

from nexapod.protocol.errors import PeerError

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
    # Most commands read no paths: they need not load what decodes them.
    from nexapod.protocol.wire.fields import PATH

    try:
        PATH.decode(path)
    except PeerError:
        return False
    return True


def is_plain_name(name: str) -> bool:
    """Whether a name may be that of a folder we make: one component, nothing hidden, nothing to quote."""
    return bool(_PLAIN.match(name))
