"""nexapod.daemon.perform: what the core asks for is brought here, however much it asks for at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import trio
import trio.testing

from nexapod.blobs.errors import BlobUnavailable
from nexapod.blobs.store import BlobStore
from nexapod.daemon.perform import FETCHES_AT_ONCE, Performer
from nexapod.daemon.providers import Providers
from nexapod.protocol.types import Digest, Part, PeerId, blob_of
from nexapod.protocol.v3.events import BlobFailed, BlobReady, Event, Fetch

DEADLINE_S = 30.0
HOLDER = PeerId("holder")


class Exchange:
    """Nothing arrives before `open_gate`; then everything does, but what nobody has."""

    def __init__(self, missing: frozenset[Part]) -> None:
        self.missing = missing
        self.fetching = 0
        self.most = 0
        self.full = trio.Event()
        self.gate = trio.Event()

    async def fetch(self, part: Part, sources: Sequence[PeerId], *, deadline_s: float) -> None:
        self.fetching += 1
        self.most = max(self.most, self.fetching)
        if self.fetching == FETCHES_AT_ONCE:
            self.full.set()
        await self.gate.wait()
        self.fetching -= 1
        if part in self.missing:
            raise BlobUnavailable("nobody has it")


async def test_a_thousand_results_are_fetched_some_at_a_time_and_nobody_else_is_asked(tmp_path: Path) -> None:
    parts = [Part.whole(blob_of(b"%d" % number)) for number in range(1000)]
    missing = frozenset(parts[::100])
    exchange = Exchange(missing)
    looked_up: list[Digest] = []

    async def lookup(digest: Digest, limit: int) -> list[PeerId]:
        looked_up.append(digest)
        return []

    providers = Providers(exchange, connected=dict, lookup=lookup, addrs=lambda peer: (), me=PeerId("me"))
    said: list[Event] = []
    all_said = trio.Event()

    def post(event: Event) -> None:
        said.append(event)
        if len(said) == len(parts):
            all_said.set()

    performer = Performer(
        mesh=cast(Any, None),
        dht=cast(Any, None),
        blobs=BlobStore(tmp_path / "blobs"),
        providers=providers,
        tasks=cast(Any, None),
        hub=cast(Any, None),
        post=post,
        held=frozenset,
    )
    performer._provide = lambda ref: None  # type: ignore[method-assign]
    for part in parts:
        performer(Fetch(part, (HOLDER,)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(performer.run)
        with trio.fail_after(DEADLINE_S):
            await exchange.full.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            exchange.gate.set()
            await all_said.wait()
        nursery.cancel_scope.cancel()
    assert exchange.most == FETCHES_AT_ONCE
    assert {event.part for event in said if isinstance(event, BlobFailed)} == missing
    assert {event.part for event in said if isinstance(event, BlobReady)} == set(parts) - missing
    assert set(looked_up) == {part.blob.digest for part in missing}, "others only when the named peer has not got it"
