"""Each way in which protocol 2 was broken, tried on protocol 3: one test a finding, named after its program.

poc17 (real daemons) and poc18 (their local API) are no matter of the core: what of them is, is under poc02, poc11 and
poc17 here, the rest in tests/loopback (test_daemon_hostile.py, test_daemon_api.py). The table of docs/protocol.md,
section 10, names these tests.
"""

from __future__ import annotations

from dataclasses import replace

import kit
import pytest
from kit import OTHER_OUTPUT, Result, accepted, failed, make_kit, signed
from settled_job import settled

from nexapod.protocol import limits
from nexapod.protocol.certificate.check import check_bytes
from nexapod.protocol.certificate.report import Pins, lines
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import (
    Effect,
    Fetch,
    OfferChanged,
    PeerDown,
    PeerUp,
    Penalise,
    ProfileChanged,
    Received,
    Send,
    Tick,
)
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import BlobRef, Digest, File, JobId, PeerId, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.rules import lottery, seats
from nexapod.protocol.rules.agreement import Accepted
from nexapod.protocol.rules.groups import group_of
from nexapod.protocol.rules.panel import Candidate, choose
from nexapod.protocol.types import Offer
from nexapod.protocol.wire import bodies, messages, reconcile, statements
from nexapod.protocol.wire.messages import Announce, Inspect, Reconcile, Refused, Sample, Want
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner, verify
from nexapod.sim.liars.workers import Copycat
from nexapod.sim.plan import Clog, Crash
from nexapod.sim.world import World
from tests.protocol.liar_worlds import SUBMIT_AT, base, job_of, liars_of, settle, with_liars, world_of
from tests.protocol.mesh import profile as own_profile
from tests.protocol.test_directory import directory, link, profile
from tests.protocol.test_node_jobs import ONE, THREE, TWO, Lone, announcement, said, workable

FOREVER = 10**9
WRONG = OTHER_OUTPUT


def wrong_evidence(made: kit.JobKit, judges: list[HashSigner], workers: list[HashSigner]) -> list[Statement]:
    """Everything that accepts a wrong result of task 0, by these workers and signed by these judges."""
    results = [Result(0, WRONG) for _ in workers]
    commits = [made.commit(worker, result) for worker, result in zip(workers, results, strict=True)]
    groups = {worker.peer: made.group(worker) for worker in workers}
    freeze = made.freeze({0: commits}, judges, groups=groups, sort=False)
    reveals = [made.reveal(w, c, r) for w, c, r in zip(workers, commits, results, strict=True)]
    return [*commits, freeze, *reveals, made.verdict({0: (freeze, accepted())}, judges)]


def fold(evidence: object, several: list[Statement]) -> None:
    for statement in several:
        try:
            evidence.add(statement)  # type: ignore[attr-defined]
        except PeerError:
            continue


# --- critical ------------------------------------------------------------------------------------------------------
def test_poc01_members_without_a_seat_judge_nothing() -> None:
    made = make_kit(members=6)
    state = made.state(*made.round())
    evidence = made.evidence(state=state)
    holders = [seat.peer for seat in made.seats()]
    others = [member for member in made.members if member.peer not in holders][:2]
    fold(evidence, wrong_evidence(made, others, made.workers[:2]))
    assert evidence.frozen(0) is None
    assert evidence.verdict(0) is None
    # Nor does one seat with a member that has none.
    fold(evidence, wrong_evidence(made, [made.seats()[0], others[0]], made.workers[:2]))
    assert evidence.verdict(0) is None


def test_poc01_two_in_one_block_are_one_group() -> None:
    made = make_kit(grouping="network", groups={0: "8.8.8.0/24", 1: "8.8.8.0/24", 2: "9.9.9.0/24"})
    evidence = made.evidence(state=made.state(*made.round(made.workers[:3])))
    fold(evidence, wrong_evidence(made, made.seats(), made.workers[:2]))
    assert evidence.verdict(0) is None or evidence.error_in(*_verdict_of(evidence)) is not None
    assert not isinstance(evidence.judge(0, (), 0), Accepted)
    one, other = (f"/ip4/8.8.8.{n}/tcp/1" for n in (7, 200))
    assert group_of(ONE, one, "network") == group_of(TWO, other, "network")


