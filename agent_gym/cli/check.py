"""``agent-gym check``: whether a result file is true."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    """See :data:`agent_gym.cli.COMMANDS`."""
    parser = commands.add_parser(
        "check", help="whether a result file is true",
        description="Read a result file by its schema, compute its aggregates from its outcomes and these from the "
        "trajectory file beside it, and replay a sample of its episodes. Exit code 1 if one does not hold.",
    )  # fmt: skip
    parser.add_argument("result", type=Path, nargs="+")
    parser.add_argument("--replays", type=int, default=20, help="episodes to replay (20); a large number replays all")
    parser.add_argument("--seed", type=int, default=0, help="which episodes (0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check each file; 1 if one is false."""
    from agent_gym.evaluation.check import check_result

    false = 0
    for path in args.result:
        faults = check_result(path, args.replays, args.seed)
        for fault in faults:
            print(f"{path}: {fault}", file=sys.stderr)
        if not faults:
            print(f"{path} holds")
        false += bool(faults)
    return min(false, 1)
