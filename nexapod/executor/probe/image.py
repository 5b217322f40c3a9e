"""The probe as a container image, made of bytes: no registry, no build, the same each time.

The archive is what `docker save` writes: a manifest, a config and one layer with the program and empty folders. Knows
nothing of an engine.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from importlib.resources import files
from typing import Final

PROGRAM_PATH: Final = "/probe"
GO_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""Architectures that the probe is built for, and their names in images."""
_FOLDERS: Final = ("bin", "etc", "usr", "tmp", "proc", "sys", "dev", "input", "output", "checkpoint", "run")


def module() -> bytes:
    """The probe for WASI."""
    return files("nexapod.executor.probe").joinpath("probe.wasm").read_bytes()


def program(arch: str) -> bytes:
    """The probe for Linux, a static ELF file. `arch` as `uname -m` says it. Raises KeyError when there is none."""
    return files("nexapod.executor.probe").joinpath(f"probe-{_known(arch)}").read_bytes()


def archive(arch: str, repository: str, tag: str) -> tuple[bytes, str]:
    """The image as a tar file to load, and its content id (of its config). Raises KeyError as `program` does."""
    layer = _layer(program(arch))
    config = _json(
        {
            "architecture": GO_ARCHITECTURES[arch],
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Cmd": [PROGRAM_PATH]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created": "1970-01-01T00:00:00Z"}],
        }
    )
    digest = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{digest}.json", "RepoTags": [f"{repository}:{tag}"], "Layers": ["layer.tar"]}]
    tar = _tar([("manifest.json", _json(manifest)), (f"{digest}.json", config), ("layer.tar", layer)])
    return tar, f"sha256:{digest}"


def _known(arch: str) -> str:
    GO_ARCHITECTURES[arch]
    return arch


def _layer(elf: bytes) -> bytes:
    return _tar([(PROGRAM_PATH.lstrip("/"), elf)], _FOLDERS)


def _tar(contents: list[tuple[str, bytes]], folders: tuple[str, ...] = ()) -> bytes:
    """Deterministic: no owner, no time, this order."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in folders:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data in contents:
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, len(data)
            tar.addfile(entry, io.BytesIO(data))
    return raw.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
