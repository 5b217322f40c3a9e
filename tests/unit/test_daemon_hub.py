"""nexapod.daemon.hub: notices become streams; who reads too slowly loses some, and is told. Traces are counted only."""

from __future__ import annotations

import pytest
import structlog.testing
import trio

from nexapod.daemon.hub import WATCHER_NOTICES_MAX, WATCHERS_MAX, Hub, Lagged, TooManyWatchers, plain
from nexapod.protocol.events import Trace
from nexapod.protocol.notices import JobClosed, JobSettled, ResultStored, TaskFailing
from nexapod.protocol.primitives import Digest, JobId, PeerId

JOB = JobId(Digest(b"j" * 32))


async def test_every_watcher_sees_every_notice_from_when_it_began_and_no_trace() -> None:
    hub = Hub()
    hub.notice(ResultStored(JOB, 0))
    async with hub.watch() as one, hub.watch() as other:
        hub.trace(Trace("lease_granted", {"task": 3}))
        hub.notice(JobSettled(JOB, 3, 1))
        with trio.fail_after(1):
            for watcher in (one, other):
                assert await anext(aiter(watcher)) == JobSettled(JOB, 3, 1)
    assert hub.notices == {"result_stored": 1, "job_settled": 1}
    assert hub.traces == {"lease_granted": 1}


async def test_a_slow_watcher_is_told_how_many_it_missed_and_harms_nobody() -> None:
    hub = Hub()
    async with hub.watch() as slow:
        for number in range(WATCHER_NOTICES_MAX + 5):
            hub.notice(ResultStored(JOB, number))
        stream = aiter(slow)
        with trio.fail_after(1):
            seen = [await anext(stream) for _ in range(WATCHER_NOTICES_MAX)]
        assert seen == [ResultStored(JOB, number) for number in range(WATCHER_NOTICES_MAX)]
        hub.notice(JobClosed(JOB, "settled"))
        with trio.fail_after(1):
            assert await anext(stream) == Lagged(5)
            assert await anext(stream) == JobClosed(JOB, "settled")
    assert hub.notices["result_stored"] == WATCHER_NOTICES_MAX + 5


async def test_watchers_are_bounded_and_one_who_leaves_makes_room() -> None:
    hub = Hub()
    async with trio.open_nursery() as nursery:
        leave = trio.Event()

        async def watch(task_status: trio.TaskStatus[None]) -> None:
            async with hub.watch():
                task_status.started()
                await leave.wait()

        for _ in range(WATCHERS_MAX):
            await nursery.start(watch)
        with pytest.raises(TooManyWatchers):
            async with hub.watch():
                pass
        leave.set()
    async with hub.watch():
        pass


def test_a_notice_is_a_line_of_the_log_with_all_that_it_says() -> None:
    hub = Hub()
    with structlog.testing.capture_logs() as logs:
        hub.notice(TaskFailing(JOB, 7, PeerId("peer"), 2, "it broke", log="its last words"))
    (line,) = logs
    assert (line["event"], line["job"], line["task"], line["exit"]) == ("task_failing", JOB.hex(), 7, 2)
    assert (line["worker"], line["reason"], line["log"]) == ("peer", "it broke", "its last words")


def test_facts_are_shown_as_json_has_them() -> None:
    assert plain({"job": b"\x00", "peers": ("a", b"\x01"), 3: [None, True]}) == {
        "job": "00",
        "peers": ["a", "01"],
        "3": [None, True],
    }
