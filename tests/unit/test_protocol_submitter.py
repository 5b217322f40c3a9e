"""nexapod.protocol.submitter: one job of a submitter's own. Peer 9 is the submitter, 0 to 2 the stewards."""

from __future__ import annotations

from protocol_kit import MODULE, context, decode, drain, job, make, pid, replica, said, traced, verdict, verify

from nexapod.protocol import certificate, limits, submitter
from nexapod.protocol.context import Context
from nexapod.protocol.events import Fetch, Publish, Save
from nexapod.protocol.messages import Collect, Offer, View
from nexapod.protocol.statements import Fault, Statement
from nexapod.protocol.submitter import STEWARDS_RECORD, Submission
from nexapod.protocol.types import Part, Validate, blob_of

RESULT = blob_of(b"result")


def _submission(of: Statement, ctx: Context | None = None) -> Submission:
    return Submission(ctx or context(me=9, others=(3, 4, 5, 9)), of)


def _settle(submission: Submission, task: int = 0) -> None:
    """Every statement of an ordinary task, judged by a majority."""
    of = submission.statement
    a, b = replica(of, 3, task), replica(of, 4, task)
    for statement in (*a.all, *b.all, *(verdict(of, s, [a, b], task=task) for s in (0, 1))):
        submission.add(statement)


def _saved(submission: Submission, kind: str) -> list[bytes]:
    """The values of all records of a kind that it wanted to be kept so far, oldest first."""
    records = [e.record for e in submission.ctx.effects if isinstance(e, Save)]
    return [r.value for r in records if r.kind == kind and r.value is not None]


def _arrive(submission: Submission) -> None:
    submission.ctx.store_has(Part.whole(RESULT))
    submission.blob_ready(Part.whole(RESULT))


def test_a_job_is_gossiped_and_offered_to_its_stewards() -> None:
    submission = _submission(job())
    submission.announce()
    effects = list(submission.ctx.effects)
    assert [e.data for e in effects if isinstance(e, Publish)] == [submission.statement.envelope]
    for steward in (0, 1, 2):
        submission.ctx.effects = list(effects)
        assert said(submission.ctx, steward) == [Offer((submission.statement.envelope,))]
    assert MODULE in submission.ctx.held()


def test_it_is_placed_when_every_steward_of_each_shard_has_it() -> None:
    submission = _submission(job(tasks=257))
    for peer, shard in ((0, 0), (1, 0), (2, 0), (7, 1), (0, 1), (1, 1), (0, 9)):
        submission.on_placed(pid(peer), shard)
        assert not submission.placed
    assert submission.placement() == [(3, 3), (2, 3)]
    submission.on_placed(pid(2), 1)
    assert submission.placed
    [trace] = traced(drain(submission.ctx), "placed")
    assert trace.facts["peers"] == sorted(pid(n) for n in (0, 1, 2))
    submission.on_placed(pid(1), 1)
    assert not traced(drain(submission.ctx), "placed")


def test_a_submitter_that_is_a_steward_needs_another() -> None:
    submission = _submission(job(), context(me=9, serving=(9, 1), others=(3,)))
    submission.on_placed(pid(9), 0)
    assert not submission.placed
    submission.on_placed(pid(1), 0)
    assert submission.placed


def test_stewards_that_have_not_got_it_are_offered_it_again() -> None:
    submission = _submission(job())
    submission.on_placed(pid(0), 0)
    submission.ctx.now = limits.COLLECT_MS
    submission.tick()
    effects = list(submission.ctx.effects)
    offered = []
    for steward in (0, 1, 2):
        submission.ctx.effects = list(effects)
        offered += [steward for m in said(submission.ctx, steward) if isinstance(m, Offer)]
    assert offered == [1, 2]


