"""A typed Python function becomes a tool; text becomes tool calls.

Parsers never raise on any input: what cannot be read as a call becomes a call that carries its own error, which
the environment charges for and answers in words.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from agent_gym.costs import Latency

__all__ = ["PARSERS", "Call", "HermesParser", "OpenAIParser", "Parser", "Tool", "ToolError", "Turn", "tool"]


class ToolError(Exception):
    """An answer of the world that is not a success; the agent sees it as the tool's result.

    Args:
        kind: ``not_found``, ``conflict``, ``not_permitted``, ``invalid`` ...
        message: One sentence that says what was wrong, where, and what would be right.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


MOST_NESTED = 64
"""Deepest nesting of a call's JSON."""

_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_sorted = json.JSONEncoder(sort_keys=True).encode


def dump(value: Any) -> str:
    """Compact JSON, the one spelling of calls and results everywhere."""
    return _compact(value)


def canonical(call: Call) -> str:
    """One spelling for equal calls, whatever the order of their arguments."""
    return call.name + _sorted(call.arguments)


def _parameter_docs(doc: str) -> dict[str, str]:
    """The ``Args:`` section of a Google-style docstring, by parameter."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?)+)", doc, re.MULTILINE)
    entries = re.findall(
        r"^([ \t]+)(\w+)(?: \([^)]*\))?: (.*(?:\n\1[ \t]+.*)*)", section[1] if section else "", re.MULTILINE
    )
    return {name: re.sub(r"\s*\n\s*", " ", text) for _, name, text in entries}


class Tool:
    """A callable that a model can name.

    Args:
        fn: A function with a type on every parameter. Its docstring's first line describes the tool, its
            ``Args:`` section the parameters.
        name: Name shown to the model; the function's own by default.
        context: Whether the first parameter is the world the tool works on; it is not shown to the model.
        reads_only: Whether a call can never change the world.
        cacheable: Whether equal state and equal call always give an equal result.
        latency: Model of the time one call takes.
        ends: Whether a call is the final answer; its arguments are what is judged.
        atoms: What the writer of a call's arguments must have known beyond their strings, numbers and identifiers with
            a digit or an underscore, such as the names in a query; see :mod:`agent_gym.replay`.

    Raises:
        TypeError: If a parameter has no type annotation.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        context: bool = False,
        reads_only: bool = False,
        cacheable: bool = True,
        latency: Latency | None = None,
        ends: bool = False,
        atoms: Callable[[Mapping[str, Any]], frozenset[str]] | None = None,
    ) -> None:
        self.fn, self.name, self.ends, self.atoms = fn, name or fn.__name__, ends, atoms
        self.reads_only, self.cacheable, self.latency = reads_only, cacheable, latency or Latency()
        doc = inspect.cleandoc(fn.__doc__ or self.name)
        self.description, docs = doc.split("\n\n")[0].replace("\n", " "), _parameter_docs(doc)
        hints = get_type_hints(fn, include_extras=True)
        fields: dict[str, Any] = {}
        names: list[str] = []
        for index, parameter in enumerate(list(inspect.signature(fn).parameters.values())[context:]):
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(f"tool {self.name!r}: name every parameter; {parameter} has no schema")
            if parameter.name not in hints:
                raise TypeError(f"tool {self.name!r}: parameter {parameter.name!r} needs a type annotation")
            default = ... if parameter.default is parameter.empty else parameter.default
            # fields go by number inside, so that a parameter may be called "json" or "schema"
            entry = Field(default, alias=parameter.name, description=docs.get(parameter.name))
            fields[f"argument_{index}"] = (hints[parameter.name], entry)
            names.append(parameter.name)
        self._arguments: type[BaseModel] = create_model(
            self.name, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields
        )
        self.parameters = tuple(names)
        self._fields = tuple(zip(names, fields, strict=True))

    @cached_property
    def schema_json(self) -> str:
        """The tool as an OpenAI function, ready (once loaded) for ``apply_chat_template(tools=...)``."""
        parameters = self._arguments.model_json_schema()
        parameters.pop("title", None)
        for entry in parameters.get("properties", {}).values():
            entry.pop("title", None)
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return dump({"type": "function", "function": function})

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """The values that the schema itself offers for arguments (``enum``): known without any call."""
        return tuple(re.findall(r'"([^"]*)"', " ".join(re.findall(r'"enum":\[([^\]]*)\]', self.schema_json))))

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments checked and converted to the function's types.

        Raises:
            ToolError: Of kind ``invalid``, naming the first faulty argument.
        """
        try:
            model = self._arguments.model_validate(arguments)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "arguments"
            raise ToolError("invalid", f"{self.name}: argument {where!r}: {first['msg']}") from None
        values = model.__dict__
        return {name: values[field] for name, field in self._fields}

    def __repr__(self) -> str:
        return f"Tool({self.name})"


def tool(**options: Any) -> Callable[[Callable[..., Any]], Tool]:
    """Decorator form of :class:`Tool`: ``@tool(reads_only=True)`` above a typed function."""
    return lambda fn: Tool(fn, **options)


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call as the model wrote it; ``error`` says why it could not be read, if it could not."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn: free text and any number of calls. Without a call it is the final answer."""

    text: str
    calls: tuple[Call, ...] = ()


