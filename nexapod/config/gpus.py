"""[gpu] of config.toml: which GPUs of this machine its owner lends, and up to which temperature.

Knows how GPUs are named, not which are there: whether a name fits one is found when they are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from nexapod.config.document import Table, kind_of, spelt
from nexapod.protocol.limits import GPUS_MAX

DISABLED_MAX: Final = 64
TEMPERATURE_C: Final = (30, 120)
_UUID = re.compile(r"gpu-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """What an owner says of the GPUs. The defaults lend all of them."""

    enabled: bool = True
    """False: they are not even looked at, so that one that sleeps goes on sleeping."""
    disabled: frozenset[str | int] = frozenset()
    """UUIDs in small letters, and indices, as `nvidia-smi -L` lists them."""
    temperature_max_c: int | None = None
    """One that is hotter is given no further task; None: the driver's own protection is enough."""


def gpu_settings(table: Table) -> GpuSettings:
    """The settings of a [gpu] table; what is wrong in it is noted as problems."""
    settings = GpuSettings(
        enabled=table.flag("enabled", default=True),
        disabled=_disabled(table, "disabled"),
        temperature_max_c=table.whole("temperature_max_c", 0, *TEMPERATURE_C) or None,
    )
    table.end()
    return settings


def _disabled(table: Table, key: str) -> frozenset[str | int]:
    entries = table.raw(key)
    if entries is None:
        return frozenset()
    if type(entries) is not list:
        table.problem(key, f"expected a list of UUIDs and indices, not {kind_of(entries)}")
        return frozenset()
    if len(entries) > DISABLED_MAX:
        table.problem(key, f"{len(entries)} entries: at most {DISABLED_MAX} are allowed")
        return frozenset()
    wrong = [entry for entry in entries if not _names_a_gpu(entry)]
    if wrong:
        table.problem(
            key, f"{spelt(wrong[0])} names no GPU: write a UUID like 'GPU-...' or an index, as nvidia-smi -L does"
        )
        return frozenset()
    return frozenset(entry.lower() if isinstance(entry, str) else entry for entry in entries)


def _names_a_gpu(entry: Any) -> bool:
    if type(entry) is int:
        return 0 <= entry < GPUS_MAX
    return isinstance(entry, str) and _UUID.match(entry.lower()) is not None
