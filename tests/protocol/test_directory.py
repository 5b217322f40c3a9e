"""The directory is a bounded sample that nobody who floods can take over."""

from __future__ import annotations

import itertools
import random

from nexapod.protocol import limits
from nexapod.protocol.node.directory import Directory
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.types import Executor, Offer, Profile
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner

ME = HashSigner(1, "me")
FAR = 1 << 50


def signer(*name: int | str) -> HashSigner:
    return HashSigner(3, *name)


def profile(who: HashSigner, seq: int = 1, network: str = "net") -> Statement:
    body = Profile(
        network=network,
        seq=seq,
        stamp=0,
        agent="test",
        minor=0,
        os="linux",
        arch="x86_64",
        cpu_model="",
        cpus=4,
        memory=1 << 33,
        disk_free=1 << 40,
        gpus=(),
        executors=(Executor("wasm", "1"),),
        images=(),
        registries=(),
        addrs=("/ip4/10.0.0.1/tcp/1",),
        slots=4,
    )
    return statements.make(body, who)


def offer(who: HashSigner, until: int = FAR) -> Statement:
    return statements.make(Offer("net", 1, ("/ip4/10.0.0.1/tcp/1",), 1 << 40, 100, until), who)


def directory(grouping: str = "network") -> Directory:
    rng = random.Random(5)
    return Directory(ME.peer, "net", "network" if grouping == "network" else "peer", rng.randbytes)


def link(table: Directory, who: PeerId, block: int, now: int = 0, *, dialled: bool = False) -> None:
    table.peer_up(who, f"/ip4/10.{block // 256}.{block % 256}.1/tcp/4001", now, dialled=dialled)


def known(table: Directory) -> set[PeerId]:
    return {peer for peer, _, _ in table.peers()}


def test_a_profile_said_on_its_own_link_is_known_and_the_newest_counts() -> None:
    table, who = directory(), signer("a")
    link(table, who.peer, 1)
    assert table.learn(profile(who, 2), who.peer)
    assert not table.learn(profile(who, 1), who.peer)
    assert table.profile(who.peer) is not None
    assert table.addrs(who.peer) == ("/ip4/10.0.0.1/tcp/1",)


def test_what_is_of_another_network_is_not_kept() -> None:
    table, who = directory(), signer("a")
    assert not table.learn(profile(who, network="elsewhere"), who.peer)
    assert not known(table)


def test_one_that_floods_keeps_its_share_and_displaces_only_its_own() -> None:
    table, honest, flooder = directory(), signer("honest"), signer("flooder")
    link(table, honest.peer, 1)
    link(table, flooder.peer, 2)
    told = [signer("told", number) for number in range(20)]
    for one in told:
        table.learn(profile(one), honest.peer)
    for number in range(3_000):
        table.learn(profile(signer("fake", number)), flooder.peer)
    assert {one.peer for one in told} <= known(table)
    fakes = known(table) - {one.peer for one in told} - {honest.peer, flooder.peer}
    assert len(fakes) == limits.RELAYED_PER_FORWARDER_MAX


def test_many_keys_in_one_block_share_one_share() -> None:
    table = directory()
    for number in range(40):
        sybil = signer("sybil", number).peer
        link(table, sybil, 7)
        for fake in range(20):
            table.learn(profile(signer("fake", number, fake)), sybil)
    assert len(table) == 40 + limits.RELAYED_PER_FORWARDER_MAX


def test_a_full_table_makes_room_for_whoever_is_met() -> None:
    table = directory()
    for block in range(60):
        forwarder = signer("f", block)
        link(table, forwarder.peer, block)
        for number in range(40):
            table.learn(profile(signer("r", block, number)), forwarder.peer)
    assert len(table) == limits.DIRECTORY_MAX
    late = [signer("late", number).peer for number in range(100)]
    for number, one in enumerate(late):
        link(table, one, 100 + number)
    assert len(table) == limits.DIRECTORY_MAX
    assert set(late) <= known(table)
    assert {signer("f", block).peer for block in range(60)} <= known(table)


def test_a_newcomer_that_relays_gets_a_place_in_a_full_table() -> None:
    table = directory()
    for block in range(60):
        link(table, signer("f", block).peer, block)
        for number in range(40):
            table.learn(profile(signer("r", block, number)), signer("f", block).peer)
    link(table, signer("new").peer, 200)
    table.learn(profile(signer("told by new")), signer("new").peer)
    assert signer("told by new").peer in known(table)
    assert len(table) == limits.DIRECTORY_MAX