def _verdict_of(evidence: object) -> tuple[bodies.VerdictItem, bodies.Verdict]:
    decision = evidence.verdict(0)  # type: ignore[attr-defined]
    return decision.item, decision.statement.body


def test_poc02_keys_that_never_connect_are_no_workers() -> None:
    world = world_of("relay", "stranger")
    settle(world)
    (liar,) = liars_of(world)
    assert liar.attacks > 0
    node = world.machines[0].node
    assert node is not None
    job = world.jobs[0].id
    assert job is not None
    real = {machine.peer for machine in world.machines}
    rounds = node._jobs.archived(job).state.admissions()  # type: ignore[union-attr]
    assert rounds
    assert all(worker in real for admission, _ in rounds for worker, _ in admission.body.workers)


def test_poc02_one_seat_admits_nobody() -> None:
    made = make_kit()
    admission = made.admission(made.workers[:2], made.seats()[:1])
    beacon = made.beacon(admission, made.seats()[:1])
    state = made.state(admission, beacon)
    assert state.group(made.workers[0].peer) is None


def test_poc03_commits_without_a_lease_fill_no_table() -> None:
    plan, places = base()
    world = World(with_liars(plan, "filler", places.strangers[:1], works=False))
    assert settle(world) < 10_000
    assert liars_of(world)[0].attacks > 0


def test_poc03b_a_submitter_bounds_the_commits_that_it_is_sent() -> None:
    made = make_kit(workers=limits.COMMITS_PER_TASK_MAX + 40)
    evidence = made.evidence(state=made.state(*made.round(made.workers[-2:])))
    for worker in made.workers[:-2]:
        fold(evidence, [made.commit(worker, Result(0))])
    mine = [made.commit(worker, Result(0)) for worker in made.workers[-2:]]
    fold(evidence, mine)
    assert len(evidence.commits(0)) <= limits.COMMITS_PER_TASK_MAX
    freeze = made.freeze({0: mine})
    fold(evidence, [freeze, *(made.reveal(w, c, Result(0)) for w, c in zip(made.workers[-2:], mine, strict=True))])
    fold(evidence, [made.verdict({0: (freeze, accepted())})])
    assert evidence.verdict(0) is not None


def test_poc04_nobody_names_others_his_ancestors() -> None:
    """What a result rests on is inside its commitment, and counts only if seats handed it out."""
    made = make_kit()
    one, other = made.workers[:2]
    state = made.state(*made.round())
    commits = [made.commit(one, Result(0)), made.commit(other, Result(0))]
    freeze = made.freeze({0: commits})
    evidence = made.evidence(*commits, freeze, state=state)
    foreign = made.commit(other, Result(0)).id
    with pytest.raises(PeerError, match="bad-reveal"):
        evidence.add(made.reveal(one, commits[0], Result(0, resumed=foreign)))
    fold(evidence, [made.reveal(one, commits[0], Result(0)), made.reveal(other, commits[1], Result(0))])
    fold(evidence, [made.verdict({0: (freeze, accepted())})])
    decided = evidence.verdict(0)
    # Shown after the decision, it changes nothing.
    late = made.commit(made.workers[2], Result(0, resumed=foreign))
    fold(evidence, [late, made.reveal(made.workers[2], late, Result(0, resumed=foreign))])
    assert decided is not None
    assert evidence.verdict(0) == decided


def test_poc05_one_word_stops_no_worker() -> None:
    world = world_of("stopper", "stranger")
    assert settle(world) < 10_000
    assert liars_of(world)[0].attacks > 0


