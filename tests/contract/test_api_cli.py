"""The commands against the real API over a unix socket, with a fake daemon behind it."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from api_fake import ANN, BOB, ME, NASTY, RESTS_ON, FakeBackend, FakeJob, FakeTask, served_in_thread

from nexapod.api import task_routes
from nexapod.cli import app as app_module
from nexapod.cli import submitting, watching, work_commands
from nexapod.cli.app import main
from nexapod.log import setup_logging
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import JobId

JOB_FILE = """
[job]
name = "a sweep"
[run]
executor = "wasm"
module = "m.wasm"
[tasks]
count = 3
"""
FASTA_FILE = JOB_FILE.replace("count = 3", 'split = "in.fasta"\nby = "fasta"')


@pytest.fixture(autouse=True)
def logs() -> Iterator[io.StringIO]:
    """The server's log, which is not the commands' output."""
    stream = io.StringIO()
    setup_logging("warning", "json", stream=stream)
    yield stream
    structlog.reset_defaults()
    logging.getLogger().handlers = []


class Daemon:
    """The fake daemon, as a test in another thread speaks to it."""

    def __init__(self, home: Path, backend: FakeBackend, token: trio.lowlevel.TrioToken) -> None:
        self.home = home
        self.backend = backend
        self._token = token

    def do(self, act: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run_sync(act, *args, trio_token=self._token)

    def add(self, name: str = "a job", tasks: int = 3) -> JobId:
        """A job that came from elsewhere than the CLI."""
        return self.do(self._add, name, tasks)  # type: ignore[no-any-return]

    def _add(self, name: str, tasks: int) -> JobId:
        from nexapod.protocol.types import JobSpec, Run

        module = self.backend.put(b"\0asm")
        job = JobId(bytes([len(self.backend.known) + 1]) * 32)
        spec = JobSpec("test", name, bytes(16), 1, Run("wasm", module), tasks)
        self.backend.known[job] = FakeJob(spec, [FakeTask() for _ in range(tasks)])
        return job

    def when(self, condition: Callable[[], bool], act: Callable[[], Any]) -> threading.Thread:
        """Do something in the daemon as soon as a condition holds, while the test's thread runs a command."""

        def run() -> None:
            end = time.monotonic() + 10
            while not self.do(condition):
                if time.monotonic() > end:
                    return
                time.sleep(0.005)
            self.do(act)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    backend = FakeBackend()
    home = tmp_path / "home"
    home.mkdir()
    with served_in_thread(backend, home / "api.sock") as token:
        yield Daemon(home, backend, token)


class Cli:
    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("NEXAPOD_HOME", str(home))
        self.out = self.err = ""

    def __call__(self, *args: object) -> int:
        self._monkeypatch.setattr(sys, "argv", ["nexapod", *map(str, args)])
        self._capsys.readouterr()
        status: Any = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        for stream in (self.out, self.err):
            assert "\x1b" not in stream, "a terminal escape came through"
            assert "\u202e" not in stream
        return int(status or 0)

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(tmp_path / "home", capsys, monkeypatch)


def write_job(folder: Path, text: str = JOB_FILE) -> Path:
    (folder / "m.wasm").write_bytes(b"\0asm" + bytes(CHUNK_BYTES + 5))
    (folder / "in.fasta").write_text(">one first\nACD\n>two\nEF\n>two\nGH\n")
    path = folder / "job.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("command", ["status", "peers", "profile", "jobs", "tasks", "why"])
def test_each_query_answers_people_and_programs(daemon: Daemon, cli: Cli, command: str) -> None:
    daemon.add(NASTY)
    assert cli(command) == 0
    assert cli.out.strip()
    assert cli(command, "--json") == 0
    assert cli.json


