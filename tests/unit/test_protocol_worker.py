"""nexapod.protocol.worker: from a job heard of to a verdict, one worker at a time.

Peers 0, 1 and 2 are the stewards, 3 is this worker, 9 the submitter.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from protocol_kit import (
    MODULE,
    Replica,
    context,
    decode,
    drain,
    job,
    pid,
    profile,
    replica,
    result_of,
    said,
    traced,
    verdict,
    verify,
)

from nexapod.protocol import attempts, limits, messages, worker
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Drop, Run, Save, Send, Stop
from nexapod.protocol.matching import Policy
from nexapod.protocol.messages import Grant, Offer, Query, Release, Renew, Status, TaskStatus, View
from nexapod.protocol.records import Record
from nexapod.protocol.statements import Bid, Statement
from nexapod.protocol.types import JobId, Limits, RunResult, TaskId, Validate, blob_of
from nexapod.protocol.worker import Worker

STEWARDS = (0, 1, 2)


class Bench:
    """A worker that knows one job, and what its stewards say."""

    def __init__(
        self,
        of: Statement | None = None,
        *,
        policy: Policy | None = None,
        slots: int = 1,
        serving: Sequence[int] = STEWARDS,
    ) -> None:
        self.job = of or job()
        self.id = JobId(self.job.id)
        self.ctx = context(me=3, serving=serving)
        self.worker = Worker(self.ctx, verify, policy or Policy())
        self.worker.profile = profile(serves=False, slots=slots)
        self.worker.job_known(self.job)

    @property
    def task(self) -> TaskId:
        return TaskId(self.id, 0)

    @property
    def attempt(self) -> attempts.Attempt:
        return self.worker.attempts[self.task]

    def at(self, now: int) -> None:
        self.ctx.now = now
        self.worker.tick()

    def bid(self, now: int = 10_000) -> Statement:
        """Let the bid be sent. Long after the job was heard of, every turn has come."""
        self.at(now)
        [bid] = {a.bid.id: a.bid for a in self.worker.attempts.values() if a.state == "bidding"}.values()
        return bid

    def let_turns_come(self) -> None:
        """Until it has bid for something: when that is depends on the job's id."""
        while not self.worker.attempts:
            self.at(self.ctx.now + limits.BID_STEP_MS)

    def grant(self, bid: Statement, *stewards: int, tasks: Sequence[int] = (0,)) -> None:
        for steward in stewards:
            self.worker.on_grant(pid(steward), Grant(self.id, 0, bid.id, tuple(tasks)))

    def start(self) -> None:
        self.grant(self.bid(), *STEWARDS)
        drain(self.ctx)

    def commit(self, content: bytes = b"result") -> Statement:
        self.start()
        self.worker.finished(self.task, result_of(content))
        assert self.attempt.commit is not None
        return self.attempt.commit

    def status(self, steward: int, standing: str, envelopes: Sequence[bytes] = ()) -> None:
        task = TaskStatus(0, standing, tuple(envelopes))  # type: ignore[arg-type]
        self.worker.on_status(pid(steward), Status(self.id, 0, (task,)))

    def offers(self, steward: int) -> list[str]:
        """The kinds of the statements offered to a steward; takes all effects away."""
        return [decode(e).kind for m in said(self.ctx, steward) if isinstance(m, Offer) for e in m.envelopes]

    def mine(self) -> Replica:
        """This worker's statements as a Replica, for verdicts to vote on."""
        attempt = self.attempt
        assert attempt.commit is not None
        assert attempt.reveal is not None
        return Replica(3, attempt.bid, attempt.commit, attempt.reveal)

    def reveal(self) -> None:
        self.commit()
        other = replica(self.job, 4).commit.envelope
        for steward in (0, 1):
            self.status(steward, "reveal", [other])


