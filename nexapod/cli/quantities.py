"""Amounts as people write and read them: bytes ("512MiB"), durations ("10m", "1h30m"). Pure."""

from __future__ import annotations

import re
from typing import Final

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)\Z")
_UNITS: Final = {
    "": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip
_TIME = re.compile(r"(?:([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|d|h|m|s))")
_TIME_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError, which says what is allowed."""
    match = _SIZE.match(text.strip())
    if match is None or match.group(2) not in _UNITS:
        raise ValueError(f"{text!r} is not a size: write it like '512MiB', '1.5GiB' or '200MB'")
    return round(float(match.group(1)) * _UNITS[match.group(2)])


def parse_duration(text: str) -> int:
    """Milliseconds. Raises ValueError, which says what is allowed."""
    compact = text.replace(" ", "")
    parts = _TIME.findall(compact)
    if not parts or "".join(n + unit for n, unit in parts) != compact:
        raise ValueError(f"{text!r} is not a duration: write it like '90s', '10m', '1h30m' or '7d'")
    return round(sum(float(n) * _TIME_MS[unit] for n, unit in parts))


def spell_size(count: int) -> str:
    """Exactly so many bytes, as parse_size reads them: 512MiB."""
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count and count % size == 0:
            return f"{count // size}{unit}"
    return f"{count}B"


def spell_duration(ms: int) -> str:
    """Exactly so many milliseconds, as parse_duration reads them: 90s."""
    unit = next(u for u, size in _TIME_MS.items() if ms % size == 0) if ms else "s"
    return f"{ms // _TIME_MS[unit]}{unit}"


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
