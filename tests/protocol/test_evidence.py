"""What the statements of one shard come to: commits, freezes, reveals, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import kit
import pytest
from kit import OTHER_OUTPUT, JobKit, Result, accepted, failed, make_kit, signed

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.evidence import Contradiction, ShardEvidence
from nexapod.protocol.primitives import File, StatementId, blob_of
from nexapod.protocol.rules.agreement import Accepted, Failed, Undecided
from nexapod.protocol.wire import bodies
from nexapod.protocol.wire.bodies import Freeze
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner

STRANGER = HashSigner(7, "stranger")


class Shard:
    """A shard whose workers are admitted, and what some of them have of task 0, in the order of its draw."""

    def __init__(self, made: JobKit, results: Sequence[Result] = (Result(0), Result(0))) -> None:
        self.made = made
        self.evidence = made.evidence()
        self.crew = made.in_draw(made.workers, 0)[: len(results)]
        self.results = results
        self.commits = [made.commit(worker, result) for worker, result in zip(self.crew, results, strict=True)]
        self.reveals = [
            made.reveal(worker, commit, result)
            for worker, commit, result in zip(self.crew, self.commits, results, strict=True)
        ]

    def take(self, *folded: Statement) -> list[object]:
        return [self.evidence.add(statement) for statement in folded]

    def freeze(self, *signers: HashSigner, many: int | None = None, round: int = 1) -> Statement:
        return self.made.freeze({0: self.commits[:many]}, signers or None, round=round)

    def verdict(self, item: bodies.VerdictItem, *signers: HashSigner, of: Statement | None = None) -> Statement:
        return self.made.verdict({0: (of or self.freeze(), item)}, signers or None)

    def shown(self) -> Shard:
        """With everything up to the reveals."""
        self.take(*self.commits, self.freeze(), *self.reveals)
        return self


def refused(evidence: ShardEvidence, statement: Statement) -> str:
    with pytest.raises(PeerError) as caught:
        evidence.add(statement)
    return caught.value.rule


# --- one task, from commit to verdict -------------------------------------------------------------------------------
def test_a_task_goes_from_commits_to_its_outputs() -> None:
    shard = Shard(make_kit())
    evidence = shard.evidence
    assert evidence.judge(0, (), 0) == Undecided(2)
    assert shard.take(*shard.commits) == ["new", "new"]
    assert list(evidence.commits(0)) == kit.by_key(worker.peer for worker in shard.crew)
    assert shard.take(shard.freeze()) == ["new"]
    frozen = evidence.frozen(0)
    assert frozen is not None
    assert [entry.worker for entry in frozen.entries] == [worker.peer for worker in shard.crew]
    assert evidence.judge(0, (), 0) == Undecided(2)
    assert shard.take(*shard.reveals) == ["new", "new"]
    assert evidence.judge(0, (), 0) == Accepted(0, ((0, 1),))
    verdict = shard.verdict(accepted())
    assert evidence.error_in(verdict.body.items[0], verdict.body) is None
    assert shard.take(verdict) == ["new"]
    decision = evidence.verdict(0)
    assert decision is not None
    assert (decision.outcome, decision.worker) == ("accepted", shard.crew[0].peer)
    assert decision.root == shard.results[0].root
    assert evidence.outputs(0) == kit.OUTPUT
    assert evidence.decided == 1
    assert evidence.verdict(1) is None


def test_everything_again_is_known() -> None:
    shard = Shard(make_kit()).shown()
    version = shard.evidence.version
    again = [*shard.commits, shard.freeze(), *shard.reveals]
    assert set(shard.take(*again)) == {"known"}
    assert shard.evidence.version == version


def test_its_evidence_makes_another_fold_the_same() -> None:
    made = make_kit(tasks=6)
    shard = Shard(made).shown()
    shard.take(shard.verdict(accepted()))
    other = made.commit(made.workers[4], Result(0), Result(3))
    shard.take(other)
    listed = shard.evidence.statements_of(range(6))
    again = made.evidence()
    assert [again.add(statement) for statement in listed] == ["new"] * len(listed)
    assert again.statements_of(range(6)) == listed
    assert other in listed
    decided = shard.evidence.statements_of([0])
    assert other not in decided
    assert sorted(s.kind for s in decided) == ["commit", "commit", "freeze", "reveal", "reveal", "verdict"]
    assert sorted(shard.evidence.ids()) == shard.evidence.ids()
    assert all(shard.evidence.get(id) is not None for id in shard.evidence.ids())


def test_other_jobs_shards_and_kinds_are_refused() -> None:
    made = make_kit(tasks=300)
    shard = Shard(made)
    assert refused(shard.evidence, made.cancel()) == "not-of-a-shard"
    assert refused(shard.evidence, make_kit(seed=2).commit(STRANGER, Result(0))) == "other-job"
    assert refused(shard.evidence, made.commit(made.workers[0], Result(260))) == "other-shard"
    wrong = bodies.Commit(made.job, 0, (bodies.CommitItem(260, made.commit(STRANGER, Result(0)).body.items[0].sealed),))
    assert refused(shard.evidence, signed(wrong, made.workers[0])) == "bad-commit"


# --- commits --------------------------------------------------------------------------------------------------------
def test_commits_of_workers_that_are_not_admitted_are_not_kept() -> None:
    shard = Shard(make_kit())
    assert shard.take(shard.made.commit(STRANGER, Result(0))) == ["orphan"]
    assert shard.evidence.commits(0) == {}


def test_a_commit_on_the_workers_own_link_is_told_apart() -> None:
    shard = Shard(make_kit())
    worker = shard.crew[0].peer
    shard.take(shard.commits[0])
    assert not shard.evidence.commits(0)[worker].direct
    assert shard.evidence.add(shard.commits[0], direct=True) == "new"
    assert shard.evidence.commits(0)[worker].direct
    assert shard.evidence.add(shard.commits[0]) == "known"


def test_two_commits_of_one_worker_contradict_and_the_first_is_kept() -> None:
    shard = Shard(make_kit())
    first, other = shard.commits[0], shard.made.commit(shard.crew[0], Result(0, OTHER_OUTPUT))
    shard.take(first)
    assert shard.take(other) == [Contradiction(*sorted((first, other), key=lambda s: s.id))]
    fact = shard.evidence.commit_of(0, shard.crew[0].peer)
    assert fact is not None
    assert fact.statement == first


def test_the_same_in_another_statement_is_no_contradiction() -> None:
    shard = Shard(make_kit())
    again = shard.made.commit(shard.crew[0], Result(0), Result(1))
    assert shard.take(shard.commits[0], again) == ["new", "new"]


def test_a_freeze_that_counts_says_which_of_two_commits_stands() -> None:
    shard = Shard(make_kit())
    worker = shard.crew[0]
    other = shard.made.commit(worker, Result(0, OTHER_OUTPUT))
    shard.take(other, shard.commits[1])
    assert shard.take(shard.freeze()) == ["new"]
    assert shard.evidence.commit_of(0, worker.peer) is None
    assert isinstance(shard.take(shard.commits[0])[0], Contradiction)
    fact = shard.evidence.commit_of(0, worker.peer)
    assert fact is not None
    assert fact.statement == shard.commits[0]
    assert shard.take(*shard.reveals) == ["new", "new"]
    assert shard.evidence.judge(0, (), 0) == Accepted(0, ((0, 1),))


def test_a_worker_proven_at_fault_has_no_commit_but_a_frozen_one() -> None:
    made = make_kit()
    state = made.state(*made.round())
    worker = made.workers[0]
    first, other = (made.commit(worker, Result(0, files)) for files in (kit.OUTPUT, OTHER_OUTPUT))
    evidence = made.evidence(first, state=state)
    state.add(signed(bodies.Fault(made.job, worker.peer, first.envelope, other.envelope), made.members[0]))
    assert evidence.commits(0) == {}
    assert isinstance(evidence.add(other), str)
    frozen = made.freeze({0: [first, made.commit(made.workers[1], Result(0))]})
    assert [evidence.add(statement) for statement in (frozen, other, first)] == ["new", "known", "new"]
    assert list(evidence.commits(0)) == [worker.peer]


def test_the_commits_of_one_task_are_bounded_by_the_draw_and_not_by_whoever_is_first() -> None:
    made = make_kit(
        workers=limits.COMMITS_PER_TASK_MAX + 20,
        grouping="network",
        groups={i: f"10.{max(0, i - 20)}.0.0/24" for i in range(limits.COMMITS_PER_TASK_MAX + 20)},
    )
    state = made.state(*made.round())
    commits = [made.commit(worker, Result(0)) for worker in made.workers]
    forwards = made.evidence(*commits, state=state)
    backwards = made.evidence(*reversed(commits), state=state)
    assert len(forwards.commits(0)) <= limits.COMMITS_PER_TASK_MAX
    assert list(forwards.commits(0)) == list(backwards.commits(0))
    assert forwards.ids() == backwards.ids()
    crowd = {worker.peer for worker in made.workers[:21]}
    assert len(crowd & forwards.commits(0).keys()) == limits.COMMITS_PER_GROUP_MAX


# --- freezes --------------------------------------------------------------------------------------------------------
def test_a_freeze_gathers_signatures_and_drops_those_of_others() -> None:
    shard = Shard(make_kit(members=5))
    one, two, _ = shard.made.seats()
    shard.take(*shard.commits)
    assert shard.take(shard.freeze(one, STRANGER)) == ["proposal"]
    assert shard.evidence.frozen(0) is None
    kept = shard.evidence.get(shard.freeze().id)
    assert kept is not None
    assert kept.signers == (one.peer,)
    assert shard.evidence.proposals() == [kept]
    assert shard.take(shard.freeze(two, STRANGER)) == ["new"]
    assert shard.evidence.frozen(0) is not None
    assert shard.evidence.proposals() == []


def test_strangers_and_members_without_a_seat_freeze_nothing() -> None:
    shard = Shard(make_kit(members=5))
    seats = shard.made.seats()
    spare = [member for member in shard.made.members if member not in seats]
    shard.take(*shard.commits)
    assert refused(shard.evidence, shard.freeze(STRANGER)) == "foreign-signature"
    assert shard.take(shard.freeze(*spare)) == ["orphan"]
    assert shard.evidence.ids() == sorted(commit.id for commit in shard.commits)


def test_a_proposal_waits_for_its_commits_and_a_quorums_freeze_does_not() -> None:
    shard = Shard(make_kit())
    assert shard.take(shard.freeze(shard.made.seats()[0])) == ["orphan"]
    assert shard.take(shard.freeze()) == ["new"]
    assert [entry.outcome for entry in shard.evidence.shown(0)] == [None, None]
    assert shard.take(*shard.commits, *shard.reveals) == ["new"] * 4
    assert shard.evidence.judge(0, (), 0) == Accepted(0, ((0, 1),))


def test_commits_that_nobody_ever_saw_hold_up_no_other_task() -> None:
    made = make_kit()
    made.round()
    one, two = (made.commit(worker, Result(0), Result(1)) for worker in made.workers[:2])
    ghost = made.commit(made.workers[2], Result(0))
    evidence = made.evidence(one, two)
    assert evidence.add(made.freeze({0: [one, ghost], 1: [one, two]})) == "new"
    results = Result(0), Result(1)
    for worker, commit in zip(made.workers, (one, two), strict=False):
        assert evidence.add(made.reveal(worker, commit, *results)) == "new"
    assert evidence.judge(1, (), 0) == Accepted(0, ((0, 1),))
    assert evidence.judge(0, (), 0) == Undecided(2)
    assert evidence.judge(0, (made.workers[2].peer,), 0) == Undecided(3)


def test_a_freeze_is_in_the_order_of_the_draw() -> None:
    made = make_kit()
    made.round()
    crew = made.in_draw(made.workers, 0)
    commits = [made.commit(worker, Result(0)) for worker in crew]
    evidence = made.evidence(*commits)
    assert evidence.add(made.freeze({0: commits[::-1]}, sort=False)) == "orphan"
    assert evidence.add(made.freeze({0: commits}, sort=False)) == "new"


def test_groups_outside_the_roster_stand_last() -> None:
    made = make_kit(workers=limits.ROSTER_MAX + 4)
    state = made.state(*made.round())
    roster = state.lottery.roster(0)
    inside = made.in_draw([worker for worker in made.workers if worker.peer in roster], 0)[-2:]
    outside = sorted((w for w in made.workers if w.peer not in roster), key=lambda worker: worker.peer)
    evidence = made.evidence(state=state)

    def freeze(crew: Sequence[HashSigner], round: int) -> Statement:
        return made.freeze({0: [made.commit(w, Result(0)) for w in crew]}, sort=False, round=round)

    assert evidence.add(freeze([*inside, *outside], 1)) == "new"
    drawn = made.in_draw(outside, 0)
    other = next([*mixed] for mixed in permutations(outside) if [*mixed] not in (outside, drawn))
    assert evidence.add(freeze([*other, *inside], 2)) == "orphan"


def test_groups_are_those_admitted_or_a_smaller_one_of_another() -> None:
    made = make_kit(workers=3)
    made.round()
    commits = [made.commit(worker, Result(0)) for worker in made.workers[:2]]
    small, large = kit.by_key(worker.peer for worker in made.workers[:2])
    evidence = made.evidence(*commits)
    merged = made.freeze({0: commits}, groups={large: small})
    assert evidence.add(made.freeze({0: commits}, groups={small: large})) == "orphan"
    assert evidence.add(made.freeze({0: commits}, groups={large: "invented"})) == "orphan"
    assert evidence.add(merged) == "new"
    assert evidence.judge(0, (), 0) == Undecided(1)
    for worker, commit in zip(made.workers, commits, strict=False):
        evidence.add(made.reveal(worker, commit, Result(0)))
    assert evidence.judge(0, (), 0) == Undecided(2)


def test_a_freeze_of_workers_that_are_not_admitted_is_an_orphan() -> None:
    made = make_kit()
    admitted, late = made.round(made.workers[:2]), made.round(made.workers[2:], round=2)
    state = made.state(*admitted)
    commits = [made.commit(worker, Result(0)) for worker in made.workers[1:3]]
    evidence = made.evidence(state=state)
    freeze = made.freeze({0: commits})
    assert evidence.add(freeze) == "orphan"
    for statement in late:
        state.add(statement)
    assert evidence.add(freeze) == "new"


def _broken(freeze: Freeze) -> list[Freeze]:
    item = freeze.items[0]
    return [
        replace(freeze, workers=freeze.workers[::-1]),
        replace(freeze, commits=(freeze.commits[0], *freeze.commits)),
        replace(freeze, items=(item, item)),
        replace(freeze, items=(replace(item, task=99),)),
        replace(freeze, items=(replace(item, entries=((7, 0),)),)),
        replace(freeze, items=(replace(item, entries=((0, 7),)),)),
        replace(freeze, items=(replace(item, entries=((0, 0), (0, 1))),)),
    ]


def test_a_freeze_has_a_form() -> None:
    shard = Shard(make_kit())
    for body in _broken(shard.freeze().body):
        assert refused(shard.evidence, signed(body, *shard.made.quorum())) == "bad-freeze"


def test_the_freeze_with_the_highest_round_stands_in_any_order() -> None:
    made = make_kit()
    shards = [Shard(made, [Result(0)] * 3) for _ in range(2)]
    rounds = [shards[0].freeze(many=2), shards[0].freeze(round=2)]
    shards[0].take(*rounds)
    shards[1].take(*reversed(rounds))
    for shard in shards:
        frozen = shard.evidence.frozen(0)
        assert frozen is not None
        assert (frozen.round, len(frozen.entries)) == (2, 3)


# --- reveals --------------------------------------------------------------------------------------------------------
def test_a_reveal_is_what_was_committed_to() -> None:
    shard = Shard(make_kit())
    worker, commit = shard.crew[0], shard.commits[0]
    assert shard.take(shard.reveals[0]) == ["orphan"]
    shard.take(commit)
    assert refused(shard.evidence, shard.made.reveal(worker, commit, Result(0, OTHER_OUTPUT))) == "bad-reveal"
    stolen = shard.made.reveal(shard.crew[1], commit, Result(0))
    assert shard.take(stolen) == ["orphan"]
    assert shard.evidence.reveal_of(0, worker.peer) is None


@pytest.mark.parametrize(
    "result",
    [
        Result(0, (File("big", blob_of(b"x")), File("big", blob_of(b"y")))),
        Result(0, (File("big", replace(blob_of(b"x"), size=1 << 30)),)),
    ],
)
def test_a_reveal_has_outputs_that_the_job_allows(result: Result) -> None:
    shard = Shard(make_kit())
    commit = shard.made.commit(shard.crew[0], result)
    shard.take(commit)
    assert refused(shard.evidence, shard.made.reveal(shard.crew[0], commit, result)) == "bad-reveal"


def test_a_result_that_did_not_end_well_has_no_outputs() -> None:
    shard = Shard(make_kit(), [Result(0, outcome="failed", exit=3)])
    body = shard.reveals[0].body
    items = (replace(body.items[0], outputs=kit.OUTPUT),)
    shard.take(*shard.commits)
    assert refused(shard.evidence, signed(replace(body, items=items), shard.crew[0])) == "bad-reveal"
    assert shard.take(shard.reveals[0]) == ["new"]


def test_of_several_reveals_of_one_result_the_same_one_is_kept() -> None:
    made = make_kit()
    worker = made.workers[0]
    commit = made.commit(worker, Result(0))
    shown = [made.reveal(worker, commit, Result(0, reason=reason)) for reason in "abcdef"]
    forwards, backwards = made.evidence(commit, *shown), made.evidence(commit, *reversed(shown))
    assert forwards.ids() == backwards.ids()
    assert len(forwards.ids()) == 2


def test_the_tasks_of_a_reveal_whose_commits_are_here_are_taken() -> None:
    made = make_kit()
    worker = made.workers[0]
    results = Result(0), Result(1)
    here, late = (made.commit(worker, result) for result in results)
    items = [made.reveal(worker, c, r).body.items[0] for c, r in zip((here, late), results, strict=True)]
    both = signed(replace(made.reveal(worker, here, results[0]).body, items=tuple(items)), worker)
    evidence = made.evidence(here)
    assert evidence.add(both) == "orphan"
    assert evidence.reveal_of(0, worker.peer) is not None
    assert evidence.add(late) == "new"
    assert evidence.add(both) == "new"
    assert evidence.reveal_of(1, worker.peer) is not None


# --- lineage --------------------------------------------------------------------------------------------------------
def _resumed(made: JobKit, other: Result, *, agree_known: bool = True) -> tuple[ShardEvidence, list[HashSigner]]:
    """Two workers of task 0, the second of which went on from the first's checkpoint."""
    made.round()
    crew = made.in_draw(made.workers, 0)[:2]
    checkpoint = made.checkpoint(crew[0], 0)
    results = [Result(0), replace(other, resumed=checkpoint.id)]
    commits = [made.commit(w, r) for w, r in zip(crew, results, strict=True)]
    evidence = made.evidence(*commits, made.freeze({0: commits}))
    if agree_known:
        assert evidence.add(checkpoint) == "new"
    for worker, commit, result in zip(crew, commits, results, strict=True):
        evidence.add(made.reveal(worker, commit, result))
    return evidence, crew


