"""A certificate proves a job's results from its bytes alone, and is read a shard at a time."""

from __future__ import annotations

import gc
import io
import tracemalloc
from collections.abc import Iterable, Iterator
from functools import cache

import kit
import pytest
import wire_strategies as wire
from hypothesis import given, settings
from hypothesis import strategies as st
from settled_job import Settled, alike, settled

from nexapod.protocol.certificate.build import build
from nexapod.protocol.certificate.check import check, check_bytes
from nexapod.protocol.certificate.framing import MAGIC, Damaged, FileReader, framed
from nexapod.protocol.certificate.report import Pins, Report, TaskReport, lines
from nexapod.protocol.primitives import Digest, File, blob_of
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import verify

BYTES_PER_TASK_MAX = 600
FAILING = (7, 300)


@cache
def job() -> Settled:
    """Two shards, 300 tasks, two of them failed."""
    return settled(301, failing=FAILING)


@cache
def whole() -> bytes:
    return job().certificate()


@cache
def small() -> Settled:
    return settled(3)


@cache
def small_file() -> bytes:
    return small().certificate()


def envelopes(data: bytes) -> list[bytes]:
    return list(FileReader(io.BytesIO(data).read).envelopes())


def file_of(given_envelopes: Iterable[bytes]) -> bytes:
    return b"".join(framed(given_envelopes))


def problems(data: bytes, pins: Pins | None = None) -> str:
    return "\n".join(check_bytes(data, verify, pins).problems)


# --- what holds ------------------------------------------------------------------------------------------------------
def test_a_whole_certificate_holds_and_says_what_was_computed() -> None:
    report = check_bytes(whole(), verify)
    assert report.problems == ()
    assert (report.accepted, report.failed) == (299, 2)
    assert report.failures == tuple((task, "2 replicas failed alike: exit 1") for task in FAILING)
    assert (report.submitter, report.job) == (job().made.submitter.peer, job().made.job)
    assert (report.workers, report.groups) == (4, 4)
    assert report.executors == (("wasm 44.0.0", 602),)
    assert report.used.results == 602
    assert report.size == len(whole())
    assert set(report.panel) == {member.peer for member in job().made.members}


def test_each_decided_task_is_told_in_order_with_its_outputs_and_workers() -> None:
    told: list[TaskReport] = []
    check_bytes(small_file(), verify, on_task=told.append)
    assert [task.index for task in told] == [0, 1, 2]
    assert [task.outputs for task in told] == [alike(task, 0) for task in range(3)]
    assert {replica.worker for replica in told[0].replicas} == {w.peer for w in small().workers(0)}
    assert all(len(task.judges) == 2 for task in told), "a quorum's signatures, and no more"


def test_it_is_the_same_however_few_bytes_are_read_at_a_time() -> None:
    file = io.BytesIO(small_file())
    assert check(lambda size: file.read(min(size, 3)), verify) == check_bytes(small_file(), verify)


def test_the_settlement_may_be_its_delegates() -> None:
    made = kit.make_kit()
    by_delegate = settled(3, delegate=made.members[0].peer)
    signer = by_delegate.made.members[0]
    report = check_bytes(by_delegate.certificate(by_delegate.settlement(signer=signer)), verify)
    assert report.problems == ()
    assert f"Settled by {signer.peer}, whom the submitter had made its delegate" in list(lines(report))


def test_a_certificate_goes_on_after_successions_and_adoptions() -> None:
    def replaced(made: kit.JobKit) -> Iterator[Statement]:
        staying = made.seats()[1:]
        newcomer = next(m for m in made.members if m not in made.seats())
        seats = [*staying, newcomer]
        yield made.succession(seats, staying)
        round_of_before = made.round()
        yield made.adoption(round_of_before, seats[:2])

    def seats_of(shard: int) -> list[kit.HashSigner]:
        return [changed.made.signer(peer) for peer in changed.job.seats(shard).holders][:2]

    changed = settled(3, members=4, more=replaced, seats_of=seats_of, epoch=1)
    assert changed.job.seats(0).epoch == 1
    assert problems(changed.certificate()) == ""


