"""How this worker's tasks stand at each seat, by the seats' own word (docs/protocol.md, section 5).

One seat's word never ends an attempt: it takes as many as could have admitted this worker, or a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.primitives import JobId, PeerId, TaskId
from nexapod.protocol.wire.messages import Gone, Standing, Status
from nexapod.protocol.worker.attempt import Committed, Granted, Revealed
from nexapod.protocol.worker.attempts import Attempt, Attempts
from nexapod.protocol.worker.deciding import Deciding
from nexapod.protocol.worker.handover import Handover
from nexapod.protocol.worker.prospects import Prospect


@dataclass(slots=True)
class Heard:
    """What a message comes to: attempts that nobody needs any more, attempts whose lease is gone before they began,
    and attempts of which the seat lacks statements."""

    over: list[Attempt] = field(default_factory=list)
    lost: list[Attempt] = field(default_factory=list)
    asked: list[Attempt] = field(default_factory=list)


class Standings:
    """Passes on what a seat says to who needs it."""

    def __init__(
        self,
        ctx: Context,
        prospects: Mapping[JobId, Prospect],
        attempts: Attempts,
        deciding: Deciding,
        handover: Handover,
    ) -> None:
        self._ctx = ctx
        self._prospects = prospects
        self._attempts = attempts
        self._deciding = deciding
        self._handover = handover

    def on_status(self, seat: PeerId, message: Status) -> Heard:
        """A seat's answer to Renew."""
        heard = Heard()
        prospect = self._prospects[message.job]
        if seat not in prospect.state.seats(message.shard).holders:
            return heard
        tasks = prospect.spec.shard_tasks(message.shard)
        for index, standing in message.tasks:
            attempt = self._attempts.get(TaskId(message.job, index))
            if index not in tasks:
                continue
            if attempt is not None:
                self._on_standing(attempt, seat, standing, heard)
            elif standing == "decided":
                prospect.note_decided(message.shard, index, seat)
        self._handover.asked(heard.asked, seat)
        return heard

    def on_gone(self, peer: PeerId, message: Gone) -> Heard:
        """A seat where the job is over has closed its tasks; one that does not know it is told of it."""
        heard = Heard()
        prospect = self._prospects[message.job]
        if message.known:
            for attempt in [a for a in self._attempts if a.task.job == message.job]:
                if peer in prospect.state.seats(attempt.task.shard).holders:
                    self._on_standing(attempt, peer, "closed", heard)
        elif peer in prospect.state.members():
            self._tell_job(prospect, peer)
        return heard

    def _tell_job(self, prospect: Prospect, peer: PeerId) -> None:
        last = prospect.told.get(peer)
        if last is None or last + limits.RETRY_MIN_MS <= self._ctx.now:
            prospect.told[peer] = self._ctx.now
            self._ctx.deliver(peer, prospect.state.statements(), prospect.state.addrs(peer))

    def _on_standing(self, attempt: Attempt, seat: PeerId, standing: Standing, heard: Heard) -> None:
        match standing:
            case "held" | "decided":
                self._deciding.kept(attempt, seat)
                self._handover.answered(attempt, seat, shown=True)
            case "frozen":
                self._deciding.kept(attempt, seat)
                self._handover.answered(attempt, seat, shown=False)
                heard.asked += [attempt] if isinstance(attempt.state, Revealed) else []
            case "closed":
                heard.over += [attempt] if self._deciding.closed(attempt, seat) else []
            case "lost":
                self._on_lost(attempt, seat, heard)
            case "unknown":
                heard.asked += [attempt] if isinstance(attempt.state, (Committed, Revealed)) else []

    def _on_lost(self, attempt: Attempt, seat: PeerId, heard: Heard) -> None:
        """What runs goes on: it may be leased again, and win. What only waits is left to others."""
        self._ctx.trace("lease_lost", job=attempt.task.job, task=attempt.task.index, seat=seat)
        by_quorum = self._deciding.lost(attempt, seat)
        match attempt.state:
            case Granted() if by_quorum:
                heard.lost.append(attempt)
            case Committed() | Revealed():
                heard.asked.append(attempt)
            case _:
                pass
