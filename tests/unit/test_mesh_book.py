"""Addresses as text, the address book and its backoff and bans: all without a network."""

import pytest

from nexapod.mesh import addresses, identity
from nexapod.mesh.peers import ADDRS_PER_PEER_MAX, BACKOFF_MAX_S, BANS_MAX, PEERS_MAX, AddressBook
from nexapod.mesh.presence import network_of
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import peer_id_of_key

OWN, PEER, OTHER = (identity.peer_id(bytes([n]) * 32) for n in (1, 2, 3))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    "text",
    ["", "x", "/", "/ip4/1.2.3.4", "/ip4/0.0.0.0/tcp/5", "/ip4/1.2.3.4/tcp/0", "/ip4/1.2.3.4/udp/4",
     "/ip4/1.2.3.4/tcp/99999", "/ip4/1.2.3/tcp/4", "/ip6/::/tcp/5", "/dns4/x.org/tcp/5/p2p/zz",
     "/ip4/1.2.3.4/tcp/4/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "/ip4/1.2.3.4/tcp/4/ws",
     f"/ip4/1.2.3.4/tcp/4/p2p/{PEER}/p2p-circuit/p2p/{OTHER}", "/ip4/1.2.3.4/tcp/4\n", "/dns4/" + "a" * 300 + "/tcp/4"],
)  # fmt: skip
def test_what_cannot_be_dialled_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        addresses.parse_dialable(text)
    assert addresses.dialable(PEER, [text]) == []
    with pytest.raises(LocalError):
        addresses.parse_known(text)


def test_an_address_has_a_tcp_part_and_perhaps_a_peer() -> None:
    assert addresses.parse_dialable("/dns4/x.org/tcp/4") == ("/dns4/x.org/tcp/4", None)
    assert addresses.parse_known(f"/ip6/::1/tcp/4/p2p/{PEER}") == (PEER, "/ip6/::1/tcp/4")
    with pytest.raises(LocalError, match="names no peer"):
        addresses.parse_known("/ip4/1.2.3.4/tcp/4")


def test_what_another_machine_reaches_comes_first() -> None:
    hosts = {"127.0.0.1": "lo", "172.17.0.1": "docker0", "192.168.1.5": "eth0", "169.254.3.4": "eth0"}
    assert addresses.by_reach(hosts, {"docker0"}) == ["192.168.1.5", "172.17.0.1", "127.0.0.1"]
    assert addresses.by_reach({"fe80::1%eth0": "eth0", "2001:db8::1": "br0"}, {"br0"}) == ["2001:db8::1"]


def test_a_wildcard_is_expanded_to_addresses_that_can_be_dialled() -> None:
    for text in addresses.expand(["/ip4/0.0.0.0/tcp/77"]):
        assert addresses.parse_dialable(text)[0] == text
    assert addresses.expand(["/ip4/127.0.0.1/tcp/77"]) == ["/ip4/127.0.0.1/tcp/77"]


@pytest.mark.parametrize("text", ["", "nonsense", "/ip4/1.2.3.4", "/dns4/x.org/tcp/4", "/ip4/127.0.0.1/udp/4/quic-v1"])
def test_a_bad_listen_address_is_a_local_error(text: str) -> None:
    with pytest.raises(LocalError):
        addresses.parse_listen([text])


def test_the_book_keeps_only_what_is_the_peers_own_and_dialable() -> None:
    book = AddressBook(OWN, Clock())
    assert book.learn(PEER, ["/ip4/1.2.3.4/tcp/4", "junk", f"/ip4/9.9.9.9/tcp/4/p2p/{OTHER}"])
    assert book.addrs(PEER) == ["/ip4/1.2.3.4/tcp/4"]
    assert not book.learn(PEER, [f"/ip4/1.2.3.4/tcp/4/p2p/{PEER}"]), "nothing new"
    assert not book.learn(OWN, ["/ip4/1.2.3.4/tcp/4"])
    assert book.addrs(OTHER) == []


def test_the_book_is_bounded_and_never_forgets_what_was_configured() -> None:
    book = AddressBook(OWN, Clock())
    book.learn(PEER, ["/ip4/1.2.3.4/tcp/4"], pinned=True)
    for port in range(1, 40):
        book.learn(OTHER, [f"/ip4/1.2.3.4/tcp/{port}"])
    assert len(book.addrs(OTHER)) == ADDRS_PER_PEER_MAX
    assert book.addrs(OTHER)[0] == "/ip4/1.2.3.4/tcp/39", "the newest comes first"
    for n in range(PEERS_MAX + 10):
        book.learn(peer_id_of_key(n.to_bytes(32, "big")), ["/ip4/1.2.3.4/tcp/4"])
    assert len(book) == PEERS_MAX
    assert book.addrs(PEER)
    assert not book.addrs(OTHER)


