"""What a wasm runner takes away from its own process before it runs anything: a second fence behind wasmtime's.

If a module broke out of wasmtime it would be a thread of this process. It should find no way to start a program, open
a socket, signal, trace or slow down another process, reach what processes share, gain a privilege, or open or change a
file that is not of some run of this daemon: its key and its database are files too. Which directories belong to one run
changes with every run, and what Landlock has taken away it never gives back, so the fence around files is as wide as
all runs are (docs/decisions/0013). Of owners and modes Landlock knows nothing: the filter of system calls keeps those.

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
            "mount_setattr": 442, "shmget": 29, "semget": 64, "msgget": 68, "shmat": 30, "shmctl": 31, "semop": 65,
            "semctl": 66, "semtimedop": 220, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "mq_unlink": 241,
            "sched_setparam": 142, "sched_setscheduler": 144, "sched_setattr": 314, "sched_setaffinity": 203,
            "setpriority": 141, "ioprio_set": 251, "migrate_pages": 256, "move_pages": 279, "inotify_init": 253,
            "inotify_init1": 294, "quotactl_fd": 443, "open_tree_attr": 467, "chmod": 90, "fchmod": 91,
            "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260,
            "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "setxattrat": 463, "removexattr": 197,
            "lremovexattr": 198, "fremovexattr": 199, "removexattrat": 466, "file_setattr": 469,
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
            "msgget": 186, "shmat": 196, "shmctl": 195, "semop": 193, "semctl": 191, "semtimedop": 192, "msgsnd": 189,
            "msgrcv": 188, "msgctl": 187, "mq_unlink": 181, "sched_setparam": 118, "sched_setscheduler": 119,
            "sched_setattr": 274, "sched_setaffinity": 122, "setpriority": 140, "ioprio_set": 30,
            "migrate_pages": 238, "move_pages": 239, "inotify_init1": 26, "quotactl_fd": 443, "open_tree_attr": 467,
            "fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "fchown": 55, "fchownat": 54, "setxattr": 5,
            "lsetxattr": 6, "fsetxattr": 7, "setxattrat": 463, "removexattr": 14, "lremovexattr": 15,
            "fremovexattr": 16, "removexattrat": 466, "file_setattr": 469,
        },
    ),
}  # fmt: skip
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_CLONE3: Final = 435
_TGKILL: Final = {"x86_64": 234, "aarch64": 131}
_PRLIMIT64: Final = {"x86_64": 302, "aarch64": 261}
_FCNTL: Final = {"x86_64": 72, "aarch64": 25}
_FCNTL_DENIED: Final = (8, 10, 15)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX: with O_ASYNC, any signal to any process of this user, by writing to a pipe."""
_IOCTL: Final = {"x86_64": 16, "aarch64": 29}
_IOCTL_DENIED: Final = (0x5412, 0x541C, 0x8901, 0x8902)
"""TIOCSTI and TIOCLINUX type on the daemon's terminal, which this process shares; FIOSETOWN, SIOCSPGRP: as above."""

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
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1
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
    if abi >= 6:  # no right of the network is handled: there are no sockets
        attributes = struct.pack("=QQQ", handled, 0, _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL)
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

    `tgkill` reaches this process only: that is how it aborts itself. So does `prlimit64`, by which the C library sets
    limits. Of `fcntl` and `ioctl` some commands are denied.
    """
    arch, denied = _DENIED[machine]
    code = [
        _load(4),
        _jump_eq(arch, 1, 0),
        _return(_KILL_PROCESS),
        _load(0),
    ]
    if machine == "x86_64":
        code += [_jump_ge(_X32_BIT, 0, 1), _deny()]
    code += _at(_CLONE3, _return(_ERRNO | errno.ENOSYS))
    code += _at(_CLONE[machine], _load(16), _jump_set(_CLONE_THREAD, 1, 0), _deny(), _return(_ALLOW))
    code += _at(_TGKILL[machine], _load(16), _jump_eq(pid, 1, 0), _deny(), _return(_ALLOW))
    code += _at(_PRLIMIT64[machine], _load(16), _jump_eq(0, 1, 0), _deny(), _return(_ALLOW))
    for number, commands in ((_FCNTL[machine], _FCNTL_DENIED), (_IOCTL[machine], _IOCTL_DENIED)):
        refusals = [piece for command in commands for piece in (_jump_eq(command, 0, 1), _deny())]
        code += _at(number, _load(24), *refusals, _return(_ALLOW))
    for number in sorted(denied.values()):
        code += _at(number, _deny())
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


def _at(number: int, *body: bytes) -> list[bytes]:
    """What is done about one system call; the body ends with a return."""
    return [_jump_eq(number, 0, len(body)), *body]


def _load(offset: int) -> bytes:
    """A 32-bit word of struct seccomp_data: 0 is the number, 4 the architecture, 16 and 24 the low halves of the first
    and the second argument, which is all that the kernel looks at where we do."""
    return _instruction(0x20, 0, 0, offset)


def _jump_eq(value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(0x15, if_true, if_false, value)


def _jump_ge(value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(0x35, if_true, if_false, value)


def _jump_set(bits: int, if_true: int, if_false: int) -> bytes:
    return _instruction(0x45, if_true, if_false, bits)


def _deny() -> bytes:
    return _return(_ERRNO | errno.EPERM)


def _return(value: int) -> bytes:
    return _instruction(0x06, 0, 0, value)
