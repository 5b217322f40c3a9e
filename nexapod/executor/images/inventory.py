"""Container images in the engine of this machine: find, save to a file, load, pull by digest, list, remove.

The engine's side of images only: knows neither blobs nor who wants an image. Every call runs in a worker thread and has
a bound in time; what is uploaded or saved moves in pieces. Everything that the engine does wrong is ImageUnavailable.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import structlog
import trio

from nexapod.executor.image_ids import CONTAINERD_STORE, names_by_manifest
from nexapod.executor.images.errors import EngineSilent, ImageError, ImageUnavailable

log = structlog.get_logger()
T = TypeVar("T")

CONNECT_S: Final = 5
CALL_S: Final = 30
TRANSFER_S: Final = 900.0
"""A whole save, load or pull."""
ANSWER_S: Final = 600
"""How long the engine may be silent in it: it unpacks a layer without a word."""
PIECE_BYTES: Final = 1 << 20
THREADS: Final = 4
LISTED_MAX: Final = 4096
ANSWER_BYTES_MAX: Final = 4096
HUB: Final = "docker.io"
LOCAL_ENGINE: Final = "http+docker://"
"""How the SDK's address begins for an engine behind a socket of this machine."""

_ID = re.compile(r"sha256:[0-9a-f]{64}\Z")


class ImageNotHere(ImageError):
    """The engine holds no image of that name."""


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An image that the engine holds."""

    id: str
    size: int
    """Unpacked, as the engine counts it."""
    tags: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    """`host/name@sha256:<hex>` under which it was pulled, the host spelled out."""


@dataclass(frozen=True, slots=True)
class EngineRoom:
    """What is free on the disk to which the engine unpacks images."""

    bytes: int
    files: int | None
    """None: that disk has no bound of its own on them."""


class Engine(Protocol):
    """What the daemon needs of an engine. Every method raises EngineSilent when the engine does not answer, and
    ImageUnavailable when it refuses what was asked."""

    async def find(self, name: str) -> EngineImage:
        """By content id, name or reference by digest. Raises ImageNotHere."""

    async def images(self) -> tuple[EngineImage, ...]:
        """All that it holds, sorted by id."""

    async def save(self, image: str, path: Path, bytes_max: int) -> None:
        """Write a docker-archive of an image to a new file. Raises ImageNotHere."""

    async def load(self, archive: Callable[[], Iterator[bytes]]) -> None:
        """Take in a docker-archive; its pieces are asked for in a worker thread, and what they raise is raised."""

    async def pull(self, reference: str, bytes_max: int, free_min: int) -> EngineImage:
        """Fetch `host/name@sha256:<hex>`, without credentials, and make sure that it is what came. Ended, as refused,
        when fewer than `free_min` bytes are left on the engine's disk, where that can be seen."""

    async def remove(self, image: str) -> bool:
        """Let go of an image, unless a container uses it or it has another name too; whether it is gone."""

    async def room(self) -> EngineRoom | None:
        """None when it cannot be seen: an engine on another machine, or in a virtual one."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Clients:
    """Two connections, which differ in how long an answer may take; and the engine's own folder, if it is here."""

    quick: Any
    slow: Any
    root: Path | None

    def room(self) -> EngineRoom | None:
        """Blocks for a moment."""
        if self.root is None:
            return None
        try:
            disk = os.statvfs(self.root)
        except OSError as error:
            log.info("engine_room_not_seen", path=str(self.root), error=str(error))
            return None
        return EngineRoom(disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else None)

    def close(self) -> None:
        self.quick.close()
        self.slow.close()


