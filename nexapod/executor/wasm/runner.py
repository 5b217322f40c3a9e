"""The process that executes WebAssembly: one module run at a time, WASI preview 1, nothing but what a request grants.

Started by runners.py as `python -m nexapod.executor.wasm.runner`; requests and replies are length-prefixed msgpack on
stdin and stdout (see `main`), what is printed appears on a shared page at once (board.py). Imports little, so that it
starts fast and small. Knows nothing of tasks, peers or the network: a module, four directories, limits and a seed come
in; how it ended goes out.

Replicas of a task must agree to the bit, so nothing of this machine reaches the module: NaNs are canonical, SIMD is
deterministic, there are no threads; clock and randomness are functions of the seed (guest.py), and files look
alike everywhere (files.py).

Bounds, from the inside: the module's memory and tables by the store's limiter, its time by epoch interruption, what it
writes by counting it and each file by RLIMIT_FSIZE, the process's own memory by RLIMIT_DATA. RLIMIT_AS cannot be used:
wasmtime reserves 4 GiB of address space for every memory, whatever its size. RLIMIT_DATA counts writable private pages
only, and a reservation is not writable until the module grows into it. The parent bounds everything once more, from
the outside.
"""

from __future__ import annotations

import _thread
import os
import re
import resource
import select
import sys
import time
from collections.abc import Callable
from io import BufferedIOBase
from typing import Any, Final, NamedTuple

import msgpack
import wasmtime

from nexapod.executor.wasm.board import Pen
from nexapod.executor.wasm.cache import compiled, engine_config
from nexapod.executor.wasm.confine import confine
from nexapod.executor.wasm.files import HOOKED, Files, Overrun, Shim
from nexapod.executor.wasm.guest import WASI, Guest, Senses, TaskExit
from nexapod.protocol.limits import MODULE_BYTES_MAX

