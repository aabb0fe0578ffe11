"""Settings as nested dicts; names are joined by dots to address them."""

from typing import Any


def get_setting(settings: dict[str, Any], path: str, default: Any = None) -> Any:
    """Return the value at a path like 'log.level', or default if there is none."""
    node: Any = settings
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            return default
        node = node[name]
    return node


def set_setting(settings: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return settings with the value at path, making dicts on the way; the argument is not changed.

    Raises ValueError if something on the way is not a dict.
    """
    name, dot, rest = path.partition(".")
    if not dot:
        return {**settings, name: value}
    inner = settings.get(name, {})
    if not isinstance(inner, dict):
        raise ValueError("not a group of settings")
    return {**settings, name: set_setting(inner, rest, value)}
