"""A hostile image: whatever it tries, it is contained, its run ends as it should, and nothing is left anywhere.

The sandbox fixture looks afterwards for containers, volumes, control groups and scratch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
import trio
from containers.engine_kit import NoEngine, compiled, import_image
from containers.sandbox import Sandbox

from nexapod.executor import watch
from nexapod.executor.contract import EXIT_KILLED, Ended
from nexapod.executor.docker.engine import Engine
from nexapod.executor.outputs import OutputRefused, collect
from nexapod.protocol.types import Limits

MIB = 1 << 20
SMALL = Limits(memory=64 * MIB, output=4 * MIB, disk=8 * MIB, wall_ms=20_000)
BRIEF = replace(SMALL, wall_ms=1_500)


@pytest.fixture(scope="module")
def hostile_image(
    engine: tuple[Any, str], tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str, str], None]
) -> Iterator[str]:
    client, _ = engine
    scratch = tmp_path_factory.mktemp("hostile")
    try:
        program = compiled(Path(__file__).with_name("hostile.c"), scratch)
        image = import_image(client, scratch, [("bin/hostile", program, 0o755), ("bin/setuid", program, 0o6755)])
    except NoEngine as error:
        missing("docker", str(error))
    yield image
    client.remove_image(image, force=True)


@pytest.fixture
def lab(sandbox: Sandbox, hostile_image: str) -> Sandbox:
    return replace(sandbox, image=hostile_image)


async def hostile(lab: Sandbox, *words: str, limits: Limits = SMALL) -> Ended:
    return await lab.run(lab.task("/bin/hostile", *words, limits=limits))


async def test_no_address_family_leads_anywhere(lab: Sandbox) -> None:
    ended = await hostile(lab, "network")
    lines = ended.log.splitlines()
    families = {int(line.split()[1]) for line in lines if line.startswith("socket")}
    # Unix, IPv4 and IPv6 on a loopback of its own, netlink for listing interfaces. No packet, vsock, alg, bluetooth...
    assert families == {1, 2, 10, 16}
    assert not [line for line in lines if line.startswith(("socket 2 3", "socket 10 3"))], "raw"
    assert lines[-3:] == ["tcp ENETUNREACH", "udp ENETUNREACH", "engine ENOENT"]


async def test_a_fork_bomb_ends_at_the_wall_limit_and_stays_among_its_own_processes(lab: Sandbox) -> None:
    most = 0

    async def count() -> None:
        nonlocal most
        while True:
            most = max(most, len([p for p in psutil.process_iter(["name"]) if p.info["name"] == "hostile"]))
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        ended = await hostile(lab, "fork", limits=replace(BRIEF, pids=40, memory=256 * MIB))
        nursery.cancel_scope.cancel()
    assert ended.outcome == "wall-limit"
    assert 20 < most <= 40
    assert [p for p in psutil.process_iter(["name"]) if p.info["name"] == "hostile"] == []


@pytest.mark.parametrize("how", ["memory", "memory-in-child", "memfd"])
async def test_memory_bombs_end_at_the_memory_limit(lab: Sandbox, how: str) -> None:
    ended = await hostile(lab, how)
    assert ended.outcome == "memory-limit"
    assert 32 * MIB < ended.usage.peak_memory < 72 * MIB


async def test_memory_cannot_be_had_from_the_places_that_lie_in_it(lab: Sandbox) -> None:
    line = (
        "for d in /dev/shm /tmp /data; do cat /dev/zero >$d/x; wc -c <$d/x; done; sh -c 'x=a; while :; do x=$x$x; done'"
    )
    ended = await lab.shell(line, limits=SMALL)
    assert ended.outcome == "memory-limit"
    assert ended.usage.peak_memory < 72 * MIB


@pytest.mark.parametrize("folder", ["/output", "/checkpoint"])
async def test_a_disk_bomb_is_stopped_soon_after_its_limit(lab: Sandbox, folder: str) -> None:
    ended = await hostile(lab, "disk", folder)
    assert ended.outcome == "output-limit"
    assert str(4 * MIB if folder == "/output" else 8 * MIB) in ended.reason


@pytest.mark.parametrize("folder", ["/output", "/output/a/b", "/checkpoint/c"])
async def test_a_disk_bomb_that_goes_off_late_is_noticed_between_two_looks(
    lab: Sandbox, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setattr(watch, "WATCH_S", 3600.0)
    ended = await lab.shell(f"sleep 1; mkdir -p {folder}; exec /bin/hostile disk {folder}", limits=SMALL)
    assert ended.outcome == "output-limit"


async def test_a_disk_bomb_is_stopped_before_the_engine_gets_round_to_it(
    lab: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "kill", lambda engine, name: None)
    ended = await hostile(lab, "disk", "/output")
    assert (ended.outcome, ended.exit) == ("output-limit", EXIT_KILLED)


async def test_files_that_no_name_shows_are_seen_by_the_room_that_they_take(
    lab: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = os.statvfs(lab.root)
    monkeypatch.setattr(watch, "DISK_FREE_MIN", disk.f_bavail * disk.f_frsize - 128 * MIB)
    ended = await hostile(lab, "hidden")
    assert (ended.outcome, ended.reason) == ("try-elsewhere", "the disk of this machine is nearly full")


@pytest.mark.parametrize(
    ("how", "folder", "reason"),
    [
        ("files", "/output", "more than 64 output files"),
        ("files", "/checkpoint", "more than 1024 output files (in /checkpoint)"),
        ("files", "/run", "more than 16 output files (in /run)"),
        ("folders", "/output", "over 256 directories or 16 deep"),
    ],
)
async def test_file_count_bombs_are_stopped(lab: Sandbox, how: str, folder: str, reason: str) -> None:
    ended = await hostile(lab, how, folder)
    assert (ended.outcome, ended.reason) == ("output-limit", reason)


async def test_a_log_bomb_is_slowed_down_counted_and_kept_head_and_tail(lab: Sandbox) -> None:
    run = lab.task("/bin/hostile", "print", "40", limits=SMALL)
    ended = await lab.run(run)
    assert ended.outcome == "ok"
    assert ended.log.startswith("beginxxx")
    assert ended.log.endswith("xxxend")
    assert lab.reports[-1].printed == 5 + 40 * MIB + 3


async def test_a_log_bomb_without_end_fills_no_disk(lab: Sandbox) -> None:
    run = lab.task("/bin/hostile", "print", "-1", limits=BRIEF)
    sizes: list[int] = []

    async def measure() -> None:
        while True:
            for found in lab.client.containers(all=True, filters={"name": lab.name_of(run)}):
                with contextlib.suppress(docker.errors.NotFound, FileNotFoundError):  # it has just been removed
                    path = lab.client.inspect_container(found["Id"])["LogPath"]
                    sizes.append(sum(file.stat().st_size for file in Path(path).parent.glob("*-json.log*")))
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(measure)
        ended = await lab.run(run)
        nursery.cancel_scope.cancel()
    assert ended.outcome == "wall-limit"
    assert lab.reports[-1].printed > 4 * MIB
    assert 0 < max(sizes) < 3 * MIB


async def test_a_tree_of_processes_that_ignores_every_signal_is_gone_in_time(lab: Sandbox) -> None:
    ended = await hostile(lab, "deathless", limits=BRIEF)
    assert ended.outcome == "wall-limit"
    assert ended.usage.wall_ms < 10_000
    assert [p for p in psutil.process_iter(["name"]) if p.info["name"] == "hostile"] == []


async def test_a_setuid_program_of_the_image_gains_nothing(lab: Sandbox) -> None:
    ended = await lab.run(lab.task("/bin/setuid", "who"))
    words = ended.log.split()
    assert words[1] == words[3] != "0"


async def test_links_devices_and_identities_cannot_be_had(lab: Sandbox) -> None:
    run = lab.task("/bin/hostile", "tricks")
    (run.input / "secret").write_text("what goes in")
    ended = await lab.run(run)
    assert dict(line.rsplit(" ", 1) for line in ended.log.splitlines()) == {
        "hard link": "EXDEV",
        "device": "EPERM",
        "dots": "EEXIST",
        "setuid": "EPERM",
        "chroot": "EPERM",
        "shadow": "ENOENT",
    }
    assert list(run.output.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("ln -s /etc/shadow /output/x", "output x is a symbolic link"),
        ("ln -s ../../../../../../etc /output/x", "output x is a symbolic link"),
        ("mkdir /output/d; ln -s / /output/d/x", "output d/x is a symbolic link"),
        ("mkfifo /output/x", "output x is no regular file"),
        ("hostile socket", "output x is no regular file"),
        ("touch '/output/new\nline'", "output name"),
        ("touch '/output/a\\b'", "output name"),
        ("touch /output/$(printf '\\033[2J')", "output name"),
        ("mkdir -m 0 /output/d", None),
    ],
)
async def test_tricks_in_outputs_are_no_results(lab: Sandbox, line: str, refusal: str | None) -> None:
    run = lab.task("sh", "-c", line)
    ended = await lab.run(run)
    assert (ended.outcome, ended.log) == ("ok", "")
    if refusal is None:
        assert collect(run.output, bytes_max=MIB) == []
        return
    with pytest.raises(OutputRefused) as refused:
        collect(run.output, bytes_max=MIB)
    assert refusal in refused.value.reason
    assert refused.value.reason.isprintable()


async def test_every_mount_but_its_own_is_closed(lab: Sandbox) -> None:
    """Tries to write a file in every place of its own list of mounts."""
    line = "while read _ _ _ _ place rest; do touch $place/x 2>/dev/null && echo $place; done </proc/self/mountinfo"
    ended = await lab.shell(f"{line}; exit 0")
    written = sorted(set(ended.log.split()))
    # Message queues are bounded by the kernel's own limit for a user, below a megabyte.
    assert written == ["/checkpoint", "/data", "/dev/mqueue", "/dev/shm", "/output", "/run", "/tmp"]
