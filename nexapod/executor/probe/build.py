"""Builds the probe for each place that a task may run in, with the pinned Zig: `make wasm`, in its own environment.

    python build.py            rebuild probe-x86_64, probe-aarch64 and probe.wasm in place
    python build.py --check    rebuild them elsewhere; exit 1 unless the bytes are those of the files here

Builds are reproducible: the bytes depend on the source, on the flags here and on the version of Zig, not on where or
when it is built. The committed programs can therefore be checked by anyone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
SOURCE: Final = "probe.c"
BUILD_WAIT_S: Final = 600
COMMON_FLAGS: Final = (
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Os",
    "-s",
    "-ffunction-sections",
    "-Wl,--gc-sections",
)
LINUX_FLAGS: Final = ("-static",)
TARGETS: Final = {
    "probe-x86_64": ("-target", "x86_64-linux-musl", *LINUX_FLAGS),
    "probe-aarch64": ("-target", "aarch64-linux-musl", *LINUX_FLAGS),
    "probe.wasm": ("-target", "wasm32-wasi", "-Wl,-z,stack-size=65536"),
}


class BuildError(Exception):
    """The build failed. The message says why."""


def build(folder: Path) -> list[Path]:
    """All targets, into a folder. Raises BuildError."""
    built = []
    for name, flags in TARGETS.items():
        out = folder.resolve() / name
        _compile(out, flags)
        out.chmod(0o644)  # never executed here: it travels into an image, or to a runner
        built.append(out)
    return built


def _compile(out: Path, flags: tuple[str, ...]) -> None:
    # Relative names and the same working directory everywhere: nothing of the place can reach the output.
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "ziglang", "cc", *flags, *COMMON_FLAGS, SOURCE, "-o", str(out)]
        try:
            done = subprocess.run(  # noqa: S603  (our own words only)
                command,
                cwd=HERE,
                env={**os.environ, "ZIG_LOCAL_CACHE_DIR": scratch},
                capture_output=True,
                text=True,
                timeout=BUILD_WAIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"no end after {BUILD_WAIT_S} s: {' '.join(command)}") from None
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()}")


def differing() -> list[str]:
    """Names of the committed files that a fresh build does not make again. Raises BuildError."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = build(Path(scratch))
        return [
            new.name
            for new in fresh
            if not (HERE / new.name).exists() or new.read_bytes() != (HERE / new.name).read_bytes()
        ]


def main() -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(description="Build the sandbox probe.")
    parser.add_argument("--check", action="store_true", help="compare a fresh build with the files here")
    try:
        if parser.parse_args().check:
            wrong = differing()
            said = (
                f"not what {SOURCE} builds: {', '.join(wrong)}; run build.py"
                if wrong
                else "a fresh build has the same bytes"
            )
            sys.stdout.write(f"{HERE.name}: {said}\n")
            return 1 if wrong else 0
        for path in build(HERE):
            sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")
    except (BuildError, OSError) as error:
        sys.stderr.write(f"build.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
