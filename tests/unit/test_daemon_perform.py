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
from nexapod.protocol.events import BlobFailed, BlobReady, Event, Fetch
from nexapod.protocol.types import Digest, Part, PeerId, blob_of

HOLDER = PeerId("holder")


class SlowExchange:
    """Every blob takes two seconds and a half, just less than what makes further peers be asked; or nobody has it."""

    def __init__(self, missing: frozenset[Part]) -> None:
        self.missing = missing
        self.open = 0
        self.most = 0

    async def fetch(self, part: Part, sources: Sequence[PeerId], *, deadline_s: float) -> None:
        if part in self.missing:
            raise BlobUnavailable("nobody has it")
        self.open += 1
        self.most = max(self.most, self.open)
        await trio.sleep(2.5)  # a pause: how long a peer takes, on a clock that jumps
        self.open -= 1


async def test_a_thousand_results_are_fetched_some_at_a_time_and_nobody_else_is_asked(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    parts = [Part.whole(blob_of(b"%d" % number)) for number in range(1000)]
    missing = frozenset(parts[::100])
    exchange = SlowExchange(missing)
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
        await all_said.wait()
        nursery.cancel_scope.cancel()
    assert exchange.most == FETCHES_AT_ONCE
    assert {event.part for event in said if isinstance(event, BlobFailed)} == missing
    assert {event.part for event in said if isinstance(event, BlobReady)} == set(parts) - missing
    assert set(looked_up) == {part.blob.digest for part in missing}, "others only when the named peer has not got it"
