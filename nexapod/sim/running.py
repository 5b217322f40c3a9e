"""Tasks on simulated machines: how long they take, what they keep half-way, what comes of them.

A machine's disk outlives its process, so a task that a crash interrupted goes on from what it had kept. Knows nothing
of messages: it is given a world's clock, and enters events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from nexapod.protocol.events import Checkpointed, Finished, Progressed, Run, Vacated
from nexapod.protocol.types import BlobRef, File, Millis, RunResult
from nexapod.sim.truth import continued_result, honest_result

if TYPE_CHECKING:
    from nexapod.sim.world import Box, World

INPUT_WAIT_MS: Final = 5_000
"""How long a task waits for an input that nobody has."""
FETCH_MS: Final = 30
GATHER_MS: Final = 200
"""How long, at the most, it takes to look at what a task has left."""
TOLD_FROM_MS: Final = 1_000
"""Tasks that take longer say how far they are, half-way."""
KEPT_PATH: Final = "state"


@dataclass(frozen=True, slots=True)
class Kept:
    """What lies in a task's checkpoint folder on one machine."""

    blob: BlobRef
    continued: bool
    """Whether it rests on what another worker had kept."""


class Running:
    """All tasks that run in a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def start(self, box: Box, effect: Run) -> None:
        """What the effect asks for."""
        world = self._world
        box.run_number += 1
        number = box.run_number
        box.running[effect.task] = number
        world.checkers.started(box)
        job = world.specs.get(effect.task.job)
        assert job is not None, "a job that nobody submitted runs"
        jitter = box.rng.between(700, 1300)
        wall = max(1, job.plan.task_ms * jitter // box.plan.speed)
        missing = [ref for ref in effect.spec.blobs if ref not in box.blobs]
        if any(world.holder(box, ref, effect.sources) is None for ref in missing):
            result = RunResult("try-elsewhere", 69, reason="an input cannot be had")
            self._later(box, effect, number, INPUT_WAIT_MS, lambda: self._end(box, effect, result))
            return
        box.blobs.update(missing)
        self._begin(box, effect, number, wall, FETCH_MS if missing else 0)

    def _begin(self, box: Box, effect: Run, number: int, wall: Millis, delay: Millis) -> None:
        kept = self._take_up(box, effect)
        if kept is None:
            result = honest_result(effect.task, effect.spec, wall)
        else:
            wall = max(1, wall // 2)
            result = continued_result(effect.task, effect.spec, kept.blob, wall)
            result = replace(result, continued=kept.continued)
        if box.liar is not None:
            claimed = box.liar.runs(effect.task, effect.spec, result)
            if claimed is None:
                return
            result, wall = claimed
        if kept is None and effect.spec.run.checkpoint == "shared":
            self._later(box, effect, number, delay + wall // 2, lambda: self._keep(box, effect))
        if delay + wall > TOLD_FROM_MS:
            told = Progressed(effect.task, 500)
            self._later(box, effect, number, delay + wall // 2, lambda: self._world.enter(box, told))
        gather = min(wall // 4, GATHER_MS)
        self._later(box, effect, number, delay + wall - gather, lambda: self._vacate(box, effect))
        self._later(box, effect, number, delay + wall, lambda: self._end(box, effect, result))

    def _vacate(self, box: Box, effect: Run) -> None:
        """The program has ended; what it left is being looked at."""
        box.leaving.add(effect.task)
        self._world.enter(box, Vacated(effect.task))

    def _take_up(self, box: Box, effect: Run) -> Kept | None:
        """What is there to go on from: what this machine had kept itself, or what the effect names and can be had."""
        kept = box.kept.get(effect.task)
        if kept is None and effect.checkpoint:
            ref = effect.checkpoint[0].blob
            if ref in box.blobs or self._world.holder(box, ref, effect.sources) is not None:
                box.blobs.add(ref)
                kept = box.kept[effect.task] = Kept(ref, True)
        return kept

    def _keep(self, box: Box, effect: Run) -> None:
        ref = self._world.keeps(box, effect.task)
        box.kept[effect.task] = Kept(ref, False)
        box.blobs.add(ref)
        self._world.enter(box, Checkpointed(effect.task, (File(KEPT_PATH, ref),), False))

    def _end(self, box: Box, effect: Run, result: RunResult) -> None:
        del box.running[effect.task]
        box.leaving.discard(effect.task)
        box.kept.pop(effect.task, None)
        box.blobs.update(file.blob for file in result.files)
        self._world.enter(box, Finished(effect.task, result))

    def _later(self, box: Box, effect: Run, number: int, delay: Millis, act: Callable[[], None]) -> None:
        """Do something for a task after a while if it still runs; on a machine that stands still, once it goes on."""
        boot = box.boot
        world = self._world

        def due() -> None:
            if box.boot != boot or box.node is None or box.running.get(effect.task) != number:
                return
            if box.paused_until > world.now:
                world.at(box.paused_until, due)
                return
            act()

        world.at(world.now + delay, due)