def test_the_profile_shows_what_peers_are_told_and_how_each_gpu_does(daemon: Daemon, cli: Cli) -> None:
    assert cli("profile") == 0
    assert "A GPU, 24 GiB, compute capability 9.0, driver 570" in cli.out
    rows = [line.split("\t") for line in cli.out.splitlines() if "\t" in line]
    assert rows[0] == ["GPU", "UUID", "MODEL", "MEMORY", "BUSY", "TEMPERATURE", "POWER", "STATE"]
    assert rows[1][2:] == ["A GPU", "1.0 GiB of 24 GiB", "12 %", "45 C", "120 W of 450 W", "free"]
    assert rows[2][4:] == ["?", "45 C", "? of ?", "leased to abc-1"]
    assert rows[3][3:6] == ["? of 24 GiB", "12 %", "?"]
    assert rows[3][7].startswith("not lent: others use it")
    assert "\x1b" not in cli.out
    assert "GPU 3 does not answer" in cli.err
    assert cli("profile", "--json") == 0
    assert [gpu["uuid"] for gpu in cli.json["local_gpus"]] == ["GPU-0", "GPU-1", "GPU-2"]
    assert "uuid" not in cli.json["gpus"][0]


def test_a_job_is_named_by_a_prefix(daemon: Daemon, cli: Cli) -> None:
    job = daemon.add(NASTY)
    daemon.do(daemon.backend.fail, job, 1, NASTY)
    assert cli("job", job.hex()[:6].upper()) == 0
    assert "failed" in cli.out
    assert cli("job", job.hex()[:6], "--json") == 0
    assert [task["index"] for task in cli.json["task_list"]] == [0, 1, 2]
    assert cli("why", job.hex()[:6]) == 0
    assert "Only 1 known peer can run it." in cli.out