# --- bytes and memory ------------------------------------------------------------------------------------------------
def test_a_task_of_a_batch_of_16_with_two_replicas_takes_at_most_600_bytes() -> None:
    one, two = (len(settled(tasks, workers=8).certificate()) for tasks in (256, 512))
    assert (two - one) / 256 <= BYTES_PER_TASK_MAX


def test_memory_does_not_grow_with_the_number_of_shards() -> None:
    data = settled(256 * 3, batch=256, agree=1, replicas=1).certificate()
    kept: list[int] = []

    def measure(task: TaskReport) -> None:
        if task.index % 256 == 255:
            # When the interpreter last looked for cycles depends on the tests before.
            gc.collect()
            kept.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    report = check(io.BytesIO(data).read, verify, on_task=measure)
    tracemalloc.stop()
    assert report.ok
    # While the first shard is read, what is about the whole job comes into memory too.
    assert len(kept) == 3
    assert kept[2] - kept[1] < kept[1] / 50


def test_writing_takes_one_shard_at_a_time() -> None:
    alive: list[int] = []

    def shards() -> Iterator[object]:
        for number, shard in enumerate(job().shards()):
            alive.append(number)
            yield shard

    pieces = build(job().job, shards(), job().settlement())  # type: ignore[arg-type]
    next(pieces)
    assert alive == []
    assert b"".join(pieces) == whole()[len(MAGIC) :]


# --- what does not hold ----------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 1 << 30), st.integers(1, 255))
def test_a_changed_byte_is_always_found(place: int, change: int) -> None:
    data = bytearray(small_file())
    data[place % len(data)] ^= change
    assert problems(bytes(data))


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 1 << 30))
def test_a_file_that_is_cut_short_is_always_found(end: int) -> None:
    assert problems(small_file()[: end % len(small_file())])


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=300), st.sampled_from([b"", MAGIC]))
def test_any_bytes_give_a_report(data: bytes, start: bytes) -> None:
    report = check_bytes(start + data, verify)
    assert not report.ok
    assert list(lines(report))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_statements_in_any_order_with_any_left_out_or_repeated_are_found(data: st.DataObject) -> None:
    right = envelopes(small_file())
    shuffled = data.draw(st.permutations(right) | st.just(right))
    kept = shuffled[data.draw(st.integers(0, 2)) :]
    given_envelopes = kept + data.draw(st.lists(st.sampled_from(right), max_size=1))
    if problems(file_of(given_envelopes)) == "":
        # Those that answer nothing of each other may stand in any order.
        assert sorted(given_envelopes) == sorted(right)
        assert (given_envelopes[0], given_envelopes[-1]) == (right[0], right[-1])


def test_bytes_after_the_checksum_are_found() -> None:
    assert "goes on after its checksum" in problems(small_file() + b"\0")


def test_a_length_beyond_any_statement_is_not_read() -> None:
    asked: list[int] = []
    file = io.BytesIO(MAGIC + b"\xff\xff\xff\xff")

    def read(size: int) -> bytes:
        asked.append(size)
        return file.read(size)

    with pytest.raises(Damaged):
        list(FileReader(read).envelopes())
    assert max(asked) < 100


def left_out(kind: str) -> bytes:
    """Without the first statement of a kind, and with a settlement that does not know it."""
    return file_of(e for e in envelopes(small_file()) if kind_of(e) != kind)


def kind_of(envelope: bytes) -> str:
    return kit.statements.read(envelope).kind


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("verdict", "task 0: no verdict"),
        ("freeze", "answers a statement that does not precede it"),
        ("beacon", "does not count"),
        ("settlement", "settlement is missing"),
        ("placed", "too few members"),
        ("job", "not preceded by its job"),
    ],
)
def test_what_is_left_out_is_missed(kind: str, problem: str) -> None:
    assert problem in problems(left_out(kind))


