"""Compiled modules on disk, by the digest of their code: compiled once, loaded by every runner after that.

Part of the runner process. Several runners use the directory at once; each entry is written aside and put in its place
in one step, so that a reader sees a whole one or none. An entry carries its own digest, since a machine may stop in the
middle of a write. Who could write there could make us run any code: only this user may enter.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BufferedIOBase
from typing import Final

import wasmtime

CACHE_FILES_MAX: Final = 64
CACHE_BYTES_MAX: Final = 512 << 20
CONFIG_VERSION: Final = 1
"""Raise it with any change of engine_config. Wasmtime itself refuses code of another version or CPU."""


def engine_config() -> wasmtime.Config:
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.cranelift_nan_canonicalization = True
    config.wasm_relaxed_simd_deterministic = True
    config.wasm_threads = False
    # One memory of 32 bits, so that the limiter's bound on a memory is the bound on all.
    config.wasm_multi_memory = False
    config.wasm_memory64 = False
    config.wasm_gc = False
    # A volunteer gave cpus_milli, not every core. (WASI starts a thread of its own when a run first uses a file.)
    config.parallel_compilation = False
    return config


def compiled(engine: wasmtime.Engine, file: BufferedIOBase, cache: str | None) -> wasmtime.Module:
    """The module in `file`, from the cache, or compiled now and put there. Raises WasmtimeError: this is no module."""
    if cache is None:
        return _compile(engine, file)
    file.seek(0)
    name = f"{hashlib.file_digest(file, 'sha256').hexdigest()}-{CONFIG_VERSION}"
    path = os.path.join(cache, name)
    module = _from_cache(engine, path)
    if module is None:
        module = _compile(engine, file)
        _to_cache(module, cache, path)
    return module


def _compile(engine: wasmtime.Engine, file: BufferedIOBase) -> wasmtime.Module:
    file.seek(0)
    return wasmtime.Module(engine, file.read())


def _from_cache(engine: wasmtime.Engine, path: str) -> wasmtime.Module | None:
    """Machine code that we wrote ourselves, in a directory only we can enter; anything else is not looked at."""
    folder = os.stat(os.path.dirname(path))
    if folder.st_uid != os.geteuid() or folder.st_mode & 0o077:
        return None
    try:
        with open(path, "rb") as file:
            digest, code = file.read(32), file.read()
    except FileNotFoundError:
        return None
    if hashlib.sha256(code).digest() != digest:
        return None  # half written when the machine stopped
    try:
        module = wasmtime.Module.deserialize(engine, code)
        os.utime(path)  # the least recently used goes first
    except wasmtime.WasmtimeError:
        return None  # compiled by another version or for another CPU: it is compiled again and replaced
    except FileNotFoundError:
        pass  # another runner has just made room
    return module


def _to_cache(module: wasmtime.Module, cache: str, path: str) -> None:
    code = bytes(module.serialize())
    draft = f"{path}.{os.urandom(8).hex()}"  # a pid may be that of a runner that died in the middle of this
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(hashlib.sha256(code).digest())
                file.write(code)
            os.replace(draft, path)
        except OSError:
            os.unlink(draft)
            raise
        _trim_cache(cache)
    except OSError as error:
        # Only speed is lost. The parent shows our stderr if this process dies.
        print(f"compiled module not cached: {error}", file=sys.stderr)


def _trim_cache(cache: str) -> None:
    with os.scandir(cache) as entries:
        files = sorted((info.st_mtime_ns, info.st_size, path) for path, info in _present(entries))
    total = sum(size for _, size, _ in files)
    while files and (len(files) > CACHE_FILES_MAX or total > CACHE_BYTES_MAX):
        _, size, path = files.pop(0)
        total -= size
        with suppress(FileNotFoundError):  # another runner trims too
            os.unlink(path)


def _present(entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[str, os.stat_result]]:
    for entry in entries:
        with suppress(FileNotFoundError):
            yield entry.path, entry.stat(follow_symlinks=False)
