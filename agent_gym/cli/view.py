"""``agent-gym view``: result files or run folders as one page of HTML."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    """See :data:`agent_gym.cli.COMMANDS`."""
    parser = commands.add_parser(
        "view", help="a page to look at results or training runs",
        description="Write one HTML page, which needs no network, about result files of agent-gym eval (a table, "
        "success against cost, budget curves, failures) or about run folders of the trainers (curves, credits, "
        "conflicts), with trajectories to read. Needs the extra 'view'.",
    )  # fmt: skip
    parser.add_argument("paths", nargs="+", metavar="RESULT", help="result files, or run folders")
    parser.add_argument("--out", type=Path, default=Path("view.html"), help="the page (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    from agent_gym.files import write
    from agent_gym.view import render

    page = render(args.paths).encode()
    write(args.out, page)
    print(f"written to {args.out} ({len(page) / 1e6:.1f} MB)")
    if args.open:
        webbrowser.open(args.out.resolve().as_uri())
    return 0