# --- high ----------------------------------------------------------------------------------------------------------
def test_poc06_made_up_profiles_take_no_seats() -> None:
    world = world_of("profile-flood", "stranger")
    assert settle(world) < 10_000
    placed = world.jobs[0].placed_at
    assert placed is not None
    assert placed < SUBMIT_AT + 2_000
    table = directory()
    link(table, ONE, 1)
    for n in range(4 * limits.RELAYED_PER_FORWARDER_MAX):
        table.learn(profile(HashSigner(5, "made up", n)), ONE)
    assert len(table) <= limits.RELAYED_PER_FORWARDER_MAX + 1
    assert table.candidates(0) == []


def test_poc07_a_flood_of_jobs_leaves_room_for_honest_ones() -> None:
    lone = Lone(ONE, TWO, THREE)
    flooder = HashSigner(7, "flooder")
    for n in range(200):
        flood = make_kit(1, 0, tasks=1_000_000)
        spec = replace(flood.spec, nonce=n.to_bytes(16, "big"))
        junk = signed(spec, flooder)
        placed = signed(bodies.Placed(JobId(junk.id), Digest(bytes(32))), flood.members[0])
        lone.deliver(ONE, junk, placed)
    assert len(lone.node.report().jobs) <= limits.JOBS_PER_AUTHOR_PER_MINUTE
    honest = make_kit()
    lone.hear(TWO, announcement(honest))
    lone.deliver(TWO, *workable(honest))
    assert honest.job in lone.node.report().jobs


def test_poc07_a_worker_is_not_kept_from_honest_jobs_by_gates_that_admit_nobody() -> None:
    world = world_of("job-flood", "stranger")
    assert settle(world) < 10_000


def test_poc08_a_renewal_makes_no_lease_beyond_ones_share() -> None:
    world = world_of("squatter", "stranger")
    assert settle(world) < 20_000
    assert liars_of(world)[0].attacks > 0


def test_poc09_a_key_made_for_a_job_has_no_seat_of_it() -> None:
    made = make_kit(members=6)
    state = made.state()
    ground = [HashSigner(9, "ground", n) for n in range(200)]
    nearest = min(ground, key=lambda key: seats.order(made.job, 0, [key.peer, *state.members()]).index(key.peer))
    assert seats.order(made.job, 0, [nearest.peer, *state.members()])[0] == nearest.peer
    assert nearest.peer not in state.seats(0).holders
    usurped = made.succession([nearest], [nearest], "caretaker")
    assert state.add(usurped) == "orphan"
    assert state.seats(0).epoch == 0


def test_poc09_a_group_cannot_be_chosen_for_its_tickets() -> None:
    """They are drawn by a value that nobody knew when the group was admitted."""
    made = make_kit()
    group = made.group(made.workers[0])
    drawn = {lottery.tickets(Digest(bytes([n]) * 32), made.job, 0, group, 4) for n in range(8)}
    assert len(drawn) == 8


def test_poc10_a_certificate_says_whose_word_it_is() -> None:
    forged = settled(tasks=4)
    data = forged.certificate()
    report = check_bytes(data, verify)
    assert report.ok
    assert next(iter(lines(report))).startswith("Nobody was named as the submitter: this is only what")
    known = HashSigner(1, "somebody that I know").peer
    assert not check_bytes(data, verify, Pins(known)).ok
    assert not check_bytes(data, verify, Pins(forged.made.submitter.peer, known=(known,), strict=True)).ok


def answered(effects: list[Effect], peer: PeerId) -> int:
    return sum(len(effect.frame) for effect in effects if isinstance(effect, Send) and effect.peer == peer)


