"""A submitter decides, fetches, and signs the settlement; and goes on after a restart."""

from __future__ import annotations

import io

import pytest
from kit import OTHER_OUTPUT, OUTPUT, accepted, failed
from submitter_bench import Bench

from nexapod.protocol.certificate.check import check
from nexapod.protocol.certificate.report import Pins
from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import Fetch
from nexapod.protocol.notices import JobSettled, RatificationNeeded, ResultStored, TaskDecided
from nexapod.protocol.primitives import File, blob_of
from nexapod.sim.keys import verify


def working(**how: object) -> Bench:
    bench = Bench(**how)  # type: ignore[arg-type]
    bench.run()
    bench.place_all()
    bench.admit()
    bench.run(1_000)
    return bench


def report_of(bench: Bench):  # type: ignore[no-untyped-def]
    data = b"".join(bench.submission.certificate())
    return check(io.BytesIO(data).read, verify, Pins(bench.ctx.me))


def test_a_decided_job_settles_with_a_certificate_that_others_accept() -> None:
    bench = working(tasks=4)
    bench.decide([0, 1, 2, 3])
    assert [n.outcome for n in bench.of(TaskDecided)] == ["accepted"] * 4
    assert bench.give_outputs() == 4
    assert {n.task for n in bench.of(ResultStored)} == {0, 1, 2, 3}
    bench.run(100)
    assert bench.of(JobSettled) == [JobSettled(bench.made.job, 4, 0)]
    assert bench.job.closed
    report = report_of(bench)
    assert report.ok, report.problems
    assert (report.accepted, report.failed) == (4, 0)


def test_nothing_settles_before_the_outputs_are_here() -> None:
    bench = working(tasks=2)
    bench.decide([0, 1])
    bench.run(60_000)
    assert not bench.of(JobSettled)
    bench.effects += [Fetch(f.part, f.sources) for f in bench.of(Fetch)]
    bench.give_outputs()
    bench.run(100)
    assert bench.of(JobSettled)


def test_failed_tasks_are_counted_and_the_certificate_says_why() -> None:
    bench = working(tasks=2, max_replicas=2)
    bench.decide([0], outcome="failed", exit=3, item=failed("2 results"))
    bench.decide([1])
    bench.give_outputs()
    bench.run(100)
    assert bench.of(JobSettled) == [JobSettled(bench.made.job, 1, 1)]
    assert report_of(bench).ok


def test_every_member_hears_of_the_settlement() -> None:
    bench = working(tasks=1, members=5)
    bench.decide([0])
    bench.give_outputs()
    bench.run(100)
    for member in bench.made.members:
        assert len(bench.delivered(member, "settlement")) == 1


def test_there_is_no_certificate_of_an_open_job() -> None:
    with pytest.raises(LocalError):
        working().submission.certificate()


def test_a_restart_keeps_what_was_decided_and_settles() -> None:
    bench = working(tasks=4)
    bench.decide([0, 1])
    bench.give_outputs()
    again = Bench(bench.made, records=bench.records, known=bench.job.statements(), now=bench.ctx.now)
    again.run(1_000)
    assert again.submission.report().accepted == 2
    again.decide([2, 3])
    again.give_outputs()
    again.run(1_000)
    assert again.of(JobSettled)
    assert report_of(again).ok


def test_the_certificate_is_the_same_after_a_restart() -> None:
    bench = working(tasks=4)
    bench.decide([0, 1, 2, 3])
    bench.give_outputs()
    bench.run(100)
    first = b"".join(bench.submission.certificate())
    again = Bench(bench.made, records=bench.records, known=bench.job.statements())
    assert b"".join(again.submission.certificate()) == first


def test_what_came_after_the_settlement_is_no_part_of_its_certificate() -> None:
    bench = Bench(tasks=1, members=5)
    bench.run()
    *_, late = bench.made.members
    bench.place_all(skip=[late])
    bench.admit()
    bench.decide([0])
    bench.give_outputs()
    bench.run(1_000)
    first = b"".join(bench.submission.certificate())
    known = [*bench.job.statements(), bench.made.placed(late)]
    again = Bench(bench.made, records=bench.records, known=known)
    assert b"".join(again.submission.certificate()) == first


