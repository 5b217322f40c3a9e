"""The container executor: one locked-down container a task, through a Docker engine on this machine.

Responsible for the life of a container, bounded at every step: create, start, watch, end, remove. What a container
may do is container.py's; what it has used is cgroups.py's where the engine allows. Knows nothing of how images get
here: it runs what the engine holds, by content id.

The SDK blocks, so every call runs in a worker thread and has a deadline. It is loaded when an engine is first asked
for: machines without one do not pay for it.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
import trio

from nexapod.executor.capture import Capture, reason_text, render
from nexapod.executor.cgroups import Cgroups
from nexapod.executor.cgroups import find as find_cgroups
from nexapod.executor.container import (
    LABEL_HOME,
    NOBODY,
    HostFacts,
    ImageFacts,
    container_name,
    container_settings,
)
from nexapod.executor.contract import (
    EXIT_KILLED,
    Availability,
    BadRun,
    Ended,
    TaskRun,
    outcome_of_exit,
)
from nexapod.executor.watch import (
    MustStop,
    Progress,
    Scratch,
    overrun,
    remove_leftovers,
    wait_must_stop,
)
from nexapod.protocol.types import ExecutorName, Usage

log = structlog.get_logger()
T = TypeVar("T")

CALL_S: Final = 30
"""No engine call may take longer. A busy engine takes seconds to start a container."""
PROBE_S: Final = 5
WAIT_SLICE_S: Final = 20
"""How long one wait for a container's end lasts before the engine is asked anew: the most that a dead engine costs."""
CLEANUP_S: Final = 30.0
THREADS_MAX: Final = 64
IMAGES_MAX: Final = 256
"""How many images' facts are remembered; they never change under one content id."""
STATS_FIRST_S: Final = 1.0
STATS_EVERY_S: Final = 10.0
_NOT_RUNNABLE: Final = (126, 127)
"""What the engine reports when the command itself cannot be executed: the job's mistake, not this machine's."""