def test_a_linked_peer_is_never_dropped_and_the_longest_gone_goes_first() -> None:
    table = directory()
    for number in range(limits.DIRECTORY_MAX):
        link(table, signer(number).peer, number, now=number)
    table.peer_down(signer(3).peer, 5_000)
    table.peer_down(signer(2).peer, 6_000)
    link(table, signer("new").peer, 9, 7_000)
    assert signer(3).peer not in known(table)
    assert signer(2).peer in known(table)


def test_hearsay_does_not_displace_what_a_linked_peer_says_of_itself() -> None:
    table, who, other = directory(), signer("a"), signer("b")
    link(table, who.peer, 1)
    table.learn(profile(who, 1), who.peer)
    replayed = profile(who, 1)
    assert not table.is_news("profile", who.peer, replayed.raw, who.peer)
    assert not table.is_news("profile", who.peer, profile(who, 9).raw, other.peer)
    assert table.is_news("profile", who.peer, profile(who, 9).raw, who.peer)
    assert not table.is_news("profile", ME.peer, b"", other.peer)


def test_the_introducer_is_kept_when_a_peer_is_met() -> None:
    table, who, other = directory(), signer("a"), signer("b")
    link(table, other.peer, 2)
    table.learn(profile(who), other.peer)
    link(table, who.peer, 1, dialled=True)
    assert table.introducer(who.peer) == other.peer
    assert table.introducer(other.peer) is None


def test_candidates_are_linked_peers_that_this_node_dialled_and_whose_offers_hold() -> None:
    table = directory()
    dialled, inbound, expired, silent = signer("d"), signer("i"), signer("e"), signer("s")
    for block, (who, outward) in enumerate([(dialled, True), (inbound, False), (expired, True), (silent, True)]):
        link(table, who.peer, block, dialled=outward)
    for who, until in ((dialled, FAR), (inbound, FAR), (expired, 10)):
        table.learn(offer(who, until), who.peer)
    found = table.candidates(5_000, stamp=1_000)
    assert [(one.peer, one.uptime_ms) for one in found] == [(dialled.peer, 5_000)]
    table.withdraw_offer(dialled.peer)
    assert not table.candidates(5_000, stamp=1_000)


def test_uptime_adds_up_and_absence_begins_with_the_last_link() -> None:
    table, who = directory(), signer("a").peer
    assert table.lost(who) == 0, "since this process began"
    link(table, who, 1, 1_000)
    assert (table.met(who), table.lost(who)) == (1_000, None)
    table.peer_down(who, 3_000)
    table.unreachable(who, 9_000)
    assert table.lost(who) == 3_000
    link(table, who, 1, 10_000)
    assert (table.met(who), table.lost(who), table.seen_up_ms(who, 11_000)) == (1_000, None, 3_000)


def test_groups_are_those_of_the_link_and_of_no_word() -> None:
    table, who = directory(), signer("a").peer
    assert table.group(who, "network") is None
    table.peer_up(who, "/ip4/127.0.0.1/tcp/1", 0, dialled=True)
    assert table.group(who, "network") is None
    link(table, who, 1)
    assert table.group(who, "network") == "10.0.1.0/24"
    assert table.group(who, "peer") == who


def test_only_peers_that_were_met_are_told_of() -> None:
    table, told, met, gone = directory(), signer("told"), signer("met"), signer("gone")
    for block, who in enumerate((met, gone)):
        link(table, who.peer, block)
        table.learn(profile(who), who.peer)
        table.learn(offer(who), who.peer)
    table.learn(profile(told), met.peer)
    table.peer_down(gone.peer, 0)
    later = limits.MEMBER_GONE_MIN_MS
    asker = signer("asker").peer
    assert {said.author for said in table.sample(16, asker, 1)} == {met.peer, gone.peer}
    assert {said.author for said in table.sample(16, asker, later)} == {met.peer}
    assert not table.sample(16, met.peer, later)
    assert {peer for peer, _ in table.unlinked(9)} == {told.peer, gone.peer}


def test_a_sample_is_bounded_and_varies() -> None:
    table = directory()
    for number in range(100):
        who = signer(number)
        link(table, who.peer, number)
        table.learn(profile(who), who.peer)
    samples = [frozenset(said.author for said in table.sample(16, ME.peer, 1)) for _ in range(5)]
    assert {len(one) for one in samples} == {16}
    assert all(one != other for one, other in itertools.pairwise(samples))
