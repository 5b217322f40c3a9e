"""nexapod.protocol.checkpoints, and what worker, steward and fold make of them.

Peers 0, 1 and 2 are the stewards, 3 to 8 workers, 9 the submitter.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from protocol_kit import (
    ZERO,
    Mesh,
    Replica,
    context,
    decode,
    drain,
    job,
    job_spec,
    make,
    pid,
    profile,
    replica,
    said,
    traced,
    verdict,
    verify,
)

from nexapod.protocol import limits
from nexapod.protocol.attempts import Attempt, lineage_of, record_of, restored
from nexapod.protocol.checkpoints import VOUCHED_MAX, Checkpoints
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Checkpointed, Drop, Fetch, Finished, PeerDown, Run, Save, Submit
from nexapod.protocol.matching import Policy
from nexapod.protocol.messages import AskLog, Grant, Offer, Renew, TaskLog, View
from nexapod.protocol.quorum import Accepted, Undecided, judge
from nexapod.protocol.shard import ShardState, lineages
from nexapod.protocol.statements import Bid, Checkpoint, Statement
from nexapod.protocol.steward import Steward
from nexapod.protocol.types import BlobRef, File, JobId, Limits, Part, PeerId, RunResult, StatementId, TaskId, blob_of
from nexapod.protocol.types import Run as RunSpec
from nexapod.protocol.worker import Worker

MODULE = blob_of(b"module")
SHARED = RunSpec("wasm", module=MODULE, checkpoint="shared")
JOB = job(run=SHARED)
ID = JobId(JOB.id)


def bid_of(worker: int, nonce: int = 1) -> Statement:
    return make(Bid(ID, 0, (0,), 0, StatementId(ZERO), nonce), worker)


def kept(
    worker: int,
    seq: int = 1,
    progress: int = 500,
    content: bytes | None = None,
    task: int = 0,
    continued: tuple[PeerId, ...] = (),
) -> Statement:
    """A worker's checkpoint; its one file holds `content`."""
    content = b"state of %d at %d" % (worker, seq) if content is None else content
    files = (File("state", blob_of(content)),)
    return make(Checkpoint(ID, task, bid_of(worker).id, seq, progress, files, continued), worker)


def blob_in(statement: Statement) -> BlobRef:
    ref: BlobRef = statement.body.files[0].blob
    return ref


class Shelf:
    """The checkpoints of one shard at one steward, with a clock."""

    def __init__(self) -> None:
        self.ctx = context()
        self.checkpoints = Checkpoints(self.ctx, ID, JOB.body)
        self.gone: set[int] = set()

    def add(self, statement: Statement, *, here: bool = True) -> None:
        self.ctx.now += limits.CHECKPOINT_MIN_MS
        self.checkpoints.add(statement)
        if here:
            self.arrive(statement)

    def arrive(self, statement: Statement) -> None:
        part = Part.whole(blob_in(statement))
        self.ctx.store_has(part)
        self.checkpoints.blob_ready(part)

    def give(self, worker: int) -> Statement | None:
        return self.checkpoints.give(0, pid(worker), lambda p: p in {pid(n) for n in self.gone})


# --- at a steward --------------------------------------------------------------------------------------------------
def test_it_is_fetched_from_its_worker_saved_when_it_is_here_and_given_when_that_one_is_gone() -> None:
    shelf, first = Shelf(), kept(3)
    shelf.add(first, here=False)
    assert [(e.part.blob, e.sources) for e in drain(shelf.ctx) if isinstance(e, Fetch)] == [(blob_in(first), (pid(3),))]
    shelf.gone = {3}
    assert shelf.give(4) is None, "it is not wholly here yet"
    shelf.arrive(first)
    effects = drain(shelf.ctx)
    assert [e.record.key for e in effects if isinstance(e, Save)] == [first.id]
    assert traced(effects, "checkpoint")[0].facts["worker"] == pid(3)
    shelf.gone = set()
    assert shelf.give(4) is None, "its worker is still at it"
    shelf.gone = {3}
    assert shelf.give(4) == first
    assert shelf.give(4) == first, "the same worker may ask again"
    assert shelf.give(5) is None, "one goes on from it, not two"
    assert shelf.checkpoints.handed(0) == [(pid(3), pid(4))]
    shelf.gone = {3, 4}
    assert shelf.give(5) == first


