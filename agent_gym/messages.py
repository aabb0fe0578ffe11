"""Turns and results as messages of a chat: in chat completions' own form, and in words alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent_gym.formats import PARSERS, Parser, Turn
from agent_gym.tools import Call, dump

__all__ = ["Message", "answers", "exchange", "in_words", "listing"]

Message = dict[str, Any]
"""``role`` and ``content``; an assistant's may have ``tool_calls``, a tool's has a ``tool_call_id``."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")
"""What OpenAI's API takes for the name and the id of a call."""


def exchange(
    turn: Turn, results: Sequence[Mapping[str, Any]], observation: str, before: Iterable[Mapping[str, Any]]
) -> list[Message]:
    """What was said and what came back, as chat completions want it: a result for each call, under its own id. A call
    without a name, or with one that no tool may have, is words to a server, and its result is the user's. Reasoning is
    left out, as chat completions do not take it back.

    Args:
        turn: What the environment read.
        results: ``info["tool_results"]``.
        observation: What ``step`` returned.
        before: The conversation so far. A call that has no id, or one that stands there or cannot be sent, gets one of
            nine letters and digits, which every chat template takes.
    """
    used = {call["id"] for message in before for call in message.get("tool_calls", ())}
    said, calls, told, heard = [turn.text], [], [], []
    for call, result in zip(turn.calls, results, strict=True):
        if _NAME.fullmatch(call.name):
            id = _fresh(call.id, used)
            calls.append(
                {"id": id, "type": "function", "function": {"name": call.name, "arguments": dump(call.arguments)}}
            )
            told.append({"role": "tool", "tool_call_id": id, "content": result["content"]})
        else:
            said.append(call.written or dump({"name": call.name, "arguments": call.arguments}))
            heard.append(result["content"])
    shown = [result["content"] for result in results if result["error"] != "not_run"]
    heard.append(observation[len("\n".join(shown)) + bool(shown) :])  # what the user said after the results
    words, reply = ("\n".join(filter(None, part)) for part in (said, heard))
    asked = {"role": "assistant", "content": words, **({"tool_calls": calls} if calls else {})}
    return [asked, *told, *([{"role": "user", "content": reply}] if reply else [])]


def _fresh(id: str | None, used: set[str]) -> str:
    """The id, or a new one where it will not do; noted as used."""
    number = len(used)
    while id is None or id in used or not _ID.fullmatch(id):
        id, number = f"call{number:05}", number + 1
    used.add(id)
    return id


def answers(observation: str, results: Sequence[Mapping[str, Any]]) -> list[Message]:
    """An environment's answer to a turn as messages of a conversation. Put together again, a line each, they are the
    observation: nothing is lost, nothing stands twice.

    Args:
        observation: What ``step`` returned.
        results: ``info["tool_results"]``.

    Returns:
        A message of the role ``tool`` for each result that arrived, then one of the user with what else was said.
    """
    messages: list[Message] = []
    rest = observation
    for result in results:
        if result["error"] == "not_run":
            continue
        content = result["content"]
        if not (rest == content or rest.startswith(f"{content}\n")):  # the observation was cut: its end is here
            content = rest
        messages.append({"role": "tool", "name": result["name"], "content": content})
        if content == rest:
            return messages
        rest = rest[len(content) + 1 :]
    return [*messages, {"role": "user", "content": rest}]


def listing(
    tools: Iterable[Mapping[str, Any]], form: str = '<tool_call>{"name": ..., "arguments": {...}}</tool_call>'
) -> str:
    """The tools in words, for a system message.

    Args:
        tools: As ``info["tools"]``.
        form: How a call is written.
    """
    head = f"""You may call tools. Write a call as {form}; its result
comes back as <tool_response>...</tool_response>. The tools:
"""
    return head + "\n".join(dump(tool["function"]) for tool in tools)


def in_words(messages: Iterable[Mapping[str, Any]], parser: Parser = PARSERS["hermes"]) -> list[Message]:
    """A conversation in words alone, with the roles system, user and assistant.

    Args:
        messages: In chat completions' form.
        parser: Writes the calls.
    """
    found: list[Message] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if message.get("tool_calls"):
            functions = [call["function"] for call in message["tool_calls"]]
            content = parser.render(content, [Call(one["name"], json.loads(one["arguments"])) for one in functions])
        elif role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        if found and role == "user" == found[-1]["role"]:  # templates want the roles to take turns
            found[-1]["content"] += f"\n{content}"
        else:
            found.append({"role": role, "content": content})
    return found
