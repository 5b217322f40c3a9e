"""The tables [storage] and [bandwidth] of config.toml: how much of the disk and of the line blobs may take.

Sizes are written as "20GiB", rates as "10MiB/s"; 0 and nothing at all mean the same for a rate: no cap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nexapod.config.document import Table
from nexapod.config.sizes import parse_size

SIZE_MAX: Final = 1 << 60
BLOBS_MIN: Final = 64 << 20
"""A smaller quota than this could hold no job's inputs."""
IMAGES_MIN: Final = 1 << 20
RATE_MIN: Final = 64 << 10
"""Below it an answer would take longer than the peers that asked wait for it (blobs/rates.py)."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes; None: what the daemon finds right for the disk."""

    blobs_max: int | None = None
    disk_free_min: int | None = None
    images_max: int | None = None
    """What container images loaded for tasks may take in the engine, unpacked."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second that blobs may take, of this machine and of each peer; None: no cap."""

    up_max: int | None = None
    down_max: int | None = None
    peer_up_max: int | None = None
    peer_down_max: int | None = None


def parse_rate(text: str) -> int:
    """Bytes a second. Raises ValueError, which says what is allowed."""
    amount, slash, unit = text.strip().rpartition("/")
    if not slash or unit.strip() != "s":
        raise ValueError(f"{text!r} is not a rate: write it like '10MiB/s', or 0 for no cap")
    return parse_size(amount)


def read_storage(table: Table) -> Storage:
    """[storage]; what is wrong is noted in the document."""
    least = {"blobs_max": BLOBS_MIN, "disk_free_min": 0, "images_max": IMAGES_MIN}
    return Storage(**{key: read_size(table, key, size) for key, size in least.items()})


def read_bandwidth(table: Table) -> Bandwidth:
    """[bandwidth]; what is wrong is noted in the document."""
    return Bandwidth(*(_rate(table, key) for key in ("up_max", "down_max", "peer_up_max", "peer_down_max")))


def read_size(table: Table, key: str, least: int) -> int | None:
    """A size at a key, None without one; what is wrong is noted in the document."""
    value = table.raw(key)
    if value is None:
        return None
    if type(value) is not str:
        table.problem(key, "expected a size as text, like '20GiB'")
        return None
    try:
        size = parse_size(value)
    except ValueError as error:
        table.problem(key, str(error))
        return None
    if not least <= size <= SIZE_MAX:
        table.problem(key, f"{value!r} is not possible: at least {least} bytes, and less than a million TiB")
        return None
    return size


def _rate(table: Table, key: str) -> int | None:
    value = table.raw(key)
    if value is None or (type(value) is int and value == 0):
        return None
    if type(value) is not str:
        table.problem(key, "expected a rate as text, like '10MiB/s', or 0 for no cap")
        return None
    try:
        rate = parse_rate(value)
    except ValueError as error:
        table.problem(key, str(error))
        return None
    if rate and not RATE_MIN <= rate <= SIZE_MAX:
        table.problem(key, f"{value!r} is not possible: at least 64KiB/s, or other peers would give up waiting")
        return None
    return rate or None
