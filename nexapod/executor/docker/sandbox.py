"""The container executor: one locked-down container a task, through a container engine on this machine.

Responsible for the engine's connection, for which runs there are, and for leaving nothing behind. The life of one
container is life.py's; what a container may do is settings.py's; what the engine is fit for, facts.py's; what it
is asked, engine.py's; what a container has used, cgroups.py's where the engine allows. Knows nothing of how images get
here: it runs what the engine holds, by content id.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import structlog
import trio

from nexapod.executor.capture import reason_text
from nexapod.executor.contract import EXIT_KILLED, Availability, BadRun, Ended, OnReport, TaskRun
from nexapod.executor.docker.cgroups import Cgroups
from nexapod.executor.docker.cgroups import find as find_cgroups
from nexapod.executor.docker.engine import Engine, EngineError, connect
from nexapod.executor.docker.guarding import Guard
from nexapod.executor.docker.life import AWAY_S, Life, Threads, has_outcome
from nexapod.executor.docker.settings import ImageFacts, UnfitImage, container_name, container_settings
from nexapod.executor.watch import Scratch, remove_all, set_aside
from nexapod.protocol.primitives import ExecutorName

log = structlog.get_logger()

EXIT_NOT_STARTED = 125
"""As container engines have it: not even the command was tried."""
CLEANUP_S = 90.0
"""Longer than three engine calls may take."""
IMAGES_MAX = 256
"""How many images' facts are remembered; they never change under one content id."""


