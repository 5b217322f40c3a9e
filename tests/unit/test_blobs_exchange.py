"""Blobs moving between exchanges on an in-memory network, with peers that lie, stall, vanish and restart."""

from __future__ import annotations

import hashlib
import os
import resource
import time
import tracemalloc
from contextlib import asynccontextmanager

import pytest
import trio

from nexapod.blobs.asking import ByteBudget
from nexapod.blobs.errors import BlobTooLarge, BlobUnavailable, DiskFull
from nexapod.blobs.exchange import FETCH_BYTES_MAX, Exchange, Timing
from nexapod.blobs.fetching import LANES
from nexapod.blobs.frames import (
    PIECE_BYTES,
    AskChunk,
    AskList,
    ChunkPart,
    ListPart,
    NotHere,
    decode,
    encode,
)
from nexapod.blobs.rates import Caps, Rates
from nexapod.blobs.serving import PEERS_SERVED_MAX, QUESTIONS_PER_PEER_MAX
from nexapod.blobs.store import BlobStore
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, Digest, Part, blob_of

TIMING = Timing(stall=2.0, answer=5.0, hedge=0.1, send=1.0)
MIB = CHUNK_BYTES


class Node:
    """One peer: its store, its exchange, and what it was told of others' breaches."""

    def __init__(self, name, folder, network):
        self.name = name
        self.bad = []
        self.store = BlobStore(folder / name)
        self.exchange = Exchange(self.store, self._send, on_bad=self._on_bad, timing=TIMING)
        self.network = network

    def _on_bad(self, peer, error):
        self.bad.append((peer, error.rule))

    async def _send(self, peer, frame):
        await self.network.send(self.name, peer, frame)

    async def fetch(self, ref, *sources, deadline_s=10.0):
        part = ref if isinstance(ref, Part) else Part.whole(ref)
        await self.exchange.fetch(part, sources, deadline_s=deadline_s)


class Network:
    """Ordered, bounded queues between named peers. `on_send` may see, change, drop (None) or break each frame."""

    def __init__(self, folder, nursery):
        self.folder = folder
        self.nursery = nursery
        self.nodes = {}
        self.scripts = {}
        self.queues = {}
        self.on_send = {}
        self.sent = []

    def node(self, name):
        node = self.nodes[name] = Node(name, self.folder, self)
        self.nursery.start_soon(node.exchange.run)
        return node

    def script(self, name, answer):
        """A peer made by hand: `answer(question)` gives the frames that it sends back."""
        self.scripts[name] = answer

    def cut(self, name):
        """A peer vanishes, and the others' links notice."""
        self.nodes.pop(name, None)
        self.scripts.pop(name, None)
        for node in self.nodes.values():
            node.exchange.peer_gone(name)

    async def send(self, source, target, frame):
        change = self.on_send.get((source, target))
        if change is not None:
            frame = change(frame)
        if target not in self.nodes and target not in self.scripts:
            raise trio.BrokenResourceError
        if frame is None:
            return
        self.sent.append((source, target, len(frame)))
        queue = self.queues.get((source, target))
        if queue is None:
            queue, out = trio.open_memory_channel(4)
            self.queues[source, target] = queue
            self.nursery.start_soon(self._deliver, source, target, out)
        await queue.send(frame)

    async def _deliver(self, source, target, out):
        async for frame in out:
            if target in self.nodes:
                await self.nodes[target].exchange.on_frame(source, frame)
            elif target in self.scripts:
                for answer in self.scripts[target](decode(frame)):
                    await self.nodes[source].exchange.on_frame(target, encode(answer))


@asynccontextmanager
async def network_in(folder):
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            yield Network(folder, nursery)
            nursery.cancel_scope.cancel()


