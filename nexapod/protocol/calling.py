"""Making a job known and calling workers to it: its card, and how many are asked to bid (docs/protocol.md, Announcing).

Pure: the gate, the submission and whoever passes a card on use the same rules.
"""

from __future__ import annotations

from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.job import JobState
from nexapod.protocol.wire.messages import Card

CALL_ALL: Final = 1 << 16
"""Every worker's turn is below it."""
ANSWERS_PER_PLACE: Final = 2


def groups_wanted(open_places: int, shards: int) -> int:
    """Groups to admit: two for each place that is open, and no more than a shard's tasks keep busy."""
    return min(ANSWERS_PER_PLACE * open_places, limits.CALLED_MAX * shards)


def first_call(wanted: int, population: int) -> int:
    """The threshold that about `wanted` of `population` peers answer: everybody, where few are known."""
    if population <= wanted:
        return CALL_ALL
    return max(1, CALL_ALL * wanted // population)


def card_of(state: JobState, call: int, seq: int) -> Card:
    """A job in a few words."""
    spec = state.spec
    return Card(
        job=state.job,
        submitter=state.submitter,
        size=len(state.statement.envelope),
        executor=spec.run.executor,
        memory=max(spec.limits.memory, spec.requires.memory),
        gpus=spec.limits.gpus,
        gate=state.gate().holders,
        call=call,
        seq=seq,
    )