def test_poc11_no_short_question_has_a_long_answer() -> None:
    lone = Lone(ONE, TWO)
    made = [make_kit(seed=n) for n in range(20)]
    for one in made:
        big = replace(one.spec, description="x" * 4_000)
        job = signed(big, one.submitter)
        lone.deliver(ONE, job, *(signed(bodies.Placed(JobId(job.id), Digest(bytes(32))), m) for m in one.members[:2]))
    jobs = lone.node.report().jobs
    assert len(jobs) == 20
    ids = tuple(StatementId(job) for job in jobs)
    everything = messages.Range(b"", 0, Digest(bytes(32)), None)
    for question in (
        Want(ids[:1]),
        Want(ids),
        Reconcile(None, 0, b"", (everything,)),
        Sample((), True),
        Inspect(jobs[0], 0, ()),
        Reconcile(jobs[0], 0, b"", (everything,)),
    ):
        size = len(messages.encode(question))
        most = max(limits.ANSWER_FREE_BYTES, limits.ANSWER_FACTOR_MAX * size)
        assert answered(lone.hear(TWO, question), TWO) <= most
    again = [lone.hear(TWO, Want(ids[:1] * 256)) for _ in range(100)]
    assert sum(answered(effects, TWO) for effects in again) == 0


def test_poc11_signatures_of_what_does_not_matter_are_not_checked() -> None:
    lone = Lone(ONE)
    made = make_kit()
    commits = [made.commit(worker, Result(0)) for worker in made.workers]
    checks: list[int] = []
    lone.node._ctx.verify = lambda *parts: bool(checks.append(1)) or True
    lone.deliver(ONE, *commits)
    assert checks == []


def test_poc12_seats_do_not_exchange_what_can_never_be_equal() -> None:
    """Commits without a lease are no part of what seats compare."""
    job = job_of(tasks=4, task_ms=40_000)

    def bytes_in_quiet(world: World) -> int:
        world.run_until(8_000)
        before = world.stats.bytes_by_kind.get("Reconcile", 0)
        world.run_until(28_000)
        return world.stats.bytes_by_kind.get("Reconcile", 0) - before

    plan, _ = base(job)
    honest = bytes_in_quiet(World(plan))
    assert bytes_in_quiet(world_of("filler", "stranger", job=job)) <= 2 * honest + 4_096


def test_poc13_a_result_is_shown_to_seats_alone() -> None:
    world = world_of("copycat", "stranger")
    settle(world)
    (liar,) = liars_of(world)
    assert isinstance(liar, Copycat)
    assert liar.attacks > 0
    assert liar.copied == 0


def test_poc14_a_submitter_is_told_that_its_result_rests_on_one_peer() -> None:
    made = make_kit(members=1)
    stranger = kit.offer(made.members[0])
    candidate = Candidate(stranger, "/ip4/8.8.8.8/tcp/1", 0, None)
    spec = replace(made.spec, panel=())
    choice = choose([candidate], spec, grouping="network", me_offer=None, draw=lambda n: bytes(n))
    assert choice.rests_on.startswith("Only one other steward is known")
    # Peers that nobody has dialled do not count, however many profiles tell of them.
    assert directory().candidates(0) == []


def test_poc15_nobody_passes_on_peers_that_it_never_met() -> None:
    table = directory()
    link(table, ONE, 1)
    zombies = [HashSigner(5, "gone", n) for n in range(20)]
    for zombie in zombies:
        table.learn(profile(zombie), ONE)
    told = {statement.author for statement in table.sample(limits.SAMPLE_MAX, TWO, 1_000)}
    assert told.isdisjoint(zombie.peer for zombie in zombies)


@pytest.mark.parametrize("vanishes", ["no", "for-good"])
def test_poc16_three_dead_seats_are_replaced(vanishes: str) -> None:
    plan, found = base(job_of(tasks=6), peers=14)
    job = replace(plan.jobs[0], vanishes=vanishes, task_ms=3_000)
    crashes = tuple(Crash(3_500, seat, None) for seat in found.seats)
    world = World(replace(plan, jobs=(job,), crashes=crashes))
    world.run_until(60_000)
    known = world.jobs[0]
    assert known.settled_at is not None or world.checkers.seats_finished(known)
    assert world.checkers.violations == []


def test_poc17_a_ban_is_more_than_a_disconnect() -> None:
    lone = Lone(ONE)
    for _ in range(11):
        lone.take(Received(ONE, b"garbage"))
    assert any(isinstance(effect, Penalise) and effect.ban_ms for effect in lone.effects)
    lone.take(PeerDown(ONE))
    lone.take(PeerUp(ONE, "/ip4/10.0.0.1/tcp/1", dialled=False))
    before = len(lone.effects)
    lone.deliver(ONE, *workable(make_kit()))
    assert lone.effects[before:] == []