# --- choosing ------------------------------------------------------------------------------------------------------
def test_a_bid_goes_to_every_steward_and_nothing_runs_before_a_majority_grants() -> None:
    bench = Bench()
    bid = bench.bid()
    assert isinstance(bid.body, Bid)
    assert (bid.body.tasks, bid.author) == ((0,), pid(3))
    effects = list(bench.ctx.effects)
    for steward in STEWARDS:
        bench.ctx.effects = list(effects)
        assert bench.offers(steward) == ["bid"]
    bench.grant(bid, 0)
    bench.grant(bid, 0, 7)
    assert bench.attempt.state == "bidding"
    bench.grant(bid, 2)
    assert bench.attempt.state == "running"
    [run] = [e for e in drain(bench.ctx) if isinstance(e, Run)]
    assert (run.task, set(run.sources)) == (bench.task, {pid(n) for n in (0, 1, 2, 9)})
    assert MODULE in bench.ctx.held()


def test_a_bid_that_a_majority_refuses_is_given_up_and_grants_given_back() -> None:
    bench = Bench()
    bid = bench.bid()
    drain(bench.ctx)
    bench.grant(bid, 0)
    bench.grant(bid, 1, 2, tasks=())
    assert bench.worker.attempts == {}
    released = [e.peer for e in bench.ctx.effects if isinstance(e, Send)]
    assert released == [pid(0)]
    assert said(bench.ctx, 0) == [Release(bench.id, 0, (0,), False)]


def test_a_bid_that_nobody_answers_is_given_up_and_made_again_later() -> None:
    bench = Bench()
    first = bench.bid()
    drain(bench.ctx)
    bench.at(10_000 + limits.BID_ANSWER_MS)
    assert bench.worker.attempts == {}
    prospect = bench.worker.prospects[bench.id]
    until, times = prospect.cooling[0]
    assert times == 1
    assert limits.RETRY_MIN_MS <= until - bench.ctx.now < 2 * limits.RETRY_MIN_MS
    drain(bench.ctx)
    bench.at(until)
    for message in said(bench.ctx):
        assert isinstance(message, Query)
    bench.worker.on_view(View(bench.id, 0, (0,), (), (), ()))
    bench.at(until + 1_000)
    assert bench.attempt.bid.id != first.id


def test_short_tasks_are_asked_for_ahead() -> None:
    bench = Bench(job(tasks=32))
    bench.worker.prospects[bench.id].expected_ms = 100
    bid = bench.bid()
    assert len(bid.body.tasks) == 15
    bench.grant(bid, *STEWARDS, tasks=bid.body.tasks)
    states = [a.state for a in bench.worker.attempts.values()]
    assert (states.count("running"), states.count("granted")) == (1, 14)


def test_submitters_take_turns_and_priority_decides_within_one() -> None:
    first, second = job(9, name="low", priority=-1), job(9, name="high", priority=1)
    bench = Bench(first, slots=1)
    bench.worker.job_known(second)
    assert bench.bid().body.job == second.id
    third = job(8, name="other", priority=-10)
    bench.worker.job_known(third)
    assert next(p.statement.author for p in bench.worker._by_fairness()) == pid(8)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(work=False), "this peer does not work (started with --no-work)"),
        (Policy(submitters=frozenset()), "its submitter is not among those that this peer works for"),
    ],
)
def test_the_owners_policy_is_kept(policy: Policy, reason: str) -> None:
    bench = Bench(policy=policy)
    bench.at(10_000)
    assert bench.worker.attempts == {}
    assert bench.worker.decide(bench.job).reason == reason


def test_a_worker_says_why_it_does_nothing() -> None:
    bench = Bench()
    assert bench.worker.decide(bench.job).ok
    bench.worker.draining = True
    assert bench.worker.decide(bench.job).reason.startswith("this peer is draining")
    bench.at(10_000)
    assert bench.worker.attempts == {}
    bench.worker.profile = None
    assert bench.worker.decide(bench.job).reason.startswith("this peer's hardware")
    bench.worker.choose()
    assert bench.worker.attempts == {}


