"""When, and who, runs a shard on without a quorum (docs/protocol.md, Caretakers): pure decisions.

A caretaker takes the shard alone, and then fills the empty seats by its own quorum with whoever answers. So nobody has
to sign together with one who may already have signed another succession of that epoch, and cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis
from nexapod.protocol.rules.succession import quorum

STAGGER_MS: Millis = limits.PROBE_MAX_MS
"""The second in the shard's order waits so much longer than the first, and so on."""


def quorum_lost_since(silent_since: Sequence[Millis | None], needed: int) -> Millis | None:
    """Since when fewer than `needed` of these answer; None: enough do. One entry a peer, None for one that answers."""
    silent = sorted(since for since in silent_since if since is not None)
    spare = len(silent_since) - needed
    return silent[spare] if len(silent) > spare else None


def caretaker_due(seats: Sequence[Millis | None], panel: Sequence[Millis | None], rank: int) -> Millis | None:
    """When a member may take a shard that neither its seats nor the panel can decide about; None: they can.

    `rank`: how many members before it in the shard's order answer.
    """
    by_seats = quorum_lost_since(seats, quorum(len(seats)))
    by_panel = quorum_lost_since(panel, quorum(len(panel)))
    if by_seats is None or by_panel is None:
        return None
    return max(by_seats, by_panel) + limits.CARETAKER_MS + rank * STAGGER_MS
