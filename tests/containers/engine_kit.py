"""What the tests of the container executor need: an engine, and an image made here, from no registry."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import docker

HOME = "0123456789abcdef"
REPOSITORY = "nexapod-test"
_DIRECTORIES = ["bin", "sbin", "etc", "tmp", "proc", "sys", "dev", "input", "output", "checkpoint", "run", "data"]
_APPLETS = ["sh", "true", "sleep", "cat", "echo", "ls", "id", "dd", "ln", "mkdir", "env"]
_APPLETS += ["head", "rm", "touch", "mv", "wc", "tr", "ip", "nc", "kill", "mkfifo", "printf"]


class NoEngine(Exception):
    """Why container tests cannot run here."""


def connect() -> Any:
    """A client of the engine that the environment names. Raises NoEngine."""
    try:
        client = docker.APIClient(version="auto", timeout=20, **docker.utils.kwargs_from_env())
        client.ping()
    except docker.errors.DockerException as error:
        raise NoEngine(f"no container engine answers ({error})") from None
    return client


def compiled(source: Path, scratch: Path) -> Path:
    """A static program made of one C file. Raises NoEngine when there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise NoEngine("no C compiler (install the package gcc)")
    program = scratch / source.stem
    made = subprocess.run(
        [compiler, "-static", "-O1", "-o", program, source], capture_output=True, timeout=60, check=False
    )
    if made.returncode:
        raise NoEngine(f"{source.name} does not compile: {made.stderr.decode(errors='replace')[-300:]}")
    return program


def import_image(
    client: Any, scratch: Path, programs: Iterable[tuple[str, Path, int]] = (), *, tmp_mode: int = 0o755
) -> str:
    """An image of busybox and of `programs` (path inside, file, mode); its content id. Raises NoEngine when there is
    no busybox to be had."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in _DIRECTORIES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, tmp_mode if name == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(_busybox(scratch), "bin/busybox", filter=_as_root)
        for inside, program, mode in programs:
            entry = tarfile.TarInfo(inside)
            entry.size, entry.mode = program.stat().st_size, mode
            with program.open("rb") as content:
                tar.addfile(entry, content)
        for name in _APPLETS:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    answer = client.import_image_from_data(raw.getvalue(), repository=REPOSITORY, changes=["VOLUME /data"])
    return str(json.loads(answer.splitlines()[-1])["status"])


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.mode = 0o755
    return entry


def _busybox(scratch: Path) -> Path:
    """Debian's static busybox: as installed, or out of its package."""
    for installed in (Path("/bin/busybox"), Path("/usr/bin/busybox")):
        if installed.exists() and b"/lib64/ld-linux" not in installed.read_bytes():
            return installed
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NoEngine("no static busybox (install the package busybox-static)")
    scratch.chmod(0o777)  # apt downloads as its own user
    got = subprocess.run(
        ["apt-get", "download", "-q", "busybox-static"],
        cwd=scratch,
        capture_output=True,
        timeout=60,
        check=False,
    )
    packages = list(scratch.glob("*.deb"))
    if got.returncode or not packages:
        raise NoEngine(f"busybox-static cannot be downloaded: {got.stderr.decode(errors='replace')[-200:]}")
    subprocess.run(["dpkg-deb", "-x", packages[0], scratch / "x"], check=True, timeout=60)
    return scratch / "x" / "bin" / "busybox"
