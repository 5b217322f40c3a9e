"""The wish to end, as a signal or the API says it."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio


@dataclass(slots=True)
class Stop:
    """The wish to end: `drain` first, or at once."""

    requested: trio.Event = field(default_factory=trio.Event)
    at_once: trio.Event = field(default_factory=trio.Event)

    def ask(self, *, drain: bool) -> None:
        """Asked a second time, it is at once."""
        if not drain or self.requested.is_set():
            self.at_once.set()
        self.requested.set()
