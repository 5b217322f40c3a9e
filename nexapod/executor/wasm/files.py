"""What a module sees and may do of files: nothing in which two machines differ, and no more than it may have.

Part of the runner process. WASI's own functions do the work; a second, tiny module stands between them and the module
of the task, so that counting costs a write nothing that can be measured (docs/decisions/0013).

Shown alike on every machine: directories are listed by name, files are numbered in the order in which the module first
sees them, and all their times are that of the task's start. A number is forgotten with the file, or the next file could
inherit it on one machine and not on another.

Counted at once, where the daemon only looks now and then: each write and each new name uses up a credit. When that is
gone, what is there is measured, and the run ends if it is too much. A file that was removed but is still open counts.
"""

from __future__ import annotations

import os
import resource
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import wasmtime
from wasmtime import FuncType, ValType

from nexapod.executor.wasm.guest import ERRNO_FAULT, ERRNO_SUCCESS, WASI, store_bytes, view_of

BYTES_SLACK: Final = 256 << 10
"""How far beyond its limits a run may come before it is ended from inside; it is looked at from outside too. Room for
a module that stays just below its limit, whose every write would be measured otherwise."""
PIECE_BYTES: Final = 1 << 20
"""The most that one call reads or writes: a short count, which every program must expect."""
_ROOM_BYTES: Final = 16
"""For one more iovec, wherever the next address that four divides may be."""
FILES_SLACK: Final = 8
DIRECTORIES_MAX: Final = 256
DEPTH_MAX: Final = 16
LISTED_MAX: Final = 16_384
LISTINGS_MAX: Final = 16
IDENTITIES_MAX: Final = 65_536
_PATH_BYTES_MAX: Final = 4096
_SCRATCH_BYTES: Final = 64 << 10
_DIRECTORY, _REGULAR, _SYMLINK = 3, 4, 7
_ERRNO_OVERFLOW: Final = 61
_FILESTAT: Final = struct.Struct("<QQB7xQQQQQ")
"""dev, ino, type, nlink, size, atim, mtim, ctim."""
_DIRENT: Final = struct.Struct("<QQIB3x")
"""next cookie, ino, length of the name, type."""

Grant: TypeAlias = tuple[str, str, tuple[int, int] | None]
"""A directory of this machine, its name for the module, and the bytes and files that may be there; None: read only."""

_Entry: TypeAlias = tuple[int, int, int, bytes]
"""Of a directory: next cookie, ino, type, name."""

_SIGNATURES: Final = {
    "fd_write": "i32 i32 i32 i32",
    "fd_pwrite": "i32 i32 i32 i64 i32",
    "fd_read": "i32 i32 i32 i32",
    "fd_pread": "i32 i32 i32 i64 i32",
    "fd_renumber": "i32 i32",
    "path_open": "i32 i32 i32 i32 i32 i64 i64 i32 i32",
    "path_create_directory": "i32 i32 i32",
    "path_symlink": "i32 i32 i32 i32 i32",
    "path_link": "i32 i32 i32 i32 i32 i32 i32",
    "fd_filestat_get": "i32 i32",
    "path_filestat_get": "i32 i32 i32 i32 i32",
    "fd_readdir": "i32 i32 i32 i64 i32",
    "path_unlink_file": "i32 i32 i32",
    "path_remove_directory": "i32 i32 i32",
    "path_rename": "i32 i32 i32 i32 i32 i32",
}
HOOKED: Final = frozenset(_SIGNATURES)
_PYTHON: Final = {
    "more_bytes": ("i64", "i64"),
    "more_files": ("", "i32"),
    "shape_stat": ("i32", "i32"),
    "readdir": (_SIGNATURES["fd_readdir"], "i32"),
    "unlink": (_SIGNATURES["path_unlink_file"], "i32"),
    "rmdir": (_SIGNATURES["path_remove_directory"], "i32"),
    "rename": (_SIGNATURES["path_rename"], "i32"),
}

