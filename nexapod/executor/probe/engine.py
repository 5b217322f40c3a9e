"""The container engine as `doctor` sees it: what it says of itself, the probe's image in and out, what lies around.

Every call blocks, for ASK_S seconds at most: call from worker threads. Does not run containers; that is the
executor's. The SDK is loaded when an engine is first asked for.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from nexapod.executor.capture import reason_text
from nexapod.executor.docker.engine import podman_init
from nexapod.executor.docker.facts import is_podman, is_rootless
from nexapod.executor.docker.settings import LABEL_HOME

T = TypeVar("T")
ASK_S: Final = 5
LOAD_S: Final = 20
REPOSITORY: Final = "nexapod-probe"
HOME_MARK: Final = "d0c7"
"""The home ids of doctors begin so, and end in the process id: the next one finds what a killed one left."""
PID_MAX: Final = 1 << 22
USUAL_SOCKET: Final = "unix:///var/run/docker.sock"
_GO_NAMES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""Podman names architectures as images do, Docker as `uname -m` does."""
_NEEDED: Final = {
    "MemoryLimit": "memory limits",
    "SwapLimit": "swap limits (boot with swapaccount=1, or use cgroup v2)",
    "CpuCfsQuota": "CPU limits",
    "PidsLimit": "limits of processes",
}


class EngineAway(Exception):
    """No engine can be used: there is none, this user may not use it, or it does not do what is asked of it."""

    def __init__(self, reason: str, remedy: str, how: Literal["absent", "closed", "faulty"] = "faulty") -> None:
        super().__init__(reason_text(reason))
        self.remedy = remedy
        self.how = how


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself."""

    version: str
    podman: bool
    api: str
    arch: str
    storage: str
    cgroup_version: str
    cgroup_driver: str
    rootless: bool
    seccomp: bool
    init: bool
    lacks: tuple[str, ...]
    """What it cannot limit, in words."""


def home_id(pid: int) -> str:
    return f"{HOME_MARK}{pid:012x}"


def is_of_the_dead(home: str) -> bool:
    """Whether this is the home of a doctor whose process is no more."""
    return home.startswith(HOME_MARK) and _dead(home.removeprefix(HOME_MARK), 16)


class Engine:
    """A connected engine. Every method raises EngineAway."""

    def __init__(self, url: str | None = None, *, ask_s: int = ASK_S) -> None:
        """`url` None: DOCKER_HOST, or the usual socket."""
        self._ask_s = ask_s
        _refuse_unreachable(url or os.environ.get("DOCKER_HOST") or USUAL_SOCKET, ask_s)
        self._client = _asked(_connect, url, ask_s)

    def facts(self) -> EngineFacts:
        return facts_of(_asked(self._client.info), _asked(self._client.version))

    def load(self, archive: bytes, tag: str) -> str:
        """Put an image into the engine; the content id by which the engine knows it."""
        self._client.timeout = LOAD_S
        try:
            _asked(lambda: list(self._client.load_image(archive)))
            return str(_asked(self._client.inspect_image, f"{REPOSITORY}:{tag}")["Id"])
        finally:
            self._client.timeout = self._ask_s

    def unload(self, tag: str) -> None:
        """Remove the image of this tag; another doctor's, with the same content, stays."""
        if self.images(tag):
            _asked(self._client.remove_image, f"{REPOSITORY}:{tag}", force=True)

    def images(self, tag: str) -> list[str]:
        """The image of this tag, when it is there."""
        found = _asked(self._client.images, name=f"{REPOSITORY}:{tag}")
        return [f"image {REPOSITORY}:{tag}" for _ in found]

    def containers(self, home: str) -> list[str]:
        """Names of the containers of this home, running or not."""
        found = _asked(self._client.containers, all=True, filters={"label": f"{LABEL_HOME}={home}"})
        return [str(container["Names"][0]).lstrip("/") for container in found if container.get("Names")]

    def sweep(self) -> None:
        """Remove what doctors left here that were killed."""
        for container in _asked(self._client.containers, all=True, filters={"label": LABEL_HOME}):
            if is_of_the_dead(str(container["Labels"].get(LABEL_HOME))):
                _asked(self._client.remove_container, container["Id"], v=True, force=True)
        for image in _asked(self._client.images, name=REPOSITORY):
            for name in image.get("RepoTags") or ():
                if _dead(str(name).rpartition(":")[2], 10):
                    _asked(self._client.remove_image, name, force=True)

    def close(self) -> None:
        self._client.close()