def test_results_that_share_a_checkpoint_have_one_vote() -> None:
    evidence, crew = _resumed(make_kit(checkpoint="shared"), Result(0))
    assert {entry.group for entry in evidence.shown(0)} == {min(worker.peer for worker in crew)}
    assert evidence.judge(0, (), 0) == Undecided(2)


def test_an_unknown_checkpoint_leaves_the_freezes_groups() -> None:
    evidence, crew = _resumed(make_kit(checkpoint="shared"), Result(0), agree_known=False)
    assert [entry.group for entry in evidence.shown(0)] == [worker.peer for worker in crew]
    assert evidence.judge(0, (), 0) == Accepted(0, ((0, 1),))


def test_nobody_silences_another_by_claiming_its_checkpoint() -> None:
    evidence, crew = _resumed(make_kit(checkpoint="shared"), Result(0, OTHER_OUTPUT))
    assert [entry.group for entry in evidence.shown(0)] == [worker.peer for worker in crew]


def test_a_checkpoint_that_comes_late_undoes_no_acceptance() -> None:
    made = make_kit(checkpoint="shared")
    evidence, crew = _resumed(made, Result(0), agree_known=False)
    freeze = evidence.frozen(0)
    assert freeze is not None
    verdict = made.verdict({0: (freeze.statement, accepted())})
    assert evidence.add(verdict) == "new"
    assert evidence.judge(0, (), 0) == Accepted(0, ((0, 1),))
    checkpoint = made.checkpoint(crew[0], 0)
    assert evidence.add(checkpoint) == "new"
    assert evidence.judge(0, (), 0) == Undecided(2)
    assert evidence.error_in(verdict.body.items[0], verdict.body) is None
    assert evidence.error_in(verdict.body.items[0], verdict.body, joined=True) is not None, "nobody else signs it now"
    assert checkpoint in evidence.statements_of([0])


