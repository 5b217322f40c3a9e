"""The probe's image, made of bytes; and what an engine's answers mean."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nexapod.executor.probe import image
from nexapod.executor.probe.engine import PID_MAX, Engine, EngineAway, away_from, facts_of, home_id, is_of_the_dead


def _members(tar: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        for entry in opened.getmembers():
            file = opened.extractfile(entry)
            found[entry.name] = file.read() if file else b""
    return found


@pytest.mark.parametrize(("arch", "machine"), [("x86_64", 62), ("aarch64", 183)])
def test_the_programs_are_small_static_and_for_their_architecture(arch: str, machine: int) -> None:
    elf = image.program(arch)
    assert elf.startswith(b"\x7fELF\x02\x01")
    assert int.from_bytes(elf[18:20], "little") == machine
    assert len(elf) < 64 << 10
    assert b"ld-linux" not in elf
    assert b"ld-musl" not in elf


def test_the_module_is_one() -> None:
    assert image.module().startswith(b"\0asm\x01\0\0\0")
    assert len(image.module()) < 64 << 10


@pytest.mark.parametrize("arch", image.GO_ARCHITECTURES)
def test_the_archive_names_its_contents_by_their_digests(arch: str) -> None:
    tar, content_id = image.archive(arch, "nexapod-probe", "1")
    members = _members(tar)
    [entry] = json.loads(members["manifest.json"])
    config = json.loads(members[entry["Config"]])
    assert content_id == f"sha256:{hashlib.sha256(members[entry['Config']]).hexdigest()}"
    assert config["architecture"] == image.GO_ARCHITECTURES[arch]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(members[entry['Layers'][0]]).hexdigest()}"]
    assert _members(members["layer.tar"])["probe"] == image.program(arch)
    assert image.archive(arch, "nexapod-probe", "2")[1] == content_id, "the name is no part of the content"


def test_there_is_none_for_other_architectures() -> None:
    with pytest.raises(KeyError):
        image.archive("riscv64", "nexapod-probe", "1")


INFO: dict[str, Any] = {
    "ServerVersion": "20.10.24", "Architecture": "x86_64", "Driver": "overlay2", "CgroupVersion": "2",
    "CgroupDriver": "systemd", "SecurityOptions": ["name=seccomp,profile=default", "name=cgroupns"],
    "InitBinary": "docker-init", "MemoryLimit": True, "SwapLimit": True, "CpuCfsQuota": True, "PidsLimit": True,
}  # fmt: skip


def test_what_an_engine_says_of_itself() -> None:
    facts = facts_of(INFO, {"ApiVersion": "1.41"})
    assert (facts.version, facts.api, facts.cgroup_version, facts.lacks) == ("20.10.24", "1.41", "2", ())
    assert (facts.seccomp, facts.rootless, facts.init) == (True, False, True)
    assert [facts_of({**INFO, "Architecture": a}, {}).arch for a in ("amd64", "arm64")] == ["x86_64", "aarch64"]
    poor = facts_of({**INFO, "PidsLimit": False, "SecurityOptions": ["name=rootless"], "InitBinary": ""}, {})
    assert (poor.seccomp, poor.rootless, poor.init, poor.lacks) == (False, True, False, ("limits of processes",))


def test_podman_says_it_in_other_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexapod.executor.docker.engine._PODMAN_INIT", ("/dev/null",))
    facts = facts_of({**INFO, "Rootless": True, "InitBinary": ""}, {"Components": [{"Name": "Podman Engine"}]})
    assert (facts.podman, facts.rootless, facts.init) == (True, True, True)


@pytest.mark.parametrize(
    ("number", "how", "remedy"),
    [
        (errno.EACCES, "closed", "usermod"),
        (errno.ENOENT, "absent", "wasm jobs need neither"),
        (errno.ECONNREFUSED, "absent", "systemctl start"),
        (errno.ETIMEDOUT, "faulty", "DOCKER_HOST"),
    ],
)
def test_why_an_engine_cannot_be_used(number: int, how: str, remedy: str) -> None:
    away = away_from("/run/docker.sock", OSError(number, os.strerror(number)))
    assert away.how == how
    assert remedy in away.remedy
    assert os.strerror(number) in str(away)


def test_an_engine_that_takes_a_connection_and_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen(8)
        with pytest.raises(EngineAway, match="does not answer") as raised:
            Engine(f"unix://{tmp_path}/s", ask_s=1)
    assert raised.value.how == "faulty"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_engine_of_a_group_that_this_user_is_not_in_is_closed(tmp_path: Path) -> None:
    code = "import os, sys; from nexapod.executor.probe import engine\n"
    code += "os.setgroups([]); os.setegid(65534); os.seteuid(65534)\n"
    code += "try: engine.Engine(f'unix://{sys.argv[1]}')\nexcept engine.EngineAway as away: print(away.how)"
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(tmp_path / "s"))
        (tmp_path / "s").chmod(0o660)
        closed.listen(8)
        words = [sys.executable, "-c", code, str(tmp_path / "s")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout.strip(), done.stderr) == ("closed", "")


def test_an_engine_that_is_not_there_is_absent(tmp_path: Path) -> None:
    with pytest.raises(EngineAway) as raised:
        Engine(f"unix://{tmp_path}/none")
    assert raised.value.how == "absent"


def test_the_home_of_a_doctor_names_its_process() -> None:
    assert home_id(4711) == "d0c7" + f"{4711:012x}"
    assert len(home_id(1 << 22)) == 16


def test_a_home_of_the_dead_is_a_doctor_s_and_nobody_else_s() -> None:
    assert is_of_the_dead(home_id(PID_MAX))
    assert is_of_the_dead(home_id(os.getpid())), "from an earlier process of this number"
    assert not is_of_the_dead(home_id(1))
    for other in ("0123456789abcdef", "d0c7fedcba987654", "d0c7", "d0c70000000000zz"):
        assert not is_of_the_dead(other)