def test_the_evidence_is_collected_from_one_steward_at_a_time_in_turn() -> None:
    submission = _submission(job(tasks=2))
    asked = []
    for turn in range(1, 4):
        submission.ctx.now = turn * limits.COLLECT_MS
        submission.tick()
        effects = list(submission.ctx.effects)
        drain(submission.ctx)
        for steward in (0, 1, 2):
            submission.ctx.effects = list(effects)
            asked += [steward for m in said(submission.ctx, steward) if isinstance(m, Collect)]
        drain(submission.ctx)
    assert sorted(asked) == [0, 1, 2]


def test_a_settled_task_is_not_asked_for_again_and_a_finished_shard_not_at_all() -> None:
    submission = _submission(job(tasks=2))
    _settle(submission)
    drain(submission.ctx)
    submission.ctx.now = limits.COLLECT_MS
    submission.tick()
    assert [m.have for m in said(submission.ctx) if isinstance(m, Collect)] == [(0,)]
    _settle(submission, 1)
    drain(submission.ctx)
    submission.ctx.now = 2 * limits.COLLECT_MS
    submission.tick()
    assert [m for m in said(submission.ctx) if isinstance(m, Collect)] == []


def test_a_settled_job_ends_with_a_certificate_once_its_outputs_are_here() -> None:
    submission = _submission(job())
    _settle(submission)
    effects = drain(submission.ctx)
    fetch = next(e for e in effects if isinstance(e, Fetch))
    assert (fetch.part.blob, set(fetch.sources)) == (RESULT, {pid(n) for n in (0, 1, 3, 4)})
    assert submission.settlement is None
    assert submission.certificate() is None
    _arrive(submission)
    assert submission.complete
    assert submission.settlement is not None
    effects = list(submission.ctx.effects)
    assert [decode(e.data).kind for e in effects if isinstance(e, Publish)] == ["settlement"]
    assert submission.settlement.id in [e.record.key for e in effects if isinstance(e, Save)]
    assert said(submission.ctx, 0) == [Offer((submission.settlement.envelope,))]
    data = submission.certificate()
    assert data is not None
    report = certificate.check(data, verify)
    assert (report.problems, report.submitter) == ((), pid(9))
    assert [f.path for f in submission.outputs(0)] == ["out.txt"]
    submission.ctx.now = 10 * limits.COLLECT_MS
    submission.tick()
    assert said(submission.ctx) == []
    assert submission.deadline is None


def test_outputs_that_nobody_gave_are_asked_for_again() -> None:
    submission = _submission(job())
    _settle(submission)
    drain(submission.ctx)
    submission.blob_failed(Part.whole(blob_of(b"of somebody else")))
    submission.blob_failed(Part.whole(RESULT))
    submission.ctx.now = limits.FETCH_RETRY_MS
    submission.tick()
    assert [e.part.blob for e in drain(submission.ctx) if isinstance(e, Fetch)] == [RESULT]


def test_a_failed_task_is_part_of_a_settled_job() -> None:
    of = job(validate=Validate(agree=2, max_replicas=2))
    submission = _submission(of)
    a, b = replica(of, 3), replica(of, 4, content=b"other")
    for statement in (*a.all, *b.all):
        submission.add(statement)
    for steward in (0, 1):
        submission.add(verdict(of, steward, [], others=[a, b], outcome="failed"))
    assert submission.settlement is not None
    assert (submission.settlement.body.settled, submission.settlement.body.failed) == (0, 1)
    assert submission.outputs(0) == ()
    assert submission.outputs(5) == ()


def test_what_is_not_of_this_job_or_too_late_is_passed_over() -> None:
    submission = _submission(job())
    submission.add(replica(job(tasks=1000), 3, task=999).bid)
    submission.cancelled = True
    submission.add(replica(submission.statement, 3).bid)
    assert submission.states[0].bids == {}
    assert not submission.open