def test_backoff_doubles_to_its_bound_and_ends_with_success() -> None:
    clock = Clock()
    book = AddressBook(OWN, clock)
    book.learn(PEER, ["/ip4/1.2.3.4/tcp/4"])
    assert book.candidates([]) == [PEER]
    assert book.candidates([PEER]) == []
    pauses = []
    for _ in range(12):
        book.failed(PEER)
        assert not book.ready(PEER)
        start = clock.now
        while not book.ready(PEER):
            clock.now += 0.1
        pauses.append(clock.now - start)
    assert pauses[0] < 1.5
    assert pauses[3] > 4
    assert max(pauses) <= BACKOFF_MAX_S * 1.3 + 0.2
    book.failed(PEER)
    book.succeeded(PEER)
    assert book.ready(PEER)


def test_a_new_address_shortens_the_backoff_and_a_foreign_peer_is_left_alone() -> None:
    clock = Clock()
    book = AddressBook(OWN, clock)
    for _ in range(8):
        book.failed(PEER)
    book.learn(PEER, ["/ip4/1.2.3.4/tcp/4"])
    clock.now += 1.1
    assert book.ready(PEER)
    book.foreign(OTHER)
    clock.now += 500
    assert not book.ready(OTHER)


def test_a_ban_holds_for_its_time_whatever_is_learnt_meanwhile() -> None:
    clock = Clock()
    book = AddressBook(OWN, clock=clock)
    book.learn(PEER, ["/ip4/1.2.3.4/tcp/4"])
    book.ban(PEER, 60)
    book.learn(PEER, ["/ip4/1.2.3.4/tcp/5"])
    book.succeeded(PEER)
    assert book.banned(PEER)
    assert not book.ready(PEER)
    assert book.candidates([]) == []
    clock.now += 59
    assert book.banned(PEER)
    book.ban(PEER, 60)
    clock.now += 59
    assert book.banned(PEER), "said again, it lasts longer"
    clock.now += 1
    assert not book.banned(PEER)
    assert book.candidates([]) == [PEER]


def test_bans_are_bounded_and_the_oldest_is_forgotten() -> None:
    book = AddressBook(OWN, clock=Clock())
    peers = [peer_id_of_key(n.to_bytes(32, "big")) for n in range(BANS_MAX + 1)]
    for peer in peers:
        book.ban(peer, 60)
    assert not book.banned(peers[0])
    assert all(book.banned(peer) for peer in peers[1:])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/ip4/1.2.3.4/tcp/4", "/ip4/1.2.3.4/tcp/5", True),
        ("/ip4/1.2.3.4/tcp/4", "/ip4/1.2.3.5/tcp/4", False),
        ("/ip4/1.2.3.4/tcp/4", "/ip6/::ffff:1.2.3.4/tcp/4", True),
        ("/ip6/2001:db8::1/tcp/4", "/ip6/2001:db8:0::1/tcp/5", True),
        ("/dns4/x.org/tcp/4", "/dns4/x.org/tcp/4", False),
        ("/dns4/1.2.3.4/tcp/4", "/ip4/1.2.3.4/tcp/4", False),
        ("", "", False),
    ],
)
def test_two_addresses_are_of_one_host_when_their_ip_is_the_same(one: str, other: str, same: bool) -> None:
    assert addresses.same_host(one, other) is same


def test_a_peer_of_another_network_or_version_is_named() -> None:
    theirs = ["/ipfs/ping/1.0.0", "/nexapod/other/control/3"]
    assert network_of(theirs, "ours") == "other"
    assert network_of(["/ipfs/ping/1.0.0", "/nexapod/ours/kad/1.0.0"], "ours") == ""
    assert network_of(["/nexapod/ours/kad/1.0.0", "/nexapod/ours/bulk/1"], "ours") == (
        "ours (version 1 of the protocol)"
    )
    assert network_of(["/nexapod/a\x1b[31m/control/\x1b[31m"], "ours") == "a\\x1b[31m"
