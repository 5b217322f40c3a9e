"""The NVIDIA GPUs of this machine, read through NVML: what they are, and how they do at the moment.

Responsible for reading, bounded in time and safe from any thread. No driver, or no library, means no GPUs: never an
error. What a GPU does not tell is None. Knows nothing of who may use a GPU, nor of tasks.

NVML is started once and kept: without persistence mode the driver forgets a GPU's state when its last user closes it,
and each start would bring it up again, for seconds (docs.nvidia.com/deploy/driver-persistence). Only when something
was wrong is it started anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from threading import Event, Lock, Thread
from typing import Any, Final, TypeVar

import structlog

from nexapod.protocol.limits import GPUS_MAX, TEXT_MAX
from nexapod.protocol.types import Gpu

log = structlog.get_logger()
T = TypeVar("T")

ANSWER_S: Final = 5.0
"""How long a look may take. Drivers are known to hang, in NVML's start above all; a first one may take seconds."""
REOPEN_S: Final = 60.0
"""After something was wrong NVML is started anew, but not more often than this."""

NO_DRIVER: Final = "no NVIDIA driver is loaded"
SILENT: Final = "the NVIDIA driver does not answer: look into the kernel's log, and restart the machine"
MISMATCH: Final = "the NVIDIA driver was updated, but the old one is still loaded: restart the machine"
NOT_ALLOWED: Final = "this user may not open the NVIDIA devices: see the permissions of /dev/nvidia*"


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment. Stays on this machine: `told` makes of it what peers may know."""

    index: int
    """NVML's own, by bus address: that of `nvidia-smi`."""
    uuid: str
    model: str
    capability: str
    """The CUDA compute capability, "8.9"."""
    driver: str
    cuda: str
    """The newest CUDA that the driver can run, "12.8"; empty when it does not say."""
    memory_bytes: int | None
    """None on a GPU that has no memory of its own."""
    memory_used_bytes: int | None
    """By whomever; without what the driver keeps for itself, where it tells that apart."""
    utilisation_percent: int | None
    """The part of the last sample period (NVML: 1/6 s to 1 s) in which at least one kernel ran, of whomever."""
    temperature_c: int | None
    power_w: float | None
    power_limit_w: float | None
    mig: bool | None
    """Whether it is split into MIG instances; None where it cannot be."""
    compute_processes: int | None
    """How many processes compute on it, tasks of this daemon included. In a container NVML may see none of them."""


@dataclass(frozen=True, slots=True)
class GpuLook:
    """What one look found. `trouble` says, for people, why there are no GPUs or fewer than there should be."""

    readings: tuple[GpuReading, ...] = ()
    trouble: str = ""


def told(reading: GpuReading) -> Gpu:
    """What peers are told of a GPU. Never its UUID, which names this very piece for ever."""
    return Gpu(reading.model, reading.memory_bytes or 0, reading.capability, reading.driver)


@dataclass(slots=True)
class _Turn:
    """One look in progress, which everybody who asks meanwhile waits for."""

    until: float
    done: Event = field(default_factory=Event)
    found: GpuLook = field(default_factory=GpuLook)


