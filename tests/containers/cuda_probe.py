"""What CUDA shows to who runs this: run by a test inside a container, with the standard library alone.

Writes one JSON object to the file that it is given: the device nodes, the GPUs by UUID, and whether memory of each
could be set and read back, by the GPU.
"""

from __future__ import annotations

import ctypes
import glob
import json
import sys

WORDS = 1024
PATTERN = 0xA5A5C3C3
PLACES = ("libcuda.so.1", "/usr/lib64/libcuda.so.1", "/usr/lib/libcuda.so.1", *glob.glob("/usr/lib/*/libcuda.so.1"))


def load() -> ctypes.CDLL | None:
    """The driver's library: as the engine's hook made it known, or from where it put it."""
    for place in PLACES:
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    return None


def call(cuda: ctypes.CDLL, name: str, *args: object) -> None:
    status = getattr(cuda, name)(*args)
    if status:
        raise SystemExit(f"{name} failed with CUDA error {status}")


def uuid_of(cuda: ctypes.CDLL, device: ctypes.c_int) -> str:
    raw = (ctypes.c_ubyte * 16)()
    call(cuda, "cuDeviceGetUuid", ctypes.byref(raw), device)
    text = bytes(raw).hex()
    return "GPU-" + "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def computes(cuda: ctypes.CDLL, device: ctypes.c_int) -> bool:
    """Whether the GPU fills its memory with a pattern that is then read from it."""
    context, memory = ctypes.c_void_p(), ctypes.c_uint64()
    words = (ctypes.c_uint32 * WORDS)()
    call(cuda, "cuCtxCreate_v2", ctypes.byref(context), ctypes.c_uint(0), device)
    call(cuda, "cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(4 * WORDS))
    call(cuda, "cuMemsetD32_v2", memory, ctypes.c_uint(PATTERN), ctypes.c_size_t(WORDS))
    call(cuda, "cuMemcpyDtoH_v2", words, memory, ctypes.c_size_t(4 * WORDS))
    call(cuda, "cuMemFree_v2", memory)
    call(cuda, "cuCtxDestroy_v2", context)
    return list(words) == [PATTERN] * WORDS


def look() -> dict[str, object]:
    seen: dict[str, object] = {"nodes": sorted(glob.glob("/dev/nvidia[0-9]*")), "library": False, "gpus": {}}
    cuda = load()
    if cuda is None:
        return seen
    count = ctypes.c_int()
    call(cuda, "cuInit", ctypes.c_uint(0))
    call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    gpus = {}
    for index in range(count.value):
        device = ctypes.c_int()
        call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        gpus[uuid_of(cuda, device)] = computes(cuda, device)
    return seen | {"library": True, "gpus": gpus}


if __name__ == "__main__":
    with open(sys.argv[1], "w") as target:
        json.dump(look(), target)