def test_a_worker_with_a_bad_ticket_in_a_large_network_leaves_the_job_to_others() -> None:
    bench = Bench()
    bench.ctx.directory._eligible[bench.id] = (bench.ctx.directory.version, 10**9, 10**9)
    bench.at(100_000)
    assert bench.worker.attempts == {}


def test_without_stewards_a_bid_waits() -> None:
    bench = Bench()
    for steward in STEWARDS:
        bench.ctx.directory.unreachable(pid(steward), 0)
    bench.at(10_000)
    assert bench.worker.attempts == {}
    for steward in STEWARDS:
        bench.ctx.directory.peer_up(pid(steward), "")
    assert bench.worker.deadline == 10_000 + limits.RETRY_MIN_MS
    bench.at(10_000 + limits.RETRY_MIN_MS)
    assert bench.attempt.state == "bidding"


def test_with_nothing_open_stewards_are_asked_in_turn_and_ever_more_rarely() -> None:
    bench = Bench()
    bench.at(10_000)
    bench.worker.attempts.clear()
    asked, now = [], 10_000
    for _ in range(8):
        now = bench.worker.deadline or now
        drain(bench.ctx)
        bench.worker._wake(now)
        bench.at(now)
        if [m for m in said(bench.ctx) if isinstance(m, Query)]:
            asked.append(now)
    gaps = [b - a for a, b in pairwise(asked)]
    assert len(gaps) >= 3
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]


def test_a_view_says_what_is_open_and_when_a_shard_is_done() -> None:
    bench = Bench(job(tasks=2))
    bench.at(0)
    bench.worker.attempts.clear()
    bench.worker.on_view(View(bench.id, 0, (1, 200), (), (), ()))
    bench.let_turns_come()
    assert [a.task.index for a in bench.worker.attempts.values()] == [1]
    bench.worker.attempts.clear()
    bench.worker.on_view(View(bench.id, 0, (), (), (0,), (1,)))
    assert bench.worker.prospects[bench.id].shards[0].done
    drain(bench.ctx)
    bench.at(100_000)
    assert said(bench.ctx) == []
    bench.worker.on_view(View(bench.id, 5, (0,), (), (), ()))
    bench.worker.on_view(View(JobId(bytes(32)), 0, (0,), (), (), ()))


def test_peers_begin_with_different_shards() -> None:
    bench = Bench(job(tasks=256 * 8))
    prospect = bench.worker.prospects[bench.id]
    order = prospect.shard_order(pid(3))
    assert sorted(order) == list(range(8))


# --- running -------------------------------------------------------------------------------------------------------
def test_leases_are_renewed_with_progress() -> None:
    bench = Bench()
    bench.start()
    bench.worker.progressed(bench.task, 5000, "half")
    bench.worker.progressed(TaskId(bench.id, 7), 1, "")
    bench.at(10_000 + limits.RENEW_MS)
    [renew] = [m for m in said(bench.ctx, 1) if isinstance(m, Renew)]
    assert [(h.task, h.stage, h.progress) for h in renew.held] == [(0, "running", 1000)]
    assert bench.worker.deadline is not None


def test_a_change_of_stewards_is_told_what_this_worker_holds_soon() -> None:
    bench = Bench()
    bench.start()
    bench.worker.reconsider()
    bench.at(10_000 + limits.RETRY_MIN_MS)
    assert [m for m in said(bench.ctx, 2) if isinstance(m, Renew)]


def test_the_commit_is_saved_before_it_is_spoken_of() -> None:
    bench = Bench()
    bench.commit()
    effects = drain(bench.ctx)
    kinds = [type(e) for e in effects if isinstance(e, (Save, Send))]
    assert kinds == [Save, Send, Send, Send]
    [record] = [e.record for e in effects if isinstance(e, Save)]
    assert (record.kind, record.key) == ("attempt", bytes(bench.id) + bytes(4))


