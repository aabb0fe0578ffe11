"""``python -m agent_gym.sandbox build | check | reap``: the image, whether the backends work, leftovers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent_gym.sandbox import SandboxUnavailable, owned
from agent_gym.sandbox.backends import BACKENDS, choose, docker_image, reap_containers
from agent_gym.sandbox.pool import CONTROL, Pool
from agent_gym.sandbox.rootfs import image_tar


def _build(output: str | None) -> str:
    if output is None:
        return f"the daemon has the image {docker_image()}"
    identity, data = image_tar()
    temporary = Path(f"{output}.part")
    temporary.write_bytes(data)
    temporary.rename(output)
    return f"wrote {output}: image {identity}, {len(data) / 1e6:.0f} MB; load it with: docker load -i {output}"


def _check() -> str:
    lines = []
    for name in BACKENDS:
        try:
            choose(name)
            with Pool(name, slots=1) as pool:
                verdict = pool._accept(CONTROL).result()
            lines.append(f"{name}: {'works' if verdict.status == 'pass' else verdict.diagnostics[0]}")
        except SandboxUnavailable as error:
            lines.append(f"{name}: {error}")
    return "\n".join(lines)


def _reap() -> str:
    found = [f"control groups and folders removed: {owned.reap()}"]
    try:
        found.append(f"containers removed: {reap_containers()}")
    except SandboxUnavailable as error:
        found.append(f"containers: {error}")
    return "\n".join(found)


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m agent_gym.sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build the image from this interpreter and load it into the daemon")
    build.add_argument("--output", help="write the image to a file instead")
    commands.add_parser("check", help="run a small program in every backend")
    commands.add_parser("reap", help="remove what callers that were killed have left behind")
    options = parser.parse_args(arguments)
    try:
        print({"build": lambda: _build(options.output), "check": _check, "reap": _reap}[options.command]())
    except SandboxUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
