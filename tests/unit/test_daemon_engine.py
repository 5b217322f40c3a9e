"""nexapod.daemon.engine: saves before all else, in one transaction; a store that fails silences the node, no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import structlog.testing
import trio
import trio.testing
from daemon_kit import job_spec, new_node, offer, pid, profile

from nexapod.daemon.engine import (
    BATCH_MAX,
    BATCH_S,
    COMMIT_RETRY_S,
    GATHER_S,
    QUEUED_BYTES_PER_PEER_MAX,
    QUEUED_PER_PEER_MAX,
    Engine,
)
from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import (
    Checkpointed,
    Drain,
    Effect,
    Event,
    Finished,
    OfferChanged,
    PeerUp,
    ProfileChanged,
    Progressed,
    Received,
    Save,
    Send,
    Submit,
)
from nexapod.protocol.limits import FRAME_BYTES_MAX
from nexapod.protocol.node.node import Node
from nexapod.protocol.notices import JobAccepted
from nexapod.protocol.primitives import JobId, PeerId, TaskId
from nexapod.protocol.records import Record
from nexapod.protocol.runs import RunResult


class DiskFull(LocalError):
    """The disk is full."""


@dataclass
class FakeStore:
    """Keeps what is committed, fails as often as it is told to, and can be made to wait."""

    failures: int = 0
    committed: list[list[Record]] = field(default_factory=list)
    tried: list[list[Record]] = field(default_factory=list)
    gate: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def commit(self, records: Sequence[Record]) -> None:
        self.tried.append(list(records))
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise DiskFull("the disk is full")
        self.committed.append(list(records))


@dataclass
class Core:
    """Takes note of what it is told."""

    deadline: None = None
    handled: list[Event] = field(default_factory=list)

    def handle(self, event: Event, now: int) -> list[Effect]:
        self.handled.append(event)
        return []


def new_engine(store: FakeStore) -> Engine:
    """Of a node that would be a steward, so that it can submit by itself."""
    engine = Engine(new_node(), store)
    engine.node.handle(OfferChanged(offer()), 0)
    return engine


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Jumps to the next deadline whenever nothing else is to do."""
    return trio.testing.MockClock(autojump_threshold=0)


async def run_with(engine: Engine, act: Callable[[], object]) -> list[Effect]:
    """Run the engine until nothing is left to do after `act`; the effects that it let out."""
    done: list[Effect] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, done.append)
        act()
        await trio.testing.wait_all_tasks_blocked()
        while engine.waiting:
            await trio.sleep(GATHER_S)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return done


async def test_what_must_be_kept_is_committed_at_once_and_before_anything_is_said() -> None:
    store = FakeStore()
    store.gate = trio.Event()
    engine = new_engine(store)
    done: list[Effect] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, done.append)
        engine.post(PeerUp(pid(1), "", dialled=True))
        engine.post(ProfileChanged(profile()))
        await trio.testing.wait_all_tasks_blocked()
        assert len(store.tried) == 1
        assert done == []
        store.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(store.committed) == 1
    assert any(isinstance(effect, Send) for effect in done)
    assert not any(isinstance(effect, Save) for effect in done)


async def test_events_that_wait_together_are_one_transaction() -> None:
    store = FakeStore()
    engine = new_engine(store)
    engine.post(ProfileChanged(profile()))
    for number in range(3):
        engine.post(Submit(job_spec(nonce=bytes([number]) * 16)))
    await run_with(engine, lambda: None)
    jobs = engine.node.report().submissions
    assert len(jobs) == 3
    assert {job + job for job in jobs} <= {record.key for record in store.committed[0] if record.kind == "job"}


async def test_a_full_disk_silences_the_node_until_there_is_room_and_nothing_is_lost(
    clock: trio.testing.MockClock,
) -> None:
    store = FakeStore(failures=3)
    engine = new_engine(store)
    done: list[Effect] = []
    submitted: list[list[Effect]] = []

    async def submit() -> None:
        submitted.append(await engine.act(Submit(job_spec())))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, done.append)
        nursery.start_soon(submit)
        began = trio.current_time()
        with trio.fail_after(COMMIT_RETRY_S[0] / 2):
            while not engine.stalled:  # noqa: ASYNC110 - set without an event; virtual time
                await trio.sleep(0.01)
        assert engine.stalled == "the disk is full"
        assert (done, submitted) == ([], [])
        # More happens meanwhile: it waits its turn, and is not said either.
        engine.post(PeerUp(pid(1), "", dialled=True))
        engine.post(ProfileChanged(profile()))
        with trio.fail_after(60):
            while not submitted:  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)
        nursery.start_soon(trio.sleep, 1)
        await trio.sleep(0.5)  # a pause: virtual time
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began >= sum(COMMIT_RETRY_S[:3])
    assert engine.stalled == ""
    assert store.tried[0] == store.tried[1] == store.tried[2] == store.tried[3] == store.committed[0]
    assert any(isinstance(effect, JobAccepted) for effect in done)
    assert any(isinstance(effect, Send) for effect in done)
    assert any(record.key == b"profile-seq" for record in store.committed[1])


async def test_an_act_ends_only_when_its_effects_have_run_and_a_refused_one_says_why() -> None:
    engine = new_engine(FakeStore())
    done: list[Effect] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, done.append)
        effects = await engine.act(Submit(job_spec()))
        assert [effect for effect in effects if not isinstance(effect, Save)] == done
        with pytest.raises(LocalError, match="network"):
            await engine.act(Submit(job_spec(network="another")))
        nursery.cancel_scope.cancel()


def heard(core: Core) -> list[PeerId]:
    """Whose frames were handled."""
    return [event.peer for event in core.handled if isinstance(event, Received)]


