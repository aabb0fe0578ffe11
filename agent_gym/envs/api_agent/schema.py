"""A plain function becomes a domain's tool by a JSON schema instead of by Python types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent_gym.costs import Latency
from agent_gym.tools import Tool, ToolError, dump

__all__ = ["SchemaTool"]


class SchemaTool(Tool):
    """A tool whose arguments a JSON schema (draft 2020-12) describes.

    Args:
        fn: Called with the transaction and the arguments that were given, as they were given.
        schema: ``name``, ``description`` and ``parameters`` (the schema of an object), or these under ``function``.
        reads_only: As in :class:`~agent_gym.tools.Tool`.
        latency: As in :class:`~agent_gym.tools.Tool`.

    Raises:
        ValueError: For what is no such schema.
        ImportError: If the package jsonschema is missing.
    """

    def __init__(
        self, fn: Callable[..., Any], schema: Mapping[str, Any], *, reads_only: bool, latency: Latency | None
    ) -> None:
        try:
            import jsonschema
        except ImportError:
            raise ImportError("a tool by JSON schema needs jsonschema: pip install 'agent-gym[schema]'") from None
        function = schema.get("function", schema)
        name, parameters = function.get("name") or fn.__name__, function.get("parameters", {"type": "object"})
        if not isinstance(name, str) or not isinstance(parameters, Mapping) or parameters.get("type") != "object":
            raise ValueError(f"tool {name!r}: its schema needs a name and parameters of the type 'object'")
        kind = jsonschema.Draft202012Validator
        try:
            kind.check_schema(parameters)
        except jsonschema.SchemaError as error:
            place = ".".join(map(str, ("parameters", *error.absolute_path)))
            raise ValueError(f"tool {name!r}: {place}: {error.message}") from None
        self.fn, self.name, self.reads_only, self.latency = fn, name, reads_only, latency or Latency()
        self.cacheable, self.ends, self.atoms = True, False, None
        self.description = function.get("description", name)
        self._schema = {"properties": {}, **parameters}
        self._validator = kind({"additionalProperties": False, **self._schema})
        self._best = jsonschema.exceptions.best_match
        self.parameters = tuple(self._schema["properties"])
        entry = {"name": name, "description": self.description, "parameters": self._schema}
        self.schema_json = dump({"type": "function", "function": entry})

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`Tool.validate`. A null in the place of an optional argument leaves it out."""
        entries, required = self._schema["properties"], self._schema.get("required", ())
        given = {
            name: value
            for name, value in arguments.items()
            if value is not None
            or name in required
            or name not in entries
            or self._validator.evolve(schema=entries[name]).is_valid(None)
        }
        if error := self._best(self._validator.iter_errors(given)):
            place = ".".join(map(str, error.absolute_path)) or "arguments"
            raise ToolError("invalid", f"{self.name}: argument {place!r}: {error.message}")
        return given
