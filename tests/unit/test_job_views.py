"""What the API shows of jobs, tasks and peers is what the core reports: with real nodes in memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from pydantic import TypeAdapter

from nexapod.api import models
from nexapod.daemon import job_views, peer_views, why
from nexapod.daemon.job_events import event_of
from nexapod.daemon.node_metrics import node_metrics
from nexapod.protocol.events import AskShard, AskTask, CancelJob, Pause, PeerUp, Progressed, Submit
from nexapod.protocol.notices import JobAccepted, JobLearned, JobSettled, TaskFailing
from nexapod.protocol.primitives import JobId, TaskId, blob_of
from nexapod.protocol.report import JobReport, TaskReport
from nexapod.protocol.runs import RunResult
from nexapod.sim.keys import HashSigner
from tests.protocol import mesh as meshes
from tests.protocol.mesh import Mesh, job_of, job_spec

LOG = "reading input\ngrpe: not found"


def submitted(count: int = 4, *, tasks: int = 2, run_ms: int = 10_000) -> tuple[Mesh, JobId]:
    """A mesh whose first peer has just submitted a job."""
    mesh = Mesh(count, run_ms=run_ms)
    mesh.start()
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(tasks=tasks), accept_unknown=True))
    return mesh, job_of(mesh[0])


def report(mesh: Mesh, job: JobId, number: int = 0) -> JobReport:
    found = mesh[number].node.job_report(job)
    assert found is not None
    return found


def tasks_of(mesh: Mesh, job: JobId) -> tuple[TaskReport, ...]:
    return mesh[0].node.task_reports(job, range(256))


def view(mesh: Mesh, job: JobId, number: int = 0) -> dict[str, Any]:
    shown = job_views.job_view(report(mesh, job, number), tasks_of(mesh, job) if number == 0 else ())
    models.JobView.model_validate(shown)
    return shown


def look(mesh: Mesh, job: JobId) -> None:
    """The user asks the seats how the tasks stand, once they are being worked on."""
    mesh.run_for(1_000)
    mesh.give(mesh.names[0], AskShard(job, 0))
    mesh.run_for(200)


def settle(mesh: Mesh) -> None:
    assert mesh.run_until(lambda: bool(mesh[0].noticed(JobSettled)))
    mesh.run_for(1_000)


@pytest.fixture
def mistyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task ends as one whose command has a typo."""

    def result_of(task: TaskId) -> RunResult:
        return RunResult("failed", 127, (), reason="no such file: grpe", log=LOG)

    monkeypatch.setattr(meshes, "result_of", result_of)


# --- jobs and tasks ------------------------------------------------------------------------------------------------
def test_a_job_is_shown_with_its_panel_its_seats_and_what_it_rests_on() -> None:
    mesh, job = submitted()
    (accepted,) = mesh[0].noticed(JobAccepted)
    told = job_views.submitted_view(accepted)  # type: ignore[arg-type]
    models.Submitted.model_validate(told)
    first = view(mesh, job)
    assert (first["state"], first["placed"], first["accepted"]) == ("placing", False, 0)
    look(mesh, job)
    shown = view(mesh, job)
    assert (shown["state"], shown["running"], shown["mine"]) == ("running", 2, True)
    assert shown["rests_on"] == told["rests_on"]
    assert sorted(shown["panel"]) == sorted(told["panel"]) == sorted(mesh.names[1:])
    assert shown["seats"] == [{"shard": 0, "epoch": 0, "holders": shown["seats"][0]["holders"]}]
    assert sorted(shown["placed_on"]) == sorted(mesh.names[1:])
    assert shown["may_leave"]
    assert shown["shards"] == {"total": 1, "placed": 1, "finished": 0}
    assert shown["failing"] is None


