"""What a node tells of itself: tasks, jobs, tables."""

from __future__ import annotations

from nexapod.protocol import limits
from nexapod.protocol.events import AskShard, AskTask, Submit
from nexapod.protocol.notices import JobSettled, TaskViewed
from nexapod.protocol.tables import TableReport, fullest, in_turn
from tests.protocol.mesh import Mesh, job_of, job_spec


def working_mesh(*, run_ms: int = 2_000, tasks: int = 4) -> Mesh:
    mesh = Mesh(4, run_ms=run_ms)
    mesh.start()
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(tasks=tasks), accept_unknown=True))
    mesh.run_for(1_000)
    return mesh


def test_a_task_that_runs_is_reported_with_its_workers() -> None:
    mesh = working_mesh()
    job = job_of(mesh[0])
    mesh.give(mesh.names[0], AskShard(job, 0))
    mesh.run_for(100)
    viewed = mesh[0].noticed(TaskViewed)
    assert {notice.task for notice in viewed} == {0, 1, 2, 3}
    report = mesh[0].node.task_report(job, 0)
    assert report is not None
    assert report.standing == "running"
    assert {replica.outcome for replica in report.replicas} == {"running"}
    assert mesh[0].node.job_report(job).submission.running == 4
    mesh.give(mesh.names[0], AskTask(job, 0))
    mesh.run_for(100)
    assert len(mesh[0].noticed(TaskViewed)) == len(viewed), "what is no news is not told again"


def test_a_decided_task_is_reported_with_each_result_and_its_judges() -> None:
    mesh = working_mesh(run_ms=50)
    job = job_of(mesh[0])
    assert mesh.run_until(lambda: bool(mesh[0].noticed(JobSettled)))
    mesh.run_for(1_000)
    for peer in mesh.names[:2]:
        reports = mesh.peers[peer].node.task_reports(job, range(1, 9))
        assert [report.task for report in reports] == ([1, 2, 3] if peer == mesh.names[0] else [])
    report = mesh[0].node.task_report(job, 2)
    assert report is not None
    assert report.standing == "accepted"
    assert report.progress == 1000
    assert len(report.replicas) == 2
    assert all(r.agrees and r.outcome == "ok" and r.root == report.root and r.usage for r in report.replicas)
    assert len(report.judges) >= 2
    assert report.outputs == report.replicas[0].outputs


def test_a_job_is_reported_with_what_its_user_wants_to_know() -> None:
    mesh = working_mesh()
    job = job_of(mesh[0])
    report = mesh[0].node.job_report(job)
    assert report is not None
    assert report.submission is not None
    assert report.spec.tasks == 4
    assert report.submission.rests_on
    assert report.submission.held_least == (2, 2)
    node = mesh[1].node.report()
    assert node.profile is not None
    assert node.steward_shards == 1
    assert all(peer.lately for peer in node.links)
    assert mesh[1].node.addrs(mesh.names[0])


def test_every_table_is_reported_within_its_bound() -> None:
    mesh = working_mesh()
    tables = {table.name: table for table in mesh[1].node.report().tables}
    assert tables["peers known"] == TableReport("peers known", 3, limits.DIRECTORY_MAX)
    assert tables["open jobs"].size == 1
    assert tables["workers admitted"].size == 4
    assert tables["claims"].size == 4
    assert all(table.size <= table.most for table in tables.values())


def test_of_tables_alike_the_one_with_the_least_room_is_told() -> None:
    one, other = TableReport("bids", 5, 100), TableReport("bids", 3, 10)
    assert fullest([[one], [other]]) == (other,)


def test_in_time_every_machine_is_looked_at() -> None:
    machines = list(range(11))
    seen = {machine for turn in range(11) for machine in in_turn(machines, 4, turn)}
    assert seen == set(machines)
    assert all(len(in_turn(machines, 4, turn)) == 4 for turn in range(11))
    assert in_turn(machines[:3], 4, 7) == [0, 1, 2]
