"""The process that executes WebAssembly: one module run at a time, WASI preview 1, nothing but what a request grants.

Started by wasm.py as `python -m nexapod.executor.wasm_runner`; requests and replies are length-prefixed msgpack on
stdin and stdout (see `main`). Imports little, so that it starts fast and small. Knows nothing of tasks, peers or
the network: a module, four directories, limits and a seed come in; how it ended goes out.

Replicas of a task must agree to the bit, so nothing of this machine reaches the module: NaNs are canonical, SIMD is
deterministic, there are no threads, and clock and randomness are functions of the seed (class Guest). What stays
visible are the time stamps and inode numbers of files, and the order in which a directory is listed.

Bounds, from the inside: the module's memory and tables by the store's limiter, its time by epoch interruption, each
file by RLIMIT_FSIZE, the process's own memory by RLIMIT_DATA. RLIMIT_AS cannot be used: wasmtime reserves 4 GiB of
address space for every memory, whatever its size. RLIMIT_DATA counts writable private pages only, and a reservation
is not writable until the module grows into it. The parent bounds everything once more, from the outside.
"""

from __future__ import annotations

import _thread
import ctypes
import hashlib
import os
import resource
import select
import struct
import sys
import time
from typing import Any, Final

import msgpack
import wasmtime
from wasmtime import FuncType, ValType

from nexapod.executor.capture import Capture
from nexapod.executor.confine import confine

CACHE_FILES_MAX: Final = 64
TABLE_ELEMENTS_MAX: Final = 1 << 20
DATA_SLACK: Final = 512 << 20
"""Writable memory beyond the module's own, in bytes: the interpreter, compiled code, compiling."""
CLOCK_BASE_NS: Final = 1_577_836_800 * 10**9
"""2020-01-01: the earliest that a module's clock shows. The seed adds up to a year."""
CLOCK_STEP_NS: Final = 1_000_000
"""How far a module's clock moves each time it is read: a loop that waits for time to pass ends."""
CACHE_BYTES_MAX: Final = 512 << 20
CONFIG_VERSION: Final = 1
"""Raise it with any change of _config. Wasmtime itself refuses code of another version or CPU."""
POLL_MAX: Final = 1024
_NEVER: Final = float("inf")
_ERRNO_SUCCESS, _ERRNO_FAULT, _ERRNO_INVAL = 0, 21, 28
_SUBSCRIPTION: Final = struct.Struct("<QB7xI4xQQH6x")
"""userdata, tag; then of a clock: id, timeout (ns), precision, flags. Files use the same 48 bytes."""
_EVENT: Final = struct.Struct("<QHB5xQ8x")
"""userdata, error, type, bytes to read."""
_WASI: Final = "wasi_snapshot_preview1"


class TaskExit(Exception):
    """The module called proc_exit."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Guest:
    """What the running module sees instead of this machine's clock and randomness: both come from the seed."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._block = 0
        self._pool = b""
        year_s = 365 * 24 * 3600
        self._real_ns = CLOCK_BASE_NS + int.from_bytes(seed[:8], "big") % year_s * 10**9
        self._passed_ns = 0

    def now_ns(self, clock: int) -> int:
        """Clock 0 is the wall clock, the others count from the start."""
        self._passed_ns += CLOCK_STEP_NS
        return self._passed_ns + (self._real_ns if clock == 0 else 0)

    def sleep_ns(self, clock: int, timeout_ns: int, absolute: bool) -> None:
        """Time passes at once: waiting costs a volunteer nothing."""
        if absolute:
            timeout_ns -= self._passed_ns + (self._real_ns if clock == 0 else 0)
        self._passed_ns = min(self._passed_ns + max(0, timeout_ns), 1 << 62)

    def random(self, size: int) -> bytes:
        while len(self._pool) < size:
            chunk = max(64, min(size - len(self._pool), 1 << 16))
            counter = self._block.to_bytes(8, "big")
            self._pool += hashlib.shake_256(b"nexapod/random\0" + self._seed + counter).digest(chunk)
            self._block += 1
        taken, self._pool = self._pool[:size], self._pool[size:]
        return taken