def test_a_task_that_this_machine_cannot_run_is_given_back_for_a_while() -> None:
    bench = Bench()
    bench.start()
    bench.worker.finished(bench.task, RunResult("try-elsewhere", 69, reason="no disk"))
    effects = list(bench.ctx.effects)
    assert said(bench.ctx, 0)[0] == Release(bench.id, 0, (0,), True)
    assert not [e for e in effects if isinstance(e, Stop)]
    assert [e.record.value for e in effects if isinstance(e, Save)] == [None]
    bench.worker.on_view(View(bench.id, 0, (0,), (), (), ()))
    bench.at(100_000)
    assert bench.worker.attempts == {}


def test_a_machine_that_can_run_nothing_pauses() -> None:
    bench = Bench(job(tasks=worker.ELSEWHERE_MAX + 1))
    now = 10_000
    for _ in range(worker.ELSEWHERE_MAX):
        bid = bench.bid(now)
        bench.grant(bid, *STEWARDS, tasks=bid.body.tasks)
        [task] = bench.worker.attempts
        bench.worker.finished(task, RunResult("try-elsewhere", 69))
        now += 1
    assert bench.worker.paused_until == now - 1 + worker.ELSEWHERE_PAUSE_MS
    assert "could not run" in bench.worker.decide(bench.job).reason
    bench.at(now)
    assert bench.worker.attempts == {}
    bench.worker.job_known(bench.job)
    bench.at(bench.worker.paused_until)
    assert len(bench.worker.attempts) == 1


def test_an_end_that_nobody_waits_for_is_passed_over() -> None:
    bench = Bench()
    bench.worker.finished(bench.task, result_of(b"x"))
    assert said(bench.ctx) == []


# --- commit and reveal ---------------------------------------------------------------------------------------------
def test_a_commit_is_repeated_to_the_silent_ever_more_rarely() -> None:
    bench = Bench()
    bench.commit()
    drain(bench.ctx)
    bench.status(0, "held")
    now = 10_000 + limits.RETRY_MIN_MS
    bench.at(now)
    effects = list(bench.ctx.effects)
    assert bench.offers(1) == ["bid", "commit"]
    bench.ctx.effects = effects
    assert bench.offers(0) == []
    assert bench.attempt.retry_at == now + 2 * limits.RETRY_MIN_MS
    for steward in (1, 2):
        bench.status(steward, "held")
    bench.at(bench.attempt.retry_at)
    assert bench.attempt.retry_ms == limits.RENEW_MS


def test_a_result_is_shown_only_when_a_majority_of_stewards_shows_another_commit() -> None:
    bench = Bench()
    own = bench.commit()
    other = replica(bench.job, 4).commit
    drain(bench.ctx)
    bench.status(0, "reveal", [other.envelope])
    bench.status(0, "reveal", [other.envelope])
    bench.status(7, "reveal", [other.envelope])
    assert bench.attempt.state == "committed"
    bench.status(1, "reveal", [])
    bench.status(1, "reveal", [own.envelope])
    assert bench.attempt.state == "committed"
    bench.status(1, "reveal", [other.envelope])
    assert bench.attempt.state == "revealed"
    effects = drain(bench.ctx)
    kinds = [type(e) for e in effects if isinstance(e, (Save, Send))]
    assert kinds == [Save, Send, Send, Send]


def test_one_that_must_agree_with_nobody_shows_its_result_at_once() -> None:
    bench = Bench(job(validate=Validate(agree=1, max_replicas=1)))
    bench.commit()
    for steward in (0, 1):
        bench.status(steward, "reveal")
    assert bench.attempt.state == "revealed"


def test_a_steward_that_shows_commits_of_another_task_breaks_the_rules() -> None:
    bench = Bench(job(tasks=1))
    bench.commit()
    for wrong in (replica(job(8), 4).commit, replica(bench.job, 4).bid):
        with pytest.raises(PeerError, match="bad-commit"):
            bench.status(0, "reveal", [wrong.envelope])


