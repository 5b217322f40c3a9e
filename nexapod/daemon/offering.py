"""What this machine offers as a steward of others' jobs: how much of its disk, and where it can be dialled.

An offer holds for a day and is renewed long before. A machine that nobody can dial, or whose owner wants no
stewardship, offers nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import trio

from nexapod.config.stewarding import StewardSettings
from nexapod.protocol.events import Event, OfferChanged
from nexapod.protocol.types import Offer

LASTS_MS: Final = 24 * 3_600_000
RENEW_MS: Final = 18 * 3_600_000
"""With so long left it is made anew: whoever chooses by it has most of a day before it runs out."""
LOOK_S: Final = 60.0
OFFER_ADDRS_MAX: Final = 8
JOB_PART: Final = 2
"""One job may have this part of what all blobs may take, unless the owner says otherwise: what is promised is far more
than what tasks usually leave, and what does not fit in the end is refused blob by blob."""
NO_QUOTA_BYTES: Final = 64 << 30
"""... of a store without a quota."""


class Offering:
    """Keeps the offer true."""

    def __init__(
        self,
        settings: StewardSettings,
        *,
        network: str,
        quota: int | None,
        addrs: Callable[[], Sequence[str]],
        post: Callable[[Event], None],
    ) -> None:
        """`quota`: bytes that all blobs may take; None: no bound. `addrs()`: where others can dial this peer."""
        self._settings = settings
        self._network = network
        self._quota = quota
        self._addrs = addrs
        self._post = post
        self.offer: Offer | None = None

    @property
    def why_not(self) -> str:
        """Why nothing is offered, in words; "" when something is."""
        if not self._settings.enabled:
            return "its owner wants it to be no steward (steward.enabled)"
        if not self._addrs():
            return "it listens nowhere, so that nobody could find it"
        return ""

    def look(self) -> None:
        """Make an offer, renew it, or withdraw it, if it is time; the core is told of what changed."""
        wanted = None if self.why_not else self._wanted()
        if wanted is None and self.offer is None:
            return
        if wanted is not None and self.offer is not None and not self._stale(self.offer, wanted):
            return
        self.offer = wanted
        self._post(OfferChanged(wanted))

    async def run(self) -> None:
        """Look again and again, until cancelled. The first look is the caller's."""
        while True:
            await trio.sleep(LOOK_S)
            self.look()

    def _wanted(self) -> Offer:
        # Wall clock: others compare `until` with theirs; `seq` only has to rise across a lost store.
        now = int(time.time() * 1000)
        default = NO_QUOTA_BYTES if self._quota is None else self._quota // JOB_PART
        return Offer(
            network=self._network,
            seq=now,
            addrs=tuple(self._addrs())[:OFFER_ADDRS_MAX],
            storage=default if self._settings.storage is None else self._settings.storage,
            shards=self._settings.shards,
            until=now + LASTS_MS,
        )

    @staticmethod
    def _stale(told: Offer, wanted: Offer) -> bool:
        ages = told.until - wanted.seq < RENEW_MS
        return ages or replace(told, seq=wanted.seq, until=wanted.until) != wanted
