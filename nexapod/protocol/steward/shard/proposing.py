"""The proposals of a leading seat, until a quorum has signed them (docs/protocol.md, section 5).

A proposal is signed and saved by its seat, sent to the others, and signed or objected to by them. When all have
answered and it still does not count, its tasks are sorted by who objected to them: what enough seats would sign is
proposed again at once, the rest after a pause.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.wire.messages import Object
from nexapod.protocol.wire.statements import Statement

Subject: TypeAlias = Literal["freeze", "verdict", "adoption"]
RESENDS_MAX: Final = 3
PAUSE_MAX_MS: Final = 32 * limits.COSIGN_MS
PROPOSALS_MAX: Final = limits.SHARD_TASKS


@dataclass(slots=True)
class _Proposal:
    statement: Statement
    tasks: tuple[int, ...]
    due: Millis
    """When the seats should have answered."""
    sent: int = 1
    objections: dict[PeerId, frozenset[int]] = field(default_factory=dict)
    doubted: dict[PeerId, None] = field(default_factory=dict)
    """Workers that those who object cannot vouch for."""


@dataclass(frozen=True, slots=True)
class _Pause:
    until: Millis
    span: Millis


@dataclass(frozen=True, slots=True)
class Ended:
    """A proposal that too few seats sign."""

    subject: Subject
    refused: tuple[int, ...]
    """Tasks that some seat would not sign."""
    doubted: tuple[PeerId, ...]
    """Workers that some seat cannot vouch for."""


class Proposals:
    """Those of one seat for one shard. `send`: a proposal to another seat."""

    def __init__(self, send: Callable[[PeerId, Statement], None]) -> None:
        self._send = send
        self._open: dict[StatementId, _Proposal] = {}
        self._paused: dict[tuple[Subject, int], _Pause] = {}
        self._apart: dict[tuple[Subject, int], frozenset[PeerId]] = {}
        """Who objected to a task's last proposal: those with the same objectors go together."""

    def __len__(self) -> int:
        return len(self._open)

    def add(self, statement: Statement, tasks: Sequence[int], others: Collection[PeerId], now: Millis) -> None:
        """A proposal that this seat has signed and saved. To the other seats."""
        if len(self._open) >= PROPOSALS_MAX:
            del self._open[next(iter(self._open))]
        self._open[statement.id] = _Proposal(statement, tuple(tasks), now + limits.LEADER_MUTE_MS)
        for peer in others:
            self._send(peer, statement)

    def merged(self, statement: Statement) -> None:
        """One of this seat's has been signed by somebody else."""
        proposal = self._open.get(statement.id)
        if proposal is not None:
            proposal.statement = statement

    def counted(self, id: StatementId) -> bool:
        """It counts now. Whether it was one of this seat's."""
        proposal = self._open.pop(id, None)
        if proposal is None:
            return False
        for task in proposal.tasks:
            self._paused.pop((_subject(proposal), task), None)
            self._apart.pop((_subject(proposal), task), None)
        return True

    def free(self, subject: Subject, tasks: Collection[int], now: Millis) -> list[list[int]]:
        """Of these tasks those that may be proposed now, in the groups in which they should be."""
        if not tasks:
            return []
        busy = {task for p in self._open.values() if _subject(p) == subject for task in p.tasks}
        groups: dict[frozenset[PeerId], list[int]] = {}
        for task in sorted(tasks):
            pause = self._paused.get((subject, task))
            if task not in busy and (pause is None or pause.until <= now):
                groups.setdefault(self._apart.get((subject, task), frozenset()), []).append(task)
        return [groups[objectors] for objectors in sorted(groups, key=sorted)]

    def object(self, peer: PeerId, objection: Object, holders: Sequence[PeerId], now: Millis) -> Ended | None:
        """A seat will not sign some tasks; under -1 what is about no task. None: other seats may still sign."""
        proposal = self._open.get(objection.proposal)
        if proposal is None or peer not in holders or peer in proposal.statement.signers:
            return None
        proposal.objections[peer] = frozenset(objection.tasks or (-1,)).intersection(proposal.tasks)
        proposal.doubted |= dict.fromkeys(objection.workers)
        others = [seat for seat in holders if seat not in proposal.statement.signers]
        if any(seat not in proposal.objections for seat in others):
            return None
        self._end(proposal, len(holders), now)
        refused = frozenset(task for tasks in proposal.objections.values() for task in tasks)
        return Ended(_subject(proposal), tuple(sorted(refused)), tuple(proposal.doubted))

    def _end(self, proposal: _Proposal, seats: int, now: Millis) -> None:
        """Sort its tasks by who objected to them."""
        del self._open[proposal.statement.id]
        subject = _subject(proposal)
        most = seats - (seats // 2 + 1)
        for task in proposal.tasks:
            objectors = frozenset(peer for peer, tasks in proposal.objections.items() if task in tasks)
            alone = len(proposal.tasks) == 1 or not proposal.objections
            self._apart[subject, task] = objectors
            if len(objectors) > most or alone:
                self._pause((subject, task), now)

    def _pause(self, name: tuple[Subject, int], now: Millis) -> None:
        old = self._paused.get(name)
        span = limits.COSIGN_MS if old is None else min(2 * old.span, PAUSE_MAX_MS)
        self._paused[name] = _Pause(now + span, span)

    def nudge(self, task: int) -> None:
        """Something new is known of a task: what was paused may be tried at once."""
        for subject in ("freeze", "verdict", "adoption"):
            pause = self._paused.get((subject, task))
            if pause is not None:
                self._paused[subject, task] = _Pause(0, pause.span)

    def tick(self, holders: Sequence[PeerId], now: Millis) -> tuple[PeerId, ...]:
        """Send again what was not answered, and give up in the end. Names the seats that left something unanswered."""
        mute: dict[PeerId, None] = {}
        for proposal in [p for p in self._open.values() if p.due <= now]:
            silent = [
                peer for peer in holders if peer not in proposal.objections and peer not in proposal.statement.signers
            ]
            mute |= dict.fromkeys(silent)
            if proposal.objections or proposal.sent > RESENDS_MAX or not silent:
                self._end(proposal, len(holders), now)
                continue
            proposal.sent += 1
            proposal.due = now + limits.LEADER_MUTE_MS
            for peer in silent:
                self._send(peer, proposal.statement)
        return tuple(mute)

    def clear(self) -> None:
        """The seats have changed: nothing of the epoch before is asked for any more."""
        self._open.clear()
        self._paused.clear()
        self._apart.clear()

    def next_at(self, now: Millis) -> Millis | None:
        """When there is something to do here again."""
        times = [proposal.due for proposal in self._open.values()]
        times += [pause.until for pause in self._paused.values() if pause.until > now]
        return min(times, default=None)


def _subject(proposal: _Proposal) -> Subject:
    kind = proposal.statement.kind
    assert kind == "freeze" or kind == "verdict" or kind == "adoption"
    return kind


class Gathering:
    """What becomes ready within BATCH_MS of the last batch goes together; after a pause the first goes at once."""

    def __init__(self) -> None:
        self._next: Millis = 0

    def due(self, now: Millis) -> bool:
        return now >= self._next

    def went(self, now: Millis) -> None:
        self._next = now + limits.BATCH_MS

    @property
    def next_at(self) -> Millis:
        return self._next
