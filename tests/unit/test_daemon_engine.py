"""nexapod.daemon.engine: saves before all else, in one transaction; a store that fails silences the node, no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import structlog.testing
import trio
import trio.testing
from protocol_kit import NETWORK, job_spec, pid, profile, signer, verify

from nexapod.daemon.engine import (
    BATCH_MAX,
    COMMIT_RETRY_S,
    GOSSIP_PER_PEER_MAX,
    GOSSIP_QUEUED_MAX,
    QUEUED_PER_PEER_MAX,
    Engine,
)
from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import (
    Checkpointed,
    Effect,
    Event,
    Finished,
    Gossiped,
    ProfileChanged,
    Progressed,
    Publish,
    Received,
    Save,
    Submit,
    Trace,
)
from nexapod.protocol.node import Node
from nexapod.protocol.records import Record
from nexapod.protocol.types import JobId, RunResult, TaskId


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
    return Engine(Node(signer(0), verify, NETWORK, lambda n: b"\x05" * n), store)


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
        nursery.cancel_scope.cancel()
    return done


async def test_what_must_be_kept_is_committed_at_once_and_before_anything_is_said() -> None:
    store = FakeStore()
    store.gate = trio.Event()
    engine = new_engine(store)
    done: list[Effect] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, done.append)
        engine.post(ProfileChanged(profile()))
        await trio.testing.wait_all_tasks_blocked()
        assert len(store.tried) == 1
        assert done == []
        store.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(store.committed) == 1
    assert any(isinstance(effect, Publish) for effect in done)
    assert not any(isinstance(effect, Save) for effect in done)


async def test_events_that_wait_together_are_one_transaction() -> None:
    store = FakeStore()
    engine = new_engine(store)
    engine.post(ProfileChanged(profile()))
    for number in range(3):
        engine.post(Submit(job_spec(nonce=bytes([number]) * 16)))
    await run_with(engine, lambda: None)
    assert len(store.committed) == 1
    assert len(engine.node.jobs) == 3
    assert set(engine.node.jobs) <= {record.key for record in store.committed[0] if record.kind == "statement"}


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
    names = [effect.name for effect in done if isinstance(effect, Trace)]
    assert "job_known" in names
    assert any(isinstance(effect, Publish) and effect.topic == "profile" for effect in done)
    assert any(record.kind == "seq" for record in store.committed[1])


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


async def test_a_peer_that_floods_loses_its_own_frames_only() -> None:
    engine = new_engine(FakeStore())
    for _ in range(QUEUED_PER_PEER_MAX + 7):
        engine.post(Received(pid(1), b"garbage"))
    engine.post(Received(pid(2), b"garbage"))
    assert engine.dropped == {"frames": 7}
    done = await run_with(engine, lambda: None)
    heard = [e.facts["peer"] for e in done if isinstance(e, Trace) and e.name == "penalty"]
    assert heard.count(pid(1)) == QUEUED_PER_PEER_MAX
    assert heard.count(pid(2)) == 1
    # The places are free again.
    engine.post(Received(pid(1), b"garbage"))
    assert engine.dropped == {"frames": 7}


async def test_gossip_that_waits_is_bounded_for_each_publisher_and_for_all() -> None:
    engine = new_engine(FakeStore())
    for _ in range(GOSSIP_PER_PEER_MAX + 7):
        engine.post(Gossiped(pid(0), "job", b"garbage"))
    assert engine.dropped == {"gossip": 7}
    publishers = GOSSIP_QUEUED_MAX // GOSSIP_PER_PEER_MAX
    for peer in range(1, publishers + 1):
        for _ in range(GOSSIP_PER_PEER_MAX):
            engine.post(Gossiped(pid(peer), "job", b"garbage"))
    assert engine.dropped == {"gossip": 7 + GOSSIP_PER_PEER_MAX}
    engine.post(Received(pid(publishers), b"garbage"))
    done = await run_with(engine, lambda: None)
    heard = [e.facts["peer"] for e in done if isinstance(e, Trace) and e.name == "penalty"]
    assert heard.count(pid(0)) == GOSSIP_PER_PEER_MAX
    assert heard.count(pid(publishers)) == 1
    # The places are free again.
    engine.post(Gossiped(pid(publishers), "job", b"garbage"))
    assert engine.dropped == {"gossip": 7 + GOSSIP_PER_PEER_MAX}


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


async def test_a_flood_does_not_keep_the_rest_of_the_daemon_from_its_turn() -> None:
    engine = new_engine(FakeStore())
    turns = 0

    async def another_task() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    for peer in range(1, 5):
        for _ in range(QUEUED_PER_PEER_MAX):
            engine.post(Received(pid(peer), b"garbage"))
    handled: list[Effect] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(another_task)
        nursery.start_soon(engine.run, handled.append)
        with trio.fail_after(20):
            while len(handled) < 2 * 4 * QUEUED_PER_PEER_MAX:  # a trace and a penalty each
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert turns >= QUEUED_PER_PEER_MAX // BATCH_MAX


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