def chunk_answers(data, question):
    """What an honest peer answers."""
    pieces = [data[at : at + MIB] for at in range(0, len(data), MIB)]
    if isinstance(question, AskList):
        return [ListPart(question.id, b"".join(hashlib.sha256(piece).digest() for piece in pieces))]
    piece = pieces[question.chunk]
    return [ChunkPart(question.id, at, piece[at : at + PIECE_BYTES]) for at in range(0, len(piece), PIECE_BYTES)]


@pytest.mark.parametrize("size", [0, 1, 5000, MIB, MIB + 1, 5 * MIB + 12345])
async def test_a_blob_arrives_whole(tmp_path, size):
    data = os.urandom(size)
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(data)
        await taker.fetch(ref, "giver")
        assert taker.store.path(ref).read_bytes() == data
        assert await taker.store.verify(ref)
        await taker.fetch(ref)  # here already: no source is needed
        assert taker.bad == giver.bad == []


async def test_what_was_fetched_can_be_fetched_from_there(tmp_path):
    async with network_in(tmp_path) as network:
        nodes = [network.node(str(number)) for number in range(4)]
        ref = await nodes[0].store.put_bytes(os.urandom(3 * MIB))
        for number in range(1, 4):
            await nodes[number].fetch(ref, str(number - 1))


async def test_several_providers_share_the_work(tmp_path):
    data = os.urandom(24 * MIB)
    async with network_in(tmp_path) as network:
        givers = [network.node(name) for name in ("a", "b", "c")]
        taker = network.node("taker")
        for giver in givers:
            ref = await giver.store.put_bytes(data)
        await taker.fetch(ref, "a", "b", "c")
        assert await taker.store.verify(ref)
        for name in ("a", "b", "c"):
            assert sum(size for source, _, size in network.sent if source == name) > 3 * MIB
        # On a busy machine the last ones, as many as are asked for at once, may each be asked of a second.
        assert sum(size for _, target, size in network.sent if target == "taker") < (24 + 3 * LANES + 1) * MIB


async def test_fetches_of_the_same_blob_are_joined(tmp_path):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(os.urandom(2 * MIB))
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(taker.fetch, ref, "giver")
        assert sum(size for _, target, size in network.sent if target == "taker") < 2.1 * MIB


