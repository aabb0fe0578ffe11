"""The three kinds of sandbox. Each starts a zygote somewhere; from then on they speak the same protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import secrets
import select
import shutil
import socket
import subprocess
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, ClassVar

from agent_gym.sandbox import owned, seccomp
from agent_gym.sandbox.errors import Killed, Lost, NotInstalled, SandboxUnavailable
from agent_gym.sandbox.rootfs import PYTHON, ZYGOTE, image_id, image_tar, rootfs

__all__ = [
    "AUTO",
    "BACKENDS",
    "Bubblewrap",
    "Docker",
    "Killed",
    "Limits",
    "Lost",
    "Process",
    "Sandbox",
    "SandboxUnavailable",
    "choose",
]

START_S, ANSWER_S, WIPE_S = 60.0, 20.0, 5.0
TRIAL_S = 15.0
"""How long the sandbox that is tried before any is used may take for each of its steps: a daemon that hangs is no
reason to wait, and there may be another backend."""
TRIALS = 3
REMOVALS = 50
"""Attempts to remove a container, a tenth of a second apart."""
ENVIRONMENT = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "LANG": "C", "PYTHONUTF8": "1", "HOME": "/tmp"}
MOST_OUTPUT_MB = 64
OVERHEAD_MB = 48
"""The zygote's own memory, beside that of its run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one check.

    Args:
        cpu_s: CPU seconds of a process, whole ones.
        wall_s: Wall-clock seconds of the whole check; with room for a busy machine, which should not decide a verdict.
        memory_mb: Megabytes of memory.
        disk_mb: Megabytes of files, all in memory.
        processes: Processes and threads.
        output_mb: Megabytes that one call may return, as JSON, or one program print; 64 at most.
    """

    cpu_s: int = 5
    wall_s: float = 10.0
    memory_mb: int = 512
    disk_mb: int = 32
    processes: int = 64
    output_mb: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name == "wall_s" or isinstance(value, int)
            if isinstance(value, bool) or not isinstance(value, int | float) or not whole or not 0 < value < 1e6:
                kind = "number" if field.name == "wall_s" else "whole number"
                raise ValueError(f"Limits.{field.name} must be a {kind} above 0, not {value!r}")
        if self.output_mb > MOST_OUTPUT_MB:
            raise ValueError(f"Limits.output_mb must be at most {MOST_OUTPUT_MB}, not {self.output_mb}")


class Sandbox(ABC):
    """A zygote and the control socket to it. Not shared between threads.

    Args:
        limits: The most that a run may ask for.
        patience: Seconds to wait for it to come up.

    Raises:
        Lost: If it does not come up.
    """

    isolation: ClassVar[str]
    recycle_after: ClassVar[int] = 10_000
    """Runs after which a sandbox is replaced."""

    def __init__(self, limits: Limits, patience: float = START_S) -> None:
        self.limits, self.patience, self.runs, self.worn = limits, patience, 0, False
        try:
            self.control = self._launch()
            self.control.settimeout(patience)
            if json.loads(self.control.recv(1 << 16) or b"{}") != {"up": True}:
                raise Lost(f"the sandbox did not start: {self._why()}")
        except BaseException as error:
            why = self._why()
            self._stop()
            if isinstance(error, OSError | ValueError):
                raise Lost(f"the sandbox did not start: {error} {why}") from error
            raise

    @classmethod
    @abstractmethod
    def check(cls) -> None:
        """See that it can be had: what it needs is there, and a program runs in it.

        Raises:
            SandboxUnavailable: Saying what to install, to allow or to set.
        """

    @classmethod
    def _try(cls) -> None:
        """Run a program in a sandbox of its own: whatever else looks right, this alone shows that it works.

        Raises:
            SandboxUnavailable: With the reason, within a few times :data:`TRIAL_S` at most.
        """
        from agent_gym.sandbox.grader import grade  # these two import this module
        from agent_gym.sandbox.pool import CONTROL

        request, deadline, reason = replace(CONTROL, limits=Limits(wall_s=TRIAL_S)), time.monotonic() + TRIAL_S, ""
        for _ in range(TRIALS):  # one that is killed while it starts says nothing about the next
            try:
                with contextlib.closing(cls(request.limits, TRIAL_S)) as sandbox:
                    verdict = grade(sandbox, request)
                if verdict.status == "pass":
                    return
                reason = verdict.diagnostics[0]
            except Lost as error:
                reason = str(error)
            if time.monotonic() > deadline:
                break
        raise SandboxUnavailable(f"sandbox={cls.__name__.lower()!r} does not work here: {reason}")

    def _config(self) -> dict[str, Any]:
        program = base64.b64encode(seccomp.bpf()).decode()
        return {"isolation": self.isolation, "filter": program, "owner": owned.owner()}  # the owner is for ps

    @abstractmethod
    def _launch(self) -> socket.socket:
        """Start the zygote; the control socket."""

    @abstractmethod
    def _stop(self) -> None:
        """Make sure that nothing of it is left."""

    def _why(self) -> str:
        """What the backend knows about a failed start."""
        return ""

    def _place(self) -> dict[str, Any]:
        """Where the next run works, and as whom."""
        return {"folder": "/tmp"}

    def _say(self, message: dict[str, Any], *sockets: socket.socket) -> None:
        try:
            socket.send_fds(self.control, [json.dumps(message).encode()], [one.fileno() for one in sockets])
        except OSError as error:
            raise Lost(f"the sandbox is gone: {error}") from error

    def hear(self, timeout: float = ANSWER_S) -> dict[str, Any]:
        """The zygote's next message.

        Raises:
            Lost: If there is none.
        """
        self.control.settimeout(timeout)
        try:
            data = self.control.recv(1 << 16)
        except OSError as error:
            raise Lost(f"the sandbox does not answer: {error}") from error
        if not data:
            raise Lost("the sandbox is gone")
        return json.loads(data)

    def start(self, limits: Limits) -> socket.socket:
        """Fork a run; the socket on which it takes calls.

        Raises:
            Lost: If the zygote is gone or the run could not be enclosed.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._say({"do": "run", "limits": asdict(limits), **self._place()}, theirs)
        self.runs += 1
        return ours

    def look(self) -> dict[str, Any]:
        """``cpu_s`` that the run has had, and whether it is ``runnable``; ``exited`` where it has ended.

        Raises:
            Lost: If the zygote does not say.
        """
        self._say({"do": "look"})
        message, exited = self.hear(), {}
        if "exited" in message:
            message, exited = self.hear(), message
        return {**message["looked"], **exited}

    def end(self) -> dict[str, Any]:
        """Kill the run with all it started, and wipe: ``status``, ``cpu_s`` and ``oom`` of the run, and whether it was
        ``runnable`` to the last.

        Raises:
            Lost: If the zygote does not say how it ended.
        """
        self._say({"do": "end"})
        while True:
            message = self.hear()
            if "ended" in message:
                break
        ended = message["ended"]
        try:
            self.hear(WIPE_S)
        except Lost:  # a tree that cannot be removed, at least not in time: a reason to destroy the sandbox, no fault
            self.worn = True
        self.worn = self.worn or ended["oom"] or self.runs >= self.recycle_after
        return ended

    def close(self) -> None:
        """Take it down. Harmless when called again."""
        self.control.close()
        self._stop()


