"""nexapod.profile.gpus: several machines as NVML shows them, and every way in which NVML fails."""

from __future__ import annotations

import inspect
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pynvml
import pytest
import trio
from nvml_fake import MACHINES, FakeNvml, readings
from structlog.testing import capture_logs

from nexapod.profile import gpus
from nexapod.profile.gpus import MISMATCH, NO_DRIVER, NOT_ALLOWED, REOPEN_S, SILENT, GpuReader, GpuReading, told
from nexapod.protocol.limits import GPUS_MAX, TEXT_MAX
from nexapod.protocol.types import Gpu
from nexapod.protocol.wire import fields

LOST = {"error": "NVML_ERROR_GPU_IS_LOST"}
NOT_SUPPORTED = {"error": "NVML_ERROR_NOT_SUPPORTED"}


def functions(owner: object) -> dict[str, list[str]]:
    """Names and parameters of the NVML calls that it has."""
    found = {name: getattr(owner, name) for name in dir(owner) if name.startswith("nvml")}
    return {
        name: [p for p in inspect.signature(inspect.unwrap(call)).parameters if p != "self"]
        for name, call in found.items()
        if inspect.isroutine(call)
    }


def test_the_fake_takes_what_the_real_module_takes() -> None:
    real, fake = functions(pynvml), functions(FakeNvml)
    assert fake == {name: real[name] for name in fake}


def test_the_fake_has_what_is_called_and_nothing_else() -> None:
    named = set(re.findall(r"\bnvml\.(\w+)", inspect.getsource(gpus)))
    assert {name for name in named if name.startswith("nvml") and name != "nvmlMemory_v2"} == set(functions(FakeNvml))
    assert [name for name in sorted(named) if not hasattr(pynvml, name)] == []


def test_two_cards_of_a_desktop() -> None:
    first, second = readings("two RTX 4090")
    assert first == GpuReading(
        index=0,
        uuid="GPU-0b6f3d2e-7c1a-4e7d-9a35-1f20c84e6d11",
        model="NVIDIA GeForce RTX 4090",
        capability="8.9",
        driver="570.133.07",
        cuda="12.8",
        memory_bytes=25757220864,
        memory_used_bytes=396361728,
        utilisation_percent=3,
        temperature_c=41,
        power_w=27.21,
        power_limit_w=450.0,
        mig=None,
        compute_processes=0,
    )
    assert (second.index, second.utilisation_percent, second.compute_processes) == (1, 98, 1)


def test_what_a_gpu_does_not_tell_is_none() -> None:
    [laptop] = readings("laptop")
    assert (laptop.power_w, laptop.power_limit_w, laptop.mig) == (None, None, None)
    assert (laptop.utilisation_percent, laptop.temperature_c) == (0, 45)
    [split] = readings("A100, split")
    assert (split.mig, split.utilisation_percent) == (True, None)
    [whole] = readings("A100, not split")
    assert whole.mig is False
    [shared] = readings("unified memory")
    assert (shared.memory_bytes, shared.memory_used_bytes, shared.capability) == (None, None, "12.1")
    assert told(shared) == Gpu("NVIDIA GB10", 0, "12.1", "580.95.05")


@pytest.mark.parametrize(
    ("recorded", "read"),
    [
        ("utilisation", "utilisation_percent"),
        ("temperature", "temperature_c"),
        ("power", "power_w"),
        ("power_limit", "power_limit_w"),
        ("mig", "mig"),
        ("processes", "compute_processes"),
        ("memory", "memory_used_bytes"),
    ],
)
@pytest.mark.parametrize("error", ["NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_NO_PERMISSION", "NVML_ERROR_UNKNOWN"])
def test_each_reading_may_be_missing(recorded: str, read: str, error: str) -> None:
    nvml = FakeNvml("H100")
    nvml.machine["gpus"][0][recorded] = {"error": error}
    [found] = GpuReader(nvml).look().readings
    assert getattr(found, read) is None
    assert found.model == "NVIDIA H100 80GB HBM3"


def test_an_old_driver_has_the_first_form_of_its_calls_only() -> None:
    [found] = readings("old driver")
    assert (found.memory_bytes, found.memory_used_bytes) == (11997020160, 2818048)
    assert (found.compute_processes, found.cuda) == (None, "11.4")


def test_peers_are_told_neither_the_uuid_nor_how_a_gpu_does() -> None:
    [reading] = readings("A100, not split")
    assert told(reading) == Gpu("NVIDIA A100-SXM4-80GB", 80 << 30, "8.0", "535.104.05")
    assert reading.uuid not in repr(told(reading))


@pytest.mark.parametrize(
    ("machine", "trouble", "logged"),
    [
        ("no library", NO_DRIVER, []),
        ("no driver", NO_DRIVER, []),
        ("driver and library differ", MISMATCH, ["gpus_unreadable"]),
        ("not allowed", NOT_ALLOWED, ["gpus_unreadable"]),
    ],
)
def test_nvml_that_does_not_start_is_no_gpu_and_says_why(machine: str, trouble: str, logged: list[str]) -> None:
    reader = GpuReader(FakeNvml(machine))
    with capture_logs() as logs:
        for _ in range(3):
            found = reader.look()
            assert (found.readings, found.trouble) == ((), trouble)
    assert [entry["event"] for entry in logs if entry["log_level"] != "debug"] == logged


def test_this_machine_is_read_with_the_real_module() -> None:
    found = GpuReader().look()
    assert found.readings or found.trouble


def test_no_module_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with capture_logs() as logs:
        reader = GpuReader()
        found = [reader.look(), reader.look()]
    assert found[0].readings == found[1].readings == ()
    assert "cannot be read: ModuleNotFoundError" in found[1].trouble
    assert [entry["event"] for entry in logs] == ["gpus_not_read"]