def test_a_steward_that_has_not_heard_the_reveal_is_told_again() -> None:
    bench = Bench()
    bench.reveal()
    drain(bench.ctx)
    bench.status(2, "reveal", [replica(bench.job, 4).commit.envelope])
    assert bench.offers(2) == []
    bench.ctx.now += limits.RETRY_MIN_MS
    bench.status(2, "reveal", [replica(bench.job, 4).commit.envelope])
    assert bench.offers(2) == ["bid", "commit", "reveal"]


def test_a_steward_that_lacks_statements_is_given_them() -> None:
    bench = Bench()
    bench.start()
    bench.status(1, "unknown")
    assert bench.offers(1) == ["bid"]
    bench.worker.finished(bench.task, result_of(b"result"))
    drain(bench.ctx)
    bench.status(1, "unknown")
    assert bench.offers(1) == ["bid", "commit"]


def test_a_lost_lease_ends_nothing() -> None:
    bench = Bench()
    bench.start()
    bench.status(0, "lost")
    assert bench.attempt.state == "running"
    assert traced(drain(bench.ctx), "lease_lost")


# --- ends ----------------------------------------------------------------------------------------------------------
def test_equal_verdicts_of_a_majority_end_an_attempt_and_free_its_outputs() -> None:
    bench = Bench()
    bench.reveal()
    other = replica(bench.job, 4)
    mine = bench.mine()
    done = attempts.done_record(bench.attempt)
    drain(bench.ctx)
    bench.worker.on_verdict(verdict(bench.job, 0, [mine, other]))
    assert bench.task in bench.worker.attempts
    bench.status(1, "settled", [verdict(bench.job, 1, [mine, other]).envelope])
    assert bench.worker.attempts == {}
    effects = drain(bench.ctx)
    assert not [e for e in effects if isinstance(e, Drop)], "its stewards may all vanish before the job is over"
    key = bytes(bench.id) + bytes(4)
    assert [e.record for e in effects if isinstance(e, Save)] == [done]
    bench.worker.job_over(bench.id)
    after = drain(bench.ctx)
    assert [e.record for e in after if isinstance(e, Save)] == [Record("attempt", key, None)]
    assert blob_of(b"result") in [e.ref for e in after if isinstance(e, Drop)]
    assert traced(effects, "result_judged")[0].facts["agreed"] is True


def test_a_running_task_that_others_settled_is_stopped() -> None:
    bench = Bench()
    bench.start()
    a, b = replica(bench.job, 4), replica(bench.job, 5)
    for steward in (0, 1):
        bench.worker.on_verdict(verdict(bench.job, steward, [a, b]))
    assert [e.task for e in drain(bench.ctx) if isinstance(e, Stop)] == [bench.task]


def test_verdicts_that_do_not_count_end_nothing() -> None:
    bench = Bench()
    bench.start()
    a, b = replica(bench.job, 4), replica(bench.job, 5)
    bench.worker.on_verdict(verdict(bench.job, 5, [a, b]))
    bench.worker.on_verdict(verdict(bench.job, 6, [a, b]))
    bench.worker.on_verdict(a.bid)
    bench.worker.on_verdict(verdict(bench.job, 0, [a, b]))
    bench.worker.on_verdict(verdict(bench.job, 1, [], others=[a, b], outcome="failed"))
    assert bench.attempt.state == "running"


def test_a_task_that_a_majority_calls_closed_is_dropped() -> None:
    bench = Bench()
    bench.start()
    bench.status(0, "closed")
    bench.status(7, "closed")
    assert bench.attempt.state == "running"
    bench.status(1, "closed")
    assert bench.worker.attempts == {}


def test_a_job_that_is_over_is_left_behind() -> None:
    bench = Bench()
    bench.start()
    bench.worker.job_over(bench.id)
    effects = drain(bench.ctx)
    assert [e.task for e in effects if isinstance(e, Stop)] == [bench.task]
    assert [e.ref for e in effects if isinstance(e, Drop)] == [MODULE]
    assert bench.worker.prospects == {}
    bench.worker.on_status(pid(0), Status(bench.id, 0, ()))
    bench.grant(replica(bench.job, 3).bid, 0)


