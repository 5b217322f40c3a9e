"""The pure parts of a steward: leases, claims, assigning, judging, ranges, batches."""

from __future__ import annotations

import hashlib

from nexapod.protocol import limits
from nexapod.protocol.primitives import JobId, PeerId, StatementId
from nexapod.protocol.rules.agreement import Accepted, Failed, Undecided
from nexapod.protocol.rules.entitlement import Share
from nexapod.protocol.steward.shard import assigning, batching, cosigning, judging, leases
from nexapod.protocol.steward.shard.assigning import OpenTask, Room
from nexapod.protocol.steward.shard.claims import Claims
from nexapod.protocol.steward.shard.judging import Facts, FreezeEntry, RoundOf
from nexapod.protocol.steward.shard.leading import Leading
from nexapod.protocol.steward.shard.ledger import GROUPS_MAX, Account, Given, Ledger
from nexapod.protocol.steward.shard.pace import Pace
from nexapod.protocol.steward.shard.signed import SKIPPED_MAX, STUCK_MS, Signed
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.messages import Claim
from nexapod.sim.keys import HashSigner

PEERS = sorted(HashSigner(1, "p", i).peer for i in range(8))
A, B, C, D = PEERS[:4]
JOB = JobId(bytes(32))


def an_id(name: object) -> StatementId:
    return StatementId(hashlib.sha256(repr(name).encode()).digest())


# --- leases --------------------------------------------------------------------------------------------------------
def test_a_lease_runs_out_unless_it_is_renewed() -> None:
    table = leases.grant(leases.NONE, A, "a", 0)
    table = leases.renew(table, A, 50_000, 300)
    table, over = leases.expire(table, limits.LEASE_TTL_MS, 1 << 40, ())
    assert not over
    assert table.leases[0].progress == 300
    table, over = leases.expire(table, 50_000 + limits.LEASE_TTL_MS, 1 << 40, ())
    assert [lease.worker for lease in over] == [A]
    assert table.leases == ()
    assert table.barred(A, 50_000 + limits.LEASE_TTL_MS), "others go first"


def test_a_lease_renewed_for_longer_than_a_task_may_run_is_taken_away() -> None:
    table = leases.grant(leases.NONE, A, "a", 0)
    late = 1_000 + 2 * limits.LEASE_TTL_MS
    table = leases.renew(table, A, late)
    kept, over = leases.expire(table, late, 1_000, (A,))
    assert not over, "it has committed: what it waits for is the freeze"
    kept, over = leases.expire(table, late, 1_000, ())
    assert over
    assert kept.barred(A, late)


def test_a_lost_link_leaves_a_lease_in_doubt_until_it_is_renewed() -> None:
    table = leases.lose(leases.grant(leases.NONE, A, "a", 0), A)
    assert table.firm == ()
    assert table.of(A) is not None
    assert leases.renew(table, A, 1).firm


def test_bars_double_and_are_bounded() -> None:
    table = leases.bar(leases.NONE, A, 0, 100)
    assert table.barred(A, 99)
    assert not table.barred(A, 100)
    table = leases.bar(table, A, 100, 100)
    assert table.barred(A, 299)
    for i in range(2 * leases.BARS_MAX):
        table = leases.bar(table, PeerId(f"x{i}"), i)
    assert len(table.bars) == leases.BARS_MAX


def test_a_task_is_held_up_by_one_that_is_slow_and_has_much_of_it_before_it() -> None:
    table = leases.grant(leases.NONE, A, "a", 1_000)

    def held_up(typical: int, now: int, results: int = 1, **took: int) -> bool:
        missing = {{"a": A, "b": B}[name]: ms for name, ms in took.items()}
        return leases.is_held_up(table, missing, results, typical, now)

    assert held_up(10_000, 2_000, a=40_000)
    assert not held_up(0, 2_000, a=40_000), "nobody knows what tasks take"
    assert not held_up(10_000, 2_000, a=0), "nor what they take it"
    assert not held_up(10_000, 2_000), "it has ended it"
    assert not held_up(10_000, 2_000, results=0, a=40_000), "nobody waits for it"
    assert not held_up(30_000, 2_000, a=40_000), "it is not that slow"
    assert held_up(10_000, 28_999, a=40_000)
    assert not held_up(10_000, 29_000, a=40_000), "another would hardly end it sooner now"
    table = leases.grant(table, B, "b", 2_000)
    assert not held_up(10_000, 3_000, a=40_000, b=10_000), "another is at it"
    assert held_up(10_000, 3_000, a=40_000, b=30_000), "who is slow, too"
    assert held_up(10_000, 3_000, results=2, a=40_000, b=10_000)


