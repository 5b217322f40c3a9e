"""Cosigned proposals of one node that gather signatures: repeated to those who have not signed yet
(docs/protocol.md, Succession, Renewal)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.wire.statements import Statement, merge


@dataclass(slots=True)
class Petition:
    """`voters`: who may sign it, `needed`: how many of all signatures."""

    statement: Statement
    voters: tuple[PeerId, ...]
    due: Millis
    pause_ms: Millis = limits.RETRY_MIN_MS

    def unsigned(self) -> list[PeerId]:
        return [peer for peer in self.voters if peer not in self.statement.signers]


class Petitions:
    """Those of one node for one job. `pause_max_ms`: how rarely one is repeated at last."""

    def __init__(self, ctx: Context, addrs: Callable[[PeerId], tuple[str, ...]], pause_max_ms: Millis) -> None:
        self._ctx = ctx
        self._addrs = addrs
        self._pause_max_ms = pause_max_ms
        self._open: dict[StatementId, Petition] = {}

    @property
    def deadline(self) -> Millis | None:
        return min(petition.due for petition in self._open.values()) if self._open else None

    def __len__(self) -> int:
        return len(self._open)

    def open(self, statement: Statement, voters: tuple[PeerId, ...]) -> None:
        self._open[statement.id] = Petition(statement, voters, self._ctx.now)

    def get(self, id: StatementId) -> Statement | None:
        petition = self._open.get(id)
        return None if petition is None else petition.statement

    def all(self) -> list[Statement]:
        return [petition.statement for petition in self._open.values()]

    def signed(self, statement: Statement) -> Statement | None:
        """More signatures came. The whole, if it is one of these."""
        petition = self._open.get(statement.id)
        if petition is None:
            return None
        petition.statement = merge(petition.statement, statement)
        return petition.statement

    def close(self, id: StatementId) -> None:
        self._open.pop(id, None)

    def hurry(self, peer: PeerId) -> None:
        """A voter has come by."""
        for petition in self._open.values():
            if peer in petition.unsigned():
                petition.due, petition.pause_ms = self._ctx.now, limits.RETRY_MIN_MS

    def tick(self) -> None:
        """Repeat what is due, all of one voter's in one go."""
        said: dict[PeerId, list[Statement]] = {}
        for petition in self._open.values():
            if petition.due > self._ctx.now:
                continue
            petition.due = self._ctx.now + petition.pause_ms
            petition.pause_ms = min(2 * petition.pause_ms, self._pause_max_ms)
            for peer in petition.unsigned():
                said.setdefault(peer, []).append(petition.statement)
        for peer, statements in said.items():
            self._ctx.deliver(peer, statements, self._addrs(peer))
