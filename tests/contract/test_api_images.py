"""Container images over the API and through the commands, with a fake daemon behind them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_fake import FakeBackend, served_in_thread
from pydantic import TypeAdapter
from test_api_cli import Cli
from test_api_cli import logs as logs

from nexapod.api.image_routes import ImageAdded, ImageView
from nexapod.cli.client import Client
from nexapod.protocol.primitives import blob_of

JOB = """
[job]
name = "a job"
[run]
executor = "docker"
image = "{image}"
{more}
[tasks]
count = 1
"""
HELD = "sha256:" + "5" * 64
REFERENCE = "registry.example/tool@sha256:" + "6" * 64


class Bench(Cli):
    """A daemon, and the command line in front of it."""

    def __init__(self, home: Path, backend: FakeBackend, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(home, capsys, monkeypatch)
        self.home = home
        self.backend = backend
        self.client = Client(home / "api.sock")

    def submit(self, image: str, more: str = "") -> int:
        path = self.home / "job.toml"
        path.write_text(JOB.format(image=image, more=more))
        return self("submit", path, "--no-wait")

    @property
    def run(self) -> Any:
        """What the one submitted job says."""
        [job] = self.backend.known.values()
        return job.spec.run


@pytest.fixture
def bench(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    backend = FakeBackend()
    with served_in_thread(backend, tmp_path / "api.sock"):
        yield Bench(tmp_path, backend, capsys, monkeypatch)


def test_an_image_of_the_engine_is_added_listed_shown_and_removed(bench: Bench) -> None:
    bench.backend.engine_images["tool:1"] = [b"config", b"layer one", b"layer two"]
    image = f"sha256:{blob_of(b'config').digest.hex()}"
    assert bench("image", "add", "tool:1") == 0
    assert bench.out == f"{image}\n"
    assert "linux/amd64, 2 layers, 24 B: 24 B of it new here" in bench.err
    assert bench("image", "add", "tool:1", "--json") == 0
    TypeAdapter(ImageAdded).validate_json(bench.out)
    assert bench("image", "list", "--json") == 0
    TypeAdapter(list[ImageView]).validate_json(bench.out)
    assert bench("image", "list") == 0
    assert "tool:1" in bench.out
    assert bench("image", "show", "tool:1") == 0
    assert str(blob_of(b"layer two")) in bench.out
    assert bench("image", "remove", image) == 0
    assert bench("image", "show", image) == 4
    assert bench("image", "list", "--json") == 0
    assert json.loads(bench.out) == []


def test_an_archive_is_uploaded_and_its_platform_handed_on(bench: Bench, tmp_path: Path) -> None:
    archive = tmp_path / "an archive.tar"
    archive.write_bytes(b"image" + bytes(3 << 20))
    assert bench("image", "add", archive, "--platform", "linux/arm64") == 0
    assert bench("image", "list", "--json") == 0
    [image] = json.loads(bench.out)
    assert image["names"][0] == "for linux/arm64"
    assert bench("image", "list") == 0
    archive.write_bytes(b"something else")
    assert bench("image", "add", archive) == 5
    assert "the archive is not one" in bench.err
    assert "save it anew" in bench.err


def test_what_is_neither_a_file_nor_an_image_is_said_to_be_neither(bench: Bench) -> None:
    assert bench("image", "add", "nothing.tar") == 4
    assert "nothing.tar is no file, and no image of the daemon's container engine" in bench.err


# --- jobs ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("named", ["tool:1", "sha256:" + blob_of(b"config").digest.hex()])
def test_a_job_names_an_added_image_and_brings_its_blobs(bench: Bench, named: str) -> None:
    bench.backend.engine_images["tool:1"] = [b"config", b"layer"]
    assert bench("image", "add", "tool:1") == 0
    assert bench.submit(named) == 0
    assert bench.run.image == f"sha256:{blob_of(b'config').digest.hex()}"
    assert bench.run.image_blobs == (blob_of(b"config"), blob_of(b"layer"))
    [job] = bench.backend.known.values()
    assert job.spec.requires.arch == ("x86_64",), "an image runs on its own architecture only"


def test_an_archive_beside_the_job_file_is_added_on_submit(bench: Bench) -> None:
    (bench.home / "tool.tar").write_bytes(b"image data")
    assert bench.submit("tool.tar", 'env = { A = "1" }') == 0
    assert bench.run.image_blobs == (blob_of(b"image data"), blob_of(b"layer"))
    assert len(bench.backend.images_added) == 1
    bench.backend.known.clear()
    assert bench.submit("missing.tar") == 5
    assert "'missing.tar' is not a file" in bench.err


def test_an_image_that_was_not_added_is_refused_with_what_to_do(bench: Bench) -> None:
    assert bench.submit(HELD) == 5
    assert f"nexapod image add {HELD}" in bench.err
    assert "image_held = true" in bench.err
    assert bench.submit("tool") == 5
    assert not bench.backend.known


def test_an_image_that_all_workers_hold_is_submitted_without_blobs(bench: Bench) -> None:
    assert bench.submit(HELD, "image_held = true") == 0
    assert (bench.run.image, bench.run.image_blobs) == (HELD, ())


def test_a_registrys_reference_by_digest_goes_as_it_is(bench: Bench) -> None:
    assert bench.submit(REFERENCE) == 0
    assert (bench.run.image, bench.run.image_blobs) == (REFERENCE, ())


@pytest.mark.parametrize(
    ("image", "more", "said"),
    [
        ("Tool!", "", "names no image"),
        ("host/tool@sha256:123", "", "names no image"),
        ("tool:1", "image_held = true", "is named by its content id"),
        (HELD, "image_held = 1", "expected true or false"),
    ],
)
def test_what_names_no_image_is_a_problem_of_the_job_file(bench: Bench, image: str, more: str, said: str) -> None:
    assert bench.submit(image, more) == 5
    assert said in bench.err
    assert "job.toml:" in bench.err


def test_requests_that_are_too_much_are_refused(bench: Bench) -> None:
    with pytest.raises(Exception, match="name"):
        bench.client.post("/v1/images", {"name": "x" * 2000})
    with pytest.raises(Exception, match="at most"):
        bench.client.send("/v1/images/archive", io.BytesIO(b""), (1 << 40) + 1, lambda _: None)


@pytest.mark.parametrize("name", ["", "x" * 300, "x" * 600, "a\udcff", "\u202e"])
def test_a_name_that_no_image_has_is_refused(bench: Bench, name: str) -> None:
    for command in ("add", "show", "remove"):
        assert bench("image", command, name) in (4, 5)
        assert "nexapod: " in bench.err
        assert "openapi" not in bench.err
    assert bench("image", "add", "tool", "--platform", "a\udcff") == 5
    assert bench.submit("x" * 300 + ".tar") == 5
    assert "is not a file" in bench.err
