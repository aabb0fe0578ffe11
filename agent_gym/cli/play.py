"""``agent-gym play``: a person in the place of the model."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import agent_gym
from agent_gym.cli.arguments import budget, json_object
from agent_gym.cli.errors import made
from agent_gym.cli.tasks import costs
from agent_gym.env import tool_env
from agent_gym.tasksets import open_set, oracle_cost
from agent_gym.tools import Call
from agent_gym.wrappers import RecordTrajectory

HELP = """\
  TOOL NAME=VALUE ...     call a tool, such as: find_customer email=ann@mail.com
                          (a value is JSON or one word: name="Ann Lee")
  TOOL {"NAME": VALUE}    the same, with its arguments in JSON
  any other text          the final answer, which ends the episode (also: submit answer="...")
  undo                    take the last turn back, and its costs
  task                    show the request and the tools once more
  help                    show this
  quit                    leave; so does the end of the input"""


def add(commands: argparse._SubParsersAction) -> None:
    """See :data:`agent_gym.cli.COMMANDS`."""
    parser = commands.add_parser(
        "play", help="play a task yourself in the terminal", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Play a task in the terminal, or by lines from a pipe. What a line may be:\n\n{HELP}",
    )  # fmt: skip
    parser.add_argument("env_id", nargs="?", metavar="ENV_ID", help="default: the task set's, or APIAgent-v0")
    parser.add_argument("--tasks", metavar="SET", help="a task set, or a source or path of real tasks")
    parser.add_argument("--task", metavar="TASK_ID", help="this task; else one is drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: %(default)s)")
    parser.add_argument("--budget", type=budget, metavar="CHANNEL=BOUND,...", help="such as tool_calls=6")
    parser.add_argument("--env-kwargs", type=json_object, default={}, metavar="JSON", help='such as {"difficulty": 2}')
    parser.add_argument("--record", metavar="FILE", help="append finished episodes to this trajectory file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Play until the input ends."""
    given = {name: value for name in ("tasks", "budget") if (value := getattr(args, name)) is not None}
    env_id = args.env_id or (open_set(args.tasks).env_id if args.tasks else "APIAgent-v0")
    env = RecordTrajectory(made(env_id, {**args.env_kwargs, **given}), args.record)
    request, info = env.reset(seed=args.seed, options={"task": args.task} if args.task else None)
    task_id, tools = info["task_id"], {tool["function"]["name"]: tool["function"] for tool in info["tools"]}
    print(f"{env_id}, task {task_id}; 'help' says what you can write\n")
    _show(request, tools, info)
    taken: list[tuple[agent_gym.Snapshot, dict[str, Any]]] = []  # before each turn: the state, and what was told
    over = False
    while (line := _line()) is not None and line != "quit":
        if line == "help":
            print(HELP)
        elif line == "task":
            _show(request, tools, info)
        elif line == "undo":
            if not taken:
                print("nothing to take back")
                continue
            before, info = taken.pop()
            agent_gym.restore(env, before)
            over = False
            print(f"taken back; {_account(info)}")
        elif over:
            print("the episode is over: undo or quit")
        elif line:
            try:
                action = _action(env, line, tools)
            except ValueError as fault:
                print(fault)
                continue
            taken.append((agent_gym.snapshot(env), info))
            observation, reward, terminated, truncated, info = env.step(action)
            if observation:
                print(observation)
            print(f"  this turn: {costs(info['cost'])}\n  {_account(info)}")
            if over := terminated or truncated:
                end = info["verdict"]
                print(f"{end['status']} ({end['reason']}), reward {reward:g}", *end["diagnostics"], sep="\n  ")
                print(f"  {_oracle(env_id, {**args.env_kwargs, **given}, args.seed, task_id)}")
    env.close()
    return 0


def _line() -> str | None:
    """The next line of the input, None at its end. What comes from a pipe is shown as if it had been typed."""
    if sys.stdin.isatty():
        try:
            return input("> ").strip()
        except EOFError:
            return None
    line = sys.stdin.readline()
    if not line:
        return None
    print(f"> {line.strip()}")
    return line.strip()


def _show(request: str, tools: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """The request, the tools and the budget."""
    print(request, "", "Tools:", sep="\n")
    for name, tool in tools.items():
        words = [
            word if argument in tool["parameters"].get("required", []) else f"[{word}]"
            for argument, schema in tool["parameters"]["properties"].items()
            for word in [f"{argument}={_kind(schema)}"]
        ]
        print(f"  {' '.join([name, *words])}\n      {tool['description'].splitlines()[0]}")
    print(f"\n{_account(info)}")


def _kind(schema: Mapping[str, Any]) -> str:
    """The type that a schema wants."""
    found = schema.get("type", "json")
    return found if isinstance(found, str) else "|".join(found)


def _account(info: Mapping[str, Any]) -> str:
    """What has been spent, and what is left."""
    left = costs(info["budget_left"])
    return f"so far: {costs(info['cost_total'])}" + (f"; left: {left}" if left else "")


def _action(env: RecordTrajectory, line: str, tools: Mapping[str, Any]) -> str:
    """The turn that a line asks for.

    Raises:
        ValueError: If it begins with a tool's name and does not go on as a call.
    """
    parser = tool_env(env).parser
    name, _, rest = line.partition(" ")
    if name not in tools:
        return parser.render(line, [])
    rest = rest.strip()
    try:
        arguments = json_object(rest) if rest.startswith("{") else _pairs(rest, tools[name]["parameters"]["properties"])
    except (argparse.ArgumentTypeError, ValueError) as fault:
        raise ValueError(f"{name}: {fault}; to answer with this text: submit answer=...") from None
    return parser.render("", [Call(name, arguments)])


def _pairs(text: str, schemas: Mapping[str, Any]) -> dict[str, Any]:
    """``name=value ...`` as arguments.

    Raises:
        ValueError: For a word without a name, or an open quote.
    """
    found: dict[str, Any] = {}
    while text := text.lstrip():
        name = text.partition("=")[0]
        if name not in schemas:
            raise ValueError(f"{text.split()[0]!r} is not NAME=VALUE; its arguments are {', '.join(schemas) or 'none'}")
        found[name], text = _value(text[len(name) + 1 :], schemas[name])
    return found


def _value(text: str, schema: Mapping[str, Any]) -> tuple[Any, str]:
    """What a text begins with, as JSON where it is JSON and the schema does not want a text, and the rest of it.

    Raises:
        ValueError: For an open quote.
    """
    kinds = {schema["type"]} if isinstance(schema.get("type"), str) else set(schema.get("type", ()))
    word = re.match(r"\S*", text)[0]  # type: ignore[index]
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        if text.startswith('"'):
            raise ValueError(f"the quote in {word!r} is not closed") from None
        return word, text[len(word) :]
    if text[end : end + 1].strip():  # such as a date, which begins with a number
        return word, text[len(word) :]
    as_text = kinds == {"string"} or ("string" in kinds and isinstance(value, dict | list))
    return text[:end] if as_text and not isinstance(value, str) else value, text[end:]


def _oracle(env_id: str, kwargs: Mapping[str, Any], seed: int, task_id: str) -> str:
    """What the oracle spends on the same task."""
    env = made(env_id, {**kwargs, "on_budget": "record"})
    env.reset(seed=seed, options={"task": task_id})
    found = oracle_cost(env)
    env.close()
    return f"the oracle: {costs(found)}" if found else "there is no oracle for this task"
