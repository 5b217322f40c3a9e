"""Images made in memory, in the formats that archives of them have, for tests of every tier."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import zstandard

from nexapod.executor.images.oci import Platform

AMD64 = Platform("linux", "amd64")


def tar(files: Mapping[str, bytes], *, mode: int = 0o755) -> bytes:
    """A tar archive with nothing of here and now in it."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))
    return body.getvalue()


@dataclass(frozen=True)
class Made:
    """An image: its configuration and its layers, uncompressed."""

    config: bytes
    layers: tuple[bytes, ...]

    @property
    def id(self) -> str:
        return "sha256:" + hashlib.sha256(self.config).hexdigest()

    def with_layers(self, *layers: bytes) -> Made:
        return replace(self, layers=layers)


def image(*layers: bytes, arch: str = "amd64", **config: Any) -> Made:
    """An image of these layers; by default of one with one file."""
    layers = layers or (tar({"hello": b"hello\n"}),)
    body = {
        "architecture": arch,
        "os": "linux",
        "config": {"Cmd": ["/hello"], **config},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]},
    }
    return Made(json.dumps(body, sort_keys=True).encode(), layers)


def docker_archive(*images: Made, names: Sequence[str] = ("test/image:1",), compress: bool = False) -> bytes:
    """As `docker save` writes it."""
    files: dict[str, bytes] = {}
    manifest = []
    for number, made in enumerate(images):
        paths = [f"{number}-{n}/layer.tar" for n in range(len(made.layers))]
        files |= {
            path: gzip.compress(layer, mtime=0) if compress else layer
            for path, layer in zip(paths, made.layers, strict=True)
        }
        files[f"{made.id[7:]}.json"] = made.config
        manifest.append({"Config": f"{made.id[7:]}.json", "RepoTags": list(names), "Layers": paths})
    return tar(files | {"manifest.json": json.dumps(manifest).encode()})


def oci_layout(*images: Made, compress: bool = True, nested: bool = True, zstd: bool = False) -> bytes:
    """As `skopeo copy ... oci-archive:` and `docker buildx` write it; `nested`: an index of platforms in the index."""
    pack = zstandard.compress if zstd else partial(gzip.compress, mtime=0)
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}

    def put(data: bytes, media: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    manifests = []
    for made in images:
        suffix = ("+zstd" if zstd else "+gzip") if compress else ""
        layers = [pack(layer) if compress else layer for layer in made.layers]
        manifest = {
            "schemaVersion": 2,
            "config": put(made.config, "application/vnd.oci.image.config.v1+json"),
            "layers": [put(layer, f"application/vnd.oci.image.layer.v1.tar{suffix}") for layer in layers],
        }
        found = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
        manifests.append(found | {"platform": {"os": "linux", "architecture": json.loads(made.config)["architecture"]}})
    if nested:
        index = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
        manifests = [put(index, "application/vnd.oci.image.index.v1+json")]
    return tar(files | {"index.json": json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()})


def in_pieces(data: bytes, size: int = 50_000) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]
