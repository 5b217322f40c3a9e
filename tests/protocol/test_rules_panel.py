"""Whom a submitter names as stewards (docs/protocol.md, Choice)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from nexapod.protocol import limits
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import JobId, PeerId, blob_of
from nexapod.protocol.rules import seats
from nexapod.protocol.rules.panel import Candidate, Choice, are_spread, choose, newcomers
from nexapod.protocol.types import Grouping, JobSpec, Offer, Run
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner

MIB = 1 << 20
SPEC = JobSpec("net", "job", bytes(16), 1_000, Run("wasm", module=blob_of(b"m")), 64)
ME = HashSigner(0, "me")
HOUR = limits.UPTIME_UNIT_MS


def offer(
    signer: HashSigner,
    storage: int = 1 << 40,
    shards: int = 100,
    until: int = 1 << 50,
    addr: str = "/ip4/10.0.0.1/tcp/1",
) -> Statement:
    return statements.make(Offer("net", 1, (addr,), storage, shards, until), signer)


def candidate(i: int, *, source: PeerId | None = None, region: int | None = None, **offered: int) -> Candidate:
    """In a /24 of its own, and in a /16 of its own unless `region` says otherwise."""
    addr = f"/ip4/{20 + i // 200}.{i % 200}.7.1/tcp/1" if region is None else f"/ip4/9.{region}.{i}.1/tcp/1"
    return Candidate(offer(HashSigner(0, "peer", i), **offered, addr=addr), addr, HOUR, source)


def entropy(seed: int) -> Callable[[int], bytes]:
    return lambda size: hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


def chosen(
    candidates: list[Candidate],
    spec: JobSpec = SPEC,
    *,
    grouping: Grouping = "network",
    me: Statement | None = None,
    seed: int = 0,
    friends: tuple[PeerId, ...] = (),
    accept_unknown: bool = False,
    bytes_max: int = limits.ENVELOPE_BYTES_MAX,
) -> Choice:
    return choose(
        candidates,
        spec,
        grouping=grouping,
        me_offer=me,
        draw=entropy(seed),
        friends=friends,
        accept_unknown=accept_unknown,
        bytes_max=bytes_max,
    )


def peers(choice: Choice) -> list[PeerId]:
    return [statement.author for statement in choice.panel]


def test_the_usual_panel_is_drawn_by_chance_and_not_by_order() -> None:
    many = [candidate(i) for i in range(60)]
    choice = chosen(many)
    assert len(set(peers(choice))) == limits.PANEL_USUAL
    assert peers(choice) == peers(chosen(list(reversed(many))))
    assert set(peers(choice)) != set(peers(chosen(many, seed=1)))


def test_long_seen_peers_are_drawn_more_often_within_bounds() -> None:
    many = [replace(candidate(i), uptime_ms=HOUR * (24_000 if i < 20 else 1)) for i in range(120)]
    old = {c.peer for c in many[:20]}
    got = sum(len(old & set(peers(chosen(many, seed=seed)))) for seed in range(20)) / 20
    assert 10 < got < 15, "20 of weight 24 among 100 of weight 1; not as 24000 to 1"


def share_of_majorities(peers_in_all: int, attackers: int, *, longer: int = 1, panels: int = 150) -> float:
    """In what part of the shards attackers have two of the three seats, over panels and orders of seats as they are
    drawn. `longer`: for how many times as long as the others they were seen up."""
    many = [
        replace(candidate(i), uptime_ms=HOUR * (longer if i < attackers else 1), introducer=introducer(i))
        for i in range(peers_in_all)
    ]
    bad = {c.peer for c in many[:attackers]}
    taken = 0
    for seed in range(panels):
        panel = peers(chosen(many, seed=seed))
        job = JobId(hashlib.sha256(b"job %d" % seed).digest())
        holders = [seats.first_holders(job, shard, panel) for shard in range(SHARDS)]
        taken += sum(len(bad.intersection(three)) >= 2 for three in holders)
    return taken / (panels * SHARDS)


def introducer(i: int) -> PeerId | None:
    """Half were told of by a few others."""
    return HashSigner(0, "introducer", i % 10).peer if i % 2 else None


SHARDS = 100


@pytest.mark.parametrize(("peers_in_all", "attackers"), [(20, 2), (50, 5), (200, 20)])
def test_a_tenth_of_the_peers_has_the_majority_of_at_most_three_percent_of_the_shards(
    peers_in_all: int, attackers: int
) -> None:
    assert share_of_majorities(peers_in_all, attackers) <= 0.03


def test_a_tenth_that_were_there_for_longer_count_for_more_within_bounds() -> None:
    """What the choice knows of a peer is how long it was seen up: a day of patience is worth more than one's number."""
    assert 0.03 < share_of_majorities(50, 5, longer=2) <= 0.1


