"""nexapod.daemon.gpu_desk and nexapod.daemon.machine: GPUs leased to tasks on a fake NVML, metered, told to peers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from daemon_kit import job_spec
from nvml_fake import FakeNvml
from structlog.testing import capture_logs

from nexapod.config.gpus import GpuSettings
from nexapod.daemon.gpu_desk import SWITCHED_OFF, GpuDesk, NoGpu
from nexapod.daemon.machine import Machine
from nexapod.daemon.machine_views import gpus_view
from nexapod.executor.contract import Availability
from nexapod.profile.gpus import NO_DRIVER, SILENT, GpuReader
from nexapod.protocol.events import Event, ProfileChanged
from nexapod.protocol.types import Gpu, JobSpec, Limits, Requires

IDLE_4090 = "GPU-0b6f3d2e-7c1a-4e7d-9a35-1f20c84e6d11"
BUSY_4090 = "GPU-5d0e8a44-33b9-1c6f-e2a7-90be4471f0c2"


def wants(count: int, *, memory: int = 0, model: str = "", capability: str = "") -> JobSpec:
    return job_spec(
        limits=Limits(gpus=count, gpu_memory=memory), requires=Requires(gpu_model=model, gpu_capability=capability)
    )


class Bench:
    """A desk over a fake NVML and a clock that stands until it is moved."""

    def __init__(self, machine: str, settings: GpuSettings | None = None, *, answer_s: float = 5.0) -> None:
        self.nvml = FakeNvml(machine)
        self.now_ms = 0
        self.desk = GpuDesk(
            settings or GpuSettings(), GpuReader(self.nvml, answer_s=answer_s), now_ms=lambda: self.now_ms
        )

    def set(self, index: int, **values: object) -> None:
        self.nvml.machine["gpus"][index] |= values

    async def pass_a_second(self) -> None:
        self.now_ms += 1000
        await self.desk.look()


async def no_images() -> tuple[str, ...]:
    return ()


async def until(condition: Callable[[], bool]) -> None:
    """What happens in another thread sets no event."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.25)


async def test_a_task_leases_is_metered_and_gives_back() -> None:
    bench = Bench("two RTX 4090")
    assert await bench.desk.lease("a", wants(1, memory=20 << 30, capability="8.0")) == (IDLE_4090,)
    bench.set(0, utilisation=100, memory={"total": 25757220864, "reserved": 0, "used": 20 << 30})
    await bench.pass_a_second()
    bench.set(0, utilisation=50)
    await bench.pass_a_second()
    assert bench.desk.gpu_ms("a") == 1500
    assert bench.desk.told() == (Gpu("NVIDIA GeForce RTX 4090", 25757220864, "8.9", "570.133.07"),)
    assert bench.desk.release("a") == 1500
    assert bench.desk.release("a") == bench.desk.gpu_ms("a") == 0


async def test_a_busy_machine_says_why_it_has_no_gpu() -> None:
    bench = Bench("two RTX 4090")
    assert await bench.desk.lease("a", wants(1)) == (IDLE_4090,)
    refused = await bench.desk.lease("b", wants(1))
    assert refused == NoGpu(
        "no 1 fitting GPUs are free here now (1 of 2 are held by other tasks; "
        "GPU 1: others use it: 21068 MiB of its memory are taken)"
    )
    bench.desk.release("a")
    assert await bench.desk.lease("b", wants(1)) == (IDLE_4090,)


async def test_the_next_task_is_not_kept_away_by_what_the_last_one_did() -> None:
    bench = Bench("laptop")
    for label in ("1", "2", "3"):
        assert len(await bench.desk.lease(label, wants(1))) == 1  # type: ignore[arg-type]
        bench.set(0, utilisation=100)
        await bench.pass_a_second()
        bench.desk.release(label)


async def test_each_lease_is_decided_on_a_fresh_look() -> None:
    bench = Bench("H100")
    await bench.desk.look()
    bench.set(0, utilisation=97)
    refused = await bench.desk.lease("a", wants(1))
    assert isinstance(refused, NoGpu)
    assert "busy for 97 % of the time" in refused.reason


@pytest.mark.parametrize("machine", ["no driver", "no library"])
async def test_a_machine_without_a_driver_lends_nothing(machine: str) -> None:
    bench = Bench(machine)
    assert await bench.desk.lease("a", wants(0)) == ()
    refused = await bench.desk.lease("a", wants(1))
    assert isinstance(refused, NoGpu)
    assert NO_DRIVER in refused.reason
    assert (bench.desk.told(), bench.desk.states(), bench.desk.trouble) == ((), [], NO_DRIVER)


async def test_gpus_that_are_switched_off_are_not_even_looked_at() -> None:
    bench = Bench("H100", GpuSettings(enabled=False))
    await bench.desk.look()
    refused = await bench.desk.lease("a", wants(1))
    assert isinstance(refused, NoGpu)
    assert SWITCHED_OFF in refused.reason
    assert bench.desk.trouble == SWITCHED_OFF
    assert not bench.nvml.calls


async def test_what_is_disabled_is_shown_here_and_told_to_nobody() -> None:
    bench = Bench("two RTX 4090", GpuSettings(disabled=frozenset({IDLE_4090.lower()})))
    await bench.desk.look()
    assert bench.desk.told() == ()
    shown = gpus_view(bench.desk.states())
    assert [(gpu["index"], gpu["uuid"], gpu["leased_by"]) for gpu in shown] == [(0, IDLE_4090, ""), (1, BUSY_4090, "")]
    assert "owner does not lend it" in shown[0]["withheld"]
    assert "others use it" in shown[1]["withheld"]


