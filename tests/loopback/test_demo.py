"""`nexapod demo` tells its whole story: panel, seats, a killed worker, judges, a certificate that holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO_S = 240.0
FASTA = ">one\nMKVLAAGIVGLCAKAYKE\n>two\nGSHMLEDPVDAFKLN\n>three\nACDEFGHIKLMNPQRSTVWY\n>four\nMKKLLPTAAAGLLLLAAQPAMA\n"


@pytest.mark.slow
def test_the_demo_loses_a_peer_and_proves_its_result(tmp_path: Path, weights: bytes) -> None:
    assert weights
    (tmp_path / "in.fasta").write_text(FASTA)
    command = [sys.executable, "-m", "nexapod", "demo", "--json", "--peers", "4", "--fasta", str(tmp_path / "in.fasta")]
    ended = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, timeout=DEMO_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["tasks"], told["accepted"], told["failed"], told["verified"]) == (4, 4, 0, True)
    assert "The job is kept by 4 stewards" in told["rests_on"]
    members = set(told["names"]) - {told["submitter"]}
    assert set(told["panel"]) == members
    assert told["killed"] in members
    for record in ("one", "two", "three", "four"):
        assert len([replica for replica in told["replicas"][record] if replica["agrees"]]) >= 2
        assert len(set(told["judges"][record]) & members) >= 2
        assert len(told["predictions"][record]) > 0
    assert sorted(path.name for path in (tmp_path / "out" / "results").iterdir() if path.is_dir()) == sorted(
        ["one", "two", "three", "four"]
    )