def test_a_checkpoint_that_was_handed_out_is_kept_though_others_come() -> None:
    made = make_kit(workers=limits.CHECKPOINTS_PER_TASK_MAX + 3, checkpoint="shared")
    evidence = made.evidence()
    handed = made.checkpoint(made.in_draw(made.workers, 0)[-1], 0)
    assert evidence.want(handed)
    assert not evidence.want(handed)
    for worker in made.workers:
        evidence.add(made.checkpoint(worker, 0, seq=2))
    assert handed.id in evidence.ids()


def test_checkpoints_are_the_newest_of_a_few_workers() -> None:
    made = make_kit(workers=limits.CHECKPOINTS_PER_TASK_MAX + 3, checkpoint="shared")
    evidence = made.evidence()
    for worker in made.workers:
        evidence.add(made.checkpoint(worker, 0, seq=2))
    assert evidence.add(made.checkpoint(made.in_draw(made.workers, 0)[0], 0, seq=1)) == "known"
    newest = [made.checkpoint(w, 0, seq=2).id for w in made.in_draw(made.workers, 0)[: limits.CHECKPOINTS_PER_TASK_MAX]]
    assert evidence.ids() == sorted(newest)
    assert evidence.add(made.checkpoint(STRANGER, 0)) == "orphan"
    assert refused(evidence, made.checkpoint(made.workers[0], 99)) == "bad-checkpoint"
    assert refused(make_kit().evidence(), make_kit().checkpoint(made.workers[0], 0)) == "bad-checkpoint"


