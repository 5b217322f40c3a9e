"""Each checker can fail: a world with one broken node class, and the rule that it must be seen to break."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from worlds import plan, with_liars

from nexapod.protocol import limits, messages
from nexapod.protocol.events import Effect, Event, Penalise, ProfileChanged, Received, Send, Tick, Trace
from nexapod.protocol.messages import Offer
from nexapod.protocol.node import Node, Points
from nexapod.protocol.records import Record
from nexapod.protocol.types import Digest, Millis, PeerId, Validate
from nexapod.sim.plan import Crash, Plan
from nexapod.sim.world import World


class Credulous(Node):
    """One result is enough for it."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        effects = super().handle(event, now)
        states = [state for submission in self.submissions.values() for state in submission.states]
        for steward in self.stewards.values():
            steward.spec = replace(steward.spec, validate=Validate(agree=1))
            states.append(steward.state)
        for prospect in self.worker.prospects.values():
            prospect.statement = replace(prospect.statement, body=replace(prospect.spec, validate=Validate(agree=1)))
        for state in states:
            state.spec = replace(state.spec, validate=Validate(agree=1))
        return effects


class Fragile(Node):
    """Raises on any frame."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        if isinstance(event, Received):
            raise KeyError("fragile")
        return super().handle(event, now)


class Hasty(Node):
    """Wants to be ticked again at once."""

    @property
    def deadline(self) -> Millis | None:
        return self.ctx.now


class Greedy(Node):
    """Runs more than its machine can."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        if isinstance(event, ProfileChanged):
            event = ProfileChanged(replace(event.profile, slots=50))
        return super().handle(event, now)


class Amnesiac(Node):
    """Forgets in a restart what it had committed to."""

    def __init__(self, *args: Any, records: Iterable[Record] = (), **kwargs: Any) -> None:
        super().__init__(*args, records=[r for r in records if r.kind != "attempt"], **kwargs)


class Corrupt(Node):
    """Cannot be restarted."""

    def __init__(self, *args: Any, records: Iterable[Record] = (), **kwargs: Any) -> None:
        super().__init__(*args, records=records, **kwargs)
        assert not list(records)


class Mute(Node):
    """Never shows a result."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        return [e for e in super().handle(event, now) if not (isinstance(e, Send) and self._shows(e))]

    def _shows(self, effect: Send) -> bool:
        message = messages.decode(effect.frame)
        return isinstance(message, Offer) and any(b"reveal" in envelope[:12] for envelope in message.envelopes)


class Paranoid(Node):
    """Bans whoever speaks to it."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        effects = super().handle(event, now)
        return [*effects, Penalise(event.peer, "speaks", True)] if isinstance(event, Received) else effects


class Touchy(Node):
    """Holds it against whoever speaks to it."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        effects = super().handle(event, now)
        return [*effects, Penalise(event.peer, "speaks", False)] if isinstance(event, Received) else effects


class Forger(Node):
    """Its certificates are not worth much."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        effects = super().handle(event, now)
        for submission in self.submissions.values():
            submission.certificate = lambda: b"trust me"  # type: ignore[method-assign]
        return effects


class Crowded(Node):
    """Keeps too much."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        if not self.penalties:
            self.penalties.update({PeerId(str(i)): Points(0, 0) for i in range(limits.PROFILES_MAX + 1)})
        return super().handle(event, now)


class Generous(Node):
    """Leases every task to everybody."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        for steward in self.stewards.values():
            steward._is_open = lambda task: True  # type: ignore[method-assign]
        return super().handle(event, now)


class Fickle(Node):
    """Changes its mind about what was settled."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        for submission in self.submissions.values():
            if submission.settlement is not None and isinstance(event, Tick):
                other = replace(submission.decided[0], outcome="failed", root=Digest(bytes(32)))
                submission.decided[0] = other
        return super().handle(event, now)


class Pessimist(Node):
    """Says that tasks failed which did not."""

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        effects = super().handle(event, now)
        pessimistic: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Trace) and effect.name == "settled":
                effect = replace(effect, facts={**effect.facts, "outcome": "failed"})
            pessimistic.append(effect)
        return pessimistic


CRASHES = tuple(Crash(at + 7 * i, i, 1_500) for at in (3_500, 7_000, 12_000, 17_000) for i in range(6))
RESTARTS = replace(plan(peers=6, tasks=40), crashes=CRASHES, heal_at=20_000, settle_within_ms=60_000)
SHORT = replace(plan(), settle_within_ms=60_000)
BROKEN: dict[str, tuple[type[Node], Plan]] = {
    "wrong-output": (Credulous, with_liars(SHORT, p3="wrong")),
    "handle-raises": (Fragile, SHORT),
    "tick-storm": (Hasty, SHORT),
    "capacity": (Greedy, SHORT),
    "honest-fault": (Amnesiac, RESTARTS),
    "restart-raises": (Corrupt, RESTARTS),
    "liveness": (Mute, SHORT),
    "honest-ban": (Paranoid, SHORT),
    "honest-penalty": (Touchy, replace(SHORT, scenario="quiet")),
    "certificate": (Forger, SHORT),
    "table": (Crowded, SHORT),
    "leases": (Generous, SHORT),
    "two-verdicts": (Fickle, SHORT),
    "wrong-outcome": (Pessimist, SHORT),
}


@pytest.mark.parametrize("invariant", BROKEN)
def test_a_broken_node_is_seen(invariant: str) -> None:
    factory, broken = BROKEN[invariant]
    world = World(broken, factory=factory)
    world.run()
    assert invariant in {violation.invariant for violation in world.checkers.violations}


@pytest.mark.parametrize("broken", [SHORT, RESTARTS, with_liars(SHORT, p3="wrong")])
def test_the_same_worlds_with_real_nodes_are_clean(broken: Plan) -> None:
    world = World(replace(broken, settle_within_ms=600_000))
    world.run()
    assert world.checkers.violations == []
