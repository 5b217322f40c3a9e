"""What this seat has signed of freezes, so that it never contradicts itself (docs/protocol.md, section 5).

Two freezes of one (task, round) are the same when they name the same commits in the same groups and order: one that was
proposed again in other company contradicts nothing. The statements themselves are saved before they are sent; this
table is rebuilt from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis
from nexapod.protocol.steward.shard.judging import FreezeEntry, RoundOf
from nexapod.protocol.wire.bodies import Freeze, FreezeItem

STUCK_MS: Final = 3 * limits.LEADER_MUTE_MS
"""A freeze that does not count so long after this seat signed it is given up: the next round may be signed."""
SKIPPED_MAX: Final = 4
"""Rounds that a proposal may be ahead of what this seat knows: nobody uses them up alone."""


def round_of(body: Freeze, item: FreezeItem) -> RoundOf | None:
    """One item of a freeze, written out; None: it names places that are not there."""
    if any(w >= len(body.workers) or c >= len(body.commits) for w, c in item.entries):
        return None
    entries = tuple(FreezeEntry(*body.workers[w], body.commits[c]) for w, c in item.entries)
    return RoundOf(item.round, entries)


@dataclass(frozen=True, slots=True)
class _Signed:
    round: RoundOf
    at: Millis


class Signed:
    """Of each task the freeze of the highest round."""

    def __init__(self) -> None:
        self._freezes: dict[int, _Signed] = {}

    def note(self, body: Freeze, now: Millis) -> None:
        """This seat signs, or has signed, a freeze."""
        for item in body.items:
            written = round_of(body, item)
            known = self._freezes.get(item.task)
            if written is not None and (known is None or known.round.round < written.round):
                self._freezes[item.task] = _Signed(written, now)

    def freeze(self, task: int) -> RoundOf | None:
        known = self._freezes.get(task)
        return None if known is None else known.round

    def stuck_at(self, task: int) -> Millis | None:
        """From when on what was signed is given up, unless it counts."""
        known = self._freezes.get(task)
        return None if known is None else known.at + STUCK_MS

    def may_freeze(self, task: int, proposed: RoundOf, frozen: int, now: Millis) -> bool:
        """Whether this seat may sign it. `frozen`: the round that counts, 0 for none."""
        known = self._freezes.get(task)
        if known is None:
            return frozen < proposed.round <= frozen + SKIPPED_MAX
        if proposed.round == known.round.round:
            return proposed == known.round
        given_up = known.round.round <= frozen or known.at + STUCK_MS <= now
        return given_up and known.round.round < proposed.round <= max(known.round.round, frozen) + SKIPPED_MAX
