"""`nexapod verify`: a certificate and the result files beside it, checked without a daemon."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from signed_mesh import certified

from nexapod.cli.collecting import MANIFEST
from nexapod.cli.errors import NothingThere
from nexapod.cli.peer_ids import NoPeer
from nexapod.cli.verifying import NoCertificate, verify_file, whom
from nexapod.mesh.identity import load_or_create, peer_id
from nexapod.protocol.certificate.report import Pins
from tests.protocol.mesh import job_of

NOBODY = Pins()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for task in (0, 1):
        (folder / str(task)).mkdir(parents=True)
        (folder / f"{task}/out.txt").write_bytes(b"result of %d" % task)
    (folder / "job.cert").write_bytes(certified()[1])
    return folder


def job_id() -> str:
    return job_of(certified()[0][0]).hex()


def test_a_true_certificate_and_its_files_are_verified(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_file(results / "job.cert", None, NOBODY, as_json=False) == 0
    said = capsys.readouterr().out
    assert "Tasks: 2; 2 accepted, 0 failed" in said
    assert said.endswith("verified: every signature holds, and every judgement was repeated\n")
    assert verify_file(results / "job.cert", results, NOBODY, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["files_checked"], told["files_unknown"], told["accepted"]) == (True, 2, [], 2)
    assert (told["job_id"], told["submitter"]) == (job_id(), certified()[0].names[0])


def test_the_first_line_says_whose_word_it_is_who_chose_the_judges_and_how_many_are_known(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitter, *members = certified()[0].names
    assert verify_file(results / "job.cert", None, Pins(None, frozenset(members[:1])), as_json=False) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(
        f"Nobody was named as the submitter: this is only what {submitter} says. The submitter chose"
    )
    assert "the panel of 3 members that judged; 1 of them is known here" in first
    assert verify_file(results / "job.cert", None, Pins(submitter), as_json=False) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"This is the word of {submitter}, who was named as the submitter.")
    assert "none was named as known" in first


def test_another_submitter_than_the_one_named_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submitter, other = certified()[0].names[:2]
    assert verify_file(results / "job.cert", None, Pins(other), as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == [f"the job was submitted by {submitter}, not by {other}"]
    assert (told["submitter_named"], told["panel_known"]) == (other, [])


def test_strictly_somebody_must_be_known(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submitter, *members = certified()[0].names
    assert verify_file(results / "job.cert", None, Pins(submitter, (), strict=True), as_json=False) == 1
    assert "of 2 verdicts no signer is known" in capsys.readouterr().out
    assert verify_file(results / "job.cert", None, Pins(submitter, frozenset(members), strict=True), as_json=False) == 0


def test_a_verifier_knows_its_own_peer_its_friends_and_whom_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ann, bob, eve = certified()[0].names[:3]
    config = tmp_path / "config.toml"
    monkeypatch.setenv("NEXAPOD_CONFIG", str(config))
    config.write_text(f'[submit]\nfriends = ["{ann}"]\n')
    assert whom(tmp_path / "none", bob, [eve], strict=False) == Pins(bob, frozenset({ann, eve}))
    own = peer_id(load_or_create(tmp_path / "home/identity.seed"))
    assert whom(tmp_path / "home", None, [], strict=True) == Pins(None, frozenset({ann, own}), strict=True)
    assert not capsys.readouterr().err
    for wrong in ("Ann", "", "12D3KooWx"):
        with pytest.raises(NoPeer):
            whom(tmp_path, wrong, [], strict=False)
    config.write_text('[submit]\nfriends = ["Ann"]\n')
    assert whom(tmp_path / "home", None, [], strict=False).known == {own}
    assert "the friends of config.toml are not known" in capsys.readouterr().err


def test_each_flipped_byte_is_found(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (results / "job.cert").read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        (results / "bad.cert").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert verify_file(results / "bad.cert", results, NOBODY, as_json=False) == 1, at
        assert "NOT VERIFIED" in capsys.readouterr().out


def test_a_changed_a_missing_and_an_unknown_file_are_told(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "0/out.txt").write_bytes(b"another")
    (results / "1/out.txt").unlink()
    (results / "0/extra").write_text("x")
    assert verify_file(results / "job.cert", results, NOBODY, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == [
        "task 0: 0/out.txt is not the accepted file: its bytes differ",
        "task 1: 1/out.txt is missing",
    ]
    assert told["files_unknown"] == ["0/extra"]
    assert verify_file(results / "job.cert", results, NOBODY, as_json=False) == 1
    assert "PROBLEM: task 1: 1/out.txt is missing" in capsys.readouterr().out


def test_the_manifest_is_only_a_hint(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "0").rename(results / "chain_A")
    (results / MANIFEST).write_text(json.dumps({"job_id": job_id(), "tasks": {"0": "chain_A"}}))
    assert verify_file(results / "job.cert", results, NOBODY, as_json=False) == 0
    lies: list[Any] = [
        {"job_id": "00", "tasks": {"0": "chain_A"}},
        [],
        *({"job_id": job_id(), "tasks": {"0": name}} for name in ("../chain_A", 7, [])),
    ]
    for lie in ("{", "[" * 100_000, *map(json.dumps, lies)):
        (results / MANIFEST).write_text(lie)
        assert verify_file(results / "job.cert", results, NOBODY, as_json=False) == 1
    told = capsys.readouterr()
    assert "is missing" in told.out
    assert "is another job's" in told.err


def test_what_is_not_there_or_no_certificate_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NothingThere):
        verify_file(tmp_path / "none", None, NOBODY, as_json=False)
    with pytest.raises(NoCertificate):
        verify_file(tmp_path / ("x" * 300), None, NOBODY, as_json=False)
    (tmp_path / "x").write_bytes(b"\x1b[2J garbage")
    assert verify_file(tmp_path / "x", None, NOBODY, as_json=False) == 1
    assert "\x1b" not in capsys.readouterr().out
    (tmp_path / "y").write_bytes(certified()[1])
    for name in ("no-folder", "x" * 300):
        with pytest.raises(NothingThere):
            verify_file(tmp_path / "y", tmp_path / name, NOBODY, as_json=False)


def test_a_folder_is_its_certificate_and_the_files_beside_it(
    results: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert verify_file(results, None, NOBODY, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["files_checked"] == 2
    (results / "0/out.txt").write_text("other")
    assert verify_file(results, None, NOBODY, as_json=False) == 1
    (results / "other.cert").write_bytes(b"")
    with pytest.raises(NoCertificate, match="2 certificates"):
        verify_file(results, None, NOBODY, as_json=False)
    with pytest.raises(NothingThere, match="no certificate"):
        verify_file(tmp_path, None, NOBODY, as_json=False)


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
        assert verify_file(results, None, NOBODY, as_json=True) in (0, 1)
    finally:
        subprocess.run(["rm", "-rf", str(results)], check=True)  # the library's rmtree is recursive
    assert "d/d/d" in capsys.readouterr().out
