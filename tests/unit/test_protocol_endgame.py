"""The end of a job, and of a worker: nobody waits for one who does not work, and one who leaves takes nothing new."""

from __future__ import annotations

from protocol_kit import MODULE, Mesh, context, job, job_spec, pid, replica, said, same_result

from nexapod.protocol import limits
from nexapod.protocol.events import Drain, Submit
from nexapod.protocol.messages import Held, Renew, Status
from nexapod.protocol.steward import Steward
from nexapod.protocol.types import JobId, PeerId, RunResult
from nexapod.protocol.types import Run as RunSpec

HOARDER = 4


def submit(mesh: Mesh, tasks: int) -> JobId:
    mesh.blobs[pid(0)].add(MODULE)
    mesh.do(0, Submit(job_spec(run=RunSpec("wasm", module=MODULE), tasks=tasks)))
    return next(iter(mesh.nodes[pid(0)].submissions))


def settled(mesh: Mesh, job: JobId) -> int:
    return len(mesh.nodes[pid(0)].submissions[job].decided)


def test_a_worker_that_never_ends_its_task_holds_the_job_up_for_seconds_only() -> None:
    mesh = Mesh(range(5))
    mesh.result = lambda peer, run: None if peer == pid(HOARDER) else same_result(run)
    name = submit(mesh, tasks=6)
    assert mesh.run(3 * limits.LATE_MIN_MS, lambda: settled(mesh, name) == 6)
    assert mesh.traces("late")
    assert not mesh.running[pid(HOARDER)]  # its stewards told it that nobody waits any more


def test_a_late_worker_is_given_company_only_when_nothing_else_is_left_to_do() -> None:
    mesh = Mesh(range(4), silent=(1, 2))
    hoarded: list[PeerId] = []

    def one_hangs(peer: PeerId, run: object) -> RunResult | None:
        if peer == pid(0) and not hoarded:
            hoarded.append(peer)
            return None
        return same_result(run)  # type: ignore[arg-type]

    mesh.result = one_hangs
    submit(mesh, tasks=4)
    # Two workers, two results a task: the tasks that the hanging one has not done are open to it all the while.
    mesh.run(3 * limits.LATE_MIN_MS)
    assert hoarded
    assert not mesh.traces("late")


def test_a_committed_worker_whose_lease_ran_out_while_it_was_away_is_asked_to_reveal_when_it_is_back() -> None:
    of = job()
    ctx = context()
    steward = Steward(ctx, of, 0)
    steward.reconsider()
    first, away = replica(of, 3), replica(of, 4)
    for statement in (first.bid, away.bid, away.commit):
        steward.add(statement, statement.author)
    steward.worker_lost(pid(4))
    ctx.now += limits.LOST_LINK_MS
    steward.tick()
    assert pid(4) not in steward.desks[0].leases
    steward.add(first.commit, pid(3))
    said(ctx)
    steward.on_renew(pid(4), Renew(JobId(of.id), 0, (Held(0, "committed", away.bid.id, 1000),)))
    told = [status for message in said(ctx, 4) if isinstance(message, Status) for status in message.tasks]
    assert told[-1].standing == "reveal"
    assert told[-1].envelopes == (first.commit.envelope,)


def test_a_worker_that_drains_gives_back_what_it_has_not_begun_and_ends_what_it_runs() -> None:
    mesh = Mesh(range(4))
    mesh.result = lambda peer, run: None if peer == pid(3) else same_result(run)
    name = submit(mesh, tasks=3)
    assert mesh.run(1_000, lambda: bool(mesh.running[pid(3)]))
    (task,) = mesh.running[pid(3)]
    worker = mesh.nodes[pid(3)].worker
    mesh.do(3, Drain())
    assert [a.task for a in worker.attempts.values()] == [task]
    mesh.run(500)
    mesh.finish(3, same_result(mesh.running[pid(3)][task]))
    assert mesh.run(limits.LATE_MIN_MS, lambda: not worker.attempts and settled(mesh, name) == 3)
    judged = [e for p, e in mesh.traces("result_judged") if p == pid(3)]
    assert judged
    assert {(e.facts["task"], e.facts["agreed"]) for e in judged} == {(task.index, True)}