def facts_of(info: Mapping[str, Any], version: Mapping[str, Any]) -> EngineFacts:
    """What the engine's two answers mean."""
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    podman = is_podman(version)
    arch = str(info.get("Architecture") or "?")[:32]
    return EngineFacts(
        version=str(info.get("ServerVersion") or "?")[:64],
        podman=podman,
        api=str(version.get("ApiVersion") or "?")[:16],
        arch=_GO_NAMES.get(arch, arch),
        storage=str(info.get("Driver") or "?")[:32],
        cgroup_version=str(info.get("CgroupVersion") or "1")[:8],
        cgroup_driver=str(info.get("CgroupDriver") or "?")[:32],
        rootless=is_rootless(info),
        seccomp=any(option.startswith("name=seccomp") for option in options),
        init=podman_init() if podman else bool(info.get("InitBinary")),
        lacks=tuple(words for key, words in _NEEDED.items() if info.get(key) is False),
    )


def _refuse_unreachable(url: str, ask_s: int) -> None:
    """A plain connection first: what is wrong with a socket, the SDK tells in too many ways."""
    if not url.startswith("unix://"):
        return
    path = url.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.settimeout(ask_s)
        try:
            plug.connect(path)
        except OSError as error:
            raise away_from(path, error) from None


def away_from(path: str, error: OSError) -> EngineAway:
    """What it means that an engine's socket cannot be connected to."""
    reason = f"{path}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = (
            "Add your user to the group that owns the socket (`sudo usermod -aG docker $USER`, then log in again): it"
            " can then become root. Or run a rootless engine, and name its socket with DOCKER_HOST."
        )
        return EngineAway(f"this user may not use the container engine ({reason})", remedy, "closed")
    if error.errno == errno.ECONNREFUSED:
        remedy = "Start it: `sudo systemctl start docker`."
        return EngineAway(f"the container engine is not running ({reason})", remedy, "absent")
    remedy = "Install Docker or Podman to run container jobs; wasm jobs need neither. DOCKER_HOST names another socket."
    how: Literal["absent", "faulty"] = "absent" if error.errno in (errno.ENOENT, errno.ENOTDIR) else "faulty"
    return EngineAway(f"there is no container engine ({reason})", remedy, how)


def _connect(url: str | None, ask_s: int) -> Any:
    import docker
    import docker.utils

    where = {"base_url": url} if url else docker.utils.kwargs_from_env()
    return docker.APIClient(version="auto", timeout=ask_s, **where)


def _asked(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    import docker.errors
    import requests.exceptions
    import urllib3.exceptions

    try:
        return function(*args, **kwargs)
    except docker.errors.APIError as error:
        raise EngineAway(
            f"the container engine refused: {error.explanation or error}", "See the engine's log."
        ) from None
    except (
        docker.errors.DockerException,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
        ValueError,
    ) as error:
        remedy = "Restart it (`sudo systemctl restart docker`), and look at its log."
        raise EngineAway(f"the container engine does not answer: {error}", remedy) from None


def _dead(pid: str, base: int) -> bool:
    """Whether this is the number of a process that is no more. Our own number was another's, before us."""
    try:
        number = int(pid, base)
    except ValueError:
        return False
    if not 0 < number <= PID_MAX:
        return False  # no process has it: the home of a daemon, which begins like ours by chance
    return number == os.getpid() or not os.path.exists(f"/proc/{number}")