# --- slots ---------------------------------------------------------------------------------------------------------
def _with_work_ahead(memory: int, slots: int) -> tuple[Bench, TaskId]:
    """A worker that holds six tasks, and the only one that it has begun."""
    bench = Bench(job(tasks=6, limits=Limits(memory=memory)), slots=slots)
    bench.worker.prospects[bench.id].expected_ms = worker.BATCH_MS // 6
    bid = bench.bid()
    bench.grant(bid, *STEWARDS, tasks=bid.body.tasks)
    [begun] = _begun(bench)
    return bench, begun


def _begun(bench: Bench) -> list[TaskId]:
    """The tasks that what was done since the last question has begun."""
    return [effect.task for effect in drain(bench.ctx) if isinstance(effect, Run)]


def test_a_task_that_has_left_its_slot_lets_the_next_begin_and_finishes_as_ever() -> None:
    bench, first = _with_work_ahead(1 << 30, slots=1)
    bench.worker.vacated(first)
    [second] = _begun(bench)
    bench.worker.finished(first, result_of(b"result"))
    assert bench.worker.attempts[first].state == "committed"
    assert _begun(bench) == [], "its slot was given away before"
    bench.worker.finished(second, RunResult("try-elsewhere", 69))
    assert len(_begun(bench)) == 1


def test_no_more_tasks_are_on_their_way_out_than_there_are_slots() -> None:
    bench, first = _with_work_ahead(1 << 30, slots=1)
    bench.worker.vacated(first)
    [second] = _begun(bench)
    bench.worker.vacated(second)
    bench.worker.finished(first, result_of(b"result"))
    assert _begun(bench) == [], "the second keeps its slot until it has finished"
    bench.worker.finished(second, result_of(b"result"))
    assert len(_begun(bench)) == 1


def test_what_a_task_took_of_the_machine_is_free_once_it_has_left_its_slot() -> None:
    bench, first = _with_work_ahead(5 << 30, slots=2)  # of 8 GiB
    bench.worker.vacated(first)
    assert len(_begun(bench)) == 1


def test_more_is_bid_for_when_a_task_has_left_its_slot() -> None:
    bench = Bench(job(tasks=2))
    bid = bench.bid()
    bench.grant(bid, *STEWARDS, tasks=bid.body.tasks)
    [first] = _begun(bench)
    bench.at(bench.ctx.now + 1_000)
    assert list(bench.worker.attempts) == [first]
    bench.worker.vacated(first)
    bench.at(bench.ctx.now)
    assert [a.state for a in bench.worker.attempts.values()] == ["running", "bidding"]


def test_a_task_that_nobody_knows_or_that_does_not_run_leaves_no_slot() -> None:
    bench, first = _with_work_ahead(1 << 30, slots=1)
    waiting = next(task for task in bench.worker.attempts if task != first)
    for other in (TaskId(bench.id, 99), waiting):
        bench.worker.vacated(other)
    assert _begun(bench) == []
    assert not bench.worker.attempts[waiting].vacated, "or it would take no slot once it runs"


# --- restart -------------------------------------------------------------------------------------------------------
def _restarted(bench: Bench, serving: Sequence[int] = STEWARDS) -> Bench:
    [record] = [e.record for e in drain(bench.ctx) if isinstance(e, Save)][-1:]
    again = Bench(bench.job, serving=serving)
    again.ctx.now = 50_000
    again.worker.restore(record)
    return again


def test_a_committed_attempt_is_offered_again_after_a_restart() -> None:
    bench = Bench()
    commit = bench.commit()
    again = _restarted(bench)
    assert (again.attempt.state, again.attempt.commit) == ("committed", commit)
    assert blob_of(b"result") in again.ctx.held()
    again.worker.tick()
    assert again.offers(0) == ["bid", "commit"]


def test_a_revealed_attempt_is_offered_again_after_a_restart() -> None:
    bench = Bench()
    bench.reveal()
    again = _restarted(bench)
    again.worker.tick()
    assert again.offers(1) == ["bid", "commit", "reveal"]


