"""NVML as the pynvml module shows it, over readings in nvml_readings.json: for tests on machines without a GPU.

The errors and constants are the real module's own. tests/unit/test_profile_gpus.py compares the functions with it.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

from nexapod.profile.gpus import GpuReader, GpuReading

_RECORDED = json.loads((Path(__file__).parent / "nvml_readings.json").read_text(encoding="utf-8"))["machines"]
MACHINES = tuple(_RECORDED)


class FakeNvml:
    """One machine of the file. `machine` is its own copy, to be changed as time passes; `calls` counts each call;
    `before_each` runs before every call, with its name: where a test lets NVML hang."""

    def __init__(self, name: str) -> None:
        self.machine: dict[str, Any] = copy.deepcopy(_RECORDED[name])
        self.calls: Counter[str] = Counter()
        self.open = 0
        self.before_each: Callable[[str], None] = lambda name: None

    def __getattr__(self, name: str) -> Any:
        """Constants and errors: the real ones."""
        if name.startswith(("NVML", "nvmlMemory_")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def nvmlInit(self) -> None:
        self._called("nvmlInit", open_needed=False)
        self._value(self.machine.get("init"))
        self.open += 1

    def nvmlShutdown(self) -> None:
        self._called("nvmlShutdown")
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> Any:
        self._called("nvmlSystemGetDriverVersion")
        return self._value(self.machine["driver"])

    def nvmlSystemGetCudaDriverVersion(self) -> Any:
        self._called("nvmlSystemGetCudaDriverVersion")
        return self._value(self.machine["cuda"])

    def nvmlDeviceGetCount(self) -> Any:
        self._called("nvmlDeviceGetCount")
        return len(self._value(self.machine["gpus"]))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        self._called("nvmlDeviceGetHandleByIndex")
        return self._value(self.machine["gpus"][index])

    def nvmlDeviceGetUUID(self, handle: Any) -> Any:
        return self._of("nvmlDeviceGetUUID", handle, "uuid")

    def nvmlDeviceGetName(self, handle: Any) -> Any:
        return self._of("nvmlDeviceGetName", handle, "name")

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> Any:
        return tuple(self._of("nvmlDeviceGetCudaComputeCapability", handle, "capability"))

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: Any = None) -> Any:
        memory = self._of("nvmlDeviceGetMemoryInfo", handle, "memory")
        if version is None:
            return SimpleNamespace(total=memory["total"], used=memory["used"] + memory["reserved"])
        self._new_call()
        assert version == pynvml.nvmlMemory_v2
        return SimpleNamespace(**memory)

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        return SimpleNamespace(gpu=self._of("nvmlDeviceGetUtilizationRates", handle, "utilisation"), memory=0)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> Any:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self._of("nvmlDeviceGetTemperature", handle, "temperature")

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> Any:
        return self._of("nvmlDeviceGetPowerUsage", handle, "power")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> Any:
        return self._of("nvmlDeviceGetEnforcedPowerLimit", handle, "power_limit")

    def nvmlDeviceGetMigMode(self, device: Any) -> Any:
        return self._of("nvmlDeviceGetMigMode", device, "mig")

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any) -> Any:
        self._new_call()
        return [
            SimpleNamespace(**found)
            for found in self._of("nvmlDeviceGetComputeRunningProcesses_v3", handle, "processes")
        ]

    def _of(self, call: str, handle: dict[str, Any], what: str) -> Any:
        self._called(call)
        self._value(handle)
        return self._value(handle[what])

    def _called(self, name: str, *, open_needed: bool = True) -> None:
        self.calls[name] += 1
        self.before_each(name)
        if open_needed and not self.open:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)

    def _new_call(self) -> None:
        """What a driver of before 2022 does not have."""
        if self.machine.get("old"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict) and "error" in value:
            raise pynvml.NVMLError(getattr(pynvml, value["error"]))
        return value


def readings(name: str) -> tuple[GpuReading, ...]:
    """The GPUs of a machine of the file, as they are read."""
    return GpuReader(FakeNvml(name)).look().readings
