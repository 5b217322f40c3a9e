"""What the simulator's checkers can see: nodes are broken on purpose, and a small world must show it.

Each break is one that could happen to the code. Where only a liar, or the loss of certain seats, makes it matter, the
world has them in the very places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from nexapod.protocol.certificate import check, tally
from nexapod.protocol.context import Context
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.facts import task_files
from nexapod.protocol.node.clock import Clock
from nexapod.protocol.primitives import Digest
from nexapod.protocol.rules import agreement, entitlement
from nexapod.protocol.steward.gate import admitting
from nexapod.protocol.steward.gate.rounds import Sound
from nexapod.protocol.steward.inputs import Inputs as SeatInputs
from nexapod.protocol.steward.shard import judging
from nexapod.protocol.steward.shard.adopting import Adopting
from nexapod.protocol.steward.shard.granting import Granting
from nexapod.protocol.steward.shard.intake import Intake
from nexapod.protocol.steward.shard.state import ShardState
from nexapod.protocol.steward.shard.steward import Steward
from nexapod.protocol.steward.shard.telling import Telling
from nexapod.protocol.steward.shard.voting import Voting
from nexapod.protocol.steward.tenure import replacing, tenure
from nexapod.protocol.steward.tenure.ballots import Ballots
from nexapod.protocol.steward.tenure.tenure import Tenure
from nexapod.protocol.submitter.fetching import Fetching
from nexapod.protocol.submitter.replacing import Replacing
from nexapod.protocol.wire import bodies, statements
from nexapod.protocol.worker import executing, slots
from nexapod.protocol.worker.attempt import Committed
from nexapod.protocol.worker.attempts import Attempts
from nexapod.protocol.worker.handover import Handover, Letter, Outbox
from nexapod.protocol.worker.inputs import Inputs as WorkerInputs
from nexapod.protocol.worker.worker import Worker
from nexapod.sim import budgets
from nexapod.sim.plan import Clog, Crash, JobPlan, Order, PeerPlan, Plan
from nexapod.sim.scenarios import simulate
from nexapod.sim.world import World
from tests.protocol.liar_worlds import base, job_of, with_liars

LIMIT_MS: Final = 90_000
EVEN: Final = (PeerPlan(), PeerPlan(speed=1500), PeerPlan(speed=700), PeerPlan(speed=900))


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

    def twice(self: Handover, box: Outbox) -> list[Letter]:
        letters = commit(self, box)
        for letter in letters:
            body: bodies.Commit = letter.statement.body
            items = tuple(replace(item, sealed=Digest(bytes(32))) for item in body.items)
            other = self._ctx.sign(bodies.Commit(body.job, body.shard, items))
            for seat in box.prospect.state.seats(box.shard).holders:
                self._ctx.deliver(seat, [other])
        return letters

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


def shows_at_once(patch: pytest.MonkeyPatch) -> None:
    def committed(self: Handover, box: Outbox) -> list[Any]:
        attempts = self._attempts.at((box.prospect.job, box.shard))
        return [attempt for attempt in attempts if isinstance(attempt.state, Committed)]

    patch.setattr(Handover, "_asked", committed)
    patch.setattr(Handover, "_may_send", lambda self, letter, showable: True)


def counts_relayed_commits(patch: pytest.MonkeyPatch) -> None:
    on_commit = Intake._on_commit
    patch.setattr(Intake, "_on_commit", lambda self, statement, sender: on_commit(self, statement, statement.author))


def signs_any_proposal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Voting, "_answers", lambda self, statement: {0: "sign"})


def signs_any_admission(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(admitting, "examine", lambda body, view: Sound())


def skips_the_evidence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ShardEvidence, "error_in", lambda self, item, verdict, joined=False: None)


def forgets_as_a_worker(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Attempts, "_keep", lambda self, attempt, *rest: None)


def forgets_as_a_seat(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ShardState, "save", lambda self, statement: None)


def grants_without_inputs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SeatInputs, "has", lambda self, shard: True)
    patch.setattr(SeatInputs, "complete", property(lambda self: True))


def adopts_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Adopting, "wanted", lambda self: {})


def replaces_no_seat(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tenure, "_look_after", lambda self, shard: None)
    patch.setattr(Replacing, "_succeed", lambda self: None)


def leaves_telling_to_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Telling, "tell_late", lambda self: None)


def never_answers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Voting, "_sign", lambda self, statement, proposer: None)


def fails_without_patience(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Voting, "_fails", lambda self, task: True)


def entitles_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(entitlement, "entitled", lambda *args, **more: True)
    patch.setattr(entitlement.Share, "may_exceed", lambda self, width: True)


def counts_what_fits_no_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(task_files, "opened", lambda job, worker, item, commit: _root_of(item))


def _root_of(item: bodies.RevealItem) -> Digest:
    return statements.output_root(item.outcome, item.exit, item.outputs)


def votes_for_anybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tenure, "consent", lambda body, scene, due: replacing.Sign())


def votes_again(patch: pytest.MonkeyPatch) -> None:
    votes_for_anybody(patch)
    patch.setattr(Ballots, "may_sign", lambda self, *args: True)


def calls_everything_decided(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Granting, "standing", lambda self, worker, task, stage="running": "decided")


def wants_one_more(patch: pytest.MonkeyPatch) -> None:
    wanted = judging.wanted
    patch.setattr(judging, "wanted", lambda agree, judgement: wanted(agree + 1, judgement))


def takes_any_certificate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tally.Problems, "add", lambda self, problem: None)


def takes_any_settlement(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(check.Checker, "_check_job", lambda self, job: None)


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
    Case(
        saves_nothing,
        (world(JobPlan(0, 2_000, 8, 4_000), crashes=(Crash(4_000, 0, 500),)),),
        ("job-forgotten", "says-unsaved"),
    ),
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


PLAN, AT = base(job_of(tasks=3))
SEATED: Final = replace(PLAN, settle_within_ms=60_000)
"""Who sits where is known: `AT`."""
LEADER, *OTHERS = AT.seats
WORKERS: Final = AT.strangers
LYING: Final = with_liars(SEATED, "lying-seat", [LEADER])
OUT_OF_REACH: Final = replace(
    SEATED, clogs=tuple(Clog(2_600, 30_000, i, seat) for i in (0, *WORKERS, *AT.members) for seat in OTHERS)
)
"""Two of the seats hear no worker: its commits come to them by way of the leader."""
MUTE_LEADER: Final = replace(
    SEATED,
    clogs=tuple(Clog(3_000, 60_000, LEADER, i) for i in (0, *WORKERS, *AT.members)),
    settle_within_ms=12_000,
)
"""The leader is heard by the other seats alone."""
TWO_LOST: Final = replace(SEATED, crashes=tuple(Crash(2_600, seat, None) for seat in AT.seats[:2]))
LEFT_ALONE: Final = replace(
    SEATED,
    peers=tuple(replace(peer, works=i in WORKERS) for i, peer in enumerate(SEATED.peers)),
    jobs=(replace(SEATED.jobs[0], vanishes="for-a-while"),),
    crashes=tuple(Crash(8_000, i, None) for i in (*AT.seats[:2], *WORKERS)),
    settle_within_ms=90_000,
)
"""All is decided while the submitter is away; then two seats and everybody who could repeat it go for good."""


def nearby(plan: Plan) -> tuple[Plan, ...]:
    """The same peers in the same seats, with tasks of other lengths: each leads to other moments and other chances."""
    job = plan.jobs[0]
    return tuple(replace(plan, jobs=(replace(job, task_ms=job.task_ms + more),)) for more in (0, 40, 150, 400, 900))


CALM: Final = replace(SEATED, scenario="seated")
PROBED: Final = with_liars(SEATED, "prober", [LEADER])
LONGER: Final = replace(SEATED, jobs=(replace(SEATED.jobs[0], tasks=12, task_ms=1_500),))
LYING_WORKERS: Final = tuple(
    with_liars(replace(LONGER, jobs=(replace(LONGER.jobs[0], tasks=tasks),)), "prober", WORKERS)
    for tasks in range(12, 18)
)
USURPED: Final = with_liars(LONGER, "usurper", AT.members[:1])
FAILING, THERE = base(job_of(tasks=3, failing=(0, 1, 2), max_replicas=16))
HASTY: Final = with_liars(FAILING, "hasty-seat", THERE.seats[:1], drift=20_000)
"""To its leader all are late."""
GREEDY: Final = Plan(
    "seated",
    1,
    tuple(
        PeerPlan(speed=speed, slots=48 if speed == 4_000 else 2)
        for speed in (1095, 1299, 4_000, 855, 1302, 1467, 1469, 1500)
    ),
    (JobPlan(0, 2_000, 24, 1_500, max_replicas=4),),
)
"""One worker has room for everything."""
DIRECTED: Final = (
    Case(shows_at_once, (SEATED,), ("reveals-unasked",)),
    Case(counts_relayed_commits, nearby(OUT_OF_REACH), ("freezes-unseen",)),
    Case(signs_any_proposal, (LYING,), ("judges-wrongly",)),
    Case(signs_any_proposal, (with_liars(SEATED, "two-faced-seat", [LEADER]),), ("freezes-few",)),
    Case(signs_any_admission, (with_liars(SEATED, "inventor", [LEADER]),), ("admits-unseen",)),
    Case(skips_the_evidence, (LYING,), ("judges-wrongly",)),
    Case(forgets_as_a_worker, nearby(SEATED), ("says-unsaved",)),
    Case(forgets_as_a_seat, (SEATED,), ("says-unsaved",)),
    Case(
        grants_without_inputs,
        (replace(SEATED, jobs=(replace(SEATED.jobs[0], input_missing=True),)),),
        ("grants-without-inputs",),
    ),
    Case(adopts_nothing, (LEFT_ALONE,), ("liveness",)),
    Case(replaces_no_seat, (TWO_LOST,), ("liveness",)),
    Case(leaves_telling_to_others, nearby(MUTE_LEADER), ("liveness",)),
    Case(never_answers, (SEATED,), ("leaves-unanswered",)),
    Case(fails_without_patience, (HASTY,), ("judges-early",)),
    Case(entitles_everybody, (GREEDY,), ("leases-unfairly",)),
    Case(signs_any_proposal, (PROBED,), ("signs-what-is-wrong",)),
    Case(counts_what_fits_no_commit, LYING_WORKERS, ("judges-unshown", "judges-wrongly", "liveness")),
    Case(votes_for_anybody, (USURPED,), ("replaces-the-living",)),
    Case(votes_again, (USURPED,), ("votes-twice",)),
    Case(calls_everything_decided, (with_liars(SEATED, "squatter", WORKERS[:1]),), ("tells-undecided",)),
    Case(wants_one_more, (CALM,), ("no-reason",)),
    Case(takes_any_certificate, (CALM,), ("certificate",)),
    Case(takes_any_settlement, (CALM,), ("certificate",)),
)


@pytest.mark.parametrize("case", [*CASES, *DIRECTED], ids=lambda case: case.breaks.__name__)
def test_a_broken_node_is_seen(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.breaks(monkeypatch)
    found = {violation.invariant for plan in case.worlds for violation in simulate(plan).violations}
    assert found.intersection(case.shown_as), f"seen as {sorted(found)}"


@pytest.mark.parametrize("case", [*CASES, *DIRECTED], ids=lambda case: case.breaks.__name__)
def test_a_whole_node_is_not(case: Case) -> None:
    assert not [violation for plan in case.worlds for violation in simulate(plan).violations]


def test_a_job_is_let_off_only_where_no_quorum_of_honest_seats_can_be() -> None:
    sizes: set[int] = set()
    for peers in (2, 3, 12):
        known = World(Plan("panel", 2, (PeerPlan(),) * peers, (JobPlan(0, 2_000, 1, 100),)))
        known.run_until(2_200)
        (job,) = known.jobs
        assert job.id is not None
        report = known.machines[0].node.job_report(job.id) if known.machines[0].node is not None else None
        assert report is not None
        members = [known.by_peer[peer] for peer in report.panel]
        sizes.add(len(members))
        needed = min(3, len(members)) // 2 + 1
        for liars in range(len(members)):
            for member in members[len(members) - liars :]:
                member.plan = replace(member.plan, liar="withholder")
            assert known.checkers._can_finish(job) == (len(members) - liars >= needed)
            for member in members:
                member.plan = replace(member.plan, liar="silent" if liars and member is not members[0] else None)
            assert known.checkers._can_finish(job), "who lies about its own work alone is a good seat"
    assert min(sizes) < 3 <= max(sizes)


def test_what_a_trouble_costs_beyond_its_budget_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(SEATED, scenario="seated", features=("restarts",))
    assert not simulate(plan).violations
    monkeypatch.setitem(budgets.BUDGETS, "restarts", budgets.Budget(0, -1, 0))
    found = [violation.detail for violation in simulate(plan).violations if violation.invariant == "over-budget"]
    assert len(found) == 3
