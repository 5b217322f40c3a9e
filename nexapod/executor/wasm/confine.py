"""What a wasm runner takes away from its own process before it runs anything: a second fence behind wasmtime's.

If a module broke out of wasmtime it would be a thread of this process. It should find no way to start a program, open
a socket, signal or trace another process, gain a privilege, or open a file that is not of some run of this daemon: its
key and its database are files too. Which directories belong to one run changes with every run, and what Landlock has
taken away it never gives back, so the fence around files is as wide as all runs are (docs/decisions/0013).

Linux only; elsewhere the fence is only as high as the system allows, which `confine` returns.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Sequence
from typing import Final

NOFILE: Final = 128
NOFILE_SPARE: Final = 64
"""Descriptors that the runner may have beyond those of its module: the hard limit."""
OOM_SCORE_ADJ: Final = 500
"""When memory runs out, the kernel takes a runner before anything of the user's, and before the daemon."""
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
_CLONE_THREAD: Final = 0x00010000
_X32_BIT: Final = 0x40000000

# (audit architecture, {name: number}) by machine. Names are kept so that the table can be checked.
_DENIED: Final[dict[str, tuple[int, dict[str, int]]]] = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "connect": 42, "bind": 49, "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59,
            "kill": 62, "ptrace": 101, "syslog": 103, "mknod": 133, "personality": 135, "modify_ldt": 154,
            "pivot_root": 155, "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
            "swapon": 167, "reboot": 169, "sethostname": 170, "setdomainname": 171, "init_module": 175,
            "delete_module": 176, "quotactl": 179, "tkill": 200, "clock_settime": 227, "mq_open": 240,
            "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "mknodat": 259, "unshare": 272,
            "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "fanotify_init": 300,
            "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310,
            "process_vm_writev": 311, "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "execveat": 322,
            "userfaultfd": 323, "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426,
            "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431,
            "fsmount": 432, "fspick": 433, "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440,
            "mount_setattr": 442, "shmget": 29, "semget": 64, "msgget": 68,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "socket": 198, "connect": 203, "bind": 200, "socketpair": 199, "execve": 221, "kill": 129,
            "ptrace": 117, "syslog": 116, "personality": 92, "pivot_root": 41, "chroot": 51, "acct": 89,
            "settimeofday": 170, "mount": 40, "umount2": 39, "swapon": 224, "reboot": 142, "sethostname": 161,
            "setdomainname": 162, "init_module": 105, "delete_module": 106, "quotactl": 60, "tkill": 130,
            "clock_settime": 112, "mq_open": 180, "kexec_load": 104, "add_key": 217, "request_key": 218,
            "keyctl": 219, "mknodat": 33, "unshare": 97, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
            "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
            "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "finit_module": 273,
            "kexec_file_load": 294, "bpf": 280, "execveat": 281, "userfaultfd": 282, "pidfd_send_signal": 424,
            "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
            "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434,
            "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "shmget": 194, "semget": 190,
            "msgget": 186,
        },
    ),
}  # fmt: skip
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_CLONE3: Final = 435
_TGKILL: Final = {"x86_64": 234, "aarch64": 131}


_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION: Final = 1
_LANDLOCK_PATH_BENEATH: Final = 1
_LANDLOCK_ABI_MIN: Final = 2
"""Before it (Linux 5.19) a fence would also have kept modules from renaming between directories of their own."""
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_HANDLED_OF_ABI_2: Final = (1 << 14) - 1
_READS: Final = _READ_FILE | _READ_DIR
_WRITES: Final = (
    _READS | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
)
_SYSTEM: Final = ("/lib", "/lib64", "/usr/lib", "/usr/local/lib", "/etc/ld.so.cache", "/proc/self", "/dev/null")
"""What an interpreter that is already running may still open."""


