"""A line of statements each of which follows the one before it (docs/protocol.md, Succession, Renewal)."""

from __future__ import annotations

from nexapod.protocol.primitives import StatementId
from nexapod.protocol.rules.succession import preferred
from nexapod.protocol.wire.statements import Statement


class Chain:
    """It begins with a root that is no link. Of two that count and follow the same one, the preferred stays.

    Since only a better one replaces a link, and what followed the worse one goes with it, the line depends on nothing
    but which statements have been offered.
    """

    def __init__(self, root: StatementId) -> None:
        self.links: list[Statement] = []
        self._places: dict[StatementId, int] = {root: 0}

    def place(self, previous: StatementId) -> int | None:
        """Where a statement that follows `previous` stands; None: that is not in the line."""
        return self._places.get(previous)

    def at(self, place: int) -> Statement | None:
        return self.links[place] if place < len(self.links) else None

    def has(self, id: StatementId) -> bool:
        return id in self._places

    def would_take(self, place: int, statement: Statement) -> bool:
        """Whether it stands before what is there, should it count."""
        there = self.at(place)
        return there is None or (there.id != statement.id and preferred(there, statement).id == statement.id)

    def put(self, place: int, statement: Statement) -> None:
        """Set a link: what followed the one that was there goes."""
        self.cut(place)
        self.links.append(statement)
        self._places[statement.id] = place + 1

    def cut(self, place: int) -> None:
        """Take the link at this place and all that follow away."""
        for link in self.links[place:]:
            del self._places[link.id]
        del self.links[place:]
