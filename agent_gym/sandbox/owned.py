"""What a process has outside itself, control groups and folders, and how they go when it goes, however that is."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import time
from functools import lru_cache
from pathlib import Path

from agent_gym.sandbox.errors import SandboxUnavailable

__all__ = ["Group", "folder", "is_alive", "owner", "reap"]

ROOT = Path("/sys/fs/cgroup")
_numbers = itertools.count()

_JANITOR = """
cat > /dev/null
for try in 1 2 3 4 5 6 7 8 9 10; do
    left=
    for base in "$@"; do
        for one in "$base"/"$0"-*; do
            [ -d "$one" ] && { rmdir "$one" || rm -r "$one" || left=yes; } 2>/dev/null
        done
    done
    [ -z "$left" ] && exit 0
    sleep 0.3
done
"""


def owner() -> str:
    """This process, so that it can be told from a later one with the same number: boot, pid namespace, pid, start."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}.{os.getpid()}.{_start_time(os.getpid())}"


def _start_time(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def is_alive(name: str) -> bool:
    """Whether the process that :func:`owner` named still lives; True where that cannot be told from here."""
    boot, namespace, pid, start = name.split(".")
    mine = owner().split(".")
    if boot != mine[0]:
        return False
    if namespace != mine[1]:
        return True
    try:
        return _start_time(int(pid)) == start
    except OSError:
        return False


@lru_cache(maxsize=1)
def _parents() -> tuple[Path, ...]:
    """Where groups can be made: one folder (v2), one for memory and one for pids (v1), or none."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    if "memory" in paths and "pids" in paths:
        parents = tuple(ROOT / name / paths[name].lstrip("/") for name in ("memory", "pids"))
        return parents if all(os.access(parent, os.W_OK) for parent in parents) else ()
    if "" not in paths:
        return ()
    here = ROOT / paths[""].lstrip("/")
    for parent in (here, here.parent):  # a group with processes of its own cannot pass its controllers on
        try:
            (parent / "cgroup.subtree_control").write_text("+memory +pids")
            return (parent,)
        except OSError:
            continue
    return ()


@lru_cache(maxsize=1)
def _janitor(pid: int) -> int:
    """A shell that waits for this process to die and removes what it leaves behind. It waits on a pipe; this end of it.

    Args:
        pid: This process: a fork has none yet.
    """
    theirs, ours = os.pipe()
    command = ["/bin/sh", "-c", _JANITOR, f"agent_gym-{owner()}", *map(str, _parents()), _temporary()]
    actions = [(os.POSIX_SPAWN_DUP2, theirs, 0)]
    os.posix_spawn("/bin/sh", command, {"PATH": "/usr/bin:/bin"}, file_actions=actions, setsid=True)
    os.close(theirs)
    return ours


def _temporary() -> str:
    """The temporary directory.

    Raises:
        SandboxUnavailable: If there is none.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise SandboxUnavailable(
            "the sandbox finds no folder for temporary files: set TMPDIR to a folder that can be written"
        ) from None


def folder() -> str:
    """A new folder in the temporary directory, for the caller to remove.

    Raises:
        SandboxUnavailable: If there is no temporary directory.
    """
    _janitor(os.getpid())
    return tempfile.mkdtemp(prefix=f"agent_gym-{owner()}-")


class Group:
    """One sandbox's limits on memory and processes, for the zygote and its runs together.

    Args:
        memory_mb: Resident memory, in megabytes.
        processes: Processes and threads.
    """

    def __init__(self, memory_mb: int, processes: int) -> None:
        parents, name = _parents(), f"agent_gym-{owner()}-{next(_numbers)}"
        self.folders = tuple(parent / name for parent in parents)
        if not parents:
            return
        _janitor(os.getpid())
        one = len(parents) == 1
        files = (
            {"memory.max": memory_mb << 20, "memory.swap.max": 0}
            if one
            else {"memory.limit_in_bytes": memory_mb << 20, "memory.memsw.limit_in_bytes": memory_mb << 20}
        )
        for folder in self.folders:
            folder.mkdir()
        for file, value in files.items():
            if (self.folders[0] / file).exists():  # swap accounting is not in every kernel
                (self.folders[0] / file).write_text(str(value))
        (self.folders[-1] / "pids.max").write_text(str(processes))

    def oom_kills(self) -> int:
        """How many processes the kernel has killed in here for want of memory."""
        if not self.folders:
            return 0
        counter = "memory.events" if len(self.folders) == 1 else "memory.oom_control"
        lines = (self.folders[0] / counter).read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def remove(self) -> None:
        """Remove it; its last process may still be on its way out."""
        for folder in self.folders:
            for _ in range(100):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)


def reap() -> int:
    """Remove the groups and folders of processes that are gone, with what still runs in them; how many there were."""
    count = 0
    for base in (*_parents(), Path(_temporary())):
        for one in base.glob("agent_gym-*.*.*.*-*"):
            if is_alive(one.name.removeprefix("agent_gym-").rpartition("-")[0]):
                continue
            with contextlib.suppress(OSError):  # another reaper, or the janitor, is at it too
                if base in _parents():
                    for pid in (one / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                    one.rmdir()
                else:
                    shutil.rmtree(one)
                count += 1
    return count
