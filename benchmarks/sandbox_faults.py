"""Mixed load with faults: everything is killed at random, and no verdict may be wrong.

    python benchmarks/sandbox_faults.py --backend bubblewrap --seconds 600 --kill zygote
    python benchmarks/sandbox_faults.py --backend docker --seconds 600 --kill container daemon caller

A caller (a process of its own) checks a stream of programs, right ones and every kind of wrong one, through a Pool with
a journal. Meanwhile zygotes, containers, the Docker daemon (a private one) or the caller itself are sent SIGKILL. A
killed caller is started again on the same journal. At the end every accepted request must have exactly one verdict,
the true one, or be reported as infra, and no process, container, control group or file may be left.

Nothing here depends on how fast the machine is. Where no verdict came between two faults, the pause to the next one is
doubled, so that the load gets on; and what is being removed is waited for.
"""

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent_gym.sandbox import Limits, Pool, SandboxUnavailable, owned
from agent_gym.sandbox.grader import Cases, Request, Test

LIMITS = Limits(cpu_s=1, wall_s=20.0, memory_mb=128, disk_mb=8, processes=32)
DAEMON = "import os\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass\n    return x + 1"
KINDS: list[tuple[str, str, set[str]]] = [
    # name, body of f(x) where the test wants x + 1, allowed reasons
    ("right", "return x + 1", {"passed"}),
    ("right, many calls", "return sum([1] * x) + 1", {"passed"}),
    ("right, forks", "import os\n    if os.fork() == 0: os._exit(0)\n    os.wait()\n    return x + 1", {"passed"}),
    ("right, prints much", "print('x' * 100000)\n    return x + 1", {"passed"}),
    ("wrong", "return x + 2", {"wrong_answer"}),
    ("wrong type", "return float(x + 1)", {"wrong_answer"}),
    ("raises", "raise KeyError(x)", {"error"}),
    ("leaves", "import os\n    os._exit(0)", {"error"}),
    ("forges", "import os\n    os.write(3, b'\\0\\0\\0\\2{}')\n    return x + 1", {"error"}),
    ("endless", "while True: pass", {"timeout"}),
    ("memory", "return len([0] * (1 << 28))", {"memory"}),
    ("large", "return 'x' * (1 << 21)", {"output_limit"}),
    ("daemon", DAEMON, {"passed"}),
]  # fmt: skip
WEIGHTS = [8, 4, 3, 3, 4, 3, 3, 3, 3, 1, 2, 2, 1]
LIMIT_S = 900.0
"""Bound of everything that is waited for: only what hangs reaches it."""


def request(number: int) -> tuple[Request, set[str]]:
    """The request of that number, and the reasons that are true for it."""
    _, body, allowed = random.Random(number).choices(KINDS, WEIGHTS)[0]
    source = f"# {number}\ndef f(x):\n    {body}\n"
    return Request.of(source, "f", Cases((Test((number,), number + 1), Test((0,), 1))), LIMITS), allowed


def call(backend: str, slots: int, journal: str) -> None:
    """The caller: go on where the journal ends, until standard input does."""
    with _pool(backend, slots, journal) as pool:
        futures = list(pool.recover().values())
        number = sum('"accepted"' in line for line in Path(journal).read_text().splitlines())
        while not _told_to_end():
            futures.append(pool._accept(request(number)[0]))
            number += 1
        for future in futures:
            future.result()


def _told_to_end() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _pool(backend: str, slots: int, journal: str) -> Pool:
    while True:
        try:
            return Pool(backend, slots=slots, limits=LIMITS, pending=16, journal=journal)
        except SandboxUnavailable:  # the daemon is down, or what was tried first was killed
            if _told_to_end():  # by then, neither is a reason
                raise
            time.sleep(0.5)


# ---- faults --------------------------------------------------------------------------------------------------------


