"""Each promise of the container sandbox, tried by the probe; and that each can be broken, in sandboxes made weak."""

from __future__ import annotations

import contextlib
import json
import platform
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
from containers.engine_kit import NoEngine, connect

from nexapod.executor.contract import Ended
from nexapod.executor.docker.settings import LABEL_HOME
from nexapod.executor.probe import image
from nexapod.executor.probe.engine import PID_MAX, REPOSITORY, Engine, home_id
from nexapod.executor.probe.promises import (
    DOCKER,
    LEFTOVERS,
    Broken,
    Folders,
    Kept,
    Promise,
    Seen,
    Traces,
    Unknown,
    judge_privilege,
)
from nexapod.executor.probe.sandboxes import DockerSandbox
from nexapod.executor.probe.trying import try_promise
from nexapod.protocol.types import Limits

ARCH = platform.machine()
BY_NAME = {promise.name: promise for promise in DOCKER}


@pytest.fixture(scope="module")
def client(missing: Callable[[str, str], None]) -> Iterator[Any]:
    if ARCH not in image.GO_ARCHITECTURES:
        pytest.skip(f"the probe is not built for {ARCH}")
    try:
        client = connect()
    except NoEngine as error:
        missing("docker", str(error))
    yield client
    client.close()


@pytest.fixture
async def sandbox(client: Any, tmp_path: Path) -> AsyncIterator[DockerSandbox]:
    engine = Engine()
    opened = await DockerSandbox.open(engine, ARCH, tmp_path)
    yield opened
    left = await opened.aclose()
    engine.close()
    assert left == Traces()


@pytest.mark.parametrize("promise", DOCKER, ids=lambda promise: promise.name)
async def test_the_sandbox_keeps(promise: Promise, sandbox: DockerSandbox, tmp_path: Path) -> None:
    tried = await try_promise(sandbox, promise, tmp_path, 1)
    assert isinstance(tried.verdict, Kept), tried.verdict
    assert await sandbox.traces() == Traces()
    assert not (tmp_path / "1").exists()


# --- sandboxes made weak -------------------------------------------------------------------------------------------
NOBODY = "65534:65534"
STRICT: dict[str, Any] = {"NetworkMode": "none", "ReadonlyRootfs": True, "CapDrop": ["ALL"]}


@dataclass
class Weak:
    """Containers of the probe, run by hand with whatever settings a test wants."""

    client: Any
    image: str
    home: Path

    def start(self, *words: str, user: str = NOBODY, **host: Any) -> str:
        for name in ("input", "output"):
            (self.home / name).mkdir(exist_ok=True)
            (self.home / name).chmod(0o777)
        (self.home / "input" / "in.txt").write_text("what goes in\n")
        binds = [f"{self.home}/input:/input:ro", f"{self.home}/output:/output"]
        settings = {
            "Image": self.image,
            "Cmd": [image.PROGRAM_PATH, *words],
            "User": user,
            "Labels": {LABEL_HOME: home_id(1)},
            "HostConfig": STRICT | {"Binds": binds} | host,
        }
        made = self.client.create_container_from_config(settings, f"nexapod-doctor-weak-{secrets.token_hex(4)}")
        try:
            self.client.start(made["Id"])
        except docker.errors.APIError:
            self.client.remove_container(made["Id"], force=True)
            raise
        return str(made["Id"])

    def see(self, *words: str, limits: Limits, **options: Any) -> Seen:
        """Run to the end without watching, as a sandbox would that keeps no promise."""
        container = self.start(*words, **options)
        try:
            status = self.client.wait(container, timeout=30)["StatusCode"]
            printed = self.client.logs(container).decode("utf-8", "replace")
        finally:
            self.client.remove_container(container, force=True)
        result = self.home / "output" / "result.json"
        found = json.loads(result.read_text()) if result.exists() else {}
        sizes = [path.stat().st_size for path in (self.home / "output").iterdir()]
        ended = Ended("ok" if status == 0 else "failed", status, log=printed)
        return Seen(limits, ended, found, Folders(len(sizes), sum(sizes)))


@pytest.fixture
def weak(client: Any, tmp_path: Path) -> Iterator[Weak]:
    tag = f"weak-{secrets.token_hex(4)}"
    tar, _ = image.archive(ARCH, REPOSITORY, tag)
    list(client.load_image(tar))
    (tmp_path / "w").mkdir()
    yield Weak(client, client.inspect_image(f"{REPOSITORY}:{tag}")["Id"], tmp_path / "w")
    client.remove_image(f"{REPOSITORY}:{tag}", force=True)


NO_FILTER = {"SecurityOpt": ["seccomp=unconfined"]}
WEAKENED = {
    "network": ({"NetworkMode": "host"}, "there is a way out: "),
    "write outside": ({"ReadonlyRootfs": False, "user": "0:0"}, "wrote to /,"),
    "privilege": ({"user": "0:0", "CapDrop": [], **NO_FILTER}, "it is root"),
    "fork bomb": ({}, "1024 children at once, where 256 processes are allowed"),
    "memory bomb": ({}, "took 192 MiB, where 64 MiB are allowed"),
    "log bomb": ({}, "bytes of its log were kept, where 2048 are allowed"),
}


@pytest.mark.parametrize("name", WEAKENED)
def test_a_weakened_sandbox_is_found_out(name: str, weak: Weak) -> None:
    options, said = WEAKENED[name]
    promise = BY_NAME[name]
    verdict = promise.judge(weak.see(*promise.command, limits=promise.limits, **options))
    assert isinstance(verdict, Broken), verdict
    assert said in verdict.happened


