"""nexapod.daemon.providers: who is asked for a blob first, and when the others are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from nexapod.blobs.errors import BlobError, BlobUnavailable, QuotaExceeded
from nexapod.daemon.providers import FETCH_S, HEDGE_S, NEIGHBOURS_MAX, Providers, is_nearby
from nexapod.protocol.primitives import Digest, Part, PeerId, blob_of

PART = Part.whole(blob_of(b"wanted"))
ME, LAN, FAR, KNOWN, STRANGER, DHT = (PeerId(name) for name in ("me", "lan", "far", "known", "stranger", "dht"))
LINKS = {FAR: "/ip4/93.184.216.34/tcp/4747", LAN: "/ip4/192.168.1.7/tcp/4747"}


@dataclass
class World:
    """An exchange in which `holders` deliver after some seconds, and nobody else does; and what it was asked."""

    holders: dict[PeerId, float] = field(default_factory=dict)
    silent: frozenset[PeerId] = frozenset()
    refusal: BlobError | None = None
    links: dict[PeerId, str] = field(default_factory=lambda: dict(LINKS))
    asked: list[tuple[PeerId, ...]] = field(default_factory=list)
    looked_up: list[Digest] = field(default_factory=list)

    async def fetch(self, part: Part, sources: Sequence[PeerId], *, deadline_s: float) -> None:
        self.asked.append(tuple(sources))
        if self.refusal is not None:
            raise self.refusal
        delays = [self.holders[peer] for peer in sources if peer in self.holders]
        if not delays and not self.silent & set(sources):
            raise BlobUnavailable("nobody has it")
        with trio.fail_after(deadline_s):
            await trio.sleep(min(delays, default=1e9))  # a pause: how long this peer takes, on a clock that jumps

    async def lookup(self, digest: Digest, limit: int) -> list[PeerId]:
        self.looked_up.append(digest)
        return [DHT, LAN]

    @property
    def providers(self) -> Providers:
        addrs: Callable[[PeerId], Sequence[str]] = lambda peer: ["/ip4/203.0.113.1/tcp/1"] if peer == KNOWN else []  # noqa: E731
        return Providers(self, connected=lambda: self.links, lookup=self.lookup, addrs=addrs, me=ME)


def test_peers_are_ranked_by_how_near_they_are() -> None:
    assert World().providers.ranked([STRANGER, ME, KNOWN, FAR, LAN, FAR]) == [LAN, FAR, KNOWN, STRANGER]


@pytest.mark.parametrize(
    ("addr", "near"),
    [
        ("/ip4/127.0.0.1/tcp/1", True),
        ("/ip4/10.0.0.9/tcp/1", True),
        ("/ip6/fd00::1/tcp/1", True),
        ("/ip4/8.8.8.8/tcp/1", False),
        ("/dns4/example.org/tcp/1", False),
        ("/ip4/rubbish/tcp/1", False),
        ("", False),
    ],
)
def test_what_is_nearby(addr: str, near: bool) -> None:
    assert is_nearby(addr) is near


async def test_nobody_else_is_asked_when_those_named_deliver(autojump_clock: trio.testing.MockClock) -> None:
    world = World(holders={FAR: 1.0})
    await world.providers.fetch(PART, [STRANGER, FAR])
    assert world.asked == [(FAR, STRANGER)]
    assert not world.looked_up


async def test_neighbours_are_asked_when_those_named_do_not_have_it(autojump_clock: trio.testing.MockClock) -> None:
    world = World(holders={LAN: 1.0})
    await world.providers.fetch(PART, [STRANGER])
    assert world.asked == [(STRANGER,), (LAN, FAR)]
    assert not world.looked_up
    assert trio.current_time() < HEDGE_S


async def test_the_dht_is_asked_at_last_and_nobody_twice(autojump_clock: trio.testing.MockClock) -> None:
    world = World(holders={DHT: 1.0})
    await world.providers.fetch(PART, [FAR])
    assert world.asked == [(FAR,), (LAN,), (DHT,)]
    assert world.looked_up == [PART.blob.digest]


async def test_slow_ones_are_helped_after_a_few_seconds(autojump_clock: trio.testing.MockClock) -> None:
    world = World(silent=frozenset({STRANGER, LAN}), holders={DHT: 1.0})
    began = trio.current_time()
    await world.providers.fetch(PART, [STRANGER])
    assert world.asked == [(STRANGER,), (LAN, FAR), (DHT,)]
    assert trio.current_time() - began == pytest.approx(2 * HEDGE_S + 1, abs=0.1)


async def test_the_slow_one_may_still_win(autojump_clock: trio.testing.MockClock) -> None:
    world = World(holders={STRANGER: 3 * HEDGE_S})
    await world.providers.fetch(PART, [STRANGER])
    assert len(world.asked) == 3


async def test_it_fails_when_nobody_has_it_and_ends_when_nobody_answers(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(BlobUnavailable, match="nobody has it"):
        await World().providers.fetch(PART, [STRANGER])
    began = trio.current_time()
    with pytest.raises(BlobUnavailable):
        await World(silent=frozenset({STRANGER})).providers.fetch(PART, [STRANGER])
    assert trio.current_time() - began == pytest.approx(FETCH_S, abs=1)


async def test_a_full_disk_here_is_nobodys_fault(autojump_clock: trio.testing.MockClock) -> None:
    world = World(refusal=QuotaExceeded("no room"))
    with pytest.raises(QuotaExceeded):
        await world.providers.fetch(PART, [STRANGER])
    assert len(world.asked) == 1


async def test_a_blob_of_which_nobody_is_named_is_looked_for_and_few_neighbours_are_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(holders={DHT: 0.1}, links={PeerId(f"p{n:02}"): LINKS[FAR] for n in range(20)})
    await world.providers.fetch_whole(PART.blob)
    assert [len(peers) for peers in world.asked] == [0, NEIGHBOURS_MAX, 2]