def test_nobody_is_named_who_was_not_reached_or_is_not_willing() -> None:
    many = [candidate(i) for i in range(8)]
    many[0] = replace(many[0], reached=False)
    many[1] = candidate(1, until=999)
    many[2] = replace(many[2], addr="/ip4/127.0.0.1/tcp/1")
    many[3] = replace(many[3], addr="")
    assert sorted(peers(chosen(many))) == sorted(c.peer for c in many[4:])
    assert len(peers(chosen(many, grouping="peer"))) == 6


def test_a_panel_is_spread_over_blocks_regions_and_introducers() -> None:
    spread = [candidate(i) for i in range(20)]
    one_block = [replace(candidate(100 + i), addr=f"/ip4/8.8.8.{i}/tcp/1") for i in range(40)]
    one_region = [candidate(i + 1, region=1) for i in range(200, 240)]
    source = HashSigner(0, "introducer").peer
    introduced = [candidate(300 + i, source=source) for i in range(80)]
    choice = chosen([*spread, *one_block, *one_region, *introduced])
    assert len(choice.panel) == limits.PANEL_USUAL
    named = Counter(
        kind for kind, group in enumerate((one_block, one_region, introduced)) for c in group if c.peer in peers(choice)
    )
    assert named[0] <= 1
    assert named[1] <= 2
    assert named[2] <= 5


def test_a_panel_all_known_through_one_needs_consent() -> None:
    source = HashSigner(0, "introducer").peer
    many = [candidate(i, source=source) for i in range(10)]
    with pytest.raises(LocalError, match="--accept-unknown"):
        chosen(many)
    assert len(chosen(many, accept_unknown=True).panel) == 10
    assert len(chosen(many, grouping="peer").panel) == 10
    friend = replace(candidate(50), friend=True)
    assert friend.peer in peers(chosen([*many, friend]))


def test_friends_come_first_and_absent_ones_are_said() -> None:
    many = [candidate(i) for i in range(40)]
    wanted, friend = many[7].peer, replace(many[30], friend=True)
    many[30] = friend
    assert peers(chosen(many, friends=(wanted,)))[:2] == [wanted, friend.peer]
    with pytest.raises(LocalError, match="submit without it"):
        chosen(many, friends=(HashSigner(0, "absent").peer,))


@pytest.mark.parametrize(("others", "own", "words"), [(0, True, "alone"), (1, True, "one other"), (2, True, "2 other")])
def test_the_submitter_counts_only_where_there_are_few(others: int, own: bool, words: str) -> None:
    choice = chosen([candidate(i) for i in range(others)], me=offer(ME))
    assert (ME.peer in peers(choice)) == own
    assert len(choice.panel) == others + 1
    assert words in choice.rests_on


def test_with_three_others_the_submitter_stays_out() -> None:
    choice = chosen([candidate(i) for i in range(3)], me=offer(ME))
    assert ME.peer not in peers(choice)
    assert choice.rests_on == "The job is kept by 3 stewards, known through 3 different sources."


