"""A daemon that is not one: the backend of the API in memory, whose jobs a test (or the script below) moves on.

Run as a program it serves a lively fake, to look at the CLI:  python tests/contract/api_fake.py HOME
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import trio.lowlevel

from nexapod.api.app import create_app
from nexapod.api.backend import Forbidden, Invalid, Json, Metric, NotFound, NotReady, Over
from nexapod.api.serve import serve
from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import BlobRef, JobId, PeerId, blob_of, peer_id_of_key
from nexapod.protocol.types import JobSpec

ME, ANN, BOB = (peer_id_of_key(bytes([n]) * 32) for n in (1, 2, 3))
RESTS_ON = "Only 2 other stewards are known: the result rests on these."
NASTY = "\x1b[2J[red]not markup[/red]\x1b]0;owned\x07 \u202eevil\r\nforged: line"
"""What a hostile peer would put into a name or a log."""


@dataclass
class FakeTask:
    state: str = "open"
    progress: float = 0.0
    workers: list[PeerId] = field(default_factory=list)
    files: dict[str, BlobRef] = field(default_factory=dict)
    reason: str = ""
    log: str = ""
    here: bool = True
    """Its files have come to the daemon."""


@dataclass
class FakeJob:
    spec: JobSpec
    tasks: list[FakeTask]
    placed_on: list[PeerId] = field(default_factory=list)
    cancelled: bool = False
    certificate: bytes = b"certificate"
    broken: bool = False
    """Its certificate cannot be read to its end."""
    failing: Json | None = None
    refused: list[Json] = field(default_factory=list)
    unratified: list[int] = field(default_factory=list)
    friends: list[PeerId] = field(default_factory=list)
    accept_unknown: bool = False

    @property
    def state(self) -> str:
        if self.cancelled:
            return "cancelled"
        if all(t.state in ("accepted", "failed") for t in self.tasks):
            return "settled"
        return "running" if self.placed_on else "placing"


class FakeBackend:
    network = "test"

    def __init__(self) -> None:
        self.blobs: dict[BlobRef, bytes] = {}
        self.pins: set[BlobRef] = set()
        self.elsewhere: dict[BlobRef, bytes] = {}
        """What other peers hold."""
        self.known: dict[JobId, FakeJob] = {}
        self.stopped: list[bool] = []
        self.paused_for: list[float | None] = []
        self.reads: list[tuple[int, int]] = []
        self.watchers: list[tuple[JobId, trio.MemorySendChannel[tuple[str, Json]]]] = []
        self.fail_with: Exception | None = None
        self.images_added: dict[str, Json] = {}
        self.engine_images: dict[str, list[bytes]] = {}
        """What the local engine holds, by name: configuration, then layers."""

    # --- what a test does ----------------------------------------------------------------------------------------
    def put(self, data: bytes) -> BlobRef:
        ref = blob_of(data)
        self.blobs[ref] = data
        return ref

    def tell(self, job: JobId, name: str, **facts: Any) -> None:
        for watched, channel in self.watchers:
            if watched == job:
                channel.send_nowait((name, facts))

    def place(self, job: JobId) -> None:
        self.known[job].placed_on = [ANN, BOB]
        self.tell(job, "placed", peers=[ANN, BOB])

    def work(self, job: JobId, index: int, progress: float) -> None:
        task = self.known[job].tasks[index]
        task.state, task.progress, task.workers = "running", progress, [ANN, BOB]
        self.tell(job, "task_changed", index=index, state="running", progress=progress, workers=[ANN, BOB])

    def accept(self, job: JobId, index: int, files: dict[str, bytes]) -> None:
        task = self.known[job].tasks[index]
        task.state, task.progress = "accepted", 1.0
        task.files = {path: self.put(data) for path, data in files.items()}
        self.tell(job, "accepted", index=index, reason="")
        self._end(job)

    def end_badly(self, job: JobId, index: int, exit_status: int, reason: str, log: str) -> None:
        """The first result of a task, which is not decided by it."""
        found = self.known[job]
        found.failing = {
            "index": index, "peer": ANN, "exit": exit_status, "reason": reason, "outcome": "failed", "log": log,
        }  # fmt: skip
        found.tasks[index].log = log
        self.tell(job, "failing", **found.failing)

    def refuse(self, job: JobId, reason: str) -> None:
        found = self.known[job]
        found.refused = [{"peer": peer, "reason": reason} for peer in (ANN, BOB)]
        found.cancelled = True
        self.tell(job, "refused", reason=reason)
        self._end(job)

    def fail(self, job: JobId, index: int, reason: str) -> None:
        task = self.known[job].tasks[index]
        task.state, task.reason = "failed", reason
        self.tell(job, "failed", index=index, reason=reason)
        self._end(job)

    def _end(self, job: JobId) -> None:
        if self.known[job].state in ("settled", "cancelled"):
            self.tell(job, "closed", state=self.known[job].state)

    # --- the Protocol --------------------------------------------------------------------------------------------
    async def status(self) -> Json:
        if self.fail_with is not None:
            raise self.fail_with
        active = sum(1 for j in self.known.values() if j.state in ("placing", "running"))
        return {
            "peer_id": ME, "version": "0.1.0", "network": self.network,
            "listen": [f"/ip4/127.0.0.1/tcp/4747/p2p/{ME}"],
            "connected_peers": 2, "known_peers": 2, "active_jobs": active, "running_tasks": 0, "leases": 0, "slots": 4,
            "steward_shards": 1, "dialable": True,
            "state": "paused" if self.paused_for else "running", "uptime_s": 3725, "home": "/home/me", "pid": 4711,
            "pause_left_s": self.paused_for[-1] if self.paused_for else None,
        }  # fmt: skip

    async def peers(self) -> list[Json]:
        return [
            {
                "peer_id": ANN, "connected": True, "dialled": True, "live": True, "address": "/ip4/192.0.2.7/tcp/4747",
                "group": "192.0.2.0/24", "steward": True, "seen_up_s": 12, "gone_s": None, "introducer": None,
            }
            | _profile("amd64", NASTY),
            {
                "peer_id": BOB, "connected": False, "dialled": False, "live": False, "address": "", "group": None,
                "steward": False, "seen_up_s": 0, "gone_s": 3600, "introducer": ANN,
            },
        ]  # fmt: skip

    async def profile(self) -> Json:
        gpus = [
            _local_gpu(0),
            _local_gpu(1, leased_by="abc-1", power_w=None, power_limit_w=None, utilisation_percent=None),
            _local_gpu(2, withheld=f"others use it {NASTY}", memory_used=None, temperature_c=None),
        ]
        offer = {
            "addrs": [f"/ip4/192.0.2.1/tcp/4747/p2p/{ME}"], "storage": 2 << 30, "shards": 1024,
            "until": 1_900_000_000_000, "reached_by": [ANN],
        }  # fmt: skip
        return _profile("amd64", "A processor") | {
            "local_gpus": gpus, "gpu_trouble": "GPU 3 does not answer", "offer": offer, "no_offer": "",
        }  # fmt: skip

    async def put_blob(self, stream: AsyncIterator[bytes], size: int) -> BlobRef:
        data = b"".join([piece async for piece in stream])
        assert len(data) == size
        return self.put(data)

    async def has_blob(self, ref: BlobRef) -> bool:
        return ref in self.blobs

    async def read_blob(self, ref: BlobRef, offset: int, length: int) -> bytes:
        if ref not in self.blobs:
            raise NotFound("the blob is not here")
        self.reads.append((offset, length))
        return self.blobs[ref][offset : offset + length]

    async def images(self) -> list[Json]:
        return list(reversed(self.images_added.values()))

    async def image(self, name: str) -> Json:
        for view in self.images_added.values():
            if name == view["image"] or name in view["names"]:
                return view
        raise NotFound(f"no image {name} has been added here", "Add it")

    async def add_image(self, name: str, platform: str) -> Json:
        if name not in self.engine_images:
            raise NotFound(f"the container engine holds no such image ({name})")
        return self._add_image(self.engine_images[name], [name])

    async def add_image_archive(self, stream: AsyncIterator[bytes], size: int, platform: str) -> Json:
        data = b"".join([piece async for piece in stream])
        assert len(data) == size
        if not data.startswith(b"image"):
            raise Invalid("the archive is not one", "save it anew")
        return self._add_image([data, b"layer"], [f"for {platform}", NASTY])

    async def remove_image(self, name: str) -> Json:
        view = await self.image(name)
        return self.images_added.pop(view["image"])

    def _add_image(self, parts: list[bytes], names: list[str]) -> Json:
        refs = [self.put(part) for part in parts]
        image = f"sha256:{refs[0].digest.hex()}"
        self.images_added[image] = {
            "image": image, "names": names, "platform": "linux/amd64", "arch": "x86_64", "added": 1,
            "size": sum(ref.size for ref in refs), "blobs": [str(ref) for ref in refs],
        }  # fmt: skip
        return self.images_added[image] | {"new_blobs": len(refs), "new_bytes": sum(ref.size for ref in refs)}

    async def list_blobs(self, first: int, count: int) -> list[Json]:
        return [self._stat(ref) for ref in reversed(self.blobs)][first : first + count]

    async def blob_stat(self, ref: BlobRef) -> Json:
        if ref not in self.blobs:
            raise NotFound("the blob is not here")
        return self._stat(ref)

    async def pin_blob(self, ref: BlobRef) -> Json:
        await self.blob_stat(ref)
        self.pins.add(ref)
        return self._stat(ref)

    async def unpin_blob(self, ref: BlobRef) -> Json:
        was = ref in self.pins
        self.pins.discard(ref)
        return {"ref": str(ref), "was_pinned": was}

    async def verify_blob(self, ref: BlobRef) -> Json:
        await self.blob_stat(ref)
        sound = blob_of(self.blobs[ref]) == ref
        if not sound:
            del self.blobs[ref]
        return {"ref": str(ref), "sound": sound, "damaged_chunks": int(not sound)}

    async def fetch_blob(self, ref: BlobRef, wait_s: float) -> Json:
        if ref not in self.blobs:
            if ref not in self.elsewhere:
                raise NotFound("nobody gave it")
            self.blobs[ref] = self.elsewhere[ref]
        return {"ref": str(ref), "here": True, "chunks": ref.chunks, "chunks_here": ref.chunks}

    def _stat(self, ref: BlobRef) -> Json:
        return {
            "ref": str(ref), "size": ref.size, "chunks": ref.chunks, "chunks_here": ref.chunks, "whole": True,
            "pinned": ref in self.pins, "held": False, "used": 1_700_000_000_000,
        }  # fmt: skip

    async def submit(self, spec: JobSpec, friends: Sequence[PeerId], accept_unknown: bool) -> Json:
        if ME in friends:
            raise LocalError(f"{ME} cannot be a steward of this job: there is no link to it.")
        job = JobId(hashlib.sha256(spec.nonce).digest())
        tasks = [FakeTask() for _ in range(spec.tasks)]
        self.known[job] = FakeJob(spec, tasks, friends=list(friends), accept_unknown=accept_unknown)
        return {"job_id": job.hex(), "panel": [ANN, BOB], "rests_on": RESTS_ON}

    def job_ids(self) -> Collection[JobId]:
        return self.known

    async def jobs(self) -> list[Json]:
        return [self._row(job) for job in reversed(self.known)]

    async def job(self, job: JobId, tasks: range) -> Json:
        found = self.known[job]
        return self._row(job) | {
            "description": found.spec.description,
            "tags": list(found.spec.tags),
            "panel": [ANN, BOB],
            "seats": [{"shard": 0, "epoch": 0, "holders": [BOB, ANN]}],
            "workable": bool(found.placed_on),
            "groups": 2,
            "works": True,
            "work": "it satisfies the job",
            "rests_on": RESTS_ON,
            "placed": bool(found.placed_on),
            "placed_on": found.placed_on,
            "may_leave": bool(found.placed_on),
            "holders": len(found.placed_on),
            "holders_needed": 2,
            "shards": {"total": 1, "placed": int(bool(found.placed_on)), "finished": 0},
            "refused": found.refused,
            "unanswered": [] if found.placed_on else [ANN],
            "unratified": found.unratified,
            "problems": [],
            "failing": found.failing,
            "task_list": [_task(i, found.tasks[i]) for i in tasks if i < len(found.tasks)],
        }

    async def spec(self, job: JobId) -> JobSpec:
        return self.known[job].spec

    @asynccontextmanager
    async def events(self, job: JobId) -> AsyncIterator[AsyncIterator[tuple[str, Json]]]:
        send, receive = trio.open_memory_channel[tuple[str, Json]](1000)
        entry = (job, send)
        self.watchers.append(entry)
        try:
            yield receive
        finally:
            self.watchers.remove(entry)

    async def results(self, job: JobId, tasks: range) -> list[Json]:
        return [
            {
                "index": i,
                "outcome": t.state,
                "reason": t.reason,
                "files": [{"path": p, "ref": str(r), "size": r.size, "here": t.here} for p, r in t.files.items()],
            }
            for i, t in enumerate(self.known[job].tasks)
            if i in tasks and t.state in ("accepted", "failed")
        ]

    async def certificate(self, job: JobId) -> AsyncIterator[bytes]:
        if self.known[job].state != "settled":
            raise NotReady("the job is not settled", "watch it: nexapod watch")
        return self._certificate(self.known[job])

    async def _certificate(self, job: FakeJob) -> AsyncIterator[bytes]:
        half = len(job.certificate) // 2
        yield job.certificate[:half]
        await trio.lowlevel.checkpoint()
        if job.broken:
            raise OSError("a record of it cannot be read")
        yield job.certificate[half:]

    async def cancel(self, job: JobId) -> None:
        if self.known[job].spec.name == "not mine":
            raise Forbidden("another peer submitted this job")
        if self.known[job].state == "settled":
            raise Over("the job is settled")
        self.known[job].cancelled = True
        self._end(job)

    async def ratify(self, job: JobId) -> None:
        if self.known[job].spec.name == "not mine":
            raise Forbidden("another peer submitted this job")
        self.known[job].unratified = []

    async def task_log(self, job: JobId, task: int) -> list[Json]:
        if task >= len(self.known[job].tasks):
            raise NotFound(f"the job has no task {task}")
        log = self.known[job].tasks[task].log
        return [{"peer": ANN, "outcome": "failed", "exit": 1, "reason": f"no such file {NASTY}", "log": log}]

    async def why_job(self, job: JobId) -> Json:
        return {"job_id": job.hex(), "sentences": ["Only 1 known peer can run it.", NASTY]}

    async def why(self) -> Json:
        return {"working": False, "sentences": ["No active job is known: there is nothing to do."]}

    async def stop(self, *, drain: bool) -> None:
        self.stopped.append(drain)

    async def tasks(self) -> list[Json]:
        return [
            {
                "job_id": "ab" * 32, "index": 3, "name": NASTY, "submitter": ANN, "executor": "wasm",
                "stage": "running",
                "frozen": self.paused_for != [], "progress": 0.5, "age_s": 61.0, "cpu_ms": 1500, "peak_memory": 5 << 20,
                "gpu_ms": 0, "gpus": [], "printed": 4096, "log": NASTY,
            }
        ]  # fmt: skip

    async def pause(self, for_s: float | None) -> None:
        self.paused_for.append(for_s)

    async def resume(self) -> None:
        self.paused_for.clear()

    async def metrics(self) -> Sequence[Metric]:
        return [
            Metric("peers", "gauge", "Connected peers.", [({}, 2)]),
            Metric("events_total", "counter", "Events by name.", [({"name": 'a"b\\\n'}, 3)]),
        ]

    def _row(self, job: JobId) -> Json:
        found = self.known[job]
        states = [t.state for t in found.tasks]
        return {
            "job_id": job.hex(), "name": found.spec.name, "submitter": ME, "mine": True, "state": found.state,
            "tasks": len(states), "accepted": states.count("accepted"), "failed": states.count("failed"),
            "running": states.count("running") + states.count("committed"), "created": found.spec.stamp,
        }  # fmt: skip


def _profile(arch: str, cpu: str) -> Json:
    return {
        "agent": "nexapod/0.1.0", "os": "linux", "arch": arch, "cpu_model": cpu, "cpus": 4, "memory": 8 << 30,
        "disk_free": 100 << 30, "gpus": [{"model": "A GPU", "memory": 24 << 30, "capability": "9.0", "driver": "570"}],
        "executors": [{"name": "wasm", "version": "wasmtime 36"}], "images": [], "addrs": [], "reachable": True,
        "slots": 4,
    }  # fmt: skip


def _local_gpu(index: int, **changes: object) -> Json:
    return {
        "index": index, "uuid": f"GPU-{index}", "model": "A GPU", "capability": "9.0", "driver": "570", "cuda": "12.8",
        "memory": 24 << 30, "memory_used": 1 << 30, "utilisation_percent": 12, "temperature_c": 45, "power_w": 120.4,
        "power_limit_w": 450.0, "mig": None, "compute_processes": 0, "leased_by": "", "withheld": "",
    } | changes  # fmt: skip


def _task(index: int, task: FakeTask) -> Json:
    decided = task.state in ("accepted", "failed")
    ok = task.state == "accepted"
    replica = {
        "peer": ANN, "group": ANN, "outcome": "ok" if ok else "failed", "exit": 0 if ok else 127,
        "reason": "" if ok else NASTY, "root": "ab" * 32, "wall_ms": 1200, "cpu_ms": 1100, "peak_memory": 34 << 20,
        "gpu_ms": 0, "hardware": "linux-x86_64", "resumed": None, "agrees": ok, "log": "" if ok else task.log,
        "files": [],
    }  # fmt: skip
    return {
        "index": index, "state": task.state, "progress": task.progress, "workers": task.workers,
        "reason": task.reason, "root": "ab" * 32 if ok else None, "replicas": [replica] if decided else [],
        "notes": [{"peer": BOB, "exit": 3, "reason": "it says so"}] if task.state == "failed" else [],
        "judges": [ANN, BOB] if decided else [],
    }  # fmt: skip


async def _live(backend: FakeBackend) -> None:
    """Every submitted job is placed after a second, and its tasks run one after the other."""
    begun: set[JobId] = set()
    async with trio.open_nursery() as nursery:
        while True:
            await trio.sleep(0.2)
            for job in set(backend.known) - begun:
                begun.add(job)
                nursery.start_soon(_run_job, backend, job)


async def _run_job(backend: FakeBackend, job: JobId) -> None:
    await trio.sleep(1)
    backend.place(job)
    for index in range(len(backend.known[job].tasks)):
        for step in range(1, 6):
            if backend.known[job].cancelled:
                return
            await trio.sleep(0.1)
            backend.work(job, index, step / 5)
        if index % 7 == 6:
            backend.known[job].tasks[index].log = NASTY
            backend.fail(job, index, f"no two results agree {NASTY}")
        else:
            backend.accept(job, index, {"result.txt": b"result %d\n" % index})


async def _main(home: Path) -> None:
    backend = FakeBackend()
    async with trio.open_nursery() as nursery:
        places = await nursery.start(serve, create_app(backend), home / "api.sock")
        print("listening on", *places)
        await _live(backend)


@contextmanager
def served_in_thread(backend: FakeBackend, socket_path: Path) -> Iterator[trio.lowlevel.TrioToken]:
    """The real API over `backend` in a thread of its own, for tests of blocking clients. Yields its trio token."""
    import queue
    import threading

    started: queue.Queue[Any] = queue.Queue()

    async def main() -> None:
        shutdown = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve_until, create_app(backend), socket_path, shutdown)
            started.put((trio.lowlevel.current_trio_token(), shutdown))

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            started.put(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    first = started.get(timeout=10)
    if isinstance(first, BaseException):
        thread.join(10)
        raise first
    token, shutdown = first
    try:
        yield token
    finally:
        trio.from_thread.run_sync(shutdown.set, trio_token=token)
        thread.join(10)
        assert not thread.is_alive(), "the API did not stop"


async def _serve_until(
    app: Any, path: Path, shutdown: trio.Event, *, task_status: Any = trio.TASK_STATUS_IGNORED
) -> None:
    await serve(app, path, shutdown=shutdown, task_status=task_status)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    trio.run(_main, Path(sys.argv[1]))