def test_a_worker_that_lost_its_disk_may_go_on_from_its_own() -> None:
    shelf, own = Shelf(), kept(3)
    shelf.add(own)
    assert shelf.give(3) == own


def test_the_newest_that_is_here_counts_and_the_one_before_stays_until_then() -> None:
    shelf, one, two, three = Shelf(), kept(3, 1), kept(3, 2), kept(3, 3)
    shelf.gone = {3}
    shelf.add(one)
    shelf.add(two, here=False)
    assert shelf.give(4) == one
    shelf.checkpoints.blob_failed(Part.whole(blob_in(two)))
    assert shelf.give(4) == one
    drain(shelf.ctx)
    shelf.add(three)
    effects = drain(shelf.ctx)
    assert [e.ref for e in effects if isinstance(e, Drop)] == [blob_in(one)]
    assert [(e.record.key, e.record.value) for e in effects if isinstance(e, Save)] == [
        (one.id, None),
        (three.id, three.envelope),
    ]
    assert shelf.give(4) == three
    shelf.add(kept(3, 2, content=b"older"))
    assert shelf.give(4) == three


def test_a_file_that_did_not_change_is_not_fetched_again() -> None:
    shelf = Shelf()
    shelf.add(kept(3, 1, content=b"same"))
    drain(shelf.ctx)
    shelf.ctx.now += limits.CHECKPOINT_MIN_MS
    shelf.checkpoints.add(kept(3, 2, content=b"same"))
    effects = drain(shelf.ctx)
    assert not [e for e in effects if isinstance(e, (Fetch, Drop))]
    shelf.gone = {3}
    given = shelf.give(4)
    assert given is not None
    assert given.body.seq == 2


def test_one_that_comes_too_soon_is_passed_over() -> None:
    shelf = Shelf()
    shelf.add(kept(3, 1))
    drain(shelf.ctx)
    shelf.checkpoints.add(kept(3, 2))
    assert drain(shelf.ctx) == []


@pytest.mark.parametrize("of", [job(), job(run=SHARED, limits=Limits(disk=3))])
def test_one_that_the_job_does_not_allow_is_held_against_its_worker(of: Statement) -> None:
    checkpoints = Checkpoints(context(), JobId(of.id), of.body)
    with pytest.raises(PeerError, match="bad-checkpoint"):
        checkpoints.add(kept(3))


def test_of_too_many_the_one_that_is_least_far_goes_unless_somebody_went_on_from_it() -> None:
    shelf = Shelf()
    first = [kept(worker, progress=100 * worker) for worker in (3, 4, 5, 6)]
    for statement in first:
        shelf.add(statement)
    shelf.gone = {3, 4, 5, 6, 7}
    assert shelf.give(8) == first[3], "the one that is furthest is given first"
    shelf.add(kept(7, progress=200), here=False)
    assert shelf.checkpoints.size == limits.CHECKPOINTS_PER_TASK_MAX, "nobody makes room for what is less far"
    drain(shelf.ctx)
    shelf.add(kept(7, progress=999))
    effects = drain(shelf.ctx)
    assert shelf.checkpoints.size == limits.CHECKPOINTS_PER_TASK_MAX
    assert blob_in(first[0]) in [e.ref for e in effects if isinstance(e, Drop)]


def test_a_worker_whose_only_one_never_arrived_is_the_first_to_make_room() -> None:
    shelf = Shelf()
    for worker in (3, 4, 5, 6):
        shelf.add(kept(worker, progress=100 * worker), here=worker != 6)
    shelf.checkpoints.blob_failed(Part.whole(blob_in(kept(6, progress=600))))
    drain(shelf.ctx)
    shelf.add(kept(7, progress=1))
    assert [e for e in drain(shelf.ctx) if isinstance(e, Drop)] == []
    shelf.gone = {7}
    assert shelf.give(8) == kept(7, progress=1)
    assert shelf.checkpoints.size == limits.CHECKPOINTS_PER_TASK_MAX


