#!/usr/bin/env python3
"""Builds secondary_structure.wasm, or the same program as a native static binary, with the pinned Zig.

    python build.py                      rebuild secondary_structure.wasm in place
    python build.py --check              rebuild it elsewhere; exit 1 unless the bytes are those of the file here
    python build.py --native OUT         a static Linux binary (musl); --arch x86_64 | aarch64, default this machine
    python build.py --install ...        first make .venv-wasm, beside requirements-wasm.lock, with the pinned Zig

Builds are reproducible: the bytes depend on the sources, on the flags here and on the version of Zig, not on where or
when it is built. The committed module can therefore be checked by anyone.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
LOCK = REPOSITORY / "requirements-wasm.lock"
VENV = REPOSITORY / ".venv-wasm"
MODULE = HERE / "secondary_structure.wasm"
SOURCES = ("network.c", "predict.c")
ZIG_VERSION = "0.15.1"
BUILD_WAIT_S = 600

# -ffp-contract=off and the plain SSE2/NEON baseline: no fused multiply-add, which would change bits (src/network.h).
# __DATE__ and paths: none is used, and without debug information (-s) none gets in.
COMMON_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2", "-s", "-ffp-contract=off")
WASM_FLAGS = ("-target", "wasm32-wasi", "-Wl,-z,stack-size=65536")
ARCHITECTURES = ("x86_64", "aarch64")


class BuildError(Exception):
    """The build failed. The message says why and what to do."""


def zig_command() -> list[str]:
    """How to call the pinned Zig. Raises BuildError when it is not installed, or is another version."""
    python = VENV / "bin" / "python"
    if not python.exists():
        raise BuildError(f"there is no {VENV}: run this with --install (downloads about 90 MB)")
    command = [str(python), "-m", "ziglang"]
    version = _run([*command, "version"], {}).strip()
    if version != ZIG_VERSION:
        raise BuildError(f"{VENV} holds Zig {version}, not {ZIG_VERSION}: remove it and use --install")
    return command


def install() -> None:
    """Makes the virtual environment with the locked Zig, unless it is there. Raises BuildError."""
    if (VENV / "bin" / "python").exists():
        return
    venv.create(VENV, with_pip=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--require-hashes", "--no-deps", "--only-binary=:all:", "--requirement", str(LOCK)], {})


def build_wasm(out: Path) -> None:
    """The WASI preview 1 module. Raises BuildError."""
    _compile(out, WASM_FLAGS)


def build_native(out: Path, arch: str | None = None) -> None:
    """A static Linux binary for `arch` (default: this machine's). Raises BuildError."""
    arch = arch or machine()
    if arch not in ARCHITECTURES:
        raise BuildError(f"the native build is for {' and '.join(ARCHITECTURES)}, not {arch}")
    _compile(out, ("-target", f"{arch}-linux-musl", "-static"))
    out.chmod(0o755)


def machine() -> str:
    """This machine's architecture in Zig's words."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())


def _compile(out: Path, flags: tuple[str, ...]) -> None:
    out = out.resolve()
    # Relative names and the same working directory everywhere: nothing of the place can reach the output.
    with tempfile.TemporaryDirectory() as scratch:
        command = [*zig_command(), "cc", *flags, *COMMON_FLAGS, *SOURCES, "-o", str(out)]
        _run(command, {"ZIG_LOCAL_CACHE_DIR": scratch}, cwd=HERE / "src")


def _run(command: list[str], extra_env: dict[str, str], cwd: Path = HERE) -> str:
    env = {**os.environ, **extra_env}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=BUILD_WAIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"no end after {BUILD_WAIT_S} s: {' '.join(command)}") from error
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()}")
    return done.stdout


def differs_from_committed() -> bool:
    """Rebuilds the module elsewhere and compares. Raises BuildError."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / MODULE.name
        build_wasm(fresh)
        return not MODULE.exists() or fresh.read_bytes() != MODULE.read_bytes()


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(description="Build the secondary structure program.")
    parser.add_argument("--install", action="store_true", help="first install the pinned Zig into .venv-wasm")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="compare a fresh build with the module here")
    what.add_argument("--native", type=Path, metavar="OUT", help="build a static Linux binary instead")
    parser.add_argument("--arch", choices=ARCHITECTURES, help="of the native binary")
    options = parser.parse_args(arguments)
    try:
        if options.install:
            install()
        if options.native:
            build_native(options.native, options.arch)
        elif options.check:
            if differs_from_committed():
                print(f"{MODULE.name} is not what its sources build: run build.py", file=sys.stderr)
                return 1
            print(f"{MODULE.name}: a fresh build has the same bytes")
        else:
            build_wasm(MODULE)
            print(f"{MODULE}: {MODULE.stat().st_size} bytes")
    except (BuildError, OSError, subprocess.CalledProcessError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