@pytest.mark.parametrize(
    ("size", "room"), [(7, QUEUED_PER_PEER_MAX), (FRAME_BYTES_MAX, QUEUED_BYTES_PER_PEER_MAX // FRAME_BYTES_MAX)]
)
async def test_a_peer_that_floods_loses_its_own_frames_only(size: int, room: int) -> None:
    core = Core()
    engine = Engine(cast("Any", core), FakeStore())
    for _ in range(room + 7):
        engine.post(Received(pid(1), bytes(size)))
    engine.post(Received(pid(2), b"garbage"))
    assert engine.dropped == {"frames": 7}
    await run_with(engine, lambda: None)
    assert heard(core).count(pid(1)) == room
    assert heard(core).count(pid(2)) == 1
    # The places are free again.
    engine.post(Received(pid(1), bytes(size)))
    assert engine.dropped == {"frames": 7}


async def test_of_how_a_task_stands_only_the_newest_waits() -> None:
    core = Core()
    engine = Engine(cast("Any", core), FakeStore())
    first, second = (TaskId(JobId(bytes(32)), index) for index in range(2))
    for progress in range(1000):
        engine.post(Progressed(first, progress))
        engine.post(Progressed(second, progress, "log"))
        engine.post(Checkpointed(first, (), progress % 2 == 0))
    finished = Finished(first, RunResult("ok", 0))
    engine.post(finished)
    await run_with(engine, lambda: None)
    waited = [Progressed(first, 999), Progressed(second, 999, "log"), Checkpointed(first, (), False), finished]
    assert core.handled == waited
    engine.post(Progressed(first, 5))
    await run_with(engine, lambda: None)
    assert core.handled == [*waited, Progressed(first, 5)]


async def test_what_comes_soon_after_a_batch_is_handled_together_and_a_user_does_not_wait(
    clock: trio.testing.MockClock,
) -> None:
    core, at = Core(), []
    engine = Engine(cast("Any", core), FakeStore())
    handle = core.handle

    def timed(event: Event, now: int) -> list[Effect]:
        at.append(round(trio.current_time() - began, 4))
        return handle(event, now)

    core.handle = timed  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, lambda effect: None)
        await trio.sleep(1)  # a pause: virtual time
        began = trio.current_time()
        engine.post(Received(pid(1), b"first"))
        await trio.sleep(GATHER_S / 4)  # a pause: virtual time
        engine.post(Received(pid(1), b"second"))
        await trio.sleep(GATHER_S / 4)  # a pause: virtual time
        engine.post(Received(pid(1), b"third"))
        await trio.sleep(2 * GATHER_S)  # a pause: virtual time
        assert at == [0.0, GATHER_S, GATHER_S]
        began = trio.current_time()
        engine.post(Received(pid(1), b"fourth"))
        await trio.sleep(GATHER_S / 4)  # a pause: virtual time
        await engine.act(Drain())
        assert at[3:] == [0.0, GATHER_S / 4]
        nursery.cancel_scope.cancel()


@dataclass
class Slow(Core):
    """Takes its time for each frame."""

    each_s: float = 0.0

    def handle(self, event: Event, now: int) -> list[Effect]:
        time.sleep(self.each_s)  # a pause: the work of a core, which does not wait
        return super().handle(event, now)


@pytest.mark.parametrize(
    ("each_s", "frames", "batches"),
    [(0.0, QUEUED_PER_PEER_MAX, 4 * QUEUED_PER_PEER_MAX // BATCH_MAX), (BATCH_S / 3, 16, 4 * 16 // 4)],
)
async def test_a_flood_does_not_keep_the_rest_of_the_daemon_from_its_turn(
    each_s: float, frames: int, batches: int
) -> None:
    core = Slow(each_s=each_s)
    engine = Engine(cast("Any", core), FakeStore())
    turns = 0

    async def another_task() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    for peer in range(1, 5):
        for _ in range(frames):
            engine.post(Received(pid(peer), b"garbage"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(another_task)
        nursery.start_soon(engine.run, lambda effect: None)
        with trio.fail_after(20):
            while len(core.handled) < 4 * frames:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert turns >= batches - 1


async def test_the_deadline_of_the_core_is_met_without_any_event(clock: trio.testing.MockClock) -> None:
    engine = new_engine(FakeStore())
    first = engine.node.deadline
    assert first is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, lambda effect: None)
        await trio.sleep(first / 1000 + 1)  # a pause: virtual time
        nursery.cancel_scope.cancel()
    assert engine.node.deadline is not None
    assert engine.node.deadline > first


@dataclass
class Broken(Core):
    """Has a mistake in it that one event brings out."""

    worst: Event | None = None

    def handle(self, event: Event, now: int) -> list[Effect]:
        super().handle(event, now)
        assert event != self.worst
        return []


async def test_a_mistake_in_the_core_that_a_peer_brings_out_costs_what_it_sent(clock: trio.testing.MockClock) -> None:
    bad, good = Received(pid(1), b"bad"), Received(pid(1), b"good")
    core = Broken(worst=bad)
    engine = Engine(cast("Node", core), FakeStore())
    with structlog.testing.capture_logs() as logs:
        await run_with(engine, lambda: [engine.post(event) for event in (bad, good)])
    assert core.handled == [bad, good]
    assert engine.dropped["failed"] == 1
    assert [(entry["event"], entry["peer"]) for entry in logs] == [("core_failed", pid(1))]


async def test_a_mistake_in_the_core_that_is_ours_alone_is_not_hidden(clock: trio.testing.MockClock) -> None:
    ours = ProfileChanged(profile())
    engine = Engine(cast("Node", Broken(worst=ours)), FakeStore())
    with pytest.raises(ExceptionGroup) as caught:
        await run_with(engine, lambda: engine.post(ours))
    assert caught.group_contains(AssertionError)
