"""`nexapod verify`: a certificate and the result files beside it, checked without a daemon."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from nexapod.cli.collecting import MANIFEST
from nexapod.cli.errors import NothingThere
from nexapod.cli.verifying import NoCertificate, verify_file
from nexapod.mesh.identity import Signer
from nexapod.protocol import statements
from nexapod.protocol.certificate import build, evidence_digest
from nexapod.protocol.statements import Bid, Commit, Reveal, Settlement, Statement, Verdict, Vote
from nexapod.protocol.types import File, JobId, JobSpec, Run, StatementId, Usage, blob_of

SUBMITTER, ANN, BOB, STEWARD = (Signer(hashlib.sha256(b"%d" % n).digest()) for n in range(4))
OUTPUTS = (File("out/table.tsv", blob_of(b"1\t2\n")), File("log", blob_of(b"")))


def certificate() -> tuple[bytes, str]:
    """Of a job of one task that two workers agreed on, signed with real keys."""
    spec = JobSpec("test", "a job", bytes(16), 0, Run("wasm", blob_of(b"module")), tasks=1)
    job = statements.make(spec, SUBMITTER)
    name = JobId(job.id)
    evidence: list[Statement] = []
    votes = []
    root = statements.output_root("ok", 0, OUTPUTS)
    for worker in (ANN, BOB):
        bid = statements.make(Bid(name, 0, (0,), 0, StatementId(bytes(32)), 1), worker)
        sealed = statements.commitment(name, 0, worker.peer, bytes(32), root)
        commit = statements.make(Commit(name, 0, bid.id, sealed), worker)
        usage = Usage(cpu_ms=1500)
        body = Reveal(name, 0, commit.id, bytes(32), root, "ok", 0, OUTPUTS, usage, "wasm", "linux-x86_64", "")
        reveal = statements.make(body, worker)
        evidence += [bid, commit, reveal]
        votes.append(Vote(reveal.id, worker.peer, worker.peer, agreed=True))
    verdict = Verdict(name, 0, "accepted", root, tuple(votes), (STEWARD.peer,), "")
    evidence.append(statements.make(verdict, STEWARD))
    settlement = statements.make(Settlement(name, 1, 0, evidence_digest([job, *evidence])), SUBMITTER)
    return build(job, evidence, settlement), name.hex()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    (folder / "0/out").mkdir(parents=True)
    (folder / "0/out/table.tsv").write_bytes(b"1\t2\n")
    (folder / "0/log").write_bytes(b"")
    (folder / "job.cert").write_bytes(certificate()[0])
    return folder


def test_a_true_certificate_and_its_files_are_verified(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_file(results / "job.cert", None, as_json=False) == 0
    assert "1 of 1 tasks settled" in capsys.readouterr().out
    assert verify_file(results / "job.cert", results, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["files_checked"], told["files_unknown"], told["settled"]) == (True, 2, [], 1)


def test_each_flipped_byte_is_found(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (results / "job.cert").read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        (results / "bad.cert").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert verify_file(results / "bad.cert", results, as_json=False) == 1, at
        assert "NOT VERIFIED" in capsys.readouterr().out


def test_a_changed_a_missing_and_an_unknown_file_are_told(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "0/out/table.tsv").write_bytes(b"1\t3\n")
    (results / "0/log").unlink()
    (results / "0/extra").write_text("x")
    assert verify_file(results / "job.cert", results, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == [
        "task 0: 0/out/table.tsv is not the settled file: its bytes differ",
        "task 0: 0/log is missing",
    ]
    assert told["files_unknown"] == ["0/extra"]


def test_the_manifest_is_only_a_hint(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = certificate()[1]
    (results / "0").rename(results / "chain_A")
    (results / MANIFEST).write_text(json.dumps({"job_id": job, "tasks": {"0": "chain_A"}}))
    assert verify_file(results / "job.cert", results, as_json=False) == 0
    lies = [
        {"job_id": "00", "tasks": {}},
        [],
        *({"job_id": job, "tasks": {"0": name}} for name in ("../chain_A", 7, [])),
    ]
    for lie in ("{", "[" * 100_000, *map(json.dumps, lies)):
        (results / MANIFEST).write_text(lie)
        assert verify_file(results / "job.cert", results, as_json=False) == 1
    assert "is missing" in capsys.readouterr().out


def test_what_is_not_there_or_no_certificate_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NothingThere):
        verify_file(tmp_path / "none", None, as_json=False)
    with pytest.raises(NoCertificate):
        verify_file(tmp_path / ("x" * 300), None, as_json=False)
    (tmp_path / "x").write_bytes(b"\x1b[2J garbage")
    assert verify_file(tmp_path / "x", None, as_json=False) == 1
    assert "\x1b" not in capsys.readouterr().out
    (tmp_path / "y").write_bytes(certificate()[0])
    for name in ("no-folder", "x" * 300):
        with pytest.raises(NothingThere):
            verify_file(tmp_path / "y", tmp_path / name, as_json=False)


def test_a_folder_is_its_certificate_and_the_files_beside_it(
    results: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert verify_file(results, None, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["files_checked"] == 2
    (results / "0/log").write_text("other")
    assert verify_file(results, None, as_json=False) == 1
    (results / "other.cert").write_bytes(b"")
    with pytest.raises(NoCertificate, match="2 certificates"):
        verify_file(results, None, as_json=False)
    with pytest.raises(NothingThere, match="no certificate"):
        verify_file(tmp_path, None, as_json=False)


def test_a_strangers_folder_may_be_nested_deeply(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = results / "0"
    folder = os.open(deep, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    os.close(folder)
    try:
        assert verify_file(results, None, as_json=True) in (0, 1)
    finally:
        subprocess.run(["rm", "-rf", str(results)], check=True)  # the library's rmtree is recursive
    assert "d/d/d" in capsys.readouterr().out