async def test_one_waiter_giving_up_does_not_end_the_fetch_for_another(tmp_path):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        data = os.urandom(MIB // 2)
        ref = blob_of(data)
        outcomes = []

        async def impatient():
            with pytest.raises(BlobUnavailable, match="not here within"):
                await taker.fetch(ref, "silent", deadline_s=0.05)
            await giver.store.put_bytes(data)
            outcomes.append("gave up")
            await taker.fetch(ref, "giver")

        network.script("silent", lambda question: [])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(impatient)
            await taker.fetch(ref, "silent")
        assert outcomes == ["gave up"]


async def test_no_source_has_it(tmp_path):
    async with network_in(tmp_path) as network:
        network.node("empty")
        taker = network.node("taker")
        for ref in (blob_of(b"absent"), blob_of(bytes(2 * MIB))):
            with pytest.raises(BlobUnavailable, match="empty does not have it; stranger is not connected"):
                await taker.fetch(ref, "empty", "stranger")
            with pytest.raises(BlobUnavailable, match="no peer to ask"):
                await taker.fetch(ref)
        assert taker.bad == []


async def test_names_that_cannot_be_fetched(tmp_path):
    async with network_in(tmp_path) as network:
        taker = network.node("taker")
        with pytest.raises(BlobUnavailable, match="no bytes have this name"):
            await taker.fetch(BlobRef(Digest(bytes(32)), 0), "anyone")
        with pytest.raises(BlobTooLarge):
            await taker.fetch(BlobRef(Digest(bytes(32)), FETCH_BYTES_MAX + 1), "anyone")


@pytest.mark.parametrize("size", [5000, 3 * MIB])
async def test_a_provider_of_wrong_bytes_is_reported_and_left(tmp_path, size):
    data = os.urandom(size)

    def liar(question):
        answers = chunk_answers(data, question)
        if isinstance(question, AskChunk):
            answers = [ChunkPart(part.id, part.offset, bytes(len(part.data))) for part in answers]
        return answers

    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(data)
        network.script("liar", liar)
        with pytest.raises(BlobUnavailable, match="liar sent a wrong answer"):
            await taker.fetch(ref, "liar")
        assert set(taker.bad) == {("liar", "blob-bytes")}
        await taker.fetch(ref, "liar", "giver")
        assert await taker.store.verify(ref)
        assert giver.bad == []


def wrong_list(question):
    return [ListPart(question.id, bytes(64))]


def too_long(question):
    return [ChunkPart(question.id, 0, bytes(PIECE_BYTES))]


def wrong_offset(question):
    return [ChunkPart(question.id, 7, b"x")]


def list_for_chunk(question):
    return [ListPart(question.id, bytes(32))]


def never_asked(question):
    return [NotHere(question.id + 1000)]


@pytest.mark.parametrize(
    ("size", "answer", "rule"),
    [
        (2 * MIB, wrong_list, "blob-list"),
        (2 * MIB, lambda question: [ListPart(question.id, bytes(96))], "bulk-answer"),
        (2 * MIB, wrong_offset, "bulk-answer"),
        (5000, too_long, "bulk-answer"),
        (5000, wrong_offset, "bulk-answer"),
        (5000, list_for_chunk, "bulk-answer"),
        (5000, never_asked, "bulk-unasked"),
    ],
)
async def test_answers_that_break_the_rules_are_reported_and_another_source_used(tmp_path, size, answer, rule):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(os.urandom(size))
        network.script("liar", answer)
        await fetch_in_vain(taker, ref, "liar")
        await taker.fetch(ref, "liar", "giver")
        assert ("liar", rule) in taker.bad
        assert await taker.store.verify(ref)


async def test_an_answer_from_the_wrong_peer_is_a_breach(tmp_path):
    async with network_in(tmp_path) as network:
        taker = network.node("taker")
        network.script("silent", lambda question: [])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_in_vain, taker, blob_of(b"x"), "silent")
            while not network.sent:
                await trio.lowlevel.checkpoint()
            await taker.exchange.on_frame("meddler", encode(ChunkPart(0, 0, b"x")))
        assert taker.bad == [("meddler", "bulk-unasked")]


async def test_sources_of_a_small_blob_are_asked_in_their_order(tmp_path):
    async with network_in(tmp_path) as network:
        givers = [network.node(name) for name in ("near", "far")]
        taker = network.node("taker")
        for _ in range(20):
            data = os.urandom(100)
            for giver in givers:
                ref = await giver.store.put_bytes(data)
            await taker.fetch(ref, "near", "far")
        asked = [target for source, target, _ in network.sent if source == "taker"]
        assert asked == ["near"] * 20


def write_large(path):
    with open(path, "wb") as file:
        for _ in range(64):
            file.write(os.urandom(MIB))


async def fetch_in_vain(node, ref, *sources):
    with pytest.raises(BlobUnavailable):
        await node.fetch(ref, *sources)


async def test_rubbish_never_raises(tmp_path):
    async with network_in(tmp_path) as network:
        node = network.node("node")
        for frame in (b"", b"\xc1", os.urandom(1000), encode(NotHere(5)), bytes(300_000)):
            await node.exchange.on_frame("stranger", frame)
        assert len(node.bad) == 5


@pytest.mark.parametrize("size", [5000, 3 * MIB])
async def test_a_silent_provider_costs_little_when_there_is_another(tmp_path, size):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(os.urandom(size))
        network.script("silent", lambda question: [])
        await taker.fetch(ref, "silent", "giver")
        assert taker.bad == []
        with pytest.raises(BlobUnavailable, match="silent did not answer in time"):
            await taker.fetch(blob_of(bytes(size)), "silent")


