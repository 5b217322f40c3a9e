"""Tasks on simulated machines: how long they take, what they keep half-way, what comes of them.

A machine's disk outlives its process, so a task that a crash interrupted goes on from what it had kept. Knows nothing
of messages: it is given a world's clock, and enters events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nexapod.protocol.events import Checkpointed, Finished, Progressed, Run, Vacated
from nexapod.protocol.primitives import File, Millis
from nexapod.protocol.runs import RunResult
from nexapod.sim.machine import Kept, Machine
from nexapod.sim.truth import continued_result, honest_result

if TYPE_CHECKING:
    from nexapod.sim.world import World

GATHER_MS: Final = 200
"""How long, at the most, it takes to look at what a task has left."""
PROGRESS_FROM_MS: Final = 1_000
"""Tasks that take longer say how far they are, half-way."""
KEPT_PATH: Final = "state"


class Running:
    """All tasks that run in a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def start(self, machine: Machine, effect: Run) -> None:
        """What the effect asks for."""
        world = self._world
        machine.run_number += 1
        number = machine.run_number
        machine.running[effect.task] = number
        world.checkers.started(machine, effect)
        job = world.specs[effect.task.job]
        jitter = machine.rng.between(700, 1300)
        wall = max(1, job.plan.task_ms * jitter // machine.plan.speed)
        missing = [ref for ref in effect.spec.blobs if ref not in machine.blobs]
        if missing:
            result = RunResult("try-elsewhere", 69, reason="an input is not here")
            self._later(machine, effect, number, 10, lambda: self._end(machine, effect, result))
            return
        self._begin(machine, effect, number, wall)

    def _begin(self, machine: Machine, effect: Run, number: int, wall: Millis) -> None:
        kept = self._resume(machine, effect)
        name = str(machine.index)
        if kept is None:
            result = honest_result(effect.task, effect.spec, wall, name)
        else:
            wall = max(1, wall // 2)
            result = continued_result(effect.task, effect.spec, kept.blob, wall, name)
            result = replace(result, continued=kept.continued)
        if machine.liar is not None:
            claimed = machine.liar.runs(effect.task, effect.spec, result)
            if claimed is None:
                return
            result, wall = claimed
        if kept is None and effect.spec.run.checkpoint == "shared":
            self._later(machine, effect, number, wall // 2, lambda: self._keep(machine, effect))
        if wall > PROGRESS_FROM_MS:
            half_way = Progressed(effect.task, 500)
            self._later(machine, effect, number, wall // 2, lambda: self._world.enter(machine, half_way))
        gather = min(wall // 4, GATHER_MS)
        self._later(machine, effect, number, wall - gather, lambda: self._vacate(machine, effect))
        self._later(machine, effect, number, wall, lambda: self._end(machine, effect, result))

    def _vacate(self, machine: Machine, effect: Run) -> None:
        """The program has ended; what it left is being looked at."""
        machine.vacated.add(effect.task)
        self._world.enter(machine, Vacated(effect.task))

    def _resume(self, machine: Machine, effect: Run) -> Kept | None:
        """What is there to go on from: what this machine had kept itself, or what the effect names and can be had."""
        kept = machine.kept.get(effect.task)
        if kept is None and effect.checkpoint:
            ref = effect.checkpoint[0].blob
            if ref in machine.blobs or self._world.holder(machine, ref, effect.sources) is not None:
                machine.blobs.add(ref)
                kept = machine.kept[effect.task] = Kept(ref, True)
        return kept

    def _keep(self, machine: Machine, effect: Run) -> None:
        ref = self._world.keeps(machine, effect.task)
        machine.kept[effect.task] = Kept(ref, False)
        machine.blobs.add(ref)
        self._world.enter(machine, Checkpointed(effect.task, (File(KEPT_PATH, ref),), False))

    def _end(self, machine: Machine, effect: Run, result: RunResult) -> None:
        del machine.running[effect.task]
        machine.vacated.discard(effect.task)
        machine.kept.pop(effect.task, None)
        machine.blobs.update(file.blob for file in result.files)
        self._world.enter(machine, Finished(effect.task, result))

    def _later(self, machine: Machine, effect: Run, number: int, delay: Millis, act: Callable[[], None]) -> None:
        """Do something for a task after a while if it still runs; on a machine that sleeps, once it is awake."""
        boot = machine.boot
        world = self._world

        def due() -> None:
            if machine.boot != boot or machine.node is None or machine.running.get(effect.task) != number:
                return
            if machine.asleep_until > world.now:
                world.at(machine.asleep_until, due)
                return
            act()

        world.at(world.now + delay, due)