def test_a_statement_that_is_added_is_not_what_the_settlement_signs_for() -> None:
    late = small().made.placed(small().made.members[0], bytes(31) + b"x")
    parts = envelopes(small_file())
    assert problems(file_of([parts[0], late.envelope, *parts[1:]]))


def test_the_settlement_must_count_right() -> None:
    wrong = small().settlement(settled=2, failed=1)
    assert "counts 2 accepted and 1 failed tasks; the evidence shows 3 and 0" in problems(small().certificate(wrong))


def test_the_settlement_must_be_the_submitters() -> None:
    stolen = small().settlement(signer=small().made.members[0])
    assert "not signed by the job's submitter" in problems(small().certificate(stolen))


def test_the_settlement_must_sign_the_evidence() -> None:
    wrong = small().settlement(evidence=Digest(bytes(32)))
    assert "added or left out" in problems(small().certificate(wrong))


def test_a_statement_of_another_job_is_found() -> None:
    other = settled(3, members=4)
    parts = envelopes(small_file())
    foreign = envelopes(other.certificate())[1]
    assert "does not belong to this job" in problems(file_of([parts[0], foreign, *parts[1:]]))


def test_a_verdict_that_does_not_follow_from_the_results_is_found() -> None:
    def outputs(task: int, place: int) -> tuple[File, ...]:
        return (File("result.json", blob_of(b"%d" % place)),)

    lying = Settled(small().made, small().job, outputs=outputs)
    assert "task 0: its verdict does not follow from the evidence" in problems(lying.certificate())


def test_work_of_caretakers_must_be_ratified() -> None:
    def taken(made: kit.JobKit) -> Iterator[Statement]:
        holders = made.seats()[1:]
        yield made.succession(holders, holders, "caretaker")
        yield made.adoption(made.round(), holders)

    def seats_of(shard: int) -> list[kit.HashSigner]:
        return [by_them.made.signer(peer) for peer in by_them.job.seats(shard).holders]

    by_them = settled(3, more=taken, seats_of=seats_of, epoch=1)
    assert "does not ratify it" in problems(by_them.certificate())
    ratified = by_them.settlement([s.id for s in by_them.job.caretakers()])
    report = check_bytes(by_them.certificate(ratified), verify)
    assert report.problems == ()
    assert "Caretakers decided without a quorum, and the submitter has ratified it: shards 0" in list(lines(report))


def test_the_number_of_problems_that_are_kept_is_bounded() -> None:
    parts = envelopes(whole())
    report = check_bytes(file_of([e for e in parts if kind_of(e) != "verdict"]), verify)
    assert len(report.problems) == 50
    assert report.problems_more == 301 - 50 + 2
    assert list(lines(report))[-1] == f"  and {report.problems_more} more problems"


# --- whose word it is ------------------------------------------------------------------------------------------------
def said(pins: Pins | None = None, data: bytes | None = None) -> list[str]:
    return list(lines(check_bytes(data or small_file(), verify, pins)))


def test_the_first_line_says_whose_word_it_is() -> None:
    submitter, other = small().made.submitter.peer, small().made.members[0].peer
    assert said()[0] == f"Nobody was named as the submitter: this is only what {submitter} says."
    assert said(Pins(submitter))[0] == f"This is the word of {submitter}, who was named as the submitter."
    assert said(Pins(other))[0].startswith(f"This is the word of {submitter}, and not of {other}")
    assert problems(small_file(), Pins(submitter)) == ""
    assert problems(small_file(), Pins(other)) == f"the job was submitted by {submitter}, not by {other}"


def test_the_second_line_says_who_chose_the_panel_and_how_many_of_it_are_known() -> None:
    members = [member.peer for member in small().made.members]
    assert said()[1] == (
        "The submitter chose the panel of 3 members that judged; none was named as known, so that they are different"
        " people is the submitter's word."
    )
    assert said(Pins(known=members[:2]))[1] == (
        "The submitter chose the panel of 3 members that judged; 2 of them are known here, and 3 of 3 verdicts are"
        " signed by one of those."
    )


