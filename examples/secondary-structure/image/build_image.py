#!/usr/bin/env python3
"""Makes the container image of the same program: one static binary, from scratch, with no registry.

    python image/build_image.py                          build, load into the Docker Engine, print the content id
    python image/build_image.py --job job-docker.toml    also write a job file that names that id
    python image/build_image.py --archive OUT --no-load   only write the archive that `docker load` reads

The image's content id is the sha2-256 of its configuration, which names its one layer by hash. Both are written here
byte for byte, with no time stamp in them, so that the same sources give the same id everywhere. (An engine that keeps
images in containerd's store names them by their manifest instead: then the id that it prints is another, and is the
one to use on such engines.)
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent
JOB_TEMPLATE = EXAMPLE / "job-docker.toml.in"
TAG = "nexapod-example/secondary-structure:1"
FOLDERS = ("input", "output", "checkpoint")
"""Mount points: with a read-only root they must exist already."""
DOCKER_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
NOBODY = 65534
ENGINE_WAIT_S = 60


class ImageError(Exception):
    """The image could not be made. The message says why and what to do."""


def layer(binary: bytes) -> bytes:
    """The one layer: /predict and the mount points, as a tar with nothing of here and now in it."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in FOLDERS:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        tar.addfile(_file("predict", len(binary), 0o755), io.BytesIO(binary))
    return body.getvalue()


def _file(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # owner 0, time 0
    info.size, info.mode = size, mode
    return info


def configuration(layer_tar: bytes, arch: str) -> bytes:
    """The image's configuration: its sha2-256 is the image's content id."""
    config = {
        "architecture": DOCKER_ARCH[arch],
        "config": {"Cmd": ["/predict"], "User": f"{NOBODY}:{NOBODY}", "WorkingDir": "/"},
        "created": "1970-01-01T00:00:00Z",
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "nexapod example"}],
        "os": "linux",
        "rootfs": {"diff_ids": [f"sha256:{hashlib.sha256(layer_tar).hexdigest()}"], "type": "layers"},
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode("ascii")


def archive(binary: bytes, arch: str) -> tuple[str, bytes]:
    """The image's content id, and what `docker load` reads."""
    layer_tar = layer(binary)
    config = configuration(layer_tar, arch)
    digest = hashlib.sha256(config).hexdigest()
    layer_name = f"{hashlib.sha256(layer_tar).hexdigest()}/layer.tar"
    manifest = json.dumps([{"Config": f"{digest}.json", "Layers": [layer_name], "RepoTags": [TAG]}])
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        files = ((f"{digest}.json", config), (layer_name, layer_tar), ("manifest.json", manifest.encode("ascii")))
        for name, data in files:
            tar.addfile(_file(name, len(data)), io.BytesIO(data))
    return f"sha256:{digest}", body.getvalue()


def load(archive_tar: bytes) -> str:
    """Loads the archive into the local Docker Engine; the content id by which the engine knows it.

    Raises ImageError.
    """
    import docker  # here, so that an archive can be written without the SDK
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=ENGINE_WAIT_S)
        try:
            images = client.images.load(archive_tar)
        finally:
            client.close()
    except DockerException as error:
        raise ImageError(f"the Docker Engine did not take the image: {error}") from error
    if len(images) != 1 or images[0].id is None:
        raise ImageError(f"the Docker Engine loaded {len(images)} images instead of one")
    return str(images[0].id)


def build_binary(arch: str | None) -> tuple[bytes, str]:
    """The static binary, built from the sources, and its architecture. Raises ImageError."""
    build = _load_build()
    chosen = arch or build.machine()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "predict"
            build.build_native(out, chosen)
            return out.read_bytes(), chosen
    except build.BuildError as error:
        raise ImageError(str(error)) from error


def _load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("secondary_structure_build", EXAMPLE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job_file(image: str) -> str:
    """The text of a job file that runs this image."""
    return JOB_TEMPLATE.read_text("utf-8").replace("@IMAGE@", image)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(description="Make the container image of the secondary structure program.")
    parser.add_argument("--arch", choices=sorted(DOCKER_ARCH), help="default: this machine's")
    parser.add_argument("--archive", type=Path, metavar="OUT", help="also write what `docker load` reads")
    parser.add_argument("--job", type=Path, metavar="OUT", help="also write a job file; must lie beside job.toml")
    parser.add_argument("--no-load", action="store_true", help="do not load it into the Docker Engine")
    options = parser.parse_args(arguments)
    try:
        binary, arch = build_binary(options.arch)
        image, tar = archive(binary, arch)
        if options.archive:
            options.archive.write_bytes(tar)
        if not options.no_load:
            image = load(tar)
        if options.job:
            options.job.write_text(job_file(image), "utf-8")
    except (ImageError, OSError) as error:
        print(f"build_image.py: {error}", file=sys.stderr)
        return 1
    print(image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
