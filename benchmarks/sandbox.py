"""Checks a second: the warm sandboxes against the usual ways to run a program, in one run on one machine.

Every way runs the same program on the same five calls and compares the results:

    floor            python -I -c pass: an interpreter's start and end, no check at all
    bare subprocess  a fresh python a check, five calls over a pipe, no isolation
    bubblewrap       agent_gym.sandbox, fresh namespaces a check
    docker           agent_gym.sandbox, a warm container, a uid of its own a check
    docker exec      a fresh python a check in a warm container
    docker run       a fresh container a check

The rounds are interleaved, so that a busy machine slows all of them alike. Run it with: python benchmarks/sandbox.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent_gym.files import write
from agent_gym.sandbox import Pool
from agent_gym.sandbox.backends import docker_image
from agent_gym.sandbox.rootfs import PYTHON

SOURCE = "def collatz(n):\n    steps = 0\n    while n != 1:\n        n = n // 2 if n % 2 == 0 else 3 * n + 1\n        steps += 1\n    return steps\n"  # noqa: E501
TESTS = [((1,), 0), ((6,), 8), ((7,), 16), ((12,), 9), ((19,), 20)]
CHILD = (
    "import json,sys\nfor line in sys.stdin:\n    if 'g' not in dir():\n        g = {}; exec(json.loads(line), g)\n"
    "    else: print(json.dumps(g['collatz'](*json.loads(line))), flush=True)\n"
)


def floor() -> None:
    """An interpreter that does nothing."""
    subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)


def piped(*command: str) -> Callable[[], None]:
    """A check by a program that reads the source and the inputs from its standard input."""

    def check() -> None:
        with subprocess.Popen([*command, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(SOURCE) + "\n")
            for args, expected in TESTS:
                child.stdin.write(json.dumps(args) + "\n")
                child.stdin.flush()
                assert json.loads(child.stdout.readline()) == expected
            child.stdin.close()

    return check


def pooled(pool: Pool) -> Callable[[], None]:
    """A check in a warm sandbox."""

    def check() -> None:
        assert pool.check(SOURCE, "collatz", TESTS).status == "pass"

    return check


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a way's turn in a round")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    image = docker_image()
    container = subprocess.run(
        ["docker", "run", "-d", "--rm", "--network", "none", image, PYTHON, "-c", "import time; time.sleep(3600)"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    try:
        with Pool("bubblewrap", slots=1) as bubblewrap, Pool("docker", slots=1) as docker:
            ways = {
                "floor": floor,
                "bare subprocess": piped(sys.executable, "-I", "-c"),
                "bubblewrap": pooled(bubblewrap),
                "docker": pooled(docker),
                "docker exec": piped("docker", "exec", "-i", container, PYTHON, "-I", "-c"),
                "docker run": piped("docker", "run", "-i", "--rm", "--network", "none", image, PYTHON, "-I", "-c"),
            }
            for check in ways.values():
                check()
            rates = measure(ways, options.rounds, options.seconds)
    finally:
        subprocess.run(["docker", "rm", "-f", container], capture_output=True, check=False)
    show(rates, cores)
    if options.output:
        write(options.output, json.dumps({"cores": cores, "checks_per_s": rates}, indent=1) + "\n")


def measure(ways: dict[str, Callable[[], None]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Checks a second of each way in each round, one after the other by a single client."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, check in ways.items():
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                check()
                count += 1
            rates[name].append(count / (time.perf_counter() - start))
    return rates


def show(rates: dict[str, list[float]], cores: int) -> None:
    """One line a way: median and range over the rounds, and the median ratio to the floor of the same round."""
    print(
        f"one client, {len(TESTS)} calls a check, {cores} cores; median [least, most] over {len(rates['floor'])} rounds"
    )
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, rates["floor"], strict=True))
        print(
            f"{name:<16} {statistics.median(found):7.1f}/s [{min(found):.1f}, {max(found):.1f}]  {ratio:5.2f} x floor"
        )


if __name__ == "__main__":
    main()