def test_nothing_is_left_of_a_task_that_is_over() -> None:
    shelf = Shelf()
    shelf.add(kept(3))
    shelf.add(kept(4), here=False)
    shelf.add(kept(5, task=1, content=b"of another task"))
    drain(shelf.ctx)
    shelf.checkpoints.drop(0)
    effects = drain(shelf.ctx)
    assert {e.ref for e in effects if isinstance(e, Drop)} == {blob_in(kept(3)), blob_in(kept(4))}
    assert shelf.checkpoints.size == 1
    shelf.checkpoints.drop_all()
    assert (shelf.checkpoints.size, shelf.ctx.held()) == (0, frozenset())


def test_a_restarted_steward_has_what_it_had() -> None:
    shelf = Shelf()
    shelf.checkpoints.restore(kept(3, 2))
    shelf.checkpoints.restore(kept(3, 1))
    shelf.gone = {3}
    assert shelf.give(4) == kept(3, 2)
    assert blob_in(kept(3, 2)) in shelf.ctx.held()


def test_one_that_is_passed_on_counts_when_two_stewards_did() -> None:
    shelf, other = Shelf(), kept(3)
    shelf.ctx.now = limits.CHECKPOINT_MIN_MS
    shelf.checkpoints.relayed(other, pid(1))
    shelf.checkpoints.relayed(other, pid(1))
    assert drain(shelf.ctx) == [], "one steward alone could have made it up"
    shelf.checkpoints.relayed(other, pid(2))
    assert [e.part.blob for e in drain(shelf.ctx) if isinstance(e, Fetch)] == [blob_in(other)]
    for number in range(VOUCHED_MAX + 5):
        shelf.checkpoints.relayed(kept(4, number), pid(1))
    assert len(shelf.checkpoints._vouched) == VOUCHED_MAX


def test_a_part_of_a_blob_is_no_file_of_a_checkpoint() -> None:
    shelf = Shelf()
    big = BlobRef(blob_of(b"x").digest, 5 << 20)
    body = replace(kept(3).body, files=(File("state", big),))
    shelf.add(make(body, 3), here=False)
    shelf.checkpoints.blob_ready(Part(big, 0, 1))
    shelf.checkpoints.blob_failed(Part(big, 0, 1))
    shelf.gone = {3}
    assert shelf.give(4) is None


def _steward(ctx: Context | None = None) -> Steward:
    steward = Steward(ctx or context(), JOB, 0)
    steward.reconsider()
    drain(steward.ctx)
    return steward


def _lease(steward: Steward, worker: int, nonce: int = 1) -> Grant:
    """A worker bids; the steward's answer."""
    steward.add(bid_of(worker, nonce), pid(worker))
    [grant] = [m for m in said(steward.ctx, worker) if isinstance(m, Grant)]
    return grant


def _keep(steward: Steward, statement: Statement, sender: int) -> None:
    steward.ctx.now += limits.CHECKPOINT_MIN_MS
    part = Part.whole(blob_in(statement))
    steward.ctx.store_has(part)
    steward.on_checkpoint(statement, pid(sender))


def test_a_steward_takes_one_from_a_leaseholder_only_and_gives_it_with_the_next_grant() -> None:
    steward = _steward()
    _keep(steward, kept(3), 3)
    assert steward.checkpoints.size == 0, "it has no lease"
    assert _lease(steward, 3).checkpoints == ()
    _keep(steward, kept(3), 4)
    assert steward.checkpoints.size == 0, "somebody else brings it"
    _keep(steward, kept(3, task=999), 3)
    _keep(steward, kept(3), 3)
    assert steward.checkpoints.size == 1
    assert _lease(steward, 4).checkpoints == (), "another replica begins at the beginning"
    steward.ctx.now += limits.LEASE_TTL_MS
    steward.tick()
    drain(steward.ctx)
    assert _lease(steward, 5).checkpoints == (kept(3).envelope,)
    assert _lease(steward, 3, nonce=2).granted == (), "its group has the task, through whoever went on"


def test_a_steward_that_is_not_active_or_done_takes_none() -> None:
    steward = _steward()
    _lease(steward, 3)
    steward.close()
    _keep(steward, kept(3), 3)
    assert steward.checkpoints.size == 0


