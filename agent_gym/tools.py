"""A typed Python function becomes a tool: a JSON schema for the model, a validated call for the function."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from agent_gym.costs import Latency

__all__ = ["Call", "Tool", "ToolError", "dump", "load", "tool"]


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


_SCALARS = ["string", "number", "boolean", "null"]


def _strict(schema: Any) -> Any:
    """A JSON schema of pydantic's by the rules of strict function calling."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: _typed(_strict(entry)) for name, entry in value.items()}
        elif key != "default" and not (key == "title" and isinstance(value, str)):
            made[key] = _strict(value)
    if "properties" in made:
        made["required"], made["additionalProperties"] = list(made["properties"]), False
    return made


def _typed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with a type: any value that has no inner structure where none is named."""
    return entry if {"type", "anyOf", "$ref", "enum", "const"} & entry.keys() else {**entry, "type": _SCALARS}


def _nullable(entry: dict[str, Any], default: Any) -> dict[str, Any]:
    """An entry that takes null as well, which stands for the default."""
    if default is not None:
        words = f"null means {dump(default)}"
        entry["description"] = f"{entry['description'].rstrip('.')}; {words}." if "description" in entry else words
    kinds = entry.get("type")
    if "null" in (kinds or ()) or {"type": "null"} in entry.get("anyOf", ()):
        return entry
    if isinstance(kinds, str) and "const" not in entry:
        more = {"enum": [*entry["enum"], None]} if "enum" in entry else {}
        return {**entry, "type": [kinds, "null"], **more}
    outer = {key: entry.pop(key) for key in ("description",) if key in entry}
    return {**outer, "anyOf": [*entry.get("anyOf", [entry]), {"type": "null"}]}


def _types(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str]:
    """The JSON types that an entry of a schema takes."""
    if "$ref" in entry:
        return _types(definitions[entry["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in entry:
        return [kind for one in entry["anyOf"] for kind in _types(one, definitions)]
    kinds = entry.get("type", _SCALARS)
    return [kinds] if isinstance(kinds, str) else kinds


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
        defaults: dict[str, Any] = {}
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
            if default is not ...:
                defaults[parameter.name] = default
        self._defaults = defaults
        self._arguments: type[BaseModel] = create_model(
            self.name, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields
        )
        self.parameters = tuple(names)
        self._fields = tuple(zip(names, fields, strict=True))

    @cached_property
    def schema_json(self) -> str:
        """The tool as an OpenAI function, ready (once loaded) for ``apply_chat_template(tools=...)``.

        The schema keeps to the rules of strict function calling: every parameter is required and has a type, one with a
        default may be null, which stands for the default, and nothing else is taken.
        """
        parameters = _strict(self._arguments.model_json_schema())
        for name, default in self._defaults.items():
            parameters["properties"][name] = _nullable(parameters["properties"][name], default)
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return dump({"type": "function", "function": function})

    @cached_property
    def _types(self) -> dict[str, frozenset[str]]:
        """The JSON types of each parameter."""
        parameters = json.loads(self.schema_json)["function"]["parameters"]
        definitions = parameters.get("$defs", {})
        return {name: frozenset(_types(entry, definitions)) for name, entry in parameters["properties"].items()}

    def typed(self, call: Call) -> Call:
        """A call whose arguments are text (see ``Call.raw``), each read as its parameter wants it."""
        if not call.raw:
            return call
        arguments = dict(call.arguments)
        for name, text in call.raw.items():
            if "string" in self._types.get(name, ()):
                arguments[name] = text
            elif name in self._types:
                with suppress(ValueError):
                    arguments[name] = load(text)
        return replace(call, arguments=arguments)

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """The values that the schema itself offers for arguments (``enum``): known without any call."""
        return tuple(re.findall(r'"([^"]*)"', " ".join(re.findall(r'"enum":\[([^\]]*)\]', self.schema_json))))

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments checked and converted to the function's types.

        Raises:
            ToolError: Of kind ``invalid``, naming the first faulty argument.
        """
        if None in arguments.values():  # null stands for the default
            arguments = {k: value for k, value in arguments.items() if value is not None or k not in self._defaults}
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
    """One tool call as the model wrote it.

    Args:
        name: Of the tool.
        arguments: By parameter.
        id: Of the call, where its format has one.
        error: Why it could not be read, if it could not.
        written: The text that could not be read.
        raw: The arguments as text, of a format that knows nothing else: the tool says what they are.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    error: str | None = None
    written: str = field(default="", compare=False, repr=False)
    raw: Mapping[str, str] | None = field(default=None, compare=False, repr=False)


def _no_constants(token: str) -> Any:
    raise ValueError(f"{token} is not JSON")


def _finite(token: str) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise ValueError(f"{token} is too large")
    return value


_decoder = json.JSONDecoder(parse_constant=_no_constants, parse_float=_finite)
_blanks = re.compile(r"[ \t\n\r]*")


def _check_depth(value: Any, left: int = MOST_NESTED) -> None:
    if isinstance(value, dict | list):
        if not left:
            raise ValueError(f"nested more than {MOST_NESTED} deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def load_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that starts at ``start``, blanks before it aside, and where it ends.

    Raises:
        ValueError: As :func:`load`; what follows the value is not looked at.
    """
    start = _blanks.match(text, start).end()  # type: ignore[union-attr]
    try:
        value, end = _decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos - start}") from None
    except RecursionError:
        raise ValueError(f"nested more than {MOST_NESTED} deep") from None
    written = text[start:end]
    if written.count("{") + written.count("[") > MOST_NESTED:
        _check_depth(value)
    written.encode()
    if "\\u" in written:  # only an escape can still have made half a surrogate pair
        dump(value).encode()
    return value, end


def load(text: str) -> Any:
    """Strict JSON from a model.

    Raises:
        ValueError: For anything that is not JSON, is nested too deeply, or cannot be written as UTF-8.
    """
    value, end = load_at(text, 0)
    if text[end:].strip(" \t\n\r"):
        raise ValueError(f"there is more text after the value: {text[end:].strip()[:40]!r}")
    return value
