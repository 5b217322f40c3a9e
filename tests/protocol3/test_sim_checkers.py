"""What the simulator's checkers can see: nodes are broken on purpose, and a small world must show it.

Each break is one that could happen to the code. `UNSEEN` names those that were tried in some twenty worlds (a submitter
that believes verdicts, and letters that are said once: in two) and that no checker noticed, with the likely reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from nexapod.protocol.types import Digest
from nexapod.protocol.v3.context import Context
from nexapod.protocol.v3.node.clock import Clock
from nexapod.protocol.v3.rules import agreement
from nexapod.protocol.v3.steward.granting import Granting
from nexapod.protocol.v3.steward.inputs import Inputs as SeatInputs
from nexapod.protocol.v3.steward.steward import Steward
from nexapod.protocol.v3.steward.voting import Voting
from nexapod.protocol.v3.submitter.fetching import Fetching
from nexapod.protocol.v3.wire import bodies
from nexapod.protocol.v3.worker import executing, slots
from nexapod.protocol.v3.worker.handover import Handover, Outbox
from nexapod.protocol.v3.worker.inputs import Inputs as WorkerInputs
from nexapod.protocol.v3.worker.worker import Worker
from nexapod.sim.v3.plan import Crash, JobPlan, Order, PeerPlan, Plan
from nexapod.sim.v3.scenarios import simulate

LIMIT_MS: Final = 90_000
EVEN: Final = (PeerPlan(), PeerPlan(speed=1500), PeerPlan(speed=700), PeerPlan(speed=900))
UNSEEN: Final = {
    "results shown before they are frozen": "a copy of a right result is right: only that it was earned is lost",
    "commits counted that came by way of others": "their workers are admitted all the same",
    "everybody entitled to every task": "measured by the scenario `colluders`, no rule of a world",
    "seats that sign whatever is proposed": "as long as no leader lies; the submitter repeats it in any case",
    "a worker that does not save its commits": "seats give it no task twice: what it forgot counts as withheld",
    "a submitter that believes every verdict": "a quorum of seats would have to lie, which no world has",
    "seats that adopt nothing": "what was decided is judged again; seldom are its workers gone by then",
    "commits and reveals said once, seats that do not compare": "renewals and statuses ask for what was lost",
    "seats that save nothing": "the others have what one forgets; a seat that signs against itself is not looked for",
    "seats that are never replaced": "of three, two are enough: it takes a world that loses two for good",
    "freezes that only their proposer tells": "workers ask when they renew",
    "grants without inputs, of a seat": "workers look at theirs themselves",
}


def world(*jobs: JobPlan, peers: tuple[PeerPlan, ...] = EVEN, **faults: Any) -> Plan:
    """`faults`: further fields of a plan."""
    return Plan("broken", 1, peers, jobs, heal_at=10_000, settle_within_ms=LIMIT_MS, **faults)


SMALL: Final = world(JobPlan(0, 2_000, 4, 400, nondeterministic=(1,)))


# --- what is broken --------------------------------------------------------------------------------------------------
def accepts_one_result(patch: pytest.MonkeyPatch) -> None:
    def support(shown: Any, counted: Any, pairs: Any) -> dict[int, int]:
        return {place: 16 * (shown[place].outcome == "ok") for place in counted}

    patch.setattr(agreement, "_support", support)
    patch.setattr(agreement, "_all_agree", lambda places, pairs: True)


def never_freezes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Voting, "_freeze", lambda self, groups: None)


def never_judges(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Voting, "_pronounce", lambda self, groups: None)


def commits_twice(patch: pytest.MonkeyPatch) -> None:
    commit = Handover._commit

    def twice(self: Handover, box: Outbox) -> None:
        before = set(box.letters)
        commit(self, box)
        for letter in [letter for id, letter in box.letters.items() if id not in before]:
            body: bodies.Commit = letter.statement.body
            items = tuple(replace(item, sealed=Digest(bytes(32))) for item in body.items)
            other = self._ctx.sign(bodies.Commit(body.job, body.shard, items))
            for seat in box.prospect.state.seats(box.shard).holders:
                self._ctx.deliver(seat, [other])

    patch.setattr(Handover, "_commit", twice)


def saves_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Context, "save", lambda self, record: None)


def ignores_slots(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(slots, "room_for", lambda profile, spec, taken: 9)
    patch.setattr(executing, "running_specs", lambda prospects, attempts: [])


def ignores_inputs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SeatInputs, "has", lambda self, shard: True)
    patch.setattr(SeatInputs, "complete", property(lambda self: True))
    patch.setattr(WorkerInputs, "are_here", lambda self, prospect: True)


def ignores_its_owner(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Worker, "_may_ask", lambda self: True)
    patch.setattr(Worker, "_give_back_waiting", lambda self, interrupted: None)


def fetches_no_outputs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fetching, "_need", lambda self, ref, shard, sources: False)


def keeps_dead_leases(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Granting, "expire", lambda self, task: None)
    patch.setattr(Granting, "help_late", lambda self: None)


def never_rests(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Clock, "outside", lambda self, when: 0)


def asks_again_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Steward, "deadline", property(lambda self: self._ctx.now))


# --- where it shows --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Case:
    """A break, worlds of which one must show it, and as what."""

    breaks: Callable[[pytest.MonkeyPatch], None]
    worlds: tuple[Plan, ...]
    shown_as: tuple[str, ...]


CASES: Final = (
    Case(accepts_one_result, (SMALL,), ("wrong-outcome", "handle-raises")),
    Case(never_freezes, (SMALL,), ("liveness",)),
    Case(never_judges, (SMALL,), ("liveness",)),
    Case(commits_twice, (SMALL,), ("honest-fault",)),
    Case(saves_nothing, (world(JobPlan(0, 2_000, 8, 4_000), crashes=(Crash(4_000, 0, 500),)),), ("job-forgotten",)),
    Case(ignores_slots, (world(JobPlan(0, 2_000, 8, 1_000)),), ("capacity",)),
    Case(ignores_inputs, (world(JobPlan(0, 2_000, 3, 400, input_missing=True)),), ("runs-without-inputs",)),
    Case(
        ignores_its_owner,
        (world(JobPlan(0, 2_000, 12, 1_500), orders=(Order(2_600, 1, "pause"), Order(2_700, 2, "drain"))),),
        ("runs-unasked",),
    ),
    Case(
        fetches_no_outputs,
        (world(JobPlan(0, 2_000, 3, 400), peers=(PeerPlan(steward=False, works=False), *EVEN[1:])),),
        ("output-missing", "handle-raises"),
    ),
    Case(
        keeps_dead_leases,
        (world(JobPlan(0, 2_000, 3, 400), peers=(*EVEN[:2], PeerPlan(liar="silent"), PeerPlan(liar="silent"))),),
        ("liveness",),
    ),
    Case(never_rests, (SMALL,), ("tick-storm",)),
    Case(asks_again_at_once, (SMALL,), ("tick-storm",)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.breaks.__name__)
def test_a_broken_node_is_seen(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.breaks(monkeypatch)
    found = {violation.invariant for plan in case.worlds for violation in simulate(plan).violations}
    assert found.intersection(case.shown_as), f"seen as {sorted(found)}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.breaks.__name__)
def test_a_whole_node_is_not(case: Case) -> None:
    assert not [violation for plan in case.worlds for violation in simulate(plan).violations]