# --- verdicts -------------------------------------------------------------------------------------------------------
def test_a_verdict_needs_a_quorum_and_its_freeze() -> None:
    shard = Shard(make_kit(members=5))
    verdict = shard.verdict(accepted(), shard.made.seats()[0])
    assert shard.take(verdict) == ["orphan"]
    shard.shown()
    assert shard.take(verdict) == ["proposal"]
    assert shard.evidence.verdict(0) is None
    assert refused(shard.evidence, shard.verdict(failed(), STRANGER)) == "foreign-signature"
    assert shard.take(kit.only(verdict, shard.made.seats()[1])) == ["new"]
    assert shard.evidence.verdict(0) is not None


def test_a_verdict_over_a_freeze_that_does_not_count_decides_nothing() -> None:
    shard = Shard(make_kit())
    shard.take(*shard.commits, shard.freeze(shard.made.seats()[0]), *shard.reveals)
    verdict = shard.verdict(accepted())
    assert shard.take(verdict) == ["new"]
    assert shard.evidence.verdict(0) is None
    assert shard.evidence.error_in(verdict.body.items[0], verdict.body) is not None
    assert shard.take(shard.freeze()) == ["new"]
    assert shard.evidence.verdict(0) is not None


@pytest.mark.parametrize(
    "item",
    [
        accepted(pairs=()),
        accepted(representative=9),
        accepted(pairs=((1, 0),)),
        accepted(pairs=((0, 1), (0, 1))),
        accepted(missing=(1,)),
        accepted(missing=(9,)),
        accepted(representative=2, pairs=((0, 1),)),
        failed(missing=(1, 0)),
    ],
)
def test_a_verdict_has_a_form_and_by_its_own_word_enough_agree(item: bodies.VerdictItem) -> None:
    shard = Shard(make_kit(), [Result(0)] * 3).shown()
    assert refused(shard.evidence, shard.verdict(item)) == "bad-verdict"


