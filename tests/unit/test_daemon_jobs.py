"""nexapod.daemon.job_service and looking, on a real core: jobs submitted, looked at, watched and ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from daemon_kit import job_spec, new_node, offer, pid, profile

from nexapod.api.backend import Busy, Invalid, JobEvent, NotFound, NotReady, Over
from nexapod.blobs.store import BlobStore
from nexapod.config.stewarding import SubmitSettings
from nexapod.daemon.engine import Engine
from nexapod.daemon.hub import Hub
from nexapod.daemon.job_service import JobService
from nexapod.daemon.stopping import Stop
from nexapod.protocol.events import (
    AskShard,
    AskTask,
    BlobReady,
    Effect,
    Event,
    Fetch,
    Finished,
    OfferChanged,
    ProfileChanged,
    Run,
    Save,
    Trace,
    Vacated,
)
from nexapod.protocol.notices import Notice
from nexapod.protocol.primitives import File, JobId, blob_of
from nexapod.protocol.records import Record
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import Validate

OUT = File("out.txt", blob_of(b"result"))
ALONE = Validate(agree=1)


class Disk:
    """Keeps everything at once."""

    async def commit(self, records: Sequence[Record]) -> None:
        await trio.lowlevel.checkpoint()


@dataclass
class Bench:
    """One daemon that is everything itself: with one group that has to agree it needs nobody else."""

    engine: Engine
    jobs: JobService
    hub: Hub
    stop: Stop
    asked: list[Event]
    running: list[Run]

    async def submit(self, **changes: object) -> JobId:
        view = await self.jobs.submit(job_spec(**changes), (), False)
        return JobId(bytes.fromhex(view["job_id"]))

    async def until(self, job: JobId, state: str) -> None:
        with trio.fail_after(20):
            while (await self.jobs.job(job, range(0)))["state"] != state:  # noqa: ASYNC110 - as the API is asked
                await trio.sleep(0.02)

    async def begun(self) -> None:
        """The core has a task run."""
        with trio.fail_after(20):
            while not self.running:  # noqa: ASYNC110 - set without an event
                await trio.sleep(0.02)


@asynccontextmanager
async def bench(folder: Path, *, works: bool = True, settings: SubmitSettings | None = None) -> AsyncIterator[Bench]:
    hub, stop, asked, running = Hub(), Stop(), [], []  # type: ignore[var-annotated]
    engine = Engine(new_node(now=0), Disk())
    service = JobService(
        engine=engine,
        blobs=BlobStore(folder / "blobs"),
        hub=hub,
        stop=stop,
        submit=settings or SubmitSettings(),
        bootstrap=(),
        foreign={},
    )

    def perform(effect: Effect) -> None:
        match effect:
            case Fetch(part):
                engine.post(BlobReady(part))
            case Run(task):
                running.append(effect)
                if works:
                    engine.post(Vacated(task))
                    engine.post(Finished(task, RunResult("ok", 0, (OUT,))))
            case Trace() | Save():
                pass
            case _ if isinstance(effect, Notice):
                hub.notice(effect)

    post = engine.post

    def noted(event: Event) -> None:
        asked.append(event)
        post(event)

    engine.post = noted  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, perform)
        engine.post(OfferChanged(offer()))
        engine.post(ProfileChanged(profile()))
        yield Bench(engine, service, hub, stop, asked, running)
        nursery.cancel_scope.cancel()


async def test_a_job_is_submitted_shown_settled_and_certified(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        said = await it.jobs.submit(job_spec(validate=ALONE), (), False)
        job = JobId(bytes.fromhex(said["job_id"]))
        assert said["panel"] == [pid(0)]
        assert said["rests_on"]
        await it.until(job, "settled")
        view = await it.jobs.job(job, range(9))
        assert (view["accepted"], view["failed"], len(view["task_list"])) == (1, 0, 1)
        (result,) = await it.jobs.results(job, range(1))
        assert [file["path"] for file in result["files"]] == ["out.txt"]
        pieces = [piece async for piece in await it.jobs.certificate(job)]
        assert b"".join(pieces).startswith(b"NEXAPOD-CERTIFICATE-3\n")
        assert [row["job_id"] for row in await it.jobs.jobs()] == [job.hex()]
        assert set(it.jobs.job_ids()) == {job}
        with pytest.raises(Over):
            await it.jobs.cancel(job)
        with pytest.raises(Over):
            await it.jobs.ratify(job)


async def test_what_cannot_be_submitted_says_why(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        with pytest.raises(Invalid, match="network"):
            await it.jobs.submit(job_spec(network="another"), (), False)
        with pytest.raises(Invalid, match=pid(5)):
            await it.jobs.submit(job_spec(), (pid(5),), False)
        it.stop.ask(drain=True)
        with pytest.raises(Busy, match="stopping"):
            await it.submit()


async def test_friends_of_the_configuration_are_asked_for_with_every_job(tmp_path: Path) -> None:
    async with bench(tmp_path, settings=SubmitSettings(friends=(pid(7),))) as it:
        with pytest.raises(Invalid, match=pid(7)):
            await it.submit()


async def test_a_job_that_runs_is_not_certified_and_can_be_cancelled(tmp_path: Path) -> None:
    async with bench(tmp_path, works=False) as it:
        job = await it.submit(validate=ALONE)
        with pytest.raises(NotReady, match="0 of 1 tasks"):
            await it.jobs.certificate(job)
        await it.jobs.cancel(job)
        await it.until(job, "cancelled")
        await it.jobs.cancel(job)
        with pytest.raises(NotReady):
            await it.jobs.certificate(job)


async def test_a_job_that_nobody_knows_is_not_found(tmp_path: Path) -> None:
    nobody = JobId(bytes(32))  # type: ignore[arg-type]
    async with bench(tmp_path) as it:
        for ask in (it.jobs.spec, it.jobs.why_job, it.jobs.certificate, it.jobs.cancel, it.jobs.ratify):
            with pytest.raises(NotFound):
                await ask(nobody)
        with pytest.raises(NotFound):
            await it.jobs.job(nobody, range(1))
        with pytest.raises(NotFound):
            async with it.jobs.events(nobody):
                pass


async def test_who_looks_at_a_job_has_its_seats_asked_and_who_looks_again_does_not_wait(tmp_path: Path) -> None:
    async with bench(tmp_path, works=False) as it:
        job = await it.submit(validate=ALONE)
        await it.begun()
        assert AskShard(job, 0) not in it.asked
        await it.jobs.job(job, range(0))
        assert AskShard(job, 0) not in it.asked
        view = await it.jobs.job(job, range(1))
        assert AskShard(job, 0) in it.asked
        assert [task["state"] for task in view["task_list"]] == ["running"]
        began = trio.current_time()
        for _ in range(3):
            await it.jobs.job(job, range(1))
        assert trio.current_time() - began < 0.2
        assert it.asked.count(AskShard(job, 0)) == 4


async def test_a_log_that_is_asked_for_comes_from_who_runs_the_task(tmp_path: Path) -> None:
    async with bench(tmp_path, works=False) as it:
        job = await it.submit(validate=ALONE)
        await it.begun()
        began = trio.current_time()
        (row,) = await it.jobs.task_log(job, 0)
        assert trio.current_time() - began < 1.0, "with the answer, and not after the longest wait"
        assert (row["peer"], row["outcome"], row["exit"]) == (pid(0), "running", None)
        with pytest.raises(NotFound, match="no task 1"):
            await it.jobs.task_log(job, 1)
        assert AskTask(job, 1) not in it.asked


async def test_who_watches_is_told_what_happens_until_the_job_is_closed(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        job = await it.submit(validate=ALONE)
        seen: list[JobEvent] = []
        with trio.fail_after(20):
            async with it.jobs.events(job) as events:
                async for event in events:
                    seen.append(event)
                    if event[0] == "closed":
                        break
        assert seen[-1] == ("closed", {"state": "settled"})
        assert ("accepted", {"index": 0, "reason": ""}) in seen
        assert AskShard(job, 0) in it.asked
