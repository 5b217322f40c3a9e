"""nexapod.daemon.explain: the reason that helps is among the sentences."""

from __future__ import annotations

from protocol_kit import Mesh, job_spec, pid

from nexapod.daemon import explain
from nexapod.protocol.events import CancelJob, Pause, Submit
from nexapod.protocol.types import JobId

NOBODY = "No peer is connected."


def submitted(mesh: Mesh) -> JobId:
    mesh.do(0, Submit(job_spec()))
    (job,) = mesh.nodes[pid(0)].jobs
    return job


def told(mesh: Mesh, job: JobId, *bootstrap: str) -> list[str]:
    sentences: list[str] = explain.why_job(mesh.nodes[pid(0)], job, bootstrap, {})["sentences"]
    return sentences


def test_a_job_that_nobody_can_hold_says_that_no_peer_is_connected() -> None:
    mesh = Mesh([0])
    job = submitted(mesh)
    assert told(mesh, job)[1:3] == [NOBODY, explain.why_alone(mesh.nodes[pid(0)], [], {})[1]]
    assert "None of the 1 bootstrap addresses answers" in told(mesh, job, "/ip4/192.0.2.7/tcp/1/p2p/x")[2]
    mesh.do(0, CancelJob(job, "not wanted"))
    assert NOBODY not in told(mesh, job), "nothing is left to place"


def test_a_job_among_peers_says_nothing_of_it() -> None:
    mesh = Mesh(range(4))
    assert NOBODY not in told(mesh, submitted(mesh))


def test_a_pause_is_told_although_there_is_nothing_to_do() -> None:
    mesh = Mesh([0])
    node = mesh.nodes[pid(0)]
    said = "This peer is paused and takes no tasks: nexapod resume lets it go on."
    assert said not in explain.why_node(node, "")["sentences"]
    mesh.do(0, Pause(True))
    assert explain.why_node(node, "")["sentences"] == [said, "No active job is known: there is nothing to do."]
