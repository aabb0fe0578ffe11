"""The system calls that model-written code may make: one allow-list, as a BPF program and as a Docker profile.

Docker's own profile is wider: it lets io_uring, AF_VSOCK, ptrace and user namespaces of its caller's choice through.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
from functools import lru_cache
from typing import Any

from agent_gym.sandbox.errors import SandboxUnavailable

__all__ = ["bpf", "docker_profile"]

ALLOWED = """
    access alarm arch_prctl brk capget chdir chmod chown clock_getres clock_gettime clock_nanosleep close close_range
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait
    eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat
    fchown fchownat fcntl fdatasync flock fork fstat fstatfs fsync ftruncate futex futex_waitv get_robust_list
    getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid
    getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid
    gettimeofday getuid getxattr ioctl kill lchown link linkat listxattr lseek lstat madvise membarrier mincore mkdir
    mkdirat mmap mprotect mremap msync munmap nanosleep newfstatat open openat pause pidfd_open pidfd_send_signal pipe
    pipe2 poll ppoll prctl pread64 preadv preadv2 prlimit64 pselect6 pwrite64 pwritev pwritev2 read readlink readlinkat
    readv recvfrom recvmmsg recvmsg rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_yield select sendfile sendmmsg sendmsg sendto set_robust_list set_tid_address setitimer setpgid setpriority
    setrlimit setsid setsockopt shutdown sigaltstack stat statfs statx symlink symlinkat
    sysinfo tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
    timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork wait4
    waitid write writev
""".split()
"""What CPython, threads and child processes of one's own need."""

SOCKETS = ["socket", "socketpair"]
"""Allowed for AF_UNIX only."""

LOCAL_SOCKETS = "bind listen accept accept4 connect".split()

ZYGOTE = "setgroups setresgid setresuid setuid setgid capset seccomp".split()
"""What the zygote of a container does besides, before it forks a run and installs the narrower filter there."""

ABSENT = "clone3 openat2".split()
"""Answered with ENOSYS: the C library then takes an older call, whose arguments a filter can see."""

NEW_NAMESPACES = 0x7E020080
AF_UNIX = 1

_ALLOW, _EQUAL, _MASKED_EQUAL = 0x7FFF0000, 4, 7


def _errno(number: int) -> int:
    return 0x00050000 | number


class _Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


@lru_cache(maxsize=1)
def bpf() -> bytes:
    """The filter of a run, compiled by libseccomp for this machine: 8-byte BPF instructions.

    Raises:
        SandboxUnavailable: If libseccomp is not installed, or cannot do this.
    """
    try:
        lib = ctypes.CDLL(ctypes.util.find_library("seccomp") or "libseccomp.so.2", use_errno=True)
    except OSError:
        raise SandboxUnavailable("libseccomp is missing (Debian, Ubuntu: apt install libseccomp2)") from None
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(_errno(errno.EPERM)))

    def rule(action: int, name: str, *comparisons: _Comparison) -> None:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # not known to this version: it stays forbidden
            return
        array = (_Comparison * len(comparisons))(*comparisons)
        result = lib.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(comparisons), array)
        if result not in (0, -errno.EINVAL, -errno.EDOM):  # a call that this architecture does not have
            raise SandboxUnavailable(f"libseccomp refuses {name}: {os.strerror(-result)}")

    for name in (*ALLOWED, *LOCAL_SOCKETS):
        rule(_ALLOW, name)
    for name in SOCKETS:
        rule(_ALLOW, name, _Comparison(0, _EQUAL, AF_UNIX, 0))
    rule(_ALLOW, "clone", _Comparison(0, _MASKED_EQUAL, NEW_NAMESPACES, 0))
    for name in ABSENT:
        rule(_errno(errno.ENOSYS), name)
    with os.fdopen(os.memfd_create("filter"), "rb") as file:
        if lib.seccomp_export_bpf(context, file.fileno()):
            raise SandboxUnavailable("libseccomp cannot write the filter")
        lib.seccomp_release(context)
        file.seek(0)
        return file.read()


def docker_profile() -> dict[str, Any]:
    """The same list for ``--security-opt seccomp=``, with what the zygote itself needs."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": [
            {"names": [*ALLOWED, *LOCAL_SOCKETS, *ZYGOTE], "action": "SCMP_ACT_ALLOW"},
            {
                "names": SOCKETS,
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": AF_UNIX, "op": "SCMP_CMP_EQ"}],
            },
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
            },
            {"names": ABSENT, "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
        ],
    }
