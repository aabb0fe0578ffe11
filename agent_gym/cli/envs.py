"""``agent-gym envs``: the environments, their arguments and their task sets."""

from __future__ import annotations

import argparse
import inspect
from importlib import import_module
from typing import Any

from agent_gym.cli.errors import Failure
from agent_gym.env import ToolEnv
from agent_gym.tasksets import SOURCES, names

CLASSES = {
    "APIAgent-v0": "agent_gym.envs.api_agent:APIAgentEnv",
    "CodeAgent-v0": "agent_gym.envs.code_agent:CodeAgentEnv",
    "SQL-v0": "agent_gym.envs.sql_agent:SQLEnv",
    "WebLite-v0": "agent_gym.envs.web_lite:WebLiteEnv",
}


def add(commands: argparse._SubParsersAction) -> None:
    """See :data:`agent_gym.cli.COMMANDS`."""
    parser = commands.add_parser(
        "envs", help="list the environments, their arguments and task sets",
        description="List the environments with their arguments and task sets; with an id, all of its arguments.",
    )  # fmt: skip
    parser.add_argument("env_id", nargs="?", metavar="ENV_ID", help="such as APIAgent-v0")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print them."""
    if args.env_id is not None and args.env_id not in CLASSES:
        raise Failure(f"there is no environment {args.env_id!r}; there are {', '.join(CLASSES)}")
    if args.env_id is not None:
        kind = _class(args.env_id)
        print(args.env_id, inspect.getdoc(kind), "Arguments of every environment:", inspect.getdoc(ToolEnv), sep="\n\n")
        return 0
    for env_id in CLASSES:
        kind = _class(env_id)
        print(env_id)
        print(f"  {(inspect.getdoc(kind) or '').splitlines()[0]}")
        print(f"  arguments: {_arguments(kind)}")
        sources = [source for source, of in SOURCES.items() if of == env_id]
        print(f"  task sets: {', '.join(names(env_id) + sources)}\n")
    print(f"Every environment\n  arguments: {_arguments(ToolEnv)}")
    return 0


def _class(env_id: str) -> Any:
    module, _, name = CLASSES[env_id].partition(":")
    return getattr(import_module(module), name)


def _arguments(kind: Any) -> str:
    """The keyword arguments of an environment's own, with their defaults."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return ", ".join(f"{p.name}={p.default!r}" for p in parameters if p.kind is p.KEYWORD_ONLY)