def test_a_verdict_is_on_tasks_of_its_freeze() -> None:
    shard = Shard(make_kit()).shown()
    body = shard.verdict(accepted()).body
    for items in (
        (replace(body.items[0], task=1),),
        (replace(body.items[0], task=99),),
        (replace(body.items[0], freeze=3),),
        (body.items[0], body.items[0]),
    ):
        assert refused(shard.evidence, signed(replace(body, items=items), *shard.made.quorum())) == "bad-verdict"


def test_of_two_verdicts_the_same_one_stands_in_any_order() -> None:
    made = make_kit()
    shards = [Shard(made).shown() for _ in range(2)]
    freeze = shards[0].freeze()
    pair = [made.verdict({0: (freeze, item)}) for item in (accepted(), failed())]
    shards[0].take(*pair)
    shards[1].take(*reversed(pair))
    assert shards[0].evidence.verdict(0) == shards[1].evidence.verdict(0)
    assert shards[0].evidence.verdict(0) is not None


def _error(results: Sequence[Result], item: bodies.VerdictItem, hidden: Sequence[int] = ()) -> str | None:
    shard = Shard(make_kit(), results)
    shard.take(*shard.commits, shard.freeze())
    shard.take(*(reveal for place, reveal in enumerate(shard.reveals) if place not in hidden))
    verdict = shard.verdict(item)
    assert shard.take(verdict) == ["new"]
    return shard.evidence.error_in(verdict.body.items[0], verdict.body)