async def test_a_provider_that_vanishes_in_the_middle_is_replaced(tmp_path):
    data = os.urandom(12 * MIB)
    async with network_in(tmp_path) as network:
        first, second, taker = (network.node(name) for name in ("first", "second", "taker"))
        for giver in (first, second):
            ref = await giver.store.put_bytes(data)
        count = 0

        def vanish(frame):
            nonlocal count
            count += 1
            if count == 20:
                network.cut("first")
                raise trio.BrokenResourceError
            return frame

        network.on_send["first", "taker"] = vanish
        await taker.fetch(ref, "first", "second")
        assert count >= 20
        assert await taker.store.verify(ref)
        assert taker.bad == []


async def test_a_fetch_is_resumed_after_a_restart_without_what_had_arrived(tmp_path):
    data = os.urandom(10 * MIB)
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(data)
        count = 0

        def stop_after_some(frame):
            nonlocal count
            count += 1
            return frame if count < 36 else None

        network.on_send["giver", "taker"] = stop_after_some
        with pytest.raises(BlobUnavailable, match="did not answer in time"):
            await taker.fetch(ref, "giver")
        del network.on_send["giver", "taker"]
        network.cut("taker")
        network.sent.clear()
        taker = network.node("taker")
        await taker.fetch(ref, "giver")
        assert taker.store.path(ref).read_bytes() == data
        assert sum(size for _, target, size in network.sent if target == "taker") < 6 * MIB


async def test_a_disk_too_small_ends_the_fetch(tmp_path):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(os.urandom(4 * MIB))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
        try:
            with pytest.raises(DiskFull, match="free some space"):
                await taker.fetch(ref, "giver")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await taker.fetch(ref, "giver")


async def test_a_cancelled_fetch_leaves_the_exchange_in_order(tmp_path):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(os.urandom(8 * MIB))
        for delay in (0, 0.001, 0.01):
            with trio.move_on_after(delay):
                await taker.fetch(ref, "giver")
        await taker.fetch(ref, "giver")
        assert await taker.store.verify(ref)
        assert taker.bad == giver.bad == []
        assert taker.exchange._fetches == {}
        assert taker.exchange._asker._asked == {}
        assert taker.exchange._asker._peers == {}


async def test_many_small_blobs_at_once(tmp_path):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        refs = [await giver.store.put_bytes(os.urandom(100)) for _ in range(200)]
        async with trio.open_nursery() as nursery:
            for ref in refs:
                nursery.start_soon(taker.fetch, ref, "giver")
        assert (await taker.store.stat()).blobs == 200
        assert giver.exchange.questions_dropped == 0


async def test_one_asker_cannot_crowd_out_another_and_queues_are_bounded(tmp_path):
    async with network_in(tmp_path) as network:
        giver = network.node("giver")
        ref = await giver.store.put_bytes(os.urandom(3 * MIB))
        blocked = trio.Event()

        async def send(peer, frame):
            if peer.startswith("greedy"):
                await blocked.wait()
            else:
                await network.send("giver", peer, frame)

        giver.exchange._server._send = send
        for number in range(1000):
            await giver.exchange.on_frame("greedy", encode(AskChunk(number, BlobRef(ref.digest, 1 + number), 0)))
        server = giver.exchange._server
        assert len(server._questions["greedy"]) <= QUESTIONS_PER_PEER_MAX
        assert server.dropped >= 1000 - QUESTIONS_PER_PEER_MAX - 1
        taker = network.node("taker")
        await taker.fetch(ref, "giver")
        for number in range(PEERS_SERVED_MAX + 10):
            await giver.exchange.on_frame(f"greedy{number}", encode(AskChunk(number, ref, 0)))
        assert len(server._questions) == PEERS_SERVED_MAX
        giver.exchange.peer_gone("greedy")
        blocked.set()
        while server._questions:
            await trio.lowlevel.checkpoint()