# --- pace ------------------------------------------------------------------------------------------------------------
def test_a_few_that_answer_at_once_do_not_make_others_late() -> None:
    pace = Pace()
    assert pace.typical({"a": 9_000}) == 0, "nobody has ended a task"
    for group in ("x", "y", "z"):
        pace.ended(group, 20)
    running = dict.fromkeys("abcdef", 9000)
    assert pace.typical(running) == 9_000
    for name in "abcdef":
        pace.ended(name, 60_000)
    assert pace.typical({}) == 60_000


def test_a_groups_last_task_counts_most_and_few_are_remembered() -> None:
    pace = Pace()
    pace.ended("a", 1_000)
    pace.ended("a", 5_000)
    assert pace.typical({"a": 1 << 30}) == 2_000
    for number in range(2 * GROUPS_MAX):
        pace.ended(f"g{number}", 7)
    assert all(table.size <= table.most for table in pace.tables())
    assert "a" not in pace


# --- claims --------------------------------------------------------------------------------------------------------
def claim(seq: int, room: int = 1) -> Claim:
    return Claim(JOB, 0, seq, room, (), (), 0)


def test_the_newest_claim_counts_and_stands_for_a_while() -> None:
    claims = Claims(lambda peer: 0)
    assert claims.put(A, claim(2, 5), 0)
    assert claims.put(A, claim(1, 9), 1) is None
    assert [one.room for one in claims] == [5]
    assert claims.next_end == limits.BID_TTL_MS
    assert claims.expire(limits.BID_TTL_MS) == (A,)


def test_of_too_many_claims_the_least_worth_goes() -> None:
    claims = Claims(lambda peer: 1 if peer.startswith("stranger") else 0)
    for i in range(limits.CLAIMS_MAX):
        claims.put(PeerId(f"stranger{i:04}"), claim(1), 0)
    assert claims.put(A, claim(1), 0)
    assert len(claims) == limits.CLAIMS_MAX
    assert claims.put(PeerId("stranger9999"), claim(1), 0) is None


# --- assigning -----------------------------------------------------------------------------------------------------
def opened(task: int, places: int = 2, width: int = 0, taken: frozenset[str] = frozenset()) -> OpenTask:
    return OpenTask(task, 2, places, width, taken, frozenset())


def account(**leases: int) -> Account:
    return Account({group: Given(had) for group, had in leases.items()})


def test_own_tasks_go_first_and_who_was_given_least_chooses_first() -> None:
    order = {0: ("c", "a", "b"), 1: ("b", "a", "c")}
    rooms = [Room(A, "a", 1, frozenset()), Room(B, "b", 1, frozenset()), Room(C, "c", 1, frozenset())]
    found = assigning.assign(
        [opened(0), opened(1)], rooms, lambda task, count: order[task][:count], account(a=9, b=0, c=1)
    )
    assert found.items == ((1, B), (0, C), (0, A))
    assert found.own == 3
    assert found.unfilled == (1,)
    assert found.idle == frozenset()


def test_beyond_its_own_a_group_is_given_tasks_only_within_its_share() -> None:
    def first(task: int, count: int) -> tuple[str, ...]:
        return ("a", "b", "c")[:count]

    rooms = [Room(C, "c", 2, frozenset())]
    rich, poor = account(a=1, b=1, c=4), account(a=4, b=4, c=1)
    found = assigning.assign([opened(0), opened(1)], rooms, first, rich)
    assert found.items == ()
    assert found.idle == {"c"}
    assert assigning.assign([opened(0), opened(1)], rooms, first, poor).items == ((0, C), (1, C))
    # A wider task lets it in where another does not.
    assert assigning.assign([opened(0), opened(1, width=2)], rooms, first, account(a=1, b=1, c=4)).items == ((1, C),)