class Watchdog:
    """Ends a run at its wall limit by moving the engine's epoch, and this process when its parent is gone."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = _thread.allocate_lock()
        self._deadline = _NEVER
        self._sleeps_until = _NEVER
        self.fired = False
        _thread.start_new_thread(self._watch, ())

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

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(0, 0)  # only hang-up: the parent's end of our stdin is closed
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._deadline:
                    self.fired = True
                    self._deadline = _NEVER
                    self._engine.increment_epoch()
                self._sleeps_until = self._deadline
            wait_ms = None if self._sleeps_until == _NEVER else (self._sleeps_until - now) * 1000 + 1
            ready = dict(poll.poll(wait_ms))
            if 0 in ready:
                os._exit(0)
            if self._wake in ready:
                os.eventfd_read(self._wake)


class Runner:
    """The engine, the compiled modules, and one run at a time."""

    def __init__(self) -> None:
        self._engine = wasmtime.Engine(_config())
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        self._linker.allow_shadowing = True
        self._guest = Guest(bytes(32))
        self._define_guest()
        self._modules: dict[str, wasmtime.InstancePre] = {}
        self._watchdog = Watchdog(self._engine)

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Compile a module, or take it from the cache; hold it under `key` until told to `drop` it."""
        for key in request["drop"]:
            self._modules.pop(key, None)
        with open(request["path"], "rb") as file:
            raw = file.read()
        if not raw.startswith(b"\0asm"):
            return {"kind": "refused", "message": "not a WebAssembly module"}
        _limit_process(request["memory"], request["file_bytes"])
        try:
            module = _compiled(self._engine, raw, request["cache"])
            self._modules[request["key"]] = self._linker.instantiate_pre(module)
        except wasmtime.WasmtimeError as error:
            return {"kind": "refused", "message": _message(error)}
        return {"kind": "loaded"}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a loaded module's `_start` once, in a store of its own."""
        printed = Capture()
        self._guest = Guest(request["seed"])
        _limit_process(request["memory"], request["file_bytes"])
        cpu = time.process_time()
        began = time.monotonic()
        store = wasmtime.Store(self._engine)
        store.set_limits(request["memory"], TABLE_ELEMENTS_MAX, 1, 16, 1)
        store.set_epoch_deadline(1)
        self._watchdog.start(request["wall_ms"] / 1000)
        try:
            store.set_wasi(_wasi(request, printed))
            ended, memory = self._call(store, self._modules[request["key"]])
        finally:
            fired = self._watchdog.stop()
        store.close()
        if fired and ended["kind"] == "trap":
            ended = {"kind": "interrupted", "message": ""}
        return ended | {
            "cpu_ms": round((time.process_time() - cpu) * 1000),
            "wall_ms": round((time.monotonic() - began) * 1000),
            "memory": memory,
            "printed": [printed.head, printed.tail, printed.total],
        }

    def _call(self, store: wasmtime.Store, module: wasmtime.InstancePre) -> tuple[dict[str, Any], int]:
        """How it ended, and the bytes of its linear memory, which never shrinks: its peak."""
        memory = None
        try:
            instance = module.instantiate(store)
            exports = instance.exports(store)
            memory = exports.get("memory")
            start = exports.get("_start")
            if not isinstance(start, wasmtime.Func) or not isinstance(memory, wasmtime.Memory):
                return {"kind": "refused", "message": "it must export _start and memory (a WASI command)"}, 0
            start(store)
            ended: dict[str, Any] = {"kind": "exit", "code": 0}
        except TaskExit as stop:
            ended = {"kind": "exit", "code": stop.code}
        except wasmtime.Trap as trap:
            ended = {"kind": "trap", "message": trap.message[:4096]}
        except wasmtime.WasmtimeError as error:
            # Instantiating went over a limit (the message names it), or the start function is not callable so.
            ended = {"kind": "trap" if memory else "refused", "message": _message(error)}
        size = memory.data_len(store) if isinstance(memory, wasmtime.Memory) else 0
        return ended, size

    def _define_guest(self) -> None:
        """Put our own functions in the place of WASI's where those would show this machine's clock or randomness."""
        i32, i64 = ValType.i32, ValType.i64
        for name, params, function in (
            ("clock_time_get", [i32(), i64(), i32()], self._clock_time_get),
            ("clock_res_get", [i32(), i32()], self._clock_res_get),
            ("random_get", [i32(), i32()], self._random_get),
            ("poll_oneoff", [i32(), i32(), i32(), i32()], self._poll_oneoff),
        ):
            self._linker.define_func(_WASI, name, FuncType(params, [i32()]), function, access_caller=True)
        # WASI's own refuses exit statuses from 126.
        self._linker.define_func(_WASI, "proc_exit", FuncType([i32()], []), _proc_exit)

    def _clock_time_get(self, caller: wasmtime.Caller, clock: int, _precision: int, at: int) -> int:
        if not 0 <= clock <= 3:
            return _ERRNO_INVAL
        return _store_bytes(caller, at, self._guest.now_ns(clock).to_bytes(8, "little"))

    def _clock_res_get(self, caller: wasmtime.Caller, clock: int, at: int) -> int:
        if not 0 <= clock <= 3:
            return _ERRNO_INVAL
        return _store_bytes(caller, at, CLOCK_STEP_NS.to_bytes(8, "little"))

    def _random_get(self, caller: wasmtime.Caller, at: int, size: int) -> int:
        size &= 0xFFFFFFFF
        if _view(caller, at, size) is None:
            return _ERRNO_FAULT
        done = 0
        while done < size:
            piece = self._guest.random(min(size - done, 1 << 20))
            _store_bytes(caller, (at & 0xFFFFFFFF) + done, piece)
            done += len(piece)
        return _ERRNO_SUCCESS

    def _poll_oneoff(self, caller: wasmtime.Caller, subs: int, events: int, count: int, stored: int) -> int:
        """Files are always ready; without any, the earliest clock is, at once."""
        if not 0 < count <= POLL_MAX:
            return _ERRNO_INVAL
        view = _view(caller, subs, count * 48)
        if view is None:
            return _ERRNO_FAULT
        ready = _poll(self._guest, bytes(view))
        return _store_bytes(caller, events, b"".join(ready)) or _store_bytes(
            caller, stored, len(ready).to_bytes(4, "little")
        )