TABLE_ELEMENTS_MAX: Final = 1 << 20
TABLES_MAX: Final = 17
"""The module's 16 and the shim's."""
INSTANCES_MAX: Final = 3
"""The module's and the shim's two."""
DATA_SLACK: Final = 512 << 20
"""Writable memory beyond the module's own, in bytes: the interpreter, compiled code, compiling. The last is what
MODULE_BYTES_MAX goes by: a module is there four times meanwhile."""
RUN_BYTES: Final = 64 << 20
"""Of that, what is left for a run besides its module's memory: the stacks of WASI's threads, what is read or written at
once, listings."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
WATCH_S_MAX: Final = 3600.0
"""The watchdog looks up at least so often. poll waits a C int of milliseconds, 24 days, and a run may have 30."""
EXIT_UNWATCHED: Final = 70
"""EX_SOFTWARE: what this process ends with when its watchdog fails."""
_NEVER: Final = float("inf")
_OS_ERROR: Final = re.compile(r"\(os error \d+\)$")
"""How Rust ends what it says of an error of the system."""
_ONE_MEMORY: Final = b"\0asm\x01\0\0\0" + b"\x05\x03\x01\x00\x01"
"""A module: a memory of one page, and nothing else."""


class Watchdog:
    """Ends a run at its wall limit by moving the engine's epoch, and this process when its parent is gone. The process
    ends as well when the watchdog itself fails: an endless loop would outlive the daemon otherwise.

    `paused_ns`: for how long the run has stood still, which is no part of its time.
    """

    def __init__(self, engine: wasmtime.Engine, paused_ns: Callable[[], int]) -> None:
        self._engine = engine
        self._paused_ns = paused_ns
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = _thread.allocate_lock()
        self._deadline = _NEVER
        self._sleeps_until = _NEVER
        self.fired = False
        _thread.start_new_thread(self._watch_or_end, ())

    def start(self, seconds: float) -> None:
        with self._lock:
            self.fired = False
            self._deadline = time.monotonic() + seconds
            # Waking the thread costs more than a tiny task: only when it would sleep past this deadline.
            wake = self._deadline < self._sleeps_until
        if wake:
            os.eventfd_write(self._wake, 1)

    def stop(self) -> bool:
        """Whether the limit was hit. The epoch does not move after this."""
        with self._lock:
            self._deadline = _NEVER
            return self.fired

    def _watch_or_end(self) -> None:
        try:
            self._watch()
        except BaseException as error:
            # The parent shows our stderr. No exit handler is waited for: the module may be in an endless loop.
            os.write(2, f"the watchdog failed: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(EXIT_UNWATCHED)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(0, 0)  # only hang-up: the parent's end of our stdin is closed
        while True:
            with self._lock:
                now, paused_s = time.monotonic(), self._paused_ns() / 1e9
                if now - paused_s >= self._deadline:
                    self.fired = True
                    self._deadline = _NEVER
                    self._engine.increment_epoch()
                self._sleeps_until = self._deadline + paused_s
            wait_s = min(self._sleeps_until - now, WATCH_S_MAX)
            ready = dict(poll.poll(wait_s * 1000 + 1))
            if 0 in ready:
                os._exit(0)
            if self._wake in ready:
                os.eventfd_read(self._wake)


class Loaded(NamedTuple):
    """A compiled module. `pre`: ready to run as it is; None: by way of the shim, for these of its imports."""

    module: wasmtime.Module
    pre: wasmtime.InstancePre | None
    hooked: frozenset[str]


class Runner:
    """The engine, the compiled modules, and one run at a time."""

    def __init__(self, pen: Pen) -> None:
        self._engine = wasmtime.Engine(engine_config())
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        self._linker.allow_shadowing = True
        self._senses = Senses()
        self._senses.define(self._linker)
        self._files = Files()
        self._shim = Shim(self._engine, self._files)
        self._modules: dict[str, Loaded] = {}
        self._pen = pen
        self._watchdog = Watchdog(self._engine, pen.paused_ns)

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Compile a module, or take it from the cache; hold it under `key` until told to `drop` it."""
        for key in request["drop"]:
            self._modules.pop(key, None)
        _limit_process(request["memory"], request["file_bytes"])
        with open(request["path"], "rb") as file:
            return self._load(request["key"], file, request["cache"])

    def _load(self, key: str, file: BufferedIOBase, cache: str | None) -> dict[str, Any]:
        if os.fstat(file.fileno()).st_size > MODULE_BYTES_MAX:
            return {"kind": "refused", "message": f"a module has at most {MODULE_BYTES_MAX >> 20} MiB"}
        if file.read(4) != b"\0asm":
            return {"kind": "refused", "message": "not a WebAssembly module"}
        try:
            module = compiled(self._engine, file, cache)
            if not _is_command(module):
                return {"kind": "refused", "message": "it must export _start and memory (a WASI command)"}
            # Also where the imports are files, which are linked anew for each run: what is missing shows now.
            pre = self._linker.instantiate_pre(module)
        except wasmtime.WasmtimeError as error:
            return _refusal(error)
        hooked = frozenset(i.name for i in module.imports if i.module == WASI and i.name in HOOKED)
        self._modules[key] = Loaded(module, None if hooked else pre, hooked)
        return {"kind": "loaded"}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a loaded module's `_start` once, in a store of its own; `full`: this process cannot hold it."""
        if (held := _data_bytes()) > DATA_SLACK - RUN_BYTES:
            return {"kind": "full", "message": f"the wasm runner itself holds {held >> 20} MiB"}
        self._pen.clear()
        self._senses.guest = guest = Guest(request["seed"])
        self._files.begin(request["dirs"], request["disk"], guest.start_ns)
        _limit_process(request["memory"], request["file_bytes"])
        cpu = time.process_time()
        began = time.monotonic()
        store = wasmtime.Store(self._engine)
        store.set_limits(request["memory"], TABLE_ELEMENTS_MAX, INSTANCES_MAX, TABLES_MAX, 1)
        store.set_epoch_deadline(1)
        self._watchdog.start(request["wall_ms"] / 1000)
        try:
            store.set_wasi(_wasi(request, self._pen))
            ended, memory = self._call(store, self._modules[request["key"]])
        finally:
            fired = self._watchdog.stop()
        store.close()
        if fired and ended["kind"] == "trap":
            ended = {"kind": "interrupted"}
        ran_s = time.monotonic() - began - self._pen.paused_ns() / 1e9
        return ended | {
            "cpu_ms": round((time.process_time() - cpu) * 1000),
            "wall_ms": max(0, round(ran_s * 1000)),
            "memory": memory,
        }

    def prove(self, _request: dict[str, Any]) -> dict[str, Any]:
        """That a module can be compiled and have a memory here, for which 4 GiB of addresses are reserved."""
        _limit_process(1 << 20, 1 << 20)
        store = wasmtime.Store(self._engine)
        wasmtime.Instance(store, wasmtime.Module(self._engine, _ONE_MEMORY), [])
        store.close()
        return {"kind": "proved"}

    def _call(self, store: wasmtime.Store, loaded: Loaded) -> tuple[dict[str, Any], int]:
        """How it ended, and the bytes of its linear memory, which never shrinks: its peak."""
        memory = None
        try:
            instance = self._instance(store, loaded)
            exports = instance.exports(store)
            memory = exports["memory"]
            start = exports["_start"]
            assert isinstance(start, wasmtime.Func)
            start(store)
            ended: dict[str, Any] = {"kind": "exit", "code": 0}
        except TaskExit as stop:
            ended = {"kind": "exit", "code": stop.code}
        except Overrun as overrun:
            ended = {"kind": "overrun", "message": str(overrun)}
        except wasmtime.Trap as trap:
            ended = {"kind": "trap", "message": _message(trap)}
        except wasmtime.WasmtimeError as error:
            # Instantiating went over a limit (the message names it), or the start function is not callable so.
            ended = {"kind": "trap", "message": _message(error)} if memory else _refusal(error)
        size = memory.data_len(store) if isinstance(memory, wasmtime.Memory) else 0
        return ended, size

    def _instance(self, store: wasmtime.Store, loaded: Loaded) -> wasmtime.Instance:
        if loaded.pre is not None:
            return loaded.pre.instantiate(store)
        return self._shim.instantiate(store, self._linker, loaded.module, loaded.hooked)