def test_a_steward_passes_on_what_it_has_to_one_that_is_new() -> None:
    ctx = context(others=(3, 4, 5, 6))
    steward = _steward(ctx)
    _lease(steward, 3)
    _keep(steward, kept(3), 3)
    drain(ctx)
    ctx.directory.unreachable(pid(2), ctx.now)
    ctx.directory.learn(make(profile(seq=9), 7), ctx.now)
    steward.reconsider()
    assert pid(7) in steward.stewards
    told = []
    for _ in range(5):
        steward.ctx.now = max(steward.ctx.now, steward.deadline or 0)
        steward.tick()
        told.append([decode(e) for m in said(ctx, 7) if isinstance(m, Offer) for e in m.envelopes])
    assert [statements for statements in told if kept(3) in statements] == told[:3]


# --- at a worker ---------------------------------------------------------------------------------------------------
def _granted(*given: tuple[int, tuple[Statement, ...]], of: Statement = JOB) -> Worker:
    """Worker 5, granted its task by these stewards with these checkpoints."""
    worker = Worker(context(me=5), verify, Policy())
    worker.profile = profile(serves=False)
    worker.job_known(of)
    worker.ctx.now = 10_000
    worker.tick()
    [attempt] = worker.attempts.values()
    drain(worker.ctx)
    for steward, statements in given:
        envelopes = tuple(s.envelope for s in statements)
        worker.on_grant(pid(steward), Grant(JobId(of.id), 0, attempt.bid.id, (0,), envelopes))
    return worker


def _run(worker: Worker) -> Run:
    [run] = [e for e in drain(worker.ctx) if isinstance(e, Run)]
    return run


def test_a_worker_goes_on_from_what_a_majority_of_the_stewards_gave_it() -> None:
    run = _run(_granted((0, (kept(3),)), (1, (kept(3), kept(4)))))
    assert run.checkpoint == kept(3).body.files
    assert pid(3) in run.sources


def test_a_worker_begins_anew_when_the_stewards_gave_different_ones_or_only_one_did() -> None:
    assert _run(_granted((0, (kept(3),)), (1, (kept(4),)), (2, ()))).checkpoint == ()
    assert _run(_granted((0, (kept(3),)), (1, ()), (2, ()))).checkpoint == ()


def test_a_worker_that_only_some_gave_one_waits_for_the_others_and_not_for_ever() -> None:
    worker = _granted((0, (kept(3),)), (1, ()))
    [attempt] = worker.attempts.values()
    assert [e for e in drain(worker.ctx) if isinstance(e, Run)] == []
    worker.on_grant(pid(2), Grant(ID, 0, attempt.bid.id, (0,), (kept(3).envelope,)))
    assert _run(worker).checkpoint == kept(3).body.files

    worker = _granted((0, (kept(3),)), (1, ()))
    [attempt] = worker.attempts.values()
    worker.on_grant(pid(2), Grant(ID, 0, attempt.bid.id, (), ()))
    assert _run(worker).checkpoint == (), "the last one refuses"

    worker = _granted((0, (kept(3),)), (1, ()))
    worker.ctx.now += limits.BID_ANSWER_MS
    worker.tick()
    assert _run(worker).checkpoint == (), "the last one does not answer"


def test_a_worker_does_not_go_on_from_what_too_many_have_gone_on_from() -> None:
    endless = kept(3, continued=tuple(pid(100 + n) for n in range(limits.REPLICAS_MAX)))
    assert len(lineage_of(endless)) > limits.REPLICAS_MAX
    assert _run(_granted((0, (endless,)), (1, (endless,)), (2, (endless,)))).checkpoint == ()


def test_a_grant_with_something_else_in_it_is_held_against_the_steward() -> None:
    with pytest.raises(PeerError, match="bad-checkpoint"):
        _granted((0, (bid_of(3),)))
    run = _run(_granted((0, (kept(3, task=7),)), (1, (kept(3, task=7),))))
    assert run.checkpoint == (), "one of another task says nothing of this one"


