"""The process inside a sandbox that model-written code is forked from. It needs the standard library alone.

``python -I zygote.py '{"isolation": ..., "socket": ...}'`` answers orders on a control socket, one run at a time:

* ``{"do": "run", "limits": {...}, ...}`` with a file descriptor: fork a process that serves calls on that socket.
* ``{"do": "look"}``: say what processor time the run has had, and whether it waits for more.
* ``{"do": "end"}``: kill the run and everything it started, wipe what it wrote, and say how it ended.

``isolation`` says what keeps a run from the next one and from this process: ``"namespaces"`` (fresh user, pid, mount,
net, ipc and uts namespaces; bubblewrap), ``"uid"`` (a uid of its own in a container; docker), or ``"none"``.
Nothing here knows a test, an expected value or a verdict.
"""

from __future__ import annotations

import atexit
import base64
import builtins
import collections.abc
import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import pwd
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import sys
import tempfile
import threading
import traceback
import types
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))


def _sibling(name: str) -> Any:
    """A file beside this one: its folder stays off sys.path, where the submission's imports are looked up."""
    spec = importlib.util.spec_from_file_location(f"_sandbox_{name}", os.path.join(HERE, f"{name}.py"))
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


wire, suite = _sibling("wire"), _sibling("suite")

PRELOADED = (
    "abc bisect collections collections.abc copy dataclasses datetime decimal enum fractions functools hashlib heapq "
    "io itertools json math operator random re statistics string textwrap threading time traceback typing unittest"
).split()
"""What submissions import most; a fork then has them already."""

CLONE = {"newns": 0x20000, "newuts": 0x4000000, "newipc": 0x8000000, "newuser": 0x10000000, "newpid": 0x20000000,
         "newnet": 0x40000000, "pidfd": 0x1000}  # fmt: skip
NAMESPACES = sum(flag for name, flag in CLONE.items() if name != "pidfd")
SYS_CLONE = {"x86_64": 56, "aarch64": 220}
MOUNT_FLAGS = 2 | 4  # nosuid, nodev
READ_ONLY = 1
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 4, 22, 24, 36
PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 38, 2
CAPABILITY_VERSION_3 = 0x20080522
ZYGOTE_CAPABILITIES = 1 << 5 | 1 << 6 | 1 << 7  # KILL, SETGID, SETUID: what PID 1 of a container needs
NOBODY = 65534
BUILTIN = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}
OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
CROWD = 3
"""A run, the first process of its namespace, and a program that it has started."""
DYING_S = 1.0
"""How long the first process of a namespace may take to follow the run."""
SHARED = ("/tmp", "/dev/shm", "/dev/mqueue")
"""Where a container lets a run write."""

libc = ctypes.PyDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *arguments: Any) -> None:
    _check(libc.prctl(option, *(*arguments, 0, 0, 0, 0)[:4]), f"prctl {option}")


# ---- the run: from here on a process that will load untrusted code -----------------------------------------------


def _clone(flags: int) -> tuple[int, int]:
    """``fork`` into new namespaces, as ``os.fork`` does it for the interpreter; the child's pid and a pidfd of it."""
    pidfd = ctypes.c_int(-1)
    ctypes.pythonapi.PyOS_BeforeFork()
    arguments = [flags | CLONE["pidfd"] | signal.SIGCHLD, 0, ctypes.byref(pidfd), 0, 0]
    pid = libc.syscall(SYS_CLONE[os.uname().machine], *arguments)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    _check(pid, "clone")
    return pid, pidfd.value


def _mount(target: str, options: str, flags: int = MOUNT_FLAGS) -> None:
    _check(libc.mount(b"tmpfs", target.encode(), b"tmpfs", flags, options.encode()), f"mount {target}")


def _limit(limits: dict[str, int]) -> None:
    megabyte = 1 << 20
    for name, value in (
        ("RLIMIT_CPU", limits["cpu_s"]),
        ("RLIMIT_AS", (limits["memory_mb"] + 256) * megabyte),  # address space: stacks and arenas are mostly untouched
        ("RLIMIT_FSIZE", limits["disk_mb"] * megabyte),
        ("RLIMIT_NPROC", limits["processes"]),
        ("RLIMIT_NOFILE", 256),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 0),
        ("RLIMIT_MSGQUEUE", 0),
    ):
        resource.setrlimit(getattr(resource, name), (value, value))


