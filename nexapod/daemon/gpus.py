"""Which task holds which GPU, and how long the GPUs that it holds were busy.

Pure and synchronous: readings and the time come in as values. Knows neither NVML nor what a task does with a GPU; a
GPU's UUID is its name here, since an index may change with every start of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from nexapod.config.gpus import GpuSettings
from nexapod.profile.gpus import GpuReading
from nexapod.protocol.rules.matching import capability as capability_order

BUSY_UTILISATION_PERCENT: Final = 25
BUSY_MEMORY_BYTES: Final = 1 << 30
"""From here on somebody else uses the GPU. A desktop and its windows stay below both, most of the time."""
SETTLE_MS: Final = 2_000
"""For so long after a task the utilisation may still be that task's: NVML looks back for up to a second."""
SAMPLE_GAP_MS_MAX: Final = 5_000
"""Of a longer time between two samples no more than this is counted: nobody saw what happened in the rest."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU as it stands here."""

    reading: GpuReading
    leased_by: str
    """The label of the run that holds it; empty: none."""
    withheld: str
    """Why no task is given it, for people; empty: it is offered."""


class GpuLeases:
    """Never the same GPU to two runs. A run keeps its GPUs until it gives them back, whatever the readings say."""

    def __init__(self, settings: GpuSettings) -> None:
        self._settings = settings
        self._readings: dict[str, GpuReading] = {}
        self._withheld: dict[str, str] = {}
        self._leases: dict[str, tuple[str, ...]] = {}
        self._released_at: dict[str, int] = {}

    def update(self, readings: Sequence[GpuReading], now_ms: int) -> None:
        """What the GPUs say now. One that is no longer among them is offered to nobody until it is back."""
        self._readings = {reading.uuid: reading for reading in readings}
        self._released_at = {u: at for u, at in self._released_at.items() if now_ms - at < SETTLE_MS}
        holders = self._holders()
        self._withheld = {
            reading.uuid: _why_withheld(
                reading,
                self._settings,
                ours=reading.uuid in holders,
                settling=reading.uuid in self._released_at,
            )
            for reading in readings
        }

    def lease(
        self, label: str, count: int, *, memory_bytes: int = 0, model: str = "", capability: str = ""
    ) -> tuple[str, ...] | None:
        """`count` free GPUs that fit, for the run of this label; None when there are not so many: then it holds none.

        The least that fits goes first, so that a large one stays free for who needs it. What fits is the rule by
        which the task came here (protocol/v3/rules/matching.py).
        """
        assert label not in self._leases, f"{label} holds GPUs already"
        holders = self._holders()
        fitting = [
            state.reading
            for state in self.states()
            if not state.withheld
            and state.reading.uuid not in holders
            and (state.reading.memory_bytes or 0) >= memory_bytes
            and model.lower() in state.reading.model.lower()
            and capability_order(state.reading.capability) >= capability_order(capability)
        ]
        if len(fitting) < count:
            return None
        chosen = tuple(reading.uuid for reading in sorted(fitting, key=_least_first)[:count])
        if chosen:
            self._leases[label] = chosen
        return chosen

    def hold(self, label: str, uuids: Sequence[str]) -> bool:
        """Take exactly these, for a run that a former daemon gave them to and that still goes on: whatever is read of
        them. False, and nothing is held, when another run has one of them."""
        assert label not in self._leases, f"{label} holds GPUs already"
        if not self._holders().keys().isdisjoint(uuids):
            return False
        if uuids:
            self._leases[label] = tuple(uuids)
        return True

    def release(self, label: str, now_ms: int) -> tuple[str, ...]:
        """What the run held is free again; a run that holds nothing gives nothing back."""
        uuids = self._leases.pop(label, ())
        self._released_at |= dict.fromkeys(uuids, now_ms)
        return uuids

    def held(self, label: str) -> tuple[str, ...]:
        return self._leases.get(label, ())

    @property
    def any_held(self) -> bool:
        return bool(self._leases)

    def states(self) -> list[GpuState]:
        """Every GPU that was read, in NVML's order."""
        holders = self._holders()
        ordered = sorted(self._readings.values(), key=lambda reading: (reading.index, reading.uuid))
        return [GpuState(r, holders.get(r.uuid, ""), self._withheld[r.uuid]) for r in ordered]

    def offered(self) -> list[GpuReading]:
        """Those that tasks may have, leased or free: what peers are told of."""
        return [state.reading for state in self.states() if not state.withheld]

    def unknown_names(self) -> list[str | int]:
        """What the owner disabled and no GPU answers to: probably misspelt."""
        names = {reading.uuid.lower() for reading in self._readings.values()}
        indices = {reading.index for reading in self._readings.values()}
        return sorted(self._settings.disabled - names - indices, key=str)

    def _holders(self) -> dict[str, str]:
        return {uuid: label for label, uuids in self._leases.items() for uuid in uuids}


