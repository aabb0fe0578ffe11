"""``agent-gym tasks``: the task sets, the tasks of one, or one task with its oracle and what that costs."""

from __future__ import annotations

import argparse
import textwrap

from agent_gym.cli.errors import Failure, made
from agent_gym.costs import CHANNELS
from agent_gym.env import tool_env
from agent_gym.tasksets import TaskSet, level, names, open_set


def add(commands: argparse._SubParsersAction) -> None:
    """See :data:`agent_gym.cli.COMMANDS`."""
    parser = commands.add_parser(
        "tasks", help="list the task sets, the tasks of one, or show one task",
        description="Without arguments, the frozen task sets. With the name of a set (or 'humaneval', 'mbpp', "
        "'bfcl', or a path), its tasks. With a task's id as well: that task, its oracle and what it costs.",
    )  # fmt: skip
    parser.add_argument("name", nargs="?", metavar="SET", help="such as SQL-test-v1")
    parser.add_argument("task", nargs="?", metavar="TASK_ID", help="show this task")
    parser.add_argument("--env-id", help="whose tasks a path holds")
    parser.add_argument("--check", action="store_true", help="make all tasks anew and see that none has changed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    if args.name is None:
        if args.check:
            raise Failure("--check needs the name of a task set")
        for name in names():
            task_set = open_set(name)
            print(f"{name:<24} {task_set.env_id:<13} {len(task_set.task_ids):>4} tasks  {task_set.fingerprint}")
        return 0
    task_set = open_set(args.name, args.env_id)
    if args.check:
        return _check(task_set)
    if args.task is not None:
        return _show(task_set, args.task)
    print(f"{task_set.name}: {len(task_set.task_ids)} tasks of {task_set.env_id}, fingerprint {task_set.fingerprint}")
    for task_id, digest in zip(task_set.task_ids, task_set.task_hashes, strict=True):
        hardness = level(task_id)
        print(f"{task_id:<32} {digest}" + ("" if hardness is None else f"  difficulty {hardness}"))
    return 0


def _check(task_set: TaskSet) -> int:
    """Make every task anew."""
    env = made(task_set.env_id, task_set.env_kwargs)
    found = tool_env(env).task_list(len(task_set.task_ids))
    env.close()
    changed = [id for (id, now), then in zip(found, task_set.task_hashes, strict=True) if now != then]
    for task_id in changed:
        print(f"{task_id} has changed since {task_set.name} was frozen")
    print(f"{task_set.name}: {len(found)} tasks, {len(changed)} changed, fingerprint {task_set.fingerprint}")
    return 1 if changed else 0


def _show(task_set: TaskSet, task_id: str) -> int:
    """One task: request, tools, and the oracle's turns with the costs of each."""
    env = made(task_set.env_id, task_set.env_kwargs)
    request, info = env.reset(options={"task": task_id})
    print(f"task        {task_id} ({info['task_type']})\ncontent     {info['task_hash']}")
    tools = ", ".join(tool["function"]["name"] for tool in info["tools"])
    print(textwrap.fill(f"tools       {tools}", 118, subsequent_indent=" " * 12))
    print(f"request     {textwrap.indent(request, ' ' * 12).lstrip()}")
    for action in tool_env(env).oracle():
        observation, *_, info = env.step(action)
        print(
            f"\n{action}", *textwrap.indent(observation, " " * 4).splitlines(), f"    {costs(info['cost'])}", sep="\n"
        )
    env.close()
    verdict = info.get("verdict", {"status": "no verdict", "reason": "the oracle does not end the episode"})
    print(f"\noracle      {verdict['status']}, {costs(info['cost_total'])}")
    return 0


def costs(found: dict[str, float]) -> str:
    """Costs or bounds by channel, in words."""
    return ", ".join(f"{channel} {found[channel]:.10g}" for channel in CHANNELS if channel in found)
