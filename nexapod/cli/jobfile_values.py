"""Values that several tables of a job file have: sizes, durations, paths below /input. Bad ones become problems."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from nexapod.cli.quantities import parse_duration, parse_size, spell_duration, spell_size
from nexapod.cli.safe import is_plain_path
from nexapod.config.document import Table, kind_of
from nexapod.protocol import limits

BYTES_MAX: Final = 1 << 40
TEXT_BYTES_MAX: Final = 4096
"""An argument, the value of a variable or of a parameter."""
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


def take_size(table: Table, key: str, default: int, low: int, high: int = BYTES_MAX) -> int:
    """Bytes."""
    return _take(table, key, default, low, high, parse_size, spell_size)


def take_duration(table: Table, key: str, default: int, low: int, high: int) -> int:
    """Milliseconds."""
    return _take(table, key, default, low, high, parse_duration, spell_duration)


def _take(
    table: Table, key: str, default: int, low: int, high: int, parse: Callable[[str], int], spell: Callable[[int], str]
) -> int:
    raw = table.raw(key)
    if raw is None:
        return default
    if not isinstance(raw, str):
        table.problem(key, f"expected text with a unit, not {kind_of(raw)}")
        return default
    try:
        value = parse(raw)
    except ValueError as error:
        table.problem(key, str(error))
        return default
    if not low <= value <= high:
        table.problem(key, f"{raw!r} is not possible: from {spell(low)} to {spell(high)} is allowed")
        return default
    return value


def check_filled(table: Table, key: str, text: str) -> bool:
    """Whether an entry says something; a problem when it does not."""
    if not text:
        table.problem(key, "an entry is empty")
    return bool(text)


def check_path(table: Table, key: str, path: str) -> bool:
    """Whether it can be a path below /input; a problem when it cannot."""
    if not is_plain_path(path):
        rule = f"relative, without '..', '\\' or control characters, at most {limits.PATH_MAX} bytes"
        table.problem(key, f"{path!r} cannot be a path below /input: {rule}")
        return False
    return True
