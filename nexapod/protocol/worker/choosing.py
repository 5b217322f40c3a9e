"""Which jobs, and which of their shards, a worker asks for work: fairly between submitters first, and by priority only
among the jobs of one. Pure.

A priority is its submitter's own word, so it moves that submitter's jobs and nobody else's.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nexapod.protocol.primitives import JobId, Millis, PeerId
from nexapod.protocol.worker.attempts import Place


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that this worker is admitted to and would work on."""

    job: JobId
    submitter: PeerId
    priority: int
    task_ms: Millis
    """What one of its tasks takes of the room."""
    room_ms: Millis
    """The most of the room that it can use: its tasks may need more than a slot."""
    shards: tuple[tuple[int, int], ...]
    """Where to ask, best first, and for how many tasks at most."""


def deal(candidates: Iterable[Candidate], load_ms: Mapping[PeerId, Millis], room_ms: Millis) -> dict[Place, int]:
    """For how many more tasks to ask in which shard.

    `load_ms` is what this machine already does for each submitter. Task by task the room goes to the submitter that has
    least, of its jobs to that of the highest priority.
    """
    asked: dict[Place, int] = {}
    loads = dict(load_ms)
    waiting = _by_submitter(candidates)
    turns = [(loads.get(submitter, 0), submitter) for submitter in waiting]
    heapq.heapify(turns)
    while turns and room_ms > 0:
        load, submitter = heapq.heappop(turns)
        hands = waiting[submitter]
        hand = hands[0]
        place = hand.take()
        asked[place] = asked.get(place, 0) + 1
        room_ms -= hand.candidate.task_ms
        if hand.is_spent:
            hands.pop(0)
        if hands:
            heapq.heappush(turns, (load + hand.candidate.task_ms, submitter))
    return asked


class _Hand:
    """What a candidate can still be dealt."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._room_ms = candidate.room_ms
        self._shards = [shard for shard in candidate.shards if shard[1] > 0]

    @property
    def is_spent(self) -> bool:
        return self._room_ms <= 0 or not self._shards

    def take(self) -> Place:
        shard, most = self._shards[0]
        self._room_ms -= self.candidate.task_ms
        if most > 1:
            self._shards[0] = (shard, most - 1)
        else:
            self._shards.pop(0)
        return (self.candidate.job, shard)


def _by_submitter(candidates: Iterable[Candidate]) -> dict[PeerId, list[_Hand]]:
    waiting: dict[PeerId, list[_Hand]] = {}
    for candidate in sorted(candidates, key=lambda c: (-c.priority, c.job)):
        hand = _Hand(candidate)
        if not hand.is_spent:
            waiting.setdefault(candidate.submitter, []).append(hand)
    return waiting
