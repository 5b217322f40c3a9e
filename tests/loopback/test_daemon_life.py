"""The life of a task across real daemons: killed, paused, gone on with elsewhere, watched, given its part of a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from containers.engine_kit import NoEngine, connect, import_image
from harness import TELL_IMAGES, Cluster, Daemon, Job, copying_job, gone, wait_until

from nexapod.protocol import limits

TASKS = 10
HOLD_S = 12
"""How long each container sleeps: the daemon is killed, and back, in the middle of it."""
JOB_S = 120.0
MIB = 1 << 20


@pytest.fixture
def engine(missing: Callable[[str, str], Any], tmp_path: Path) -> Iterator[tuple[Any, str]]:
    try:
        client = connect()
        image = import_image(client, tmp_path)
    except NoEngine as error:
        missing("docker", str(error))
    yield client, image
    client.remove_image(image, force=True)
    client.close()


def containers(client: Any, image: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.containers(all=True, filters={"ancestor": image})
    return found


def submit(daemon: Daemon, **body: object) -> str:
    job_id: str = json.loads(daemon.ask("POST", "/v1/jobs", json.dumps(body).encode()))["job_id"]
    return job_id


@pytest.mark.slow
def test_a_daemon_killed_during_ten_tasks_loses_none_repeats_none_and_leaves_none(engine: tuple[Any, str]) -> None:
    client, image = engine
    began = time.time()
    # Whoever runs a task twice counts itself twice; whoever begins it anew begins with an empty folder, and is seen
    # among the containers created.
    script = f"echo started >> /checkpoint/starts; sleep {HOLD_S}; wc -l < /checkpoint/starts > /output/starts"
    with Cluster(TELL_IMAGES) as mesh:
        submitter = mesh.add("submitter", "--no-work")
        worker = mesh.add("worker", "--slots", str(TASKS))
        mesh.wait_met()
        job_id = submit(
            submitter,
            name="ten at once",
            tasks=TASKS,
            run={"executor": "docker", "image": image, "command": ["sh", "-c", script]},
            limits={"memory": 32 << 20, "wall_ms": 300_000},
            validate={"agree": 1, "max_replicas": 1},
        )
        wait_until(lambda: len(_running(client, image)) == TASKS, JOB_S, f"{TASKS} containers run")
        first = {container["Id"] for container in containers(client, image)}
        worker.kill()
        wait_until(lambda: not _running(client, image), 20.0, "they stand still without their daemon")
        assert [container["State"] for container in containers(client, image)] == ["paused"] * TASKS
        worker.start()
        mesh.wait_state(submitter, job_id, "settled", JOB_S)
        outputs = submitter.outputs(job_id, "starts")
        assert {index: data.strip() for index, data in outputs.items()} == dict.fromkeys(range(TASKS), b"1")
        assert all(len(task["replicas"]) == 1 for task in submitter.job(job_id)["task_list"])
        wait_until(lambda: not containers(client, image), 20.0, "no container is left")
        guards = [p for p in worker.below() if "nexapod.executor.docker.guard" in p.cmdline()]
        assert len(guards) == 1
        worker.terminate()
        worker.wait_end(20.0)
        wait_until(lambda: gone(guards), 3.0, "a daemon that ends in good order takes its guard with it")
    created = client.events(
        since=int(began), until=int(time.time()) + 1, decode=True, filters={"event": "create", "image": image}
    )
    assert {event["id"] for event in created} == first, "no other container was ever made"


def _running(client: Any, image: str) -> list[dict[str, Any]]:
    return [container for container in containers(client, image) if container["State"] == "running"]


def module(name: str) -> bytes:
    text = {"checkpointing": _CHECKPOINTING, "talking": _TALKING}[name]
    return bytes(wasmtime.wat2wasm(text))


def one_task(submitter: Daemon, name: str, **run: object) -> str:
    return submit(
        submitter,
        name=name,
        tasks=1,
        run={"executor": "wasm", "module": submitter.upload(module(name)), **run},
        # Before any task has ended one is late after a 48th of this, and another worker begins it anew.
        limits={"wall_ms": 7_200_000},
        validate={"agree": 1, "max_replicas": 3},
    )


@pytest.mark.slow
def test_another_worker_goes_on_from_the_checkpoint_of_one_that_is_gone() -> None:
    with Cluster() as mesh:
        submitter = mesh.add("submitter", "--no-work")
        keeper = mesh.add("keeper", "--no-work")
        workers = [mesh.add(f"worker-{number}", "--slots", "1") for number in (1, 2)]
        mesh.wait_met()
        job_id = one_task(submitter, "checkpointing", checkpoint="shared")
        wait_until(lambda: any(w.status()["running_tasks"] for w in workers), 20.0, "the task runs")
        first = next(w for w in workers if w.status()["running_tasks"])
        others = [d for d in (submitter, keeper, *workers) if d is not first]

        def may_be_handed_on() -> bool:
            """Two seats have kept it, for so long that each takes the other to have it."""
            stored = [event["at"] for d in others for event in d.stamped("checkpoint_stored")]
            return len(stored) >= 2 and time.time() > max(stored) + limits.COSIGN_MS / 1000

        wait_until(may_be_handed_on, 60.0, "two stewards keep its checkpoint")
        first.kill()
        mesh.wait_state(submitter, job_id, "settled", JOB_S)
        [task] = submitter.job(job_id)["task_list"]
        [replica] = task["replicas"]
        assert replica["peer"] != first.peer_id
        assert replica["resumed"] is not None
        assert submitter.outputs(job_id, "out.txt") == {0: b"half"}


def test_a_paused_task_stands_still_and_its_submitter_sees_what_it_prints() -> None:
    with Cluster() as mesh:
        submitter = mesh.add("submitter", "--no-work")
        worker = mesh.add("worker", "--slots", "1")
        mesh.wait_met()
        job_id = one_task(submitter, "talking")

        def said() -> list[dict[str, Any]]:
            logs: list[dict[str, Any]] = json.loads(submitter.command_line("logs", job_id, "0", "--json"))
            return logs

        wait_until(lambda: any(entry["log"] for entry in said()), 30.0, "the running task's log is seen")
        [entry] = said()
        assert (entry["peer"], entry["outcome"], entry["exit"]) == (worker.peer_id, "running", None)
        assert entry["log"] == "hello from inside\n"
        began = time.monotonic()
        worker.command_line("pause")
        frozen_s = time.monotonic() - began
        assert worker.status()["state"] == "paused"
        [task] = worker.get("/v1/tasks")
        assert (task["frozen"], task["stage"]) == (True, "running")
        runners = [p for p in worker.below() if "nexapod.executor.wasm.runner" in " ".join(p.cmdline())]
        before = sum(p.cpu_times().user for p in runners)
        time.sleep(1.0)  # a pause: nothing is to happen
        assert sum(p.cpu_times().user for p in runners) == before
        assert any("paused" in sentence for sentence in worker.get("/v1/why")["sentences"])
        worker.command_line("resume")
        wait_until(lambda: sum(p.cpu_times().user for p in runners) > before, 5.0, "it goes on")
        assert not worker.get("/v1/tasks")[0]["frozen"]

        worker.command_line("pause", "1h")
        worker.kill()
        worker.start()
        worker.wait_up()
        assert worker.status()["state"] == "paused", "the owner wants the machine still"
        # The core goes on with what its former process ran; here no sandbox is left of it, and none begins in a pause.
        assert [task["stage"] for task in worker.get("/v1/tasks")] in ([], ["preparing"])
        worker.command_line("resume")
        wait_until(lambda: [t["stage"] for t in worker.get("/v1/tasks")] == ["running"], 60.0, "it begins again")
        submitter.command_line("cancel", job_id)
        wait_until(lambda: worker.status()["running_tasks"] == 0, 20.0, "a cancelled task ends")
        assert frozen_s < 5.0, "the command and the freezing together"


@pytest.mark.slow
def test_a_worker_fetches_only_its_part_of_a_file_and_a_file_is_stored_once() -> None:
    pieces = tuple(bytes([number]) * MIB for number in range(32))
    with Cluster() as mesh:
        submitter = mesh.add("submitter", "--no-work")
        for number in range(5):
            mesh.add(f"worker-{number}", "--slots", "1")
        mesh.wait_met()

        job = copying_job(len(pieces), 0.3, agree=1)
        job_id = submitter.submit(Job("parts", job.module, pieces, "in.txt", agree=1))
        mesh.wait_state(submitter, job_id, "settled", JOB_S)
        assert len(submitter.outputs(job_id, "out.txt")) == len(pieces)
        (shard,) = submitter.job(job_id)["seats"]
        stewards = set(shard["holders"])
        assert len(stewards) == 3
        others = [d for d in mesh.daemons[1:] if d.peer_id not in stewards]
        assert others, "five workers and three stewards"
        for worker in others:
            done = sum(1 for event in worker.events("task_begun"))
            moved = worker.counts("adapter_events_total").get("bytes_in", 0)
            assert moved < (done * 2 + 3) * MIB, f"{done} pieces of 1 MiB and what frames and statements take"


_HEAD = """
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (func $spin (local $n i64) (local.set $n (i64.const 900000000000))
    (loop $more
      (local.set $n (i64.sub (local.get $n) (i64.const 1)))
      (br_if $more (i64.ne (local.get $n) (i64.const 0)))))