def _least_first(reading: GpuReading) -> tuple[object, ...]:
    return (reading.memory_bytes or 0, capability_order(reading.capability), reading.index, reading.uuid)


def _why_withheld(reading: GpuReading, settings: GpuSettings, *, ours: bool, settling: bool) -> str:
    """`ours`: what uses it is a task of this daemon. `settling`: what used it a moment ago was."""
    if not settings.enabled or not settings.disabled.isdisjoint((reading.uuid.lower(), reading.index)):
        return "its owner does not lend it ([gpu] in config.toml)"
    if reading.mig:
        return "it is split into MIG instances, and only whole GPUs are given to tasks"
    if ours:
        return ""
    hottest = settings.temperature_max_c
    if hottest is not None and reading.temperature_c is not None and reading.temperature_c > hottest:
        return f"it is too hot: {reading.temperature_c} C, where at most {hottest} are allowed"
    return _used_by_others(reading, settling=settling)


def _used_by_others(reading: GpuReading, *, settling: bool) -> str:
    """Of a GPU that no task holds, all that is used is used by others."""
    memory, load = reading.memory_used_bytes, reading.utilisation_percent
    if memory is not None and memory >= BUSY_MEMORY_BYTES:
        return f"others use it: {memory >> 20} MiB of its memory are taken"
    if not settling and load is not None and load >= BUSY_UTILISATION_PERCENT:
        return f"others use it: it is busy for {load} % of the time"
    return ""


@dataclass(slots=True)
class _Meter:
    sampled_at_ms: int
    busy: dict[str, float]
    """Milliseconds of each GPU."""
    load_percent: dict[str, int] = field(default_factory=dict)
    """As last seen."""


class GpuMeter:
    """GPU time of runs: for each GPU that a run holds, its utilisation over the time that it is held, added up.

    It is the whole utilisation of the GPU. That is the run's own, since a GPU is leased to one run and not leased while
    others use it; if others start to use it meanwhile, their part is in it too. Utilisation is the time in which at
    least one kernel ran, not how much of the GPU it filled. A sample speaks for the time before it; a GPU that does
    not tell its utilisation counts nothing.
    """

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}

    def start(self, label: str, uuids: Sequence[str], now_ms: int) -> None:
        if uuids:
            self._meters[label] = _Meter(now_ms, dict.fromkeys(uuids, 0.0))

    def sample(self, readings: Sequence[GpuReading], now_ms: int) -> None:
        """What the GPUs say now; to be called each second while a run holds any."""
        loads = {r.uuid: r.utilisation_percent for r in readings if r.utilisation_percent is not None}
        for meter in self._meters.values():
            _count(meter, loads, now_ms)

    def gpu_ms(self, label: str) -> int:
        """So far; 0 for a run that holds no GPU."""
        meter = self._meters.get(label)
        return round(sum(meter.busy.values())) if meter else 0

    def stop(self, label: str, now_ms: int) -> int:
        """The run has ended: its GPU time. The time since the last sample counts like that sample."""
        meter = self._meters.get(label)
        if meter is None:
            return 0
        _count(meter, meter.load_percent, now_ms)
        used = self.gpu_ms(label)
        del self._meters[label]
        return used


def _count(meter: _Meter, loads: Mapping[str, int], now_ms: int) -> None:
    passed = min(max(0, now_ms - meter.sampled_at_ms), SAMPLE_GAP_MS_MAX)
    for uuid in meter.busy:
        meter.busy[uuid] += passed * loads.get(uuid, 0) / 100
    meter.load_percent = {uuid: loads[uuid] for uuid in meter.busy if uuid in loads}
    meter.sampled_at_ms = max(now_ms, meter.sampled_at_ms)
