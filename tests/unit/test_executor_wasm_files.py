"""The shim around WASI's reads and writes, called as a module would call it, and beside it WASI without the shim: a
call that moves too much is cut to one piece, and nothing else differs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from wasmtime import wat2wasm

from nexapod.executor.wasm.cache import engine_config
from nexapod.executor.wasm.files import BYTES_SLACK, HOOKED, PIECE_BYTES, Files, Overrun, Shim
from nexapod.executor.wasm.guest import WASI

MEMORY = 48 << 16
CUT_FROM = PIECE_BYTES + 16
OWN = 64
"""Below it lies what only the test uses: a list of one iovec."""
DATA = bytes(range(251)) * 10_500
_MOVES = {
    "fd_read": "i32 i32 i32 i32",
    "fd_write": "i32 i32 i32 i32",
    "fd_pread": "i32 i32 i32 i64 i32",
    "fd_pwrite": "i32 i32 i32 i64 i32",
}
_CALLS = _MOVES | {"path_open": "i32 i32 i32 i32 i32 i64 i64 i32 i32"}
_ENGINE = wasmtime.Engine(engine_config())


def _module() -> wasmtime.Module:
    """All that it imports it exports."""
    imports, exports = "", ""
    for name, params in _CALLS.items():
        args = " ".join(f"(local.get {at})" for at in range(len(params.split())))
        imports += f'(func ${name} (import "{WASI}" "{name}") (param {params}) (result i32))'
        exports += f'(func (export "{name}") (param {params}) (result i32) (call ${name} {args}))'
    return wasmtime.Module(_ENGINE, wat2wasm(f'(module {imports} (memory (export "memory") 48) {exports})'))


_MODULE = _module()


class Caller:
    """A module in a folder of its own, with a file open for reading and writing."""

    def __init__(self, folder: Path, *, shim: bool, bytes_max: int = 1 << 30) -> None:
        linker = wasmtime.Linker(_ENGINE)
        linker.define_wasi()
        linker.allow_shadowing = True
        self.store = wasmtime.Store(_ENGINE)
        self.store.set_epoch_deadline(1)
        wasi = wasmtime.WasiConfig()
        wasi.preopen_dir(str(folder), "/home", True)
        self.store.set_wasi(wasi)
        self.file = folder / "file"
        self.file.write_bytes(DATA)
        if shim:
            files = Files()
            files.begin([(str(folder), "/home", (bytes_max, 64))], bytes_max, 0)
            names = HOOKED & _CALLS.keys()
            instance = Shim(_ENGINE, files).instantiate(self.store, linker, _MODULE, names)
        else:
            instance = linker.instantiate(self.store, _MODULE)
        self.exports = instance.exports(self.store)
        memory = self.exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self.memory = memory
        self.put(0, b"file")
        assert self.call("path_open", 3, 0, 0, 4, 0, 0x6E, 0, 0, 8) == 0
        self.fd = int.from_bytes(self.memory.read(self.store, 8, 12), "little")
        self.put(0, (b"module" * (MEMORY // 6 + 1))[:MEMORY])

    def call(self, name: str, *args: int) -> int | str:
        """The errno, or how it trapped."""
        function: Any = self.exports[name]
        try:
            return int(function(self.store, *args))
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            return str(error).rpartition("Caused by:")[2]

    def move(self, name: str, at: int, count: int, result_at: int) -> int | str:
        offset = (77,) if name.startswith("fd_p") else ()
        return self.call(name, self.fd, at, count, *offset, result_at)

    def put(self, at: int, data: bytes) -> None:
        self.memory.write(self.store, data, at)

    def all(self) -> bytes:
        return bytes(self.memory.read(self.store))


@contextmanager
def _two() -> Iterator[tuple[Caller, Caller]]:
    """With the shim and without it."""
    home = Path(tempfile.mkdtemp())
    try:
        for name in ("shim", "plain"):
            (home / name).mkdir()
        yield Caller(home / "shim", shim=True), Caller(home / "plain", shim=False)
    finally:
        shutil.rmtree(home)


def _iovecs(*iovecs: tuple[int, int]) -> bytes:
    return b"".join(at.to_bytes(4, "little") + size.to_bytes(4, "little") for at, size in iovecs)


_AT = st.one_of(st.integers(OWN // 4, MEMORY // 4 - 9), st.sampled_from([16, 17, 1 << 18, MEMORY // 4 - 9])).map(
    lambda at: at * 4
)
_SIZES = st.one_of(
    st.sampled_from([1, 4096, PIECE_BYTES - 1, PIECE_BYTES, CUT_FROM - 1, CUT_FROM, CUT_FROM + 1, 2 << 20]),
    st.integers(1, MEMORY - OWN),
)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(_MOVES)),
    st.integers(OWN, MEMORY - 1),
    _SIZES,
    st.integers(0, 3),
    st.integers(0, 2),
    _AT,
    _AT,
)
@example("fd_read", OWN, 2 << 20, 0, 0, OWN, OWN)
@example("fd_read", OWN, 2 << 20, 0, 0, (2 << 20) + OWN - 8, (2 << 20) + OWN - 8)
@example("fd_read", OWN, 2 << 20, 0, 0, (2 << 20) + OWN - 4, (2 << 20) + OWN - 4)
@example("fd_read", OWN + 1, CUT_FROM, 0, 0, (CUT_FROM + OWN) // 4 * 4, (CUT_FROM + OWN - 12) // 4 * 4)
@example("fd_pread", OWN + 3, CUT_FROM, 1, 0, MEMORY - 36, CUT_FROM + OWN)
@example("fd_write", OWN, MEMORY - OWN, 0, 2, OWN, OWN)
@example("fd_pwrite", OWN, MEMORY - OWN, 2, 0, MEMORY - 36, MEMORY - 12)
def test_a_call_does_what_wasi_does_with_one_piece(
    name: str, base: int, size: int, empty_before: int, more_after: int, list_at: int, result_at: int
) -> None:
    """Wherever list, buffer and result lie, also in one another."""
    size = min(size, MEMORY - base)
    iovecs = [(base, 0)] * empty_before + [(base, size)] + [(base, 9)] * more_after
    assume(list_at + 8 * len(iovecs) <= MEMORY)
    with _two() as (shim, plain):
        for caller in (shim, plain):
            caller.put(0, _iovecs((base, size if size < CUT_FROM else PIECE_BYTES)))
            caller.put(list_at, _iovecs(*iovecs))
        assert shim.move(name, list_at, len(iovecs), result_at) == plain.move(name, 0, 1, result_at) == 0
        assert shim.all() == plain.all()
        assert shim.file.read_bytes() == plain.file.read_bytes()


_ODD = st.one_of(
    st.integers(0, MEMORY + 64),
    st.sampled_from([0, 4, 6, MEMORY - 8, MEMORY - 4, MEMORY, MEMORY + 4, (1 << 31) - 8, -8, -4, -1]),
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(_MOVES)), st.lists(st.tuples(_ODD, _ODD), max_size=3), _ODD, st.integers(0, 4), _ODD)
@example("fd_write", [(0, 0), (0, 0)], 512, 2, 256)
@example("fd_read", [], 512, 0, 256)
@example("fd_write", [(0, 5)], MEMORY - 8, 2, 256)
@example("fd_write", [(0, 0)], MEMORY - 8, 2, 256)
@example("fd_write", [(MEMORY - 9, 10)], 512, 1, 256)
@example("fd_read", [(MEMORY - PIECE_BYTES, PIECE_BYTES + 100)], 512, 1, 256)
@example("fd_write", [(0, -1)], 512, 1, 256)
@example("fd_read", [(0, 2 << 20)], 513, 1, 256)
@example("fd_write", [(0, 2 << 20)], 514, 1, 256)
def test_what_wasi_refuses_it_refuses_still(
    name: str, iovecs: list[tuple[int, int]], list_at: int, count: int, result_at: int
) -> None:
    low = [(base & 0xFFFFFFFF, size & 0xFFFFFFFF) for base, size in iovecs]
    first = next(((base, size) for base, size in low[:count] if size), (0, 0))
    assume(list_at % 4 or first[1] < CUT_FROM or sum(first) > MEMORY)
    with _two() as (shim, plain):
        for caller in (shim, plain):
            if low and 0 <= list_at <= MEMORY - 8 * len(low):
                caller.put(list_at, _iovecs(*low))
        assert shim.move(name, list_at, count, result_at) == plain.move(name, list_at, count, result_at)
        assert shim.all() == plain.all()
        assert shim.file.read_bytes() == plain.file.read_bytes()


@pytest.mark.parametrize("name", ["fd_write", "fd_pwrite"])
def test_what_is_written_is_paid_for_piece_by_piece(tmp_path: Path, name: str) -> None:
    """No more comes to lie beyond the limit than the slack and one piece, however much a call asks for."""
    caller = Caller(tmp_path, shim=True, bytes_max=8 << 20)
    caller.put(OWN, _iovecs((0, MEMORY)))

    def write(at: int) -> int:
        offset = (at,) if name == "fd_pwrite" else ()
        assert caller.call(name, caller.fd, OWN, 1, *offset, 256) == 0
        return int.from_bytes(caller.memory.read(caller.store, 256, 260), "little")

    written = 0
    while written <= 8 << 20:
        written += write(written)
    assert written <= (8 << 20) + BYTES_SLACK + PIECE_BYTES
    with pytest.raises(Overrun):
        write(written)
    assert caller.file.stat().st_size == written
