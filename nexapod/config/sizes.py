"""Sizes as people write them: "512MiB". Pure."""

from __future__ import annotations

import re
from typing import Final

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)\Z")
_UNITS: Final = {
    "": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError, which says what is allowed."""
    match = _SIZE.match(text.strip())
    if match is None or match.group(2) not in _UNITS:
        raise ValueError(f"{text!r} is not a size: write it like '512MiB', '1.5GiB' or '200MB'")
    return round(float(match.group(1)) * _UNITS[match.group(2)])


def spell_size(count: int) -> str:
    """Exactly so many bytes, as parse_size reads them: 512MiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % _UNITS[unit] == 0:
            return f"{count // _UNITS[unit]}{unit}"
    return f"{count}B"
