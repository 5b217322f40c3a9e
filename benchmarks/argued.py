"""Mutants that were read, and change nothing that a rule says: equivalent, or a matter of speed (mutation.py)."""

from __future__ import annotations

from typing import Final

ARGUED: Final[dict[tuple[str, str, str], str]] = {}
"""(module, the line without its indentation, the change) -> why."""