@pytest.mark.parametrize("state", ["running", "committed", "revealed"])
def test_one_steward_met_after_a_restart_neither_ends_an_attempt_nor_has_its_result_shown(state: str) -> None:
    bench = Bench()
    if state == "running":
        bench.grant(bench.bid(), *STEWARDS)
    else:
        (bench.commit if state == "committed" else bench.reveal)()
    again = _restarted(bench, serving=(0,))
    held = again.attempt.state
    a, b = replica(bench.job, 4), replica(bench.job, 5)
    again.worker.on_verdict(verdict(bench.job, 0, [a, b], stewards=(0,)))
    again.status(0, "closed")
    again.status(0, "reveal", [a.commit.envelope])
    assert again.attempt.state == held


def test_a_task_that_ran_when_the_process_ended_runs_again() -> None:
    bench = Bench()
    bench.grant(bench.bid(), *STEWARDS)
    again = _restarted(bench)
    again.worker.tick()
    assert [e.task for e in drain(again.ctx) if isinstance(e, Run)] == [again.task]


def test_a_task_that_ran_when_the_process_ended_is_kept_by_one_that_starts_paused() -> None:
    bench = Bench()
    bench.grant(bench.bid(), *STEWARDS)
    again = _restarted(bench)
    again.worker.pause(True)
    again.at(50_000 + limits.RETRY_MIN_MS)
    effects = drain(again.ctx)
    told = [messages.decode(e.frame) for e in effects if isinstance(e, Send) and e.peer == pid(0)]
    assert [m.held[0].stage for m in told if isinstance(m, Renew)] == ["running"]
    assert [e for e in effects if isinstance(e, Run)] == []
    again.worker.pause(False)
    again.at(60_000)
    assert [e.task for e in drain(again.ctx) if isinstance(e, Run)] == [again.task]


@pytest.mark.parametrize("how", ["no slots", "drained"])
def test_a_machine_that_works_no_more_gives_back_what_a_former_process_ran(how: str) -> None:
    bench = Bench()
    bench.grant(bench.bid(), *STEWARDS)
    again = _restarted(bench)
    drain(again.ctx)
    if how == "drained":
        again.worker.drain()
    else:
        again.worker.profile = profile(slots=0)
    again.at(60_000)
    effects = drain(again.ctx)
    told = [messages.decode(e.frame) for e in effects if isinstance(e, Send) and e.peer == pid(0)]
    assert [m for m in told if isinstance(m, Release)] == [Release(bench.id, 0, (0,), False)]
    assert [e.record.value for e in effects if isinstance(e, Save)] == [None]
    assert again.worker.attempts == {}
    assert again.worker.prospects[bench.id].attempted == set(), "it may be this machine's again one day"


def test_a_pause_gives_back_what_has_not_begun() -> None:
    bench = Bench()
    bench.bid()
    drain(bench.ctx)
    bench.worker.pause(True)
    assert [m.tasks for m in said(bench.ctx, 0) if isinstance(m, Release)] == [(0,)]
    assert bench.worker.attempts == {}


def test_a_task_once_committed_is_never_tried_again_not_even_by_a_restarted_process() -> None:
    bench = Bench()
    bench.reveal()
    mine, other = bench.mine(), replica(bench.job, 4)
    for steward in (0, 1):
        bench.worker.on_verdict(verdict(bench.job, steward, [mine, other]))
    again = _restarted(bench)
    again.at(60_000)
    assert again.worker.attempts == {}


def test_a_steward_that_keeps_asking_is_answered_once_a_second() -> None:
    bench = Bench()
    bench.commit()
    drain(bench.ctx)
    for _ in range(3):
        bench.status(1, "unknown")
    assert bench.offers(1) == ["bid", "commit"]
    bench.ctx.now += limits.RETRY_MIN_MS
    bench.status(1, "unknown")
    assert bench.offers(1) == ["bid", "commit"]


