"""What real daemons tell their users: a typo at once and with its reason, and every answer in the shape it promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import wasmtime
from harness import Cluster, Daemon, wait_until
from pydantic import TypeAdapter

from nexapod.api import models, task_routes

WAT = Path(__file__).parents[1] / "wasm" / "exit.wat"
TOLD_S = 10.0
JOB = """
[job]
name = "a typo"
[run]
executor = "wasm"
module = "exit.wasm"
command = ["exti"]
[tasks]
count = 2
"""


def submitted(daemon: Daemon, folder: Path) -> dict[str, Any]:
    """A job whose command no worker can make sense of."""
    (folder / "exit.wasm").write_bytes(bytes(wasmtime.wat2wasm(WAT.read_text("utf-8"))))
    (folder / "job.toml").write_text(JOB)
    answer: dict[str, Any] = json.loads(daemon.command_line("submit", "--json", str(folder / "job.toml")))
    return answer


def check_shapes(daemon: Daemon, job_id: str) -> None:
    shapes: dict[str, Any] = {
        "/v1/status": models.Status,
        "/v1/peers": list[models.Peer],
        "/v1/profile": models.ProfileView,
        "/v1/why": models.Why,
        "/v1/tasks": list[task_routes.LocalTask],
        "/v1/jobs": list[models.JobRow],
        f"/v1/jobs/{job_id}": models.JobView,
        f"/v1/jobs/{job_id}/results": models.Results,
        f"/v1/jobs/{job_id}/why": models.Why,
        f"/v1/jobs/{job_id}/tasks/0/log": list[models.ReplicaLog],
    }
    for path, shape in shapes.items():
        TypeAdapter(shape).validate_json(daemon.ask("GET", path))


def test_a_typo_is_told_within_seconds_and_every_answer_has_its_shape(tmp_path: Path) -> None:
    with Cluster() as mesh:
        for name in ("ann", "bob", "eve"):
            mesh.add(name, "--slots", "1")
        mesh.wait_met()
        ann, bob, eve = mesh.daemons
        told = submitted(ann, tmp_path)
        job_id = told["job_id"]
        assert sorted(told["panel"]) == sorted(daemon.status()["peer_id"] for daemon in mesh.daemons)
        assert "Only 2 other stewards are known" in told["rests_on"]
        assert told["may_leave"]

        wait_until(lambda: ann.job(job_id)["failing"] is not None, TOLD_S, "the first failure is told")
        view = ann.job(job_id)
        assert (view["state"], view["failed"], view["failing"]["exit"]) == ("running", 0, 9)
        shown = ann.command_line("job", job_id)
        assert "did not end well at ..." in shown
        assert "failed (exit 9)" in shown
        assert "did not end well at" in ann.command_line("why", job_id)
        assert "failed, exit 9" in ann.command_line("logs", job_id, str(view["failing"]["index"]))
        check_shapes(ann, job_id)
        assert 'nexapod_table_entries{table="open_jobs"} 1' in ann.ask("GET", "/metrics").decode()

        assert bob.job(job_id)["state"] == "open"
        assert ann.status()["peer_id"] in bob.command_line("job", job_id)
        ann.command_line("cancel", job_id)
        wait_until(lambda: ann.job(job_id)["state"] == "cancelled", TOLD_S, "it is over")
        wait_until(lambda: not any(daemon.status()["active_jobs"] for daemon in (bob, eve)), TOLD_S, "everywhere")
