"""The daemon: one nursery tree, built here, and torn down in the reverse order.

    home lock -> store -> core (restored) -> executors, blobs, mesh, dht -> engine -> API

SIGTERM and SIGINT drain: no new task is taken, running ones end and their results are handed over, within a bound. A
second signal ends at once. kill -9 at any moment loses nothing that was acknowledged.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial

import structlog
import trio

from nexapod.api.app import create_app
from nexapod.api.serve import load_or_create_token, serve
from nexapod.blobs.exchange import Exchange
from nexapod.blobs.load import Load
from nexapod.blobs.rates import Caps, Rates
from nexapod.blobs.room import Quota
from nexapod.blobs.store import BlobStore
from nexapod.config import Config
from nexapod.daemon.bridge import MeshBridge
from nexapod.daemon.discovery import Discovery
from nexapod.daemon.engine import Engine, monotonic_ms
from nexapod.daemon.gpu_desk import GpuDesk
from nexapod.daemon.hub import Hub
from nexapod.daemon.image_shelf import Shelf, this_machine
from nexapod.daemon.images import IMAGES_MAX_DEFAULT, Images
from nexapod.daemon.machine import Machine
from nexapod.daemon.offering import Offering
from nexapod.daemon.pausing import Pausing
from nexapod.daemon.perform import Performer
from nexapod.daemon.providers import Providers
from nexapod.daemon.recall import Recall
from nexapod.daemon.service import Service
from nexapod.daemon.staging import Staging, label_of
from nexapod.daemon.stopping import Stop
from nexapod.daemon.tasks import TaskRunner
from nexapod.dht.dht import Dht
from nexapod.executor.contract import Executor
from nexapod.executor.docker.sandbox import DockerExecutor
from nexapod.executor.images.inventory import DockerImages
from nexapod.executor.wasm.runners import Roots
from nexapod.executor.wasm.sandbox import WasmExecutor
from nexapod.log import sd_notify, setup_logging
from nexapod.mesh import identity
from nexapod.mesh.links import PeerUnreachable
from nexapod.mesh.mesh import Mesh
from nexapod.protocol import events
from nexapod.protocol.errors import LocalError, PeerError
from nexapod.protocol.node.archive import ARCHIVED
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.rules.matching import Policy
from nexapod.store.home import Home
from nexapod.store.reading import open_reader
from nexapod.store.store import Store

log = structlog.get_logger()

DRAIN_S = 30.0
"""How long running tasks may go on after SIGTERM. What is lost then costs its stewards a lease, no more."""
BEAT_S = 10.0
WAITING = ("claimed", "granted", "running")
"""States of an attempt of which the core has no result yet."""


@dataclass(frozen=True)
class Parts:
    """What the daemon is made of where another may be put in its place: a peer that breaks the rules, for the tests."""

    executors: Callable[[Home, bytes], dict[str, Executor]]
    node: Callable[..., Node] = Node


def run(config: Config, parts: Parts | None = None) -> int:
    """Run the daemon in the foreground until it is told to stop. Returns the exit status."""
    setup_logging(config.log_level, config.log_format)
    home = Home(config.home)
    problems: list[BaseException] = []
    try:
        with home.hold():
            trio.run(_main, config, home, parts or Parts(make_executors))
    except* LocalError as group:
        problems = _leaves(group)
    for problem in problems:
        sys.stderr.write(f"nexapod: {problem}\n")
    return 1 if problems else 0


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def _main(config: Config, home: Home, parts: Parts) -> None:
    seed = identity.load_or_create(home.identity)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(home.database))
        blobs = await trio.to_thread.run_sync(_open_blobs, config, home)
        executors = parts.executors(home, seed)
        for executor in executors.values():
            stack.push_async_callback(executor.aclose)
        container_images = DockerImages()
        stack.push_async_callback(container_images.aclose)
        shelf, images = await trio.to_thread.run_sync(_images, config, home, blobs, container_images)
        recall = Recall(stack.enter_context(open_reader(home.database)).records)
        node = await _restore(config, seed, store, recall, parts)
        engine = Engine(node, store, recall)
        await _serve(config, home, seed, store, blobs, executors, engine, shelf, images)
    log.info("stopped", peer=node.me)


def _open_blobs(config: Config, home: Home) -> BlobStore:
    storage = config.storage
    return BlobStore(home.blobs, Quota.for_disk(home.blobs, storage.blobs_max, storage.disk_free_min))


def make_executors(home: Home, seed: bytes) -> dict[str, Executor]:
    """The sandboxes of this machine, by name."""
    home_id = hashlib.sha256(b"nexapod/home\0" + seed).hexdigest()[:16]
    scratch = home.root / "scratch"
    return {
        "wasm": WasmExecutor(
            scratch=scratch / "wasm",
            cache=home.root / "modules",
            roots=Roots(reads=(home.blobs,), writes=(home.tasks,)),
        ),
        "docker": DockerExecutor(home=home_id, scratch=scratch / "docker", guarded=True),
    }


def _images(config: Config, home: Home, blobs: BlobStore, engine: DockerImages) -> tuple[Shelf, Images]:
    folder = home.root / "images"
    shelf = Shelf(folder, blobs, engine, this_machine())
    loaded = folder / "loaded"
    return shelf, Images(
        loaded,
        blobs,
        engine,
        shelf,
        bytes_max=config.storage.images_max or IMAGES_MAX_DEFAULT,
        registries=config.registries,
        tell_all=config.tell_images,
    )


async def _restore(config: Config, seed: bytes, store: Store, recall: Recall, parts: Parts) -> Node:
    records = await store.load(but=ARCHIVED)
    set_aside = await store.set_aside()
    if set_aside:
        log.warning(
            "records_set_aside",
            records=set_aside,
            reason="an earlier version of the protocol wrote them: its jobs are not known any more; blobs and keys are",
        )
    node = parts.node(
        identity.Signer(seed),
        identity.verify,
        config.network,
        config.grouping,
        secrets.token_bytes,
        policy=Policy(work=config.work),
        stewards=config.steward.enabled,
        records=records,
        archive=recall.records,
        now=monotonic_ms(),
    )
    log.info("node_restored", peer=node.me, records=len(records), jobs=len(node.report().jobs))
    return node


async def _serve(
    config: Config,
    home: Home,
    seed: bytes,
    store: Store,
    blobs: BlobStore,
    executors: Mapping[str, Executor],
    engine: Engine,
    shelf: Shelf,
    images: Images,
) -> None:
    node = engine.node
    stop = Stop()
    hub = Hub()

    def on_bad(peer: PeerId, error: PeerError) -> None:
        engine.post(events.Misbehaved(peer, error.rule, error.penalty))

    async def send_bulk(peer: PeerId, frame: bytes) -> None:
        try:
            await mesh.send(peer, "bulk", frame, node.addrs(peer))
        except PeerUnreachable as error:
            raise trio.BrokenResourceError(str(error)) from error

    caps = Caps(**asdict(config.bandwidth))
    exchange = Exchange(blobs, send_bulk, on_bad=on_bad, rates=Rates(caps), has_room=Load().has_room)
    bridge = MeshBridge(engine, exchange)
    met = [addr for peer in await store.peers() for addr in peer.addrs]
    mesh = Mesh(
        seed=seed,
        network=config.network,
        listen=config.listen,
        known_addrs=[*config.bootstrap, *met],
        on_event=bridge.on_event,
        on_bulk=bridge.on_bulk,
        said_addrs=node.addrs,
    )
    # Of the others the core has the result.
    to_go_on = frozenset(attempt.task for attempt in node.report().attempts if attempt.state in WAITING)
    # One that does not work goes on with nothing.
    wanted = frozenset(label_of(task) for task in to_go_on) if config.work else frozenset()
    survivors = await _survivors(executors, wanted)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_signals, stop)
        nursery.start_soon(exchange.run)
        await nursery.start(mesh.run)
        dht = Dht(mesh.host, config.network, server=True)
        await nursery.start(dht.run)
        providers = Providers(
            exchange,
            connected=mesh.connected,
            lookup=dht.providers,
            addrs=node.addrs,
            me=mesh.peer_id,
        )
        staging = Staging(home.tasks, blobs, providers, images)
        await trio.to_thread.run_sync(staging.clean, to_go_on)
        gpus = GpuDesk(config.gpu)
        tasks = TaskRunner(staging, blobs, executors, gpus, engine.post, engine.act, nursery, survivors=survivors)
        performer = Performer(
            mesh=mesh,
            dht=dht,
            blobs=blobs,
            providers=providers,
            tasks=tasks,
            hub=hub,
            post=engine.post,
            held=lambda: node.pinned() | shelf.held,
        )
        machine = Machine(
            network=config.network,
            home=home.root,
            executors=executors,
            addrs=lambda: mesh.addrs,
            slots=config.slots,
            work=config.work,
            post=engine.post,
            images=images.told,
            registries=images.registries,
            gpus=gpus,
        )
        offering = Offering(
            config.steward,
            network=config.network,
            quota=blobs.room.quota.blobs_max,
            addrs=lambda: mesh.addrs,
            post=engine.post,
        )
        pausing = Pausing(engine, tasks, home.paused)
        await pausing.restore()
        await machine.probe()
        offering.look()
        nursery.start_soon(performer.run)
        nursery.start_soon(engine.run, performer)
        nursery.start_soon(machine.run)
        nursery.start_soon(offering.run)
        nursery.start_soon(pausing.run)
        nursery.start_soon(gpus.run)
        nursery.start_soon(tasks.run)
        nursery.start_soon(Discovery(mesh, dht, store, node.addrs, node.peers_to_dial).run)
        service = Service(
            network=config.network,
            engine=engine,
            blobs=blobs,
            tasks=tasks,
            pausing=pausing,
            hub=hub,
            machine=machine,
            offering=offering,
            shelf=shelf,
            home=home.root,
            listen=lambda: mesh.addrs,
            dialable=lambda: mesh.was_dialled or None,
            submit=config.submit,
            bootstrap=config.bootstrap,
            foreign=bridge.foreign,
            counters=lambda: {
                **mesh.counts(),
                **images.counts,
                **_prefixed("engine_dropped", engine),
                **_prefixed("dropped", performer),
                "blob_questions_dropped": exchange.questions_dropped,
            },
            fetch=providers.fetch_whole,
            stop=stop,
        )
        api_stop = trio.Event()
        token = load_or_create_token(home.token) if config.api_tcp else ""
        start_api = partial(
            serve, create_app(service), home.api_socket, tcp=_address(config.api_tcp), token=token, shutdown=api_stop
        )
        places = await nursery.start(start_api)
        log.info("started", peer=node.me, listen=list(mesh.addrs), network=config.network, api=places, pid=os.getpid())
        sd_notify("READY=1")
        nursery.start_soon(_beat)
        await stop.requested.wait()
        sd_notify("STOPPING=1")
        await _drain(engine, stop)
        api_stop.set()
        nursery.cancel_scope.cancel()


async def _survivors(executors: Mapping[str, Executor], wanted: frozenset[str]) -> frozenset[str]:
    """What a former daemon began, still goes on, and is still wanted; all else that it left is ended."""
    found: set[str] = set()
    for executor in executors.values():
        surviving = await executor.survivors() & wanted
        orphans = await executor.reap_orphans(surviving)
        if surviving or orphans:
            log.info("runs_found", executor=executor.name, surviving=len(surviving), reaped=orphans)
        found |= surviving
    return frozenset(found)


def _address(text: str | None) -> tuple[str, int] | None:
    """host:port, checked when the configuration was read."""
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _prefixed(prefix: str, counted: Engine | Performer) -> dict[str, int]:
    return {f"{prefix}_{name}": count for name, count in counted.dropped.items()}


async def _watch_signals(stop: Stop) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal", number=int(number), at_once=stop.requested.is_set())
            stop.ask(drain=True)


async def _beat() -> None:
    """Tell a watching service manager that the loop is alive."""
    while True:
        sd_notify("WATCHDOG=1")
        await trio.sleep(BEAT_S)


async def _drain(engine: Engine, stop: Stop) -> None:
    """Until every task of this worker has been handed over, or the bound, or the wish to end at once."""
    with trio.move_on_after(DRAIN_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, stop.at_once, nursery.cancel_scope)
            await engine.act(events.Drain())
            log.info("draining", attempts=len(engine.node.report().attempts), seconds=DRAIN_S)
            # The core has no event to wait for: that nothing is left is a state.
            while engine.node.report().attempts:  # noqa: ASYNC110
                await trio.sleep(0.1)
            # What an attempt's end led to may still have to be saved and said.
            await engine.act(events.Tick())
            nursery.cancel_scope.cancel()


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
