"""The port that images are moved through, held to by the fake and by the engine of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from containers.engine_kit import NoEngine, connect
from engine_fake import FakeEngine
from image_kit import Made, docker_archive, image, in_pieces, tar

from nexapod.executor.image_ids import names_by_manifest
from nexapod.executor.images import oci
from nexapod.executor.images.errors import ImageUnavailable
from nexapod.executor.images.inventory import DockerImages, Engine, ImageNotHere, full_reference

ROOM = 64 << 20


@dataclass
class Bench:
    engine: Engine
    begin_use: Callable[[str], contextlib.AbstractContextManager[None]]
    tag: Callable[[str, str], None]
    made: list[Made] = field(default_factory=list)

    def image(self, *layers: bytes) -> Made:
        """One that no engine has seen before."""
        fresh = image(*layers, Labels={"nexapod-test": uuid.uuid4().hex})
        self.made.append(fresh)
        return fresh

    def tell_of(self, made: Made, reference: str) -> None:
        """An engine asks the registry that serves an image; the fake one is told what is there."""
        if isinstance(self.engine, FakeEngine):
            self.engine.registry[reference] = made

    async def load(self, made: Made) -> None:
        await self.engine.load(lambda: in_pieces(docker_archive(made, names=[f"nexapod-test-image:{made.id[7:27]}"])))


@pytest.fixture(params=["fake", "docker"])
async def bench(request: pytest.FixtureRequest, missing: Callable[[str, str], Any]) -> AsyncIterator[Bench]:
    if request.param == "fake":
        fake = FakeEngine()

        @contextlib.contextmanager
        def use(name: str) -> Iterator[None]:
            fake.in_use.add(name)
            yield
            fake.in_use.remove(name)

        yield Bench(fake, use, lambda name, tag: fake.tags.setdefault(name, []).append(tag))
        return
    try:
        client = connect()
    except NoEngine as error:
        missing("docker", str(error))

    @contextlib.contextmanager
    def run(name: str) -> Iterator[None]:
        container = client.create_container(name, command=["/hello"])["Id"]
        yield
        client.remove_container(container, force=True)

    engine = DockerImages()
    bench = Bench(engine, run, lambda name, tag: client.tag(name, *tag.rsplit(":", 1)))
    yield bench
    for made in bench.made:
        with contextlib.suppress(Exception):
            client.remove_image(made.id, force=True)
    await engine.aclose()
    client.close()


async def test_what_was_loaded_is_found_listed_saved_and_removed(bench: Bench, tmp_path: Path) -> None:
    made = bench.image(tar({"lib": b"x" * 100_000}), tar({"hello": b"y"}))
    with pytest.raises(ImageNotHere):
        await bench.engine.find(made.id)
    await bench.load(made)
    found = await bench.engine.find(made.id)
    assert (found.id, found.tags, found.references) == (made.id, (f"nexapod-test-image:{made.id[7:27]}",), ())
    assert await bench.engine.find(found.tags[0]) == found
    assert made.id in [one.id for one in await bench.engine.images()]
    await bench.engine.save(made.id, tmp_path / "saved.tar", ROOM)
    data = (tmp_path / "saved.tar").read_bytes()
    again = oci.find_image(lambda at, n: data[at : at + n], len(data), oci.Platform("linux", "amd64"))
    assert again.configuration.raw == made.config
    layers = [b"".join(oci.unpacked(lambda at, n: data[at : at + n], entry, ROOM)) for entry in again.layers]
    assert [hashlib.sha256(layer).digest() for layer in layers] == list(again.configuration.diff_ids)
    assert await bench.engine.remove(made.id)
    with pytest.raises(ImageNotHere):
        await bench.engine.find(made.id)
    assert await bench.engine.remove(made.id), "it is gone, whoever removed it"


async def test_an_image_that_a_container_uses_or_that_has_another_name_stays(bench: Bench) -> None:
    made = bench.image()
    await bench.load(made)
    with bench.begin_use(made.id):
        assert not await bench.engine.remove(made.id)
    bench.tag(made.id, f"nexapod-test-owner:{made.id[7:27]}")
    assert not await bench.engine.remove(made.id)
    assert (await bench.engine.find(made.id)).id == made.id


async def test_an_archive_that_is_not_what_it_says_is_refused_and_leaves_nothing(bench: Bench) -> None:
    made = bench.image()
    with pytest.raises(ImageUnavailable, match="did not take the image"):
        await bench.load(made.with_layers(tar({"other": b"z"})))
    with pytest.raises(ImageUnavailable):
        await bench.engine.load(lambda: iter([b"no archive at all" * 100]))
    with pytest.raises(ImageNotHere):
        await bench.engine.find(made.id)


async def test_what_an_archives_pieces_raise_comes_through(bench: Bench) -> None:
    class Odd(Exception):
        pass

    def pieces() -> Iterator[bytes]:
        yield bytes(512)
        raise Odd

    with pytest.raises(Odd):
        await bench.engine.load(pieces)


async def test_saving_stops_at_its_bound(bench: Bench, tmp_path: Path) -> None:
    made = bench.image(tar({"lib": b"x" * 300_000}))
    await bench.load(made)
    with pytest.raises(ImageUnavailable, match="room"):
        await bench.engine.save(made.id, tmp_path / "saved.tar", 100_000)


async def test_the_room_on_an_engines_disk_is_seen(bench: Bench) -> None:
    room = await bench.engine.room()
    assert room is not None, "the engine that tests use is on this machine"
    assert room.bytes > 1 << 20
    assert room.files is None or room.files > 1000


# --- registries ------------------------------------------------------------------------------------------------------
class Registry(http.server.ThreadingHTTPServer):
    """Serves images read-only, as the registry API has it. Engines take one on 127.0.0.0/8 without TLS."""

    def __init__(self, *images: Made) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, tuple[str, bytes]] = {}
        self.references: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        for made in images:
            self._serve_image(made)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def _put(self, data: bytes, media: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        kind = "manifests" if "manifest" in media else "blobs"
        self.files[f"/v2/science/tool/{kind}/{digest}"] = (media, data)
        return {"mediaType": media, "digest": digest, "size": len(data)}

    def _serve_image(self, made: Made) -> None:
        media = "application/vnd.docker.distribution.manifest.v2+json"
        body = {
            "schemaVersion": 2,
            "mediaType": media,
            "config": self._put(made.config, "application/vnd.docker.container.image.v1+json"),
            "layers": [self._put(layer, "application/vnd.docker.image.rootfs.diff.tar") for layer in made.layers],
        }
        digest = self._put(json.dumps(body).encode(), media)["digest"]
        self.references[made.id] = f"{self.host}/science/tool@{digest}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        media, data = self.server.files.get(self.path, ("application/json", b"{}" if self.path == "/v2/" else b""))
        self.send_response(200 if data else 404)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(data)))
        if "/manifests/" in self.path and data:
            self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(data).hexdigest()}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(*images: Made) -> Iterator[Registry]:
    registry = Registry(*images)
    thread = threading.Thread(target=registry.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield registry
    finally:
        registry.shutdown()
        thread.join(5)
        registry.server_close()


@contextlib.contextmanager
def offering(bench: Bench, made: Made) -> Iterator[tuple[Registry, str]]:
    """A registry that the engine can pull an image from, and the reference to it."""
    with serving(made) as registry:
        reference = registry.references[made.id]
        bench.tell_of(made, reference)
        yield registry, reference


async def test_a_reference_by_digest_is_pulled_without_credentials_and_known_by_it(bench: Bench) -> None:
    made = bench.image(tar({"hello": b"from a registry"}))
    with offering(bench, made) as (registry, reference):
        found = await bench.engine.pull(reference, ROOM, 0)
        assert found.id == made.id
        assert reference in found.references
        assert await bench.engine.find(reference) == found
        assert not any(credentials for _, credentials in registry.asked)


async def test_a_tag_beside_the_digest_of_one_repository_does_not_keep_an_image(bench: Bench) -> None:
    """`docker pull debian:12` of what had been pulled by digest. Whoever removes has to look at the tags first."""
    made = bench.image(tar({"hello": b"pulled by digest, then tagged"}))
    with offering(bench, made) as (_, reference):
        await bench.engine.pull(reference, ROOM, 0)
    tag = f"{reference.partition('@')[0]}:owners"
    bench.tag(made.id, tag)
    found = await bench.engine.find(made.id)
    assert (found.tags, found.references) == ((tag,), (reference,))
    assert await bench.engine.remove(made.id)
    with pytest.raises(ImageNotHere):
        await bench.engine.find(made.id)


async def test_what_its_owner_had_by_tag_stays_when_a_pull_finds_it_too_large(bench: Bench) -> None:
    made = bench.image(tar({"big": bytes(2 << 20)}))
    with serving(made) as registry:
        reference = registry.references[made.id]
        tag = f"{reference.partition('@')[0]}:owners"
        await bench.engine.load(lambda: in_pieces(docker_archive(made, names=[tag])))
        bench.tell_of(made, reference)
        with pytest.raises(ImageUnavailable, match=r"larger|more than"):
            await bench.engine.pull(reference, 1 << 20, 0)
    assert (await bench.engine.find(made.id)).tags == (tag,)


async def test_a_tag_of_another_repository_beside_a_digest_keeps_an_image(bench: Bench) -> None:
    made = bench.image(tar({"hello": b"pulled by digest, then named otherwise"}))
    with offering(bench, made) as (_, reference):
        await bench.engine.pull(reference, ROOM, 0)
    bench.tag(made.id, f"nexapod-test-owner:{made.id[7:27]}")
    assert not await bench.engine.remove(made.id)


async def test_a_pull_of_what_is_not_there_or_too_large_fails_with_the_reason(bench: Bench) -> None:
    made = bench.image(tar({"big": bytes(range(256)) * 40_000}))
    with offering(bench, made) as (registry, reference):
        with pytest.raises(ImageUnavailable, match="was not pulled"):
            await bench.engine.pull(f"{registry.host}/science/tool@sha256:{'0' * 64}", ROOM, 0)
        with pytest.raises(ImageUnavailable, match=r"larger|more than"):
            await bench.engine.pull(reference, 1 << 20, 0)
    with pytest.raises(ImageNotHere):
        await bench.engine.find(reference)


async def test_a_pull_that_leaves_too_little_of_the_engine_s_disk_is_ended(bench: Bench) -> None:
    made = bench.image(tar({"big": bytes(range(256)) * 4_000}))
    with offering(bench, made) as (_, reference), pytest.raises(ImageUnavailable, match="must be left"):
        await bench.engine.pull(reference, ROOM, 1 << 60)
    with pytest.raises(ImageNotHere):
        await bench.engine.find(reference)


# --- the real one's own ----------------------------------------------------------------------------------------------
async def test_an_engine_that_is_not_there_says_so(tmp_path: Path) -> None:
    engine = DockerImages(f"unix://{tmp_path}/nothing.sock")
    for ask in (lambda: engine.images(), lambda: engine.find("x"), lambda: engine.load(lambda: iter([b""]))):
        with pytest.raises(ImageUnavailable, match="does not answer"):
            await ask()
    await engine.aclose()


class _Remote(http.server.BaseHTTPRequestHandler):
    """An engine behind a network, as far as connecting goes."""

    def do_GET(self) -> None:
        says = {"ApiVersion": "1.41"} if self.path.endswith("/version") else {"DockerRootDir": "/"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(says).encode())

    def log_message(self, *args: object) -> None:
        pass


async def test_the_room_of_an_engine_on_another_machine_is_not_taken_for_this_ones() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Remote) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        engine = DockerImages(f"tcp://127.0.0.1:{server.server_address[1]}")
        try:
            assert await engine.room() is None
        finally:
            await engine.aclose()
            server.shutdown()
            thread.join(5)


def test_references_are_spelled_out() -> None:
    digest = "@sha256:" + "0" * 64
    assert full_reference("debian" + digest) == "docker.io/library/debian" + digest
    assert full_reference("biocontainers/blast" + digest) == "docker.io/biocontainers/blast" + digest
    for whole in ("localhost/x", "127.0.0.1:5000/a/b", "quay.io/a"):
        assert full_reference(whole + digest) == whole + digest


def test_an_engine_that_names_images_by_manifest_is_known() -> None:
    assert names_by_manifest({"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]})
    assert not names_by_manifest({"DriverStatus": [["Backing Filesystem", "extfs"]]})
    assert not names_by_manifest({"DriverStatus": None})
    assert not names_by_manifest({})