class DockerImages:
    """The Docker engine's images; connects when first asked, and until it has."""

    def __init__(self, url: str | None = None) -> None:
        """`url`: the engine's; None is DOCKER_HOST or the usual socket."""
        self._url = url
        self._clients: _Clients | None = None
        self._connecting = trio.Lock()
        self._threads = trio.CapacityLimiter(THREADS)

    async def find(self, name: str) -> EngineImage:
        client = (await self._connected()).quick
        return _described(await self._call(lambda: client.inspect_image(name)))

    async def images(self) -> tuple[EngineImage, ...]:
        client = (await self._connected()).quick
        listed = await self._call(client.images)
        return tuple(sorted((_described(item) for item in listed[:LISTED_MAX]), key=lambda image: image.id))

    async def save(self, image: str, path: Path, bytes_max: int) -> None:
        client = (await self._connected()).slow

        def work(gone: threading.Event) -> None:
            with path.open("xb") as file:
                for piece in _bounded(client.get_image(image, chunk_size=PIECE_BYTES), gone):
                    if file.tell() + len(piece) > bytes_max:
                        raise ImageUnavailable(f"the image is larger than the {bytes_max} bytes that there is room for")
                    file.write(piece)

        await self._transfer(work)

    async def load(self, archive: Callable[[], Iterator[bytes]]) -> None:
        client = (await self._connected()).slow

        def work(gone: threading.Event) -> None:
            for event in client.load_image(_bounded(archive(), gone)):
                if error := event.get("error"):
                    raise ImageUnavailable(f"the container engine did not take the image: {str(error)[:200]}")

        await self._transfer(work)

    async def pull(self, reference: str, bytes_max: int, free_min: int) -> EngineImage:
        clients = await self._connected()

        def work(gone: threading.Event) -> None:
            announced: dict[str, int] = {}
            for event in _bounded(_pulling(clients.slow, reference), gone):
                _watch_pull(event, announced, bytes_max, reference)
                room = clients.room()
                if room is not None and room.bytes < free_min:
                    raise ImageUnavailable(
                        f"the container engine's disk has {room.bytes} free bytes, and {free_min} must be left: the"
                        f" pull of {reference} was ended"
                    )

        await self._transfer(work)
        found = await self.find(reference)
        if reference not in found.references:
            raise ImageUnavailable(f"the container engine pulled {reference}, and does not know it by that digest")
        if found.size > bytes_max:
            if not found.tags:  # one with a tag its owner had already
                await self.remove(found.id)
            raise ImageUnavailable(f"{reference} takes {found.size} bytes: more than the {bytes_max} allowed")
        return found

    async def remove(self, image: str) -> bool:
        client = (await self._connected()).quick
        try:
            await self._call(lambda: client.remove_image(image, force=False))
        except ImageNotHere:
            return True
        except ImageUnavailable as error:
            log.info("image_not_removed", image=image, reason=str(error))
            return False
        return True

    async def room(self) -> EngineRoom | None:
        return await trio.to_thread.run_sync((await self._connected()).room)

    async def aclose(self) -> None:
        if self._clients is not None:
            self._clients.close()
            self._clients = None

    async def _connected(self) -> _Clients:
        async with self._connecting:
            if self._clients is None:
                self._clients = await self._call(lambda: _connect(self._url))
            return self._clients

    async def _call(self, work: Callable[[], T]) -> T:
        """A short call, given up with its thread when whoever waits for it is cancelled."""
        # The stubs that come with a dependency are older than trio.
        return await trio.to_thread.run_sync(  # type: ignore[call-arg]
            lambda: _asked(work), limiter=self._threads, abandon_on_cancel=True
        )

    async def _transfer(self, work: Callable[[threading.Event], None]) -> None:
        """A long one. Its thread is told when nobody waits any more, and ends with the next piece that moves."""
        gone = threading.Event()
        try:
            with trio.move_on_after(TRANSFER_S) as scope:
                await self._call(lambda: work(gone))
        finally:
            gone.set()
        if scope.cancelled_caught:
            raise EngineSilent(f"the container engine was not done with an image within {TRANSFER_S:g} s")


def full_reference(name: str) -> str:
    """An engine's spelling of a reference by digest, with the host that it leaves out: `debian@sha256:...`."""
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"{HUB}/{name}" if slash else f"{HUB}/library/{name}"


class _Gone(Exception):
    """Nobody waits for the transfer any more."""