def test_nobody_is_given_what_it_has_had() -> None:
    rooms = [Room(A, "a", 2, frozenset({1}))]
    tasks = [opened(0, taken=frozenset("a")), opened(1), opened(2)]
    assert assigning.assign(tasks, rooms, lambda task, count: ("a",), account(a=0)).items == ((2, A),)


def test_the_widest_draw_lets_everybody_have_everything() -> None:
    present = {f"g{n}": Given(0) for n in range(limits.ROSTER_MAX)}
    present["g0"] = Given(500, 500)
    assert Account(present).share("g0").may_exceed(assigning.WIDTH_MAX)
    assert not assigning.may_widen(opened(0, width=assigning.WIDTH_MAX))


def test_a_ledger_never_takes_a_lease_back_and_is_bounded() -> None:
    ledger = Ledger()
    ledger.given("a", A, 3, own=True)
    ledger.given("a", A, 200, own=False)
    assert [ledger.had(A, place) for place in (3, 4, 200)] == [True, False, True]
    assert not ledger.had(B, 3)
    assert ledger.account(["a", "b"]).share("a") == Share(2, 1, 2, 2)
    assert ledger.account(["b"]).share("b") == Share(0, 0, 0, 1), "the mean is of those present"
    copy = ledger.account(["a"])
    copy.given("a", own=True)
    assert ledger.account(["a"]).leases("a") == 2
    for n in range(2 * GROUPS_MAX):
        ledger.given(f"n{n}", f"w{n}", 0, own=True)  # type: ignore[arg-type]
    assert all(table.size <= table.most for table in ledger.tables())


# --- judging -------------------------------------------------------------------------------------------------------
def entry(worker: PeerId, group: str) -> FreezeEntry:
    return FreezeEntry(worker, group, an_id(worker))


def facts(**changed: object) -> Facts:
    known: dict[str, object] = {
        "agree": 2,
        "frozen": None,
        "judgement": None,
        "entries": (),
        "signed": None,
        "stuck": False,
        "contested": False,
        "running": False,
        "outputs_here": False,
        "withheld": (),
    }
    return Facts(**(known | changed))  # type: ignore[arg-type]


TWO = (entry(A, "a"), entry(B, "b"))
THREE = (*TWO, entry(C, "c"))


def test_enough_groups_are_frozen_once() -> None:
    assert judging.decide(facts(entries=TWO[:1])) == judging.Waiting()
    assert judging.decide(facts(entries=TWO)) == judging.Freezable(RoundOf(1, TWO))
    frozen = RoundOf(1, TWO)
    assert judging.decide(facts(entries=TWO, frozen=frozen, judgement=Undecided(2))) == judging.Waiting()
    assert judging.decide(facts(entries=TWO, frozen=frozen, judgement=Undecided(3))) == judging.Waiting()
    more = facts(entries=THREE, frozen=frozen, judgement=Undecided(3))
    assert judging.decide(more) == judging.Freezable(RoundOf(2, THREE))


def test_what_was_signed_is_proposed_again_until_it_is_given_up() -> None:
    signed = RoundOf(1, TWO)
    assert judging.decide(facts(entries=THREE, signed=signed)) == judging.Freezable(signed)
    assert judging.decide(facts(entries=THREE, signed=signed, stuck=True)) == judging.Freezable(RoundOf(2, THREE))


def test_what_nobody_answers_uses_up_no_rounds() -> None:
    signed = RoundOf(1, TWO)
    assert judging.decide(facts(entries=TWO, signed=signed, stuck=True)) == judging.Freezable(signed)
    refused = facts(entries=TWO, signed=signed, stuck=True, contested=True)
    assert judging.decide(refused) == judging.Freezable(RoundOf(2, TWO))


