"""The daemon as the API sees it: nexapod.api.backend.Backend over the running node. Translates; decides nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import trio

from nexapod.api.backend import Json, Metric, NotReady
from nexapod.blobs.store import BlobStore
from nexapod.config.stewarding import SubmitSettings
from nexapod.daemon import machine_views, peer_views, why
from nexapod.daemon.blob_service import BlobService
from nexapod.daemon.engine import Engine
from nexapod.daemon.hub import Hub
from nexapod.daemon.image_service import ImageService
from nexapod.daemon.image_shelf import Shelf
from nexapod.daemon.job_service import JobService
from nexapod.daemon.machine import Machine
from nexapod.daemon.node_metrics import node_metrics
from nexapod.daemon.offering import Offering
from nexapod.daemon.pausing import Pausing
from nexapod.daemon.stopping import Stop
from nexapod.daemon.tasks import TaskRunner
from nexapod.protocol.primitives import BlobRef, PeerId
from nexapod.version import __version__

WHY_JOBS_MAX = 32


class Service(JobService, ImageService, BlobService):
    """Implements api.backend.Backend."""

    def __init__(
        self,
        *,
        network: str,
        engine: Engine,
        blobs: BlobStore,
        tasks: TaskRunner,
        pausing: Pausing,
        hub: Hub,
        machine: Machine,
        offering: Offering,
        shelf: Shelf,
        home: Path,
        listen: Callable[[], Sequence[str]],
        dialable: Callable[[], bool | None],
        submit: SubmitSettings,
        bootstrap: Sequence[str],
        foreign: Mapping[PeerId, str],
        counters: Callable[[], dict[str, int]],
        stop: Stop,
        fetch: Callable[[BlobRef], Awaitable[None]] | None = None,
    ) -> None:
        """`fetch(ref)`: brings a blob here from whoever has it; without it, blobs are not looked for. `dialable()`:
        whether others have got through to this peer, None when nobody knows."""
        JobService.__init__(
            self,
            engine=engine,
            blobs=blobs,
            hub=hub,
            stop=stop,
            submit=submit,
            bootstrap=bootstrap,
            foreign=foreign,
        )
        ImageService.__init__(self, shelf)
        BlobService.__init__(self, blobs, fetch)
        self._network = network
        self._tasks = tasks
        self._pausing = pausing
        self._machine = machine
        self._offering = offering
        self._home = home
        self._listen = listen
        self._dialable = dialable
        self._counters = counters
        self._began = time.monotonic()

    # --- the daemon ------------------------------------------------------------------------------------------------
    @property
    def network(self) -> str:
        return self._network

    async def status(self) -> Json:
        facts = peer_views.node_facts(self._node.report())
        if self._pausing.paused and facts["state"] == "running":
            facts["state"] = "paused"  # the core hears of it in its turn
        return facts | {
            "version": __version__,
            "listen": list(self._listen()),
            "dialable": self._dialable(),
            "running_tasks": len(self._tasks.running),
            "uptime_s": int(time.monotonic() - self._began),
            "pause_left_s": self._pausing.left_s,
            "home": str(self._home),
            "pid": os.getpid(),
            "stalled": self._engine.stalled,
        }

    async def peers(self) -> list[Json]:
        return peer_views.peers_view(self._node.peer_reports())

    async def profile(self) -> Json:
        if self._machine.profile is None:
            raise NotReady("This machine has not been probed yet.", "Ask again in a few seconds.")
        missing = [
            {"name": name, "reason": found.reason} for name, found in self._machine.found.items() if not found.ok
        ]
        await self._machine.gpus.look()
        return peer_views.profile_view(self._machine.profile) | {
            "unavailable": missing,
            "local_gpus": machine_views.gpus_view(self._machine.gpus.states()),
            "gpu_trouble": self._machine.gpus.trouble,
            "offer": peer_views.offer_view(self._offering.offer),
            "no_offer": self._offering.why_not,
        }

    async def why(self) -> Json:
        report = self._node.report()
        jobs = [told for job in report.jobs[:WHY_JOBS_MAX] if (told := self._node.job_report(job)) is not None]
        view = why.why_node(report, jobs, self._engine.stalled)
        view["sentences"] += why.why_alone(report, self._bootstrap, self._foreign)
        for name, found in self._machine.found.items():
            if not found.ok:
                view["sentences"].append(f"The {name} executor is not available: {found.reason}")
        for state in self._machine.gpus.states():
            if state.withheld:
                view["sentences"].append(f"GPU {state.reading.index} is given to no task: {state.withheld}.")
        if self._offering.why_not:
            view["sentences"].append(f"This peer offers to be no job's steward: {self._offering.why_not}.")
        return view

    async def stop(self, *, drain: bool) -> None:
        self._stop.ask(drain=drain)

    # --- the tasks here --------------------------------------------------------------------------------------------
    async def tasks(self) -> list[Json]:
        now = trio.current_time()
        rows = []
        for task in sorted(self._tasks.running.values(), key=lambda task: task.began):
            report = self._node.job_report(task.effect.task.job)
            rows.append(machine_views.local_task_view(task, "" if report is None else report.submitter, now))
        return rows

    async def pause(self, for_s: float | None) -> None:
        await self._pausing.pause(for_s)

    async def resume(self) -> None:
        await self._pausing.resume()

    # --- metrics ---------------------------------------------------------------------------------------------------
    async def metrics(self) -> Sequence[Metric]:
        stat = await self._blobs.stat()

        def gauge(name: str, help_text: str, value: float) -> Metric:
            return Metric(name, "gauge", help_text, [({}, value)])

        def counter(name: str, help_text: str, counts: Mapping[str, int]) -> Metric:
            return Metric(
                name, "counter", help_text, [({"event": name}, count) for name, count in sorted(counts.items())]
            )

        return [
            Metric("info", "gauge", "The release.", [({"version": __version__, "network": self.network}, 1)]),
            *node_metrics(self._node.report()),
            gauge("running_tasks", "Tasks running on this machine.", len(self._tasks.running)),
            gauge("store_stalled", "1 while the store takes no writes.", int(bool(self._engine.stalled))),
            gauge("blobs", "Blobs held.", stat.blobs),
            gauge("blob_bytes", "Bytes of blobs held.", stat.bytes),
            gauge("disk_free_bytes", "Free disk where the home lies.", stat.disk_free),
            counter("notices_total", "What the protocol core told, by kind.", self._hub.notices),
            counter("events_total", "What the protocol core traced for diagnosis, by kind.", self._hub.traces),
            counter(
                "adapter_events_total",
                "What links, blobs and queues moved, refused, dropped or contained, by kind.",
                self._counters(),
            ),
        ]