def test_a_lost_gpu_is_left_out_and_told_once() -> None:
    reader = GpuReader(FakeNvml("one of two lost"))
    with capture_logs() as logs:
        for _ in range(3):
            found = reader.look()
    assert [reading.index for reading in found.readings] == [0]
    assert found.trouble == "GPU 1 does not answer (GPU is lost): restart the machine"
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("gpu_lost", found.trouble)]


@pytest.mark.parametrize(
    "call", ["uuid", "name", "capability", "memory", "utilisation", "temperature", "power", "mig", "processes"]
)
def test_a_gpu_lost_in_the_middle_of_being_read_is_left_out(call: str) -> None:
    nvml = FakeNvml("two RTX 4090")
    nvml.machine["gpus"][0][call] = LOST
    found = GpuReader(nvml).look()
    assert [reading.index for reading in found.readings] == [1]
    assert "GPU 0 does not answer" in found.trouble


def test_nvml_is_started_once_and_anew_after_a_loss_but_not_at_every_look() -> None:
    nvml, now = FakeNvml("two RTX 4090"), [0.0]
    reader = GpuReader(nvml, clock=lambda: now[0])
    whole = nvml.machine["gpus"]
    for _ in range(5):
        assert len(reader.look().readings) == 2
    assert nvml.calls["nvmlInit"] == 1
    nvml.machine["gpus"] = [whole[0], LOST]
    for _ in range(5):
        assert len(reader.look().readings) == 1
    assert nvml.calls["nvmlInit"] == 1
    now[0] = REOPEN_S
    nvml.machine["gpus"] = whole
    assert len(reader.look().readings) == 2
    assert (nvml.calls["nvmlInit"], nvml.calls["nvmlShutdown"], nvml.open) == (2, 1, 1)
    now[0] = 10 * REOPEN_S
    reader.look()
    assert nvml.calls["nvmlInit"] == 2


@pytest.mark.parametrize("what", ["driver", "gpus"])
def test_a_driver_that_fails_as_a_whole_is_started_anew_at_the_next_look(what: str) -> None:
    nvml = FakeNvml("H100")
    reader = GpuReader(nvml)
    kept = nvml.machine[what]
    nvml.machine[what] = {"error": "NVML_ERROR_UNKNOWN"}
    assert reader.look().trouble == "the NVIDIA driver fails: Unknown Error"
    nvml.machine[what] = kept
    assert len(reader.look().readings) == 1
    assert (nvml.calls["nvmlInit"], nvml.open) == (2, 1)


def test_a_driver_that_does_not_tell_its_cuda_is_read_all_the_same() -> None:
    nvml = FakeNvml("H100")
    nvml.machine["cuda"] = NOT_SUPPORTED
    [found] = GpuReader(nvml).look().readings
    assert found.cuda == ""


def test_names_are_printable_and_cards_bounded() -> None:
    nvml = FakeNvml("H100")
    odd = nvml.machine["gpus"][0] | {"name": b"evil\x1b[31m\nname" + "\u00e9".encode() * 1000}
    nvml.machine["gpus"] = [odd] * 40
    found = GpuReader(nvml).look().readings
    assert len(found) == GPUS_MAX
    assert found[0].model.startswith("evil[31mname\u00e9")
    assert len(found[0].model.encode()) <= TEXT_MAX
    nvml.machine["gpus"] = [odd | {"name": ""}]
    assert told(GpuReader(nvml).look().readings[0]).model == "unnamed GPU"


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_told_can_be_said(machine: str) -> None:
    for reading in readings(machine):
        gpu = told(reading)
        assert fields.record(Gpu).decode([gpu.model, gpu.memory, gpu.capability, gpu.driver]) == gpu


# --- a driver that hangs -------------------------------------------------------------------------------------------
@contextmanager
def hanging(nvml: FakeNvml, call: str) -> Iterator[threading.Event]:
    """Until the event is set, the call does not return."""
    go_on = threading.Event()
    nvml.before_each = lambda name: (go_on.wait(30), None)[1] if name == call else None
    try:
        yield go_on
    finally:
        go_on.set()


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetUtilizationRates"])
def test_a_driver_that_hangs_costs_a_bounded_time_and_one_thread(call: str) -> None:
    nvml = FakeNvml("H100")
    reader = GpuReader(nvml, answer_s=0.05)
    with hanging(nvml, call) as go_on, capture_logs() as logs:
        for _ in range(5):
            assert reader.look() == gpus.GpuLook(trouble=SILENT)
        assert nvml.calls[call] == 1
        assert [entry["event"] for entry in logs] == ["nvml_silent"]
        go_on.set()
        deadline = time.monotonic() + 5
        while not reader.look().readings:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert reader.look().trouble == ""


def test_who_asks_meanwhile_gets_the_same_look() -> None:
    nvml = FakeNvml("H100")
    reader = GpuReader(nvml)
    found: list[gpus.GpuLook] = []
    with hanging(nvml, "nvmlSystemGetDriverVersion") as go_on:
        threads = [threading.Thread(target=lambda: found.append(reader.look())) for _ in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 5
        while not nvml.calls["nvmlSystemGetDriverVersion"]:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        go_on.set()
        for thread in threads:
            thread.join(5)
    assert len(found) == 8
    assert {len(look.readings) for look in found} == {1}
    assert nvml.calls["nvmlInit"] == 1


async def test_it_may_be_called_from_any_worker_thread() -> None:
    nvml = FakeNvml("two RTX 4090")
    reader = GpuReader(nvml)
    inside, most = [0], [0]

    def enter(name: str) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0)
        inside[0] -= 1

    nvml.before_each = enter
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(trio.to_thread.run_sync, reader.look)
    assert most == [1]
    assert nvml.calls["nvmlInit"] == 1
