"""The calls of a container engine's API, each with a deadline; blocking, for worker threads.

Responsible for turning whatever the SDK does into values and one kind of error. Works with Docker and with Podman's
service of the same API. Knows nothing of tasks, and decides nothing about them. The SDK is loaded when an engine is
first asked for: machines without one do not pay for it.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from nexapod.executor.docker.facts import EngineFacts, Process, Unfit, judge
from nexapod.executor.docker.settings import LABEL_HOME, LABEL_RUN, HostFacts, ImageFacts
from nexapod.protocol.types import Usage

log = structlog.get_logger()
T = TypeVar("T")

CALL_S: Final = 30
"""No engine call may take longer. A busy engine takes seconds to start a container."""
PROBE_S: Final = 5
WAIT_SLICE_S: Final = 20
"""How long one wait for a container's end lasts before the engine is asked anew: the most that a dead engine costs."""
CONNECTIONS_MAX: Final = 64
LOG_BYTES_PER_S: Final = 32 << 20
"""No more of what a task prints is taken in a second: it waits, instead of costing the engine and us a core each."""
EXIT_UNKNOWN: Final = 255
_FRAME_HEADER: Final = 8
_PIECE_BYTES: Final = 64 * 1024
_STDOUT: Final = 1
_PODMAN_INIT: Final = ("/usr/libexec/podman/catatonit", "/usr/bin/catatonit", "/usr/local/bin/catatonit")


