"""Events of a job between those who tell them and a reader that takes them now and then. Pure; bounded."""

from __future__ import annotations

from typing import Final

from nexapod.api.backend import JobEvent

PENDING_MAX: Final = 4_096
DECIDED: Final = ("accepted", "failed")


class EventBuffer:
    """What has not been sent yet. Of a task that changes again and again only the newest is kept, and nothing of what
    came before its decision. A reader that falls far behind is told how much it has lost.
    """

    def __init__(self) -> None:
        self._pending: dict[tuple[str, int], JobEvent] = {}
        """By what may replace what: by name and task, or by a number of its own."""
        self._count = 0
        self._lost = 0
        self.closed = False
        """Nothing more comes."""

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, event: JobEvent) -> None:
        """The newest event."""
        name, facts = event
        self._count += 1
        key = (name, int(facts["index"]) if name == "task_changed" else -self._count)
        if name in DECIDED:
            self._pending.pop(("task_changed", int(facts["index"])), None)
        self._pending.pop(key, None)
        self._pending[key] = event
        self.closed = self.closed or name == "closed"
        if len(self._pending) > PENDING_MAX:
            self._drop(key)

    def _drop(self, newest: tuple[str, int]) -> None:
        """All but the newest: whoever has missed so much begins anew."""
        self._lost += len(self._pending) - 1
        self._pending = {newest: self._pending[newest]}

    def take(self) -> list[JobEvent]:
        """Everything that has gathered, in the order of the newest of each."""
        taken: list[JobEvent] = [("lagged", {"lost": self._lost})] if self._lost else []
        taken += self._pending.values()
        self._pending, self._lost = {}, 0
        return taken
