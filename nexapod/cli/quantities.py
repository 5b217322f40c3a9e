"""Amounts as people write and read them: bytes ("512MiB"), durations ("10m", "1h30m"). Pure."""

from __future__ import annotations

import re
from typing import Final

from nexapod.config.storage import parse_size as parse_size

_TIME = re.compile(r"(?:([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|d|h|m|s))")
_TIME_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


def parse_duration(text: str) -> int:
    """Milliseconds. Raises ValueError, which says what is allowed."""
    compact = text.replace(" ", "")
    parts = _TIME.findall(compact)
    if not parts or "".join(n + unit for n, unit in parts) != compact:
        raise ValueError(f"{text!r} is not a duration: write it like '90s', '10m', '1h30m' or '7d'")
    return round(sum(float(n) * _TIME_MS[unit] for n, unit in parts))


def show_size(count: int) -> str:
    """Bytes for people: 34 MiB."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def show_duration(ms: int) -> str:
    """Milliseconds for people: the two largest units."""
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    parts: list[str] = []
    left = ms
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, _TIME_MS[unit])
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