async def test_who_asks_again_for_what_still_waits_is_answered_once(tmp_path):
    async with network_in(tmp_path) as network:
        giver = network.node("giver")
        ref = await giver.store.put_bytes(os.urandom(3 * MIB))
        blocked = trio.Event()
        answers = []

        async def send(peer, frame):
            await blocked.wait()
            answers.append(decode(frame))

        giver.exchange._server._send = send
        await giver.exchange.on_frame("taker", encode(AskChunk(0, ref, 0)))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(1, 100):
            for question in (AskChunk(number, ref, 1 + number % 2), AskList(100 + number, ref, 0)):
                await giver.exchange.on_frame("taker", encode(question))
        blocked.set()
        while giver.exchange._server._questions:
            await trio.lowlevel.checkpoint()
        assert giver.exchange.questions_dropped == 0
        # The first was being answered; of the others, the last of each.
        assert {answer.id for answer in answers} == {0, 98, 99, 199}
        assert sum(len(answer.data) for answer in answers) == 3 * MIB + 96


async def test_a_damaged_blob_is_not_passed_on(tmp_path):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        ref = await giver.store.put_bytes(os.urandom(5000))
        giver.store.path(ref).chmod(0o600)
        giver.store.path(ref).write_bytes(b"short")
        with pytest.raises(BlobUnavailable, match="giver does not have it"):
            await taker.fetch(ref, "giver")


async def test_64_mib_in_bounded_memory(tmp_path):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        write_large(tmp_path / "large")
        ref = await giver.store.put_file(tmp_path / "large")
        tracemalloc.start()
        try:
            await taker.fetch(ref, "giver", deadline_s=25)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert await taker.store.verify(ref)
        # Four chunks open, each perhaps copied once, and the frames between.
        assert peak < 16 * MIB


@pytest.mark.parametrize("caps", [Caps(up_max=8 * MIB), Caps(peer_up_max=8 * MIB), Caps(down_max=8 * MIB)])
async def test_caps_hold_for_what_is_sent_and_asked_for(tmp_path, caps):
    async with network_in(tmp_path) as network:
        giver, taker = network.node("giver"), network.node("taker")
        for node in (giver, taker):
            node.exchange = Exchange(node.store, node._send, on_bad=node._on_bad, timing=TIMING, rates=Rates(caps))
            network.nursery.start_soon(node.exchange.run)
        ref = await giver.store.put_bytes(os.urandom(14 * MIB))
        began = trio.current_time()
        await taker.fetch(ref, "giver")
        # A second's worth may come at once, the other 6 MiB take three quarters of one more.
        assert trio.current_time() - began >= 0.7
        assert await taker.store.verify(ref)


async def test_the_byte_budget_is_kept_in_order_of_arrival():
    budget = ByteBudget(10)
    await budget.acquire(8)
    order = []

    async def take(name, amount):
        await budget.acquire(amount)
        order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, "large", 10)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take, "small", 1)
        await trio.testing.wait_all_tasks_blocked()
        assert order == [], "the small one waits its turn, so that the large one is not passed over for ever"
        budget.release(8)
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["large"]
        budget.release(10)
    assert order == ["large", "small"]


async def test_a_trickle_is_not_waited_for_longer_than_an_answer_may_take(tmp_path):
    started = time.monotonic()
    async with network_in(tmp_path) as network:
        taker = network.node("taker")
        taker.exchange._asker._timing = Timing(stall=0.3, answer=0.5, hedge=0.1, send=1.0)
        network.script("slow", lambda question: [])
        ref = blob_of(bytes(5000))

        async def trickle(nursery):
            with trio.CancelScope():
                offset = 0
                while True:
                    await trio.sleep(0.05)
                    await taker.exchange.on_frame("slow", encode(ChunkPart(0, offset, b"\0")))
                    offset += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle, nursery)
            with pytest.raises(BlobUnavailable, match="did not answer in time"):
                await taker.fetch(ref, "slow")
            nursery.cancel_scope.cancel()
    assert 0.45 < time.monotonic() - started < 3