# WASI copies what is read or written at once on the heap of this process, which has no room for all that a module may
# have: it is given one piece. Lists and lengths that lie outside of the memory are left for WASI to refuse.
_WAT_PIECES: Final = f"""
;; of a list of iovecs, the first that is not empty, which is all that WASI looks at: where it is, and its length
(func $iovec (param $at i32) (param $n i32) (result i32 i32)
  (local $next i64) (local $end i64) (local $memory i64) (local $size i32)
  (local.set $memory (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)))
  (local.set $next (i64.extend_i32_u (local.get $at)))
  (local.set $end (i64.add (local.get $next) (i64.shl (i64.extend_i32_u (local.get $n)) (i64.const 3))))
  (block $none (loop $each
    (br_if $none (i64.ge_u (local.get $next) (local.get $end)))
    (br_if $none (i64.gt_u (i64.add (local.get $next) (i64.const 8)) (local.get $memory)))
    (local.set $size (i32.load offset=4 (i32.wrap_i64 (local.get $next))))
    (if (local.get $size) (then (return (i32.wrap_i64 (local.get $next)) (local.get $size))))
    (local.set $next (i64.add (local.get $next) (i64.const 8)))
    (br $each)))
  (local.get $at) (i32.const 0))
;; where a list of one piece can lie, at the end of what the iovec names and beyond the piece; 0: it is not cut
(func $place (param $iovec i32) (param $size i32) (result i32)
  (local $end i64)
  (if (i32.or (i32.lt_u (local.get $size) (i32.const {PIECE_BYTES + _ROOM_BYTES}))
      (i32.and (local.get $iovec) (i32.const 3)))
    (then (return (i32.const 0))))
  (local.set $end (i64.add (i64.load32_u (local.get $iovec)) (i64.extend_i32_u (local.get $size))))
  (if (i64.gt_u (local.get $end) (i64.shl (i64.extend_i32_u (memory.size)) (i64.const 16)))
    (then (return (i32.const 0))))
  (i32.and (i32.wrap_i64 (i64.sub (local.get $end) (i64.const 8))) (i32.const -4)))
(func $pay_bytes (param $fd i32) (param $want i32)
  ;; a byte takes a whole block
  (if (i32.lt_u (local.get $want) (i32.const 4096)) (then (local.set $want (i32.const 4096))))
  (if (i32.gt_u (local.get $want) (i32.const {PIECE_BYTES + _ROOM_BYTES}))
    (then (local.set $want (i32.const {PIECE_BYTES + _ROOM_BYTES}))))
  (if (i32.ge_u (local.get $fd) (global.get $first)) (then
    (if (i64.lt_s (global.get $bytes) (i64.extend_i32_u (local.get $want)))
      (then (global.set $bytes (call $more_bytes (i64.extend_i32_u (local.get $want))))))
    (global.set $bytes (i64.sub (global.get $bytes) (i64.extend_i32_u (local.get $want)))))))
(func $pay_file
  (if (i32.le_s (global.get $files) (i32.const 0)) (then (global.set $files (call $more_files))))
  (global.set $files (i32.sub (global.get $files) (i32.const 1))))
"""
# The list that is lent may lie where the result is to be stored: then the result comes last.
_MOVE: Final = """
(local $at i32) (local $size i32) (local $place i32) (local $base i32) (local $kept i64) (local $done i32)
(local $e i32)
(call $iovec (local.get 1) (local.get 2)) (local.set $size) (local.set $at)
{pay}
(local.set $place (call $place (local.get $at) (local.get $size)))
(if (i32.eqz (local.get $place)) (then (return {whole})))
(local.set $kept (i64.load (local.get $place)))
(local.set $base (i32.load (local.get $at)))
(i32.store (local.get $place) (local.get $base))
(i32.store offset=4 (local.get $place) (i32.const {piece}))
(local.set $e {part})
(if (i32.eqz (local.get $e)) (then (local.set $done (i32.load (local.get {result})))))
(i64.store (local.get $place) (local.get $kept))
(if (i32.eqz (local.get $e)) (then (i32.store (local.get {result}) (local.get $done))))
(local.get $e)
"""


