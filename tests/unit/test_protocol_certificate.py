"""nexapod.protocol.certificate: whatever is changed in a certificate is found, and any bytes give a report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from protocol_kit import Replica, job, make, pid, profile, replica, verdict, verify

from nexapod.protocol import certificate, codec
from nexapod.protocol.certificate import MAGIC, build, check, evidence_digest
from nexapod.protocol.shard import ShardState
from nexapod.protocol.statements import Fault, Settlement, Statement
from nexapod.protocol.types import JobId

JOB = job(tasks=2)
ID = JobId(JOB.id)


def _task(task: int) -> tuple[Replica, Replica, list[Statement]]:
    a, b = replica(JOB, 3, task), replica(JOB, 4, task)
    return a, b, [*a.all, *b.all, *(verdict(JOB, s, [a, b], task=task) for s in (0, 1))]


EVIDENCE = [*_task(0)[2], *_task(1)[2]]


def _settlement(evidence: Sequence[Statement], settled: int = 2, failed: int = 0, author: int = 9) -> Statement:
    return make(Settlement(ID, settled, failed, evidence_digest([JOB, *evidence])), author)


def _problems(evidence: Sequence[Statement], settlement: Statement | None = None) -> str:
    report = check(build(JOB, evidence, settlement or _settlement(evidence)), verify)
    assert report.ok == (not report.problems)
    return "\n".join(report.problems)


def _sealed(envelopes: list[bytes]) -> bytes:
    content = MAGIC + codec.pack(envelopes)
    return content + hashlib.sha256(content).digest()


def test_a_whole_certificate_checks_and_tells_what_happened() -> None:
    report = check(build(JOB, EVIDENCE, _settlement(EVIDENCE)), verify)
    assert report.ok
    assert (report.job, report.spec, report.submitter) == (ID, JOB.body, pid(9))
    assert report.statements == len(EVIDENCE) + 2
    assert [(t.index, t.outcome, t.stewards, len(t.judges)) for t in report.tasks] == [
        (0, "accepted", 3, 2),
        (1, "accepted", 3, 2),
    ]
    assert {r.worker: r.agreed for r in report.tasks[0].replicas} == {pid(3): True, pid(4): True}
    assert [f.path for f in report.tasks[0].outputs] == ["out.txt"]


@pytest.mark.parametrize(
    "data", [b"", b"x" * 100, MAGIC, MAGIC + bytes(40), MAGIC + b"\x90" + bytes(32), MAGIC + b"\x91\x01" + bytes(32)]
)
def test_bytes_that_are_no_certificate_give_a_report(data: bytes) -> None:
    report = check(data, verify)
    assert not report.ok
    assert len(report.problems) == 1


def test_every_single_changed_byte_is_found() -> None:
    whole = build(JOB, EVIDENCE, _settlement(EVIDENCE))
    for at in range(0, len(whole), 97):
        assert not check(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], verify).ok
    for length in range(0, len(whole), 211):
        assert not check(whole[:length], verify).ok


def test_a_list_that_is_written_in_another_way_is_refused() -> None:
    [one] = [codec.pack([JOB.envelope])]
    longer = b"\xdc\x00\x01" + one[1:]
    content = MAGIC + longer
    report = check(content + hashlib.sha256(content).digest(), verify)
    assert "not written as it must be" in report.problems[0]


def test_leaving_out_any_statement_is_found() -> None:
    settlement = _settlement(EVIDENCE)
    for left_out in range(len(EVIDENCE)):
        some = EVIDENCE[:left_out] + EVIDENCE[left_out + 1 :]
        assert "added or left out" in _problems(some, settlement)


def test_adding_or_repeating_a_statement_is_found() -> None:
    extra = replica(JOB, 5).all
    assert "added or left out" in _problems([*EVIDENCE, *extra], _settlement(EVIDENCE))
    twice = [s.envelope for s in (JOB, *EVIDENCE, EVIDENCE[0], _settlement(EVIDENCE))]
    assert "added or left out" in "\n".join(check(_sealed(twice), verify).problems)


def test_it_begins_with_the_job_and_ends_with_its_submitters_settlement() -> None:
    for order in ([*EVIDENCE, JOB], [JOB, *EVIDENCE], [_settlement(EVIDENCE), JOB]):
        report = check(_sealed([s.envelope for s in order]), verify)
        assert "does not begin with a job" in "\n".join(report.problems)
    assert "not that of this job's submitter" in _problems(EVIDENCE, _settlement(EVIDENCE, author=3))
    stranger = make(Settlement(JobId(bytes(32)), 2, 0, evidence_digest([JOB, *EVIDENCE])), 9)
    assert "not that of this job's submitter" in _problems(EVIDENCE, stranger)


def test_statements_that_do_not_hold_or_do_not_belong_are_named() -> None:
    damaged = [JOB.envelope, b"nonsense", *(s.envelope for s in EVIDENCE), _settlement(EVIDENCE).envelope]
    assert "statement 2 of 19 is not valid: not-msgpack" in "\n".join(check(_sealed(damaged), verify).problems)
    other = job(8)
    assert "does not belong to this job" in _problems([*EVIDENCE, replica(other, 3).bid])
    assert "does not belong to this job" in _problems([*EVIDENCE, make(profile(), 3)])
    beyond = replica(JOB, 3, task=300)
    assert "a task that the job does not have" in _problems([*EVIDENCE, beyond.bid])
    assert "no-such-task" in _problems([*EVIDENCE, replica(JOB, 3, task=2).bid])
    assert "answers a statement that is not in the certificate" in _problems([*EVIDENCE, replica(JOB, 5).commit])


def test_a_task_without_a_majority_is_named() -> None:
    _, _, first = _task(0)
    _, _, second = _task(1)
    assert "task 1: no majority" in _problems([*first, *second[:-1]])
    assert "task 1: no majority" in _problems(first)


def test_counts_that_the_evidence_does_not_show_are_named() -> None:
    assert "counts 1 settled and 1 failed tasks" in _problems(EVIDENCE, _settlement(EVIDENCE, 1, 1))


def test_two_workers_that_one_steward_saw_in_one_group_are_one_vote() -> None:
    a, b, first = _task(0)
    _, _, second = _task(1)
    body = first[-1].body
    votes = tuple(
        type(v)(v.reveal, v.worker, "8.8.8.0/24" if v.worker == pid(3) else v.group, v.agreed) for v in body.votes
    )
    same = tuple(type(v)(v.reveal, v.worker, "8.8.8.0/24", v.agreed) for v in body.votes)
    differing = [make(type(body)(ID, 0, "accepted", body.root, votes, body.stewards, ""), s) for s in (0, 1)]
    assert _problems([*a.all, *b.all, *differing, *second]) == ""
    one_group = [make(type(body)(ID, 0, "accepted", body.root, same, body.stewards, ""), s) for s in (0, 1)]
    assert "bad-verdict" in _problems([*a.all, *b.all, *one_group, *second])


def test_votes_that_name_strangers_prove_nothing() -> None:
    a, b, first = _task(0)
    _, _, second = _task(1)
    body = first[-1].body
    one_group = tuple(replace(vote, group="8.8.8.0/24") for vote in body.votes)
    stranger = replace(body.votes[0], worker=pid(6), group=pid(6))
    lies = [make(replace(body, votes=(*one_group, stranger)), s) for s in (0, 1)]
    assert "fewer than 2 operator groups agree" in _problems([*a.all, *b.all, *lies, *second])


def test_one_judge_that_lists_itself_alone_decides_nothing_beside_others() -> None:
    a, b, _ = _task(0)
    _, _, second = _task(1)
    alone = verdict(JOB, 1, [a, b], stewards=(1,))
    assert _problems([*a.all, *b.all, alone, *second]) == ""
    others = [replica(JOB, n, content=b"%d" % n) for n in (5, 6, 7)]
    rival = verdict(JOB, 0, [], others=[a, b, *others], outcome="failed")
    assert "task 0: no majority" in _problems([*a.all, *b.all, alone, rival, *second])


def test_a_failed_task_is_reported_with_its_results() -> None:
    tried = [replica(JOB, n, content=b"%d" % n) for n in (3, 4, 5, 6, 7)]
    failed = [verdict(JOB, s, [], others=tried, outcome="failed") for s in (0, 1)]
    evidence = [*(s for r in tried for s in r.all), *failed, *_task(1)[2]]
    report = check(build(JOB, evidence, _settlement(evidence, 1, 1)), verify)
    assert report.problems == ()
    assert (report.tasks[0].outcome, report.tasks[0].outputs) == ("failed", ())
    assert [r.agreed for r in report.tasks[0].replicas] == [False] * 5
    without = [s for s in evidence if s not in tried[4].all]
    problems = check(build(JOB, without, _settlement(without, 1, 1)), verify).problems
    assert any("task 0: no majority" in p for p in problems), "a failure must be shown, like a success"


def test_a_fault_excludes_its_workers_result() -> None:
    a, again = replica(JOB, 3), replica(JOB, 3, content=b"changed")
    first, second = sorted((a.commit, again.commit), key=lambda s: s.id)
    fault = make(Fault(ID, 0, pid(3), first.envelope, second.envelope), 0)
    assert "task 0: no majority" in _problems([*EVIDENCE, fault])
    assert "its worker committed twice to one task" in _problems([*EVIDENCE, again.commit])


def test_the_list_of_problems_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "PROBLEMS_MAX", 3)
    assert len(check(_sealed([JOB.envelope] + [b"x"] * 10), verify).problems) == 3
    strangers = [replica(JOB, n).commit for n in range(20, 30)]
    assert len(check(build(JOB, strangers, _settlement(strangers)), verify).problems) == 3


def test_the_digest_of_the_evidence_does_not_depend_on_its_order() -> None:
    assert evidence_digest(EVIDENCE) == evidence_digest([*reversed(EVIDENCE), EVIDENCE[0]])
    state = ShardState(ID, JOB.body, 0)
    for statement in EVIDENCE:
        state.add(statement)
    assert evidence_digest(EVIDENCE) == state.summary()[1]