def zygotes(owner: str) -> list[int]:
    """The zygotes of a caller, and what bubblewrap put around them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                if f'"owner": "{owner}"'.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return found


class Daemon:
    """A Docker daemon of our own, so that nobody else's is killed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{self.folder}/socket"}
        self.process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        (self.folder / "pid").unlink(missing_ok=True)
        roots = [f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/pid"]
        network = ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        program = shutil.which("dockerd") or "/usr/sbin/dockerd"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-H", self.environment["DOCKER_HOST"], *roots, *network], stdout=log, stderr=log,
                env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}, start_new_session=True,
            )  # fmt: skip
        process = self.process
        if not wait_until(lambda: self._answers() or process.poll() is not None, 300.0) or process.poll() is not None:
            raise RuntimeError(f"dockerd does not start: {(self.folder / 'log').read_text()[-500:]}")

    def client(self) -> Any:
        """A client of this daemon."""
        import docker

        return docker.DockerClient(self.environment["DOCKER_HOST"], timeout=300)

    def _answers(self) -> bool:
        import docker

        with contextlib.suppress(docker.errors.DockerException, OSError), contextlib.closing(self.client()) as client:
            return client.ping()
        return False

    def kill(self) -> None:
        """SIGKILL, an outage, and a new start."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        pid = self.folder / "exec/containerd/containerd.pid"
        with contextlib.suppress(OSError, ValueError):  # its own containerd would hold its files against the next one
            os.kill(int(pid.read_text()), signal.SIGKILL)
        pid.unlink(missing_ok=True)
        time.sleep(1.0)
        self.start()

    def containers(self) -> list[str]:
        """Those of this suite, of any state."""
        with contextlib.closing(self.client()) as client:
            filters = {"label": "agent_gym.owner"}
            return [one.id for one in client.containers.list(all=True, filters=filters, ignore_removed=True)]

    def stop(self) -> None:
        """Stop it and remove its folders."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait()
        subprocess.run(["pkill", "-f", f"containerd-shim.*{self.folder}"], check=False)
        for line in Path("/proc/mounts").read_text().splitlines():
            if line.split()[1].startswith(str(self.folder)):
                subprocess.run(["umount", "-l", line.split()[1]], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    """Ask until it is so; whether it is, after so many seconds at most."""
    deadline = time.monotonic() + seconds
    while not (so := done()) and time.monotonic() < deadline:
        time.sleep(0.25)
    return so


def run(
    backend: str, seconds: float, slots: int, kinds: list[str], every: float, seed: int, kills: int = 0,
    answers: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Load and faults; what came of it.

    Args:
        backend: ``"bubblewrap"`` or ``"docker"``.
        seconds: How long, at least.
        slots: Sandboxes at work at a time.
        kinds: What is killed, in this order, round and round.
        every: Mean seconds between two faults, on a machine that is fast enough.
        seed: Of the pauses and of the victims.
        kills: Go on until so many of each kind were killed.
        answers: Go on until there are so many verdicts.
    """
    daemon = Daemon() if backend == "docker" else None
    try:
        return _run(backend, seconds, slots, kinds, every, random.Random(seed), kills, answers, daemon)
    finally:
        if daemon:
            daemon.stop()


def _run(
    backend: str, seconds: float, slots: int, kinds: list[str], every: float, rng: random.Random, least: int,
    answers: int, daemon: Daemon | None,
) -> dict[str, Any]:  # fmt: skip
    kills = Counter[str](dict.fromkeys(kinds, 0))
    environment = daemon.environment if daemon else dict(os.environ)
    owners: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        journal = f"{folder}/journal"
        Path(journal).touch()

        def caller(stdin: int) -> subprocess.Popen:
            command = [sys.executable, __file__, "--caller", "--backend", backend]
            command += ["--slots", str(slots), "--journal", journal]
            process = subprocess.Popen(command, env=environment, stdin=stdin)
            owners.add(owner_of(process.pid))
            return process

        process = caller(subprocess.PIPE)
        started, pause, before, turn = time.monotonic(), every, 0, 0
        while (ran := time.monotonic() - started) < LIMIT_S:
            answered = len(_answers(journal))
            if ran >= seconds and min(kills.values()) >= least and answered >= answers:
                break
            pause, before = (every if answered > before else 2 * pause), answered
            time.sleep(rng.uniform(0.5, 1.5) * pause)
            kind = kinds[turn % len(kinds)]
            if kind == "caller":
                process.kill()
                process.wait()
                process = caller(subprocess.PIPE)
            elif kind == "daemon" and daemon:
                daemon.kill()
            elif victims := zygotes(owner_of(process.pid)):  # in a container, the zygote is the container's life
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(victims), signal.SIGKILL)
            else:
                continue  # it has none yet
            kills[kind] += 1
            turn += 1
        assert process.stdin is not None
        process.stdin.close()
        process.wait(LIMIT_S)
        for _ in range(5):  # what was accepted before the last death, or ended as infra, is asked again
            if not unanswered(journal):
                break
            process = caller(subprocess.DEVNULL)
            process.wait(LIMIT_S)
        wait_until(lambda: not leftovers(owners, daemon), 120.0)
        report = judge(journal)
        report |= {"kills": dict(kills), "exit": process.returncode, "left": leftovers(owners, daemon)}
    return report


def owner_of(pid: int) -> str:
    """As ``owned.owner`` says it of itself."""
    boot, namespace, _, _ = owned.owner().split(".")
    return f"{boot}.{namespace}.{pid}.{owned._start_time(pid)}"


def _entries(journal: str) -> list[dict[str, Any]]:
    entries = []
    for line in Path(journal).read_text().splitlines():
        with contextlib.suppress(ValueError):  # a death in the middle of a line
            entries.append(json.loads(line))
    return entries


def _answers(journal: str) -> list[tuple[str, dict[str, Any]]]:
    return [(entry["answered"], entry["verdict"]) for entry in _entries(journal) if "answered" in entry]


def unanswered(journal: str) -> int:
    """Requests without a verdict."""
    accepted = {entry["accepted"] for entry in _entries(journal) if "accepted" in entry}
    return len(accepted - {key for key, _ in _answers(journal)})


def judge(journal: str) -> dict[str, Any]:
    """Compare every verdict with the truth."""
    entries = _entries(journal)
    accepted = {e["accepted"] for e in entries if "accepted" in e}
    answers = _answers(journal)
    truth = {}
    for number in range(sum("accepted" in e for e in entries) + 1):  # a restarted caller accepts some again
        one, allowed = request(number)
        truth[one.key] = (number, allowed)
    wrong = [
        f"number {truth[key][0]}: {verdict['reason']} {verdict['diagnostics'][:1]}, true is {sorted(truth[key][1])}"
        for key, verdict in answers
        if verdict["reason"] not in truth[key][1]
    ]
    return {
        "accepted": len(accepted),
        "answered": len(answers),
        "answered twice": len(answers) - len({key for key, _ in answers}),
        "without a verdict": len(accepted - {key for key, _ in answers}),
        "reasons": dict(Counter(verdict["reason"] for _, verdict in answers)),
        "wrong": wrong,
    }


def leftovers(owners: set[str], daemon: Daemon | None) -> list[str]:
    """Whatever a caller left behind."""
    left = [f"process {pid}" for owner in owners for pid in zygotes(owner)]
    left += [f"container {name}" for name in (daemon.containers() if daemon else ())]
    for parent in owned._parents():
        left += [f"group {path}" for owner in owners for path in parent.glob(f"agent_gym-{owner}-*")]
    folders = Path(tempfile.gettempdir())
    return left + [f"file {path}" for owner in owners for path in folders.glob(f"agent_gym-{owner}-*")]


def main() -> int:
    """The command line: 0 when nothing was wrong and nothing was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("bubblewrap", "docker"), required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults go on")
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--kill", nargs="+", choices=("zygote", "container", "daemon", "caller"), default=["zygote"])
    parser.add_argument("--every", type=float, default=2.0, help="mean seconds between two faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--caller", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--journal", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.caller:
        call(options.backend, options.slots, options.journal)
        return 0
    report = run(options.backend, options.seconds, options.slots, options.kill, options.every, options.seed)
    print(json.dumps(report, indent=1))
    return int(bool(report["wrong"] or report["left"] or report["answered twice"] or report["without a verdict"]))


if __name__ == "__main__":
    sys.exit(main())
