"""Whatever the order in which statements come, and however their signatures are spread, they come to the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import kit
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import OTHER_OUTPUT, JobKit, Result, accepted, failed, make_kit, signed

from nexapod.protocol.errors import PeerError
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.job import JobState
from nexapod.protocol.wire import bodies, statements
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner, verify

TASKS = 4
STRANGERS = [HashSigner(9, "stranger", i) for i in range(3)]
JOB_KINDS = frozenset(
    ("renewal", "succession", "adoption", "admission", "beacon", "placed", "fault", "cancel", "settlement")
)


@cache
def story() -> tuple[JobKit, tuple[Statement, ...]]:
    """A job with a little of everything, honest and not. One worker contradicts itself, and is proven to have."""
    made = make_kit(members=6, workers=7, tasks=TASKS, checkpoint="shared")
    new = HashSigner(8, "new")
    one, two, three = made.seats()
    spare = [member for member in made.members if member not in (one, two, three)]
    first, second = made.round(made.workers[:4]), made.round(made.workers[4:], round=2)
    renewal = made.renewal([], [new], [made.submitter], "submitter")
    rival_renewal = made.renewal(spare[:1], [HashSigner(8, "other")], made.members[:4])
    succession = made.succession([one, two, spare[0]], [one, two, three])
    rivals = [made.succession(holders, [one, three]) for holders in ([one, three], [three, one], [three], [one])]
    rival = max(rivals, key=lambda other: other.id)
    assert rival.id > succession.id
    by_panel = made.succession([three, new], made.members[:4], "panel", epoch=2, previous=rival.id)
    caretaker = made.succession([spare[1]], [spare[1]], "caretaker")
    results = [Result(task) for task in range(TASKS)]
    commits = [made.commit(worker, *results[:2]) for worker in made.workers[:3]]
    broken = [Result(2, outcome="failed", exit=3) for _ in range(2)]
    breaking = [made.commit(worker, result) for worker, result in zip(made.workers[3:5], broken, strict=True)]
    two_faced = made.workers[5]
    faces = [made.commit(two_faced, Result(3, files)) for files in (kit.OUTPUT, OTHER_OUTPUT)]
    fault = signed(bodies.Fault(made.job, two_faced.peer, faces[0].envelope, faces[1].envelope), STRANGERS[0])
    checkpoint = made.checkpoint(made.workers[3], 3)
    resumed = Result(3, resumed=checkpoint.id)
    resuming = made.commit(made.workers[6], resumed)
    freezes = [
        made.freeze({0: commits[:2], 1: commits[:2]}, [one, two, *STRANGERS]),
        made.freeze({0: commits}, round=2),
        made.freeze({2: breaking}),
        made.freeze({3: [faces[1], resuming]}, epoch=1, signers=[one, spare[0]]),
        made.freeze({3: [faces[0], resuming]}, epoch=1, signers=[two]),
    ]
    reveals = [
        *(made.reveal(w, c, *results[:2]) for w, c in zip(made.workers, commits, strict=False)),
        *(made.reveal(w, c, r) for w, c, r in zip(made.workers[3:], breaking, broken, strict=False)),
        made.reveal(two_faced, faces[1], Result(3, OTHER_OUTPUT)),
        made.reveal(made.workers[6], resuming, resumed),
        made.reveal(made.workers[0], commits[0], Result(0, reason="again"), Result(1)),
    ]
    verdicts = [
        made.verdict({0: (freezes[0], accepted()), 1: (freezes[0], accepted())}),
        made.verdict({0: (freezes[1], accepted(0, ((0, 1), (0, 2), (1, 2))))}, [one]),
        made.verdict({2: (freezes[2], failed())}),
    ]
    adoption = made.adoption([*first, second[0], freezes[0], verdicts[0], freezes[2]], [one, spare[0]])
    return made, (
        *first, *second, renewal, rival_renewal, succession, rival, by_panel, caretaker, adoption, fault,
        *(made.placed(member) for member in made.members[:3]), made.placed(one, b"x" * 32), made.placed(new),
        made.settlement(3, 1), made.cancel(), made.admission(made.workers[:1], STRANGERS, round=5),
        *commits, *breaking, *faces, resuming, checkpoint, made.commit(STRANGERS[1], results[0]),
        *freezes, *reveals, *verdicts,
    )  # fmt: skip


def _spread(told: Sequence[Statement], chance: random.Random) -> list[Statement]:
    """The same, some cosigned ones as several copies with a part of the signatures each."""
    spread: list[Statement] = []
    for statement in told:
        if statement.kind not in statements.COSIGNED or chance.random() < 0.5:
            spread.append(statement)
            continue
        spread += [statements.keep_signers(statement, [signer]) for signer in statement.signers]
    return spread


def _fold(made: JobKit, told: Sequence[Statement]) -> tuple[JobState, ShardEvidence]:
    """Offered again and again, for as long as anything changes."""
    job = JobState(made.job_statement, verify)
    evidence = ShardEvidence(job, 0)
    before = None
    while before != (job.version, evidence.version):
        before = job.version, evidence.version
        for statement in told:
            try:
                (job.add if statement.kind in JOB_KINDS else evidence.add)(statement)
            except PeerError:
                continue
    return job, evidence


def _said(job: JobState, evidence: ShardEvidence) -> list[object]:
    """All that anybody is told."""
    tasks = range(TASKS)
    return [
        [statement.id for statement in job.statements()],
        job.members(),
        job.seats(0),
        job.workable,
        [job.lottery.draw(task) for task in tasks],
        sorted(job.faults()),
        job.closing,
        evidence.ids(),
        [statement.id for statement in evidence.statements_of(tasks)],
        [_named(evidence, task) for task in tasks],
        [evidence.judge(task, (), 10**6) for task in tasks],
        [evidence.outputs(task) for task in tasks],
        evidence.decided,
        evidence.adoptable(),
    ]


def _named(evidence: ShardEvidence, task: int) -> object:
    frozen, decision = evidence.frozen(task), evidence.verdict(task)
    return (
        [(worker, fact.statement.id) for worker, fact in evidence.commits(task).items()],
        evidence.shown(task),
        None if frozen is None else (frozen.statement.id, frozen.entries),
        None if decision is None else (decision.statement.id, decision.outcome, decision.root),
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 12))
def test_the_order_of_arrival_does_not_matter(seed: int, left_out: int) -> None:
    made, told = story()
    chance = random.Random(seed)
    missing = {statement.id for statement in chance.sample(told, left_out)}
    kept = [statement for statement in told if statement.id not in missing]
    # A worker's two faces are told apart by its fault or by a freeze: without either, the first that comes stands.
    if any(s.kind == "fault" for s in told if s.id in missing):
        kept = [s for s in kept if s.kind != "commit" or s.author != made.workers[5].peer]
    shuffled = _spread(kept, chance)
    chance.shuffle(shuffled)
    assert _said(*_fold(made, shuffled)) == _said(*_fold(made, kept))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_what_was_asked_before_does_not_matter(seed: int) -> None:
    """What is worked out once is worked out anew after anything that could change it."""
    made, told = story()
    chance = random.Random(seed)
    shuffled = _spread(told, chance)
    chance.shuffle(shuffled)
    job = JobState(made.job_statement, verify)
    asked, silent = ShardEvidence(job, 0), ShardEvidence(job, 0)
    for statement in (*shuffled, *shuffled):
        for fold in (job.add,) if statement.kind in JOB_KINDS else (asked.add, silent.add):
            with suppress(PeerError):
                fold(statement)
        _said(job, asked)
        if chance.random() < 0.1:
            assert _said(job, silent) == _said(job, asked)
    assert _said(job, silent) == _said(job, asked)


def test_the_story_says_something() -> None:
    made, told = story()
    job, evidence = _fold(made, told)
    assert job.workable
    assert job.closed
    assert job.seats(0).epoch == 1
    assert sorted(job.faults()) == [made.workers[5].peer]
    assert evidence.decided == 2
    assert evidence.frozen(3) is not None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_told_again_makes_the_same(seed: int) -> None:
    made, told = story()
    kept = [statement for statement in told if random.Random(seed).random() < 0.9]
    job, evidence = _fold(made, kept)
    again = [*job.statements()[1:], *evidence.statements_of(range(TASKS))]
    other_job, other = _fold(made, again)
    assert other_job.statements() == job.statements()
    assert [other.verdict(task) for task in range(TASKS)] == [evidence.verdict(task) for task in range(TASKS)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_only_peer_errors_come_of_any_statement(seed: int) -> None:
    """Bodies with parts of one another, signed by whoever."""
    made, told = story()
    chance = random.Random(seed)
    job, evidence = _fold(made, told[: chance.randrange(len(told))])
    signers = [made.submitter, *made.members, *made.workers, *STRANGERS]
    for statement in chance.sample(told, 8):
        other = chance.choice([s for s in told if s.kind == statement.kind])
        parts = [field for field in type(statement.body).__dataclass_fields__ if field != "job"]
        mixed = {part: getattr(chance.choice((statement, other)).body, part) for part in parts}
        body = type(statement.body)(job=made.job, **mixed)
        offered = signed(body, *chance.sample(signers, 3 if statement.kind in statements.COSIGNED else 1))
        try:
            (job.add if statement.kind in JOB_KINDS else evidence.add)(offered)
        except PeerError:
            continue
    _said(job, evidence)
