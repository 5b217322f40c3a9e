"""A panel member of one job: what it holds, what it says that it holds, and what goes to which of its machines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bus import Bus, Host
from kit import MODULE, JobKit, make_kit

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Drop, Fetch
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Part, PeerId
from nexapod.protocol.records import Record
from nexapod.protocol.steward.inputs import Inputs
from nexapod.protocol.steward.stewardship import Stewardship
from nexapod.protocol.wire.messages import Bid, Claim, Deliver, Ready, Refused
from nexapod.protocol.wire.statements import Statement


class FakeSteward:
    """Notes what it was told."""

    open_places = 0

    def __init__(self, ctx: Context, job: JobState, shard: int, has_inputs: Callable[[], bool]) -> None:
        self.shard = shard
        self.has_inputs = has_inputs
        self.told: list[str] = []
        self.deadline = None

    def on_message(self, peer: PeerId, message: object) -> None:
        self.told.append(type(message).__name__)

    def on_statement(self, statement: Statement, sender: PeerId) -> None:
        self.told.append(statement.kind)

    def ran_by(self, count: int) -> tuple[PeerId, ...]:
        return ()

    def restore(self, records: list[Record]) -> None:
        self.told.append(f"restored {len(records)}")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.told.append(name)


def accepts(job: JobState) -> str:
    return ""


def make(ctx: Context, job: JobState) -> Stewardship:
    return Stewardship(ctx, job, accepts, make_steward=FakeSteward)  # type: ignore[arg-type]


def steward_bus(kit: JobKit) -> Bus:
    bus = Bus(kit)
    bus.host(kit.submitter)
    for worker in kit.workers:
        bus.host(worker)
    for member in kit.members:
        bus.host(member, make)
    return bus


def claim(kit: JobKit, shard: int = 0) -> Claim:
    return Claim(kit.job, shard, 1, 1, (), (), 0)


# --- placing -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("members", [1, 2, 3, 16])
def test_seats_that_hold_their_inputs_make_the_job_workable(members: int) -> None:
    kit = make_kit(members=members)
    bus = steward_bus(kit)
    bus.run(3_000)
    seats = kit.seats()
    assert bus[kit.submitter].job.workable
    assert sorted(bus[kit.submitter].job.placed()) == sorted(seat.peer for seat in seats)
    assert {peer for peer, m in bus[kit.submitter].received if isinstance(m, Ready)} == {s.peer for s in seats}
    assert all(bus[seat].job.workable for seat in seats)


def test_nothing_is_said_to_be_held_before_the_inputs_are_here() -> None:
    kit = make_kit()
    bus = Bus(kit)
    bus.blobs_here = False
    bus.host(kit.submitter)
    seat = bus.host(kit.seats()[0], make)
    bus.run(5_000)
    assert not bus[kit.submitter].job.placed()
    assert not bus[kit.submitter].said(Ready)
    seat.call(lambda: seat.ctx.blob_stored(Part.whole(MODULE)))
    seat.call(lambda: seat.machine.blob_ready(Part.whole(MODULE)))
    bus.run(1_000)
    assert list(bus[kit.submitter].job.placed()) == [seat.peer]


def test_one_that_will_not_says_why_and_holds_nothing() -> None:
    kit = make_kit()
    bus = Bus(kit)
    bus.host(kit.submitter)
    refusing = bus.host(kit.seats()[0], lambda ctx, job: Stewardship(ctx, job, lambda job: "no room"))
    bus.run(2_000)
    [refused] = bus[kit.submitter].said(Refused)
    assert refused.reason == "no room"
    assert refusing.machine.steward(0) is None
    assert refusing.machine.gate is None


def test_workers_are_admitted_by_seats_that_have_placed_the_job() -> None:
    kit = make_kit()
    bus = steward_bus(kit)
    bus.run(1_000)
    for seat in kit.seats():
        bus.say(kit.workers[0], seat, Bid(kit.job))
    bus.run(1_000)
    for host in (bus[kit.workers[0]], bus[kit.submitter], bus[kit.seats()[1]]):
        assert host.job.group(kit.workers[0].peer) == kit.workers[0].peer


def test_a_seat_started_again_keeps_its_pledges_and_says_placed_once() -> None:
    kit = make_kit()
    bus = steward_bus(kit)
    bus.run(1_000)
    seat = kit.seats()[0]
    placed = bus[seat].job.placed()[seat.peer]
    saved = [Record(kind, key, value) for (kind, key), value in bus[seat].records.items()]
    bus.host(seat, make)
    bus[seat].call(lambda: bus[seat].machine.restore(saved))
    bus.run(1_000)
    assert bus[kit.submitter].job.placed()[seat.peer].id == placed.id
    bus.say(kit.workers[0], seat, Bid(kit.job))
    bus.say(kit.workers[0], kit.seats()[1], Bid(kit.job))
    bus.run(2_000)
    [(_, beacon)] = bus[kit.submitter].job.admissions()
    assert seat.peer in dict(beacon.body.values)


# --- shards --------------------------------------------------------------------------------------------------------
def test_stewards_are_made_when_a_message_needs_them() -> None:
    kit = make_kit(tasks=3 * limits.SHARD_TASKS, members=3)
    bus = steward_bus(kit)
    bus.run(1_000)
    machine = bus[kit.members[0]].machine
    assert machine.stewards() == []
    bus.say(kit.workers[0], kit.members[0], claim(kit, 2))
    bus.run(100)
    [(shard, steward)] = machine.stewards()
    assert shard == 2
    assert "Claim" in steward.told
    assert steward.has_inputs()


def test_statements_find_the_steward_of_their_shard() -> None:
    kit = make_kit(tasks=2 * limits.SHARD_TASKS, members=3)
    bus = steward_bus(kit)
    bus.run(1_000)
    checkpoint = kit.checkpoint(kit.workers[0], limits.SHARD_TASKS + 1)
    bus.say(kit.workers[0], kit.members[0], Deliver((checkpoint.envelope,)))
    bus.run(100)
    assert bus[kit.members[0]].machine.steward(1).told == ["checkpoint"]


def test_a_shard_that_does_not_exist_is_an_error_of_the_peer() -> None:
    kit = make_kit()
    bus = steward_bus(kit)
    with pytest.raises(PeerError):
        bus[kit.seats()[0]].machine.on_message(kit.workers[0].peer, claim(kit, 7))


def test_who_asks_a_member_without_the_seat_gets_the_successions_it_has_missed() -> None:
    kit = make_kit(members=4)
    first, second, third = kit.seats()
    [spare] = [member for member in kit.members if member not in kit.seats()]
    bus = steward_bus(kit)
    bus.run(1_000)
    bus.kill(first)
    bus.run(limits.SEAT_GONE_MS + 15_000)
    assert bus[spare].job.seats(0).holders == (second.peer, third.peer, spare.peer)
    assert bus[spare].machine.gate is not None
    bus.revive(first)
    bus.say(kit.workers[0], first, Bid(kit.job))
    bus.run(limits.SEAT_GONE_MS)
    bus.say(kit.workers[0], first, Bid(kit.job))
    bus.run(1_000)
    assert spare.peer in bus[spare].job.placed(), "it says so of the seat that it has taken over"


def test_a_member_of_a_job_of_a_million_tasks_takes_its_shards_a_few_at_a_time() -> None:
    kit = make_kit(members=16, tasks=limits.TASKS_MAX)
    host: Host = Bus(kit).host(kit.members[0], make)
    asked: list[int] = []
    real = host.job.seats
    host.job.seats = lambda shard: asked.append(shard) or real(shard)  # type: ignore[method-assign,func-returns-value]
    for _ in range(4):
        asked.clear()
        host.ctx.now += 1_000
        host.machine.tick()
        assert len(asked) < 6 * limits.SCAN_SHARDS


def test_when_the_job_is_over_everything_is_let_go() -> None:
    kit = make_kit()
    bus = steward_bus(kit)
    bus.run(1_000)
    host = bus[kit.seats()[0]]
    host.call(host.machine.close)
    assert host.machine.deadline is None
    assert not host.ctx.pinned()
    assert not host.records


# --- inputs --------------------------------------------------------------------------------------------------------
def test_a_part_that_shards_share_is_fetched_once_and_again_when_it_failed() -> None:
    kit = make_kit(tasks=3 * limits.SHARD_TASKS)
    ctx, job = _context(kit)
    inputs = Inputs(ctx, job, lambda shard: (kit.submitter.peer,))
    assert not any(inputs.take(shard) for shard in range(3))
    [fetch] = [effect for effect in ctx.effects if isinstance(effect, Fetch)]
    inputs.failed(fetch.part)
    ctx.now += limits.FETCH_RETRY_MS
    inputs.tick()
    assert sum(isinstance(effect, Fetch) for effect in ctx.effects) == 2
    ctx.blob_stored(fetch.part)
    assert inputs.ready(fetch.part) == [0, 1, 2]
    assert inputs.complete
    assert inputs.has(1)
    inputs.drop(0)
    inputs.drop(1)
    assert not any(isinstance(effect, Drop) for effect in ctx.effects)
    inputs.drop(2)
    assert any(isinstance(effect, Drop) for effect in ctx.effects)


def _context(kit: JobKit) -> tuple[Context, JobState]:
    host = Bus(kit).host(kit.members[0])
    return host.ctx, host.job