def test_with_nobody_it_says_what_to_do() -> None:
    with pytest.raises(LocalError, match="Connect to other peers, or allow stewardship here"):
        chosen([])


def test_a_large_job_is_given_more_stewards_and_one_that_does_not_fit_is_refused() -> None:
    wide = replace(SPEC, tasks=60 * limits.SHARD_TASKS)
    small = [candidate(i, shards=12) for i in range(64)]
    choice = chosen(small, wide)
    assert limits.PANEL_USUAL < len(choice.panel) <= limits.PANEL_MAX
    with pytest.raises(LocalError, match="does not fit its stewards"):
        chosen(small[:10], wide)
    with pytest.raises(LocalError, match="raise their stewardship quota"):
        chosen([candidate(i, storage=10 * MIB) for i in range(20)])


def test_a_panel_fits_into_what_its_job_leaves_of_the_envelope() -> None:
    known = [candidate(i) for i in range(40)]
    each = max(len(one.offer.envelope) for one in known) + 3
    assert len(chosen(known, bytes_max=5 * each).panel) == 5
    friends = tuple(one.peer for one in known[:6])
    with pytest.raises(LocalError, match="fewer of them"):
        chosen(known, friends=friends, bytes_max=5 * each)


# --- those who come later --------------------------------------------------------------------------------------------
def place(number: int) -> str:
    return f"/ip4/80.{number}.1.1/tcp/1"


def added(candidates: list[Candidate], count: int, *, seed: int = 0, grouping: Grouping = "network") -> list[PeerId]:
    """Beside eight members in /16s of their own."""
    kept = {HashSigner(1, "kept", i).peer: (place(i),) for i in range(8)}
    found = newcomers(candidates, SPEC, count, kept=kept, grouping=grouping, draw=entropy(seed))
    return [one.peer for one in found]


def test_newcomers_are_drawn_and_not_the_first_of_all() -> None:
    many = [candidate(i) for i in range(40)]
    first = min(many, key=lambda one: one.peer).peer
    drawn = Counter(peer for seed in range(80) for peer in added(many, 4, seed=seed))
    assert len(drawn) > 30
    assert drawn[first] < 25


def test_newcomers_are_spread_beside_those_that_stay() -> None:
    crowd = [candidate(i, region=3) for i in range(30)]
    beside = replace(candidate(99), addr="/ip4/80.1.1.9/tcp/1", offer=offer(HashSigner(0, "peer", 99), addr=place(1)))
    assert len(added([*crowd, beside], 4)) == 1, "one of a region, none of a member's block"
    assert beside.peer not in added([beside], 4)
    assert len(added([*crowd, beside], 4, grouping="peer")) == 4
    known = [candidate(i, source=introducer(1)) for i in range(30)]
    assert len(added(known, 4)) == 4
    assert len(added(known, 8)) == 5, "at most a third through one"


def test_who_says_to_be_elsewhere_than_it_is_does_not_come() -> None:
    liar = replace(candidate(1), offer=offer(HashSigner(0, "peer", 1), addr=place(77)))
    assert added([liar], 1) == []


def test_a_renewal_that_crowds_a_panel_is_told_from_one_that_does_not() -> None:
    kept = [(place(i),) for i in range(8)]
    far = [("/ip4/90.1.1.1/tcp/1",), ("/ip4/91.1.1.1/tcp/1",)]
    assert are_spread(far, kept, "network", 10)
    assert not are_spread([far[0], ("/ip4/90.1.1.7/tcp/1",)], kept, "network", 10), "one block"
    assert not are_spread([far[0], ("/ip4/90.1.9.7/tcp/1",)], kept, "network", 10), "one region"
    assert not are_spread([(place(3),)], kept, "network", 10), "a member's block"
    assert not are_spread([("/ip4/127.0.0.1/tcp/1",)], kept, "network", 10), "nowhere"
    assert are_spread([(place(3),)], kept, "peer", 10)
