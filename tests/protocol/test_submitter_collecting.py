"""What a submitter asks seats for, and what it believes of their answers."""

from __future__ import annotations

import pytest
from kit import make_kit
from submitter_bench import Bench, told

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Fetch
from nexapod.protocol.notices import JobSettled, ResultStored, TaskDecided, TaskFailing, TaskLogged
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.wire.messages import AskLog, Collect, Inspect, TaskLog, TaskView, View, Want


def working(**how: object) -> Bench:
    bench = Bench(**how)  # type: ignore[arg-type]
    bench.run()
    bench.place_all()
    bench.admit()
    return bench


def asked(bench: Bench) -> list[tuple[PeerId, int, int]]:
    return [(peer, message.shard, message.since) for peer, message in bench.messages(Collect)]


def test_nobody_is_asked_before_the_job_is_workable() -> None:
    bench = Bench()
    bench.run(5_000)
    assert not asked(bench)


def test_one_seat_of_each_shard_is_asked_once_and_then_left_to_push() -> None:
    bench = working(tasks=600)
    bench.run(10)
    questions = asked(bench)
    assert sorted(shard for _, shard, _ in questions) == [0, 1, 2]
    for peer, shard, _ in questions:
        assert peer in bench.job.seats(shard).holders
        bench.hear(peer, told(bench.made.job, shard, 1))
    bench.run(limits.COLLECT_SILENT_MS - 100)
    assert not asked(bench)


def test_a_silent_seat_is_passed_over() -> None:
    bench = working()
    bench.run(10)
    bench.run(3 * limits.COLLECT_SILENT_MS)
    assert {peer for peer, _, _ in asked(bench)} == set(bench.job.seats(0).holders)


def test_a_quiet_shard_is_asked_ever_less_often_and_each_time_another_seat() -> None:
    bench = working()
    seats = []
    for _ in range(100):
        bench.run(limits.COLLECT_SILENT_MS)
        for peer, shard, _ in asked(bench):
            seats.append(peer)
            bench.hear(peer, told(bench.made.job, shard, 1))
    assert len(seats) < 12
    assert set(seats[:3]) == set(bench.job.seats(0).holders)


def test_the_next_question_begins_where_the_seat_had_got_to() -> None:
    bench = working(tasks=4)
    bench.run(10)
    ((seat, _, _),) = asked(bench)
    bench.hear(seat, *bench.evidence([0, 1]), told(bench.made.job, 0, 7, decided=2))
    since = {}
    for _ in range(8):
        bench.run(limits.COLLECT_SILENT_MS)
        for peer, shard, version in asked(bench):
            since[peer] = version
            bench.hear(peer, told(bench.made.job, shard, 7, decided=2))
    assert since[seat] == 7


def test_a_seat_that_says_more_than_it_has_told_is_asked_from_the_beginning() -> None:
    bench = working(tasks=4)
    bench.run(10)
    ((seat, _, _),) = asked(bench)
    bench.hear(seat, told(bench.made.job, 0, 7, decided=2))
    later = []
    for _ in range(8):
        bench.run(limits.COLLECT_SILENT_MS)
        later += asked(bench)
    assert all(since == 0 for _, _, since in later)


def test_a_shard_whose_seats_link_is_gone_is_asked_about_elsewhere() -> None:
    bench = working()
    bench.run(10)
    ((seat, shard, _),) = asked(bench)
    bench.hear(seat, told(bench.made.job, shard, 1))
    bench.link_down(bench.made.signer(seat))
    bench.run(10)
    ((other, _, _),) = asked(bench)
    assert other != seat


def test_finished_shards_are_not_asked_about() -> None:
    bench = working(tasks=300)
    bench.run(10)
    asked(bench)
    bench.decide(list(range(256, 300)))
    bench.give_outputs()
    bench.run(300_000)
    assert {shard for _, shard, _ in asked(bench)} == {0}


def test_thousands_of_shards_cost_little_when_nothing_happens() -> None:
    bench = working(members=16, tasks=1_000 * limits.SHARD_TASKS)
    first, last = 0, 0
    for _ in range(200):
        bench.run(limits.COLLECT_MS)
        questions = asked(bench)
        assert len(questions) <= limits.COLLECTS_MAX * 2
        for peer, shard, _ in questions:
            bench.hear(peer, told(bench.made.job, shard, 1))
        last = len(questions)
        first = first or last
        bench.sent.clear()
    assert last < 20
    assert bench.submission.deciding.in_memory == 0