WRONG = Result(0, OTHER_OUTPUT)
BROKEN = Result(0, outcome="failed", exit=1)


@pytest.mark.parametrize(
    ("results", "item", "hidden"),
    [
        ([Result(0), WRONG, Result(0)], accepted(0, ((0, 2),)), ()),
        ([WRONG, Result(0), Result(0)], accepted(1, ((1, 2),)), (0,)),
        ([WRONG, Result(0), Result(0)], accepted(1, ((1, 2),), (0,)), (0,)),
        ([Result(0), Result(0), Result(0)], accepted(0, ((0, 1),)), ()),
        ([BROKEN, BROKEN], failed(), ()),
        ([BROKEN, WRONG], failed(), ()),
        ([BROKEN, BROKEN, WRONG], failed(missing=(2,)), (2,)),
        ([BROKEN, BROKEN, WRONG], failed(missing=(2,)), ()),
    ],
)
def test_a_verdict_that_follows_from_its_evidence(
    results: Sequence[Result], item: bodies.VerdictItem, hidden: Sequence[int]
) -> None:
    assert _error(results, item, hidden) is None


@pytest.mark.parametrize(
    ("results", "item", "hidden"),
    [
        ([Result(0), WRONG, Result(0)], accepted(0, ((0, 1),)), ()),
        ([Result(0), WRONG, Result(0)], accepted(2, ((0, 2),)), ()),
        ([Result(0), Result(0)], accepted(0, ((0, 1),)), (1,)),
        ([Result(0), Result(0), WRONG, WRONG], accepted(0, ((0, 1), (2, 3))), ()),
        ([Result(0), BROKEN], accepted(0, ((0, 1),)), ()),
        ([Result(0), Result(0)], failed(), ()),
        ([BROKEN, BROKEN], failed(pairs=((0, 1),)), ()),
        ([BROKEN, BROKEN], failed(), (1,)),
        ([BROKEN], failed(), ()),
    ],
)
def test_a_verdict_that_does_not_follow_from_its_evidence(
    results: Sequence[Result], item: bodies.VerdictItem, hidden: Sequence[int]
) -> None:
    assert _error(results, item, hidden) is not None


