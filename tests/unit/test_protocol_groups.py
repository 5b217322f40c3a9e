"""nexapod.protocol.groups: who counts as one voter."""

from __future__ import annotations

import pytest
from protocol_kit import pid

from nexapod.protocol.groups import group_of


@pytest.mark.parametrize(
    ("addr", "group"),
    [
        ("/ip4/8.8.8.8/tcp/4001", "8.8.8.0/24"),
        ("/ip4/8.8.8.9/tcp/1", "8.8.8.0/24"),
        ("/ip4/8.8.9.8/tcp/1", "8.8.9.0/24"),
        ("/ip6/2606:4700:1:2::3/tcp/1", "2606:4700:1::/48"),
    ],
)
def test_on_the_internet_a_block_of_addresses_is_one_voter(addr: str, group: str) -> None:
    assert group_of(pid(1), addr) == group


@pytest.mark.parametrize(
    "addr",
    [
        "",
        "/",
        "/ip4",
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/192.168.1.2/tcp/1",
        "/ip6/::1/tcp/1",
        "/ip6/fd00::1",
        "/ip4/x/tcp/1",
        "/dns4/a/b",
    ],
)
def test_elsewhere_every_peer_is_one(addr: str) -> None:
    assert group_of(pid(1), addr) == pid(1)