def _drop_bounding_set() -> None:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        _prctl(PR_CAPBSET_DROP, capability)


def _set_capabilities(mask: int) -> None:
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    _check(libc.capset(header, struct.pack("6I", mask, mask, 0, 0, 0, 0)), "capset")


def _filter(program: bytes) -> None:
    """Install the seccomp filter: an array of 8-byte BPF instructions."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(fprog))


def _enclose(isolation: str, order: dict[str, Any], owner: tuple[int, int], program: bytes) -> None:
    """Take away every right that the submission must not have. Trusted code runs up to the end of this function."""
    limits, disk = order["limits"], f"size={order['limits']['disk_mb']}m,mode=0700"
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # out of memory, the kernel takes the run, not the zygote
    if isolation == "namespaces":
        maps = {"setgroups": "deny", "uid_map": f"{NOBODY} {owner[0]} 1", "gid_map": f"{NOBODY} {owner[1]} 1"}
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        _check(libc.sethostname(b"sandbox", 7), "sethostname")
        _drop_bounding_set()
        for target, inodes in (("/tmp", 4096), ("/dev/shm", 256)):
            _mount(target, f"{disk},nr_inodes={inodes},uid={NOBODY},gid={NOBODY}")
        _mount("/proc", "size=4k,mode=0555", MOUNT_FLAGS | READ_ONLY)
        _set_capabilities(0)
    elif isolation == "uid":
        uid = order["uid"]
        _check(libc.setgroups(0, None), "setgroups")
        _check(libc.setresgid(uid, uid, uid), f"setresgid {uid}")
        _check(libc.setresuid(uid, uid, uid), f"setresuid {uid}")  # and with it, every capability
    _limit(limits)
    if isolation != "none":
        _filter(program)


class _Run:
    """Serves calls on a socket: loads modules, calls their functions, returns plain data."""

    def __init__(self, channel: socket.socket, folder: str) -> None:
        self.channel, self.folder, self.pid = channel, folder, os.getpid()
        self.iterators: list[Any] = []

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            part = self.channel.recv(min(count, 1 << 20))
            if not part:
                os._exit(0)  # nobody asks any more
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def serve(self) -> None:
        """Answer until the other side is gone."""
        while True:
            message = wire.unpack(self._read)
            reply = {"nonce": message["nonce"]}
            status = 0
            try:
                reply.update(getattr(self, "_" + message["do"])(message))
            except wire.TooLarge as error:
                reply["too_large"] = str(error)
            except BaseException as error:
                reply["failed"], status = self._describe(error), _exit_status(error)
            if os.getpid() != self.pid:
                os._exit(status)  # a process that the submission forked and that came back here
            self.channel.sendall(wire.pack(reply))

    def _describe(self, error: BaseException) -> list[Any]:
        """The names of the exception's classes, its own first; its text; where in the submission it was raised."""
        names = [_name(base) for base in type.__dict__["__mro__"].__get__(type(error)) if base is not object]
        try:
            text = str.__str__(str(error))[:500]
        except BaseException:
            text = ""
        place, trace = "", error.__traceback__
        while trace is not None:
            path = trace.tb_frame.f_code.co_filename
            if path.startswith(self.folder):
                place = f"{path[len(self.folder) + 1 :]}, line {trace.tb_lineno}"
            trace = trace.tb_next
        return [names, text, place]

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        for path, text in message["files"].items():
            target = os.path.join(self.folder, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
                file.write(text)
            sys.modules.pop(path.partition("/")[0].removesuffix(".py"), None)  # the file comes before a namesake
        os.chdir(self.folder)
        sys.path.insert(0, self.folder)
        for name in message["modules"]:
            importlib.import_module(name)
        return {"ok": True}

    def _call(self, message: dict[str, Any]) -> dict[str, Any]:
        module, _, name = message["entry_point"].partition(":")
        target: Any = sys.modules[module]
        for part in name.split("."):
            target = getattr(target, part.removesuffix("()"))
            if part.endswith("()"):
                target = target()
        if not callable(target):
            raise TypeError(f"{message['entry_point']} is not a function")
        rule, limit = message["rule"], message["limit"]
        build = {**wire.BUILD, "iterator": iter} if rule == "whole" else None
        args, kwargs = (wire.decode(message[name], build=build) for name in ("args", "kwargs"))
        nodes = wire.containers((args, kwargs)) if rule == "whole" else []
        places = {id(node): at for at, node in enumerate(nodes)}
        special = {"": None, "lists": _listed, "whole": self._described}[rule]
        try:
            value = target(*args, **kwargs)
            if rule == "lists" and type(value) is tuple:
                value = list(value)
            if id(value) in places:
                reply: dict[str, Any] = {"place": places[id(value)]}
            else:
                reply = {"value": wire.encode(value, limit, special)}
        except wire.TooLarge:
            raise
        except BaseException as error:
            if os.getpid() != self.pid:
                raise
            reply = {"raised": self._describe(error)}  # what is raised before or after is no answer
        if nodes:
            after = [self._held(node, places, limit) for node in nodes]
            if after != self._as_sent(message, build, limit):
                reply["after"] = after
        return reply

    def _held(self, node: Any, places: dict[int, int], limit: int) -> list[Any]:
        """The tokens of a container's keys, and its parts: tokens, or the number of a container of the arguments."""
        if type(node) is set:
            return [wire.encode(node, limit, wire.describe), []]
        parts, keys = (node, None) if type(node) is list else (list(node.values()), dict.fromkeys(node))
        spelled = [places[id(p)] if id(p) in places else wire.encode(p, limit, wire.describe) for p in parts]
        return [wire.encode(keys, limit, wire.describe), spelled]

    def _as_sent(self, message: dict[str, Any], build: Any, limit: int) -> list[Any]:
        nodes = wire.containers(tuple(wire.decode(message[name], build=build) for name in ("args", "kwargs")))
        return [self._held(node, {id(one): at for at, one in enumerate(nodes)}, limit) for node in nodes]

    def _described(self, item: Any) -> tuple[str, list[Any]] | None:
        if isinstance(item, collections.abc.Iterator):
            self.iterators.append(item)
            return "iterator", [len(self.iterators) - 1]
        return wire.describe(item)

    def _next(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            value = next(self.iterators[message["handle"]])
        except StopIteration:
            return {"stop": True}
        except BaseException as error:
            return {"raised": self._describe(error)}
        return {"value": wire.encode(value, max(0, message["limit"]), self._described)}

    def _script(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run a file as a program, in a process of its own that cannot speak to the grader."""
        folder = os.path.dirname(self.folder)
        with contextlib.ExitStack() as stack:
            given, printed, told = (stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(3))
            given.write(message["input"].encode("utf-8", "surrogatepass"))
            given.seek(0)
            pid = os.fork()
            if pid == 0:
                for fd, file in enumerate((given, printed, told)):
                    os.dup2(file.fileno(), fd)
                os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
                _be_program(os.path.join(self.folder, message["path"]))
            _, status, usage = os.wait4(pid, 0)
            if os.fstat(printed.fileno()).st_size > message["limit"]:
                raise wire.TooLarge(f"more than {message['limit']} bytes are printed")
            printed.seek(0)
            told.seek(max(0, os.fstat(told.fileno()).st_size - 1000))
            lines = told.read().decode("utf-8", "replace").split("\n")
            return {
                "output": printed.read().decode("utf-8", "replace"),
                "status": os.waitstatus_to_exitcode(status),
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "error": next((line[:300] for line in reversed(lines) if line.strip()), ""),
            }

    def _finish(self, message: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _unittest(self, message: dict[str, Any]) -> dict[str, Any]:
        names = (message["tests"], message["ids"], message["skipped"])
        return {"outcomes": suite.run(lambda: self._load(message), *names)}


def _listed(item: Any) -> tuple[str, list[Any]] | None:
    """As lists: what is gone through once, ranges and views."""
    views: Any = (collections.abc.Iterator, collections.abc.MappingView, range)
    return ("", list(item)) if isinstance(item, views) else None


def _be_program(path: str) -> None:
    """The rest of a process's life: the file as ``python FILE`` runs it."""
    sys.stdin, sys.stdout, sys.stderr = (
        open(fd, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        for fd, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
    )
    sys.argv = [path]
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__file__ = path
    status = 0
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, module.__dict__)
    except BaseException as error:
        status = _exit_status(error)
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        elif type(error.code) is str:
            print(error.code, file=sys.stderr)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        status = status or 1
    os._exit(status)


def _name(kind: type) -> str:
    """What an exception's class is called; a builtin one's name is taken."""
    name = type.__dict__["__name__"].__get__(kind)
    return name if BUILTIN.get(name, kind) is kind else f"solution.{name}"


def _exit_status(error: BaseException) -> int:
    """As the interpreter would have ended with it."""
    if type(error) is not SystemExit:
        return 1
    return error.code & 255 if type(error.code) is int else int(error.code is not None)


def _watch(pid: int) -> None:
    """As PID 1 of a run's namespace: end with the run. The run itself is not PID 1: no signal of its own would kill it
    then."""
    os.close(3)
    _set_capabilities(0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while True:
        found, status = os.wait()
        if found == pid:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _become_run(isolation: str, order: dict[str, Any], owner: tuple[int, int], program: bytes, channel: int) -> None:
    """The rest of a forked child's life."""
    os.dup2(channel, 3)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if isolation == "namespaces" and (pid := os.fork()):
        _watch(pid)
    folder = os.path.join(order["folder"], "workspace")
    run = _Run(socket.socket(fileno=3), folder)
    try:
        _enclose(isolation, order, owner, program)
        os.mkdir(folder, 0o700)
        os.chdir(folder)
    except BaseException as error:
        run.channel.sendall(wire.pack({"fault": f"{type(error).__name__}: {error}"}))
        os._exit(1)
    run.channel.sendall(wire.pack({"ready": True}))
    try:
        run.serve()
    finally:
        os._exit(1)


# ---- the zygote ----------------------------------------------------------------------------------------------------


class Zygote:
    """Forks one run at a time and buries it.

    Args:
        control: SOCK_SEQPACKET socket on which the orders arrive.
        isolation: See the module.
        program: The seccomp filter.
    """

    def __init__(self, control: socket.socket, isolation: str, program: bytes) -> None:
        self.control, self.isolation, self.program = control, isolation, program
        self.owner = (os.getuid(), os.getgid())
        self.pid = self.pidfd = 0
        self.exited: dict[str, Any] | None = None
        self.order: dict[str, Any] = {}
        self.kills = self._oom_kills()

    def serve(self) -> None:
        """Follow orders until the control socket closes; then take everything down."""
        while True:
            waiting = [self.control] + ([self.pidfd] if self.pid and self.exited is None else [])
            ready, _, _ = select.select(waiting, [], [])
            if self.pidfd in ready:
                self._say({"exited": self._collect()})
            if self.control not in ready:
                continue
            data, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 1)
            if not data:
                break
            order = json.loads(data)
            if order["do"] == "run":
                self._start(order, fds[0])
                os.close(fds[0])
            elif order["do"] == "look":
                self._say({"looked": self._look()})
            elif order["do"] == "end":
                self._say({"ended": self._end()})  # the verdict does not hang on the wiping
                self._wipe()
                self._say({"wiped": True})
        if self.pid:
            self._end()
            self._wipe()

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the end of file is seen next
            self.control.send(json.dumps(message).encode())

    def _start(self, order: dict[str, Any], channel: int) -> None:
        self.order, self.exited = order, None
        self.pid, self.pidfd = _clone(NAMESPACES if self.isolation == "namespaces" else 0)
        if self.pid == 0:
            _become_run(self.isolation, order, self.owner, self.program, channel)

    def _collect(self) -> dict[str, Any]:
        """Wait for the run itself."""
        _, status, usage = os.wait4(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.exited = {
            "status": code if code < 128 else 128 - code,
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }
        return self.exited

    def _look(self) -> dict[str, Any]:
        """``cpu_s`` of every process of the run, in the clock's ticks, and whether it is ``runnable``: it could use
        more than it gets. That is not said of a crowd of processes, which keep each other waiting."""
        ticks, states, left = 0, [], _children(os.getpid())
        while left:
            pid = left.pop()
            left += _children(pid)
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
                words = file.read().rpartition(")")[2].split()
                states.append(words[0])
                ticks += sum(map(int, words[11:15]))
        return {"cpu_s": ticks / os.sysconf("SC_CLK_TCK"), "runnable": "R" in states and len(states) <= CROWD}

    def _end(self) -> dict[str, Any]:
        looked = self._look()
        if self.exited is None and self.isolation == "namespaces":
            for pid in _children(self.pid):  # PID 1 of the namespace ends with the run, and has its time counted
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            select.select([self.pidfd], [], [], DYING_S)
        if self.exited is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)  # of namespaces, it takes every process along
        exited = self.exited or self._collect()
        if self.isolation == "uid":
            self._kill_others()
        elif self.isolation == "none":
            self._kill_children()
        os.close(self.pidfd)
        self.pid = self.pidfd = 0
        before, self.kills = self.kills, self._oom_kills()
        return {**exited, "cpu_s": max(exited["cpu_s"], looked["cpu_s"]), "runnable": looked["runnable"],
                "oom": self.kills > before}  # fmt: skip

    def _kill_others(self) -> None:
        """As PID 1 of a container: kill every other process in it, and see that none is left."""
        while True:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

    def _wipe(self) -> None:
        """Remove what the run wrote. An error is the end of this process, and so of its container."""
        if self.isolation == "none":
            shutil.rmtree(self.order["folder"], ignore_errors=True)
        if self.isolation != "uid":
            return  # the kernel did, with the namespace
        # as the run's uid: this process has no right to another's files
        os.setresuid(-1, self.order["uid"], -1)
        try:
            for folder in SHARED:
                for entry in os.scandir(folder) if os.path.isdir(folder) else ():
                    _remove(entry.path)
        finally:
            os.setresuid(-1, 0, -1)
        left = [path for folder in SHARED if os.path.isdir(folder) for path in os.listdir(folder)]
        if left:
            raise RuntimeError(f"{len(left)} files could not be removed")

    def _kill_children(self) -> None:
        """Without namespaces: whatever the run started is a child of this subreaper by now, or of such a child."""
        while True:
            children = _children(os.getpid())
            if not children:
                return
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    @staticmethod
    def _oom_kills() -> int:
        for path in OOM_COUNTERS:
            if os.path.exists(path):
                with open(path) as file:
                    return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
        return 0


def _children(pid: int) -> list[int]:
    """Of a process that may have ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
    return []


def _remove(path: str) -> None:
    """Delete a tree whose owner may have taken his own rights away from it."""
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, stat.S_IRWXU)
        for entry in os.scandir(path):
            _remove(entry.path)
        os.rmdir(path)
    else:
        os.unlink(path)


def _named(look_up: Any) -> Any:
    """``pwd.getpwuid`` where there is no file of users: a run's own uid has a name all the same."""

    def getpwuid(uid: int) -> Any:
        try:
            return look_up(uid)
        except KeyError:
            if uid != os.getuid():
                raise
            return pwd.struct_passwd(("nobody", "x", uid, uid, "", "/tmp", ""))

    return getpwuid


def main() -> None:
    """Read the configuration, connect, preload, serve."""
    config = json.loads(sys.argv[1])
    isolation, program = config["isolation"], base64.b64decode(config["filter"])
    if isolation == "namespaces" and os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _prctl(PR_SET_DUMPABLE, 1)  # else /proc/self/uid_map belongs to root
    if isolation == "uid":  # a right dropped from the bounding set can still be used, but not be got again
        _drop_bounding_set()
        _set_capabilities(ZYGOTE_CAPABILITIES)
    if isolation == "none":
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in PRELOADED:
        importlib.import_module(name)
    pwd.getpwuid = _named(pwd.getpwuid)  # type: ignore[assignment]
    sys.argv[:] = [""]
    sys.dont_write_bytecode = True
    gc.collect()
    gc.freeze()  # a fork then does not copy what the collector would touch
    if "socket" in config:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.connect(config["socket"])
    else:
        control = socket.socket(fileno=os.dup(0))
    zygote = Zygote(control, isolation, program)
    control.send(b'{"up": true}')
    zygote.serve()


if __name__ == "__main__":
    main()