class GpuReader:
    """Reads the GPUs whenever asked. One thread at a time is inside NVML, whoever asks: one that hangs is never
    joined by another, and every caller has its answer within `answer_s`."""

    def __init__(
        self, nvml: Any = None, *, answer_s: float = ANSWER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`nvml`: the pynvml module; imported at the first look when not given."""
        self._nvml = nvml
        self._answer_s = answer_s
        self._clock = clock
        self._lock = Lock()
        self._turn: _Turn | None = None
        self._said: dict[str, str] = {}
        # From here on: touched by the thread of the turn only.
        self._opened: float | None = None
        self._suspect = False

    def look(self) -> GpuLook:
        """The GPUs in NVML's order, at most GPUS_MAX. Blocks for `answer_s` at most; never raises."""
        with self._lock:
            if self._turn is None or self._turn.done.is_set():
                self._turn = _Turn(time.monotonic() + self._answer_s)
                # A daemon thread: one that hangs in the driver must not keep the process from ending.
                Thread(target=self._take, args=(self._turn,), name="nvml", daemon=True).start()
            turn = self._turn
        if turn.done.wait(max(0.0, turn.until - time.monotonic())):
            return turn.found
        self._say("nvml", "nvml_silent", SILENT)
        return GpuLook(trouble=SILENT)

    def _take(self, turn: _Turn) -> None:
        try:
            turn.found = self._found()
        except Exception as error:
            # Wide: bindings of a C library of any version. A surprise there must cost the GPUs only, and be seen.
            turn.found = GpuLook(trouble=f"the GPUs cannot be read: {type(error).__name__}: {_text(str(error))}")
            if self._is_new("nvml", turn.found.trouble):
                log.exception("gpus_not_read")
        finally:
            turn.done.set()

    def _found(self) -> GpuLook:
        if self._nvml is None:
            self._nvml = import_module("pynvml")
        nvml = self._nvml
        try:
            self._open(nvml)
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            cuda = _cuda(nvml)
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self._close(nvml)
            return self._none(nvml, error)
        self._said.pop("nvml", None)
        if count > GPUS_MAX:
            self._say("count", "gpus_left_out", f"{count} GPUs, of which {GPUS_MAX} are used")
        readings, troubles = [], []
        for index in range(min(count, GPUS_MAX)):
            try:
                readings.append(_read(nvml, index, driver, cuda))
                self._said.pop(f"gpu {index}", None)
            except nvml.NVMLError as error:
                self._suspect = True
                troubles.append(f"GPU {index} does not answer ({_text(str(error))}): restart the machine")
                self._say(f"gpu {index}", "gpu_lost", troubles[-1])
        return GpuLook(tuple(readings), "; ".join(troubles))

    def _open(self, nvml: Any) -> None:
        """Raises NVMLError. Started anew after a GPU was lost: it may have been reset since."""
        if self._suspect and self._opened is not None and self._clock() - self._opened >= REOPEN_S:
            self._close(nvml)
        if self._opened is None:
            nvml.nvmlInit()
            self._opened = self._clock()
            self._suspect = False

    def _close(self, nvml: Any) -> None:
        if self._opened is None:
            return
        self._opened = None
        try:
            nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            # Only the library's memory is not given back.
            log.warning("nvml_shutdown_failed", error=_text(str(error)))

    def _none(self, nvml: Any, error: Any) -> GpuLook:
        """No GPU at all, and why."""
        if error.value in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
            self._said.pop("nvml", None)
            log.debug("nvml_absent", error=_text(str(error)))  # the usual case: a machine without such a GPU
            return GpuLook(trouble=NO_DRIVER)
        reasons = {nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: MISMATCH, nvml.NVML_ERROR_NO_PERMISSION: NOT_ALLOWED}
        trouble = reasons.get(error.value, f"the NVIDIA driver fails: {_text(str(error))}")
        self._say("nvml", "gpus_unreadable", trouble)
        return GpuLook(trouble=trouble)

    def _say(self, what: str, event: str, text: str) -> None:
        if self._is_new(what, text):
            log.warning(event, reason=text)

    def _is_new(self, what: str, text: str) -> bool:
        """Only what is new is logged: a look is taken every second, and what is wrong stays wrong for long."""
        before, self._said[what] = self._said.get(what), text
        return before != text


def _read(nvml: Any, index: int, driver: str, cuda: str) -> GpuReading:
    """Raises NVMLError for a GPU that is lost, or that does not say what it is."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = _memory(nvml, handle)
    load = _maybe(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    mig = _maybe(nvml, nvml.nvmlDeviceGetMigMode, handle)
    processes = _maybe(nvml, nvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
    return GpuReading(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        model=_text(nvml.nvmlDeviceGetName(handle)) or "unnamed GPU",
        capability=f"{major}.{minor}",
        driver=driver,
        cuda=cuda,
        memory_bytes=None if memory is None else int(memory.total),
        memory_used_bytes=None if memory is None else int(memory.used),
        utilisation_percent=None if load is None else min(100, int(load.gpu)),
        temperature_c=_maybe(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=_watts(_maybe(nvml, nvml.nvmlDeviceGetPowerUsage, handle)),
        power_limit_w=_watts(_maybe(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
        mig=None if mig is None else mig[0] == nvml.NVML_DEVICE_MIG_ENABLE,
        compute_processes=None if processes is None else len(processes),
    )


def _maybe(nvml: Any, ask: Callable[..., T], *args: Any) -> T | None:
    """What a GPU says, None when it does not. Raises NVMLError only when the GPU is gone."""
    try:
        return ask(*args)
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
            raise
        return None


def _memory(nvml: Any, handle: Any) -> Any:
    """The second form counts what the driver keeps for itself apart; old drivers have the first only."""
    newer = _maybe(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
    return newer if newer is not None else _maybe(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)


def _cuda(nvml: Any) -> str:
    number = _maybe(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    return "" if number is None else f"{number // 1000}.{number % 1000 // 10}"


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _text(value: str | bytes) -> str:
    """Printable and short: older bindings give bytes, and firmware may put anything into a name."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    printable = "".join(c for c in text if c.isprintable())
    return printable.encode("utf-8", "replace")[:TEXT_MAX].decode("utf-8", "ignore")
