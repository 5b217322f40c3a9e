"""The node's own time, which stands still while its machine sleeps (docs/protocol.md: only durations decide).

A node asks to be called at its deadline. If that call comes later than CLOCK_GAP_MS, the process was not running: the
machine slept, or its process was stopped. What would have run out meanwhile (leases, waits, silences) has not been
given its time, since nothing that peers sent could arrive. So the whole time since the last call is taken out of the
node's clock, and every timer of every machine gets what it had left then: one period of grace, and no machine needs to
know. Machines see `Context.now`, which is this clock; the driver's readings are translated here alone.
"""

from __future__ import annotations

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis


class Clock:
    """The driver's readings to the node's time, and back."""

    def __init__(self, now: Millis) -> None:
        self.now = now
        self._slept: Millis = 0
        self._held_still = False
        """The last call came late as well."""

    def advance(self, reading: Millis, deadline: Millis | None) -> Millis:
        """Take a reading of the driver's clock. `deadline`: in the node's time. Returns what was slept through.

        A driver that is always late must not stop the clock for good: of two late calls in a row, only the first holds
        it still, and the second goes on to the deadline.
        """
        reached = max(self.now, reading - self._slept)
        due = reached if deadline is None else max(self.now, min(deadline, reached))
        if reached - due <= limits.CLOCK_GAP_MS:
            self.now, self._held_still = reached, False
            return 0
        stop = due if self._held_still else self.now
        self._held_still = not self._held_still
        skipped = reached - stop
        self._slept += skipped
        self.now = stop
        return skipped

    def outside(self, when: Millis | None) -> Millis | None:
        """A time of the node as the driver's clock will read then."""
        return None if when is None else when + self._slept