def test_a_failed_task_says_why() -> None:
    shard = Shard(make_kit(), [BROKEN, BROKEN]).shown()
    judgement = shard.evidence.judge(0, (), limits.NO_BID_MS)
    assert isinstance(judgement, Failed)
    shard.take(shard.verdict(failed(judgement.reason)))
    decision = shard.evidence.verdict(0)
    assert decision is not None
    assert (decision.outcome, decision.root, decision.worker) == ("failed", None, None)
    assert decision.reason == judgement.reason
    assert shard.evidence.outputs(0) == ()


def test_results_that_are_not_waited_for_do_not_count_even_if_they_are_here() -> None:
    shard = Shard(make_kit()).shown()
    assert shard.evidence.judge(0, (shard.crew[0].peer,), 0) == Undecided(3)


# --- epochs ---------------------------------------------------------------------------------------------------------
def test_an_earlier_epochs_work_counts_when_it_is_adopted() -> None:
    made = make_kit(members=5, tasks=300)
    state = made.state(*made.round())
    shard = Shard(made).shown()
    evidence = made.evidence(*shard.commits, shard.freeze(), *shard.reveals, shard.verdict(accepted()), state=state)
    decided = evidence.verdict(0)
    assert decided is not None
    version = evidence.version
    one, two, _ = made.seats()
    state.add(made.succession([one, two], [one, two]))
    assert evidence.version > version
    assert (evidence.frozen(0), evidence.verdict(0), evidence.decided) == (None, None, 0)
    assert evidence.adoptable() == sorted([shard.freeze().id, shard.verdict(accepted()).id])
    state.add(made.adoption([shard.verdict(accepted())], [one, two]))
    assert evidence.verdict(0) == decided
    assert evidence.outputs(0) == kit.OUTPUT
    again = made.evidence(state=state)
    added = [again.add(statement) for statement in evidence.statements_of([0])]
    assert "orphan" not in added
    assert again.verdict(0) == decided