def _move(name: str, *, pays: bool) -> str:
    """A read or a write, of one piece at most."""
    result = len(_SIGNATURES[name].split()) - 1
    call = f"(call $raw_{name} (local.get 0) {{list}} {' '.join(f'(local.get {at})' for at in range(3, result + 1))})"
    return _MOVE.format(
        pay="(call $pay_bytes (local.get 0) (local.get $size))" if pays else "",
        whole=call.format(list="(local.get 1) (local.get 2)"),
        part=call.format(list="(local.get $place) (i32.const 1)"),
        piece=PIECE_BYTES,
        result=result,
    )


_PAY_FILE: Final = "(call $pay_file) {raw}"
_SHAPE: Final = "(local $e i32) (local.set $e {raw}) (if (i32.eqz (local.get $e)) (then (local.set $e {shape})))"
_BODIES: Final = {
    "fd_write": _move("fd_write", pays=True),
    "fd_pwrite": _move("fd_pwrite", pays=True),
    "fd_read": _move("fd_read", pays=False),
    "fd_pread": _move("fd_pread", pays=False),
    # Descriptors below $first are the log, until a file takes the place of one.
    "fd_renumber": "(global.set $first (i32.const 0)) {raw}",
    "path_open": "(local $e i32)"
    "(if (i32.and (local.get 4) (i32.const 1)) (then (call $pay_file)))"
    "(local.set $e {raw})"
    "(if (i32.eqz (local.get $e)) (then (if (i32.lt_u (i32.load (local.get 8)) (i32.const 3))"
    "  (then (global.set $first (i32.const 0))))))"
    "(local.get $e)",
    "path_create_directory": _PAY_FILE,
    "path_symlink": _PAY_FILE,
    "path_link": _PAY_FILE,
    "fd_filestat_get": _SHAPE.replace("{shape}", "(call $shape_stat (local.get 1))") + "(local.get $e)",
    "path_filestat_get": _SHAPE.replace("{shape}", "(call $shape_stat (local.get 4))") + "(local.get $e)",
    "fd_readdir": "(call $readdir {args})",
    "path_unlink_file": "(call $unlink {args})",
    "path_remove_directory": "(call $rmdir {args})",
    "path_rename": "(call $rename {args})",
}


class Overrun(Exception):
    """The module has written more, or made more files, than it may."""


@dataclass(frozen=True, slots=True)
class _Stat:
    ino: int
    kind: int
    links: int