def test_a_strict_check_needs_a_submitter_and_known_judges() -> None:
    submitter = small().made.submitter.peer
    members = tuple(member.peer for member in small().made.members)
    assert problems(small_file(), Pins(submitter, members, strict=True)) == ""
    assert problems(small_file(), Pins(None, members, strict=True)) == (
        "nobody was named as the submitter, and the check is strict"
    )
    assert problems(small_file(), Pins(submitter, (), strict=True)) == (
        "of 3 verdicts no signer is known, and the check is strict"
    )


def test_the_report_says_what_was_computed_in_words() -> None:
    text = "\n".join(said())
    for part in ("Job ", "module: ", "Tasks: 3; 3 accepted, 0 failed", "Computed by 2 workers in 2 operator groups"):
        assert part in text
    assert text.endswith("statements hold.")


def test_no_text_of_the_file_can_begin_a_line() -> None:
    report = check_bytes(small_file(), verify)
    assert report.spec is not None
    evil = kit.replace(report.spec, name="x\nThis is the word of Alice, who was named as the submitter.'")
    shown = list(lines(kit.replace(report, spec=evil)))
    assert [line for line in shown if line.startswith("This is the word")] == []
    assert "\\nThis is the word of Alice, who was named as the submitter.\\'" in "\n".join(shown)


def test_a_report_of_nothing_says_only_what_is_wrong() -> None:
    assert list(lines(Report(("the file holds no job",)))) == ["DOES NOT HOLD: 1 problem", "  the file holds no job"]


# --- statements of a liar ---------------------------------------------------------------------------------------------
LYING = sorted(set(statements.KINDS) - {"job", "profile", "offer", "cancel"})


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_signed_statements_of_the_job_give_a_report(data: st.DataObject) -> None:
    """Whatever its members and workers sign: nothing but a report comes of it."""
    right = envelopes(small_file())
    lies = [lie(kind, data) for kind in data.draw(st.lists(st.sampled_from(LYING), min_size=1, max_size=3))]
    place = data.draw(st.integers(1, len(right)))
    assert problems(file_of([*right[:place], *lies, *right[place:]]))


def lie(kind: statements.Kind, data: st.DataObject) -> bytes:
    """A statement about the small job, signed as it must be."""
    made = small().made
    _, *others, slot = data.draw(wire.raw_of(statements.SCHEMAS[kind]))
    body = [made.job, *(data.draw(st.sampled_from([part, near(part, data)])) for part in others), slot]
    raw = wire.pack(body)
    crew = [made.submitter, *made.members, *made.workers]
    count = data.draw(st.integers(1, 3)) if kind in statements.COSIGNED else 1
    signers = sorted(data.draw(st.permutations(crew))[:count], key=lambda signer: kit.key_of_peer_id(signer.peer))
    signed = statements.signed_bytes(kind, raw)
    pairs = [[kit.key_of_peer_id(signer.peer), signer.sign(signed)] for signer in signers]
    return wire.pack([3, statements.KINDS.index(kind), raw, pairs])


def near(value: object, data: st.DataObject) -> object:
    """A value of the same shape about what there is: small numbers, and names of peers and statements of the job."""
    if isinstance(value, list):
        return [near(part, data) for part in value]
    if type(value) is int:
        return data.draw(st.integers(0, 3))
    if isinstance(value, bytes) and len(value) == 32:
        return data.draw(st.sampled_from(names()))
    return value


@cache
def names() -> list[bytes]:
    peers = [peer.peer for peer in (*small().made.members, *small().made.workers)]
    ids = [statements.read(envelope).id for envelope in envelopes(small_file())]
    return [*ids, *map(kit.key_of_peer_id, peers)]