def confine(priority: str, roots: Sequence[str] = ()) -> list[str]:
    """Fence this process in, for good: the names of the fences that stand, `system_calls` and `files`.

    `priority`: normal, low (nice 10) or idle (runs only when nothing else would). `roots`: directories that may be
    used, each after an r (only read) or a w; none: files are not fenced. Raises OSError when the kernel refuses what it
    should grant anyone, or a root is missing.
    """
    _lower(priority)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = NOFILE + NOFILE_SPARE if hard == resource.RLIM_INFINITY else min(NOFILE + NOFILE_SPARE, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(NOFILE, most), most))
    if sys.platform != "linux":
        return []
    with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        if int(file.read()) < OOM_SCORE_ADJ:  # raising it is anyone's right, lowering it is not
            file.write(str(OOM_SCORE_ADJ))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    fences = ["files"] if roots and fence_files(roots) else []
    machine = platform.machine()
    if machine in _DENIED:
        install_filter(filter_program(machine, os.getpid()))
        fences.append("system_calls")
    return fences


def fence_files(roots: Sequence[str]) -> bool:
    """Leave this thread, and all that it makes, only these directories and the interpreter's own. False: this kernel
    has no Landlock, or one too old. Raises OSError."""
    try:
        abi = _landlock(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        raise
    if abi < _LANDLOCK_ABI_MIN:
        return False
    handled = _HANDLED_OF_ABI_2 | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    attributes = struct.pack("=Q", handled)
    ruleset = _landlock(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    try:
        for root in roots:
            _allow(ruleset, root[1:], handled & (_WRITES if root[0] == "w" else _READS))
        for path in {*_SYSTEM, sys.prefix, sys.base_prefix, *sys.path}:
            if os.path.exists(path) and os.path.realpath(path) != "/":
                _allow(ruleset, path, _READS if os.path.isdir(path) else _READ_FILE)
        _landlock(_LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return True


def _allow(ruleset: int, path: str, access: int) -> None:
    """Rights on a directory and all below it, or on one file."""
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _landlock(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_PATH_BENEATH, struct.pack("=Qi", access, beneath), 0)
    finally:
        os.close(beneath)


def _landlock(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(word) if isinstance(word, int) else ctypes.c_char_p(word) for word in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock, system call {number}")
    return result


def _lower(priority: str) -> None:
    if priority == "idle" and sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if priority != "normal":
        os.nice(19 if priority == "idle" else 10)


def filter_program(machine: str, pid: int) -> bytes:
    """The BPF program: everything is allowed but what is denied; threads may be made, processes not.

    `tgkill` reaches this process only: that is how it aborts itself.
    """
    arch, denied = _DENIED[machine]
    code = [
        _load(4),
        _jump_eq(arch, 1, 0),
        _return(_KILL_PROCESS),
        _load(0),
    ]
    if machine == "x86_64":
        code += [_jump_ge(_X32_BIT, 0, 1), _return(_ERRNO | errno.EPERM)]
    code += [_jump_eq(_CLONE3, 0, 1), _return(_ERRNO | errno.ENOSYS)]
    code += [_jump_eq(_CLONE[machine], 0, 4), _load(16), _jump_set(_CLONE_THREAD, 0, 1), _return(_ALLOW)]
    code += [_return(_ERRNO | errno.EPERM)]
    code += [_jump_eq(_TGKILL[machine], 0, 4), _load(16), _jump_eq(pid, 0, 1), _return(_ALLOW)]
    code += [_return(_ERRNO | errno.EPERM)]
    for number in sorted(denied.values()):
        code += [_jump_eq(number, 0, 1), _return(_ERRNO | errno.EPERM)]
    return b"".join([*code, _return(_ALLOW)])


def install_filter(program: bytes) -> None:
    """Put a BPF program on this thread and all that it makes. Raises OSError."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    sock_fprog = Program(len(program) // 8, program)  # must live through the call: only its address is passed
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(sock_fprog))


def _prctl(option: int, first: int, second: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (first, second, 0, 0)]
    if libc.prctl(option, *words):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _instruction(code: int, if_true: int, if_false: int, operand: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _load(offset: int) -> bytes:
    """A 32-bit word of struct seccomp_data: 0 is the number, 4 the architecture, 16 the first argument."""
    return _instruction(0x20, 0, 0, offset)


def _jump_eq(value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(0x15, if_true, if_false, value)


def _jump_ge(value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(0x35, if_true, if_false, value)


def _jump_set(bits: int, if_true: int, if_false: int) -> bytes:
    return _instruction(0x45, if_true, if_false, bits)


def _return(value: int) -> bytes:
    return _instruction(0x06, 0, 0, value)
