"""nexapod.daemon.hub: traces become counters and streams; who reads too slowly loses the oldest, and is told."""

from __future__ import annotations

import pytest
import trio

from nexapod.daemon.hub import WATCHER_EVENTS_MAX, WATCHERS_MAX, Hub, TooManyWatchers, plain
from nexapod.protocol.events import Trace


async def test_every_watcher_sees_every_trace_from_when_it_began() -> None:
    hub = Hub()
    hub.trace(Trace("before", {}))
    async with hub.watch() as one, hub.watch() as other:
        hub.trace(Trace("settled", {"task": 3, "root": b"\x01\xff"}))
        with trio.fail_after(1):
            for watcher in (one, other):
                assert await anext(aiter(watcher)) == ("settled", {"task": 3, "root": "01ff"})
    assert hub.counts == {"before": 1, "settled": 1}


async def test_a_slow_watcher_is_told_how_many_it_missed_and_harms_nobody() -> None:
    hub = Hub()
    async with hub.watch() as slow:
        for number in range(WATCHER_EVENTS_MAX + 5):
            hub.trace(Trace("view", {"number": number}))
        stream = aiter(slow)
        with trio.fail_after(1):
            seen = [await anext(stream) for _ in range(WATCHER_EVENTS_MAX)]
        assert [facts["number"] for _, facts in seen] == list(range(WATCHER_EVENTS_MAX))
        hub.trace(Trace("view", {"number": -1}))
        with trio.fail_after(1):
            assert await anext(stream) == ("lagged", {"lost": 5})
            assert await anext(stream) == ("view", {"number": -1})
    assert hub.counts["view"] == WATCHER_EVENTS_MAX + 6


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


def test_facts_are_shown_as_json_has_them() -> None:
    assert plain({"job": b"\x00", "peers": ("a", b"\x01"), 3: [None, True]}) == {
        "job": "00",
        "peers": ["a", "01"],
        "3": [None, True],
    }
