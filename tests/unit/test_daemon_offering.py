"""nexapod.daemon.offering: what a machine offers as a steward, when it says so again, and when it offers nothing."""

from __future__ import annotations

import pytest

from nexapod.config.stewarding import StewardSettings
from nexapod.daemon import offering
from nexapod.daemon.offering import JOB_PART, LASTS_MS, OFFER_ADDRS_MAX, RENEW_MS, Offering
from nexapod.protocol.events import Event, OfferChanged
from nexapod.protocol.types import Offer
from nexapod.protocol.wire import statements
from nexapod.sim.keys import HashSigner

QUOTA = 40 << 30
ADDRS = ["/ip4/10.0.0.1/tcp/4001"]


class Wall:
    """A wall clock."""

    now_s = 1_000_000.0

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    clock = Wall()
    monkeypatch.setattr(offering, "time", clock)
    return clock


def made(settings: StewardSettings, addrs: list[str], told: list[Event], quota: int | None = QUOTA) -> Offering:
    return Offering(settings, network="test", quota=quota, addrs=lambda: addrs, post=told.append)


def offers(told: list[Event]) -> list[Offer | None]:
    return [event.offer for event in told if isinstance(event, OfferChanged)]


def test_an_offer_is_a_part_of_the_quota_for_a_day_and_can_be_signed(wall: Wall) -> None:
    told: list[Event] = []
    one = made(StewardSettings(shards=7), ADDRS * 12, told)
    one.look()
    (offer,) = offers(told)
    assert offer is not None
    assert (offer.storage, offer.shards, offer.addrs) == (QUOTA // JOB_PART, 7, tuple(ADDRS * OFFER_ADDRS_MAX))
    assert offer.until == 1_000_000_000 + LASTS_MS
    assert one.why_not == ""
    assert statements.make(offer, HashSigner(1, "a")).envelope


@pytest.mark.parametrize(("said", "quota", "storage"), [(5 << 20, QUOTA, 5 << 20), (None, None, 64 << 30)])
def test_the_owner_says_how_much_and_a_store_without_a_quota_offers_some(
    wall: Wall, said: int | None, quota: int | None, storage: int
) -> None:
    told: list[Event] = []
    made(StewardSettings(storage=said), ADDRS, told, quota).look()
    (offer,) = offers(told)
    assert offer is not None
    assert offer.storage == storage


def test_it_is_said_again_when_it_ages_or_changes_and_not_before(wall: Wall) -> None:
    told: list[Event] = []
    addrs = list(ADDRS)
    one = made(StewardSettings(), addrs, told)
    one.look()
    wall.now_s += (LASTS_MS - RENEW_MS) / 1000
    one.look()
    assert len(offers(told)) == 1
    wall.now_s += 1
    one.look()
    first, second = offers(told)
    assert first is not None
    assert second is not None
    assert second.seq > first.seq
    assert second.until > first.until
    addrs[0] = "/ip4/10.0.0.2/tcp/4001"
    one.look()
    one.look()
    assert len(offers(told)) == 3


def test_who_listens_nowhere_or_does_not_want_to_offers_nothing_and_withdraws_what_was_offered(wall: Wall) -> None:
    told: list[Event] = []
    unwilling = made(StewardSettings(enabled=False), ADDRS, told)
    unwilling.look()
    assert told == []
    assert "steward.enabled" in unwilling.why_not
    addrs = list(ADDRS)
    one = made(StewardSettings(), addrs, told)
    one.look()
    addrs.clear()
    one.look()
    one.look()
    assert [offer is None for offer in offers(told)] == [False, True]
    assert "listens nowhere" in one.why_not
