"""`nexapod doctor` as a command: with an engine and without, beside a running daemon, on homes that cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from api_fake import FakeBackend, served_in_thread
from containers.engine_kit import NoEngine, connect

KEYS = {"name", "group", "state", "happened", "remedy", "seconds"}


def doctor(home: Path, *words: str, engine: str | None = None) -> tuple[int, str, str]:
    environ = os.environ | {"NEXAPOD_HOME": str(home), "XDG_CONFIG_HOME": str(home.parent / "config")}
    if engine is not None:
        environ["DOCKER_HOST"] = engine
    done = subprocess.run(
        [sys.executable, "-m", "nexapod", "doctor", *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def rows(printed: str) -> dict[tuple[str, str], dict[str, Any]]:
    answer = json.loads(printed)
    assert all(set(check) == KEYS for check in answer["checks"])
    assert answer["ok"] == all(check["state"] != "failed" for check in answer["checks"])
    return {(check["group"], check["name"]): check for check in answer["checks"]}


@pytest.fixture
def no_engine(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/no.sock"


def test_without_an_engine_its_promises_are_skipped_with_the_reason(tmp_path: Path, no_engine: str) -> None:
    status, out, err = doctor(tmp_path / "home", "--json", "--quick", engine=no_engine)
    found = rows(out)
    assert found["docker", "engine"]["state"] == "skipped"
    assert "there is no container engine" in found["docker", "engine"]["happened"]
    assert found["docker", "engine"]["remedy"]
    assert found["docker", "promises"]["state"] == "skipped"
    assert found["wasm", "network"]["state"] == "ok"
    failed = [name for name, row in found.items() if row["state"] == "failed"]
    assert status == (1 if failed else 0), failed
    assert "looking at wasm" in err
    assert "Traceback" not in err
    assert not (tmp_path / "home").exists(), "nothing was made"


def test_an_engine_that_is_required_and_absent_is_a_failure(tmp_path: Path, no_engine: str) -> None:
    words = ("--json", "--quick", "--executor", "docker", "--require", "docker")
    status, out, _ = doctor(tmp_path / "home", *words, engine=no_engine)
    found = rows(out)
    assert status == 1
    assert found["docker", "engine"]["state"] == "failed"
    assert not any(group == "wasm" for group, _ in found)


def test_with_an_engine_every_promise_is_tried(tmp_path: Path, missing: Callable[[str, str], None]) -> None:
    try:
        client = connect()
    except NoEngine as error:
        missing("docker", str(error))
    _, out, err = doctor(tmp_path / "home", "--json", "--quick", "--executor", "docker")
    found = rows(out)
    for name in ("start", "network", "vsock", "write outside", "privilege", "output tricks", "nothing left"):
        assert found["docker", name]["state"] == "ok", found["docker", name]
    assert "Traceback" not in err
    images = [tag for image in client.images(name="nexapod-probe") for tag in image["RepoTags"] or ()]
    client.close()
    assert not any(
        tag.rpartition(":")[2].isdigit() and not Path(f"/proc/{tag.rpartition(':')[2]}").exists() for tag in images
    )


def test_a_home_that_cannot_be_written_is_a_row(no_engine: str) -> None:
    status, out, err = doctor(Path("/proc/nexapod"), "--json", "--quick", "--executor", "wasm", engine=no_engine)
    found = rows(out)
    assert status == 1
    assert found["machine", "home"]["state"] == "failed"
    assert found["machine", "home"]["remedy"]
    assert found["wasm", "network"]["state"] == "ok", "it is tried where temporary files lie"
    assert "Traceback" not in err


def test_beside_a_running_daemon_its_ports_are_its_own(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with served_in_thread(FakeBackend(), home / "api.sock"):
        _, out, _ = doctor(home, "--json", "--quick", "--executor", "wasm")
    found = rows(out)
    assert found["network", "port"]["happened"] == "127.0.0.1 port 4747: held by the daemon of this home (process 4711)"
    assert "2 peers" in found["network", "bootstrap"]["happened"]


def test_for_people_it_is_a_table_and_what_to_do(tmp_path: Path, no_engine: str) -> None:
    _, out, _ = doctor(tmp_path / "home", "--quick", engine=no_engine)
    lines = out.splitlines()
    assert lines[0] == "GROUP\tCHECK\tSTATE\tWHAT HAPPENED"
    assert any(line.startswith("wasm\tnetwork\tok\t") for line in lines)
    assert "What to do:" in lines
    assert any(line.startswith("  docker engine (skipped): Install Docker or Podman") for line in lines)


def test_a_sandbox_that_does_not_exist_is_wrong_usage(tmp_path: Path) -> None:
    status, out, err = doctor(tmp_path / "home", "--executor", "chroot")
    assert status == 2
    assert "'chroot' is no sandbox" in err.replace("\n", " ")
    assert out == ""