class EngineError(Exception):
    """The engine is missing, refused, or did not answer. The text says which, for people."""

    def __init__(self, reason: str, *, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status
        """The HTTP status with which it refused; 0: no answer."""


@dataclass(frozen=True, slots=True)
class _Engine:
    """A connected engine and what it says of itself."""

    client: Any
    version: str
    host: HostFacts
    cgroups: Cgroups | None


@dataclass(frozen=True, slots=True)
class _Exit:
    """A container's end, as the engine tells it."""

    status: int
    oom: bool
    error: str
    log: str


class DockerExecutor:
    """Runs tasks in containers, as many at once as `run` is called."""

    name: ExecutorName = "docker"

    def __init__(self, *, home: str, scratch: Path, url: str | None = None, exact_usage: bool = True) -> None:
        """`home`: hex id of this daemon's home, by which it knows its containers again after a restart. `scratch`: a
        directory of this daemon alone, made here (0700). `url`: the engine's; None is DOCKER_HOST or the usual
        socket. `exact_usage` False: never use cgroups of our own, for engines whose cgroups are managed."""
        container_name(home, "0")  # refuses a home id that cannot name a container
        self._home = home
        self._scratch = scratch
        self._url = url
        self._exact_usage = exact_usage
        self._engine: _Engine | None = None
        self._connecting = trio.Lock()
        self._calls = trio.CapacityLimiter(8)
        self._waits = trio.CapacityLimiter(THREADS_MAX)
        self._images: dict[str, ImageFacts] = {}
        self._live: set[str] = set()
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch.chmod(0o700)

    async def probe(self) -> Availability:
        """Ask the engine what it is, whether it can confine a task, and which images it holds."""
        try:
            engine = await self._connected()
            images = await self._call(_fit_images, engine.client)
        except EngineError as error:
            self._engine = None  # the next to ask connects anew; runs in progress keep the client that they have
            return Availability(False, reason=reason_text(str(error)))
        return Availability(True, engine.version, images=images)

    async def run(self, run: TaskRun, on_progress: Callable[[float], None]) -> Ended:
        """See Executor.run. Whatever the engine does wrong is a try-elsewhere."""
        if run.image is None:
            raise BadRun("a docker run names an image")
        if run.limits.gpus:
            return Ended("try-elsewhere", EXIT_KILLED, reason="GPUs are not given to containers yet")
        name = container_name(self._home, run.label)
        scratch = Scratch(self._scratch, run.label)
        self._live.add(run.label)
        engine: _Engine | None = None
        try:
            engine = await self._connected()
            return await self._run_on(engine, run, name, scratch, Progress(scratch, on_progress))
        except EngineError as error:
            log.warning("container_engine_error", label=run.label, reason=str(error))
            return Ended("try-elsewhere", EXIT_KILLED, reason=reason_text(str(error)))
        finally:
            await self._clean_up(engine, name, run.label, scratch)
            self._live.discard(run.label)

    async def reap_orphans(self) -> int:
        """Remove every container of this home that no run of this process owns, running or not.

        Safe at any time, and worth repeating once an engine that was away is back.
        """
        await self._call(remove_leftovers, self._scratch, frozenset(self._live))
        try:
            engine = await self._connected()
            names = await self._call(_names_of_home, engine.client, self._home)
            live = {container_name(self._home, label) for label in self._live}
            orphans = [name for name in names if name not in live]
            for name in orphans:
                await self._call(_remove, engine.client, name)
        except EngineError as error:
            log.warning("orphans_not_reaped", reason=str(error))
            return 0
        if engine.cgroups:
            await self._call(engine.cgroups.remove_leftovers)
        return len(orphans)

    async def aclose(self) -> None:
        if self._engine:
            self._engine.client.close()
            self._engine = None

    async def _connected(self) -> _Engine:
        async with self._connecting:
            if self._engine is None:
                self._engine = await self._call(_connect, self._url, self._home, self._exact_usage)
            return self._engine

    async def _run_on(
        self,
        engine: _Engine,
        run: TaskRun,
        name: str,
        scratch: Scratch,
        progress: Progress,
    ) -> Ended:
        assert run.image is not None
        if run.image not in self._images:
            if len(self._images) >= IMAGES_MAX:
                self._images.clear()
            self._images[run.image] = await self._call(_image_facts, engine.client, run.image)
        host = engine.host
        if engine.cgroups:
            host = replace(host, cgroup_parent=engine.cgroups.parent(run.label))
        settings = container_settings(run, host, self._images[run.image], home=self._home, scratch=scratch.run)
        await self._call(_prepare, run, scratch, host.user)
        not_started = await self._call(_start, engine.client, name, settings)
        if not_started:
            return not_started
        began = trio.current_time()
        race = await self._race(engine, run, name, scratch, progress)
        wall_ms = round((trio.current_time() - began) * 1000)
        left = await self._call(_exit_of, engine.client, name)
        progress.look()
        used: Usage | None = await self._call(_usage, engine.cgroups, run.label)
        ended = _ended(left, race, run, replace(used or race.sampled, wall_ms=wall_ms))
        too_much = await self._call(overrun, run, scratch)
        return _stopped(too_much, ended) if too_much else ended

    async def _race(
        self,
        engine: _Engine,
        run: TaskRun,
        name: str,
        scratch: Scratch,
        progress: Progress,
    ) -> _Race:
        """Until the container ends, must be stopped, or has had its wall time. Raises EngineError."""
        race = _Race()

        async def wait(scope: trio.CancelScope) -> None:
            try:
                while race.status is None:
                    race.status = await trio.to_thread.run_sync(_wait, engine.client, name, limiter=self._waits)
            except EngineError as error:
                race.error = error
            scope.cancel()

        async def watch(scope: trio.CancelScope) -> None:
            race.stop = await wait_must_stop(run, scratch, progress)
            scope.cancel()

        async def kill_when_cancelled() -> None:
            # A thread that waits cannot be cancelled: it ends because the container does.
            try:
                await trio.sleep_forever()
            finally:
                if race.status is None and race.error is None:
                    race.killed = True
                    await self._kill(engine.client, name)

        async def sample() -> None:
            await trio.sleep(STATS_FIRST_S)
            while True:
                sampled: Usage | None = await self._call(_stats, engine.client, name)
                race.sampled = sampled or race.sampled
                await trio.sleep(STATS_EVERY_S)

        with trio.move_on_after(run.limits.wall_ms / 1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, nursery.cancel_scope)
                nursery.start_soon(watch, nursery.cancel_scope)
                nursery.start_soon(kill_when_cancelled)
                if engine.cgroups is None:
                    nursery.start_soon(sample)
        if race.error:
            raise race.error
        return race

    async def _kill(self, client: Any, name: str) -> None:
        with trio.CancelScope(shield=True):
            try:
                await self._call(_kill, client, name)
            except EngineError as error:
                log.warning("container_not_killed", container=name, reason=str(error))

    async def _clean_up(self, engine: _Engine | None, name: str, label: str, scratch: Scratch) -> None:
        with trio.move_on_after(CLEANUP_S) as deadline:
            deadline.shield = True
            try:
                if engine:
                    await self._call(_remove, engine.client, name)
                    if engine.cgroups:
                        await self._call(engine.cgroups.remove, label)
            except EngineError as error:
                log.warning("container_not_removed", container=name, reason=str(error))
            await self._call(scratch.remove)
        if deadline.cancelled_caught:
            log.error("container_cleanup_timed_out", container=name)

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a blocking function in a thread. The SDK's own timeouts bound it."""
        return await trio.to_thread.run_sync(partial(function, *args), limiter=self._calls)


@dataclass(slots=True)
class _Race:
    """What came first: the exit status, an engine error or a reason to stop. None of them: the wall limit."""

    status: int | None = None
    killed: bool = False
    error: EngineError | None = None
    stop: MustStop | None = None
    sampled: Usage = Usage()  # noqa: RUF009  (frozen)


def _ended(left: _Exit, race: _Race, run: TaskRun, usage: Usage) -> Ended:
    """What a container's end means."""
    if left.oom:
        reason = f"out of its {run.limits.memory} bytes of memory"
        return Ended("memory-limit", EXIT_KILLED, usage, left.log, reason)
    if race.killed:
        stop = race.stop or MustStop("wall-limit", f"not done after {run.limits.wall_ms} ms")
        return _stopped(stop, Ended("failed", EXIT_KILLED, usage, left.log))
    reason = left.error or (f"exit status {left.status}" if left.status else "")
    return Ended(outcome_of_exit(left.status), left.status, usage, left.log, reason_text(reason))


def _stopped(stop: MustStop, ended: Ended) -> Ended:
    return Ended(stop.outcome, EXIT_KILLED, ended.usage, ended.log, reason_text(stop.reason))


# --- what follows blocks, and runs in worker threads ---------------------------------------------------------------


def _asked(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call the SDK: whatever goes wrong is an EngineError."""
    import docker.errors
    import requests.exceptions
    import urllib3.exceptions

    try:
        return function(*args, **kwargs)
    except docker.errors.APIError as error:
        status = error.response.status_code if error.response is not None else 0
        raise EngineError(f"the container engine refused: {error.explanation or error}", status=status) from None
    except (
        docker.errors.DockerException,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
        ValueError,
    ) as error:
        raise EngineError(f"the container engine does not answer: {error}") from None


def _connect(url: str | None, home: str, exact_usage: bool) -> _Engine:
    client = _asked(_client, url)
    try:
        info = _asked(client.info)
        _refuse_unfit(info)
    except EngineError:
        client.close()
        raise
    client.timeout = CALL_S
    cgroups = find_cgroups(info, home) if exact_usage else None
    return _Engine(client, str(info.get("ServerVersion", "?"))[:64], _host_facts(info), cgroups)


def _client(url: str | None) -> Any:
    """Raises whatever the SDK does when nothing answers there."""
    import docker
    import docker.utils

    where = {"base_url": url} if url else docker.utils.kwargs_from_env()
    return docker.APIClient(version="auto", timeout=PROBE_S, max_pool_size=THREADS_MAX, **where)


def _refuse_unfit(info: dict[str, Any]) -> None:
    """Raise EngineError for an engine that cannot keep our promises."""
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    if info.get("OSType") != "linux":
        raise EngineError("the container engine does not run Linux containers: switch it to Linux")
    if not any(option.startswith("name=seccomp") for option in options):
        raise EngineError("the container engine has no seccomp: use a kernel and an engine built with it")
    for remapped in ("name=userns", "name=rootless"):
        if any(option.startswith(remapped) for option in options):
            raise EngineError(f"the container engine remaps users ({remapped[5:]}), which is not supported yet")


def _host_facts(info: dict[str, Any]) -> HostFacts:
    uid, gid = os.geteuid(), os.getegid()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    profile = json.loads(files("nexapod.executor").joinpath("seccomp.json").read_text())
    return HostFacts(
        cpus=max(1, int(info.get("NCPU") or 1)),
        nofile_max=hard if hard > 0 else 1 << 20,
        user=NOBODY if uid == 0 else (uid, gid),
        init=bool(info.get("InitBinary")),
        seccomp=json.dumps(profile, separators=(",", ":")),
    )


def _fit_images(client: Any) -> tuple[str, ...]:
    """The ids of the images of an engine that still answers, and still can confine a task."""
    _refuse_unfit(_asked(client.info))
    return tuple(sorted(set(_asked(client.images, quiet=True))))


def _image_facts(client: Any, image: str) -> ImageFacts:
    try:
        config = _asked(client.inspect_image, image).get("Config") or {}
    except EngineError as error:
        if error.status == 404:
            raise EngineError(f"this machine does not hold the image {image}", status=404) from None
        raise
    return ImageFacts(volumes=tuple(sorted(config.get("Volumes") or ())))


def _prepare(run: TaskRun, scratch: Scratch, user: tuple[int, int]) -> None:
    """Give the task's user what it may write to. The directories stay closed to everyone else (0700)."""
    owner = user if os.geteuid() == 0 else None
    try:
        scratch.make(owner)
        if owner:
            for top in (run.output, run.checkpoint):
                _chown_tree(top, owner)
    except OSError as error:
        raise EngineError(f"the directories of the task cannot be prepared: {error}") from None


def _chown_tree(top: Path, owner: tuple[int, int]) -> None:
    os.chown(top, *owner)
    top.chmod(0o700)
    for directory, folders, names, fd in os.fwalk(top):
        del directory
        for name in (*folders, *names):
            os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)


def _start(client: Any, name: str, settings: dict[str, Any]) -> Ended | None:
    """Create and start. An Ended when the command cannot be executed, which is the job's doing."""
    _asked(client.create_container_from_config, settings, name)
    try:
        _asked(client.start, name)
    except EngineError as refused:
        state = _asked(client.inspect_container, name)["State"]
        if state.get("ExitCode") in _NOT_RUNNABLE:
            return Ended("failed", int(state["ExitCode"]), reason=reason_text(str(state.get("Error") or refused)))
        raise
    return None


def _wait(client: Any, name: str) -> int | None:
    """The exit status, or None when it is still running after a slice."""
    try:
        return int(_asked(client.wait, name, timeout=WAIT_SLICE_S)["StatusCode"])
    except EngineError as error:
        if error.status:
            raise
        # The SDK shows its own timeout as a lost connection. Whether the engine lives, the next line finds out.
        state = _asked(client.inspect_container, name)["State"]
        return None if state.get("Running") else int(state.get("ExitCode", EXIT_KILLED))


def _kill(client: Any, name: str) -> None:
    try:
        _asked(client.kill, name)
    except EngineError as error:
        if error.status not in (404, 409):  # gone, or already over
            raise


def _exit_of(client: Any, name: str) -> _Exit:
    state = _asked(client.inspect_container, name)["State"]
    return _Exit(
        status=int(state.get("ExitCode", EXIT_KILLED)),
        oom=bool(state.get("OOMKilled")),
        error=str(state.get("Error") or ""),
        log=_asked(_read_log, client, name),
    )


def _read_log(client: Any, name: str) -> str:
    printed = Capture()
    for piece in client.logs(name, stdout=True, stderr=True, stream=True, follow=False):
        printed.write(piece)
    return render(printed.head, printed.tail, printed.total)


def _usage(cgroups: Cgroups | None, label: str) -> Usage | None:
    return cgroups.usage(label) if cgroups else None


def _stats(client: Any, name: str) -> Usage | None:
    """What the engine has last counted; it is behind by up to a second, and peak memory is known on cgroup v1 only."""
    try:
        stats = _asked(client.stats, name, stream=False)
    except EngineError as error:
        log.warning("container_stats_missing", container=name, reason=str(error))
        return None
    cpu = int(stats.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0))
    memory = stats.get("memory_stats", {})
    return Usage(cpu_ms=cpu // 1_000_000, peak_memory=int(memory.get("max_usage") or memory.get("usage") or 0))


def _names_of_home(client: Any, home: str) -> list[str]:
    found = _asked(client.containers, all=True, filters={"label": f"{LABEL_HOME}={home}"})
    return [str(container["Names"][0]).lstrip("/") for container in found if container.get("Names")]


def _remove(client: Any, name: str) -> None:
    try:
        _asked(client.remove_container, name, v=True, force=True)
    except EngineError as error:
        if error.status != 404:
            raise