class EngineError(Exception):
    """The engine is missing, refused, or did not answer. The text says which, for people."""

    def __init__(self, reason: str, *, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status
        """The HTTP status with which it refused; 0: no answer."""


@dataclass(frozen=True, slots=True)
class Container:
    """How a container stands."""

    id: str
    status: str
    """`created`, `running`, `paused`, `exited`, ..."""
    exit: int
    oom: bool
    error: str
    labels: Mapping[str, str]
    image: str
    started: float
    """Seconds since 1970; 0: never."""
    finished: float

    @property
    def alive(self) -> bool:
        return self.status in ("running", "paused", "restarting", "stopping")

    @property
    def over(self) -> bool:
        return self.status in ("exited", "stopped", "dead") and self.started > 0


class Stream:
    """What a container prints, in pieces, until it ends or `close` is called from another thread."""

    def __init__(self, response: Any) -> None:
        self._raw = response.raw
        self._response = response

    def __iter__(self) -> Iterator[tuple[bool, bytes]]:
        """(whether it is the standard output, bytes). Raises EngineError when the engine breaks off."""
        try:
            while len(header := _asked(self._raw.read, _FRAME_HEADER)) == _FRAME_HEADER:
                left = int.from_bytes(header[4:], "big")
                while left and (piece := _asked(self._raw.read, min(left, _PIECE_BYTES))):
                    left -= len(piece)
                    yield header[0] == _STDOUT, piece
        finally:
            self._response.close()

    def close(self) -> None:
        """Make the reader end."""
        try:
            self._raw.shutdown()
        except (OSError, ValueError, RuntimeError, AttributeError):
            self._response.close()  # it has ended, or this release of the library cannot: the reader's next read ends


class Engine:
    """A connected engine. `home`: the hex id by which containers of this daemon are labelled."""

    def __init__(self, client: Any, facts: EngineFacts, info: Mapping[str, Any], home: str) -> None:
        self._client = client
        self._home = home
        self.facts = facts
        self.info = info
        self._seccomp = ""

    # --- what it is and has ----------------------------------------------------------------------------------------
    def check(self) -> None:
        """That it answers, and can still confine a task. Raises EngineError."""
        _judged(self._client)

    def images(self) -> tuple[str, ...]:
        return tuple(sorted({_content_id(image) for image in _asked(self._client.images, quiet=True)}))

    def image(self, image: str) -> ImageFacts:
        try:
            config = _asked(self._client.inspect_image, image).get("Config") or {}
        except EngineError as error:
            if error.status == 404:
                raise EngineError(f"this machine does not hold the image {image}", status=404) from None
            raise
        return ImageFacts(volumes=tuple(sorted(config.get("Volumes") or ())))

    def host(self, folder: Path, cgroup_parent: str) -> HostFacts:
        """`folder`: where the seccomp profile is put, for an engine that wants a file."""
        facts = self.facts
        return HostFacts(
            cpus=facts.cpus,
            nofile_max=_hard_limit(resource.RLIMIT_NOFILE),
            user=facts.user,
            init=facts.init,
            seccomp=self._profile(folder),
            cgroup_parent=cgroup_parent,
            nproc_max=_hard_limit(resource.RLIMIT_NPROC) if facts.podman else 0,
            tmpfs_copies=facts.podman,
            userns=facts.userns,
        )

    def _profile(self, folder: Path) -> str:
        if not self._seccomp:
            profile = json.loads(files("nexapod.executor.docker").joinpath("seccomp.json").read_text())
            text = json.dumps(profile, separators=(",", ":"))
            if self.facts.podman:
                path = folder / "seccomp.json"
                path.write_text(text)
                text = str(path)
            self._seccomp = text
        return self._seccomp

    # --- one container ---------------------------------------------------------------------------------------------
    def create(self, name: str, settings: dict[str, Any]) -> str:
        """Its id."""
        return str(_asked(self._client.create_container_from_config, settings, name)["Id"])

    def start(self, name: str) -> None:
        _asked(self._client.start, name)

    def look(self, name: str) -> Container:
        found = _asked(self._client.inspect_container, name)
        state, config = found["State"], found.get("Config") or {}
        return Container(
            id=str(found["Id"]),
            status=str(state.get("Status", "")),
            exit=int(state.get("ExitCode", EXIT_UNKNOWN)),
            oom=bool(state.get("OOMKilled")),
            error=str(state.get("Error") or ""),
            labels=config.get("Labels") or {},
            image=_content_id(str(found.get("Image", ""))),
            started=_seconds(str(state.get("StartedAt", ""))),
            finished=_seconds(str(state.get("FinishedAt", ""))),
        )

    def attach(self, name: str) -> Stream:
        """What it prints from now on. A reader that is slow slows the task down: nothing piles up."""
        return self._stream("post", name, "attach", {"stream": 1, "stdout": 1, "stderr": 1})

    def follow(self, name: str, since: float = 0.0) -> Stream:
        """What it has printed, as far as the engine still has it, and goes on to print."""
        when = {"since": f"{since:.9f}"} if since else {}
        return self._stream("get", name, "logs", {"follow": 1, "stdout": 1, "stderr": 1, "tail": "all"} | when)

    def _stream(self, method: str, name: str, what: str, params: dict[str, Any]) -> Stream:
        client = self._client
        url = f"{client.base_url}/v{client.api_version}/containers/{name}/{what}"

        def ask() -> Any:
            response = getattr(client, method)(url, params=params, stream=True, timeout=(CALL_S, None))
            if response.status_code >= 400:
                raise EngineError(f"the container engine refused: {_said(response)}", status=response.status_code)
            return response

        return Stream(_asked(ask))

    def listen(self, stream: Stream, hear: Callable[[bytes, bool], None]) -> None:
        """Hand on all that a stream brings, no faster than LOG_BYTES_PER_S. Raises EngineError."""
        budget, at = LOG_BYTES_PER_S, time.monotonic()
        for stdout, piece in stream:
            hear(piece, stdout)
            budget -= len(piece)
            if budget < 0:
                time.sleep(max(0.0, 1 - (time.monotonic() - at)))
                budget, at = LOG_BYTES_PER_S, time.monotonic()

    def wait(self, name: str) -> int | None:
        """The exit status, or None when it is still running after WAIT_SLICE_S."""
        began = time.monotonic()
        try:
            return int(_asked(self._client.wait, name, timeout=WAIT_SLICE_S)["StatusCode"])
        except EngineError as error:
            # The SDK shows its own timeout as a lost connection, which takes less long.
            if error.status or time.monotonic() - began < WAIT_SLICE_S:
                raise
            # Whether the engine lives, the next line finds out.
            found = self.look(name)
            return None if found.alive else found.exit

    def kill(self, name: str) -> None:
        """Harmless when it is over or gone."""
        try:
            _asked(self._client.kill, name)
        except EngineError as error:
            if error.status not in (404, 409) and not (error.status == 500 and self._is_over(name)):
                raise

    def pause(self, name: str) -> bool:
        """False: it is over, or the engine cannot."""
        return self._change(self._client.pause, name, "paused")

    def resume(self, name: str) -> bool:
        return self._change(self._client.unpause, name, "running")

    def remove(self, name: str) -> None:
        """Whatever it is doing. Harmless when it is gone."""
        try:
            _asked(self._client.remove_container, name, v=True, force=True)
        except EngineError as error:
            if error.status == 404:
                return
            # An engine that removes it already says so (409); one that cannot kill what is frozen wants it thawed.
            if error.status not in (409, 500):
                raise
            self.resume(name)
            _asked_gone(self._client.remove_container, name, v=True, force=True)

    def killed_from_outside(self, name: str, since: float) -> bool:
        """Whether anyone asked the engine to kill it. Only for a container that this process did not kill."""
        found = _asked(
            lambda: list(
                self._client.events(
                    since=int(since),
                    until=int(time.time()) + 1,
                    filters={"container": name, "event": ["kill"]},
                    decode=True,
                )
            )
        )
        return bool(found)

    def stats(self, name: str) -> Usage | None:
        """Costs the engine a second, and knows the peak of memory on cgroup v1 only."""
        try:
            stats = _asked(self._client.stats, name, stream=False)
        except EngineError as error:
            log.warning("container_stats_missing", container=name, reason=str(error))
            return None
        cpu = int(stats.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0))
        memory = stats.get("memory_stats", {})
        return Usage(cpu_ms=cpu // 1_000_000, peak_memory=int(memory.get("max_usage") or memory.get("usage") or 0))

    def _is_over(self, name: str) -> bool:
        try:
            return not self.look(name).alive
        except EngineError as error:
            if error.status == 404:
                return True
            raise

    def _change(self, function: Callable[[str], None], name: str, wanted: str) -> bool:
        try:
            _asked(function, name)
        except EngineError as error:
            if not error.status:
                raise
            try:
                return self.look(name).status == wanted  # it was so already
            except EngineError:
                return False
        return True

    # --- all of ours -----------------------------------------------------------------------------------------------
    def runs(self) -> dict[str, str]:
        """The containers of this home: name to run label."""
        found = _asked(self._client.containers, all=True, filters={"label": f"{LABEL_HOME}={self._home}"})
        return {
            str(container["Names"][0]).lstrip("/"): str((container.get("Labels") or {}).get(LABEL_RUN, ""))
            for container in found
            if container.get("Names")
        }

    def ping(self) -> None:
        _asked(self._client.ping)

    def close(self) -> None:
        self._client.close()


def connect(url: str | None, home: str) -> Engine:
    """Raises EngineError: nothing answers there, or what does cannot keep our promises."""
    client = _asked(_client, url)
    try:
        info, facts = _judged(client)
    except EngineError:
        client.close()
        raise
    client.timeout = CALL_S
    return Engine(client, facts, info, home)


def _client(url: str | None) -> Any:
    """Raises whatever the SDK does when nothing answers there."""
    import docker
    import docker.utils

    where = {"base_url": url} if url else docker.utils.kwargs_from_env()
    return docker.APIClient(version="auto", timeout=PROBE_S, max_pool_size=CONNECTIONS_MAX, **where)


def _judged(client: Any) -> tuple[dict[str, Any], EngineFacts]:
    info = _asked(client.info)
    try:
        return info, judge(info, _asked(client.version), _process())
    except Unfit as unfit:
        raise EngineError(str(unfit)) from None


def _process() -> Process:
    try:
        swaps = Path("/proc/swaps").read_text().splitlines()[1:]
    except OSError:
        swaps = []
    return Process(os.geteuid(), os.getegid(), bool(swaps), podman_init())


def podman_init() -> bool:
    """Whether the init that Podman uses is installed."""
    return any(Path(path).exists() for path in _PODMAN_INIT)


def _hard_limit(which: int) -> int:
    hard = resource.getrlimit(which)[1]
    return hard if 0 < hard < 1 << 20 else 1 << 20


def _content_id(image: str) -> str:
    """Podman leaves out the name of the hash in some of its answers."""
    return image if ":" in image else f"sha256:{image}"


def _said(response: Any) -> str:
    """The engine's own words about a refusal."""
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return str(response.text)[:200]


def _seconds(stamp: str) -> float:
    """RFC 3339 with nanoseconds, as engines write it; the year 1 for never."""
    whole, _, rest = stamp.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    zone = rest[len(digits) :] or ("" if whole.endswith("Z") else "Z")
    try:
        moment = datetime.fromisoformat(f"{whole}{zone}").timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, moment + (float(f"0.{digits}") if digits else 0.0))


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


def _asked_gone(function: Callable[..., T], *args: Any, **kwargs: Any) -> None:
    try:
        _asked(function, *args, **kwargs)
    except EngineError as error:
        if error.status not in (404, 409):
            raise
