"""The draw, the order of seats, groups and beacons (docs/protocol.md, Names and hashes)."""

from __future__ import annotations

import hashlib
import random
import time

import pytest

from nexapod.protocol import limits
from nexapod.protocol.primitives import Digest, JobId, PeerId, blob_of, key_of_peer_id
from nexapod.protocol.rules import beacon as beacons
from nexapod.protocol.rules import seats
from nexapod.protocol.rules.groups import REGION_PREFIXES, block, group_of
from nexapod.protocol.rules.lottery import Lottery, turn
from nexapod.protocol.types import JobSpec, Run
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.bodies import Admission, Beacon
from nexapod.protocol.wire.statements import Statement, value_commitment
from nexapod.sim.keys import HashSigner

JOB = JobId(b"j" * 32)
SEAT = HashSigner(0, "seat")
OTHER = HashSigner(0, "other")
WORKERS = [HashSigner(0, "worker", i).peer for i in range(300)]


def spec(tasks: int) -> JobSpec:
    return JobSpec("net", "job", bytes(16), 0, Run("wasm", module=blob_of(b"m")), tasks)


def admitted(number: int, workers: list[PeerId], epoch: int = 0) -> tuple[Statement, Statement]:
    """A round: each worker is its own group."""
    listed = tuple((peer, peer) for peer in sorted(workers, key=key_of_peer_id))
    shown = ((SEAT.peer, hashlib.sha256(bytes([number])).digest()),)
    committed = ((SEAT.peer, value_commitment(shown[0][1])),)
    admission = statements.make(Admission(JOB, epoch, number, listed, committed), SEAT)
    return admission, statements.make(Beacon(JOB, epoch, number, admission.id, shown), SEAT)


def lottery(tasks: int, *rounds: tuple[Statement, Statement]) -> Lottery:
    drawn = Lottery(JOB, spec(tasks))
    for admission, beacon in rounds:
        drawn.admit(admission, beacon)
    return drawn


def test_the_draw_is_as_the_specification_writes_it() -> None:
    admission, beacon = admitted(0, WORKERS[:5])
    drawn = lottery(300, (admission, beacon))
    value = hashlib.sha256(
        b"nexapod/beacon\0" + admission.id + key_of_peer_id(SEAT.peer) + beacon.body.values[0][1]
    ).digest()
    assert beacons.value(beacon.body) == value

    def ticket(group: str, task: int) -> bytes:
        named = b"nexapod/draw\0" + value + JOB + (task // 256).to_bytes(4, "big") + group.encode()
        return hashlib.shake_128(named).digest(8 * 256)[8 * (task % 256) :][:8]

    for task in (0, 255, 256, 299):
        assert list(drawn.draw(task)) == sorted(WORKERS[:5], key=lambda group: ticket(group, task))
    assert turn(JOB, WORKERS[0]) == int.from_bytes(
        hashlib.sha256(b"nexapod/turn\0" + JOB + key_of_peer_id(WORKERS[0])).digest()[:2], "big"
    )


def test_newcomers_take_their_places_and_move_nobody() -> None:
    one, two = admitted(0, WORKERS[:30]), admitted(1, WORKERS[30:60])
    drawn = lottery(256, one)
    before = [drawn.draw(task) for task in range(256)]
    drawn.admit(*two)
    for task in range(256):
        assert tuple(g for g in drawn.draw(task) if g in WORKERS[:30]) == before[task]
    assert [drawn.draw(task) for task in range(256)] == [lottery(256, one, two).draw(task) for task in range(256)]
    assert drawn.version == 2
    assert drawn.groups() == drawn.workers() == 60


def test_rounds_may_come_in_any_order() -> None:
    rounds = [admitted(i, WORKERS[30 * i : 30 * i + 45]) for i in range(9)]
    expected = lottery(256, *rounds)
    for seed in range(4):
        mixed = random.Random(seed).sample(rounds, len(rounds))
        drawn = Lottery(JOB, spec(256))
        for admission, beacon in mixed:
            drawn.admit(admission, beacon)
            drawn.draw(seed)
        assert [drawn.draw(task) for task in range(256)] == [expected.draw(task) for task in range(256)]
        assert drawn.roster(0) == expected.roster(0)
        assert len(drawn.roster(0)) == limits.ROSTER_MAX


def test_a_full_roster_keeps_the_smallest_hashes_and_ranks_those_present() -> None:
    drawn = lottery(600, admitted(0, WORKERS))
    other = lottery(600, admitted(0, WORKERS))
    assert len(drawn.roster(2)) == limits.ROSTER_MAX
    assert drawn.roster(0) != drawn.roster(1)
    order = drawn.draw(5)
    present = set(order[1::2])
    assert drawn.rank(5, order[3], present.__contains__) == 2
    assert drawn.rank(5, order[4], present.__contains__) == 3
    outside = next(worker for worker in WORKERS if worker not in order)
    assert drawn.rank(5, outside, present.__contains__) is None
    assert drawn.first(5, present.__contains__, 3) == (order[1], order[3], order[5])
    assert other.draw(5) == order
    assert sorted(drawn.shards_for(WORKERS[0])) == [0, 1, 2]
    assert drawn.shards_for(SEAT.peer) == ()
    assert drawn.group(WORKERS[0]) == WORKERS[0]
    assert drawn.group(SEAT.peer) is None


def test_the_earlier_round_of_a_group_fixes_its_tickets() -> None:
    early, late = admitted(3, WORKERS[:4]), admitted(9, WORKERS[:8])
    again = lottery(64, late)
    again.draw(0)
    again.admit(*early)
    assert again.draw(0) == lottery(64, early, late).draw(0)
    version = again.version
    again.admit(*late)
    assert again.version == version


def test_a_shard_is_drawn_in_a_moment() -> None:
    drawn = lottery(256, admitted(0, WORKERS[:64]))
    began = time.perf_counter()
    for task in range(256):
        drawn.draw(task)
    assert time.perf_counter() - began < 0.1


def test_draws_are_fair() -> None:
    drawn = lottery(25_600, admitted(0, WORKERS[:10]))
    first = [drawn.draw(task)[0] for task in range(0, 25_600, 8)]
    assert all(240 <= first.count(worker) <= 400 for worker in WORKERS[:10])


# --- seats ----------------------------------------------------------------------------------------------------------
def test_seats_are_ordered_by_hash_whatever_the_panel_s_order() -> None:
    members = WORKERS[:10]
    ordered = seats.order(JOB, 7, members)
    hashed = {p: hashlib.sha256(b"nexapod/seat\0" + JOB + b"\0\0\0\7" + key_of_peer_id(p)).digest() for p in members}
    assert list(ordered) == sorted(members, key=lambda peer: hashed[peer])
    assert seats.order(JOB, 7, [*reversed(members), members[0]]) == ordered
    assert seats.first_holders(JOB, 7, members) == ordered[:3]
    assert seats.first_holders(JOB, 7, members[:1]) == (members[0],)
    assert len({seats.order(JOB, shard, members) for shard in range(20)}) > 15


# --- groups ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("addr", "group"),
    [
        ("/ip4/203.0.113.9/tcp/4001", "203.0.113.0/24"),
        ("/ip4/192.168.1.7/udp/4001/quic-v1", "192.168.1.0/24"),
        ("/ip6/2001:db8:1:2::3/tcp/4001", "2001:db8:1::/48"),
        ("/ip6/::ffff:203.0.113.9/tcp/4001", "203.0.113.0/24"),
        ("/ip6zone/eth0/ip6/fe80::1/tcp/1", "fe80::/48"),
        ("/ip6/fe80::1%eth0/tcp/1", "fe80::/48"),
        ("/ip4/127.0.0.1/tcp/4001", None),
        ("/ip6/::1/tcp/4001", None),
        ("/ip6/::ffff:127.0.0.1/tcp/4001", None),
        ("/ip4/0.0.0.0/tcp/1", None),
        ("/ip4/224.0.0.1/tcp/1", None),
        ("/ip4/203.0.113.9/tcp/4001/p2p/x/p2p-circuit", None),
        ("/dns4/example.org/tcp/1", None),
        ("/ip4/999.1.1.1/tcp/1", None),
        ("/ip6zone", None),
        ("ip4", None),
        ("", None),
    ],
)
def test_a_group_is_the_block_of_the_link_s_own_address(addr: str, group: str | None) -> None:
    assert group_of(WORKERS[0], addr, "network") == group
    assert group_of(WORKERS[0], addr, "peer") == WORKERS[0]


