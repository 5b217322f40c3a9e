"""Modules for the wasm tests, written as text, and one executor to run them in.

`wat` gives a module every import that a test could want and its strings by name, so that a test says only what its
module does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from run_kit import task_run
from wasmtime import wat2wasm

from nexapod.executor.contract import Ended, Report, TaskRun
from nexapod.executor.wasm.sandbox import WasmExecutor
from nexapod.protocol.types import Limits

LIMITS = Limits(memory=32 << 20, output=1 << 20, disk=2 << 20, wall_ms=20_000)
INPUT, OUTPUT, CHECKPOINT, RUN = 3, 4, 5, 6
"""Descriptors of the directories that every module is given."""
_STRINGS_AT = 1024
_WASI = {
    "args_get": "i32 i32",
    "args_sizes_get": "i32 i32",
    "clock_time_get": "i32 i64 i32",
    "environ_get": "i32 i32",
    "environ_sizes_get": "i32 i32",
    "fd_allocate": "i32 i64 i64",
    "fd_close": "i32",
    "fd_fdstat_get": "i32 i32",
    "fd_filestat_get": "i32 i32",
    "fd_filestat_set_size": "i32 i64",
    "fd_filestat_set_times": "i32 i64 i64 i32",
    "fd_pread": "i32 i32 i32 i64 i32",
    "fd_prestat_get": "i32 i32",
    "fd_pwrite": "i32 i32 i32 i64 i32",
    "fd_read": "i32 i32 i32 i32",
    "fd_readdir": "i32 i32 i32 i64 i32",
    "fd_renumber": "i32 i32",
    "fd_seek": "i32 i64 i32 i32",
    "fd_write": "i32 i32 i32 i32",
    "path_create_directory": "i32 i32 i32",
    "path_filestat_get": "i32 i32 i32 i32 i32",
    "path_filestat_set_times": "i32 i32 i32 i32 i64 i64 i32",
    "path_link": "i32 i32 i32 i32 i32 i32 i32",
    "path_open": "i32 i32 i32 i32 i32 i64 i64 i32 i32",
    "path_readlink": "i32 i32 i32 i32 i32 i32",
    "path_remove_directory": "i32 i32 i32",
    "path_rename": "i32 i32 i32 i32 i32 i32",
    "path_symlink": "i32 i32 i32 i32 i32",
    "path_unlink_file": "i32 i32 i32",
    "random_get": "i32 i32",
    "sock_accept": "i32 i32 i32",
    "sock_recv": "i32 i32 i32 i32 i32 i32",
    "sock_send": "i32 i32 i32 i32 i32",
    "sock_shutdown": "i32 i32",
}
_HELPERS = """
(global $allowed (mut i32) (i32.const 0))
;; counts a call that should have been denied
(func $deny (param $errno i32)
  (if (i32.eqz (local.get $errno)) (then (global.set $allowed (i32.add (global.get $allowed) (i32.const 1))))))
;; an error is the end: its number is the exit status
(func $must (param $errno i32) (if (local.get $errno) (then (call $proc_exit (local.get $errno)))))
(func $open (param $dir i32) (param $name i32) (param $size i32) (param $oflags i32) (param $rights i64) (result i32)
  (call $path_open (local.get $dir) (i32.const 1) (local.get $name) (local.get $size) (local.get $oflags)
    (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 124)))
;; a new or emptied file, for reading and writing; its descriptor
(func $create (param $dir i32) (param $name i32) (param $size i32) (result i32)
  (call $must (call $open (local.get $dir) (local.get $name) (local.get $size) (i32.const 9) (i64.const 0x20004e)))
  (i32.load (i32.const 124)))
(func $write (param $fd i32) (param $at i32) (param $size i32) (result i32)
  (i32.store (i32.const 100) (local.get $at))
  (i32.store (i32.const 104) (local.get $size))
  (call $fd_write (local.get $fd) (i32.const 100) (i32.const 1) (i32.const 120)))
;; eight letters at 200 that spell a number
(func $name (param $n i32) (local $i i32)
  (loop $letter
    (i32.store8 offset=200 (local.get $i) (i32.add (i32.const 97) (i32.and (local.get $n) (i32.const 15))))
    (local.set $n (i32.shr_u (local.get $n) (i32.const 4)))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $letter (i32.lt_u (local.get $i) (i32.const 8)))))
"""


def wat(body: str, *, pages: int = 4, more: str = "") -> bytes:
    """A command whose `_start` is `body`; `more` are further fields of the module. In both, `[text]` stands for the
    address and the length of a string, and any number stands for itself as an i32."""
    strings: dict[str, int] = {}
    at = _STRINGS_AT

    def place(found: re.Match[str]) -> str:
        nonlocal at
        text = found[1]
        if text not in strings:
            strings[text] = at
            at += len(text.encode()) + 8 & ~7
        return f"(i32.const {strings[text]}) (i32.const {len(text.encode())})"

    def fill(text: str) -> str:
        text = re.sub(r"\[([^\]]*)\]", place, text)
        return re.sub(r"(?<=[ (])#(-?\d+)", r"(i32.const \1)", text)

    code, fields = fill(body), fill(more)
    imports = "\n".join(
        f'(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {params}) (result i32)))'
        for name, params in _WASI.items()
    )
    data = "\n".join(f'(data (i32.const {at}) "{_quoted(text)}")' for text, at in strings.items())
    return wat2wasm(
        f'(module {imports} (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))'
        f'(memory (export "memory") {pages}) {data} {_HELPERS} {fields}'
        f'(func (export "_start") (local $n i32) (local $fd i32) {code}))'
    )


def _quoted(text: str) -> str:
    return "".join(f"\\{byte:02x}" for byte in text.encode())


@dataclass
class Bench:
    """One executor, and a folder in which its runs lie."""

    executor: WasmExecutor
    root: Path
    reports: list[Report] = field(default_factory=list)
    count: int = 0

    def task(
        self, module: bytes, *command: str, limits: Limits = LIMITS, home: Path | None = None, seed: bytes = bytes(32)
    ) -> TaskRun:
        self.count += 1
        path = self.root / "modules" / f"{self.count}.wasm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(module)
        home = home or self.root / "runs" / str(self.count)
        return task_run(home, f"{self.count:x}", "wasm", *command, module=path, limits=limits, seed=seed)

    async def run(self, run: TaskRun) -> Ended:
        with trio.fail_after(60):
            return await self.executor.run(run, self.reports.append)

    async def do(self, module: bytes, *command: str, limits: Limits = LIMITS) -> Ended:
        return await self.run(self.task(module, *command, limits=limits))


@contextmanager
def counted_descriptors() -> Iterator[None]:
    """Nothing is left open in this process either."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before


def bytes_in(*directories: Path) -> int:
    """What lies on the disk."""
    found = 0
    for directory in directories:
        for path in directory.rglob("*"):
            info = path.lstat()
            if path.is_file() and not path.is_symlink():
                found += info.st_blocks * 512
    return found
