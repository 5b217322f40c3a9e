"""Where tasks of this daemon get GPUs and give them back: joins NVML's readings, the leases and the meter.

Decides nothing: who gets which GPU is daemon/gpus.py's rule. Every answer comes within the reader's bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
import trio

from nexapod.config.gpus import GpuSettings
from nexapod.daemon.gpus import GpuLeases, GpuMeter, GpuState
from nexapod.profile.gpus import GpuLook, GpuReader, told
from nexapod.protocol.types import Gpu, JobSpec

log = structlog.get_logger()

SAMPLE_S: Final = 1.0
SWITCHED_OFF: Final = "the owner of this machine does not lend its GPUs ([gpu] enabled = false in config.toml)"


class Reader(Protocol):
    """What is asked of nexapod.profile.gpus.GpuReader."""

    def look(self) -> GpuLook: ...


@dataclass(frozen=True, slots=True)
class NoGpu:
    """Why a task gets no GPU here now, for people and for its stewards."""

    reason: str


class GpuDesk:
    """The GPUs of this machine, as the daemon hands them out."""

    def __init__(
        self,
        settings: GpuSettings,
        reader: Reader | None = None,
        *,
        now_ms: Callable[[], int] = lambda: int(time.monotonic() * 1000),
    ) -> None:
        self._settings = settings
        self._reader = reader or GpuReader()
        self._now_ms = now_ms
        self._leases = GpuLeases(settings)
        self._meter = GpuMeter()
        self._trouble = "" if settings.enabled else SWITCHED_OFF
        self._asked_for = trio.Event()
        self._warned: list[str | int] = []

    async def look(self) -> None:
        """Read the GPUs anew. Bounded by the reader; a look that was cancelled ends by itself."""
        if not self._settings.enabled:
            return
        # The stubs are of an older trio than the library.
        found = await trio.to_thread.run_sync(self._reader.look, abandon_on_cancel=True)  # type: ignore[call-arg]
        now_ms = self._now_ms()
        self._trouble = found.trouble
        self._leases.update(found.readings, now_ms)
        self._meter.sample(found.readings, now_ms)
        self._warn_of_unknown_names()

    async def lease(self, label: str, spec: JobSpec) -> tuple[str, ...] | NoGpu:
        """The UUIDs of as many GPUs as the job wants, until `release`; none when it wants none."""
        wanted = spec.limits.gpus
        if not wanted:
            return ()
        await self.look()
        uuids = self._leases.lease(
            label,
            wanted,
            memory_bytes=spec.limits.gpu_memory,
            model=spec.requires.gpu_model,
            capability=spec.requires.gpu_capability,
        )
        if uuids is None:
            return NoGpu(self._why_none(wanted))
        self._begin(label, uuids)
        return uuids

    def hold(self, label: str, uuids: Sequence[str]) -> bool:
        """Give a run of a former daemon, which still goes on, the GPUs that it has. False: another run has them."""
        if not self._leases.hold(label, uuids):
            return False
        self._begin(label, tuple(uuids))
        return True

    def release(self, label: str) -> int:
        """Take the run's GPUs back; the milliseconds that they were busy, added up. Harmless when it has none.

        A `look` before it lets the last second count as it was, and not as the one before it.
        """
        now_ms = self._now_ms()
        uuids = self._leases.release(label, now_ms)
        gpu_ms = self._meter.stop(label, now_ms)
        if uuids:
            log.info("gpus_released", label=label, gpus=list(uuids), gpu_ms=gpu_ms)
        return gpu_ms

    def gpu_ms(self, label: str) -> int:
        """The run's GPU time so far."""
        return self._meter.gpu_ms(label)

    async def run(self) -> None:
        """Sample each second while a run holds a GPU, until cancelled. Nobody polls GPUs that nobody uses."""
        while True:
            if not self._leases.any_held:
                self._asked_for = trio.Event()
                await self._asked_for.wait()
            await trio.sleep(SAMPLE_S)
            await self.look()

    # --- what is shown ---------------------------------------------------------------------------------------------
    def told(self) -> tuple[Gpu, ...]:
        """What peers are told: the GPUs that tasks may have, as far as the last look knows."""
        return tuple(told(reading) for reading in self._leases.offered())

    def states(self) -> list[GpuState]:
        return self._leases.states()

    @property
    def trouble(self) -> str:
        """Why there are no GPUs, or fewer than there should be; empty when nothing is wrong."""
        return self._trouble

    def _begin(self, label: str, uuids: tuple[str, ...]) -> None:
        self._meter.start(label, uuids, self._now_ms())
        self._asked_for.set()
        log.info("gpus_leased", label=label, gpus=list(uuids))

    def _why_none(self, wanted: int) -> str:
        states = self.states()
        busy = sum(1 for state in states if state.leased_by)
        withheld = [f"GPU {state.reading.index}: {state.withheld}" for state in states if state.withheld]
        facts = [f"{busy} of {len(states)} are held by other tasks", *withheld]
        if self._trouble:
            facts.append(self._trouble)
        return f"no {wanted} fitting GPUs are free here now ({'; '.join(facts)})"

    def _warn_of_unknown_names(self) -> None:
        unknown = self._leases.unknown_names() if self.states() else []
        if unknown != self._warned:
            self._warned = unknown
            if unknown:
                log.warning("gpus_disabled_unknown", names=unknown, remedy="compare [gpu] disabled with nvidia-smi -L")