@pytest.mark.parametrize("continued", [True, False])
def test_a_result_says_whose_checkpoint_it_went_on_from_if_it_did(continued: bool) -> None:
    basis = kept(3, continued=(pid(4),))
    worker = _granted((0, (basis,)), (1, (basis,)))
    task = TaskId(ID, 0)
    files = (File("state", blob_of(b"more")),)
    worker.checkpointed(task, files, continued)
    offered = [decode(e) for m in said(worker.ctx, 0) if isinstance(m, Offer) for e in m.envelopes]
    lineage = (pid(3), pid(4)) if continued else ()
    assert [(s.kind, s.body.seq, s.body.continued, s.body.files) for s in offered] == [
        ("checkpoint", 1, lineage, files)
    ]
    worker.finished(task, RunResult("ok", 0, continued=continued))
    attempt = worker.attempts[task]
    worker._reveal(attempt)
    assert attempt.reveal is not None
    assert attempt.reveal.body.continued == lineage


def test_the_files_of_the_newest_checkpoint_are_held_until_the_attempt_is_over() -> None:
    worker = _granted((0, ()), (1, ()))
    task = TaskId(ID, 0)
    old, new = blob_of(b"old"), blob_of(b"new")
    worker.checkpointed(task, (File("state", old),), False)
    worker.checkpointed(task, (File("state", new),), False)
    assert [e.ref for e in drain(worker.ctx) if isinstance(e, Drop)] == [old]
    assert new in worker.ctx.held()
    worker.finished(task, RunResult("try-elsewhere", 75))
    assert [e.ref for e in drain(worker.ctx) if isinstance(e, Drop)] == [new]
    worker.checkpointed(task, (File("state", old),), False)
    assert drain(worker.ctx) == [], "it does not run any more"


def test_a_checkpoint_is_offered_again_with_each_renewal_while_the_task_runs() -> None:
    worker = _granted((0, ()), (1, ()))
    task = TaskId(ID, 0)
    worker.checkpointed(task, (File("state", blob_of(b"half")),), False)
    drain(worker.ctx)
    for _ in range(2):
        worker.ctx.now += limits.RENEW_MS
        worker.tick()
        told = said(worker.ctx, 2)
        [at] = [number for number, message in enumerate(told) if isinstance(message, Renew)]
        [offer] = [message for message in told[at + 1 :] if isinstance(message, Offer)]
        assert [decode(e).kind for e in offer.envelopes] == ["checkpoint"], "after what gives the worker its lease"
    worker.finished(task, RunResult("ok", 0))
    drain(worker.ctx)
    worker.ctx.now += limits.RENEW_MS
    worker.tick()
    offered = [decode(e).kind for m in said(worker.ctx, 2) if isinstance(m, Offer) for e in m.envelopes]
    assert "checkpoint" not in offered


def test_an_attempt_outlives_its_process_with_its_basis_and_the_number_of_its_checkpoints() -> None:
    worker = _granted((0, (kept(3),)), (1, (kept(3),)))
    task = TaskId(ID, 0)
    worker.checkpointed(task, (File("state", blob_of(b"x")),), True)
    again = restored(record_of(worker.attempts[task]), verify, 5)
    assert isinstance(again, Attempt)
    assert (again.task, again.state, again.basis, again.seq, again.lineage) == (task, "granted", kept(3), 1, (pid(3),))


def test_only_the_submitter_is_told_what_a_task_prints() -> None:
    worker = _granted((0, ()), (1, ()))
    worker.progressed(TaskId(ID, 0), 100, "line\n")
    drain(worker.ctx)
    worker.on_ask_log(pid(8), AskLog(ID, 0))
    worker.on_ask_log(pid(9), AskLog(ID, 7))
    worker.on_ask_log(pid(9), AskLog(JobId(bytes(32)), 0))
    assert drain(worker.ctx) == []
    worker.on_ask_log(pid(9), AskLog(ID, 0))
    assert said(worker.ctx, 9) == [TaskLog(ID, 0, "line\n")]


def test_a_paused_worker_takes_nothing_new_and_goes_on_afterwards() -> None:
    worker = Worker(context(me=5), verify, Policy())
    worker.profile = profile(serves=False)
    worker.job_known(JOB)
    worker.ctx.now = 10_000
    worker.tick()
    assert worker.attempts
    worker.pause(True)
    assert not worker.attempts, "what has not begun is given back"
    worker.tick()
    assert not worker.attempts
    assert "paused" in worker.decide(JOB).reason
    worker.pause(False)
    worker.ctx.now = 100_000
    worker.tick()
    worker.on_view(View(ID, 0, (0,), (), (), ()))
    while not worker.attempts:
        worker.ctx.now += limits.BID_STEP_MS
        worker.tick()
    assert worker.decide(JOB).ok