def test_a_steward_whose_link_is_back_is_told_soon() -> None:
    bench = Bench()
    bench.start()
    bench.worker.peer_up(pid(7))
    bench.at(bench.ctx.now + limits.RETRY_MIN_MS)
    assert said(bench.ctx) == []
    bench.worker.peer_up(pid(1))
    bench.at(bench.ctx.now + limits.RETRY_MIN_MS)
    assert [m for m in said(bench.ctx, 1) if isinstance(m, Renew)]


def test_an_attempt_of_a_forgotten_job_is_deleted() -> None:
    bench = Bench()
    bench.grant(bench.bid(), *STEWARDS)
    [record] = [e.record for e in drain(bench.ctx) if isinstance(e, Save)]
    other = Bench(job(8))
    drain(other.ctx)
    other.worker.restore(record)
    assert [e.record for e in drain(other.ctx) if isinstance(e, Save)] == [Record("attempt", record.key, None)]
    assert other.worker.attempts == {}


def test_a_job_whose_tasks_all_ask_for_another_machine_stops_no_other_work() -> None:
    bench = Bench(job(tasks=worker.ELSEWHERE_MAX + 1))
    other = job(name="another")
    for now in range(10_000, 10_000 + worker.ELSEWHERE_MAX):
        bid = bench.bid(now)
        bench.grant(bid, *STEWARDS, tasks=bid.body.tasks)
        [task] = bench.worker.attempts
        bench.worker.finished(task, RunResult("try-elsewhere", 75))
    assert bench.worker.paused_until == 0
    assert "asked for another machine" in bench.worker.decide(bench.job).reason
    rest_until = bench.worker.prospects[bench.id].rest_until
    assert rest_until == bench.ctx.now + worker.ELSEWHERE_PAUSE_MS
    bench.at(bench.ctx.now)
    assert bench.worker.attempts == {}
    assert bench.worker.decide(other).ok
    for now in (20_000, 40_000, 60_000):
        bench.at(now)
    assert bench.worker.deadline == rest_until
    bench.worker.job_known(bench.job)
    bench.at(rest_until)
    assert len(bench.worker.attempts) == 1


def test_a_result_of_a_job_ends_the_count_of_its_tasks_that_asked_for_another_machine() -> None:
    bench = Bench(job(tasks=worker.ELSEWHERE_MAX))
    for exit_status in (75, 75, 0):
        bid = bench.bid(bench.ctx.now + 10_000)
        bench.grant(bid, *STEWARDS, tasks=bid.body.tasks)
        [task] = bench.worker.attempts
        result = RunResult("try-elsewhere", exit_status) if exit_status else result_of(b"result")
        bench.worker.finished(task, result)
    assert bench.worker.prospects[bench.id].elsewhere == 0


def test_a_pause_ends_by_itself() -> None:
    bench = Bench(job(tasks=worker.ELSEWHERE_MAX + 1))
    for now in range(10_000, 10_000 + worker.ELSEWHERE_MAX):
        bid = bench.bid(now)
        bench.grant(bid, *STEWARDS, tasks=bid.body.tasks)
        [task] = bench.worker.attempts
        bench.worker.finished(task, RunResult("try-elsewhere", 69))
    for now in (20_000, 40_000, 60_000):
        bench.at(now)
    assert bench.worker.deadline == bench.worker.paused_until


def test_a_task_that_could_not_be_run_here_is_tried_again_when_its_stewards_would_grant_it() -> None:
    bench = Bench()
    bench.grant(bench.bid(), *STEWARDS)
    bench.worker.finished(bench.task, RunResult("try-elsewhere", 69, reason="the engine is down"))
    prospect = bench.worker.prospects[bench.id]
    assert bench.worker.attempts == {}
    until, _ = prospect.cooling[0]
    assert until >= bench.ctx.now + 2 * limits.LEASE_TTL_MS
    bench.at(until + 1)
    bench.worker.on_view(View(bench.id, 0, (0,), (), (), ()))
    bench.let_turns_come()
    assert bench.attempt.state == "bidding"
