"""What a module sees instead of this machine's clock and randomness: both are functions of the task's seed.

Part of the runner process. Replicas of a task must agree to the bit, and a task must not wait: time passes when the
module looks at it, and sleeping costs a volunteer nothing. Files are files.py's.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from typing import Any, Final

import wasmtime
from wasmtime import FuncType, ValType

WASI: Final = "wasi_snapshot_preview1"
CLOCK_BASE_NS: Final = 1_577_836_800 * 10**9
"""2020-01-01: the earliest that a module's clock shows. The seed adds up to a year."""
CLOCK_STEP_NS: Final = 1_000_000
"""How far a module's clock moves each time it is read: a loop that waits for time to pass ends."""
POLL_MAX: Final = 1024
ERRNO_SUCCESS, ERRNO_FAULT, ERRNO_INVAL = 0, 21, 28
_SUBSCRIPTION: Final = struct.Struct("<QB7xI4xQQH6x")
"""userdata, tag; then of a clock: id, timeout (ns), precision, flags. Files use the same 48 bytes."""
_EVENT: Final = struct.Struct("<QHB5xQ8x")
"""userdata, error, type, bytes to read."""


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
        self.start_ns = CLOCK_BASE_NS + int.from_bytes(seed[:8], "big") % year_s * 10**9
        """What the wall clock showed before the module began."""
        self._passed_ns = 0

    def now_ns(self, clock: int) -> int:
        """Clock 0 is the wall clock, the others count from the start."""
        self._passed_ns += CLOCK_STEP_NS
        return self._passed_ns + (self.start_ns if clock == 0 else 0)

    def sleep_ns(self, clock: int, timeout_ns: int, absolute: bool) -> None:
        """Time passes at once: waiting costs a volunteer nothing."""
        if absolute:
            timeout_ns -= self._passed_ns + (self.start_ns if clock == 0 else 0)
        self._passed_ns = min(self._passed_ns + max(0, timeout_ns), 1 << 62)

    def random(self, size: int) -> bytes:
        while len(self._pool) < size:
            chunk = max(64, min(size - len(self._pool), 1 << 16))
            counter = self._block.to_bytes(8, "big")
            self._pool += hashlib.shake_256(b"nexapod/random\0" + self._seed + counter).digest(chunk)
            self._block += 1
        taken, self._pool = self._pool[:size], self._pool[size:]
        return taken


class Senses:
    """The functions of WASI that show a Guest, for a linker. `guest` is the one of the run in progress."""

    def __init__(self) -> None:
        self.guest = Guest(bytes(32))

    def define(self, linker: wasmtime.Linker) -> None:
        i32, i64 = ValType.i32, ValType.i64
        for name, params, function in (
            ("clock_time_get", [i32(), i64(), i32()], self._clock_time_get),
            ("clock_res_get", [i32(), i32()], self._clock_res_get),
            ("random_get", [i32(), i32()], self._random_get),
            ("poll_oneoff", [i32(), i32(), i32(), i32()], self._poll_oneoff),
        ):
            linker.define_func(WASI, name, FuncType(params, [i32()]), function, access_caller=True)
        # WASI's own refuses exit statuses from 126.
        linker.define_func(WASI, "proc_exit", FuncType([i32()], []), _proc_exit)

    def _clock_time_get(self, caller: wasmtime.Caller, clock: int, _precision: int, at: int) -> int:
        if not 0 <= clock <= 3:
            return ERRNO_INVAL
        return store_bytes(caller, at, self.guest.now_ns(clock).to_bytes(8, "little"))

    def _clock_res_get(self, caller: wasmtime.Caller, clock: int, at: int) -> int:
        if not 0 <= clock <= 3:
            return ERRNO_INVAL
        return store_bytes(caller, at, CLOCK_STEP_NS.to_bytes(8, "little"))

    def _random_get(self, caller: wasmtime.Caller, at: int, size: int) -> int:
        size &= 0xFFFFFFFF
        if view_of(caller, at, size) is None:
            return ERRNO_FAULT
        done = 0
        while done < size:
            piece = self.guest.random(min(size - done, 1 << 20))
            store_bytes(caller, (at & 0xFFFFFFFF) + done, piece)
            done += len(piece)
        return ERRNO_SUCCESS

    def _poll_oneoff(self, caller: wasmtime.Caller, subs: int, events: int, count: int, stored: int) -> int:
        """Files are always ready; without any, the earliest clock is, at once."""
        if not 0 < count <= POLL_MAX:
            return ERRNO_INVAL
        view = view_of(caller, subs, count * 48)
        if view is None:
            return ERRNO_FAULT
        ready = _poll(self.guest, bytes(view))
        return store_bytes(caller, events, b"".join(ready)) or store_bytes(
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


def view_of(caller: wasmtime.Caller, at: int, size: int) -> Any:
    """The module's memory at [at, at + size), or None when that is not all inside it."""
    memory = caller.get("memory")
    at &= 0xFFFFFFFF
    if not isinstance(memory, wasmtime.Memory) or at + size > memory.data_len(caller):
        return None
    return memory.get_buffer_ptr(caller, size, at)


def store_bytes(caller: wasmtime.Caller, at: int, data: bytes) -> int:
    view = view_of(caller, at, len(data))
    if view is None:
        return ERRNO_FAULT
    ctypes.memmove(view, data, len(data))
    return ERRNO_SUCCESS