@pytest.mark.parametrize(("name", "words"), [("disk bomb", ("disk", "8", "0")), ("file bomb", ("files", "300", "0"))])
def test_bombs_that_nobody_stops_are_found_out(name: str, words: tuple[str, ...], weak: Weak) -> None:
    promise = BY_NAME[name]
    verdict = promise.judge(weak.see(*words, limits=promise.limits))
    assert isinstance(verdict, Broken), verdict
    assert "was not stopped" in verdict.happened


@pytest.fixture
def network(client: Any) -> Iterator[str]:
    """A bridge of our own with no way further, so that nothing depends on the engine's default one."""
    made = client.create_network(f"nexapod-doctor-{secrets.token_hex(4)}", internal=True)
    yield str(made["Id"])
    client.remove_network(made["Id"])


def test_a_way_by_an_interface_is_found_where_no_odd_socket_can_be_opened(weak: Weak, network: str) -> None:
    """With our own filter of system calls, and a network: what is left to find is the interface."""
    profile = files("nexapod.executor.docker").joinpath("seccomp.json")
    option = {"SecurityOpt": [f"seccomp={profile.read_text()}"], "NetworkMode": network}
    promise = BY_NAME["network"]
    verdict = promise.judge(weak.see(*promise.command, limits=promise.limits, **option))
    assert isinstance(verdict, Broken), verdict
    assert verdict.happened.startswith("there is a way out: interface eth0")


def test_an_engine_that_leaves_vsock_open_is_found_out(weak: Weak) -> None:
    try:
        socket.socket(socket.AF_VSOCK).close()
    except OSError as error:
        pytest.skip(f"this kernel has no AF_VSOCK ({error.strerror})")
    promise = BY_NAME["vsock"]
    assert isinstance(promise.judge(weak.see("vsock", limits=promise.limits, **NO_FILTER)), Broken)


def test_the_filter_of_system_calls_alone_keeps_a_nobody_from_new_privileges(weak: Weak) -> None:
    verdict = judge_privilege(weak.see("privilege", limits=Limits(), **NO_FILTER))
    assert isinstance(verdict, Broken)
    assert "has no filter of system calls" in verdict.happened
    assert "can gain privileges" in verdict.happened


def test_a_writable_input_is_found_out(weak: Weak) -> None:
    writable = {"Binds": [f"{weak.home}/input:/input", f"{weak.home}/output:/output"]}
    promise = BY_NAME["write outside"]
    verdict = promise.judge(weak.see(*promise.command, limits=promise.limits, **writable))
    assert isinstance(verdict, Broken)
    assert "wrote to /input" in verdict.happened


def _wait_for_tree(token: str, count: int) -> list[str]:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found = [str(p.pid) for p in psutil.process_iter(["cmdline"]) if token in (p.info["cmdline"] or ())]
        if len(found) >= count:
            return found
        time.sleep(0.02)
    raise AssertionError("the tree of processes was never seen")


def test_a_tree_that_is_only_asked_to_end_is_found_out(weak: Weak) -> None:
    token = secrets.token_hex(8)
    container = weak.start("stubborn", token)
    try:
        during = Traces(processes=tuple(_wait_for_tree(token, 15)))
        weak.client.kill(container, signal="TERM")
        after = Traces(processes=tuple(_wait_for_tree(token, 15)))
    finally:
        weak.client.remove_container(container, force=True)
    promise = BY_NAME["kill"]
    assert isinstance(promise.judge(Seen(promise.limits, during=during, after=after)), Broken)


def test_what_is_left_in_the_engine_is_seen(weak: Weak) -> None:
    container = weak.start("exit", "0")
    engine = Engine()
    try:
        weak.client.wait(container, timeout=30)
        left = Traces(containers=tuple(engine.containers(home_id(1))))
    finally:
        weak.client.remove_container(container, force=True)
        engine.close()
    verdict = LEFTOVERS.judge(Seen(LEFTOVERS.limits, after=left))
    assert isinstance(verdict, Broken)
    assert "nexapod-doctor-weak-" in verdict.happened


def test_the_next_doctor_removes_what_a_killed_one_left(client: Any, weak: Weak) -> None:
    gone = PID_MAX  # one more than the largest number that a process may have
    tar, _ = image.archive(ARCH, REPOSITORY, str(gone))
    list(client.load_image(tar))
    made = client.create_container_from_config(
        {"Image": weak.image, "Cmd": ["/probe"], "Labels": {LABEL_HOME: home_id(gone)}}, f"nexapod-doctor-gone-{gone}"
    )
    engine = Engine()
    try:
        engine.sweep()
        assert engine.images(str(gone)) == []
        assert engine.containers(home_id(gone)) == []
    finally:
        engine.close()
        with contextlib.suppress(docker.errors.NotFound):
            client.remove_container(made["Id"], force=True)


def test_the_engine_knows_the_image_by_its_content(client: Any, weak: Weak) -> None:
    tar, content_id = image.archive(ARCH, REPOSITORY, "any")
    assert tar == image.archive(ARCH, REPOSITORY, "any")[0]
    if (client.info().get("DriverStatus") or [["", ""]])[0][1].startswith("io.containerd.snapshotter"):
        pytest.skip("this engine names images by their manifest")
    assert weak.image == content_id


async def test_an_image_that_vanished_is_unknown_and_not_kept(sandbox: DockerSandbox, tmp_path: Path) -> None:
    sandbox._image = "sha256:" + "0" * 64
    tried = await try_promise(sandbox, BY_NAME["network"], tmp_path, 1)
    assert isinstance(tried.verdict, Unknown)
    assert "does not hold the image" in tried.verdict.happened