def test_evidence_of_somebody_who_holds_no_seat_is_not_read() -> None:
    bench = working(tasks=1)
    bench.hear(bench.made.workers[0], *bench.evidence([0]))
    assert bench.submission.deciding.in_memory == 0
    assert not bench.of(TaskDecided)


def test_evidence_of_a_shard_that_is_not_there_is_the_speakers_mistake() -> None:
    bench = working(tasks=1)
    other = make_kit(tasks=600)
    other.round()
    with pytest.raises(PeerError):
        bench.hear(bench.made.seats()[0], other.commit(other.workers[0], *[_result(300)]))


def _result(task: int):  # type: ignore[no-untyped-def]
    from kit import Result

    return Result(task)


def test_what_came_too_early_is_asked_for_again_with_what_it_rests_on() -> None:
    bench = Bench(tasks=1)
    bench.run()
    bench.place_all()
    bench.run(10)
    ((seat, _, _),) = asked(bench)
    rounds = bench.made.round()
    pushed = bench.evidence([0])
    bench.hear(seat, *pushed, told(bench.made.job, 0, 3, decided=1))
    assert [want.ids for _, want in bench.messages(Want)] == [(bench.job.statement.id,)]
    bench.hear(seat, *rounds)
    bench.run(10)
    ((again, _, since),) = asked(bench)
    assert since == 0
    bench.hear(again, *pushed)
    assert bench.of(TaskDecided)


# --- what people see -------------------------------------------------------------------------------------------------
def test_a_result_that_did_not_end_well_is_told_once() -> None:
    bench = working(tasks=1, max_replicas=2)
    pushed = bench.evidence([0], exit=3, outcome="failed")
    bench.hear(bench.made.seats()[0], pushed[0], pushed[3])
    bench.hear(bench.made.seats()[1], pushed[0], pushed[3])
    assert [(n.exit, n.reason) for n in bench.of(TaskFailing)] == [(3, "no memory")]


def test_the_first_failure_is_known_after_a_restart() -> None:
    bench = working(tasks=1, max_replicas=2)
    pushed = bench.evidence([0], exit=3, outcome="failed")
    bench.hear(bench.made.seats()[0], pushed[0], pushed[3])
    first = bench.submission.report().failing
    assert first is not None
    again = Bench(bench.made, records=bench.records, known=bench.job.statements())
    assert again.submission.report().failing == first
    again.hear(bench.made.seats()[1], pushed[0], pushed[3])
    assert not again.of(TaskFailing), "it is not told twice"


def test_seats_notes_are_news_before_anything_is_decided() -> None:
    bench = working(tasks=2)
    worker = bench.made.workers[0].peer
    view = TaskView(1, "running", 10, (worker,), ((worker, 2, "segfault"),))
    bench.hear(bench.made.seats()[0], View(bench.made.job, 0, (view,)))
    assert bench.of(TaskFailing) == [TaskFailing(bench.made.job, 1, worker, 2, "segfault")]
    bench.hear(bench.made.workers[1], View(bench.made.job, 0, (view,)))
    assert not bench.of(TaskFailing)


def test_a_task_that_is_looked_at_shows_what_its_worker_prints() -> None:
    bench = working(tasks=2)
    worker, other = bench.made.workers[:2]
    bench.submission.ask_task(1)
    bench.drain()
    assert {peer for peer, _ in bench.messages(Inspect)} == set(bench.job.seats(0).holders)
    bench.hear(bench.made.seats()[0], View(bench.made.job, 0, (TaskView(1, "running", 500, (worker.peer,), ()),)))
    assert [peer for peer, _ in bench.messages(AskLog)] == [worker.peer]
    bench.hear(other, TaskLog(bench.made.job, 1, "not asked"))
    bench.hear(worker, TaskLog(bench.made.job, 1, "step 5"))
    assert [n.log for n in bench.of(TaskLogged)] == ["step 5"]
    bench.submission.ask_task(99)


def test_a_stuck_running_shard_is_inspected() -> None:
    bench = working(tasks=2)
    for _ in range(4):
        bench.run(limits.COLLECT_SILENT_MS)
        for peer, shard, _ in asked(bench):
            bench.hear(peer, told(bench.made.job, shard, 1, running=2))
    assert bench.messages(Inspect)


# --- fetching --------------------------------------------------------------------------------------------------------
def test_a_bounded_number_of_outputs_is_on_its_way() -> None:
    bench = working(tasks=100)
    bench.decide(list(range(100)))
    fetches = bench.of(Fetch)
    assert len(fetches) == limits.FETCHES_MAX
    bench.blob(fetches[0].part)
    assert len(bench.of(Fetch)) == 1
    assert len(bench.of(ResultStored)) == 1