"""
_CHECKPOINTING = (
    _HEAD
    + """
  (data (i32.const 0) "state")
  (data (i32.const 16) "out.txt")
  (data (i32.const 32) "half")
  ;; Directory 5 is /checkpoint, 4 is /output. With a state, its content is the result; without, one is kept, and the
  ;; task goes on without end.
  (func (export "_start") (local $fd i32)
    (i32.store (i32.const 100) (i32.const 1024))
    (i32.store (i32.const 104) (i32.const 64))
    (if (i32.eqz (call $open (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 5)
        (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 124)))
      (then
        (drop (call $read (i32.load (i32.const 124)) (i32.const 100) (i32.const 1) (i32.const 128)))
        (if (call $open (i32.const 4) (i32.const 0) (i32.const 16) (i32.const 7)
            (i32.const 9) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 124))
          (then (call $exit (i32.const 3))))
        (i32.store (i32.const 104) (i32.load (i32.const 128)))
        (drop (call $write (i32.load (i32.const 124)) (i32.const 100) (i32.const 1) (i32.const 120)))
        (call $exit (i32.const 0))))
    (if (call $open (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 5)
        (i32.const 9) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 124))
      (then (call $exit (i32.const 4))))
    (i32.store (i32.const 100) (i32.const 32))
    (i32.store (i32.const 104) (i32.const 4))
    (drop (call $write (i32.load (i32.const 124)) (i32.const 100) (i32.const 1) (i32.const 120)))
    (call $spin)))
"""
)
_TALKING = (
    _HEAD
    + """
  (data (i32.const 0) "hello from inside\\n")
  (func (export "_start")
    (i32.store (i32.const 100) (i32.const 0))
    (i32.store (i32.const 104) (i32.const 18))
    (drop (call $write (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 120)))
    (call $spin)))
"""
)
