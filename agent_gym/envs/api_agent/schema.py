"""A plain function becomes a domain's tool by a JSON schema instead of by Python types."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from agent_gym.costs import Latency
from agent_gym.tools import Tool, ToolError, dump

__all__ = ["SchemaTool"]

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "null": (type(None),),
    "array": (list,), "object": (dict,),
}  # fmt: skip
_CHECKED = {
    "type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "minimum", "maximum",
    "minLength", "maxLength", "minItems", "maxItems", "pattern",
}  # fmt: skip
_SPOKEN = {"description", "title", "default", "examples", "format"}


class SchemaTool(Tool):
    """A tool whose arguments a JSON schema describes.

    Args:
        fn: Called with the transaction and the arguments that were given, as they were given.
        schema: ``name``, ``description`` and ``parameters`` (the schema of an object), or these under ``function``.
        reads_only: As in :class:`~agent_gym.tools.Tool`.
        latency: As in :class:`~agent_gym.tools.Tool`.

    Raises:
        ValueError: For a schema without these, or with a keyword that is not checked.
    """

    def __init__(
        self, fn: Callable[..., Any], schema: Mapping[str, Any], *, reads_only: bool, latency: Latency | None
    ) -> None:
        function = schema.get("function", schema)
        name, parameters = function.get("name") or fn.__name__, function.get("parameters", {"type": "object"})
        if not isinstance(name, str) or not isinstance(parameters, Mapping) or parameters.get("type") != "object":
            raise ValueError(f"tool {name!r}: its schema needs a name and parameters of the type 'object'")
        _check_schema(parameters, f"tool {name!r}: parameters")
        self.fn, self.name, self.reads_only, self.latency = fn, name, reads_only, latency or Latency()
        self.cacheable, self.ends, self.atoms = True, False, None
        self.description = function.get("description", name)
        self._schema = {"properties": {}, **parameters}
        self.parameters = tuple(self._schema["properties"])
        entry = {"name": name, "description": self.description, "parameters": self._schema}
        self.schema_json = dump({"type": "function", "function": entry})

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`Tool.validate`. A null in the place of an optional argument leaves it out."""
        entries, required = self._schema["properties"], self._schema.get("required", ())
        given = {
            name: value
            for name, value in arguments.items()
            if value is not None or name in required or name not in entries or not _fault(None, entries[name], "")
        }
        if fault := _fault(given, {"additionalProperties": False, **self._schema}, ""):
            raise ToolError("invalid", f"{self.name}: argument {fault}")
        return given


def _check_schema(schema: Any, where: str) -> None:
    """See that every keyword of a schema is known."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise ValueError(f"{where}: a schema is a JSON object")
    if unknown := sorted({*schema} - _CHECKED - _SPOKEN):
        raise ValueError(
            f"{where}: the keyword {unknown[0]!r} is not checked here; there are {', '.join(sorted(_CHECKED))}"
        )
    kinds = schema.get("type", [])
    if wrong := [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind not in _KINDS]:
        raise ValueError(f"{where}: the type {wrong[0]!r} is none of {', '.join(_KINDS)}")
    for name, inner in schema.get("properties", {}).items():
        _check_schema(inner, f"{where}.{name}")
    for name in ("items", "additionalProperties"):
        _check_schema(schema.get(name, True), f"{where}.{name}")
    for inner in schema.get("anyOf", ()):
        _check_schema(inner, f"{where}.anyOf")


def _is(value: Any, kind: str) -> bool:
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _fault(value: Any, schema: Any, path: str) -> str | None:
    """What is wrong with a value, if anything: the place, and what would be right."""
    if isinstance(schema, bool):
        return None if schema else f"{path!r}: is not allowed"
    kinds = schema.get("type", [*_KINDS])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(_is(value, kind) for kind in kinds):
        return f"{path!r}: should be of the type {' or '.join(kinds)}"
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        return f"{path!r}: should be one of {', '.join(map(dump, schema['enum']))}"
    if "const" in schema and not _same(value, schema["const"]):
        return f"{path!r}: should be {dump(schema['const'])}"
    if "anyOf" in schema and all(faults := [_fault(value, one, path) for one in schema["anyOf"]]):
        return faults[0]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _outside(value, schema, "minimum", "maximum", path, "")
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return f"{path!r}: should match {schema['pattern']}"
        return _outside(len(value), schema, "minLength", "maxLength", path, " characters")
    if isinstance(value, list):
        inner = (_fault(one, schema.get("items", True), f"{path}.{at}") for at, one in enumerate(value))
        return _outside(len(value), schema, "minItems", "maxItems", path, " entries") or next(filter(None, inner), None)
    if isinstance(value, dict):
        below = f"{path}." if path else ""
        entries, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name in schema.get("required", ()):
            if name not in value:
                return f"{below + name!r}: is missing"
        for name, one in value.items():
            if name not in entries and other is False:
                return f"{below + name!r}: is unknown; there are {', '.join(entries) or 'none'}"
            if fault := _fault(one, entries.get(name, other), below + name):
                return fault
    return None


def _outside(number: float, schema: Mapping[str, Any], least: str, most: str, path: str, unit: str) -> str | None:
    if number < schema.get(least, number):
        return (
            f"{path!r}: should have at least {schema[least]}{unit}"
            if unit
            else f"{path!r}: should be at least {schema[least]}"
        )
    if number > schema.get(most, number):
        return (
            f"{path!r}: should have at most {schema[most]}{unit}"
            if unit
            else f"{path!r}: should be at most {schema[most]}"
        )
    return None
