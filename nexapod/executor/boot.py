"""Which start of this machine we are in: what is noted of clocks, or of files not yet on disk, holds within one only.

Knows nothing of what is noted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Another one after each start; empty where the system does not say, which is then no start to rely on."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