class _Child(Sandbox):
    """A zygote that is a child process of ours."""

    process: subprocess.Popen | None = None
    errors: IO[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """The command line up to the interpreter."""

    def _launch(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.errors = os.fdopen(os.memfd_create("errors"), "w+b")
        with theirs:
            self.process = subprocess.Popen(
                [*self._command(), "-P", "-s", "-B", self.zygote, json.dumps(self._config())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env={"PATH": "/usr/bin:/bin", **ENVIRONMENT},
                start_new_session=True,
                cwd="/",
            )
        return ours

    zygote = ZYGOTE

    def _why(self) -> str:
        if self.errors is None:
            return ""
        self.errors.seek(0)
        return self.errors.read(500).decode("utf-8", "replace").strip()

    def _stop(self) -> None:
        if self.process is not None:
            try:
                self.process.wait(2.0)  # it ends with its control socket
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.errors is not None:
            self.errors.close()
            self.errors = None


class Bubblewrap(_Child):
    """A zygote in bubblewrap, as an unprivileged uid; every run in namespaces of its own."""

    isolation = "namespaces"

    group: owned.Group | None = None
    kills = 0

    @classmethod
    def check(cls) -> None:
        """See :meth:`Sandbox.check`."""
        if sys.platform != "linux" or shutil.which("bwrap") is None:
            raise NotInstalled("bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)")
        rootfs()  # takes seconds when it is built, which are none of the trial's
        cls._try()

    def _launch(self) -> socket.socket:
        self.group = owned.Group(self.limits.memory_mb + OVERHEAD_MB, self.limits.processes + 8)
        return super()._launch()

    def _command(self) -> list[str]:
        assert self.group is not None
        enter = "".join(f'echo $$ > "{folder}/cgroup.procs" && ' for folder in self.group.folders)
        rights = ["--cap-drop", "ALL"]
        if os.getuid() == 0:  # the zygote gives these up for an unprivileged uid; no user namespace is between
            rights += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            rights += ["--unshare-user"]
        spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        places = ["--ro-bind", str(rootfs()), "/", "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
        return ["/bin/sh", "-c", f'{enter}exec "$@"', "sh", "bwrap", *rights, *spaces, *places, PYTHON]

    def end(self) -> dict[str, Any]:
        """See :meth:`Sandbox.end`."""
        assert self.group is not None
        ended = super().end()
        kills = self.group.oom_kills()
        ended["oom"], self.kills = kills > self.kills, kills
        return ended

    def _stop(self) -> None:
        super()._stop()
        if self.group is not None:
            self.group.remove()


class Process(_Child):
    """A plain child process with resource limits. It protects from accidents, not from an attack: the program sees
    the file system and the network with the caller's rights."""

    isolation = "none"
    zygote = str(Path(__file__).with_name("zygote.py"))

    @classmethod
    def check(cls) -> None:
        """See :meth:`Sandbox.check`; also warns of what is missing."""
        if sys.platform != "linux":
            raise SandboxUnavailable("sandbox='process' needs Linux")
        warnings.warn(
            "sandbox='process' sets resource limits only: the program can read and change files, use the network, "
            "and see other processes with your rights; use it for code you trust",
            stacklevel=3,
        )
        cls._try()

    def _command(self) -> list[str]:
        return [getattr(sys, "_base_executable", None) or sys.executable]

    def _config(self) -> dict[str, Any]:
        return {**super()._config(), "filter": ""}

    def _place(self) -> dict[str, Any]:
        self.folder = owned.folder()
        return {"folder": self.folder}

    def end(self) -> dict[str, Any]:
        """See :meth:`Sandbox.end`."""
        try:
            return super().end()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


DAEMON_SOCKET = "/var/run/docker.sock"


@lru_cache(maxsize=1)
def _docker() -> Any:
    """The daemon's client.

    Raises:
        SandboxUnavailable: If the package or the daemon is not there.
    """
    try:
        import docker
    except ImportError:
        raise NotInstalled("the docker package is missing: pip install 'agent-gym[docker]'") from None
    try:
        client = docker.from_env(timeout=TRIAL_S)
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        expected = "DOCKER_HOST" in os.environ or os.path.exists(DAEMON_SOCKET)
        kind = SandboxUnavailable if expected else NotInstalled
        raise kind(f"the Docker daemon does not answer: {_told(error)}") from None
    client.api.timeout = START_S
    return client


os.register_at_fork(after_in_child=_docker.cache_clear)  # two processes must not talk on one connection


def _told(error: Exception) -> str:
    """What an error of the client says, without the request in which the daemon said it."""
    return str(getattr(error, "explanation", None) or error)


def docker_image() -> str:
    """The id of the sandbox image in the daemon; the image is built and loaded where it is missing.

    Raises:
        SandboxUnavailable: If there is no daemon, or the image cannot be built, or the daemon holds other bytes under
            that name.
    """
    client, identity = _docker(), image_id()
    if identity not in {image.id for image in client.images.list(all=True)}:
        identity, data = image_tar()
        loaded = [image.id for image in client.images.load(data)]
        if identity not in loaded:
            raise SandboxUnavailable(f"the daemon loaded {loaded}, not the image {identity}")
    return identity


FIRST_UID, UIDS = 20_000, 40_000
"""The uids of runs: above a machine's services and most of its people, below systemd's dynamic ones, nobody, and
65,536, where the map of a daemon that is rootless or remaps uids usually ends."""


@lru_cache(maxsize=1)
def _uids(pid: int) -> Iterator[int]:
    """Numbers for this process's runs, one after the other, from a random one on.

    A run has a container's processes, files and network to itself, and its uid keeps it apart in two ways more. From
    the earlier runs of that container, whose leavings, were there any, would be another's: a container is replaced
    after 500 of 40,000 uids. And from the runs that go on elsewhere at that time, because the kernel counts processes
    and pending signals by uid, over all containers that are not remapped: runs of one process never meet, those of two
    do by chance, once in 40,000 runs for each that goes on over there, and then share these counts and nothing else.

    Args:
        pid: This process: a fork would go on in step with its parent.
    """
    return itertools.count(secrets.randbelow(UIDS))


class Docker(Sandbox):
    """A warm container whose PID 1 is the zygote; every run has a uid of its own and the container to itself.

    Args:
        limits: See :class:`Sandbox`.
        patience: See :class:`Sandbox`.
        runtime: Passed to the daemon, e.g. ``"runsc"`` for gVisor.
    """

    isolation = "uid"
    recycle_after = 500
    container: Any = None

    def __init__(self, limits: Limits, patience: float = START_S, runtime: str | None = None) -> None:
        self.runtime = runtime
        super().__init__(limits, patience)

    @classmethod
    def check(cls) -> None:
        """See :meth:`Sandbox.check`. A daemon that answers may still be of no use: one that does not see this process's
        files, as through a mounted socket, or that may not mount them, or whose containers lack the uids."""
        if sys.platform != "linux":
            raise NotInstalled("the Docker sandbox needs Linux: its control socket does not cross into a VM")
        client = _docker()
        import docker

        try:
            docker_image()
            client.api.timeout = TRIAL_S
            cls._try()
            reap_containers()
        except (docker.errors.DockerException, OSError) as error:
            raise SandboxUnavailable(f"sandbox='docker' does not work here: {_told(error)}") from error
        finally:
            client.api.timeout = START_S

    def _launch(self) -> socket.socket:
        import docker

        folder = owned.folder()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                self._listen(listener, folder)
                self.container = self._create(folder)
                words = self.container.attach_socket(params={"stderr": 1, "stream": 1})
                try:
                    self.container.start()
                    return self._accept(listener, words)
                finally:
                    getattr(words, "_response", words).close()  # with the connection under it
        except (docker.errors.DockerException, OSError) as error:
            told = _told(error)
            if folder in told:
                told += f"; the daemon must see this process's {Path(folder).parent} (TMPDIR names another folder)"
            raise Lost(f"no container: {told}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the container keeps the connection, not the way to it

    @staticmethod
    def _listen(listener: socket.socket, folder: str) -> None:
        handle = os.open(folder, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{handle}/control")  # a socket's path is 107 bytes at most
        finally:
            os.close(handle)
        os.chmod(folder, 0o755)
        os.chmod(f"{folder}/control", 0o666)
        listener.listen(1)

    def _accept(self, listener: socket.socket, words: Any) -> socket.socket:
        """The container's connection.

        Args:
            listener: Where it connects.
            words: Its standard error, which closes when it ends.

        Raises:
            Lost: If it ends or the time is up before it does.
        """
        said, deadline = b"", time.monotonic() + self.patience
        while True:
            ready, _, _ = select.select([listener, words], [], [], max(0.0, deadline - time.monotonic()))
            if listener in ready:
                return listener.accept()[0]
            if not ready:
                raise Lost(f"the container has not connected to this process within {self.patience:g} s")
            part = os.read(words.fileno(), 1 << 12)
            if not part:
                text = re.sub(rb"\x02\x00\x00\x00.{4}", b"", said, flags=re.DOTALL).decode("utf-8", "replace").strip()
                raise Lost(f"the container ended before it connected to this process: {text.rpartition(chr(10))[2]}")
            said = (said + part)[-(1 << 12) :]

    def _create(self, folder: str) -> Any:
        import docker

        limits, megabyte = self.limits, 1 << 20
        config = json.dumps({**self._config(), "socket": "/run/control"})
        memory = (limits.memory_mb + OVERHEAD_MB) * megabyte
        return _docker().containers.create(
            docker_image(),
            [PYTHON, "-P", "-s", "-B", ZYGOTE, config],
            auto_remove=True,
            stop_signal="SIGKILL",  # PID 1 is deaf to others: a daemon that stops would wait ten seconds for it
            network_mode="none",
            read_only=True,
            tmpfs={
                "/tmp": f"size={limits.disk_mb}m,nr_inodes=4096,mode=1777,nosuid,nodev,noexec",
                "/dev/shm": f"size={limits.disk_mb}m,nr_inodes=256,mode=1777,nosuid,nodev,noexec",
            },
            mounts=[docker.types.Mount("/run", folder, "bind", read_only=True)],  # a volume would make a missing folder
            pids_limit=limits.processes + 8,
            mem_limit=memory,
            memswap_limit=memory,
            nano_cpus=10**9,
            cap_drop=["ALL"],
            cap_add=["SETUID", "SETGID", "KILL", "SETPCAP"],  # the last to drop the bounding set, and then itself
            security_opt=["no-new-privileges:true", f"seccomp={json.dumps(seccomp.docker_profile())}"],
            log_config={"Type": "none"},
            ipc_mode="private",
            hostname="sandbox",
            environment=ENVIRONMENT,
            labels={"agent_gym.owner": owned.owner()},
            runtime=self.runtime,
        )

    def _place(self) -> dict[str, Any]:
        return {"folder": "/tmp", "uid": FIRST_UID + next(_uids(os.getpid())) % UIDS}

    def _stop(self) -> None:
        import docker

        for _ in range(REMOVALS if self.container is not None else 0):
            try:
                self.container.remove(force=True)
                return
            except docker.errors.NotFound:
                return
            except docker.errors.APIError:  # it is going; or the daemon still wrote in its folder, and failed
                time.sleep(0.1)
            except (docker.errors.DockerException, OSError):  # gone with its daemon
                return


def reap_containers() -> int:
    """Remove the containers of callers that are gone; how many there were."""
    import docker

    count = 0
    for container in _docker().containers.list(all=True, filters={"label": "agent_gym.owner"}, ignore_removed=True):
        if not owned.is_alive(container.labels["agent_gym.owner"]):
            with contextlib.suppress(docker.errors.APIError):  # gone, or going
                container.remove(force=True)
                count += 1
    return count


BACKENDS: dict[str, type[Sandbox]] = {"docker": Docker, "bubblewrap": Bubblewrap, "process": Process}


AUTO = ("docker", "bubblewrap")
"""What ``"auto"`` takes the first of that works."""


@lru_cache(maxsize=8)
def choose(name: str) -> type[Sandbox]:
    """The backend of that name; for ``"auto"``, Docker where it works, else bubblewrap, and never a weaker one. What
    was found to work is not tried again by this process.

    Raises:
        ValueError: For an unknown name.
        SandboxUnavailable: If it cannot be had, saying what to install, to allow or to set.
    """
    if name != "auto":
        if name not in BACKENDS:
            raise ValueError(f"sandbox {name!r}: choose 'auto', {', '.join(map(repr, BACKENDS))}")
        BACKENDS[name].check()
        return BACKENDS[name]
    reasons: list[SandboxUnavailable] = []
    for candidate in AUTO:
        try:
            BACKENDS[candidate].check()
        except SandboxUnavailable as error:
            reasons.append(error)
            continue
        for reason in reasons:
            if not isinstance(reason, NotInstalled):
                warnings.warn(f"sandbox='auto' takes {candidate}: {reason}", stacklevel=3)
        return BACKENDS[candidate]
    raise SandboxUnavailable(
        f"no sandbox for untrusted code: install Docker or bubblewrap ({'; '.join(dict.fromkeys(map(str, reasons)))}), "
        "or ask by name for sandbox='process', which does not protect this machine"
    )
