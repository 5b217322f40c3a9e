"""What doctor looks at on a machine: each row in each of its states, on real files, ports and clocks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nexapod.config import Config
from nexapod.daemon.doctor import machine, network, sandboxes
from nexapod.daemon.doctor.check import Check, Desk, Finding, Look, take
from nexapod.daemon.doctor.examine import Wishes, _sweep, all_well, run
from nexapod.daemon.doctor.machine import Adjtimex
from nexapod.daemon.doctor.network import Running
from nexapod.daemon.doctor.sandboxes import finding_away, finding_of, judge_engine
from nexapod.executor.contract import Availability
from nexapod.executor.probe.engine import EngineAway, EngineFacts
from nexapod.executor.probe.promises import DOCKER, Broken, Kept, Unknown
from nexapod.mesh import identity
from nexapod.protocol.errors import LocalError
from nexapod.store.home import Home

PEER = "12D3KooWGaLSNtZ6jtpWnRWEAXVxnFxaE2DFx4uZMNHVLs8CNx3B"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    return made


# --- keys ----------------------------------------------------------------------------------------------------------
def test_keys_that_are_not_made_yet_are_no_fault_and_are_not_made(home: Home) -> None:
    assert machine.keys(home).state == "ok"
    assert not home.identity.exists()


def test_good_keys_show_the_peer(home: Home) -> None:
    peer = identity.peer_id(identity.load_or_create(home.identity))
    assert machine.keys(home) == Finding("ok", f"{peer}, mode 0600")


def test_keys_that_others_can_read_or_that_are_cut_are_a_fault(home: Home) -> None:
    identity.load_or_create(home.identity)
    home.identity.chmod(0o640)
    with pytest.raises(LocalError, match="chmod 600"):
        machine.keys(home)
    home.identity.chmod(0o600)
    home.identity.write_bytes(b"short")
    with pytest.raises(LocalError, match="32-byte seed"):
        machine.keys(home)


def test_keys_behind_a_link_are_a_fault(home: Home) -> None:
    home.identity.symlink_to("/dev/null")
    assert machine.keys(home).state == "failed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_keys_of_another_user_are_a_fault(home: Home) -> None:
    identity.load_or_create(home.identity)
    os.chown(home.identity, 65534, 65534)
    assert "belongs to user 65534" in machine.keys(home).happened


# --- home and disk ---------------------------------------------------------------------------------------------------
def test_a_home_that_can_be_used(home: Home) -> None:
    found = machine.home_folder(home)
    assert found.state in ("ok", "warning"), found
    assert str(home.root) in found.happened


def test_a_home_that_is_not_made_yet_stays_so(tmp_path: Path) -> None:
    found = machine.home_folder(Home(tmp_path / "a" / "b"))
    assert "not made yet" in found.happened
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_is_a_fault() -> None:
    found = machine.home_folder(Home(Path("/proc/nexapod")))
    assert found.state == "failed"
    assert "cannot be written" in found.happened


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_home_of_another_user_is_a_fault(home: Home) -> None:
    os.chown(home.root, 65534, 65534)
    assert "another user" in machine.home_folder(home).happened


def test_the_file_system_of_a_path() -> None:
    assert machine.file_system(Path("/proc/self")) == "proc"


def test_the_speed_of_a_disk_leaves_nothing_on_it(tmp_path: Path) -> None:
    found = machine.disk_speed(tmp_path)
    assert "MB/s, a commit takes" in found.happened
    assert list(tmp_path.iterdir()) == []


# --- clock, libraries ------------------------------------------------------------------------------------------------
SYNCED = Adjtimex(True, 12.0)
FREE = Adjtimex(False, 16e6)


def test_a_clock_behind_its_own_files_is_wrong_whatever_else_is_said(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    os.utime(file, (time.time() + 3600,) * 2)
    found = machine.clock([file, tmp_path / "none"], [0.0], SYNCED)
    assert found.state == "failed"
    assert "behind a file" in found.happened


@pytest.mark.parametrize(
    ("offsets", "kept", "state", "said"),
    [
        ([], SYNCED, "ok", "kept by a time service, within 12 ms"),
        ([], FREE, "warning", "unknown"),
        ([2.0, 1.0, 500.0], FREE, "ok", "2 s behind the clocks of 3 peers"),
        ([-300.0], SYNCED, "warning", "300 s ahead of the clocks of 1 peers"),
    ],
)
def test_a_clock_is_compared_with_peers_else_with_the_kernel(
    offsets: list[float], kept: Adjtimex, state: str, said: str
) -> None:
    found = machine.clock([], offsets, kept)
    assert found.state == state
    assert said in found.happened


def test_the_kernel_says_how_it_keeps_its_clock() -> None:
    found = machine.read_adjtimex()
    assert found is None or found.error_ms >= 0


def test_only_peers_that_are_connected_and_dated_count() -> None:
    peers = [
        {"connected": True, "heard_s": 10, "stamp": 1_000_000},
        {"connected": False, "heard_s": 10, "stamp": 1_000_000},
        {"connected": True, "heard_s": None},
        {"connected": True, "heard_s": 1},
    ]
    assert machine.peer_offsets_s(peers, 1005.0) == [5.0]


def test_libraries_that_are_missing_or_of_another_release_are_a_fault() -> None:
    assert machine.software().state == "ok"
    found = machine.software(["no-such-library>=1", "trio==0.0.1", "hypercorn[trio]>=0.17"])
    assert found.state == "failed"
    assert "no-such-library is missing" in found.happened
    assert "not 0.0.1" in found.happened


# --- network -------------------------------------------------------------------------------------------------------
RUNNING = Running(4711, (f"/ip4/127.0.0.1/tcp/4747/p2p/{PEER}",), 2)


def test_a_port_that_another_program_holds_is_a_fault() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        found = network.port(f"/ip4/127.0.0.1/tcp/{port}", None)
        ours = network.port(f"/ip4/127.0.0.1/tcp/{port}", RUNNING)
    assert found.state == "failed"
    assert "held by" in found.happened
    assert "--listen" in found.remedy
    assert ours.state == "ok"
    assert "process 4711" in ours.happened
    assert network.port(f"/ip4/127.0.0.1/tcp/{port}", None).state == "ok"


def test_an_address_that_is_not_this_machine_s_is_a_fault() -> None:
    found = network.port("/ip4/192.0.2.77/tcp/4747", None)
    assert found.state == "failed"
    assert "no such address" in found.remedy


@pytest.mark.parametrize(
    ("listen", "running", "state", "said"),
    [
        (["/ip4/127.0.0.1/tcp/1"], None, "warning", "nobody but this machine"),
        (["/ip4/10.1.2.3/tcp/1"], None, "ok", "private addresses"),
        (["/ip4/10.1.2.3/tcp/1", "/ip6/2a00::1/tcp/1"], None, "ok", "2a00::1, 10.1.2.3: a public address"),
        (["/ip4/10.1.2.3/tcp/1"], RUNNING, "warning", "2 peers are connected"),
    ],
)
def test_who_can_dial(listen: list[str], running: Running | None, state: str, said: str) -> None:
    found = network.reach(listen, running)
    assert found.state == state
    assert said in found.happened


def test_a_daemon_s_addresses_of_one_port_are_one_row() -> None:
    listen = ["/ip4/10.0.0.1/tcp/5", f"/ip4/10.0.0.2/tcp/5/p2p/{PEER}", "/ip6/::1/tcp/6"]
    assert network.distinct_ports(listen) == ["/ip4/10.0.0.1/tcp/5", "/ip6/::1/tcp/6"]


async def test_bootstrap_peers_are_dialled() -> None:
    with socket.socket() as open_port, socket.socket() as closed:
        open_port.bind(("127.0.0.1", 0))
        open_port.listen()
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        good, bad = (f"/ip4/127.0.0.1/tcp/{s.getsockname()[1]}/p2p/{PEER}" for s in (open_port, closed))
        some = await network.bootstrap([good, bad], None)
        none = await network.bootstrap([bad], None)
    assert some.state == "ok"
    assert "1 of 2 answer; silent" in some.happened
    assert none.state == "warning"
    assert "refused" in none.happened


async def test_no_bootstrap_peer_is_a_warning_unless_peers_are_connected() -> None:
    assert (await network.bootstrap([], None)).state == "warning"
    assert (await network.bootstrap([], RUNNING)).state == "ok"


# --- the engine ------------------------------------------------------------------------------------------------------
FACTS = EngineFacts("28", False, "1.50", "x86_64", "overlay2", "2", "systemd", False, True, True, ())


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (FACTS, "ok"),
        (replace(FACTS, rootless=True, seccomp=False), "failed"),
        (replace(FACTS, rootless=True, cgroup_driver="none", lacks=("memory limits",)), "failed"),
        (replace(FACTS, init=False), "warning"),
        (replace(FACTS, storage="vfs"), "warning"),
    ],
)
def test_what_an_engine_lacks(facts: EngineFacts, state: str) -> None:
    found = judge_engine(facts)
    assert found.state == state
    assert found.happened.startswith("Docker 28 (API 1.50")
    assert bool(found.remedy) == (state != "ok")


def test_what_is_missing_has_the_name_that_podman_knows_it_by() -> None:
    found = judge_engine(replace(FACTS, podman=True, init=False))
    assert found.happened.startswith("Podman 28 ")
    assert "catatonit" in found.remedy


@pytest.mark.parametrize("required", [False, True])
async def test_an_engine_that_is_not_fit_is_a_failure_where_one_is_required(
    tmp_path: Path, required: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unfit:
        executor: Unfit

        async def probe(self) -> Availability:
            return Availability(False, reason="it cannot bound memory")

        async def aclose(self) -> None:
            closed.append(True)

    async def opened(*_: object) -> Unfit:
        unfit = Unfit()
        unfit.executor = unfit
        return unfit

    class Known:
        def facts(self) -> EngineFacts:
            return FACTS

        def close(self) -> None:
            closed.append(True)

    closed: list[bool] = []
    monkeypatch.setattr(sandboxes, "Engine", Known)
    monkeypatch.setattr(sandboxes, "_opened", opened)
    desk = Desk(lambda group, name: None)
    await sandboxes.look_at_docker(desk, tmp_path, quick=True, required=required)
    states = [(row.name, row.state) for row in desk.rows]
    assert states == [("engine", "ok"), ("executor", "failed" if required else "warning"), ("promises", "skipped")]
    assert closed == [True, True]


@pytest.mark.parametrize(
    ("how", "required", "state"),
    [
        ("absent", False, "skipped"),
        ("absent", True, "failed"),
        ("closed", False, "warning"),
        ("closed", True, "failed"),
        ("faulty", False, "failed"),
    ],
)
def test_an_engine_that_is_away(how: str, required: bool, state: str) -> None:
    assert finding_away(EngineAway("x", "y", how), required=required) == Finding(state, "x", "y")  # type: ignore[arg-type]


def test_only_a_promise_that_was_kept_is_ok() -> None:
    promise = DOCKER[0]
    assert finding_of(promise, Kept("a")).state == "ok"
    assert finding_of(promise, Broken("a")) == Finding("failed", "not so: a", promise.remedy)
    assert finding_of(promise, Unknown("a")) == Finding("failed", "could not be tried: a", promise.remedy)


# --- rows ------------------------------------------------------------------------------------------------------------
def _raises(error: Exception) -> Callable[[], Finding]:
    def look() -> Finding:
        raise error

    return look


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), LocalError("bad"), KeyError("odd")])
async def test_what_a_look_raises_is_its_row(error: Exception) -> None:
    desk = Desk(lambda group, name: None)
    await take(desk, Look("n", "g", _raises(error)))
    [check] = desk.rows
    assert (check.name, check.group, check.state) == ("n", "g", "failed")
    assert check.remedy


async def test_a_look_that_hangs_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """In a thread that goes on: the clock of the test does not wait for it."""
    del autojump_clock
    desk = Desk(lambda group, name: None)
    hold = trio.Event()
    released: list[bool] = []

    def hang() -> Finding:
        end = time.monotonic() + 10
        while not released and time.monotonic() < end:
            time.sleep(0.01)
        return Finding("ok", "late")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, desk, Look("n", "g", hang))
        while not desk.rows:  # noqa: ASYNC110  (the clock jumps)
            await trio.sleep(1)
        hold.set()
    released.append(True)
    assert desk.rows[0].state == "failed"
    assert "no answer within" in desk.rows[0].happened


def test_all_is_well_when_nothing_failed() -> None:
    rows = [Check("a", "g", state, "") for state in ("ok", "warning", "skipped")]  # type: ignore[arg-type]
    assert all_well(rows)
    assert not all_well([*rows, Check("b", "g", "failed", "")])


def test_folders_of_examinations_that_were_killed_are_removed(tmp_path: Path) -> None:
    (tmp_path / "doctor-4194303-x").mkdir()
    (tmp_path / f"doctor-{os.getpid()}-x").mkdir()
    (tmp_path / "doctor-notes").mkdir()
    _sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"doctor-{os.getpid()}-x", "doctor-notes"]


def test_an_examination_of_wasm_leaves_the_home_as_it_was(home: Home) -> None:
    before = sorted(home.root.rglob("*"))
    begun: list[str] = []
    config = Config(home.root, listen=("/ip4/127.0.0.1/tcp/0",))
    rows = run(config, Wishes(("wasm",), quick=True), None, lambda group, name: begun.append(f"{group} {name}"))
    assert all_well(rows), [row for row in rows if row.state == "failed"]
    assert sorted(home.root.rglob("*")) == before
    assert "wasm privilege" in begun
    assert {row.group for row in rows} == {"machine", "network", "wasm"}
    assert not any("bomb" in row.name for row in rows)