class DockerExecutor:
    """Runs tasks in containers, as many at once as `run` is called."""

    name: ExecutorName = "docker"

    def __init__(
        self,
        *,
        home: str,
        scratch: Path,
        url: str | None = None,
        exact_usage: bool = True,
        engine_away_s: float = AWAY_S,
        guarded: bool = False,
    ) -> None:
        """`home`: hex id of this daemon's home, by which it knows its containers again after a restart. `scratch`: a
        directory of this daemon alone, made here (0700). `url`: the engine's; None is DOCKER_HOST or the usual
        socket. `exact_usage` False: never use cgroups of our own, for engines whose cgroups are managed.
        `engine_away_s`: how long an engine may be away while a task runs. `guarded`: should this process be killed, its
        containers are frozen, and removed when no other takes them up (guard.py)."""
        container_name(home, "0")  # refuses a home id that cannot name a container
        self._home = home
        self._scratch = scratch
        self._url = url
        self._exact_usage = exact_usage
        self._away_s = engine_away_s
        self._engine: Engine | None = None
        self._cgroups: Cgroups | None = None
        self._connecting = trio.Lock()
        self._threads = Threads(trio.CapacityLimiter(8), trio.CapacityLimiter(math.inf))
        self._images: dict[str, ImageFacts] = {}
        self._lives: dict[str, Life | None] = {}
        self._unremoved: set[str] = set()
        """Labels of ended runs whose containers the engine did not live to remove."""
        self._guard = Guard(scratch.with_name(f"{scratch.name}.lock"), home, scratch, url) if guarded else None
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch.chmod(0o700)

    async def probe(self) -> Availability:
        """Ask the engine what it is, whether it can confine a task, and which images it holds."""
        try:
            engine = await self._connected()
            await self._threads.call(engine.check)
            images = await self._threads.call(engine.images)
            await self._remove_left(engine)
            if self._guard and self._lives:
                await self._guard.stand()  # it may have been killed
        except EngineError as error:
            self._engine = None  # the next to ask connects anew; runs in progress keep the client that they have
            return Availability(False, reason=reason_text(str(error)))
        return Availability(True, engine.facts.version, images=images)

    async def run(self, run: TaskRun, on_report: OnReport) -> Ended:
        """See Executor.run. Whatever the engine does wrong is a try-elsewhere."""
        if run.image is None:
            raise BadRun("a docker run names an image")
        if run.label in self._lives:
            raise BadRun(f"{run.label} runs already")
        scratch = Scratch(self._scratch, run.label)
        self._lives[run.label] = None
        engine: Engine | None = None
        try:
            engine = await self._connected()
            if self._guard:
                await self._guard.stand()
            life = await self._life(engine, run, scratch, on_report)
            self._lives[run.label] = life
            return await life.go()
        except UnfitImage as error:
            return Ended("failed", EXIT_NOT_STARTED, reason=reason_text(str(error)))
        except EngineError as error:
            log.warning("container_engine_error", label=run.label, reason=str(error))
            return Ended("try-elsewhere", EXIT_KILLED, reason=reason_text(str(error)))
        finally:
            await self._clean_up(engine, run.label, scratch)
            del self._lives[run.label]

    async def pause(self, label: str) -> bool:
        return await self._change(label, paused=True)

    async def resume(self, label: str) -> bool:
        return await self._change(label, paused=False)

    async def survivors(self) -> frozenset[str]:
        """Those that can be looked at now: without an engine, nobody knows. Whether one is what its run would begin
        is seen in `run`, which begins anew otherwise."""
        try:
            engine = await self._connected()
            runs = await self._threads.call(engine.runs)
            labels = [label for name, label in runs.items() if name == container_name(self._home, label)]
            return frozenset([label for label in labels if await self._survives(engine, label)])
        except EngineError as error:
            log.warning("survivors_unknown", reason=str(error))
            return frozenset()

    async def reap_orphans(self, keep: frozenset[str] = frozenset()) -> int:
        """Remove every container of this home that no run of this process owns, running or not.

        Safe at any time, and worth repeating once an engine that was away is back.
        """
        # In one step, before a run can begin: it may even have the label of what is left.
        left = set_aside(self._scratch, keep | self._lives.keys())
        await self._threads.call(remove_all, left)
        try:
            engine = await self._connected()
            runs = await self._threads.call(engine.runs)
            kept = {container_name(self._home, label) for label in keep | self._lives.keys()}
            orphans = [name for name in runs if name not in kept]
            for name in orphans:
                await self._threads.call(engine.remove, name)
        except EngineError as error:
            log.warning("orphans_not_reaped", reason=str(error))
            return 0
        if self._cgroups:
            await self._threads.call(self._cgroups.remove_leftovers)
        return len(orphans)

    async def aclose(self) -> None:
        if self._guard:
            await trio.to_thread.run_sync(partial(self._guard.close, done=not self._unremoved))
        if self._engine:
            self._engine.close()
            self._engine = None

    async def _connected(self) -> Engine:
        async with self._connecting:
            if self._engine is None:
                engine = await self._threads.call(connect, self._url, self._home)
                self._cgroups = find_cgroups(dict(engine.info), self._home) if self._exact_usage else None
                self._engine = engine
            return self._engine

    async def _life(self, engine: Engine, run: TaskRun, scratch: Scratch, on_report: OnReport) -> Life:
        """What this run is to be. Raises EngineError, and BadRun."""
        assert run.image is not None
        if run.image not in self._images:
            if len(self._images) >= IMAGES_MAX:
                self._images.clear()
            self._images[run.image] = await self._threads.call(engine.image, run.image)
        parent = self._cgroups.parent(run.label) if self._cgroups else ""
        host = await self._threads.call(engine.host, self._scratch, parent)
        settings = container_settings(run, host, self._images[run.image], home=self._home, scratch=scratch.run)
        name = container_name(self._home, run.label)
        return Life(engine, self._cgroups, self._threads, run, name, settings, scratch, on_report, away_s=self._away_s)

    async def _change(self, label: str, *, paused: bool) -> bool:
        life = self._lives.get(label)
        if life is None:
            return False
        try:
            return await (life.pause() if paused else life.resume())
        except EngineError as error:
            log.warning("container_not_changed", label=label, paused=paused, reason=str(error))
            return False

    async def _survives(self, engine: Engine, label: str) -> bool:
        if label in self._lives or not Scratch(self._scratch, label).run.is_dir():
            return False
        return has_outcome(await self._threads.call(engine.look, container_name(self._home, label)))

    async def _clean_up(self, engine: Engine | None, label: str, scratch: Scratch) -> None:
        with trio.move_on_after(CLEANUP_S) as deadline:
            deadline.shield = True
            self._unremoved.add(label)
            try:
                if engine:
                    await self._remove(engine, label)
            except EngineError as error:
                log.warning("container_not_removed", label=label, reason=str(error))
            await self._threads.call(scratch.remove)
        if deadline.cancelled_caught:
            log.error("container_cleanup_timed_out", label=label)

    async def _remove(self, engine: Engine, label: str) -> None:
        await self._threads.call(engine.remove, container_name(self._home, label))
        if self._cgroups:
            await self._threads.call(self._cgroups.remove, label)
        self._unremoved.discard(label)

    async def _remove_left(self, engine: Engine) -> None:
        """Once the engine is back: what could not be removed while it was away. Raises EngineError."""
        for label in sorted(self._unremoved - self._lives.keys()):
            await self._remove(engine, label)