def _poll(guest: Guest, raw: bytes) -> list[bytes]:
    """The events of these subscriptions: struct subscription and struct event of WASI preview 1."""
    subs = [_SUBSCRIPTION.unpack_from(raw, at) for at in range(0, len(raw), 48)]
    ready = [_EVENT.pack(user, 0, tag, 0) for user, tag, *_ in subs if tag in (1, 2)]
    clocks = [(timeout, user, clock, flags) for user, tag, clock, timeout, _, flags in subs if tag == 0]
    if ready or not clocks:
        return ready
    timeout, user, clock, flags = min(clocks)
    guest.sleep_ns(clock, timeout, bool(flags & 1))
    return [_EVENT.pack(user, 0, 0, 0)]


def _proc_exit(code: int) -> None:
    raise TaskExit(code & 0xFF)


def _view(caller: wasmtime.Caller, at: int, size: int) -> Any:
    """The module's memory at [at, at + size), or None when that is not all inside it."""
    memory = caller.get("memory")
    at &= 0xFFFFFFFF
    if not isinstance(memory, wasmtime.Memory) or at + size > memory.data_len(caller):
        return None
    return memory.get_buffer_ptr(caller, size, at)


def _store_bytes(caller: wasmtime.Caller, at: int, data: bytes) -> int:
    view = _view(caller, at, len(data))
    if view is None:
        return _ERRNO_FAULT
    ctypes.memmove(view, data, len(data))
    return _ERRNO_SUCCESS


