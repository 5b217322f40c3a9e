"""nexapod.daemon.perform: what the core asks for is brought here, however much it asks for at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import trio
import trio.testing

from nexapod.blobs.errors import BlobUnavailable
from nexapod.blobs.store import BlobStore
from nexapod.daemon.hub import Hub
from nexapod.daemon.perform import FETCHES_AT_ONCE, PROVIDE_BYTES_MIN, Performer
from nexapod.daemon.providers import Providers
from nexapod.protocol.events import BlobFailed, BlobReady, Event, Fetch, Penalise, Send, Trace
from nexapod.protocol.notices import JobClosed
from nexapod.protocol.primitives import Digest, JobId, Part, PeerId, blob_of

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


class Links:
    """A mesh that takes what it is given."""

    def __init__(self) -> None:
        self.banned: list[tuple[PeerId, int, str]] = []
        self.full = False
        self.sent: list[bytes] = []

    def ban(self, peer: PeerId, ban_ms: int, reason: str) -> None:
        self.banned.append((peer, ban_ms, reason))

    def send_nowait(self, peer: PeerId, channel: str, frame: bytes, addrs: Sequence[str]) -> bool:
        if not self.full:
            self.sent.append(frame)
        return not self.full


class Records:
    """Tells the DHT of nothing, and notes what it was to be told of."""

    def __init__(self) -> None:
        self.provided: list[Digest] = []

    async def provide(self, digest: Digest) -> bool:
        self.provided.append(digest)
        return True


def performer(tmp_path: Path, links: Links, hub: Hub, **parts: Any) -> Performer:
    given = {"dht": None, "providers": None, "tasks": None, "post": lambda event: None} | parts
    blobs = BlobStore(tmp_path / "blobs")
    return Performer(mesh=cast(Any, links), blobs=blobs, hub=hub, held=frozenset, **given)


def test_a_ban_reaches_the_mesh_a_mere_penalty_does_not_and_notices_are_told(tmp_path: Path) -> None:
    links, hub = Links(), Hub()
    perform = performer(tmp_path, links, hub)
    perform(Penalise(HOLDER, "garbage", 0))
    perform(Penalise(HOLDER, "garbage", 600_000))
    assert links.banned == [(HOLDER, 600_000, "garbage")]
    perform(JobClosed(JobId(Digest(bytes(32))), "settled"))
    perform(Trace("lease_granted", {}))
    assert (hub.notices, hub.traces) == ({"job_closed": 1}, {"lease_granted": 1})
    perform(Send(HOLDER, b"one", ()))
    links.full = True
    perform(Send(HOLDER, b"another", ()))
    assert links.sent == [b"one"]
    assert perform.dropped == {"sends": 1}


async def test_the_dht_is_told_of_large_blobs_that_were_fetched_and_of_no_small_one(tmp_path: Path) -> None:
    small, large = blob_of(b"small"), blob_of(bytes(PROVIDE_BYTES_MIN))
    exchange, records, ready = Exchange(frozenset()), Records(), []
    exchange.gate.set()

    async def lookup(digest: Digest, limit: int) -> list[PeerId]:
        return []

    providers = Providers(exchange, connected=dict, lookup=lookup, addrs=lambda peer: (), me=PeerId("me"))
    perform = performer(tmp_path, Links(), Hub(), dht=records, providers=providers, post=ready.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(perform.run)
        for ref in (small, large):
            perform(Fetch(Part.whole(ref), (HOLDER,)))
        with trio.fail_after(DEADLINE_S):
            while len(ready) < 2 or not records.provided:  # noqa: ASYNC110 - set without an event
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    assert records.provided == [large.digest]