class Parser(Protocol):
    """Text to turn and back; ``parse`` accepts every string."""

    def parse(self, action: str) -> Turn:
        """The turn that ``action`` spells."""
        ...

    def render(self, text: str, calls: Iterable[Call]) -> str:
        """An action that parses back to ``text`` and ``calls``."""
        ...


def _no_constants(token: str) -> Any:
    raise ValueError(f"{token} is not JSON")


def _finite(token: str) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise ValueError(f"{token} is too large")
    return value


_decode = json.JSONDecoder(parse_constant=_no_constants, parse_float=_finite).decode


def _check_depth(value: Any, left: int = MOST_NESTED) -> None:
    if isinstance(value, dict | list):
        if not left:
            raise ValueError(f"nested more than {MOST_NESTED} deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def load(text: str) -> Any:
    """Strict JSON from a model.

    Raises:
        ValueError: For anything that is not JSON, is nested too deeply, or cannot be written as UTF-8.
    """
    try:
        value = _decode(text)
    except RecursionError:
        raise ValueError(f"nested more than {MOST_NESTED} deep") from None
    if text.count("{") + text.count("[") > MOST_NESTED:
        _check_depth(value)
    text.encode()
    if "\\u" in text:  # only an escape can still have made half a surrogate pair
        dump(value).encode()
    return value


def _call(name: Any, arguments: Any, id: Any = None) -> Call:
    """A call from its JSON parts; arguments come as an object or as a JSON string of one."""
    id = id if isinstance(id, str) else None
    if not isinstance(name, str) or not name:
        return Call("", id=id, error='a tool call needs a "name" that is a string')
    if isinstance(arguments, str):
        try:
            arguments = load(arguments) if arguments.strip() else {}
        except ValueError as error:
            return Call(name, id=id, error=f'{name}: "arguments" is not valid JSON: {error}')
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return Call(name, id=id, error=f'{name}: "arguments" must be a JSON object, not {type(arguments).__name__}')
    return Call(name, arguments, id)


class HermesParser:
    """The Hermes/Qwen form: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number of them.

    The last tag may be unclosed: generation often stops there.
    """

    _inner = re.compile(r"<(?=/?tool_call>)")
    _tag = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)

    def parse(self, action: str) -> Turn:
        """See :class:`Parser`."""
        if "<tool_call>" not in action:
            return Turn(action.strip())
        calls, texts, end = [], [], 0
        for tag in self._tag.finditer(action):
            texts.append(action[end : tag.start()])
            end = tag.end()
            try:
                value = load(tag[1])
            except ValueError as error:
                calls.append(Call("", error=f"the tool call is not valid JSON: {error}"))
                continue
            if isinstance(value, dict):
                calls.append(_call(value.get("name"), value.get("arguments")))
            else:
                calls.append(Call("", error='a tool call must be a JSON object with "name" and "arguments"'))
        return Turn("".join([*texts, action[end:]]).strip(), tuple(calls))

    def render(self, text: str, calls: Iterable[Call]) -> str:
        """See :class:`Parser`."""
        bodies = (dump({"name": call.name, "arguments": call.arguments}) for call in calls)
        # a tag inside a string would end the call early; JSON can spell its first character otherwise
        bodies = (body if "tool_call>" not in body else self._inner.sub(r"\\u003c", body) for body in bodies)
        tags = (f"<tool_call>{body}</tool_call>" for body in bodies)
        return "\n".join(part for part in (text, *tags) if part)


class OpenAIParser:
    """The chat-completions form: the assistant message as JSON, with ``content`` and ``tool_calls``.

    Text that is not such a message is a final answer.
    """

    def parse(self, action: str) -> Turn:
        """See :class:`Parser`."""
        try:
            message = load(action)
        except ValueError:
            return Turn(action.strip())
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        if not calls:
            content = message.get("content") if isinstance(message, dict) and "content" in message else action
            return Turn(content.strip() if isinstance(content, str) else "")
        content = message.get("content")
        text = content.strip() if isinstance(content, str) else ""
        return Turn(text, tuple(map(self._entry, calls if isinstance(calls, list) else [calls])))

    @staticmethod
    def _entry(entry: Any) -> Call:
        function = entry.get("function") if isinstance(entry, dict) else None
        if not isinstance(function, dict):
            return Call("", error='an entry of "tool_calls" needs a "function" object')
        return _call(function.get("name"), function.get("arguments"), entry.get("id"))

    def render(self, text: str, calls: Iterable[Call]) -> str:
        """See :class:`Parser`."""
        entries = [
            {
                "id": call.id or f"call_{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": dump(call.arguments)},
            }
            for index, call in enumerate(calls)
        ]
        return dump({"role": "assistant", "content": text, **({"tool_calls": entries} if entries else {})})


PARSERS: dict[str, Parser] = {"hermes": HermesParser(), "openai": OpenAIParser()}