class Files:
    """The files of the run in progress, as its module sees them."""

    def __init__(self) -> None:
        self.begin([], 0, 0)

    def begin(self, grants: list[Grant], disk_max: int, stamp_ns: int) -> None:
        """A new run. `disk_max`: bytes in all directories together; `stamp_ns`: the time that all files show."""
        self._grants, self._disk_max, self._stamp_ns = grants, disk_max, stamp_ns
        self._numbers: dict[int, int] = {}
        self._count = 0
        self._listings: dict[int, list[bytes]] = {}
        self._removed = False

    def define(self, linker: wasmtime.Linker) -> None:
        """Put what the shim imports of us into its linker."""
        functions = (
            self._more_bytes,
            self._more_files,
            self._shape_stat,
            self._readdir,
            self._unlink,
            self._rmdir,
            self._rename,
        )
        for (name, (params, result)), function in zip(_PYTHON.items(), functions, strict=True):
            kind = FuncType(_types(params), _types(result))
            linker.define_func("nexapod", name, kind, function, access_caller=True)

    # --- credit
    def _more_bytes(self, _: wasmtime.Caller, want: int) -> int:
        """A new credit, of what is wanted now at least: what a write leaves is measured before the next."""
        allowed = self._disk_max + BYTES_SLACK - (_removed_bytes(self._devices()) if self._removed else 0)
        left = allowed
        for bytes_max, _files_max, found in self._measured():
            allowed -= found.size
            left = min(left, bytes_max + BYTES_SLACK - found.size)
        left = min(left, allowed)
        if left < 0:
            raise Overrun("more bytes than its limits, with the files that it removed and holds open")
        return max(left, want)

    def _more_files(self, _: wasmtime.Caller) -> int:
        left = 1 << 20
        for _bytes_max, files_max, found in self._measured():
            left = min(left, files_max + FILES_SLACK - found.files, DIRECTORIES_MAX + FILES_SLACK - found.directories)
        if left < 0:
            raise Overrun("more files or directories than its limits")
        return left + 1

    def _measured(self) -> Iterator[tuple[int, int, _Found]]:
        with _spare_descriptors():
            for host, _, limits in self._grants:
                if limits is not None:
                    yield *limits, _measure(host)

    def _devices(self) -> frozenset[int]:
        return frozenset(os.stat(host).st_dev for host, _, limits in self._grants if limits is not None)

    # --- what is shown
    def _shape_stat(self, caller: wasmtime.Caller, at: int) -> int:
        view = view_of(caller, at, _FILESTAT.size)
        if view is None:
            return ERRNO_FAULT
        _, ino, kind, links, size, *_times = _FILESTAT.unpack(bytes(view))
        if kind == _DIRECTORY:  # their sizes and links are the file system's own affair
            links, size = 1, 0
        if kind in (_DIRECTORY, _REGULAR, _SYMLINK):
            # Without a name nothing is left that all machines could know it by.
            ino = self._number(ino) if links else 0
        return store_bytes(caller, at, _FILESTAT.pack(1, ino, kind, links, size, *[self._stamp_ns] * 3))

    def _number(self, ino: int) -> int:
        known = self._numbers.get(ino)
        if known is not None:
            return known
        if len(self._numbers) >= IDENTITIES_MAX:
            self._numbers.clear()
        self._count += 1
        self._numbers[ino] = self._count
        return self._count

    def _readdir(self, caller: wasmtime.Caller, fd: int, at: int, size: int, cookie: int, used_at: int) -> int:
        """A listing is made when it is read from its start, so that it stays whole while files come and go."""
        size, cookie = size & 0xFFFFFFFF, cookie & 0xFFFF_FFFF_FFFF_FFFF
        if cookie == 0 or fd not in self._listings:
            listing = self._list(caller, fd)
            if isinstance(listing, int):
                return listing
            if fd not in self._listings and len(self._listings) >= LISTINGS_MAX:
                del self._listings[next(iter(self._listings))]
            self._listings[fd] = listing
        piece = bytearray()
        for entry in self._listings[fd][cookie:]:
            if len(piece) >= size:
                break
            piece += entry
        written = bytes(piece[:size])
        return store_bytes(caller, at, written) or store_bytes(caller, used_at, len(written).to_bytes(4, "little"))

    def _list(self, caller: wasmtime.Caller, fd: int) -> list[bytes] | int:
        """All entries, encoded; or the errno. WASI lists into the module's memory only: a part of it is lent."""
        raw, cookie = _raw(caller, "fd_readdir"), 0
        found: list[_Entry] = []
        with _borrowed(caller, 0, _SCRATCH_BYTES) as scratch:
            if scratch is None:
                return ERRNO_FAULT
            while len(found) <= LISTED_MAX:
                errno = int(raw(caller, fd, 8, _SCRATCH_BYTES - 8, cookie, 0))
                if errno:
                    return errno
                used = int.from_bytes(bytes(scratch[:4]), "little")
                entries = list(_dirents(bytes(scratch[8 : 8 + used])))
                if not entries:
                    return self._encoded(found)
                found += entries
                cookie = entries[-1][0]
        return _ERRNO_OVERFLOW

    def _encoded(self, found: list[_Entry]) -> list[bytes]:
        found = sorted(found, key=lambda entry: (entry[3] not in (b".", b".."), entry[3]))
        return [
            _DIRENT.pack(index, self._number(ino), len(name), kind) + name
            for index, (_, ino, kind, name) in enumerate(found, 1)
        ]

    # --- what is removed
    def _unlink(self, caller: wasmtime.Caller, fd: int, at: int, size: int) -> int:
        return self._remove(caller, "path_unlink_file", (fd, at, size), (fd, at, size))

    def _rmdir(self, caller: wasmtime.Caller, fd: int, at: int, size: int) -> int:
        return self._remove(caller, "path_remove_directory", (fd, at, size), (fd, at, size))

    def _rename(self, caller: wasmtime.Caller, *args: int) -> int:
        """What it replaces is gone."""
        return self._remove(caller, "path_rename", args, (args[3], args[4], args[5]), args[:3])

    def _remove(
        self,
        caller: wasmtime.Caller,
        name: str,
        args: tuple[int, ...],
        target: tuple[int, int, int],
        source: tuple[int, ...] = (),
    ) -> int:
        gone = _stat(caller, *target)
        # Renaming a file onto another name of itself does nothing.
        kept = _stat(caller, *source) if gone and source else None
        errno = int(_raw(caller, name)(caller, *args))
        if errno == ERRNO_SUCCESS:
            self._removed = True
            if gone and gone.ino != (kept and kept.ino) and (gone.links <= 1 or gone.kind == _DIRECTORY):
                self._numbers.pop(gone.ino, None)
        return errno