@pytest.mark.parametrize(("peers", "may_leave"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_submitter_that_its_stewards_need_may_not_leave(peers: int, may_leave: bool) -> None:
    mesh, job = submitted(peers)
    assert (mesh.names[0] in view(mesh, job)["panel"]) == (peers <= 3)
    assert mesh.run_until(lambda: view(mesh, job)["may_leave"], 5_000) == may_leave
    assert view(mesh, job)["placed"]


def test_another_peers_job_is_shown_without_what_only_its_submitter_knows() -> None:
    mesh, job = submitted()
    mesh.run_for(1_000)
    shown = view(mesh, job, 1)
    assert (shown["state"], shown["mine"], shown["submitter"]) == ("open", False, mesh.names[0])
    assert (shown["accepted"], shown["failed"], shown["running"]) == (None, None, None)
    assert shown["works"]


def test_a_task_that_runs_is_shown_with_its_workers_and_progress() -> None:
    mesh, job = submitted()
    mesh.run_for(1_000)
    for peer in mesh.names:
        for task in mesh.peers[peer].running:
            mesh.give(peer, Progressed(task, 250, "half way"))
    look(mesh, job)
    mesh.give(mesh.names[0], AskTask(job, 0))
    mesh.run_for(200)
    row = view(mesh, job)["task_list"][0]
    assert (row["state"], row["root"], row["judges"]) == ("running", None, [])
    assert sorted(row["workers"]) == sorted(replica["peer"] for replica in row["replicas"])
    assert {replica["exit"] for replica in row["replicas"]} == {None}
    logs = job_views.log_view(tasks_of(mesh, job)[0])
    TypeAdapter(list[models.ReplicaLog]).validate_python(logs)
    assert {(entry["outcome"], entry["exit"]) for entry in logs} == {("running", None)}
    assert "half way" in {entry["log"] for entry in logs}


def test_an_accepted_task_is_shown_with_its_results_its_judges_and_its_files() -> None:
    mesh, job = submitted(run_ms=50)
    settle(mesh)
    shown = view(mesh, job)
    assert (shown["state"], shown["accepted"], shown["running"]) == ("settled", 2, 0)
    row = shown["task_list"][1]
    assert (row["state"], row["progress"], row["workers"]) == ("accepted", 1.0, [])
    assert [(r["outcome"], r["exit"], r["agrees"], r["files"]) for r in row["replicas"]] == [("ok", 0, True, [])] * 2
    assert {replica["root"] for replica in row["replicas"]} == {row["root"]}
    assert set(row["judges"]) <= set(shown["seats"][0]["holders"])
    file = blob_of(b"result of 1")
    results = job_views.results_view(tasks_of(mesh, job), lambda ref: ref == file)
    TypeAdapter(list[models.TaskResult]).validate_python(results)
    assert [result["files"][0]["here"] for result in results] == [False, True]
    assert results[1]["files"][0] == {"path": "out.txt", "ref": str(file), "size": file.size, "here": True}


@pytest.mark.usefixtures("mistyped")
def test_a_result_that_did_not_end_well_is_shown_before_its_task_is_decided() -> None:
    mesh, job = submitted()
    assert mesh.run_until(lambda: bool(mesh[0].noticed(TaskFailing)))
    mesh.run_for(2_000)
    shown = view(mesh, job)
    assert shown["failed"] == 0
    failing = shown["failing"]
    assert (failing["exit"], failing["outcome"], failing["reason"]) == (127, "failed", "no such file: grpe")
    row = shown["task_list"][failing["index"]]
    ended = [replica for replica in row["replicas"] if replica["exit"] is not None]
    assert {(replica["exit"], replica["reason"], replica["log"]) for replica in ended} == {
        (127, "no such file: grpe", LOG)
    }
    assert LOG in [entry["log"] for entry in job_views.log_view(tasks_of(mesh, job)[failing["index"]])]


@pytest.mark.usefixtures("mistyped")
def test_a_failed_task_says_why_and_no_verdict_hides_what_it_printed() -> None:
    mesh, job = submitted()
    settle(mesh)
    row = view(mesh, job)["task_list"][0]
    assert row["state"] == "failed"
    assert row["reason"]
    assert {replica["log"] for replica in row["replicas"] if replica["exit"] is not None} == {LOG}
    assert job_views.results_view(tasks_of(mesh, job), lambda ref: True)[0]["outcome"] == "failed"


def test_nothing_of_a_cancelled_job_is_under_way() -> None:
    mesh, job = submitted()
    mesh.run_for(1_000)
    mesh.give(mesh.names[0], CancelJob(job, "not wanted"))
    mesh.run_for(1_000)
    shown = view(mesh, job)
    assert (shown["state"], shown["running"]) == ("cancelled", 0)


# --- events --------------------------------------------------------------------------------------------------------
def events(mesh: Mesh, job: JobId) -> list[tuple[str, dict[str, Any]]]:
    found = [event_of(notice) for notice in mesh[0].notices]
    return [event for about, event in (each for each in found if each is not None) if about == job]


def test_a_watcher_is_told_of_everything_up_to_the_end() -> None:
    mesh, job = submitted()
    mesh.run_for(1_000)
    mesh.give(mesh.names[0], AskShard(job, 0))
    settle(mesh)
    told = events(mesh, job)
    assert {"placed", "task_changed", "accepted", "stored"} < {name for name, _ in told}
    changed = next(facts for name, facts in told if name == "task_changed")
    assert (changed["state"], changed["progress"]) == ("running", 0.0)
    assert told[-1] == ("closed", {"state": "settled"})


@pytest.mark.usefixtures("mistyped")
def test_a_watcher_is_told_of_the_first_failure_before_the_verdict() -> None:
    mesh, job = submitted()
    settle(mesh)
    names = [name for name, _ in events(mesh, job)]
    assert names.index("failing") < names.index("failed")


def test_what_is_not_about_a_watched_job_is_no_event() -> None:
    assert event_of(JobLearned(JobId(bytes(32)), HashSigner(1, "x").peer)) is None


# --- peers, this node, metrics -------------------------------------------------------------------------------------
def test_peers_are_shown_with_what_is_known_of_them() -> None:
    mesh, _ = submitted()
    mesh.cut(mesh.names[0], mesh.names[3])
    mesh.run_for(5_000)
    rows = peer_views.peers_view(mesh[0].node.peer_reports())
    TypeAdapter(list[models.Peer]).validate_python(rows)
    assert [row["connected"] for row in rows] == [True, True, False]
    gone = rows[2]
    assert (gone["peer_id"], gone["live"]) == (mesh.names[3], True)
    assert 1 <= gone["gone_s"] <= 5
    assert all(row["steward"] and row["slots"] == 4 for row in rows)


def test_the_status_says_what_a_node_does() -> None:
    mesh, _ = submitted()
    mesh.run_for(1_000)
    facts = peer_views.node_facts(mesh[1].node.report())
    assert (facts["connected_peers"], facts["steward_shards"], facts["active_jobs"]) == (3, 1, 1)
    assert facts["leases"] == len(mesh[1].running)
    mesh.give(mesh.names[1], Pause(paused=True))
    assert peer_views.node_facts(mesh[1].node.report())["state"] == "paused"


def test_an_offer_is_shown_and_none_is_none() -> None:
    shown = peer_views.offer_view(meshes.offer())
    models.OfferView.model_validate(shown)
    assert peer_views.offer_view(None) is None
    models.ProfileView.model_validate(peer_views.profile_view(meshes.profile()) | {"offer": shown})


def test_metrics_show_how_full_each_table_is() -> None:
    from nexapod.api.metrics import render

    mesh, _ = submitted()
    mesh.run_for(1_000)
    text = render(node_metrics(mesh[1].node.report()))
    assert "nexapod_steward_shards 1\n" in text
    assert 'nexapod_table_entries{table="open_jobs"} 1\n' in text
    assert 'nexapod_table_entries_max{table="open_jobs"}' in text


# --- why -----------------------------------------------------------------------------------------------------------
def why_text(mesh: Mesh, job: JobId, number: int = 0, alone: list[str] | None = None) -> str:
    node = mesh[number].node
    tasks = tasks_of(mesh, job) if number == 0 else ()
    told = why.why_job(report(mesh, job, number), node.peer_reports(), tasks, alone or [])
    models.Why.model_validate(told)
    return "\n".join(told["sentences"])


@pytest.mark.usefixtures("mistyped")
def test_why_begins_with_the_first_failure_and_what_it_printed() -> None:
    mesh, job = submitted()
    assert mesh.run_until(lambda: report(mesh, job).submission.failing is not None)  # type: ignore[union-attr]
    mesh.run_for(2_000)
    first, second, *_ = why_text(mesh, job).splitlines()
    assert first.startswith("Task ")
    assert "(failed, exit 127): no such file: grpe." in first
    assert second == "It printed at its end: reading input / grpe: not found"
    settle(mesh)
    text = why_text(mesh, job)
    assert text.startswith("The job is settled")
    assert "Task 0 has failed: " in text
    assert "Task 1 has failed: " in text


@pytest.mark.usefixtures("mistyped")
def test_why_says_that_results_which_do_not_agree_wait_for_another_worker() -> None:
    mesh, job = submitted(2)
    assert mesh.run_until(lambda: report(mesh, job).submission.failing is not None)  # type: ignore[union-attr]
    look(mesh, job)
    assert "Of these 2 have results that the stewards judge" in why_text(mesh, job)


def test_why_says_who_could_run_a_job_and_why_others_cannot() -> None:
    mesh, job = submitted()
    look(mesh, job)
    text = why_text(mesh, job)
    assert "Of 2 tasks 0 are accepted, 2 are being worked on, 0 wait for a worker." in text
    assert "4 known peers can run it; 4 operator groups are admitted; each task needs 2 groups that agree." in text
    assert "This peer: " in why_text(mesh, job, 1)


def test_why_says_that_peers_of_one_block_of_addresses_are_one_operator() -> None:
    mesh = Mesh(3, grouping="network")
    mesh.start()
    for one, other in permutations(mesh.names, 2):
        mesh.give(one, PeerUp(other, f"/ip4/192.168.1.{mesh.names.index(other)}/tcp/4001", dialled=True))
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(tasks=1), accept_unknown=True))
    job = job_of(mesh[0])
    assert "3 known peers can run it, in up to 2 operator groups" in why_text(mesh, job)
    mesh.run_for(12_000)
    text = why_text(mesh, job)
    assert "in 1 operator group, and each task needs 2 groups that agree: it waits for more peers." in text
    assert "--network NAME" in text