def test_a_verdict_that_its_evidence_does_not_bear_out_is_not_believed() -> None:
    bench = working(tasks=1, members=5)

    def differing(task: int, place: int) -> tuple[File, ...]:
        return OUTPUT if place else OTHER_OUTPUT

    bench.decide([0], outputs=differing, item=accepted(pairs=((0, 1),)))
    assert not bench.of(TaskDecided)
    assert bench.traces("verdict_refused")
    assert {peer for peer, _ in bench.submission.report().refused} == {s.peer for s in bench.made.quorum()}


def test_a_verdict_waits_for_the_reveals_that_it_rests_on() -> None:
    bench = working(tasks=1)
    *others, first, second, verdict = bench.evidence([0])
    seat = bench.made.seats()[0]
    bench.hear(seat, *others, verdict)
    bench.hear(seat, first)
    assert not bench.of(TaskDecided)
    bench.hear(seat, second, verdict)
    assert bench.of(TaskDecided)


def test_one_seat_alone_decides_nothing() -> None:
    bench = working(tasks=1)
    bench.decide([0], signers=bench.made.seats()[:1])
    assert not bench.of(TaskDecided)


def test_both_results_of_a_disagreement_are_kept() -> None:
    bench = working(tasks=1, max_replicas=2)

    def differing(task: int, place: int) -> tuple[File, ...]:
        return OUTPUT if place else OTHER_OUTPUT

    bench.decide([0], outputs=differing, outcome="failed", item=failed("they differ"))
    wanted = {fetch.part.blob for fetch in bench.of(Fetch)}
    assert wanted == {OUTPUT[0].blob, OTHER_OUTPUT[0].blob}
    assert wanted <= bench.ctx.pinned()
    assert {one.outputs for one in bench.submission.revealed(0)} == {OUTPUT, OTHER_OUTPUT}
    bench.submission.close()
    assert not bench.ctx.pinned() & wanted


def test_a_disputed_result_that_nobody_gives_holds_up_nothing_for_long() -> None:
    bench = working(tasks=1, max_replicas=2)

    def differing(task: int, place: int) -> tuple[File, ...]:
        return OUTPUT if place else OTHER_OUTPUT

    bench.decide([0], outputs=differing, outcome="failed", item=failed("they differ"))
    for _ in range(5):
        for fetch in bench.of(Fetch):
            bench.submission.blob_failed(fetch.part)
            bench.drain()
        bench.run(60_000)
    assert bench.of(JobSettled) == [JobSettled(bench.made.job, 0, 1)]


def test_caretakers_work_settles_only_when_the_user_has_accepted_it() -> None:
    bench = working(tasks=1)
    keeper = bench.made.seats()[1]
    bench.link_down(*(member for member in bench.made.members if member is not keeper))
    admissions = list(bench.made.round())
    bench.hear(keeper, bench.made.succession([keeper], [keeper], "caretaker"))
    bench.hear(keeper, bench.made.adoption(admissions, [keeper]))
    bench.run(1_000)
    assert bench.of(RatificationNeeded) == [RatificationNeeded(bench.made.job, (0,))]
    bench.hear(keeper, *bench.evidence([0], epoch=1, signers=[keeper]))
    bench.give_outputs()
    bench.run(60_000)
    assert bench.submission.report().accepted == 1
    assert not bench.of(JobSettled)
    bench.submission.ratify()
    bench.drain()
    bench.run(100)
    assert bench.of(JobSettled)
    assert report_of(bench).ok


def test_a_certificate_that_does_not_hold_is_not_signed() -> None:
    bench = working(tasks=1)
    bench.decide([0])
    bench.ctx.verify = lambda peer, data, signature: False  # type: ignore[assignment]
    bench.give_outputs()
    bench.run(1_000)
    assert not bench.of(JobSettled)
    assert bench.submission.report().problems
    bench.ctx.verify = verify  # type: ignore[assignment]
    bench.run(20_000)
    assert bench.of(JobSettled)


def test_equal_outputs_of_many_tasks_are_fetched_once() -> None:
    bench = working(tasks=3)
    bench.decide([0, 1, 2], outputs=lambda task, place: (File("out", blob_of(b"same")),))
    assert bench.give_outputs() == 1
    assert len(bench.of(ResultStored)) == 3