def test_regions_are_wider() -> None:
    assert block("/ip4/203.0.113.9/tcp/1", REGION_PREFIXES) == "203.0.0.0/16"
    assert block("/ip6/2001:db8:1:2::3/tcp/1", REGION_PREFIXES) == "2001:db8::/32"


# --- beacons --------------------------------------------------------------------------------------------------------
def test_a_seat_signs_a_beacon_only_with_all_it_was_shown() -> None:
    mine, theirs = b"m" * 32, b"t" * 32
    committed = {SEAT.peer: value_commitment(mine), OTHER.peer: value_commitment(theirs)}
    listed = tuple((peer, peer) for peer in sorted(WORKERS[:2], key=key_of_peer_id))
    admission = statements.make(Admission(JOB, 0, 0, listed, beacons.ordered(committed)), SEAT)
    shown = {SEAT.peer: mine, OTHER.peer: theirs}

    def why(values: dict[PeerId, bytes], **known: dict[PeerId, bytes]) -> str | None:
        made = Beacon(JOB, 0, 0, admission.id, beacons.ordered(values))
        return beacons.error_in(made, admission, committed, known.get("shown", shown))

    assert why(shown) is None
    assert "left out" in (why({SEAT.peer: mine}) or "")
    assert why({SEAT.peer: mine}, shown={SEAT.peer: mine}) is None
    assert "bound itself" in (why({SEAT.peer: theirs, OTHER.peer: theirs}) or "")
    assert "no seat" in (why({**shown, WORKERS[0]: mine}) or "")
    swapped = Beacon(JOB, 0, 0, admission.id, tuple(reversed(beacons.ordered(shown))))
    assert "sorted" in (beacons.error_in(swapped, admission, committed, shown) or "")
    assert "round" in (beacons.error_of_form(Beacon(JOB, 0, 1, admission.id, ()), admission, committed) or "")
    assert beacons.value(Beacon(JOB, 0, 0, admission.id, beacons.ordered(shown))) != Digest(bytes(32))


def test_of_a_job_of_many_shards_some_draws_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DRAWN_MAX", 600)
    drawn = lottery(20 * limits.SHARD_TASKS, admitted(0, WORKERS))
    whole = [drawn.draw(shard * limits.SHARD_TASKS) for shard in range(20)]
    assert all(table.size <= table.most for table in drawn.tables())
    assert [drawn.draw(shard * limits.SHARD_TASKS) for shard in range(20)] == whole
    empty = Lottery(JOB, spec(20_000 * limits.SHARD_TASKS))
    assert not any(empty.roster(shard) for shard in range(20_000))
    assert all(table.size <= table.most for table in empty.tables())
