"""The daemon as the API sees it: nexapod.api.backend.Backend over the running node. Translates; decides nothing."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from nexapod.api.backend import Busy, Forbidden, Invalid, JobEvent, Json, Metric, NotFound, NotReady, Over
from nexapod.blobs.store import BlobStore
from nexapod.daemon import explain, views
from nexapod.daemon.blob_service import BlobService, blob_errors
from nexapod.daemon.engine import Engine
from nexapod.daemon.hub import Hub, TooManyWatchers
from nexapod.daemon.image_shelf import Added, Shelf, UnknownImage
from nexapod.daemon.machine import Machine
from nexapod.daemon.pausing import Pausing
from nexapod.daemon.tasks import TaskRunner
from nexapod.executor.images.errors import BadImage, ImageError
from nexapod.executor.images.inventory import ImageNotHere
from nexapod.executor.images.oci import Platform
from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import AskLog, CancelJob, Submit, Trace
from nexapod.protocol.node import JobEntry
from nexapod.protocol.submitter import Submission
from nexapod.protocol.types import BlobRef, JobId, JobSpec, PeerId
from nexapod.version import __version__

LOG_ANSWER_S = 1.0
LOG_LOOK_S = 0.02
LEASED = ("granted", "running", "committed")
"""The states of an attempt in which this worker holds a lease."""


@dataclass(slots=True)
class Stop:
    """The wish to end: `drain` first, or at once."""

    requested: trio.Event = field(default_factory=trio.Event)
    at_once: trio.Event = field(default_factory=trio.Event)

    def ask(self, *, drain: bool) -> None:
        """Asked a second time, it is at once."""
        if not drain or self.requested.is_set():
            self.at_once.set()
        self.requested.set()


class Service(BlobService):
    """Implements api.backend.Backend."""

    def __init__(
        self,
        *,
        engine: Engine,
        blobs: BlobStore,
        tasks: TaskRunner,
        pausing: Pausing,
        hub: Hub,
        machine: Machine,
        shelf: Shelf,
        home: Path,
        listen: Callable[[], Sequence[str]],
        bootstrap: Sequence[str],
        foreign: Mapping[PeerId, str],
        counters: Callable[[], dict[str, int]],
        stop: Stop,
        fetch: Callable[[BlobRef], Awaitable[None]] | None = None,
    ) -> None:
        """`fetch(ref)`: brings a blob here from whoever has it; without it, blobs are not looked for."""
        super().__init__(blobs, fetch)
        self._engine = engine
        self._node = engine.node
        self._tasks = tasks
        self._pausing = pausing
        self._hub = hub
        self._machine = machine
        self._shelf = shelf
        self._home = home
        self._listen = listen
        self._bootstrap = bootstrap
        self._foreign = foreign
        self._counters = counters
        self._stop = stop
        self._began = time.monotonic()

    # --- the daemon ------------------------------------------------------------------------------------------------
    @property
    def network(self) -> str:
        return self._node.network

    async def status(self) -> Json:
        profile = self._machine.profile
        directory = self._node.ctx.directory
        return {
            "peer_id": self._node.me,
            "version": __version__,
            "network": self._node.network,
            "listen": list(self._listen()),
            "connected_peers": len(directory.links),
            "known_peers": len(set(directory.known) - {self._node.me}),
            "active_jobs": sum(1 for entry in self._node.jobs.values() if entry.state == "active"),
            "running_tasks": len(self._tasks.running),
            "leases": sum(1 for a in self._node.worker.attempts.values() if a.state in LEASED),
            "slots": profile.slots if profile else 0,
            "state": self._state(),
            "uptime_s": int(time.monotonic() - self._began),
            "pause_left_s": self._pausing.left_s,
            "home": str(self._home),
            "pid": os.getpid(),
            "stalled": self._engine.stalled,
        }

    def _state(self) -> str:
        if self._node.worker.draining:
            return "draining"
        return "paused" if self._pausing.paused else "running"

    async def peers(self) -> list[Json]:
        return views.peers_view(self._node)

    async def profile(self) -> Json:
        if self._machine.profile is None:
            raise NotReady("This machine has not been probed yet.", "Ask again in a few seconds.")
        missing = [
            {"name": name, "reason": found.reason} for name, found in self._machine.found.items() if not found.ok
        ]
        await self._machine.gpus.look()
        return views.profile_view(self._machine.profile) | {
            "unavailable": missing,
            "local_gpus": views.gpus_view(self._machine.gpus.states()),
            "gpu_trouble": self._machine.gpus.trouble,
        }

    async def why(self) -> Json:
        view = explain.why_node(self._node, self._engine.stalled)
        view["sentences"] += explain.why_alone(self._node, self._bootstrap, self._foreign)
        for name, found in self._machine.found.items():
            if not found.ok:
                view["sentences"].append(f"The {name} executor is not available: {found.reason}")
        for state in self._machine.gpus.states():
            if state.withheld:
                view["sentences"].append(f"GPU {state.reading.index} is given to no task: {state.withheld}.")
        return view

    async def stop(self, *, drain: bool) -> None:
        self._stop.ask(drain=drain)

    # --- the tasks here --------------------------------------------------------------------------------------------
    async def tasks(self) -> list[Json]:
        now = trio.current_time()
        running = sorted(self._tasks.running.values(), key=lambda task: task.began)
        return [views.local_task_view(self._node, task, now) for task in running]

    async def pause(self, for_s: float | None) -> None:
        await self._pausing.pause(for_s)

    async def resume(self) -> None:
        await self._pausing.resume()

    # --- images ----------------------------------------------------------------------------------------------------
    async def images(self) -> list[Json]:
        return [views.image_view(image) for image in self._shelf.images()]

    async def image(self, name: str) -> Json:
        with image_errors():
            return views.image_view(self._shelf.find(name))

    async def add_image(self, name: str, platform: str) -> Json:
        with image_errors():
            return _added(await self._shelf.add_from_engine(name, _platform(platform)))

    async def add_image_archive(self, stream: AsyncIterator[bytes], size: int, platform: str) -> Json:
        with image_errors():
            return _added(await self._shelf.add_archive(stream, size, _platform(platform)))

    async def remove_image(self, name: str) -> Json:
        with image_errors():
            return views.image_view(await self._shelf.remove(name))

    # --- jobs ------------------------------------------------------------------------------------------------------
    async def submit(self, spec: JobSpec) -> JobId:
        if self._stop.requested.is_set():
            raise Busy("This daemon is stopping.", "Start it again, or submit at another peer.")
        try:
            effects = await self._engine.act(Submit(spec))
        except LocalError as error:
            raise Invalid(str(error)) from None
        for effect in effects:
            if isinstance(effect, Trace) and effect.name == "job_known":
                job = effect.facts["job"]
                assert isinstance(job, bytes)
                return JobId(job)
        raise Busy("This daemon knows too many jobs already.", "Wait until some of them are over.")

    def job_ids(self) -> Collection[JobId]:
        return self._node.jobs.keys()

    async def jobs(self) -> list[Json]:
        rows = [views.job_row(self._node, entry) for entry in self._node.jobs.values()]
        return sorted(rows, key=lambda row: (-row["created"], row["job_id"]))

    async def job(self, job: JobId, tasks: range) -> Json:
        return views.job_view(self._node, self._entry(job), tasks)

    async def spec(self, job: JobId) -> JobSpec:
        return self._entry(job).spec

    async def results(self, job: JobId, tasks: range) -> list[Json]:
        return views.results_view(self._submission(job), tasks)

    async def certificate(self, job: JobId) -> bytes:
        submission = self._submission(job)
        data = submission.certificate()
        if data is None:
            raise NotReady(
                f"The job is not complete: {len(submission.decided)} of {submission.spec.tasks} tasks are decided.",
                "Wait for it: nexapod watch ID.",
            )
        return data

    async def cancel(self, job: JobId) -> None:
        entry = self._entry(job)
        if job not in self._node.submissions:
            raise Forbidden("Only the peer that submitted a job can cancel it.", "Run this at that peer.")
        if entry.state == "settled":
            raise Over(
                "The job is complete: there is nothing to cancel.", "Its results stay: nexapod results ID -o DIR."
            )
        if entry.state == "active":
            await self._engine.act(CancelJob(job, "cancelled by its submitter"))

    async def task_log(self, job: JobId, task: int) -> list[Json]:
        submission = self._submission(job)
        if not 0 <= task < submission.spec.tasks:
            raise NotFound(f"The job has no task {task}.", f"Its tasks are 0 to {submission.spec.tasks - 1}.")
        await self._ask_log(submission, task)
        return views.log_view(submission, task)

    async def _ask_log(self, submission: Submission, task: int) -> None:
        """Have the workers of a running task say what it has printed; those that do not answer in time are left out."""
        active = views.active_tasks(submission).get(task)
        waiting = {(task, worker): submission.logs.get((task, worker)) for worker in active.workers} if active else {}
        if not waiting:
            return
        await self._engine.act(AskLog(submission.job, task))
        with trio.move_on_after(LOG_ANSWER_S):
            # An answer is a change of the core's state: it is looked for.
            while any(submission.logs.get(key) is old for key, old in waiting.items()):  # noqa: ASYNC110
                await trio.sleep(LOG_LOOK_S)

    async def why_job(self, job: JobId) -> Json:
        self._entry(job)
        return explain.why_job(self._node, job, self._bootstrap, self._foreign)

    def _entry(self, job: JobId) -> JobEntry:
        entry = self._node.jobs.get(job)
        if entry is None:
            raise NotFound("This daemon knows of no such job.", "nexapod jobs lists those that it knows of.")
        return entry

    def _submission(self, job: JobId) -> Submission:
        self._entry(job)
        submission = self._node.submissions.get(job)
        if submission is None:
            raise NotFound(
                "This daemon did not submit the job, so it does not collect its results.",
                "Ask the peer that submitted it.",
            )
        return submission

    # --- events ----------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def events(self, job: JobId) -> AsyncIterator[AsyncIterator[JobEvent]]:
        self._entry(job)
        try:
            async with self._hub.watch() as traces:
                yield self._of_job(traces, job)
        except TooManyWatchers:
            raise Busy("Too many watch this daemon already.", "End one of them, then try again.") from None

    async def _of_job(self, traces: AsyncIterator[tuple[str, Json]], job: JobId) -> AsyncIterator[JobEvent]:
        shown: dict[int, Json] = {}
        async for name, facts in traces:
            if name == "lagged":
                yield name, facts
            elif facts.get("job") == job.hex():
                for event in self._told(name, facts, job, shown):
                    yield event

    def _told(self, name: str, facts: Json, job: JobId, shown: dict[int, Json]) -> list[JobEvent]:
        """A trace as the stream has it. `shown`: what was last said of each task, so that only changes are told."""
        match name:
            case "placed":
                return [("placed", {"peers": facts["peers"]})]
            case "task_settled":
                word = "settled" if facts["outcome"] == "accepted" else "failed"
                return [(word, {"index": facts["task"], "reason": self._reason(job, facts["task"])})]
            case "complete":
                return [("complete", {"settled": facts["settled"], "failed": facts["failed"], "state": "complete"})]
            case "job_over" if facts["state"] == "cancelled":
                return [("complete", {"state": "cancelled"})]
            case "view":
                return self._changes(job, shown)
        return []

    def _reason(self, job: JobId, task: int) -> str:
        submission = self._node.submissions.get(job)
        verdict = submission.decided.get(task) if submission else None
        return verdict.reason if verdict else ""

    def _changes(self, job: JobId, shown: dict[int, Json]) -> list[JobEvent]:
        submission = self._node.submissions.get(job)
        if submission is None:
            return []
        events: list[JobEvent] = []
        for task in views.active_tasks(submission).values():
            facts = {
                "index": task.task,
                "state": "committed" if task.committed else "leased",
                "progress": task.progress / 1000,
                "workers": list(task.workers),
            }
            if shown.get(task.task) != facts:
                shown[task.task] = facts
                events.append(("task_changed", facts))
        return events

    # --- metrics ---------------------------------------------------------------------------------------------------
    async def metrics(self) -> Sequence[Metric]:
        status = await self.status()
        stat = await self._blobs.stat()

        def gauge(name: str, help_text: str, value: float) -> Metric:
            return Metric(name, "gauge", help_text, [({}, value)])

        return [
            Metric("info", "gauge", "The release.", [({"version": __version__, "network": self.network}, 1)]),
            gauge("connected_peers", "Peers with a link.", status["connected_peers"]),
            gauge("known_peers", "Peers whose profile is known.", status["known_peers"]),
            gauge("active_jobs", "Jobs known to be unfinished.", status["active_jobs"]),
            gauge("running_tasks", "Tasks running on this machine.", status["running_tasks"]),
            gauge("slots", "Tasks that may run at once.", status["slots"]),
            gauge("steward_shards", "Shards that this peer is a steward of.", len(self._node.stewards)),
            gauge("store_stalled", "1 while the store takes no writes.", int(bool(self._engine.stalled))),
            gauge("blobs", "Blobs held.", stat.blobs),
            gauge("blob_bytes", "Bytes of blobs held.", stat.bytes),
            gauge("disk_free_bytes", "Free disk where the home lies.", stat.disk_free),
            Metric(
                "events_total",
                "counter",
                "What the protocol core reported, by kind.",
                [({"event": name}, count) for name, count in sorted(self._hub.counts.items())],
            ),
            Metric(
                "adapter_events_total",
                "counter",
                "What links, gossip and queues moved, refused, dropped or contained, by kind.",
                [({"event": name}, count) for name, count in sorted(self._counters().items())],
            ),
        ]


def _platform(text: str) -> Platform | None:
    return Platform.parse(text) if text else None


def _added(added: Added) -> Json:
    return views.image_view(added.image) | {"new_blobs": added.new_blobs, "new_bytes": added.new_bytes}


@contextmanager
def image_errors() -> Iterator[None]:
    """What went wrong with an image, as the API says it."""
    try:
        with blob_errors():
            yield
    except UnknownImage as error:
        raise NotFound(
            str(error), "Add it: nexapod image add NAME. `nexapod image list` shows what was added."
        ) from None
    except ImageNotHere as error:
        raise NotFound(str(error), "`docker image ls` shows what the engine holds; or give an archive of it.") from None
    except BadImage as error:
        raise Invalid(str(error)) from None
    except ImageError as error:
        remedy = "Correct that, then try again. An archive (docker save NAME -o FILE.tar) needs no engine."
        raise Busy(str(error), remedy) from None