def test_why_says_that_nobody_can_be_reached_and_what_the_job_rests_on() -> None:
    mesh = Mesh(1)
    mesh.start()
    mesh.give(mesh.names[0], Submit(job_spec()))
    job = job_of(mesh[0])
    alone = why.why_alone(mesh[0].node.report(), ["/ip4/192.0.2.7/tcp/1"], {})
    assert alone == [
        "No peer is connected.",
        "The only bootstrap address does not answer: check that a daemon runs there.",
    ]
    text = why_text(mesh, job, alone=alone)
    assert "Only 1 known peer can run it, in 1 operator group, and each task needs 2 groups that agree" in text
    assert "the result rests on this machine alone" in text


def test_why_names_the_network_of_whoever_answered() -> None:
    mesh = Mesh(1)
    mesh.start()
    node = mesh[0].node.report()
    stranger = HashSigner(1, "stranger").peer
    assert (
        f"Peer {stranger} belongs to the network other, this one to net"
        in why.why_alone(node, ["x"], {stranger: "other"})[1]
    )
    assert "no network of NEXAPod's" in why.why_alone(node, ["x"], {stranger: ""})[1]
    assert "give a running daemon's address with --bootstrap" in why.why_alone(node, [], {})[1]
    mesh, _ = submitted(2)
    assert why.why_alone(mesh[0].node.report(), [], {}) == []


def node_text(mesh: Mesh, number: int, stalled: str = "") -> str:
    node = mesh[number].node
    jobs = [job for each in node.report().jobs if (job := node.job_report(each)) is not None]
    told = why.why_node(node.report(), jobs, stalled)
    models.Why.model_validate(told)
    return "\n".join(told["sentences"])


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda mesh: None, "As a steward it keeps 1 shard of 1 job."),
        (lambda mesh: mesh.give(mesh.names[1], Pause(paused=True)), "This peer is paused and takes no tasks"),
    ],
)
def test_why_says_what_this_node_does(act: Callable[[Mesh], None], said: str) -> None:
    mesh, job = submitted()
    mesh.run_for(1_000)
    act(mesh)
    text = node_text(mesh, 1)
    assert said in text
    assert "of 4 slots are running tasks." in text
    assert f"Job {job.hex()[:12]} (a job): " in text
    assert node_text(mesh, 1, "the disk is full").startswith("Nothing is said to other peers at the moment: the disk")


def test_why_says_that_there_is_nothing_to_do() -> None:
    mesh = Mesh(1)
    mesh.start()
    assert node_text(mesh, 0) == "No open job is known: there is nothing to do."
