"""``agent-gym gate`` and ``agent-gym sandbox``: the same as ``python -m agent_gym.gate`` and ``agent_gym.sandbox``."""

from __future__ import annotations

import argparse
from importlib import import_module

MODULES = {
    "gate": ("agent_gym.gate", "check tasks before they are used"),
    "sandbox": ("agent_gym.sandbox.__main__", "build, check or clear the sandboxes of CodeAgent-v0"),
}


def add(commands: argparse._SubParsersAction) -> None:
    """See :data:`agent_gym.cli.COMMANDS`."""
    for name, (module, what) in MODULES.items():
        # no prefix: its options, --help among them, are read by the module
        parser = commands.add_parser(name, help=what, add_help=False, prefix_chars="\0")
        parser.add_argument("arguments", nargs="*")
        parser.set_defaults(run=run, module=module)


def run(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    return import_module(args.module).main(args.arguments)
