"""nexapod.daemon.pausing: a pause ends when its owner says so, or when it was to; not when a daemon does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from nexapod.blobs.errors import BlobError
from nexapod.daemon.pausing import Pausing
from nexapod.protocol.events import BlobReady, Event, Fetch, Pause, ProfileChanged, Run, Submit, Tick
from nexapod.protocol.node.node import Node
from nexapod.sim.keys import verify
from tests.protocol.mesh import NETWORK, Mesh, job_spec, profile


class Daemon:
    """What Pausing joins: a core that is told, and tasks that stand still or go on."""

    def __init__(self, kept: Path) -> None:
        self.told: list[Event] = []
        self.paused = False
        self.settled = False
        self.pausing = Pausing(cast(Any, self), cast(Any, self), kept)

    def post(self, event: Event) -> None:
        self.told.append(event)

    def want(self, *, paused: bool) -> None:
        self.paused = paused

    async def settle(self) -> None:
        self.settled = self.paused


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "paused"


def write(kept: Path, text: str) -> None:
    kept.write_text(text, encoding="latin-1")


def mode(kept: Path) -> int | None:
    """The note's permissions; None when there is none."""
    return kept.stat().st_mode & 0o777 if kept.exists() else None


async def restarted(kept: Path) -> Daemon:
    daemon = Daemon(kept)
    await daemon.pausing.restore()
    return daemon


async def test_a_daemon_that_was_never_paused_works(kept: Path) -> None:
    daemon = await restarted(kept)
    assert not daemon.pausing.paused
    assert daemon.told == []


async def test_a_pause_without_end_outlives_the_daemon(kept: Path) -> None:
    await Daemon(kept).pausing.pause(None)
    assert mode(kept) == 0o600
    daemon = await restarted(kept)
    assert daemon.pausing.paused
    assert daemon.pausing.left_s is None
    assert daemon.told == [Pause(True)]
    await daemon.pausing.resume()
    assert daemon.told == [Pause(True), Pause(False)]
    assert not (await restarted(kept)).pausing.paused


async def test_a_pause_of_an_hour_goes_on_for_what_is_left_of_it(kept: Path) -> None:
    await Daemon(kept).pausing.pause(3600)
    left_s = (await restarted(kept)).pausing.left_s
    assert left_s is not None
    assert 3500 < left_s <= 3600


async def test_the_rest_of_a_pause_ends_by_itself_after_a_restart(
    kept: Path, autojump_clock: trio.testing.MockClock
) -> None:
    await Daemon(kept).pausing.pause(3600)
    daemon = await restarted(kept)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.pausing.run)
        await trio.sleep(3500)  # a pause: on a clock that jumps
        assert daemon.pausing.paused
        await trio.sleep(101)  # a pause: on a clock that jumps
        nursery.cancel_scope.cancel()
    assert not daemon.pausing.paused
    assert mode(kept) is None


async def test_a_pause_whose_end_has_passed_is_over(kept: Path) -> None:
    write(kept, json.dumps({"until_ms": round(time.time() * 1000) - 1}))
    assert not (await restarted(kept)).pausing.paused


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"until_ms": "soon"}', '{"until_ms": [1]}', "\x00\xff", "3"])
async def test_a_note_that_cannot_be_read_is_a_pause_that_the_owner_ends(kept: Path, text: str) -> None:
    write(kept, text)
    daemon = await restarted(kept)
    assert daemon.pausing.paused
    assert daemon.pausing.left_s is None
    await daemon.pausing.resume()
    assert not (await restarted(kept)).pausing.paused


async def test_a_pause_that_cannot_be_kept_is_a_pause_and_says_so(kept: Path) -> None:
    daemon = Daemon(kept.parent / "nowhere" / "paused")
    with pytest.raises(BlobError, match="nowhere"):
        await daemon.pausing.pause(60)
    assert daemon.pausing.paused
    assert (daemon.settled, daemon.told) == (True, [Pause(True)])
    with pytest.raises(BlobError, match="nowhere"):
        await daemon.pausing.resume()
    assert (daemon.settled, daemon.told) == (False, [Pause(True), Pause(False)])


async def test_what_the_next_daemon_finds_is_written_before_the_tasks_follow(kept: Path) -> None:
    daemon = Daemon(kept)
    noted: list[bool] = []

    async def settle() -> None:
        noted.append(mode(kept) is not None)

    daemon.settle = settle  # type: ignore[method-assign]
    await daemon.pausing.pause(None)
    await daemon.pausing.resume()
    assert noted == [True, False]


async def test_of_requests_that_come_together_the_last_one_is_what_the_next_daemon_finds(kept: Path) -> None:
    daemon = Daemon(kept)
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.pausing.pause, None)
            nursery.start_soon(daemon.pausing.resume)
        assert (mode(kept) is not None, daemon.settled) == (daemon.pausing.paused, daemon.pausing.paused)
        assert not daemon.told or daemon.told[-1] == Pause(daemon.pausing.paused)


async def test_a_core_resumes_in_a_pause_what_the_last_daemon_left_running_and_begins_nothing(
    kept: Path,
) -> None:
    mesh = Mesh(2, run_ms=60_000)
    mesh.start(slots=1)
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(tasks=4), accept_unknown=True))
    worker = mesh[1]
    assert mesh.run_until(lambda: bool(worker.running))
    (task,) = worker.running
    records = list(worker.records.values())
    core = Node(worker.signer, verify, NETWORK, "peer", lambda n: b"\x06" * n, records=records, now=mesh.now)
    await Daemon(kept).pausing.pause(None)
    daemon = await restarted(kept)
    daemon.post(ProfileChanged(profile(slots=4, stamp=mesh.now + 10)))
    effects = [effect for event in daemon.told for effect in core.handle(event, mesh.now)]
    ready = [BlobReady(effect.part) for effect in effects if isinstance(effect, Fetch)]
    effects += [effect for event in ready for effect in core.handle(event, mesh.now)]
    effects += [effect for later in (1, 2_000) for effect in core.handle(Tick(), mesh.now + later)]
    # Its sandbox may be there: only the daemon can see to it that it stands still, and is watched.
    assert [effect.task for effect in effects if isinstance(effect, Run)] == [task]
    report = core.report()
    assert report.paused
    assert [attempt.task for attempt in report.attempts] == [task]