def _config() -> wasmtime.Config:
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.cranelift_nan_canonicalization = True
    config.wasm_relaxed_simd_deterministic = True
    config.wasm_threads = False
    # One memory of 32 bits, so that the limiter's bound on a memory is the bound on all.
    config.wasm_multi_memory = False
    config.wasm_memory64 = False
    config.wasm_gc = False
    # A volunteer gave cpus_milli, not every core. It also leaves this process with no threads but ours.
    config.parallel_compilation = False
    return config


def _wasi(request: dict[str, Any], printed: Capture) -> wasmtime.WasiConfig:
    wasi = wasmtime.WasiConfig()
    wasi.argv = request["argv"]
    wasi.env = request["env"]
    wasi.stdout_custom = wasi.stderr_custom = printed.write
    for host, guest, writable in request["dirs"]:
        wasi.preopen_dir(host, guest, writable)
    return wasi


def _limit_process(memory: int, file_bytes: int) -> None:
    """Soft limits, since the next run may be granted more. See the module's text for why RLIMIT_DATA."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory + DATA_SLACK, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))


def _compiled(engine: wasmtime.Engine, raw: bytes, cache: str | None) -> wasmtime.Module:
    if cache is None:
        return wasmtime.Module(engine, raw)
    name = f"{hashlib.sha256(raw).hexdigest()}-{CONFIG_VERSION}"
    path = os.path.join(cache, name)
    module = _from_cache(engine, path)
    if module is None:
        module = wasmtime.Module(engine, raw)
        _to_cache(module, cache, path)
    return module


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
        return wasmtime.Module.deserialize(engine, code)
    except wasmtime.WasmtimeError:
        return None  # compiled by another version or for another CPU: it is compiled again and replaced


def _to_cache(module: wasmtime.Module, cache: str, path: str) -> None:
    code = bytes(module.serialize())
    draft = f"{path}.{os.getpid()}"
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(draft, path)
        _trim_cache(cache)
    except OSError as error:
        # Only speed is lost. The parent shows our stderr if this process dies.
        print(f"compiled module not cached: {error}", file=sys.stderr)


def _trim_cache(cache: str) -> None:
    with os.scandir(cache) as entries:
        files = sorted((entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in entries)
    total = sum(size for _, size, _ in files)
    while files and (len(files) > CACHE_FILES_MAX or total > CACHE_BYTES_MAX):
        _, size, path = files.pop(0)
        total -= size
        os.unlink(path)


def _message(error: Exception) -> str:
    return str(error)[:4096]


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            sys.exit(0)  # the parent is done with us
        data += piece
    return data


def _send(fd: int, message: dict[str, Any]) -> None:
    body = msgpack.packb(message)
    frame = memoryview(len(body).to_bytes(4, "big") + body)
    while frame:
        frame = frame[os.write(fd, frame) :]


def main() -> None:
    """Serve until stdin ends, or until no request came for argv[1] seconds.

    A frame is u32 length and msgpack. First out: {kind: ready}. Then each request, `load` or `run` by its
    `op`, gets one reply whose `kind` says how it went; `error` is a mistake of ours, all else the module's doing.
    """
    idle_s, priority = float(sys.argv[1]), sys.argv[2]
    out = os.dup(1)
    os.dup2(2, 1)  # nothing that prints may break the framing
    fenced = confine(priority)
    runner = Runner()
    _send(out, {"kind": "ready", "fenced": fenced})
    while select.select([0], [], [], idle_s)[0]:
        request = msgpack.unpackb(_read_exactly(0, int.from_bytes(_read_exactly(0, 4), "big")))
        try:
            reply = runner.run(request) if request["op"] == "run" else runner.load(request)
        except Exception as error:
            reply = {"kind": "error", "message": f"{type(error).__name__}: {error}"[:4096]}
        _send(out, reply)


if __name__ == "__main__":
    main()
