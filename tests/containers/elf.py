"""The smallest program that makes one system call: an x86-64 ELF file made of bytes, since no compiler is needed."""

from __future__ import annotations

import struct

_BASE = 0x400000
_HEADERS = 64 + 56


def one_syscall(number: int, *arguments: int) -> bytes:
    """A program whose exit status is 0 when the call succeeds, else its errno. Up to six arguments."""
    moves = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")  # rdi rsi rdx r10 r8 r9
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    code = b"\xb8" + struct.pack("<I", number)
    code += b"".join(move + struct.pack("<Q", value & (1 << 64) - 1) for move, value in zip(moves, padded, strict=True))
    code += b"\x0f\x05"  # syscall
    code += b"\x31\xff"  # xor edi, edi
    code += b"\x85\xc0\x79\x04\xf7\xd8\x89\xc7"  # if eax < 0: edi = -eax
    code += b"\xb8\x3c\x00\x00\x00\x0f\x05"  # exit(edi)
    size = _HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code