def test_seats_that_have_left_freeze_and_judge_nothing() -> None:
    made = make_kit(members=6)
    state = made.state(*made.round())
    old = made.seats()
    new = [member for member in made.members if member not in old]
    state.add(made.succession(new, old))
    shard = Shard(made)
    evidence = made.evidence(*shard.commits, state=state)
    for statement in (shard.freeze(), *shard.reveals, shard.verdict(accepted())):
        evidence.add(statement)
    assert evidence.frozen(0) is None
    assert evidence.verdict(0) is None
    assert evidence.add(made.freeze({0: shard.commits}, old, epoch=1)) == "orphan"
    assert evidence.add(made.freeze({0: shard.commits}, new, epoch=2)) == "orphan"
    assert evidence.add(made.freeze({0: shard.commits}, new[:2], epoch=1)) == "new"


def test_what_is_adopted_counts_with_whatever_signatures_it_comes() -> None:
    made = make_kit(members=6)
    state = made.state(*made.round())
    shard = Shard(made)
    one, two, _ = made.seats()
    state.add(made.succession([one, two], [one, two]))
    evidence = made.evidence(*shard.commits, state=state)
    thin = shard.freeze(one)
    assert evidence.add(thin) == "proposal"
    state.add(made.adoption([thin], [one, two]))
    frozen = evidence.frozen(0)
    assert frozen is not None
    assert frozen.statement.id == thin.id


# --- floods ---------------------------------------------------------------------------------------------------------
def test_one_seats_proposals_do_not_push_out_anothers() -> None:
    made = make_kit(members=3, tasks=100)
    liar, honest, _ = made.seats()
    evidence = made.evidence()
    commits = [made.commit(worker, *(Result(task) for task in range(100))) for worker in made.workers[:2]]
    for commit in commits:
        evidence.add(commit)
    kept = made.freeze({0: commits}, [honest])
    assert evidence.add(kept) == "proposal"
    for task in range(1, 100):
        assert evidence.add(made.freeze({task: commits}, [liar])) == "proposal"
    assert len(evidence.proposals()) == limits.PROPOSALS_PER_SIGNER_MAX + 1
    assert evidence.add(kit.only(kept, liar)) == "new"


def test_what_is_not_here_is_not_got() -> None:
    evidence = make_kit().evidence()
    assert evidence.get(StatementId(b"?" * 32)) is None
    assert evidence.statements_of(range(4)) == []
    assert evidence.shown(0) == ()
    assert evidence.reveal_of(0, STRANGER.peer) is None