async def test_a_misspelt_name_among_the_disabled_is_warned_of_once() -> None:
    bench = Bench("H100", GpuSettings(disabled=frozenset({7})))
    with capture_logs() as logs:
        await bench.desk.look()
        await bench.desk.look()
    assert [(entry["event"], entry["names"]) for entry in logs] == [("gpus_disabled_unknown", [7])]


async def test_a_gpu_that_falls_off_the_bus_while_leased() -> None:
    bench = Bench("two RTX 4090")
    assert await bench.desk.lease("a", wants(1)) == (IDLE_4090,)
    bench.set(0, utilisation=100)
    await bench.pass_a_second()
    bench.nvml.machine["gpus"][0] = {"error": "NVML_ERROR_GPU_IS_LOST"}
    await bench.pass_a_second()
    assert "GPU 0 does not answer" in bench.desk.trouble
    assert bench.desk.release("a") == 1000
    refused = await bench.desk.lease("b", wants(1))
    assert isinstance(refused, NoGpu)
    assert "GPU 0 does not answer" in refused.reason


async def test_a_run_that_outlived_its_daemon_keeps_its_gpus() -> None:
    bench = Bench("two RTX 4090")
    assert bench.desk.hold("old", (BUSY_4090,))
    await bench.pass_a_second()
    assert bench.desk.gpu_ms("old") == 980
    assert [state.leased_by for state in bench.desk.states()] == ["", "old"]
    assert not bench.desk.hold("other", (BUSY_4090,))
    assert bench.desk.gpu_ms("other") == 0


async def test_a_driver_that_hangs_keeps_nobody() -> None:
    bench = Bench("H100", answer_s=0.05)
    go_on = threading.Event()
    bench.nvml.before_each = lambda name: (go_on.wait(30), None)[1]
    try:
        with trio.fail_after(5):
            refused = await bench.desk.lease("a", wants(1))
            assert isinstance(refused, NoGpu)
            assert SILENT in refused.reason
            await bench.desk.look()
    finally:
        go_on.set()


async def test_a_look_that_is_cancelled_is_left_at_once() -> None:
    bench = Bench("H100")
    go_on = threading.Event()
    bench.nvml.before_each = lambda name: (go_on.wait(30), None)[1]
    try:
        with trio.fail_after(2), trio.move_on_after(0.05) as scope:
            await bench.desk.look()
        assert scope.cancelled_caught
    finally:
        go_on.set()


async def test_gpus_are_sampled_while_held_and_left_alone_while_not(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    autojump_clock.autojump_threshold = 0.02  # threads take real time
    bench = Bench("H100")
    nursery.start_soon(bench.desk.run)
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(100)  # a pause: that nobody looks is what is tested
    assert not bench.nvml.calls
    await bench.desk.lease("a", wants(1))
    bench.set(0, utilisation=100)
    looks = bench.nvml.calls["nvmlDeviceGetCount"]
    for _ in range(3):
        bench.now_ms += 1000
        before = bench.nvml.calls["nvmlDeviceGetCount"]
        await until(lambda before=before: bench.nvml.calls["nvmlDeviceGetCount"] > before)  # type: ignore[misc]
        await until(lambda: bench.desk.gpu_ms("a") == bench.now_ms)
    assert bench.nvml.calls["nvmlDeviceGetCount"] == looks + 3
    assert bench.desk.release("a") == 3000
    await trio.sleep(2)  # a pause: the sample that had begun
    looks = bench.nvml.calls["nvmlDeviceGetCount"]
    await trio.sleep(100)  # a pause: that nobody looks is what is tested
    assert bench.nvml.calls["nvmlDeviceGetCount"] == looks


# --- the profile ---------------------------------------------------------------------------------------------------
class OneExecutor:
    """Can run tasks, which is all that a profile asks."""

    name = "docker"

    async def probe(self) -> Availability:
        return Availability(True, "1")


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Machine, Bench, list[Event]]:
    bench = Bench("two RTX 4090")
    posted: list[Event] = []
    return (
        Machine(
            network="test",
            home=tmp_path,
            executors={"docker": OneExecutor()},  # type: ignore[dict-item]
            addrs=list,
            slots=1,
            work=True,
            post=posted.append,
            images=no_images,
            registries=(),
            gpus=bench.desk,
        ),
        bench,
        posted,
    )


async def test_peers_are_told_of_the_gpus_that_are_offered(machine: tuple[Machine, Bench, list[Event]]) -> None:
    prober, bench, posted = machine
    card = Gpu("NVIDIA GeForce RTX 4090", 25757220864, "8.9", "570.133.07")
    await prober.probe()
    [event] = posted
    assert isinstance(event, ProfileChanged)
    assert event.profile.gpus == (card,)
    assert IDLE_4090 not in repr(event)
    # A task of ours changes nothing of what is told: others' work does.
    assert await bench.desk.lease("a", wants(1)) == (IDLE_4090,)
    bench.set(0, utilisation=100, temperature=90)
    await prober.probe()
    assert len(posted) == 1
    bench.set(1, utilisation=0, memory={"total": 25757220864, "reserved": 0, "used": 0})
    await prober.probe()
    assert prober.profile is not None
    assert prober.profile.gpus == (card, card)
    assert replace(prober.profile, gpus=()) == replace(event.profile, gpus=(), stamp=0)