class Shim:
    """The module between WASI and the task's, in two parts, since each of the two needs something of the other: the
    front is what the task's module imports; the back knows its memory and is reached through a table of the front."""

    def __init__(self, engine: wasmtime.Engine, files: Files) -> None:
        self._engine = engine
        front, back = _wat()
        linker = wasmtime.Linker(engine)
        self._front = linker.instantiate_pre(wasmtime.Module(engine, wasmtime.wat2wasm(front)))
        self._back = wasmtime.Module(engine, wasmtime.wat2wasm(back))
        self._linker = wasmtime.Linker(engine)
        self._linker.define_wasi()
        self._linker.allow_shadowing = True
        files.define(self._linker)

    def instantiate(
        self, store: wasmtime.Store, linker: wasmtime.Linker, module: wasmtime.Module, names: frozenset[str]
    ) -> wasmtime.Instance:
        """An instance of the task's module whose imports `names` (some of HOOKED) go through the shim.

        They work once this returns: a start function that uses files traps. Raises WasmtimeError and Trap.
        """
        front = self._front.instantiate(store).exports(store)
        for name in names:
            linker.define(store, WASI, name, front[name])
        instance = linker.instantiate(store, module)
        self._linker.define(store, "front", "table", front["table"])
        self._linker.define(store, "task", "memory", instance.exports(store)["memory"])
        self._linker.instantiate(store, self._back)
        return instance


def _wat() -> tuple[str, str]:
    """The text of the front and of the back."""
    front, imports, bodies = [], [], []
    for index, (name, params) in enumerate(_SIGNATURES.items()):
        args = " ".join(f"(local.get {at})" for at in range(len(params.split())))
        head = f"(param {params}) (result i32)"
        front.append(f'(func (export "{name}") {head} {args} (call_indirect {head} (i32.const {index})))')
        imports.append(f'(func $raw_{name} (import "{WASI}" "{name}") {head})')
        raw = f"(call $raw_{name} {args})"
        # A function of its own, since WASI looks for the memory in the module that calls it.
        bodies.append(f'(func (export "raw_{name}") {head} {raw})')
        bodies.append(f"(func ${name} {head} {_BODIES[name].replace('{raw}', raw).replace('{args}', args)})")
    for name, (params, result) in _PYTHON.items():
        imports.append(f'(func ${name} (import "nexapod" "{name}") (param {params}) (result {result}))')
    size = len(_SIGNATURES)
    table = " ".join(f"${name}" for name in _SIGNATURES)
    return (
        f'(module (table (export "table") {size} {size} funcref) {" ".join(front)})',
        f'(module (memory (import "task" "memory") 0) (table (import "front" "table") {size} funcref)'
        f'{" ".join(imports)} (export "memory" (memory 0))'
        "(global $bytes (mut i64) (i64.const 0)) (global $files (mut i32) (i32.const 0))"
        "(global $first (mut i32) (i32.const 3))"
        f"{_WAT_PIECES} {' '.join(bodies)} (elem (i32.const 0) {table}))",
    )


