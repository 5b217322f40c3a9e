"""An image of this machine's Python, made here: of its library only what one program imports, and nothing else.

For tests that need a program with a C library inside a container, where no image can be pulled.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from containers.engine_kit import NoEngine

_DIRECTORIES = ["tmp", "proc", "sys", "dev", "etc", "input", "output", "checkpoint", "run", "usr/bin", "usr/lib64"]
_IMPORTED = """
import sys, {modules}
print("\\n".join(m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)))
"""
_ALSO = ["libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"]
"""What libraries that an engine puts into the container may need beyond Python."""


def python() -> str:
    """Where the interpreter is, here and in the image."""
    return str(Path(sys.executable).resolve())


def import_python_image(client: Any, repository: str, modules: str) -> str:
    """An image in which `python()` can import `modules` (comma-separated); its content id. Raises NoEngine."""
    paths = {Path(python()), *_module_files(modules)}
    paths |= {found for path in sorted(paths) if _is_binary(path) for found in _libraries(path)}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", dereference=True) as tar:
        for folder in sorted({*_DIRECTORIES, *_parents(paths)}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path in sorted(paths):
            tar.add(path, str(path).lstrip("/"), filter=_as_root)
    answer = client.import_image_from_data(raw.getvalue(), repository=repository)
    return str(json.loads(answer.splitlines()[-1])["status"])


def _module_files(modules: str) -> set[Path]:
    code = _IMPORTED.format(modules=modules)
    listed = subprocess.run(
        [python(), "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    # os.py is how an interpreter knows its library, imported or not.
    return {Path(line) for line in listed.split("\n") if line} | {Path(json.__file__).parent.parent / "os.py"}


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _libraries(path: Path) -> set[Path]:
    try:
        told = subprocess.run(["ldd", path], capture_output=True, text=True, timeout=30, check=False).stdout
    except FileNotFoundError:
        raise NoEngine("no ldd: an image of this machine's Python cannot be made") from None
    found = {Path(name) for name in re.findall(r"(?:=> )?(/\S+) \(0x", told)}
    beside = {library.parent / name for library in found if library.name == "libc.so.6" for name in _ALSO}
    return found | {library for library in beside if library.exists()}


def _parents(paths: set[Path]) -> set[str]:
    return {str(parent).lstrip("/") for path in paths for parent in path.parents if parent != Path("/")}


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.mode = 0o755
    return entry