def test_poc19_a_store_that_cannot_be_read_does_not_stop_the_start() -> None:
    made = make_kit()
    damaged = made.job_statement.envelope[:-70] + b"\xff" + made.job_statement.envelope[-69:]
    old = b"\x95" + made.job_statement.envelope[1:]
    for kind in ("job", "steward", "gate", "worker", "submission", "node", "tenure", "statement"):
        for value in (damaged, old, b"", b"\xc1"):
            record = Record(kind, bytes(64), value)
            node = Node(HashSigner(9, "me"), verify, kit.NETWORK, "peer", lambda n: bytes(n), records=[record], now=0)
            assert node.report().jobs == ()


def test_poc20_how_many_workers_there_seem_to_be_changes_nothing() -> None:
    """Nobody waits for a turn among profiles: workers are called by a hash, and admitted when they come."""
    world = world_of("profile-flood", "member")
    assert settle(world) < 10_000


def test_poc20b_a_call_is_not_suppressed_by_announcements_that_others_make_up() -> None:
    world = world_of("suppressor", "stranger")
    assert settle(world) < 10_000
    made, lone = make_kit(), Lone(ONE, TWO, THREE)
    lone.hear(ONE, announcement(made, call=0))
    lone.deliver(ONE, *workable(made))
    for seq in range(2, 200):
        lone.hear(ONE, announcement(made, seq=seq, call=0))
    passed = said(lone.hear(TWO, announcement(made, seq=2, call=64)), THREE)
    assert [message.cards[0].call for message in passed if isinstance(message, Announce)] == [64]


def test_poc21_no_interpreters_unicode_decides_what_is_text() -> None:
    made = make_kit()
    for character in ("\U0001fae8", "\u0378", "\U0010fffd"):
        odd = signed(replace(made.cancel().body, reason=character), made.submitter)
        assert statements.decode(odd.envelope, verify).body.reason == character
    with pytest.raises((PeerError, ValueError)):
        statements.decode(signed(replace(made.cancel().body, reason="\u202e"), made.submitter).envelope, verify)


def test_poc22_equal_sets_cost_a_few_bytes_however_large() -> None:
    ids = sorted(StatementId(statements.value_commitment(n.to_bytes(32, "big"))) for n in range(10_000))
    step = reconcile.answer(ids, b"", reconcile.opening(ids), limits.FRAME_BYTES_MAX)
    assert (step.ranges, list(step.give), list(step.want)) == ((), [], [])
    assert len(messages.encode(Reconcile(None, 0, b"", reconcile.opening(ids)))) < 200


def test_poc23_a_task_takes_little_of_a_certificate() -> None:
    """Of a million tasks it has less than a gigabyte, is written as it is made, and checked as it is read."""
    made = settled(tasks=256, batch=32)
    data = made.certificate()
    assert check_bytes(data, verify).ok
    assert len(data) / 256 < 1_000


def test_poc24_an_eager_pair_gets_no_more_than_its_share() -> None:
    plan, _ = base(job_of(tasks=40, task_ms=1_000), peers=14)
    chosen = [12, 13]
    peers = tuple(replace(p, liar="colluder", gang=1) if i in chosen else p for i, p in enumerate(plan.peers))
    world = World(replace(plan, peers=peers))
    while not world.jobs[0].over and world.now < 120_000:
        world.run_until(world.now + 500)
    wrong = [v for v in world.checkers.violations if v.invariant == "wrong-output"]
    assert len(wrong) <= 4


def test_poc25_a_job_settles_where_not_everybody_reaches_everybody() -> None:
    plan, found = base()
    first = found.seats[0]
    cut = [i for i in range(1, len(plan.peers)) if i % 2 and i not in found.seats]
    clogs = tuple(Clog(0, FOREVER, a, b) for i in cut for a, b in ((i, first), (first, i)))
    world = World(replace(plan, clogs=clogs))
    assert settle(world) < 60_000