def test_what_was_written_of_a_job_is_shown(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    text = 'description = """one\n\ttwo \u2026\n"""\ntags = ["a b", "c"]\n[run]'
    assert cli("submit", "--no-wait", "--json", write_job(tmp_path, JOB_FILE.replace("[run]", text))) == 0
    assert cli("job", cli.json["job_id"]) == 0
    lines = [line.rstrip() for line in cli.out.splitlines()]
    at = lines.index("description       one")
    assert lines[at + 1 : at + 3] == [" " * 26 + "two \u2026", "tags              a b, c"]
    [found] = daemon.backend.known.values()
    found.spec = replace(found.spec, description=NASTY, tags=(NASTY,))
    assert cli("job", cli.out.split()[1]) == 0


def test_every_task_of_a_large_job_is_listed(daemon: Daemon, cli: Cli) -> None:
    job = daemon.add(tasks=2100)
    assert cli("job", job.hex(), "--json") == 0
    assert [task["index"] for task in cli.json["task_list"]] == list(range(2100))


def test_what_a_replica_printed_is_shown_harmlessly(daemon: Daemon, cli: Cli) -> None:
    job = daemon.add()
    daemon.backend.known[job].tasks[0].log = f"line 1\n{NASTY}"
    assert cli("logs", job.hex(), 0) == 0
    assert "line 1" in cli.out
    assert "\\x1b[2J[red]not markup[/red]" in cli.out
    assert cli("logs", job.hex(), 3) == 4
    assert cli("logs", job.hex(), 99999999999) == 4
    assert "there is no task 99999999999: a job has at most 1000000" in cli.err


def test_the_exit_status_says_what_was_wrong(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    job = daemon.add()
    foreign = daemon.add("not mine")
    assert cli("job", "ffff") == 4
    assert cli("job", "../status") == 5
    assert cli("job") == 2
    assert cli("nonsense") == 2
    assert cli("cancel", foreign.hex()) == 5
    assert "another peer submitted" in cli.err
    assert cli("cancel", job.hex()) == 0
    assert cli("--home", tmp_path / "nowhere", "status") == 3
    assert "nexapod start" in cli.err


def test_a_failing_daemon_is_its_own_status(daemon: Daemon, cli: Cli) -> None:
    daemon.backend.fail_with = RuntimeError("boom")
    assert cli("status") == 1
    assert "RuntimeError" in cli.err


def test_stop_drains_unless_told_otherwise(daemon: Daemon, cli: Cli) -> None:
    assert cli("stop") == 0
    assert cli("stop", "--now", "--json") == 0
    assert daemon.backend.stopped == [True, False]


def test_submit_uploads_waits_until_placed_and_says_so(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    backend = daemon.backend
    thread = daemon.when(lambda: bool(backend.known), lambda: backend.place(next(iter(backend.known))))
    assert cli("submit", write_job(tmp_path)) == 0
    thread.join()
    assert "its stewards hold the job and all its inputs (2 of 2 stewards): this machine may go offline" in cli.out
    (job,) = backend.known.values()
    assert job.spec.name == "a sweep"
    assert RESTS_ON in cli.out
    assert (job.friends, job.accept_unknown) == ([], False)
    assert backend.blobs[job.spec.run.module].startswith(b"\0asm")  # type: ignore[index]
    held = set(backend.blobs)
    assert cli("submit", "--no-wait", "--json", write_job(tmp_path)) == 0
    assert cli.json["placed"] is False
    assert set(backend.blobs) == held


def test_the_user_says_who_must_be_a_steward(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    path = write_job(tmp_path)
    assert cli("submit", "--no-wait", "--json", "--friend", ANN, "--friend", BOB, "--accept-unknown", path) == 0
    (job,) = daemon.backend.known.values()
    assert (job.friends, job.accept_unknown) == ([ANN, BOB], True)
    assert (cli.json["panel"], cli.json["rests_on"]) == ([ANN, BOB], RESTS_ON)
    assert cli("submit", "--friend", "Bob", path) == 5
    assert "'Bob' is not the id of a peer" in cli.err
    assert not cli.out
    assert cli("submit", "--friend", ME, path) == 5
    assert f"{ME} cannot be a steward of this job" in cli.err
    assert len(daemon.backend.known) == 1


def test_a_job_that_every_steward_refuses_is_told_with_their_reasons(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    backend = daemon.backend
    thread = daemon.when(lambda: bool(backend.known), lambda: backend.refuse(next(iter(backend.known)), NASTY))
    assert cli("submit", "--watch", write_job(tmp_path)) == 1
    thread.join()
    assert "the job is cancelled already" in cli.out
    assert f"{ANN} refuses it: " in cli.out


def test_a_result_that_did_not_end_well_is_told_before_its_task_is_decided(daemon: Daemon, cli: Cli) -> None:
    job = daemon.add()
    daemon.do(daemon.backend.end_badly, job, 1, 127, "no such file: grpe", "first\ngrpe: not found")
    assert cli("job", job.hex()) == 0
    assert "task 1 did not end well at ..." in cli.out
    assert "(failed, exit 127): no such file: grpe\n  first\n  grpe: not found\n" in cli.out
    assert f"nexapod logs {job.hex()[:12]} 1" in cli.out
    assert cli("job", job.hex(), "--json") == 0
    assert cli.json["failing"]["reason"] == "no such file: grpe"
    assert cli.json["task_list"][1]["state"] == "open"


def test_watching_tells_of_a_first_failure_at_once(daemon: Daemon, cli: Cli) -> None:
    job = daemon.add(tasks=1)
    backend = daemon.backend

    def live() -> None:
        backend.end_badly(job, 0, 127, f"no such file {NASTY}", "")
        backend.fail(job, 0, "two results failed alike")

    thread = daemon.when(lambda: bool(backend.watchers), live)
    assert cli("watch", job.hex()) == 1
    thread.join()
    lines = cli.out.splitlines()
    assert "task 0 did not end well at" in lines[1]
    assert "exit 127): no such file" in lines[1]
    assert lines[2] == "task 0 failed (1 of 1): two results failed alike"
    assert cli("watch", job.hex()) == 1
    assert "task 0 did not end well at" in cli.out, "one that comes later is told too"


def test_what_caretakers_decided_is_ratified_by_the_user(daemon: Daemon, cli: Cli) -> None:
    job, foreign = daemon.add(), daemon.add("not mine")
    daemon.backend.known[job].unratified = [0, 3]
    assert cli("job", job.hex()) == 0
    assert "caretakers decided in shards 0, 3: `nexapod ratify` accepts that" in cli.out
    assert cli("ratify", job.hex()) == 0
    assert "accepted what caretakers decided in 2 shards" in cli.out
    assert cli("ratify", job.hex()) == 0
    assert "nothing to accept" in cli.out
    assert cli("ratify", foreign.hex()) == 5


def test_who_keeps_a_job_is_shown(daemon: Daemon, cli: Cli) -> None:
    job = daemon.add()
    assert cli("job", job.hex()) == 0
    lines = {line.split("  ")[0]: line for line in cli.out.splitlines()}
    assert RESTS_ON in lines["rests on"]
    assert lines["panel"].endswith(f"2: ...{ANN[-8:]}, ...{BOB[-8:]}")
    assert lines["seats of shard 0"].endswith(f"2: ...{BOB[-8:]}, ...{ANN[-8:]}")
    assert "keep this machine running" in lines["held by stewards"]


def test_submit_is_honest_when_nobody_holds_the_job(
    daemon: Daemon, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "PLACED_WAIT_S", 0.1)
    assert cli("submit", write_job(tmp_path)) == 0
    assert "none of its stewards holds the job and all its inputs yet: keep this machine running" in cli.out
    assert "Only 1 known peer can run it." in cli.out, "what is missing"
    assert cli("submit", "--json", write_job(tmp_path)) == 0
    assert cli.json["placed_on"] == []


@pytest.mark.parametrize(
    ("held", "panel", "placed", "said"),
    [
        (3, 3, True, "its stewards hold the job and all its inputs (3 of 3 stewards): this machine may go offline"),
        (9, 16, True, "its stewards hold the job and all its inputs (9 of 16 stewards): this machine may go offline"),
        (1, 1, False, "only 1 of 1 steward holds the job and all its inputs yet: keep this machine running"),
        (1, 2, False, "only 1 of 2 stewards holds the job and all its inputs yet: keep this machine running"),
        (0, 2, False, "none of its stewards holds the job and all its inputs yet: keep this machine running"),
    ],
)
def test_how_many_hold_the_job_of_how_many_is_said(held: int, panel: int, placed: bool, said: str) -> None:
    view: dict[str, Any] = {
        "placed": placed, "may_leave": placed, "placed_on": ["p"] * held, "panel": ["p"] * panel, "state": "placing",
    }  # fmt: skip
    first, *more = submitting.placed_lines(view, lambda: ["It waits."])
    assert first == said
    assert more == ([] if placed else ["  It waits."])
    if placed:
        (only,) = submitting.placed_lines(view | {"may_leave": False}, list)
        assert only == "this machine is one of its few stewards: keep it running until the job is settled"


def test_waiting_ends_although_the_daemon_pings(
    daemon: Daemon, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of events is kept alive by pings: to wait for its silence would be to wait for ever."""
    monkeypatch.setattr("nexapod.api.answers.PING_S", 0.05)
    monkeypatch.setattr(submitting, "PLACED_WAIT_S", 0.3)
    began = time.monotonic()
    assert cli("submit", write_job(tmp_path)) == 0
    assert time.monotonic() - began < 10


def test_a_bad_job_file_submits_nothing(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    path = write_job(tmp_path, JOB_FILE.replace("count = 3", "cuont = 3"))
    assert cli("submit", path) == 5
    assert "did you mean 'count'?" in cli.err
    assert cli("submit", tmp_path / "none.toml") == 5
    assert not daemon.backend.known
    assert not daemon.backend.blobs


def test_what_the_daemon_refuses_is_told(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    # Each argument is short enough; together they do not fit a signed statement.
    command = json.dumps(["x" * 4000] * 32)
    path = write_job(tmp_path, JOB_FILE.replace('module = "m.wasm"', f'module = "m.wasm"\ncommand = {command}'))
    assert cli("submit", "--no-wait", path) == 5
    assert "bytes" in cli.err


@pytest.mark.parametrize(("failing", "expected"), [(False, 0), (True, 1)])
def test_watch_ends_with_the_job_and_its_status_is_the_jobs(
    daemon: Daemon, cli: Cli, failing: bool, expected: int
) -> None:
    job = daemon.add()
    backend = daemon.backend

    def live() -> None:
        backend.place(job)
        backend.work(job, 0, 0.5)
        backend.accept(job, 0, {})
        backend.accept(job, 1, {})
        backend.fail(job, 2, NASTY) if failing else backend.accept(job, 2, {})

    thread = daemon.when(lambda: bool(backend.watchers), live)
    assert cli("watch", job.hex()) == expected
    thread.join()
    assert "task 0 accepted (1 of 3)" in cli.out
    assert "settled: " in cli.out
    assert cli("watch", job.hex(), "--json") == expected
    assert [json.loads(line)["event"] for line in cli.out.splitlines()] == ["snapshot", "closed"]


def test_submit_and_watch_in_one(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    backend = daemon.backend

    def live() -> None:
        job = next(iter(backend.known))
        backend.place(job)
        for index in range(3):
            backend.accept(job, index, {})

    thread = daemon.when(lambda: bool(backend.known), live)
    assert cli("submit", "--watch", write_job(tmp_path)) == 0
    thread.join()
    assert "settled: 3 accepted, 0 failed" in cli.out


def test_a_cancelled_job_is_not_a_success(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    job = daemon.add()
    assert cli("cancel", job.hex(), "--json") == 0
    assert cli("watch", job.hex()) == 1
    assert cli("results", job.hex(), "-o", tmp_path / "out") == 1
    assert "what is not accepted by now will not be" in cli.err
    assert "again" not in cli.err


def test_a_watcher_that_fell_behind_begins_anew(daemon: Daemon, cli: Cli) -> None:
    job = daemon.add(tasks=1)
    backend = daemon.backend
    thread = daemon.when(lambda: bool(backend.watchers), lambda: backend.tell(job, "lagged", lost=7))
    second = daemon.when(
        lambda: len(backend.watchers) == 1 and not thread.is_alive(), lambda: backend.accept(job, 0, {})
    )
    assert cli("watch", job.hex()) == 0
    thread.join()
    second.join()


# --- results -------------------------------------------------------------------------------------------------------
def test_results_are_fetched_checked_and_continued(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    job = daemon.add(tasks=2)
    large = bytes(range(251)) * (CHUNK_BYTES * 2 // 251)
    daemon.do(daemon.backend.accept, job, 0, {"a/large.bin": large, "empty": b""})
    out = tmp_path / "out"
    assert cli("results", job.hex(), "-o", out) == 1, "not settled yet"
    assert not list(out.glob("*.cert"))
    daemon.do(daemon.backend.accept, job, 1, {"x": b"1"})

    # As if interrupted: one file is half there, another has wrong bytes.
    target = out / "0/a/large.bin"
    target.with_name("large.bin.nexapod-part").write_bytes(large[: CHUNK_BYTES + 7])
    target.unlink()
    (out / "0/empty").write_bytes(b"wrong")
    daemon.backend.reads.clear()
    assert cli("results", job.hex(), "-o", out, "--json") == 0
    assert cli.json["files_written"] == 3
    assert target.read_bytes() == large
    assert (out / "0/empty").read_bytes() == b""
    assert (out / "1/x").read_bytes() == b"1"
    assert CHUNK_BYTES + 7 in {offset for offset, _ in daemon.backend.reads}
    assert next(out.glob("*.cert")).read_bytes() == b"certificate"
    assert not list(out.rglob("*.nexapod-part"))
    assert cli("results", job.hex(), "-o", out, "--json") == 0
    assert (cli.json["files_written"], cli.json["files_kept"]) == (0, 3)


def test_a_file_that_is_still_on_its_way_is_fetched_the_next_time(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    job = daemon.add(tasks=1)
    daemon.do(daemon.backend.accept, job, 0, {"x": b"1", "y": b"2"})
    daemon.backend.known[job].tasks[0].here = False
    assert cli("results", job.hex(), "-o", tmp_path / "out") == 0
    assert "2 accepted files are still on the way here" in cli.err
    daemon.backend.known[job].tasks[0].here = True
    assert cli("results", job.hex(), "-o", tmp_path / "out") == 0
    assert (tmp_path / "out/0/y").read_bytes() == b"2"


def test_half_a_certificate_is_none(daemon: Daemon, cli: Cli, tmp_path: Path, logs: io.StringIO) -> None:
    job = daemon.add(tasks=1)
    daemon.do(daemon.backend.accept, job, 0, {})
    daemon.backend.known[job].broken = True
    assert cli("results", job.hex(), "-o", tmp_path / "out") == 3
    assert not list((tmp_path / "out").glob("*.cert"))
    assert "a record of it cannot be read" in logs.getvalue()
    daemon.backend.known[job].broken = False
    assert cli("results", job.hex(), "-o", tmp_path / "out") == 0
    assert next((tmp_path / "out").glob("*.cert")).read_bytes() == b"certificate"


def test_a_workers_file_names_lead_nowhere_else(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    job = daemon.add(tasks=1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "target").write_text("precious")
    out = tmp_path / "out"
    (out / "0").mkdir(parents=True)
    (out / "0/link").symlink_to(outside)
    (out / "0/file").symlink_to(outside / "target")
    names = ["../escape", "/abs", "a/../../b", "link/x", "file", "nul\0", "tab\t", "ok"]
    daemon.do(daemon.backend.accept, job, 0, dict.fromkeys(names, b"evil"))
    assert cli("results", job.hex(), "-o", out, "--json") == 1
    assert len(cli.json["problems"]) == len(names) - 1
    assert (out / "0/ok").read_bytes() == b"evil"
    assert (outside / "target").read_text() == "precious"
    assert sorted(p.name for p in outside.iterdir()) == ["target"]
    assert not (tmp_path / "escape").exists()


def test_wrong_bytes_are_not_kept(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    job = daemon.add(tasks=1)
    daemon.do(daemon.backend.accept, job, 0, {"x": b"right"})
    (ref,) = daemon.backend.known[job].tasks[0].files.values()
    daemon.backend.blobs[ref] = b"wrong"
    assert cli("results", job.hex(), "-o", tmp_path / "out") == 1
    assert not list((tmp_path / "out").rglob("x*"))
    daemon.backend.blobs[ref] = b"rig"
    assert cli("results", job.hex(), "-o", tmp_path / "out") == 1
    assert not (tmp_path / "out/0/x").exists()
    daemon.backend.blobs[ref] = b"right"
    assert cli("results", job.hex(), "-o", tmp_path / "out") == 0


def test_tasks_of_a_fasta_job_are_named_by_their_records(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    assert cli("submit", "--no-wait", write_job(tmp_path, FASTA_FILE)) == 0
    assert "in.fasta: 3 records, cut into 3 pieces" in cli.err
    assert cli("submit", "--no-wait", "--json", write_job(tmp_path, FASTA_FILE)) == 0
    assert cli.err == ""
    job = JobId(bytes.fromhex(cli.json["job_id"]))
    for index in range(3):
        daemon.do(daemon.backend.accept, job, index, {"out": b"%d" % index})
    assert cli("results", job.hex(), "-o", tmp_path / "out") == 0
    found = {p.parent.name: p.read_text() for p in (tmp_path / "out").glob("*/out")}
    assert found == {"one": "0", "1-two": "1", "2-two": "2"}
    manifest = json.loads((tmp_path / "out/nexapod.json").read_text())
    assert manifest == {"job_id": job.hex(), "tasks": {"0": "one", "1": "1-two", "2": "2-two"}}


def test_a_folder_that_cannot_be_written_is_said(daemon: Daemon, cli: Cli, tmp_path: Path) -> None:
    job = daemon.add()
    (tmp_path / "file").write_text("")
    assert cli("results", job.hex(), "-o", tmp_path / "file") == 1
    assert "file" in cli.err


# --- what it costs -------------------------------------------------------------------------------------------------
def test_a_command_loads_no_heavy_library() -> None:
    """libp2p, trio, a web framework, a logging library and rich would each cost more than the answer itself."""
    code = (
        "import sys; sys.argv = ['nexapod', '--home', '/nonexistent', 'jobs']\n"
        "from nexapod.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 3, end.code\n"
        "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    heavy = {"libp2p", "trio", "anyio", "fastapi", "starlette", "pydantic", "hypercorn", "structlog", "rich", "nacl"}
    assert not heavy & set(done.stdout.split())


def test_the_demo_and_the_simulator_are_loaded_only_when_asked(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import types

    seen: list[tuple[int, str]] = []

    def stand_in(number: int = 1, word: str = "") -> None:
        seen.append((number, word))

    for module, name in (("nexapod.cli.demo", "demo"), ("nexapod.cli.sim_command", "sim")):
        fake = types.ModuleType(module)
        setattr(fake, name, stand_in)
        monkeypatch.setitem(sys.modules, module, fake)
    assert cli("demo", "--number", 5) == 0
    assert cli("sim", "--word", "x") == 0
    assert seen == [(5, ""), (1, "x")]
    assert cli("sim", "--nonsense") == 2
    assert cli("demo", "--help") == 0
    assert "--number" in cli.out


@pytest.mark.parametrize(
    ("word", "options"),
    [
        ("doctor", {"--quick", "--require"}),
        ("sim", {"--seeds", "--trace"}),
        ("demo", {"--peers"}),
        ("start", {"--slots"}),
    ],
)
def test_a_shell_is_told_every_commands_options(word: str, options: set[str]) -> None:
    asked = {"_NEXAPOD_COMPLETE": "complete_bash", "COMP_WORDS": f"nexapod {word} --", "COMP_CWORD": "2"}
    code = "import sys; sys.argv = ['nexapod']; from nexapod.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, timeout=30, check=False
    )
    assert options <= set(done.stdout.split()), done.stderr


def test_a_closed_pipe_is_no_error_message(daemon: Daemon) -> None:
    daemon.add()
    command = [sys.executable, "-m", "nexapod", "--home", str(daemon.home), "jobs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(20) == 1


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("status > /dev/full", 1, "the output: No space left on device"),
        ("status --json > /dev/full", 1, "the output: No space left on device"),
        ("--version > /dev/full", 1, "No space left on device"),
        ("status >&-", 0, ""),
        ("status >&- 2>&-", 0, ""),
    ],
)
def test_an_output_that_takes_nothing_is_said(daemon: Daemon, shell: str, status: int, said: str) -> None:
    command = f'exec "{sys.executable}" -m nexapod --home "{daemon.home}" {shell}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) == bool(said)


def test_a_daemon_that_dies_is_waited_for_a_while(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "RETRY_S", 0.01)
    monkeypatch.setattr(watching, "RETRIES_MAX", 3)
    backend = FakeBackend()
    home = tmp_path / "home"
    home.mkdir()
    status: list[int] = []
    with served_in_thread(backend, home / "api.sock") as token:
        daemon = Daemon(home, backend, token)
        job = daemon.add()
        thread = threading.Thread(target=lambda: status.append(cli("watch", job.hex())))
        thread.start()
        daemon.when(lambda: bool(backend.watchers), lambda: None).join()
    thread.join(20)
    assert status == [3]
    assert "trying again" in cli.err


def test_the_version_is_told(cli: Cli) -> None:
    assert cli("--version") == 0
    assert cli.out.startswith("nexapod ")
    assert app_module.__version__ in cli.out


def test_peers_and_placement_are_whole_in_json(daemon: Daemon, cli: Cli) -> None:
    job = daemon.add()
    daemon.do(daemon.backend.place, job)
    assert cli("job", job.hex(), "--json") == 0
    assert cli.json["placed_on"] == [ANN, BOB]


def test_the_owner_pauses_this_machine_and_lets_it_go_on(daemon: Daemon, cli: Cli) -> None:
    assert cli("pause", "1h30m") == 0
    assert "they go on in 1 h 30 m" in cli.out
    assert daemon.backend.paused_for == [5400]
    assert cli("tasks") == 0
    assert "paused" in cli.out
    assert cli("status") == 0
    assert "state       paused for 1 h 30 m more\nup for      1 h 2 m\n" in cli.out
    assert cli("resume", "--json") == 0
    assert cli.json == {"paused": False}
    assert work_commands.PAUSE_MS_MAX == task_routes.PAUSE_S_MAX * 1000
    for wrong, said in (("soon", "is not a duration"), ("0s", "0s is not possible"), ("400d", "at most 30d")):
        assert cli("pause", wrong) == 5
        assert said in cli.err
        assert "until `nexapod resume`" in cli.err
    assert daemon.backend.paused_for == []
    assert cli("pause") == 0
    assert cli("status") == 0
    assert "paused until `nexapod resume`\n" in cli.out


def test_a_log_is_followed_to_the_end_of_its_task(daemon: Daemon, cli: Cli) -> None:
    job = daemon.add(tasks=2)
    task = daemon.backend.known[job].tasks[0]
    task.log = "first line\n"

    def more() -> None:
        task.log = "first line\nsecond line\n"
        task.state = "accepted"

    asked: list[int] = []
    told = daemon.backend.task_log

    async def task_log(job: JobId, index: int) -> Any:
        asked.append(index)
        return await told(job, index)

    daemon.backend.task_log = task_log  # type: ignore[method-assign]
    thread = daemon.when(lambda: bool(asked), more)
    assert cli("logs", job.hex(), 0, "--follow") == 0
    thread.join()
    assert cli.out.count("first line") == cli.out.count("second line") == 1
    assert cli("logs", job.hex(), 0, "-f", "--json") == 0
    assert json.loads(cli.out)["log"] == task.log
