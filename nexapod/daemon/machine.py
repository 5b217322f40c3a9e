"""This machine as a profile: probes hardware, GPUs and executors now and then, and tells the core when it changed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog
import trio

from nexapod.config.gpus import GpuSettings
from nexapod.daemon.gpu_desk import GpuDesk
from nexapod.executor.contract import Availability, Executor
from nexapod.profile.hardware import hardware
from nexapod.protocol import types
from nexapod.protocol.events import Event, ProfileChanged
from nexapod.protocol.limits import ADDRS_MAX, PROTOCOL_MINOR
from nexapod.protocol.types import Profile
from nexapod.version import __version__

log = structlog.get_logger()

PROBE_S = 60.0
IMAGES_MAX = 64
DISK_STEP = 1 << 30
"""Free disk is told in whole gibibytes: a profile that changes with every file would be said again and again."""


class Machine:
    """Keeps the profile true."""

    def __init__(
        self,
        *,
        network: str,
        home: Path,
        executors: Mapping[str, Executor],
        addrs: Callable[[], Sequence[str]],
        slots: int | None,
        work: bool,
        post: Callable[[Event], None],
        images: Callable[[], Awaitable[tuple[str, ...]]],
        registries: Sequence[str],
        gpus: GpuDesk | None = None,
    ) -> None:
        """`images`: what others may know of the container images here. `gpus`: where tasks get theirs; a desk that
        lends all of them when not given."""
        self._images = images
        self._registries = tuple(registries)
        self._network = network
        self._home = home
        self._executors = executors
        self._addrs = addrs
        self._slots = slots
        self._work = work
        self._post = post
        self.gpus = gpus or GpuDesk(GpuSettings())
        self.profile: Profile | None = None
        self.found: dict[str, Availability] = {}
        """What the last probe of each executor said."""

    async def probe(self) -> None:
        """Look at everything once; a profile that differs is handed to the core."""
        machine = await trio.to_thread.run_sync(hardware, self._home)
        await self.gpus.look()
        for name, executor in self._executors.items():
            self.found[name] = await executor.probe()
        usable = {name: found for name, found in self.found.items() if found.ok}
        slots = (self._slots if self._slots is not None else machine.cpus) if self._work and usable else 0
        profile = Profile(
            network=self._network,
            seq=0,
            stamp=0,
            agent=f"nexapod/{__version__}",
            minor=PROTOCOL_MINOR,
            os=machine.os,
            arch=machine.arch,
            cpu_model=machine.cpu_model,
            cpus=machine.cpus,
            memory=machine.memory,
            disk_free=machine.disk_free // DISK_STEP * DISK_STEP,
            gpus=self.gpus.told(),
            executors=tuple(types.Executor(self._executors[n].name, f.version[:100]) for n, f in usable.items()),
            images=(await self._images())[:IMAGES_MAX] if "docker" in usable else (),
            registries=self._registries if "docker" in usable else (),
            addrs=tuple(self._addrs())[:ADDRS_MAX],
            slots=slots,
            reachable=bool(self._addrs()),
        )
        if profile != self.profile:
            self.profile = profile
            # Wall clock: `stamp` only makes `seq` rise across a lost store, and shows people when it was made.
            self._post(ProfileChanged(replace(profile, stamp=int(time.time() * 1000))))

    async def run(self) -> None:
        """Probe again and again, until cancelled. The first probe is the caller's."""
        while True:
            await trio.sleep(PROBE_S)
            await self.probe()