def test_poc26_a_verdict_without_evidence_stops_no_worker() -> None:
    world = world_of("stopper", "member", "stranger")
    assert settle(world) < 10_000
    assert world.stats.runs >= 24


def test_poc27_nobody_passes_on_what_it_has_not_checked() -> None:
    lone = Lone(ONE, TWO, THREE)
    unknown = make_kit(seed=3)
    many = [
        *(signed(replace(unknown.cancel().body, reason=f"{n}"), unknown.submitter) for n in range(100)),
        *(unknown.settlement(n) for n in range(5)),
    ]
    effects = lone.deliver(ONE, *many)
    assert said(effects, TWO) == said(effects, THREE) == []
    assert answered(effects, ONE) < 100
    card = announcement(unknown)
    assert not said(lone.hear(ONE, *[card] * 100), TWO)


def test_poc28_one_mute_steward_delays_no_placing() -> None:
    world = world_of("mute-seat", "leader")
    settle(world)
    placed = world.jobs[0].placed_at
    assert placed is not None
    assert placed < SUBMIT_AT + 2_000


def test_poc29_a_steward_fetches_no_more_than_it_has_offered() -> None:
    lone = Lone(ONE)
    lone.take(OfferChanged(Offer(kit.NETWORK, 1, ("/ip4/10.0.0.1/tcp/1",), 1 << 30, 100, FOREVER << 10)))
    mine = lone.node._sampling.offer
    assert mine is not None
    huge = tuple(File(f"f{n}", BlobRef(Digest(bytes([n]) * 32), 1 << 40)) for n in range(200))
    submitter = HashSigner(9, "one")
    spec = replace(make_kit().spec, panel=(mine.envelope,), inputs=huge)
    lone.deliver(ONE, signed(spec, submitter))
    lone.now += 1_000
    lone.take(Tick())
    assert [effect for effect in lone.effects if isinstance(effect, Fetch)] == []
    assert [type(message) for message in said(lone.effects, ONE) if isinstance(message, Refused)] == [Refused]


def test_poc29_an_offer_that_has_run_out_binds_nobody() -> None:
    lone = Lone(ONE)
    lone.take(OfferChanged(Offer(kit.NETWORK, 1, ("/ip4/10.0.0.1/tcp/1",), 1 << 40, 100, 1_000)))
    lone.take(ProfileChanged(own_profile(stamp=2_000)))
    mine = lone.node._sampling.offer
    assert mine is not None
    spec = replace(make_kit().spec, panel=(mine.envelope,))
    lone.deliver(ONE, signed(spec, HashSigner(9, "one")))
    lone.now += 1_000
    lone.take(Tick())
    assert [effect for effect in lone.effects if isinstance(effect, Fetch)] == []


# --- what a captured shard can do ----------------------------------------------------------------------------------
def test_two_colluding_seats_settle_nothing_without_workers() -> None:
    """They may withhold and delay. A result needs `agree` workers whom the gate has admitted."""
    made = make_kit()
    gang = made.seats()[:2]
    one, other = made.workers[:2]
    invented = [HashSigner(9, "invented", n) for n in range(2)]
    evidence = made.evidence(state=made.state(*made.round()))
    for workers in (invented, [one, invented[0]]):
        made.workers.extend(invented)
        fold(evidence, wrong_evidence(made, gang, workers))
        decision = evidence.verdict(0)
        assert decision is None or evidence.error_in(decision.item, decision.statement.body) is not None
    commits = [made.commit(one, Result(1)), made.commit(other, Result(1))]
    freeze = made.freeze({1: commits}, gang)
    reveals = [made.reveal(w, c, Result(1)) for w, c in zip((one, other), commits, strict=True)]
    lie = made.verdict({1: (freeze, failed("I say so"))}, gang)
    fold(evidence, [*commits, freeze, *reveals, lie])
    decision = evidence.verdict(1)
    assert decision is None or evidence.error_in(decision.item, decision.statement.body) is not None
