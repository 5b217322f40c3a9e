"""nexapod.protocol.worker: slots, choosing, health, inputs and what can be stated. Plain values."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kit import JobKit, blob, make_kit
from worker_bench import a_context, a_profile, state_of, unable

from nexapod.protocol import limits
from nexapod.protocol.primitives import File, JobId, Part, PeerId, TaskId
from nexapod.protocol.rules.matching import YES, Policy, accepts, satisfies
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import Executor, Gpu, Limits, Requires, Run, Usage
from nexapod.protocol.wire import statements
from nexapod.protocol.worker import results, slots
from nexapod.protocol.worker.attempt import Committed
from nexapod.protocol.worker.choosing import Candidate, deal
from nexapod.protocol.worker.claiming import differs
from nexapod.protocol.worker.health import (
    AUTHOR_ROW_MAX,
    REST_MS,
    ROW_MAX,
    TRIES_MAX,
    Health,
    ItFailed,
    TryElsewhere,
)
from nexapod.protocol.worker.inputs import FAILURES_MAX, Inputs, parts_of
from nexapod.protocol.worker.prospects import Prospect
from nexapod.protocol.worker.slots import AHEAD_MS, Load

A, B = PeerId("A"), PeerId("B")
JOBS = [JobId(bytes([n]) * 32) for n in range(8)]


# --- slots ---------------------------------------------------------------------------------------------------------
def _load(expected_ms: int, since: int | None, submitter: PeerId = A) -> Load:
    return Load(JOBS[0], submitter, expected_ms, since)


@pytest.mark.parametrize(
    ("expected_ms", "since", "taken"),
    [
        (0, None, AHEAD_MS),
        (0, 0, AHEAD_MS),
        (100, None, 100),
        (100, 940, 100),
        (100, 700, 300),
        (2_000, 1_000 - 900, 1_100),
        (3_600_000, 900, AHEAD_MS),
        (1_000, 1_000 - 900, 1_000),
        (10, 0, 1_000),
    ],
)
def test_a_task_takes_of_the_next_moments_what_is_left_of_it(expected_ms: int, since: int | None, taken: int) -> None:
    assert slots.load_ms(_load(expected_ms, since), now=1_000) == taken


def test_a_long_task_opens_its_slot_shortly_before_it_should_end() -> None:
    loads = [_load(60_000, 1_000)]
    assert slots.room_ms(a_profile(1), loads, 2_000) == 0
    opens = slots.opens_at(loads, 2_000)
    assert opens == 61_000 - AHEAD_MS + 1
    assert slots.room_ms(a_profile(1), loads, opens) == 1
    assert slots.opens_at(loads, opens) is None


def test_a_granted_task_is_surplus_when_it_would_wait_long() -> None:
    assert not slots.is_surplus(0, 1, 1)
    assert slots.is_surplus(0, 0, 1)
    assert slots.is_surplus(60_000, -5, 4)
    assert not slots.is_surplus(20, 0, 1)
    assert slots.is_surplus(20, -AHEAD_MS, 1)


def test_cores_memory_and_gpus_bound_what_runs_at_once() -> None:
    spec = make_kit().spec
    four = replace(spec, limits=Limits(cpus_milli=1000, memory=3 << 30))
    assert slots.room_for(a_profile(), four, []) == 2
    assert slots.room_for(a_profile(), four, [four, four]) == 0
    large = replace(spec, limits=Limits(memory=1 << 40))
    assert slots.room_for(a_profile(), large, []) == 1, "the first fits whatever its share"
    gpu = replace(spec, limits=Limits(gpus=1))
    assert slots.room_for(a_profile(gpus=(Gpu("H200", 1), Gpu("H200", 1))), gpu, [gpu]) == 1


# --- choosing ------------------------------------------------------------------------------------------------------
def _candidate(n: int, submitter: PeerId, priority: int = 0, most: int = 64, room_ms: int = 1 << 30) -> Candidate:
    return Candidate(JOBS[n], submitter, priority, AHEAD_MS, room_ms, ((0, most), (1, most)))


def test_submitters_share_whatever_their_priorities() -> None:
    jobs = [_candidate(0, A, 10), _candidate(1, A, 10), _candidate(2, B, -10)]
    dealt = deal(jobs, {}, 4 * AHEAD_MS)
    assert dealt == {(JOBS[0], 0): 2, (JOBS[2], 0): 2}


def test_who_is_already_worked_for_waits() -> None:
    dealt = deal([_candidate(0, A), _candidate(1, B)], {A: 2 * AHEAD_MS}, 2 * AHEAD_MS)
    assert dealt == {(JOBS[1], 0): 2}


def test_priority_decides_among_the_jobs_of_one_submitter() -> None:
    assert deal([_candidate(0, A, -1), _candidate(1, A, 1)], {}, AHEAD_MS) == {(JOBS[1], 0): 1}


def test_what_a_job_cannot_use_goes_to_the_next() -> None:
    jobs = [_candidate(0, A, 1, room_ms=AHEAD_MS), _candidate(1, A)]
    assert deal(jobs, {}, 3 * AHEAD_MS) == {(JOBS[0], 0): 1, (JOBS[1], 0): 2}
    assert deal([_candidate(0, A, most=1)], {}, 9 * AHEAD_MS) == {(JOBS[0], 0): 1, (JOBS[0], 1): 1}
    assert deal([], {}, AHEAD_MS) == deal([_candidate(0, A, most=0)], {}, AHEAD_MS) == {}


# --- matching ------------------------------------------------------------------------------------------------------
def test_a_machine_says_why_it_does_not_fit() -> None:
    spec = make_kit().spec
    assert satisfies(a_profile(), spec) == YES
    for profile, job, reason in [
        (a_profile(network="other"), spec, "it belongs to the network net"),
        (a_profile(slots=0), spec, "takes no tasks"),
        (a_profile(executors=()), spec, "has no wasm executor"),
        (a_profile(), replace(spec, requires=Requires(arch=("arm",))), "its architecture is not arm"),
        (a_profile(), replace(spec, requires=Requires(memory=9 << 30)), "has less than 9216 MiB of memory"),
        (a_profile(), replace(spec, limits=Limits(cpus_milli=4_001)), "has fewer than 5 cores"),
        (a_profile(), replace(spec, limits=Limits(gpus=1)), "has fewer than 1 fitting GPUs"),
        (a_profile(disk_free=0), spec, "has less than 32 MiB of free disk"),
    ]:
        decision = satisfies(profile, job)
        assert (decision.ok, decision.reason) == (False, reason)
    image = replace(spec, run=Run("docker", image="sha256:" + "0" * 64))
    docker = a_profile(executors=(Executor("docker", "1"),))
    assert satisfies(docker, image).reason == "does not hold the container image"
    named = replace(spec, run=Run("docker", image="example.org/x@sha256:" + "0" * 64))
    assert satisfies(docker, named).reason == "does not pull container images from example.org"
    assert not accepts(Policy(submitters=frozenset()), A).ok


# --- whose fault ---------------------------------------------------------------------------------------------------
def test_a_job_that_never_ran_here_is_charged_itself_and_stops_no_other() -> None:
    health = Health()
    for index in range(ROW_MAX):
        assert health.failed(TaskId(JOBS[0], index), A, unable(), 0, alone=False) == TryElsewhere("job")
    assert health.rests_until(JOBS[0], A) == REST_MS
    assert health.rests_until(JOBS[1], A) == health.machine_rests_until == 0


def test_an_author_whose_jobs_all_fail_rests() -> None:
    health = Health()
    for index in range(AUTHOR_ROW_MAX):
        health.failed(TaskId(JOBS[index % 8], index), A, unable(), 0, alone=True)
    assert health.rests_until(JOBS[7], A) == REST_MS
    assert health.rests_until(JOBS[7], B) == 0


def test_jobs_that_ran_here_before_and_now_do_not_show_that_the_machine_is_ill() -> None:
    health = Health()
    for job, author in ((JOBS[0], A), (JOBS[1], B)):
        health.succeeded(job, author)
    for index in range(ROW_MAX):
        blame = health.failed(TaskId(JOBS[index % 2], index), (A, B)[index % 2], unable(), 7, alone=False)
        assert blame == TryElsewhere("machine")
    assert health.machine_rests_until == 7 + REST_MS
    assert health.rests_until(JOBS[0], A) == 0


def test_one_author_alone_never_stops_a_machine_that_others_want() -> None:
    health = Health()
    health.succeeded(JOBS[0], A)
    for index in range(4 * ROW_MAX):
        health.failed(TaskId(JOBS[0], index), A, unable(), 0, alone=False)
    assert health.machine_rests_until == 0
    health.failed(TaskId(JOBS[0], 99), A, unable(), 0, alone=True)
    assert health.machine_rests_until == REST_MS


def test_a_task_that_does_not_start_twice_has_failed_and_so_have_its_fellows_at_once() -> None:
    health = Health()
    first = TaskId(JOBS[0], 0)
    assert health.failed(first, A, unable(reason="it does not compile"), 0, alone=True) == TryElsewhere("job")
    assert health.failed(first, A, unable(reason="it does not compile"), 1, alone=True) == ItFailed(
        "it could not be run: it does not compile"
    )
    assert isinstance(health.failed(TaskId(JOBS[0], 1), A, unable(), 2, alone=True), ItFailed)


def test_a_task_that_starts_is_tried_oftener_and_one_that_asks_for_another_machine_too() -> None:
    for result in (unable(wall_ms=5), unable(75)):
        health = Health()
        blames = [health.failed(TaskId(JOBS[0], 0), A, result, 0, alone=True) for _ in range(TRIES_MAX)]
        assert blames[:-1] == [TryElsewhere("job")] * (TRIES_MAX - 1)
        assert isinstance(blames[-1], ItFailed)


def test_a_task_that_asks_for_another_machine_is_never_the_machines_fault() -> None:
    health = Health()
    health.succeeded(JOBS[0], A)
    assert health.failed(TaskId(JOBS[0], 0), A, unable(75), 0, alone=True) == TryElsewhere("job")
    health.forget_job(JOBS[0])


# --- inputs --------------------------------------------------------------------------------------------------------
def _prospect(kit: JobKit) -> Prospect:
    return Prospect(state_of(kit), YES, turn=0)


def test_inputs_are_fetched_once_and_tried_again_ever_more_rarely() -> None:
    kit = make_kit()
    ctx = a_context(kit.workers[0], now=0)
    inputs, prospect = Inputs(ctx), _prospect(kit)
    [part] = parts_of(kit.spec)
    inputs.want(prospect, 0)
    inputs.want(prospect, 0)
    assert len(ctx.effects) == 1
    assert not inputs.are_here(prospect)
    waits, hopeless = [], []
    for _ in range(FAILURES_MAX):
        hopeless = inputs.failed(part)
        assert inputs.deadline is not None
        waits.append(inputs.deadline - ctx.now)
        ctx.now = inputs.deadline
        inputs.tick()
    assert waits == [limits.FETCH_RETRY_MS << n for n in range(FAILURES_MAX)]
    assert hopeless == [kit.job]
    ctx.blob_stored(part)
    assert inputs.ready(part)
    assert inputs.are_here(prospect)
    inputs.forget_job(kit.job)
    assert ctx.pinned() == frozenset()
    assert not inputs.ready(Part.whole(blob(b"other")))


# --- results -------------------------------------------------------------------------------------------------------
def test_outputs_that_no_peer_would_take_become_a_failure_with_the_reason() -> None:
    task = TaskId(JOBS[0], 0)
    twice = (File("a", blob(b"1")), File("a", blob(b"2")))
    hidden = (File("a\u200bb", blob(b"1")),)
    for files, why in ((twice, "twice"), (hidden, "forbidden")):
        stated = results.presentable(task, RunResult("ok", 0, files))
        assert (stated.outcome, stated.exit, stated.files) == ("failed", results.EXIT_FAILED, ())
        assert why in stated.reason


def test_what_a_result_says_is_cut_and_cleaned() -> None:
    result = RunResult("ok", 1 << 40, (File("b", blob(b"")), File("a", blob(b""))), log="\x1b" + "x" * 10_000)
    stated = results.presentable(TaskId(JOBS[0], 0), result)
    assert [file.path for file in stated.files] == ["a", "b"]
    assert stated.log.startswith("?x")
    assert len(stated.log) == limits.LOG_TAIL_MAX
    assert stated.exit < 1 << 31
    assert results.presentable(TaskId(JOBS[0], 0), replace(result, outcome="failed")).files == ()


def test_reveals_are_packed_into_as_few_statements_as_fit() -> None:
    kit = make_kit(tasks=256)
    files = tuple(File(f"{n:02}/" + "p" * 200, blob(b"")) for n in range(limits.OUTPUT_FILES_MAX))
    result = RunResult("ok", 0, files, Usage(), "x" * 2_000)
    items = [
        results.reveal_item(TaskId(kit.job, n), Committed(result, bytes(16), None, kit.job_statement)) for n in range(5)
    ]
    bodies = results.reveals(kit.job, 0, kit.spec, a_profile(), items)
    assert [item.task for body in bodies for item in body.items] == [0, 1, 2, 3, 4]
    assert [len(body.items) for body in bodies] == [3, 2]
    for body in bodies:
        statements.check_body(body)


@pytest.mark.parametrize(
    ("room", "known", "holding", "full", "says"),
    [
        (0, 0, 5, True, False),
        (1, 0, 5, False, True),
        (0, 1, 5, False, True),
        (0, 1, 5, True, False),
        (0, 2, 6, True, False),
        (0, 3, 2, True, True),
        (3, 2, 2, False, False),
        (4, 2, 2, False, True),
        (2, 4, 0, False, True),
        (7, 8, 0, False, False),
    ],
)
def test_room_is_said_again_when_it_is_clearly_another(
    room: int, known: int, holding: int, full: bool, says: bool
) -> None:
    assert differs(room, known, holding, full=full) is says