def _is_command(module: wasmtime.Module) -> bool:
    kinds = {export.name: export.type for export in module.exports}
    start = kinds.get("_start")
    return (
        isinstance(start, wasmtime.FuncType)
        and not (start.params or start.results)
        and isinstance(kinds.get("memory"), wasmtime.MemoryType)
    )


def _wasi(request: dict[str, Any], pen: Pen) -> wasmtime.WasiConfig:
    wasi = wasmtime.WasiConfig()
    wasi.argv = request["argv"]
    wasi.env = request["env"]
    wasi.stdout_custom = pen.write_stdout
    wasi.stderr_custom = pen.write
    for host, guest, limits in request["dirs"]:
        wasi.preopen_dir(host, guest, limits is not None)
    return wasi


def _limit_process(memory: int, file_bytes: int) -> None:
    """Soft limits, since the next run may be granted more. See the module's text for why RLIMIT_DATA."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory + DATA_SLACK, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process, and its stack. Near the limit a module would be denied memory that its
    job grants, see that and go on: its result would not be that of other machines."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[5]) * _PAGE_BYTES


def _refusal(error: wasmtime.WasmtimeError) -> dict[str, Any]:
    """What is wrong with a module is so everywhere; what the system denied (memory, as a rule) another may have."""
    message = _message(error)
    return {"kind": "error" if _OS_ERROR.search(message) else "refused", "message": message}


def _message(error: Exception) -> str:
    """wasmtime tells the whole way to an error, and its cause at the end."""
    return str(error).rpartition("Caused by:")[2].strip()[-4096:]


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            sys.exit(0)  # the parent is done with us
        data += piece
    return data


def _send(fd: int, message: dict[str, Any]) -> None:
    body = msgpack.packb(message | {"process_cpu_ms": round(time.process_time() * 1000)})
    frame = memoryview(len(body).to_bytes(4, "big") + body)
    while frame:
        frame = frame[os.write(fd, frame) :]


def main() -> None:
    """Serve until stdin ends, or until no request came for argv[1] seconds. The other arguments: the priority, the
    descriptor of the page, and the directories that may be used, each after an r or a w.

    A frame is u32 length and msgpack. First out: {kind: ready}. Then each request, `prove`, `load` or `run` by its
    `op`, gets one reply whose `kind` says how it went; `error` is a mistake of ours or this machine's, all else the
    module's doing.
    """
    idle_s, priority, board, *roots = float(sys.argv[1]), *sys.argv[2:]
    out = os.dup(1)
    os.dup2(2, 1)  # nothing that prints may break the framing
    fences = confine(priority, roots)
    runner = Runner(Pen(int(board)))
    operations = {"prove": runner.prove, "load": runner.load, "run": runner.run}
    _send(out, {"kind": "ready", "fences": fences})
    while select.select([0], [], [], idle_s)[0]:
        request = msgpack.unpackb(_read_exactly(0, int.from_bytes(_read_exactly(0, 4), "big")))
        try:
            reply = operations[request["op"]](request)
        except Exception as error:
            reply = {"kind": "error", "message": f"{type(error).__name__}: {error}"[:4096]}
        _send(out, reply)


if __name__ == "__main__":
    main()