def test_an_acceptance_waits_for_outputs_and_a_failure_for_who_runs() -> None:
    accepted, failed = Accepted(1, ((0, 1),)), Failed("no", ())
    frozen = RoundOf(1, TWO)
    assert judging.decide(facts(frozen=frozen, judgement=accepted)) == judging.Gather(1)
    ready = facts(frozen=frozen, judgement=accepted, outputs_here=True)
    assert judging.decide(ready) == judging.Decidable(accepted, ())
    assert judging.decide(facts(frozen=frozen, judgement=failed, running=True)) == judging.Waiting()
    assert judging.decide(facts(frozen=frozen, judgement=failed)) == judging.Decidable(failed, ())
    committed = facts(frozen=frozen, entries=THREE, judgement=failed, running=True)
    assert judging.decide(committed) == judging.Freezable(RoundOf(2, THREE))


# --- what was signed -----------------------------------------------------------------------------------------------
def freeze_of(rounds: dict[int, RoundOf]) -> object:
    return batching.freezes(JOB, 0, 0, rounds)


def test_a_seat_contradicts_no_freeze_that_it_has_signed() -> None:
    signed = Signed()
    (body,) = batching.freezes(JOB, 0, 0, {5: RoundOf(1, TWO)})
    signed.note(body, 0)
    assert signed.may_freeze(5, RoundOf(1, TWO), 0, 0)
    assert not signed.may_freeze(5, RoundOf(1, THREE), 0, 10 * STUCK_MS)
    assert not signed.may_freeze(5, RoundOf(2, THREE), 0, 0)
    assert signed.may_freeze(5, RoundOf(2, THREE), 0, STUCK_MS)
    assert signed.may_freeze(5, RoundOf(2, THREE), 1, 0)
    assert not signed.may_freeze(5, RoundOf(2 + SKIPPED_MAX, THREE), 1, 0)
    assert not signed.may_freeze(6, RoundOf(1 + SKIPPED_MAX, THREE), 0, 0)


# --- batches -------------------------------------------------------------------------------------------------------
def test_batches_fit_and_hold_a_worker_in_one_group() -> None:
    crew = [HashSigner(1, "w", i).peer for i in range(64)]
    rounds = {
        task: RoundOf(1, tuple(FreezeEntry(w, "g" * 200 + str(i), an_id((task, w))) for i, w in enumerate(crew[:16])))
        for task in range(limits.SHARD_TASKS)
    }
    rounds[3] = RoundOf(1, (FreezeEntry(crew[0], "another", an_id(0)), *rounds[3].entries[1:]))
    bodies = batching.freezes(JOB, 0, 0, rounds)
    assert sorted(item.task for body in bodies for item in body.items) == list(rounds)
    for body in bodies:
        statements.check_body(body)
        assert len({worker for worker, _ in body.workers}) == len(body.workers)


def test_verdicts_fit() -> None:
    many = {t: batching.Pronounced(Failed("é" * 400, ()), an_id(t % 3), (1,)) for t in range(limits.SHARD_TASKS)}
    bodies = batching.verdicts(JOB, 0, 0, many)
    for body in bodies:
        statements.check_body(body)
    assert sum(len(body.items) for body in bodies) == limits.SHARD_TASKS


# --- proposals of others -------------------------------------------------------------------------------------------
def test_what_is_missing_is_waited_for_and_what_is_wrong_is_not() -> None:
    assert cosigning.answer({1: "sign"}, 0, 0) == cosigning.Sign()
    assert cosigning.answer({1: "sign", 2: "wait"}, 0, 0) == cosigning.Wait(limits.COSIGN_MS)
    assert cosigning.answer({1: "sign", 2: "wait"}, 0, limits.COSIGN_MS) == cosigning.Objection((2,))
    assert cosigning.answer({1: "wait", 2: "refuse"}, 0, 0) == cosigning.Objection((2,))


def test_the_leader_is_the_first_that_is_there_and_not_mute() -> None:
    leading = Leading(B)
    assert leading.leader((A, B, C), lambda peer: True, 0) == A
    assert leading.leader((A, B, C), lambda peer: peer != A, 0) == B
    due = leading.watch([("freeze", 1)], 0)
    assert due == limits.LEADER_MUTE_MS
    assert leading.watch([("freeze", 1), ("freeze", 2)], 500) == due
    leading.passed_over(A, 2_000)
    assert leading.leader((A, B, C), lambda peer: True, 2_000) == B
    leading.spoke(A)
    assert leading.leader((A, B, C), lambda peer: True, 2_000) == A
    assert leading.leader((A, C), lambda peer: True, 0) is None
