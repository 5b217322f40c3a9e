"""The daemon: one nursery tree, built here in one screen, and torn down in the reverse order.

    home lock -> store -> core (restored) -> executors, mesh, dht, blobs -> engine -> API

SIGTERM and SIGINT drain: no new task is taken, running ones end and their results are handed over, within a bound. A
second signal ends at once. kill -9 at any moment loses nothing that was acknowledged.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import structlog
import trio

from nexapod.blobs.exchange import Exchange
from nexapod.blobs.store import BlobStore
from nexapod.config import Config
from nexapod.daemon.discovery import Discovery
from nexapod.daemon.engine import Engine, monotonic_ms
from nexapod.daemon.hub import Hub
from nexapod.daemon.machine import Machine
from nexapod.daemon.perform import Performer
from nexapod.daemon.service import Service
from nexapod.daemon.tasks import TaskRunner
from nexapod.dht.dht import Dht
from nexapod.executor.contract import Executor
from nexapod.executor.docker import DockerExecutor
from nexapod.executor.wasm import WasmExecutor
from nexapod.log import sd_notify, setup_logging
from nexapod.mesh import identity
from nexapod.mesh.mesh import Frame, Gossip, Mesh, MeshEvent, PeerDown, PeerUp, Unreachable
from nexapod.protocol import events
from nexapod.protocol.errors import LocalError, PeerError
from nexapod.protocol.matching import Policy
from nexapod.protocol.node import Node
from nexapod.protocol.types import PeerId
from nexapod.store.home import Home
from nexapod.store.store import Store

log = structlog.get_logger()

DRAIN_S = 30.0
"""How long running tasks may go on after SIGTERM. Their leases would outlive it; another peer takes over what is lost."""
FETCH_HANDLERS = 64


def run(config: Config) -> int:
    """Run the daemon in the foreground until it is told to stop. Returns the exit status."""
    setup_logging(config.log_level, config.log_format)
    home = Home(config.home)
    try:
        with home.hold():
            trio.run(_main, config, home, strict_exception_groups=True)
    except* LocalError as group:
        for error in _leaves(group):
            sys.stderr.write(f"nexapod: {error}\n")
        return 1
    return 0


def _leaves(group: BaseExceptionGroup) -> list[BaseException]:  # type: ignore[type-arg]
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def _main(config: Config, home: Home) -> None:
    seed = identity.load_or_create(home.identity)
    signer = identity.Signer(seed)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(home.database))
        blobs = await trio.to_thread.run_sync(BlobStore, home.blobs)
        executors = await _executors(stack, config, home, signer.peer)
        known = [addr for peer in await store.peers() for addr in peer.addrs]
        records = await store.load()
        node = Node(
            signer,
            identity.verify,
            config.network,
            secrets.token_bytes,
            policy=Policy(work=config.work),
            records=records,
            now=monotonic_ms(),
        )
        log.info("node_restored", peer=node.me, records=len(records), jobs=len(node.jobs))
        stop = Stop()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_signals, stop)
            engine: Engine
            exchange: Exchange

            def on_event(event: MeshEvent) -> None:
                _pass_on(event, engine, exchange)

            async def on_bulk(peer: PeerId, frame: bytes) -> None:
                await exchange.on_frame(peer, frame)

            mesh = Mesh(
                seed=seed,
                network=config.network,
                listen=config.listen,
                known_addrs=[*config.bootstrap, *known],
                on_event=on_event,
                on_bulk=on_bulk,
                validate=node.admit,
            )

            async def send_bulk(peer: PeerId, frame: bytes) -> None:
                await mesh.send(peer, "bulk", frame)

            def on_bad(peer: PeerId, error: PeerError) -> None:
                engine.post(events.Misbehaved(peer, error.rule, error.penalty))

            exchange = Exchange(blobs, send_bulk, on_bad=on_bad)
            tasks = TaskRunner(home.tasks, blobs, exchange, executors, lambda e: engine.post(e), nursery)
            tasks.clean(frozenset(node.worker.attempts))
            hub = Hub()
            performer_box: list[Performer] = []
            engine = Engine(node, store, lambda effect: performer_box[0](effect))
            await nursery.start(mesh.run)
            dht = Dht(mesh.host, config.network, server=True)
            await nursery.start(dht.run)
            performer = Performer(
                mesh=mesh, dht=dht, blobs=blobs, exchange=exchange, tasks=tasks, hub=hub, post=engine.post, nursery=nursery
            )
            performer_box.append(performer)
            machine = Machine(
                network=config.network,
                home=home.root,
                executors=executors,
                addrs=lambda: mesh.addrs,
                slots=config.slots,
                work=config.work,
                serves=True,
                post=engine.post,
            )
            nursery.start_soon(exchange.run)
            nursery.start_soon(performer.run)
            await machine.probe()
            nursery.start_soon(engine.run)
            nursery.start_soon(machine.run)
            nursery.start_soon(Discovery(mesh, dht, store).run)
            service = Service(
                config=config,
                home=home,
                engine=engine,
                mesh=mesh,
                blobs=blobs,
                tasks=tasks,
                hub=hub,
                machine=machine,
                performer=performer,
                stop=stop,
            )
            await nursery.start(partial(_serve_api, service, config, home))
            log.info("started", peer=node.me, listen=list(mesh.addrs), network=config.network, pid=os.getpid())
            sd_notify("READY=1")
            nursery.start_soon(_beat)
            await stop.requested.wait()
            await _drain(engine, tasks, stop)
            nursery.cancel_scope.cancel()
    log.info("stopped", peer=node.me)