def _types(names: str) -> list[ValType]:
    return [ValType.i64() if name == "i64" else ValType.i32() for name in names.split()]


def _raw(caller: wasmtime.Caller, name: str) -> wasmtime.Func:
    """WASI's own function, by way of the back: it finds the module's memory in whoever calls it."""
    function = caller.get(f"raw_{name}")
    assert isinstance(function, wasmtime.Func)
    return function


def _stat(caller: wasmtime.Caller, fd: int, path_at: int, size: int) -> _Stat | None:
    """Of the name itself, a link or not; None when there is none, or WASI would refuse it."""
    path_at, size = path_at & 0xFFFFFFFF, size & 0xFFFFFFFF
    if size > _PATH_BYTES_MAX:
        return None
    at = 0 if path_at >= _FILESTAT.size else 2 * _PATH_BYTES_MAX
    with _borrowed(caller, at, _FILESTAT.size) as scratch:
        if scratch is None or _raw(caller, "path_filestat_get")(caller, fd, 0, path_at, size, at):
            return None
        _, ino, kind, links, *_ = _FILESTAT.unpack(bytes(scratch))
    return _Stat(ino, kind, links)


@contextmanager
def _borrowed(caller: wasmtime.Caller, at: int, size: int) -> Iterator[Any]:
    """A part of the module's memory, put back as it was: the module stands still, and has no threads."""
    view = view_of(caller, at, size)
    kept = None if view is None else bytes(view)
    try:
        yield view
    finally:
        if kept is not None:
            store_bytes(caller, at, kept)


def _dirents(raw: bytes) -> Iterator[_Entry]:
    """Each whole entry."""
    at = 0
    while at + _DIRENT.size <= len(raw):
        cookie, ino, length, kind = _DIRENT.unpack_from(raw, at)
        name = raw[at + _DIRENT.size : at + _DIRENT.size + length]
        if len(name) < length:
            return
        yield cookie, ino, kind, name
        at += _DIRENT.size + length


# --- measuring
@dataclass(slots=True)
class _Found:
    size: int = 0
    files: int = 0
    directories: int = 1


def _measure(directory: str) -> _Found:
    """Nothing changes meanwhile: the module stands still. No path is made longer than a name, and no link followed."""
    found = _Found()
    _measure_into(os.open(directory, os.O_RDONLY | os.O_DIRECTORY), found, 0)
    return found


def _measure_into(fd: int, found: _Found, depth: int) -> None:
    if depth > DEPTH_MAX:
        os.close(fd)
        raise Overrun(f"over {DEPTH_MAX} directories deep")
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    found.directories += 1
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                    _measure_into(os.open(entry.name, flags, dir_fd=fd), found, depth + 1)
                else:
                    found.files += 1
                    found.size += info.st_size
    finally:
        os.close(fd)


def _removed_bytes(devices: frozenset[int]) -> int:
    """Of the files that this process holds open and that have no name any more."""
    total = 0
    for fd in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        try:
            info = os.fstat(fd)
        except OSError:
            continue  # not open
        if info.st_nlink == 0 and stat.S_ISREG(info.st_mode) and info.st_dev in devices:
            total += info.st_size
    return total


@contextmanager
def _spare_descriptors() -> Iterator[None]:
    """A module may hold as many files open as the soft limit grants: measuring must not fail then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
