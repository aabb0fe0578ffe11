"""``python -m agent_gym.sandbox build | check | reap``: the image, whether the backends work, leftovers."""

from __future__ import annotations

import argparse
import sys
import warnings

from agent_gym.files import write
from agent_gym.sandbox import SandboxUnavailable, owned
from agent_gym.sandbox.backends import AUTO, BACKENDS, docker_image, reap_containers
from agent_gym.sandbox.rootfs import image_tar


def _build(output: str | None) -> str:
    if output is None:
        return f"the daemon has the image {docker_image()}"
    identity, data = image_tar()
    write(output, data)
    return f"wrote {output}: image {identity}, {len(data) / 1e6:.0f} MB; load it with: docker load -i {output}"


def _check() -> str:
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of process, which is asked for nothing but this
        for name, kind in BACKENDS.items():
            try:
                kind.check()
                found[name] = "works"
            except SandboxUnavailable as error:
                found[name] = str(error)
    lines = [f"{name}: {text}" for name, text in found.items()]
    taken = next((name for name in AUTO if found[name] == "works"), None)
    if taken is None:
        lines.append(f"auto: takes nothing, because neither {' nor '.join(AUTO)} works")
    elif taken == AUTO[0]:
        lines.append(f"auto: takes {taken}, because it works and comes first")
    else:
        lines.append(f"auto: takes {taken}, because {AUTO[0]} does not work")
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
    commands.add_parser("check", help="run a small program in every backend, and say which one 'auto' takes")
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