# --- votes ---------------------------------------------------------------------------------------------------------
def _continuing(worker: int, *whose: int, content: bytes = b"result") -> Replica:
    one = replica(JOB, worker, content=content)
    body = replace(one.reveal.body, continued=tuple(pid(n) for n in whose))
    return replace(one, reveal=make(body, worker))


def _groups(*replicas: Replica) -> dict[PeerId, str]:
    return lineages({pid(r.worker): r.reveal for r in replicas}, lambda peer: peer)


def test_results_that_build_on_something_in_common_are_one_group() -> None:
    alone = replica(JOB, 3)
    assert _groups(alone, replica(JOB, 4)) == {pid(3): pid(3), pid(4): pid(4)}
    found = _groups(alone, _continuing(4, 7), _continuing(5, 8), _continuing(6, 7, 8))
    assert found[pid(3)] == pid(3)
    assert len({found[pid(n)] for n in (4, 5, 6)}) == 1, "6 went on from what joins 4 and 5"
    assert found[pid(4)] == min(pid(n) for n in (4, 5, 6, 7, 8))
    found = _groups(alone, _continuing(4, 3))
    assert found[pid(3)] == found[pid(4)]


def test_two_results_from_one_checkpoint_do_not_agree_with_each_other() -> None:
    state = ShardState(ID, JOB.body, 0)
    for one in (_continuing(4, 7), _continuing(5, 7)):
        for statement in one.all:
            state.add(statement)
    judgement = judge(state.results(0, lambda peer: peer), JOB.body.validate)
    assert judgement == Undecided(2)
    both = verdict(JOB, 0, [_continuing(4, 7), _continuing(5, 7)])
    assert not state.supported(0, both.body), "nor do they bear out a verdict that says so"
    for statement in replica(JOB, 3).all:
        state.add(statement)
    assert isinstance(judge(state.results(0, lambda peer: peer), JOB.body.validate), Accepted)
    assert state.supported(0, both.body)


# --- a mesh --------------------------------------------------------------------------------------------------------
def test_a_task_whose_worker_is_gone_is_finished_by_another_from_where_it_was() -> None:
    mesh = Mesh((0, 1, 2), silent=(0, 1, 2))
    mesh.add(9, slots=0, serves=False)
    for number in (3, 4, 5):
        mesh.add(number, serves=False)
    mesh.result = lambda peer, run: None
    mesh.do(9, Submit(job_spec(run=SHARED)))
    mesh.blobs[pid(9)].add(MODULE)
    assert mesh.run(20_000, lambda: sum(len(r) for r in mesh.running.values()) == 2)
    first = next(n for n in (3, 4, 5) if mesh.running[pid(n)])
    [task] = mesh.running[pid(first)]
    state = blob_of(b"half of it")
    mesh.blobs[pid(first)].add(state)
    mesh.do(first, Checkpointed(task, (File("state", state),), False))
    assert all(state in mesh.blobs[pid(n)] for n in (0, 1, 2)), "its stewards keep it"
    mesh.down.add(pid(first))
    for number in (0, 1, 2, 9):
        mesh.do(number, PeerDown(pid(first)))
    other = next(n for n in (3, 4, 5) if n != first and not mesh.running[pid(n)])
    assert mesh.run(60_000, lambda: bool(mesh.running[pid(other)]))
    run = mesh.running[pid(other)][task]
    assert run.checkpoint == (File("state", state),)
    for number in (3, 4, 5):
        if number != first:
            mesh.running[pid(number)].pop(task)
            result = RunResult("ok", 0, continued=number == other)
            mesh.do(number, Finished(task, result))
    assert mesh.run(60_000, lambda: bool(mesh.traces("complete")))
    submission = next(iter(mesh.nodes[pid(9)].submissions.values()))
    reveals = submission.states[0].file(0).reveals
    assert {w: s.body.continued for w, s in reveals.items() if s.body.continued} == {pid(other): (pid(first),)}
    assert not mesh.penalties()
    assert state not in mesh.blobs[pid(0)], "nobody needs it any more"