def _bounded(pieces: Iterator[T], gone: threading.Event) -> Iterator[T]:
    end = time.monotonic() + TRANSFER_S
    for piece in pieces:
        if gone.is_set() or time.monotonic() > end:
            raise _Gone
        yield piece


def _watch_pull(event: dict[str, Any], announced: dict[str, int], bytes_max: int, reference: str) -> None:
    """The engine says of each layer how large it is as it begins with it: too much is known early."""
    if error := event.get("error"):
        raise ImageUnavailable(f"{reference} was not pulled: {str(error)[:200]}")
    total = (event.get("progressDetail") or {}).get("total")
    if isinstance(total, int) and event.get("status") == "Downloading":
        announced[str(event.get("id"))[:64]] = total
        if sum(announced.values()) > bytes_max:
            raise ImageUnavailable(f"{reference} is larger than the {bytes_max} bytes allowed: its pull was ended")


def _described(found: dict[str, Any]) -> EngineImage:
    tags = [tag for tag in found.get("RepoTags") or () if tag != "<none>:<none>"]
    references = [full_reference(ref) for ref in found.get("RepoDigests") or () if not ref.startswith("<none>")]
    return EngineImage(str(found.get("Id")), int(found.get("Size") or 0), tuple(tags), tuple(sorted(references)))


def _pulling(client: Any, reference: str) -> Iterator[dict[str, Any]]:
    """What the engine says while it pulls. Not the SDK's own call: that one waits for ever for a silent engine."""
    name, _, digest = reference.partition("@")
    # An empty set of credentials: the owner's own are for the owner's own pulls.
    with closing(
        client.post(
            f"{client.base_url}/v{client.api_version}/images/create",
            params={"fromImage": name, "tag": digest},
            headers={"X-Registry-Auth": base64.urlsafe_b64encode(b"{}").decode("ascii")},
            stream=True,
            timeout=ANSWER_S,
        )
    ) as answer:
        if answer.status_code != 200:
            said = answer.raw.read(ANSWER_BYTES_MAX, decode_content=True).decode("utf-8", "replace")
            raise ImageUnavailable(f"{reference} was not pulled: {said.strip()[:200]}")
        for line in answer.iter_lines(chunk_size=None):
            if line:
                yield json.loads(line)


def _connect(url: str | None) -> _Clients:
    import docker
    import docker.utils

    where = {"base_url": url} if url else docker.utils.kwargs_from_env()

    def client(answer_s: int) -> Any:
        made = docker.APIClient(version="auto", timeout=CONNECT_S, max_pool_size=THREADS, **where)
        made.timeout = answer_s
        return made

    quick = client(CALL_S)
    info = quick.info()
    if names_by_manifest(info):
        quick.close()
        raise ImageUnavailable(f"the container engine {CONTAINERD_STORE}")
    # Of an engine that is reached over a network the folder is not one of this machine.
    local = quick.base_url.startswith(LOCAL_ENGINE) and info.get("DockerRootDir")
    return _Clients(quick, client(ANSWER_S), Path(info["DockerRootDir"]) if local else None)


def _asked(work: Callable[[], T]) -> T:
    """Call the SDK: whatever goes wrong is an ImageError."""
    import docker.errors
    import requests.exceptions
    import urllib3.exceptions

    try:
        return work()
    except docker.errors.APIError as error:
        status = error.response.status_code if error.response is not None else 0
        said = str(error.explanation or error)[:300]
        if status == 404:
            raise ImageNotHere(f"the container engine holds no such image ({said})") from None
        raise ImageUnavailable(f"the container engine refused: {said}") from None
    except _Gone:
        raise EngineSilent("an image's transfer was given up") from None
    except (
        docker.errors.DockerException,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
        ValueError,
    ) as error:
        raise EngineSilent(f"the container engine does not answer: {str(error)[:300]}") from None


def is_id(text: str) -> bool:
    """Whether it has the form of a content id."""
    return bool(_ID.match(text))