def test_outputs_come_from_judges_then_workers_and_others_next_time() -> None:
    bench = working(tasks=1)
    bench.decide([0])
    (fetch,) = bench.of(Fetch)
    judges = {seat.peer for seat in bench.made.quorum()}
    assert set(fetch.sources[:2]) == judges
    assert set(fetch.sources[2:]) == {worker.peer for worker in bench.made.workers[:2]}
    bench.submission.blob_failed(fetch.part)
    bench.drain()
    bench.run(limits.FETCH_RETRY_MS + 100)
    (again,) = bench.of(Fetch)
    assert again.sources[0] == fetch.sources[1]


# --- seats that change, and memory -----------------------------------------------------------------------------------
def test_what_an_earlier_epoch_decided_counts_when_it_is_adopted() -> None:
    bench = working(tasks=1, members=5)
    pushed = bench.decide([0])
    old = bench.made.seats()
    newcomers = [m for m in bench.made.members if m not in old]
    holders = [old[0], *newcomers]
    bench.hear(old[0], bench.made.succession(holders, bench.made.quorum()))
    bench.run(1_000)
    assert bench.submission.deciding.finished == {}
    for newcomer in newcomers:
        assert bench.delivered(newcomer, "verdict")
    bench.give_outputs()
    bench.run(10_000)
    assert not bench.of(JobSettled)
    adopted = [s for s in pushed if s.kind in ("freeze", "verdict")] + list(bench.made.round())
    bench.hear(old[0], bench.made.adoption(adopted, holders[:2]))
    bench.run(1_000)
    assert bench.of(JobSettled)


def finish(bench: Bench, shard: int) -> None:
    tasks = bench.made.spec.shard_tasks(shard)
    for start in range(tasks.start, tasks.stop, 16):
        bench.decide(list(tasks)[start - tasks.start :][:16], outputs=lambda task, place: ())


def test_finished_shards_leave_memory_and_the_job_settles_from_disk() -> None:
    bench = working(tasks=limits.SHARD_TASKS + 6, archive=True)
    bench.submission.deciding.whole_max = 1
    bench.run(1_000)
    for shard in range(2):
        finish(bench, shard)
    assert bench.submission.deciding.in_memory == 1
    assert bench.submission.report().accepted == bench.made.spec.tasks
    assert bench.submission.result(0) is not None
    bench.run(1_000)
    assert bench.of(JobSettled)
    certificate = b"".join(bench.submission.certificate())
    assert bench.submission.deciding.in_memory == 1
    again = Bench(bench.made, records=bench.records, known=bench.job.statements(), archive=True)
    assert again.submission.deciding.in_memory == 0
    assert again.submission.report().accepted == bench.made.spec.tasks
    assert b"".join(again.submission.certificate()) == certificate


def test_a_shelved_shard_is_read_back_when_its_new_seats_adopt_it() -> None:
    bench = working(tasks=limits.SHARD_TASKS + 2, members=5, archive=True)
    bench.submission.deciding.whole_max = 0
    pushed = bench.decide([256, 257], outputs=lambda task, place: ())
    assert bench.submission.deciding.in_memory == 0
    old = bench.made.seats(1)
    newcomers = [m for m in bench.made.members if m not in old]
    holders = [old[0], *newcomers]
    bench.hear(old[0], bench.made.succession(holders, bench.made.quorum(1), shard=1))
    bench.run(1_000)
    assert bench.submission.deciding.in_memory == 0
    assert bench.submission.report().shards_finished == 0
    assert bench.delivered(newcomers[0], "verdict")
    adopted = [s for s in pushed if s.kind in ("freeze", "verdict")]
    bench.hear(old[0], bench.made.adoption(adopted, holders[:2], shard=1))
    bench.run(1_000)
    assert bench.submission.report().shards_finished == 1


def test_damaged_records_cost_what_they_held_and_nothing_else() -> None:
    bench = working(tasks=2)
    bench.decide([0])
    bench.give_outputs()
    damaged = {key: (b"\xc1" if key[0].startswith("submission") else value) for key, value in bench.records.items()}
    again = Bench(bench.made, records=damaged, known=bench.job.statements())
    again.run(100)
    assert again.submission.report().accepted == 0
    again.decide([0, 1])
    again.give_outputs()
    again.run(1_000)
    assert again.of(JobSettled)
