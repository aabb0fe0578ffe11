"""The command ``agent-gym``: every way to the environments that needs no line of Python."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import gymnasium as gym

from agent_gym import __version__
from agent_gym.cli import check, envs, evaluate, forward, play, replay, serve, tasks, view
from agent_gym.cli.errors import Failure, one_sentence
from agent_gym.sandbox import SandboxUnavailable
from agent_gym.verdict import InfraError

__all__ = ["main"]

COMMANDS = (envs, tasks, play, evaluate, check, replay, view, serve, forward)
"""Modules with ``add(commands)``, which makes a parser and sets its ``run(args) -> exit code``."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        argv: Arguments, without the program's name; those of this process by default.

    Returns:
        The exit code: 0; 1 where what was asked for cannot be, or a check found a fault; 130 after ctrl-c. Options
        that cannot be read end in ``SystemExit(2)``.
    """
    parser = argparse.ArgumentParser(
        prog="agent-gym", description="Environments, task sets and results of agent_gym.",
        epilog="Exit codes: 0 done, 1 could not be done or a check failed (one sentence says why), 2 wrong usage, "
        "130 interrupted.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"agent-gym {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read has seen enough; the interpreter flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Failure, ImportError, OSError, ValueError, gym.error.Error, InfraError, SandboxUnavailable) as error:
        print(f"agent-gym: {one_sentence(error)}", file=sys.stderr)
        return 1