def test_verdicts_of_peers_far_from_the_shard_do_not_count() -> None:
    ctx = context(me=9, serving=range(20, 40), others=(3, 4, 9))
    submission = _submission(job(), ctx)
    far = next(n for n in range(20, 40) if not ctx.may_judge(pid(n), submission.job, 0))
    a, b = (replica(submission.statement, n) for n in (3, 4))
    submission.add(verdict(submission.statement, far, [a, b]))
    assert submission.states[0].file(0).verdicts == {}


def test_the_submitter_counts_a_majority_of_the_stewards_that_it_sees() -> None:
    submission = _submission(job())
    a, b = (replica(submission.statement, n) for n in (3, 4))
    for statement in (*a.all, *b.all, verdict(submission.statement, 0, [a, b], stewards=(0,))):
        submission.add(statement)
    assert submission.decided == {}


def test_a_submitter_that_wakes_up_alone_does_not_take_one_stewards_word_for_that_of_all() -> None:
    submission = _submission(job())
    a, b = (replica(submission.statement, n) for n in (3, 4))
    for statement in (*a.all, *b.all, verdict(submission.statement, 0, [a, b], stewards=(0,))):
        submission.add(statement)
    (size,) = {value[0] for value in _saved(submission, STEWARDS_RECORD)}
    kept = [decode(value) for value in _saved(submission, "statement")]
    alone = _submission(submission.statement, context(me=9, serving=(), others=(9,)))
    alone.restore(kept, size=size)
    assert (size, alone.decided) == (3, {})
    alone.add(verdict(submission.statement, 9, [a, b], stewards=(0, 1, 2)))
    assert alone.decided[0].outcome == "accepted"


def test_evidence_that_is_needed_is_saved_and_a_restart_goes_on_from_it() -> None:
    submission = _submission(job(tasks=2))
    _settle(submission)
    again = _submission(submission.statement)
    again.restore([decode(value) for value in _saved(submission, "statement")])
    assert sorted(again.decided) == [0]
    assert [e.part.blob for e in drain(again.ctx) if isinstance(e, Fetch)] == [RESULT]


def test_views_are_kept_for_people() -> None:
    submission = _submission(job())
    view = View(submission.job, 0, (0,), (), (), ())
    submission.on_view(view)
    submission.on_view(View(submission.job, 3, (), (), (), ()))
    assert submission.views == {0: view}


def test_a_worker_that_commits_twice_after_the_verdict_does_not_spoil_the_certificate() -> None:
    submission = _submission(job())
    _settle(submission)
    again = replica(submission.statement, 3, content=b"changed")
    first, second = sorted((replica(submission.statement, 3).commit, again.commit), key=lambda s: s.id)
    submission.add(make(Fault(submission.job, 0, pid(3), first.envelope, second.envelope), 0))
    _arrive(submission)
    data = submission.certificate()
    assert data is None or certificate.check(data, verify).problems == ()


def test_a_second_commit_that_only_the_submitter_was_shown_does_not_hide_what_the_stewards_judged() -> None:
    of = job()
    judged = replica(of, 3)
    # One whose id is smaller, which the fold of two stewards would keep.
    found = (replica(of, 3, content=b"other %d" % n) for n in range(1000))
    other = next(r for r in found if r.commit.id < judged.commit.id)
    submission = _submission(of)
    submission.add(other.bid)
    submission.add(other.commit)
    _settle(submission)
    assert submission.decided[0].outcome == "accepted"
    _arrive(submission)
    data = submission.certificate()
    assert data is not None
    assert certificate.check(data, verify).problems == ()


def test_a_worker_that_changes_its_commit_without_end_is_listened_to_for_a_while() -> None:
    of = job()
    submission = _submission(of)
    submission.add(replica(of, 3).bid)
    for n in range(10 * submitter.TURNS_MAX):
        submission.add(replica(of, 3, content=b"%d" % n).commit)
    saved = set(_saved(submission, "statement"))
    assert 1 < len(saved) <= submitter.TURNS_MAX + 2
