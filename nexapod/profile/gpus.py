"""The NVIDIA GPUs of this machine, read through NVML. No driver, or no library, means no GPUs: never an
error.

Blocking; keeps no state: NVML is started and shut down in each call.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import structlog

from nexapod.protocol.limits import GPUS_MAX, TEXT_MAX
from nexapod.protocol.types import Gpu

log = structlog.get_logger()


def gpus(nvml: Any = None) -> list[Gpu]:
    """The GPUs in NVML's order, at most GPUS_MAX. One that fails while it is read is left out, with a log
    event.

    `nvml`: the pynvml module; imported when not given.
    """
    nvml = nvml or _load()
    if nvml is None:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        # The usual case on a machine without an NVIDIA driver.
        log.debug("nvml_absent", error=str(error))
        return []
    try:
        return _read_all(nvml)
    finally:
        _shut_down(nvml)


def _load() -> Any:
    try:
        return import_module("pynvml")
    except ImportError as error:
        log.debug("nvml_not_installed", error=str(error))
        return None


def _read_all(nvml: Any) -> list[Gpu]:
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        log.warning("gpus_unreadable", error=str(error))
        return []
    if count > GPUS_MAX:
        log.warning("gpus_left_out", count=count, kept=GPUS_MAX)
    found = (_read(nvml, index, driver) for index in range(min(count, GPUS_MAX)))
    return [gpu for gpu in found if gpu is not None]


def _read(nvml: Any, index: int, driver: str) -> Gpu | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        return Gpu(
            model=_text(nvml.nvmlDeviceGetName(handle)),
            memory=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            capability=f"{major}.{minor}",
            driver=driver,
        )
    except nvml.NVMLError as error:
        log.warning("gpu_lost", index=index, error=str(error))
        return None


def _shut_down(nvml: Any) -> None:
    try:
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        # What was read stays valid; only the library's memory is not given back.
        log.warning("nvml_shutdown_failed", error=str(error))


def _text(value: str | bytes) -> str:
    """Printable text: older bindings give bytes, and firmware may put anything into a name."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return "".join(c for c in text if c.isprintable())[:TEXT_MAX]
